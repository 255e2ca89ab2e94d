"""``graft quickstart``: from nothing but Python's own documentation to a small model that answers questions.

In the order in which it happens: ``topics`` and ``docstrings`` (text that every Python has) -> ``split`` ->
``corpus`` (files) -> ``tokenizer`` -> ``configurations`` -> ``steps`` (train, fine-tune, merge, ask) -> ``story``
(what is printed).
"""
