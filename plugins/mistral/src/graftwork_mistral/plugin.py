"""What the Mistral plugin declares."""

from pathlib import Path
from typing import Any

from graftwork import hookimpl
from graftwork.specs import AssetCardSource, ChatTemplate, ModelFamily, chat_template
from graftwork_mistral.presets import MISTRAL, MIXTRAL, MIXTRAL_8X7B, PRESETS

TEMPLATES = Path(__file__).parent / "templates"
LAST_QUESTION = "the system message and the tools move into the last question"
V2: Any = {"rewrites": f"{LAST_QUESTION}, calls of tools before it are left out", "forgets": ("tool",)}


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    mistral = ModelFamily(
        name="mistral",
        aliases=("mistral_reward",),
        model_types=("mistral",),
        architectures=("MistralForCausalLM", "MistralForSequenceClassification"),
        chat_template="mistral-v3",
        key_maps={"mistral": mistral_keys},
        components=("graftwork_mistral.mistral",),
        **MISTRAL,
    )
    mixtral = ModelFamily(
        name="mixtral",
        model_types=("mixtral",),
        architectures=("MixtralForCausalLM",),
        chat_template="mistral-v1",
        key_maps={"mistral": mixtral_keys},
        components=("graftwork_mistral.mixtral",),
        **MIXTRAL,
    )
    return [mistral, mixtral]


def mistral_keys() -> Any:
    from graftwork.checkpoints.consolidated import consolidated_map

    fields = {"sliding_window": "sliding_window"}
    return consolidated_map(layout="mistral", model_type="mistral", fields=fields, presets=PRESETS)


def mixtral_keys() -> Any:
    from graftwork.checkpoints.consolidated import consolidated_map

    fields = {"num_local_experts": "moe.num_experts", "num_experts_per_tok": "moe.num_experts_per_tok"}
    presets = (MIXTRAL_8X7B,)
    return consolidated_map(layout="mistral", model_type="mixtral", fields=fields, presets=presets, experts=True)


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    parts: Any = {"stop": ("</s>",), "encoding": "parts"}
    tools: Any = {**parts, "supports": ("system", "tools"), "rewrites": LAST_QUESTION}
    return [
        chat_template(TEMPLATES, "mistral-v1", "mistral-instruct-v0.2", **parts),
        chat_template(TEMPLATES, "mistral-v2", "mistral-small-2402", "mistral-large-2402", **{**tools, **V2}),
        chat_template(TEMPLATES, "mistral-v3", "mistral", "mistral-instruct", **tools),
        chat_template(TEMPLATES, "mistral-nemo", "mistral-v3-tekken", **tools),
    ]


@hookimpl
def graftwork_asset_cards() -> list[AssetCardSource]:
    return [AssetCardSource(name="mistral", path=Path(__file__).parent / "cards")]
