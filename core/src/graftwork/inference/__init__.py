"""Running models: load one by name, complete prompts and conversations, at once or piece by piece."""

from __future__ import annotations

from graftwork.inference.engine import Completion, Engine, LoadedModel, TextStream, build_engine, load_model

__all__ = ["Completion", "Engine", "LoadedModel", "TextStream", "build_engine", "load_model"]
