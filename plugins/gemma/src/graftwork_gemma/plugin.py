"""What the Gemma plugin declares."""

from __future__ import annotations

from pathlib import Path

from graftwork import hookimpl
from graftwork.specs import ChatTemplate, ModelFamily

TEMPLATES = Path(__file__).parent / "templates"


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    return []


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    return []
