"""The Mistral family for graftwork: Mistral 7B, Nemo and Mixtral."""
