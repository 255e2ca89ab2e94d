"""What the Llama plugin declares."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from graftwork import hookimpl
from graftwork.specs import DECODER, ChatTemplate, ModelFamily, chat_template
from graftwork_llama.presets import LLAMA3_RANKS, PRESETS, SPECIAL_TOKENS, TINY, embedding_split

MODULES = ("llama2", "code_llama2", "llama3", "llama3_1", "llama3_2")
TEMPLATES = Path(__file__).parent / "templates"


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    family = ModelFamily(
        name="llama",
        aliases=MODULES,
        model_types=("llama",),
        architectures=("LlamaForCausalLM",),
        presets=PRESETS,
        special_tokens=SPECIAL_TOKENS,
        stop_tokens=("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "</s>"),
        chat_template="llama3-instruct",
        rank_layouts=(LLAMA3_RANKS,),
        tiny=TINY,
        key_maps={"meta": meta_keys, "mistral": mistral_keys},
        components=tuple(f"graftwork_llama.{name}" for name in MODULES),
        **DECODER,
    )
    return [family]


def meta_keys() -> Any:
    from graftwork.checkpoints.consolidated import consolidated_map

    return consolidated_map(layout="meta", model_type="llama", presets=PRESETS, embedding_split=embedding_split)


def mistral_keys() -> Any:
    """For a Llama model written in Mistral's format; nobody publishes one, so it fits only where it is said to."""
    from graftwork.checkpoints.consolidated import consolidated_map

    key_map = consolidated_map(layout="mistral", model_type="llama", presets=PRESETS)
    return replace(key_map, fits=lambda params: False)


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    names3 = ("llama3-instruct", "llama3", "llama-3-instruct")
    names31 = ("llama3.1", "llama3.1-instruct", "llama-3.1-instruct")
    names32 = ("llama3.2", "llama3.2-instruct", "llama-3.2-instruct")
    return [
        chat_template(TEMPLATES, "llama2", "llama2-chat", "llama-2-chat", stop=("</s>",)),
        chat_template(TEMPLATES, *names3, stop=("<|eot_id|>",)),
        chat_template(TEMPLATES, *names31, stop=("<|eot_id|>", "<|eom_id|>"), supports=("system", "tools")),
        chat_template(TEMPLATES, *names32, stop=("<|eot_id|>",), supports=("system", "tools")),
    ]
