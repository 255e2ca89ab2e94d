"""A recurrent language model for graftwork."""
