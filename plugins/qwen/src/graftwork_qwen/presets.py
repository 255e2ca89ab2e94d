"""The published sizes of Qwen2, Qwen2.5 and Qwen3 (dense), as data.

Numbers: ``config.json`` of the models on the Hub; the address stands above each size. Base and chat models of one size
differ in the longest position, and from 14B on in the norm's epsilon, so that they are two presets, as in torchtune.
``sliding_window`` and ``max_window_layers`` of those files are left out: with ``use_sliding_window`` false, as in all
of them, nothing reads them. Parameter counts are those of the published weights, an embedding that is the output layer
too counted once.
"""

from __future__ import annotations

from typing import Any

from graftwork.specs import MessageLayout, Preset, decoder_shape

_COMMON: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "use_sliding_window": False,
    "bos_token_id": 151643,
}
_END_OF_TEXT, _END_OF_TURN = 151643, 151645
_BASE: dict[str, Any] = {**_COMMON, "max_position_embeddings": 131072, "eos_token_id": _END_OF_TEXT}
_CHAT: dict[str, Any] = {**_COMMON, "max_position_embeddings": 32768, "eos_token_id": _END_OF_TURN}
_SHORT_BASE: dict[str, Any] = {**_BASE, "max_position_embeddings": 32768}
_QWEN3_CHAT: dict[str, Any] = {**_CHAT, "max_position_embeddings": 40960}
_COARSE = {"rms_norm_eps": 1e-5}
# Beyond 3B there are 128 rows more, and an output layer of its own.
_SMALL: dict[str, Any] = {"vocab_size": 151936, "tie_word_embeddings": True}
_LARGE: dict[str, Any] = {"vocab_size": 152064, "tie_word_embeddings": False}


