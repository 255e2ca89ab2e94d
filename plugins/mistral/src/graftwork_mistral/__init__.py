"""The Mistral family for graftwork: Mistral 7B, Nemo and Mixtral."""

from graftwork.specs import hubs

get_mistral_model_hub, get_mistral_tokenizer_hub = hubs("mistral")
