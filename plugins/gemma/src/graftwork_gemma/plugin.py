"""What the Gemma plugin declares."""

from pathlib import Path

from graftwork import hookimpl
from graftwork.specs import DECODER, AssetCardSource, ChatTemplate, ModelFamily, chat_template
from graftwork_gemma.presets import PRESETS, TINY, TINY_BY_TYPE

TEMPLATES = Path(__file__).parent / "templates"


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    return [
        ModelFamily(
            name="gemma",
            aliases=("gemma2", "gemma3"),
            model_types=("gemma", "gemma2", "gemma3_text"),
            architectures=("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
            presets=PRESETS,
            special_tokens={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
            stop_tokens=("<end_of_turn>", "<eos>"),
            chat_template="gemma-it",
            tiny=TINY,
            tiny_by_type=TINY_BY_TYPE,
            components=("graftwork_gemma.gemma", "graftwork_gemma.gemma2", "graftwork_gemma.gemma3"),
            **DECODER,
        )
    ]


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    return [
        chat_template(
            TEMPLATES,
            "gemma-it",
            "gemma",
            "gemma2-it",
            "gemma2",
            "gemma-instruct",
            stop=("<end_of_turn>",),
            supports=(),
        ),
        chat_template(TEMPLATES, "gemma3-it", "gemma3", stop=("<end_of_turn>",), supports=("system", "images")),
    ]


@hookimpl
def graftwork_asset_cards() -> list[AssetCardSource]:
    return [AssetCardSource(name="gemma", path=Path(__file__).parent / "cards")]
