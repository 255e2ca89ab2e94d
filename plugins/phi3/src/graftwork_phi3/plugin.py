"""What the Phi-3 plugin declares."""

from pathlib import Path

from graftwork import hookimpl
from graftwork.specs import DECODER, AssetCardSource, ChatTemplate, ModelFamily, chat_template
from graftwork_phi3.presets import PRESETS, TINY

TEMPLATES = Path(__file__).parent / "templates"
LORA_TARGETS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), ("qkv_proj",)),
    "output_proj": ("o_proj",),
    "mlp": ("gate_up_proj", "down_proj"),
    "output": ("lm_head",),
}


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    return [
        ModelFamily(
            name="phi3",
            aliases=("phi3_mini", "phi4"),
            model_types=("phi3",),
            architectures=("Phi3ForCausalLM",),
            presets=PRESETS,
            fused_lora_roles=(("q_proj", "k_proj", "v_proj"),),
            special_tokens={"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"},
            stop_tokens=("<|end|>", "<|im_end|>", "<|endoftext|>"),
            chat_template="phi3-instruct",
            tiny=TINY,
            components=("graftwork_phi3.phi3", "graftwork_phi3.phi4"),
            **{**DECODER, "lora_targets": LORA_TARGETS},
        )
    ]


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    return [
        chat_template(TEMPLATES, "phi3-instruct", "phi3", "phi-3", "phi-3-instruct", stop=("<|end|>",)),
        chat_template(TEMPLATES, "phi3.5-instruct", "phi3.5", "phi-3.5", stop=("<|end|>",)),
        chat_template(TEMPLATES, "phi4", "phi-4", stop=("<|im_end|>",)),
    ]


@hookimpl
def graftwork_asset_cards() -> list[AssetCardSource]:
    return [AssetCardSource(name="phi3", path=Path(__file__).parent / "cards")]
