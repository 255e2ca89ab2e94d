"""How Llama's tokenizer is read, under fairseq2's name."""

from graftwork.tokenizers.tokenizer import TokenizerConfig


class LLaMATokenizerConfig(TokenizerConfig):
    """``impl`` (None: by the files), ``use_eot`` and ``split_regex`` of :class:`graftwork.tokenizers.TokenizerConfig`."""
