"""The Qwen family for graftwork: Qwen 2, 2.5 and 3."""
