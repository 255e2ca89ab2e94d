"""Weights on disk: the formats they lie in, the maps between the names in them, and the way from one to another."""

from __future__ import annotations
