"""What a model can take: so many tokens of a vocabulary, so many positions of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graftwork.errors import ModelError


@dataclass(frozen=True, slots=True)
class Limits:
    """``tokens`` are embedded; ``positions`` have an entry in a table, None where positions have no end."""

    tokens: int
    positions: int | None

    def check(self, largest: int, longest: int) -> None:
        """Raises :class:`ModelError` for a token id or a length of a sample that the model has no row for.

        PyTorch would say ``index out of range``, or nothing at all on a GPU.
        """
        if largest >= self.tokens:
            raise ModelError(
                f"the data has the token {largest}, and the model embeds {self.tokens} tokens: the tokenizer is "
                "another model's; set model.tokenizer_name to the one that belongs to the model"
            )
        if self.positions is not None and longest > self.positions:
            raise ModelError(
                f"the data has a sample of {longest} tokens, and the model a table of {self.positions} positions; set "
                f"max_length of the split to at most {self.positions} (and over_long to drop or truncate)"
            )


def limits_of(base: Any) -> Limits:
    """The limits of a transformers model."""
    config = base.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if getattr(config, "rope_parameters", None) is not None or not isinstance(positions, int):
        positions = None
    return Limits(base.get_input_embeddings().weight.shape[0], positions)
