"""Qwen3 under torchtune's names, as transformers models with fresh weights: ``qwen3_8b_instruct``, ..."""

from graftwork.builders.torchtune_names import DECODER, generic_builders, sized_builders
from graftwork_qwen.presets import PRESETS
from graftwork_qwen.qwen2 import ARGUMENTS, KINDS, QWEN2

globals().update(sized_builders(PRESETS, "qwen3_", latest=True))
qwen3, lora_qwen3 = generic_builders(
    "qwen3",
    KINDS,
    required=DECODER,
    defaults={**ARGUMENTS, **QWEN2},
    derive=lambda given: {"head_dim": given["head_dim"] or given["embed_dim"] // given["num_heads"]},
    latest=True,
)
