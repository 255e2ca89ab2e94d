"""The Gemma family for graftwork: Gemma 1, 2 and 3 (text)."""
