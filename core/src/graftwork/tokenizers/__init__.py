"""Tokenizers: read from their files, with the special tokens that matter and where each comes from."""

from __future__ import annotations

from graftwork.tokenizers.special import SpecialToken, SpecialTokens, get_default_special_tokens, stop_token_ids
from graftwork.tokenizers.tokenizer import Tokenizer, TokenizerConfig, VocabularyInfo, load_tokenizer

__all__ = [
    "SpecialToken",
    "SpecialTokens",
    "Tokenizer",
    "TokenizerConfig",
    "VocabularyInfo",
    "get_default_special_tokens",
    "load_tokenizer",
    "stop_token_ids",
]
