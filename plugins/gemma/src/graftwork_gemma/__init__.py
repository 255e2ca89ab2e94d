"""The Gemma family for graftwork: Gemma 1, 2 and 3 (text)."""

from graftwork.specs import hubs

get_gemma_model_hub, get_gemma_tokenizer_hub = hubs("gemma")
