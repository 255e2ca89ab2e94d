"""Qwen2 under torchtune's names, as transformers models with fresh weights: ``qwen2_0_5b``, ..."""

from graftwork.builders.torchtune_names import DECODER, generic_builders, sized_builders
from graftwork.tokenizers.torchtune import torchtune_tokenizer
from graftwork_qwen.presets import PRESETS, QWEN2_MESSAGES

ARGUMENTS = {"head_dim": None, "attn_dropout": 0.0, "norm_eps": 1e-5, "rope_base": 1e6, "tie_word_embeddings": False}
QWEN2 = {"q_proj_bias": True, "k_proj_bias": True, "v_proj_bias": True, "q_norm": False, "k_norm": False}
QWEN3 = {argument: not value for argument, value in QWEN2.items()}
KINDS = {"qwen2": QWEN2, "qwen3": QWEN3}

globals().update(sized_builders(PRESETS, "qwen2_0", lora_output=False, latest=True))
globals().update(sized_builders(PRESETS, "qwen2_1", lora_output=False, latest=True))
globals().update(sized_builders(PRESETS, "qwen2_7", latest=True))
qwen2, lora_qwen2 = generic_builders(
    "qwen2",
    KINDS,
    required=DECODER,
    defaults={**ARGUMENTS, **QWEN2},
    derive=lambda given: {"head_dim": given["head_dim"] or given["embed_dim"] // given["num_heads"]},
    latest=True,
)
qwen2_tokenizer = torchtune_tokenizer("qwen2_tokenizer", QWEN2_MESSAGES, family="qwen")
