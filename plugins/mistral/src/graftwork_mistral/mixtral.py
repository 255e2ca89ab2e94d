"""Mixtral, whose feed-forward layers are mixtures of experts, under names of torchtune's kind."""

from graftwork.builders.torchtune_names import DECODER, builders, generic_builders
from graftwork_mistral.presets import MIXTRAL_8X7B

mixtral_8x7b, lora_mixtral_8x7b, qlora_mixtral_8x7b = builders(MIXTRAL_8X7B)
mixtral, lora_mixtral = generic_builders(
    "mixtral",
    "mixtral",
    required=(*DECODER, "num_experts", "experts_per_token"),
    defaults={"attn_dropout": 0.0, "norm_eps": 1e-5, "rope_base": 1_000_000},
    fields={"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"},
)