def _qwen3(width: int, hidden: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    """No biases, and queries and keys are normalised. Heads are 128 wide whatever the model's width."""
    own = {"vocab_size": 151936, "head_dim": 128, "attention_bias": False, "tie_word_embeddings": tied}
    return {**decoder_shape(width, hidden, layers, heads, 8), **own}


_0_5B = {**_SMALL, **decoder_shape(896, 4864, 24, 14, 2)}
_1_5B = {**_SMALL, **decoder_shape(1536, 8960, 28, 12, 2)}
_3B = {**_SMALL, **decoder_shape(2048, 11008, 36, 16, 2)}
_7B = {**_LARGE, **decoder_shape(3584, 18944, 28, 28, 4)}
_14B = {**_LARGE, **decoder_shape(5120, 13824, 48, 40, 8)}
_32B = {**_LARGE, **decoder_shape(5120, 27648, 64, 40, 8)}
_72B = {**_LARGE, **decoder_shape(8192, 29568, 80, 64, 8)}


# --- Qwen2, as torchtune has it: the chat models; their base models go to 131,072 positions
# Their chat template: https://huggingface.co/Qwen/Qwen2-72B-Instruct/blob/main/tokenizer_config.json

# https://huggingface.co/Qwen/Qwen2-0.5B-Instruct/blob/main/config.json
QWEN2_0_5B = Preset(
    name="qwen2_0_5b",
    aliases=("qwen2-0.5b", "qwen2-0.5b-instruct"),
    model_type="qwen2",
    values={**_CHAT, **_0_5B},
    num_parameters=494_032_768,
    hub_ids=("Qwen/Qwen2-0.5B-Instruct", "Qwen/Qwen2-0.5B"),
    chat_template="qwen2",
)

# https://huggingface.co/Qwen/Qwen2-1.5B-Instruct/blob/main/config.json
QWEN2_1_5B = Preset(
    name="qwen2_1_5b",
    aliases=("qwen2-1.5b", "qwen2-1.5b-instruct"),
    model_type="qwen2",
    values={**_CHAT, **_1_5B},
    num_parameters=1_543_714_304,
    hub_ids=("Qwen/Qwen2-1.5B-Instruct", "Qwen/Qwen2-1.5B"),
    chat_template="qwen2",
)

# https://huggingface.co/Qwen/Qwen2-7B-Instruct/blob/main/config.json
QWEN2_7B = Preset(
    name="qwen2_7b",
    aliases=("qwen2-7b", "qwen2-7b-instruct"),
    model_type="qwen2",
    values={**_CHAT, **_7B},
    num_parameters=7_615_616_512,
    hub_ids=("Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2-7B"),
    chat_template="qwen2",
)

# https://huggingface.co/Qwen/Qwen2-72B-Instruct/blob/main/config.json
QWEN2_72B = Preset(
    name="qwen2_72b",
    aliases=("qwen2-72b-instruct",),
    model_type="qwen2",
    values={**_CHAT, **_72B},
    num_parameters=72_706_203_648,
    hub_ids=("Qwen/Qwen2-72B-Instruct",),
    chat_template="qwen2",
)

# https://huggingface.co/Qwen/Qwen2-72B/blob/main/config.json
QWEN2_72B_BASE = Preset(
    name="qwen2_72b_base",
    aliases=("qwen2-72b",),
    model_type="qwen2",
    values={**_BASE, **_COARSE, **_72B},
    num_parameters=72_706_203_648,
    hub_ids=("Qwen/Qwen2-72B",),
    chat_template="qwen2",
)

# --- Qwen2.5

# https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct/blob/main/config.json
QWEN2_5_0_5B = Preset(
    name="qwen2_5_0_5b",
    aliases=("qwen2.5-0.5b", "qwen2.5-0.5b-instruct"),
    model_type="qwen2",
    values={**_CHAT, **_0_5B},
    num_parameters=494_032_768,
    hub_ids=("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-1.5B/blob/main/config.json
QWEN2_5_1_5B_BASE = Preset(
    name="qwen2_5_1_5b_base",
    aliases=("qwen2.5-1.5b",),
    model_type="qwen2",
    values={**_BASE, **_1_5B},
    num_parameters=1_543_714_304,
    hub_ids=("Qwen/Qwen2.5-1.5B",),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-1.5B-Instruct/blob/main/config.json
QWEN2_5_1_5B_INSTRUCT = Preset(
    name="qwen2_5_1_5b_instruct",
    aliases=("qwen2.5-1.5b-instruct",),
    model_type="qwen2",
    values={**_CHAT, **_1_5B},
    num_parameters=1_543_714_304,
    hub_ids=("Qwen/Qwen2.5-1.5B-Instruct",),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/config.json
QWEN2_5_3B = Preset(
    name="qwen2_5_3b",
    aliases=("qwen2.5-3b", "qwen2.5-3b-instruct"),
    model_type="qwen2",
    values={**_CHAT, **_3B},
    num_parameters=3_085_938_688,
    hub_ids=("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-7B/blob/main/config.json
QWEN2_5_7B_BASE = Preset(
    name="qwen2_5_7b_base",
    aliases=("qwen2.5-7b",),
    model_type="qwen2",
    values={**_BASE, **_7B},
    num_parameters=7_615_616_512,
    hub_ids=("Qwen/Qwen2.5-7B",),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/config.json
QWEN2_5_7B_INSTRUCT = Preset(
    name="qwen2_5_7b_instruct",
    aliases=("qwen2.5-7b-instruct",),
    model_type="qwen2",
    values={**_CHAT, **_7B},
    num_parameters=7_615_616_512,
    hub_ids=("Qwen/Qwen2.5-7B-Instruct",),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-14B/blob/main/config.json
QWEN2_5_14B_BASE = Preset(
    name="qwen2_5_14b_base",
    aliases=("qwen2.5-14b",),
    model_type="qwen2",
    values={**_BASE, **_COARSE, **_14B},
    num_parameters=14_770_033_664,
    hub_ids=("Qwen/Qwen2.5-14B",),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-14B-Instruct/blob/main/config.json
QWEN2_5_14B_INSTRUCT = Preset(
    name="qwen2_5_14b_instruct",
    aliases=("qwen2.5-14b-instruct",),
    model_type="qwen2",
    values={**_CHAT, **_14B},
    num_parameters=14_770_033_664,
    hub_ids=("Qwen/Qwen2.5-14B-Instruct",),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-32B/blob/main/config.json
QWEN2_5_32B_BASE = Preset(
    name="qwen2_5_32b_base",
    aliases=("qwen2.5-32b",),
    model_type="qwen2",
    values={**_BASE, **_COARSE, **_32B},
    num_parameters=32_763_876_352,
    hub_ids=("Qwen/Qwen2.5-32B",),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-32B-Instruct/blob/main/config.json
QWEN2_5_32B_INSTRUCT = Preset(
    name="qwen2_5_32b_instruct",
    aliases=("qwen2.5-32b-instruct",),
    model_type="qwen2",
    values={**_CHAT, **_32B},
    num_parameters=32_763_876_352,
    hub_ids=("Qwen/Qwen2.5-32B-Instruct",),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-72B/blob/main/config.json
QWEN2_5_72B_BASE = Preset(
    name="qwen2_5_72b_base",
    aliases=("qwen2.5-72b",),
    model_type="qwen2",
    values={**_BASE, **_COARSE, **_72B},
    num_parameters=72_706_203_648,
    hub_ids=("Qwen/Qwen2.5-72B",),
    chat_template="qwen2.5",
)

# https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/config.json
QWEN2_5_72B_INSTRUCT = Preset(
    name="qwen2_5_72b_instruct",
    aliases=("qwen2.5-72b-instruct",),
    model_type="qwen2",
    values={**_CHAT, **_72B},
    num_parameters=72_706_203_648,
    hub_ids=("Qwen/Qwen2.5-72B-Instruct",),
    chat_template="qwen2.5",
)

# --- Qwen3: what the Hub calls Qwen3-8B is the chat model

# https://huggingface.co/Qwen/Qwen3-0.6B-Base/blob/main/config.json
QWEN3_0_6B_BASE = Preset(
    name="qwen3_0_6b_base",
    aliases=("qwen3-0.6b-base",),
    model_type="qwen3",
    values={**_SHORT_BASE, **_qwen3(1024, 3072, 28, 16, tied=True)},
    num_parameters=596_049_920,
    hub_ids=("Qwen/Qwen3-0.6B-Base",),
    chat_template="qwen3",
)

# https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
QWEN3_0_6B_INSTRUCT = Preset(
    name="qwen3_0_6b_instruct",
    aliases=("qwen3-0.6b",),
    model_type="qwen3",
    values={**_QWEN3_CHAT, **_qwen3(1024, 3072, 28, 16, tied=True)},
    num_parameters=596_049_920,
    hub_ids=("Qwen/Qwen3-0.6B",),
    chat_template="qwen3",
)

# https://huggingface.co/Qwen/Qwen3-1.7B-Base/blob/main/config.json
QWEN3_1_7B_BASE = Preset(
    name="qwen3_1_7b_base",
    aliases=("qwen3-1.7b-base",),
    model_type="qwen3",
    values={**_SHORT_BASE, **_qwen3(2048, 6144, 28, 16, tied=True)},
    num_parameters=1_720_574_976,
    hub_ids=("Qwen/Qwen3-1.7B-Base",),
    chat_template="qwen3",
)

# https://huggingface.co/Qwen/Qwen3-1.7B/blob/main/config.json
QWEN3_1_7B_INSTRUCT = Preset(
    name="qwen3_1_7b_instruct",
    aliases=("qwen3-1.7b",),
    model_type="qwen3",
    values={**_QWEN3_CHAT, **_qwen3(2048, 6144, 28, 16, tied=True)},
    num_parameters=1_720_574_976,
    hub_ids=("Qwen/Qwen3-1.7B",),
    chat_template="qwen3",
)

# https://huggingface.co/Qwen/Qwen3-4B-Base/blob/main/config.json
QWEN3_4B_BASE = Preset(
    name="qwen3_4b_base",
    aliases=("qwen3-4b-base",),
    model_type="qwen3",
    values={**_SHORT_BASE, **_qwen3(2560, 9728, 36, 32, tied=True)},
    num_parameters=4_022_468_096,
    hub_ids=("Qwen/Qwen3-4B-Base",),
    chat_template="qwen3",
)

# https://huggingface.co/Qwen/Qwen3-4B/blob/main/config.json
QWEN3_4B_INSTRUCT = Preset(
    name="qwen3_4b_instruct",
    aliases=("qwen3-4b",),
    model_type="qwen3",
    values={**_QWEN3_CHAT, **_qwen3(2560, 9728, 36, 32, tied=True)},
    num_parameters=4_022_468_096,
    hub_ids=("Qwen/Qwen3-4B",),
    chat_template="qwen3",
)

# https://huggingface.co/Qwen/Qwen3-8B-Base/blob/main/config.json
QWEN3_8B_BASE = Preset(
    name="qwen3_8b_base",
    aliases=("qwen3-8b-base",),
    model_type="qwen3",
    values={**_SHORT_BASE, **_qwen3(4096, 12288, 36, 32, tied=False)},
    num_parameters=8_190_735_360,
    hub_ids=("Qwen/Qwen3-8B-Base",),
    chat_template="qwen3",
)

# https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json
QWEN3_8B_INSTRUCT = Preset(
    name="qwen3_8b_instruct",
    aliases=("qwen3-8b",),
    model_type="qwen3",
    values={**_QWEN3_CHAT, **_qwen3(4096, 12288, 36, 32, tied=False)},
    num_parameters=8_190_735_360,
    hub_ids=("Qwen/Qwen3-8B",),
    chat_template="qwen3",
)

# https://huggingface.co/Qwen/Qwen3-14B-Base/blob/main/config.json
QWEN3_14B_BASE = Preset(
    name="qwen3_14b_base",
    aliases=("qwen3-14b-base",),
    model_type="qwen3",
    values={**_SHORT_BASE, **_qwen3(5120, 17408, 40, 40, tied=False)},
    num_parameters=14_768_307_200,
    hub_ids=("Qwen/Qwen3-14B-Base",),
    chat_template="qwen3",
)

# https://huggingface.co/Qwen/Qwen3-14B/blob/main/config.json
QWEN3_14B_INSTRUCT = Preset(
    name="qwen3_14b_instruct",
    aliases=("qwen3-14b",),
    model_type="qwen3",
    values={**_QWEN3_CHAT, **_qwen3(5120, 17408, 40, 40, tied=False)},
    num_parameters=14_768_307_200,
    hub_ids=("Qwen/Qwen3-14B",),
    chat_template="qwen3",
)

# https://huggingface.co/Qwen/Qwen3-32B/blob/main/config.json
QWEN3_32B = Preset(
    name="qwen3_32b",
    aliases=("qwen3-32b",),
    model_type="qwen3",
    values={**_QWEN3_CHAT, **_qwen3(5120, 25600, 64, 64, tied=False)},
    num_parameters=32_762_123_264,
    hub_ids=("Qwen/Qwen3-32B",),
    chat_template="qwen3",
)

PRESETS = (
    QWEN2_0_5B,
    QWEN2_1_5B,
    QWEN2_7B,
    QWEN2_72B,
    QWEN2_72B_BASE,
    QWEN2_5_0_5B,
    QWEN2_5_1_5B_BASE,
    QWEN2_5_1_5B_INSTRUCT,
    QWEN2_5_3B,
    QWEN2_5_7B_BASE,
    QWEN2_5_7B_INSTRUCT,
    QWEN2_5_14B_BASE,
    QWEN2_5_14B_INSTRUCT,
    QWEN2_5_32B_BASE,
    QWEN2_5_32B_INSTRUCT,
    QWEN2_5_72B_BASE,
    QWEN2_5_72B_INSTRUCT,
    QWEN3_0_6B_BASE,
    QWEN3_0_6B_INSTRUCT,
    QWEN3_1_7B_BASE,
    QWEN3_1_7B_INSTRUCT,
    QWEN3_4B_BASE,
    QWEN3_4B_INSTRUCT,
    QWEN3_8B_BASE,
    QWEN3_8B_INSTRUCT,
    QWEN3_14B_BASE,
    QWEN3_14B_INSTRUCT,
    QWEN3_32B,
)

TINY: dict[str, Any] = {
    **_COMMON,
    **decoder_shape(32, 56, 2, 4, 2),
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "use_sliding_window": True,
    "sliding_window": 5,
    "max_window_layers": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY_BY_TYPE: dict[str, dict[str, Any]] = {"qwen3": {"head_dim": 16}}
"""For conformance tests: small, with a window shorter than a sample in the second layer."""

# https://github.com/pytorch/torchtune, torchtune/models/qwen2/_tokenizer.py
QWEN2_MESSAGES = MessageLayout(
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
    stop=("<|im_end|>", "<|endoftext|>"),
    header=("<|im_start|>", "{role}\n"),
    end=("<|im_end|>", "\n"),
    bare_roles=("ipython",),
    bos_before="nothing",
    eos_after="conversation",
    last_end="not_assistant",
    split_regex=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)
