"""How Llama's tokenizer is read, under fairseq2's name."""

from graftwork.tokenizers.tokenizer import TokenizerConfig


class LLaMATokenizerConfig(TokenizerConfig):
    """``impl`` (None: by the files), ``use_eot``, ``split_regex``: the core's options."""
