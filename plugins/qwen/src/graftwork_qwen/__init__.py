"""The Qwen family for graftwork: Qwen 2, 2.5 and 3."""

from graftwork.specs import hubs

get_qwen_model_hub, get_qwen_tokenizer_hub = hubs("qwen")
