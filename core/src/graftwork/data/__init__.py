"""From files to rows of token segments. In the order in which a sample travels:

``readers`` (files to rows) -> ``conversations`` (a row to a conversation) -> ``samples`` (to token ids and the
trained mask) -> ``order`` or ``streaming`` (which sample when) -> ``blocks`` (packing) -> ``batch`` (tensors).
``loader`` puts them together for a trainer.
"""
