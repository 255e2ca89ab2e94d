"""Graftwork's own trainers. The entry module is ``graftwork_native.plugin``."""
