"""What a family's tests need to prove that a model is what it should be. For third parties' plugins too.

A test is an independently written forward pass, and three lines::

    compare = logits_comparison(reference_logits, config)
    compare(config, config)
    assert_every_number_matters(config, compare)
"""

from __future__ import annotations

from graftwork.testing.logits import logits_comparison, random_weights
from graftwork.testing.numbers import NOT_IN_LOGITS, assert_every_number_matters, numeric_fields

__all__ = [
    "NOT_IN_LOGITS",
    "assert_every_number_matters",
    "logits_comparison",
    "numeric_fields",
    "random_weights",
]
