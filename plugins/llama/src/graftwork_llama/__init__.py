"""The Llama family for graftwork: Llama 2, 3, 3.1 and 3.2."""

from graftwork.builders.extras import lazy_exports
from graftwork.specs import hubs

get_llama_model_hub, get_llama_tokenizer_hub = hubs("llama")
_CLASSES = {"LLaMAConfig": "graftwork_llama.config", "LLaMATokenizerConfig": "graftwork_llama.tokenizer"}
__getattr__ = lazy_exports(__name__, _CLASSES, globals())
