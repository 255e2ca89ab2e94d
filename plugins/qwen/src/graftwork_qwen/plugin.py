"""What the Qwen plugin declares."""

from pathlib import Path

from graftwork import hookimpl
from graftwork.specs import DECODER, AssetCardSource, ChatTemplate, ModelFamily, chat_template
from graftwork_qwen.presets import PRESETS, TINY, TINY_BY_TYPE

TEMPLATES = Path(__file__).parent / "templates"
QWEN3_REWRITES = "the reasoning of answers before the last question is left out"


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    return [
        ModelFamily(
            name="qwen",
            aliases=("qwen2", "qwen2_5", "qwen3"),
            model_types=("qwen2", "qwen3"),
            architectures=("Qwen2ForCausalLM", "Qwen3ForCausalLM"),
            presets=PRESETS,
            special_tokens={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
            stop_tokens=("<|im_end|>", "<|endoftext|>"),
            chat_template="qwen2.5",
            tiny=TINY,
            tiny_by_type=TINY_BY_TYPE,
            components=("graftwork_qwen.qwen2", "graftwork_qwen.qwen2_5", "graftwork_qwen.qwen3"),
            **DECODER,
        )
    ]


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    return [
        chat_template(TEMPLATES, "qwen2", "qwen2-instruct", stop=("<|im_end|>",)),
        chat_template(
            TEMPLATES, "qwen2.5", "qwen2.5-instruct", "qwen", stop=("<|im_end|>",), supports=("system", "tools")
        ),
        chat_template(
            TEMPLATES,
            "qwen2-vl-instruct",
            "qwen2_vl",
            "qwen2.5-vl-instruct",
            stop=("<|im_end|>",),
            supports=("system", "images"),
        ),
        chat_template(TEMPLATES, "qwen3", stop=("<|im_end|>",), supports=("system", "tools"), rewrites=QWEN3_REWRITES),
        chat_template(TEMPLATES, "qwen3-instruct", "qwen3_nothink", stop=("<|im_end|>",), supports=("system", "tools")),
    ]


@hookimpl
def graftwork_asset_cards() -> list[AssetCardSource]:
    return [AssetCardSource(name="qwen", path=Path(__file__).parent / "cards")]
