"""The Phi-3 family for graftwork: Phi-3, Phi-3.5 mini and Phi-4."""

from graftwork.specs import hubs

get_phi3_model_hub, get_phi3_tokenizer_hub = hubs("phi3")
