"""From a model's name to its files on disk. Torch-free."""

from __future__ import annotations

from graftwork.sources.resolve import ResolvedModel, locate, resolve

__all__ = ["ResolvedModel", "locate", "resolve"]
