"""The Phi-3 family for graftwork: Phi-3, Phi-3.5 mini and Phi-4."""
