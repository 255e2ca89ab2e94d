"""What the Phi-3 plugin declares."""

from __future__ import annotations

from pathlib import Path

from graftwork import hookimpl
from graftwork.specs import DECODER_FREEZE_ALIASES, DECODER_LORA_ROLES, ChatTemplate, ModelFamily, chat_template
from graftwork_phi3.presets import PRESETS, TINY

TEMPLATES = Path(__file__).parent / "templates"


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    return [
        ModelFamily(
            name="phi3",
            aliases=("phi3_mini", "phi4"),
            model_types=("phi3",),
            architectures=("Phi3ForCausalLM",),
            presets=PRESETS,
            lora_targets={
                "q_proj": ("qkv_proj",),
                "k_proj": ("qkv_proj",),
                "v_proj": ("qkv_proj",),
                "output_proj": ("o_proj",),
                "mlp": ("gate_up_proj", "down_proj"),
                "output": ("lm_head",),
            },
            fused_lora_roles=(("q_proj", "k_proj", "v_proj"),),
            default_lora_roles=DECODER_LORA_ROLES,
            freeze_aliases=DECODER_FREEZE_ALIASES,
            special_tokens={"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"},
            stop_tokens=("<|end|>", "<|im_end|>", "<|endoftext|>"),
            chat_template="phi3-instruct",
            segment_attention=True,
            tiny=TINY,
            components=("graftwork_phi3.phi3", "graftwork_phi3.phi4"),
        )
    ]


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    return [
        chat_template(TEMPLATES, "phi3-instruct", "phi3", "phi-3", "phi-3-instruct", stop=("<|end|>",)),
        chat_template(TEMPLATES, "phi3.5-instruct", "phi3.5", "phi-3.5", stop=("<|end|>",)),
        chat_template(TEMPLATES, "phi4", "phi-4", stop=("<|im_end|>",)),
    ]
