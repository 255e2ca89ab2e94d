"""``graft check``: everything about a run that can be known before it begins, without a GPU and without weights."""
