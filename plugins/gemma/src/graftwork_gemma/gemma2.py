"""Gemma 2 under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders, generic_builders
from graftwork_gemma.gemma import DECODER
from graftwork_gemma.presets import GEMMA2_2B, GEMMA2_9B, GEMMA2_27B

CAPS = {"hidden_capping_value": 50.0, "final_capping_value": 30.0}

gemma2_2b, lora_gemma2_2b, qlora_gemma2_2b = builders(GEMMA2_2B, lora_output=False, latest=True)
gemma2_9b, lora_gemma2_9b, qlora_gemma2_9b = builders(GEMMA2_9B, lora_output=False, latest=True)
gemma2_27b, lora_gemma2_27b, qlora_gemma2_27b = builders(GEMMA2_27B, lora_output=False, latest=True)
gemma2, lora_gemma2 = generic_builders(
    "gemma2",
    "gemma2",
    required=DECODER,
    defaults={"attn_dropout": 0.0, "norm_eps": 1e-6, "rope_base": 10_000, **CAPS}
    | {"sliding_window_size": 4096, "query_pre_attn_scalar": None},
    fields={"hidden_capping_value": "attn_logit_softcapping", "final_capping_value": "final_logit_softcapping"}
    | {"sliding_window_size": "sliding_window"},
    derive=lambda given: {"query_pre_attn_scalar": given["query_pre_attn_scalar"] or given["head_dim"]},
    lora_output=False,
    latest=True,
)
