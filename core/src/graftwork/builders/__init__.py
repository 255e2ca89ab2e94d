"""The unified interface: models, tokenizers and chat templates from :class:`graftwork.ModelParams`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.builders.extras import lazy_exports

if TYPE_CHECKING:
    from graftwork.builders.base_model import BaseModel
    from graftwork.builders.chat_template import build_chat_template
    from graftwork.builders.family import family_of
    from graftwork.builders.model import BuildRequest, build_model
    from graftwork.builders.tokenizer import build_tokenizer

__all__ = ["BaseModel", "BuildRequest", "build_chat_template", "build_model", "build_tokenizer", "family_of"]

__getattr__ = lazy_exports(
    __name__,
    {
        "BaseModel": "graftwork.builders.base_model",
        "BuildRequest": "graftwork.builders.model",
        "build_chat_template": "graftwork.builders.chat_template",
        "build_model": "graftwork.builders.model",
        "build_tokenizer": "graftwork.builders.tokenizer",
        "family_of": "graftwork.builders.family",
    },
    globals(),
)
