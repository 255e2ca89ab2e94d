"""What the Mistral plugin declares."""

from __future__ import annotations

from pathlib import Path

from graftwork import hookimpl
from graftwork.specs import ChatTemplate, ModelFamily, chat_template

TEMPLATES = Path(__file__).parent / "templates"
LAST_QUESTION = "the system message and the tools move into the last question"


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    return []


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    return [
        chat_template(TEMPLATES, "mistral-v1", "mistral-instruct-v0.2", stop=("</s>",), encoding="parts"),
        chat_template(
            TEMPLATES,
            "mistral-v3",
            "mistral",
            "mistral-instruct",
            stop=("</s>",),
            supports=("system", "tools"),
            encoding="parts",
            rewrites=LAST_QUESTION,
        ),
        chat_template(
            TEMPLATES,
            "mistral-nemo",
            "mistral-v3-tekken",
            stop=("</s>",),
            supports=("system", "tools"),
            encoding="parts",
            rewrites=LAST_QUESTION,
        ),
    ]
