"""Several processes for one run: where this one stands among them, and how a machine's are started."""

from graftwork.launch.place import Place

__all__ = ["Place"]
