"""Curves of graftwork runs in Weights & Biases."""
