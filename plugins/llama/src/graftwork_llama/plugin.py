"""What the Llama plugin declares."""

from functools import partial
from pathlib import Path
from typing import Any

from graftwork import hookimpl
from graftwork.specs import AssetCardSource, ChatTemplate, ModelFamily, chat_template
from graftwork_llama.presets import CHAT_TEMPLATES, LLAMA, PRESETS, embedding_split

MODULES = ("llama2", "code_llama2", "llama3", "llama3_1", "llama3_2")


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    family = ModelFamily(
        name="llama",
        aliases=MODULES,
        model_types=("llama",),
        architectures=("LlamaForCausalLM",),
        chat_template="llama3-instruct",
        key_maps={layout: partial(keys, layout) for layout in ("meta", "mistral")},
        components=tuple(f"graftwork_llama.{name}" for name in MODULES),
        config_class="graftwork_llama.config:LLaMAConfig",
        **LLAMA,
    )
    return [family]


def keys(layout: Any) -> Any:
    from graftwork.checkpoints.consolidated import consolidated_map

    released = layout == "meta"  # nobody publishes a Llama in Mistral's format: that one fits only where it is named
    return consolidated_map(
        layout=layout, model_type="llama", presets=PRESETS, released=released, embedding_split=embedding_split
    )


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    folder = Path(__file__).parent / "templates"
    return [chat_template(folder, *names, **values) for names, values in CHAT_TEMPLATES]


@hookimpl
def graftwork_asset_cards() -> list[AssetCardSource]:
    return [AssetCardSource(name="llama", path=Path(__file__).parent / "cards")]
