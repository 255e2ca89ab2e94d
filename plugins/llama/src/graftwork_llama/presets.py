"""The published sizes of Llama 2, Code Llama, 3, 3.1, 3.2 and 3.3, as data.

Numbers: ``config.json`` of the models on the Hub (``hub_ids``: https://huggingface.co/ID/blob/main/config.json), and
``params.json`` of Meta's own release (https://github.com/meta-llama/llama-models). Where a table names a further
source, it stands there. Parameter counts are those of the published weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.specs import DECODER, MessageLayout, Preset, RankLayout, decoder_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

# Width, layers, heads: Llama 2 paper (https://arxiv.org/abs/2307.09288), section 2.2; the rest of its config.json.
_LLAMA2 = {
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,  # norm_eps of params.json; some config.json of 2023 said 1e-6 and were corrected
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Code Llama paper (https://arxiv.org/abs/2308.12950), section 2.4: base 1e6, trained on 16,384 tokens. params.json and
# config.json say the same: https://huggingface.co/codellama/CodeLlama-7b-hf/blob/main/config.json. The vocabulary has
# 16 more tokens where infilling was trained: 7B, 13B and 70B, and not 34B nor the Python ones of 7B, 13B and 34B.
_CODE_LLAMA2 = {
    **_LLAMA2,
    "vocab_size": 32016,
    "max_position_embeddings": 16384,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
# The Llama 3 paper (https://arxiv.org/abs/2407.21783), table 3; params.json: rope_theta 500000, norm_eps 1e-05.
_LLAMA3 = {
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
# Llama 3.1's stretched frequencies: use_scaled_rope in params.json, these numbers in config.json.
ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _scaled(factor: float) -> dict[str, Any]:
    """Llama 3 with the frequencies of long wavelengths stretched: 8,192 positions become 131,072."""
    return {**_LLAMA3, "max_position_embeddings": 131072, "rope_parameters": {**ROPE, "factor": factor}}


def _shape(width: int, hidden: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return decoder_shape(width, hidden, layers, heads, kv_heads, width // heads)


LLAMA2_7B = Preset(
    name="llama2_7b",
    aliases=("llama-2-7b",),
    model_type="llama",
    values={**_LLAMA2, **_shape(4096, 11008, 32, 32, 32)},
    num_parameters=6_738_415_616,
    hub_ids=("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"),
    chat_template="llama2",
)
LLAMA2_13B = Preset(
    name="llama2_13b",
    aliases=("llama-2-13b",),
    model_type="llama",
    values={**_LLAMA2, **_shape(5120, 13824, 40, 40, 40)},
    num_parameters=13_015_864_320,
    hub_ids=("meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-chat-hf"),
    chat_template="llama2",
)
LLAMA2_70B = Preset(
    name="llama2_70b",
    aliases=("llama-2-70b",),
    model_type="llama",
    values={**_LLAMA2, **_shape(8192, 28672, 80, 64, 8)},
    num_parameters=68_976_648_192,
    hub_ids=("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"),
    chat_template="llama2",
)

CODE_LLAMA2_7B = Preset(
    name="code_llama2_7b",
    aliases=("codellama-7b",),
    model_type="llama",
    values={**_CODE_LLAMA2, **_shape(4096, 11008, 32, 32, 32)},
    num_parameters=6_738_546_688,
    hub_ids=("codellama/CodeLlama-7b-hf", "codellama/CodeLlama-7b-Instruct-hf"),
    chat_template="llama2",
)
CODE_LLAMA2_13B = Preset(
    name="code_llama2_13b",
    aliases=("codellama-13b",),
    model_type="llama",
    values={**_CODE_LLAMA2, **_shape(5120, 13824, 40, 40, 40)},
    num_parameters=13_016_028_160,
    hub_ids=("codellama/CodeLlama-13b-hf", "codellama/CodeLlama-13b-Instruct-hf"),
    chat_template="llama2",
)
CODE_LLAMA2_34B = Preset(
    name="code_llama2_34b",
    aliases=("codellama-34b",),
    model_type="llama",
    values={**_CODE_LLAMA2, "vocab_size": 32000, **_shape(8192, 22016, 48, 64, 8)},
    num_parameters=33_743_970_304,
    hub_ids=("codellama/CodeLlama-34b-hf", "codellama/CodeLlama-34b-Instruct-hf", "codellama/CodeLlama-34b-Python-hf"),
    chat_template="llama2",
)
# The base model only. Its Instruct and Python models were trained on 4,096 tokens with base 10,000:
# https://github.com/meta-llama/codellama/issues/188
CODE_LLAMA2_70B = Preset(
    name="code_llama2_70b",
    aliases=("codellama-70b",),
    model_type="llama",
    values={**_CODE_LLAMA2, **_shape(8192, 28672, 80, 64, 8)},
    num_parameters=68_976_910_336,
    hub_ids=("codellama/CodeLlama-70b-hf",),
)

LLAMA3_8B = Preset(
    name="llama3_8b",
    aliases=("llama-3-8b",),
    model_type="llama",
    values={**_LLAMA3, **_shape(4096, 14336, 32, 32, 8)},
    num_parameters=8_030_261_248,
    hub_ids=("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
    chat_template="llama3-instruct",
)
LLAMA3_70B = Preset(
    name="llama3_70b",
    aliases=("llama-3-70b",),
    model_type="llama",
    values={**_LLAMA3, **_shape(8192, 28672, 80, 64, 8)},
    num_parameters=70_553_706_496,
    hub_ids=("meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct"),
    chat_template="llama3-instruct",
)

LLAMA3_1_8B = Preset(
    name="llama3_1_8b",
    aliases=("llama3.1_8b", "llama-3.1-8b"),
    model_type="llama",
    values={**_scaled(8.0), **_shape(4096, 14336, 32, 32, 8)},
    num_parameters=8_030_261_248,
    hub_ids=("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
    chat_template="llama3.1",
)
LLAMA3_1_70B = Preset(
    name="llama3_1_70b",
    # Llama 3.3 70B is this architecture: https://huggingface.co/meta-llama/Llama-3.3-70B-Instruct/blob/main/config.json
    aliases=("llama3.1_70b", "llama-3.1-70b", "llama3_3_70b", "llama3.3_70b", "llama-3.3-70b"),
    model_type="llama",
    values={**_scaled(8.0), **_shape(8192, 28672, 80, 64, 8)},
    num_parameters=70_553_706_496,
    hub_ids=("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"),
    chat_template="llama3.1",
)
LLAMA3_1_405B = Preset(
    name="llama3_1_405b",
    aliases=("llama3.1_405b", "llama-3.1-405b"),
    model_type="llama",
    values={**_scaled(8.0), **_shape(16384, 53248, 126, 128, 8)},
    num_parameters=405_853_388_800,
    hub_ids=("meta-llama/Llama-3.1-405B", "meta-llama/Llama-3.1-405B-Instruct"),
    chat_template="llama3.1",
)

LLAMA3_2_1B = Preset(
    name="llama3_2_1b",
    aliases=("llama3.2_1b", "llama-3.2-1b"),
    model_type="llama",
    values={**_scaled(32.0), **_shape(2048, 8192, 16, 32, 8), "tie_word_embeddings": True},
    num_parameters=1_235_814_400,
    hub_ids=("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
    chat_template="llama3.2",
)
LLAMA3_2_3B = Preset(
    name="llama3_2_3b",
    aliases=("llama3.2_3b", "llama-3.2-3b"),
    model_type="llama",
    values={**_scaled(32.0), **_shape(3072, 8192, 28, 24, 8), "tie_word_embeddings": True},
    num_parameters=3_212_749_824,
    hub_ids=("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
    chat_template="llama3.2",
)

PRESETS = (
    LLAMA2_7B,
    LLAMA2_13B,
    LLAMA2_70B,
    CODE_LLAMA2_7B,
    CODE_LLAMA2_13B,
    CODE_LLAMA2_34B,
    CODE_LLAMA2_70B,
    LLAMA3_8B,
    LLAMA3_70B,
    LLAMA3_1_8B,
    LLAMA3_1_70B,
    LLAMA3_1_405B,
    LLAMA3_2_1B,
    LLAMA3_2_3B,
)

# Llama 3's: https://github.com/meta-llama/llama-models/blob/main/models/llama3/tokenizer.py
SPECIAL_TOKENS = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
    "pad_token": "<|finetune_right_pad_id|>",
}

TINY = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CHAT_TEMPLATES: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("llama2", "llama2-chat", "llama-2-chat"), {"stop": ("</s>",)}),
    (("llama3-instruct", "llama3", "llama-3-instruct"), {"stop": ("<|eot_id|>",)}),
    (
        ("llama3.1", "llama3.1-instruct", "llama-3.1-instruct"),
        {"stop": ("<|eot_id|>", "<|eom_id|>"), "supports": ("system", "tools")},
    ),
    (
        ("llama3.2", "llama3.2-instruct", "llama-3.2-instruct"),
        {"stop": ("<|eot_id|>",), "supports": ("system", "tools")},
    ),
)

# torchtune's generic builders: what they take by position, and their defaults.
SHAPE = ("vocab_size", "num_layers", "num_heads", "num_kv_heads", "embed_dim", "max_seq_len")
LLAMA3_DEFAULTS = {"attn_dropout": 0.0, "rope_base": 500_000, "intermediate_dim": None, "norm_eps": 1e-5}
LLAMA3_1_ANY: dict[str, Any] = {
    "required": SHAPE,
    "defaults": {**LLAMA3_DEFAULTS, "scale_factor": 8},
    "rope_parameters": ROPE,
    "latest": True,
}
LLAMA3_2_ANY: dict[str, Any] = {
    "required": SHAPE,
    "defaults": {**LLAMA3_DEFAULTS, "scale_factor": 32, "tie_word_embeddings": True},
    "rope_parameters": ROPE,
    "latest": True,
}


def embedding_split(config: Mapping[str, Any]) -> int:
    """The dimension along which Meta's files split the embeddings: Llama 2's ParallelEmbedding the width, Llama 3's
    VocabParallelEmbedding the vocabulary, which is larger there.
    """
    return 0 if config["vocab_size"] > 100_000 else 1


# https://github.com/facebookresearch/fairseq2/blob/main/src/fairseq2/models/llama/config.py: fields and defaults, those
# of the first LLaMA 7B.
FAIRSEQ2_DEFAULTS = {
    "model_dim": 4096,
    "max_seq_len": 2048,
    "vocab_size": 32000,
    "pad_idx": None,
    "tied_embeddings": False,
    "num_layers": 32,
    "num_attn_heads": 32,
    "num_key_value_heads": 32,
    "ffn_inner_dim": 4096 * 4,
    "ffn_inner_dim_scale": 2 / 3,
    "ffn_inner_dim_multiplier": 1.0,
    "ffn_inner_dim_multiple_of": 256,
    "rope_theta": 10000.0,
    "use_scaled_rope": False,
    "dropout_p": 0.0,
    "init_std": None,
    "init_std_scale": "layer",
    "shard_embed_dim": True,
}

# https://github.com/meta-llama/llama-models/blob/main/models/llama3/tokenizer.py
LLAMA3_RANKS = RankLayout(
    ranks=128_000,
    split_regex=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    special_tokens=(
        *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
        *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
        *("<|eot_id|>", "<|python_tag|>", "<|image|>"),
        *(f"<|reserved_special_token_{index}|>" for index in range(2, 246)),
    ),
)

# https://github.com/pytorch/torchtune, torchtune/models/llama2 and llama3 (_tokenizer.py, _prompt_template.py)
LLAMA2_MESSAGES = MessageLayout(
    impls=("sentencepiece", "hf"),
    prompt={"system": ("<<SYS>>\n", "\n<</SYS>>\n\n"), "user": ("[INST] ", " [/INST] ")},
    prompt_name="Llama2ChatTemplate",
    system="in_user",
    strip="right",
    unspaced="within_turn",
    cut_masked=None,
)
LLAMA3_MESSAGES = MessageLayout(
    impls=("tiktoken", "hf"),
    special_tokens={
        **{text: 128_000 + index for index, text in enumerate(LLAMA3_RANKS.special_tokens[:11])},
        "<|reserved_special_token_245|>": 128_011,
        "<|video|>": 128_012,
        **{f"<|reserved_special_token_{index}|>": 128_011 + index for index in range(2, 245)},
        "<|image|>": 128_256,
    },
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    pad="<|finetune_right_pad_id|>",
    stop=("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
    header=("<|start_header_id|>", "{role}", "<|end_header_id|>", "\n\n"),
    end=("<|eot_id|>",),
    open_end=("<|eom_id|>",),
    call="<|python_tag|>",
    image="<|image|>",
    strip="both",
    bos_before="conversation",
    eos_after="conversation",
    eos_masked=True,
    last_end="with_end_tokens",
    decode_to_eos=True,
)

LLAMA: dict[str, Any] = {
    **DECODER,
    "presets": PRESETS,
    "special_tokens": SPECIAL_TOKENS,
    "stop_tokens": ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "</s>"),
    "rank_layouts": (LLAMA3_RANKS,),
    "tiny": TINY,
}
