"""Graftwork: a small core onto which open language models and the methods for them are grafted.

Everything here is imported on first use, so that ``import graftwork`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.adapters import attach_adapter, merge_adapter
    from graftwork.builders import BaseModel, build_chat_template, build_model, build_tokenizer
    from graftwork.chat import encode_chat, render_chat
    from graftwork.config import (
        DataParams,
        GenerationParams,
        ModelParams,
        PeftParams,
        RunConfig,
        TrainingParams,
        load_config,
    )
    from graftwork.config.components import instantiate
    from graftwork.hookspecs import hookimpl
    from graftwork.messages import ContentItem, Conversation, Message, Role, Type
    from graftwork.registry import presets
    from graftwork.sources.hubs import load_model
    from graftwork.tokenizers.tokenizer import Tokenizer, load_tokenizer
    from graftwork.training import train

__version__ = "0.1.0"

_EXPORTS = {
    "attach_adapter": "graftwork.adapters",
    "merge_adapter": "graftwork.adapters",
    "BaseModel": "graftwork.builders",
    "build_chat_template": "graftwork.builders",
    "build_model": "graftwork.builders",
    "build_tokenizer": "graftwork.builders",
    "encode_chat": "graftwork.chat",
    "render_chat": "graftwork.chat",
    "DataParams": "graftwork.config",
    "GenerationParams": "graftwork.config",
    "ModelParams": "graftwork.config",
    "PeftParams": "graftwork.config",
    "RunConfig": "graftwork.config",
    "TrainingParams": "graftwork.config",
    "load_config": "graftwork.config",
    "instantiate": "graftwork.config.components",
    "hookimpl": "graftwork.hookspecs",
    "ContentItem": "graftwork.messages",
    "Conversation": "graftwork.messages",
    "Message": "graftwork.messages",
    "Role": "graftwork.messages",
    "Type": "graftwork.messages",
    "presets": "graftwork.registry",
    "load_model": "graftwork.sources.hubs",
    "Tokenizer": "graftwork.tokenizers.tokenizer",
    "load_tokenizer": "graftwork.tokenizers.tokenizer",
    "train": "graftwork.training",
}

__all__ = [
    "BaseModel",
    "ContentItem",
    "Conversation",
    "DataParams",
    "GenerationParams",
    "Message",
    "ModelParams",
    "PeftParams",
    "Role",
    "RunConfig",
    "Tokenizer",
    "TrainingParams",
    "Type",
    "attach_adapter",
    "build_chat_template",
    "build_model",
    "build_tokenizer",
    "encode_chat",
    "hookimpl",
    "instantiate",
    "load_config",
    "load_model",
    "load_tokenizer",
    "merge_adapter",
    "presets",
    "render_chat",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'graftwork' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
