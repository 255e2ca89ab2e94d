"""A key map: how a checkpoint format names a family's parameters, and how its ``params.json`` says ``config.json``.

Torch-free: a map is data, and two functions on plain values. H heads, D numbers a head, F input features.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One parameter under both its names. ``{}`` is a number, the same ones in the same order on both sides.

    ``split`` is the dimension along which model-parallel files hold parts of it (or a function of the transformers
    configuration that says it), None where every file holds the whole. ``rope_heads`` is the configuration's key for
    the number of heads where the rows of a head are pairs there (x0 y0 x1 y1 ...), and halves (x0 x1 ... y0 y1 ...) in
    transformers.
    """

    theirs: str
    hf: str
    split: int | Callable[[Values], int] | None = None
    rope_heads: str | None = None

    def split_dimension(self, config: Values) -> int | None:
        return self.split(config) if callable(self.split) else self.split

    def from_theirs(self, tensor: torch.Tensor, config: Values) -> torch.Tensor:
        """Their tensor as transformers has it."""
        return tensor if self.rope_heads is None else pairs_to_halves(tensor, config[self.rope_heads])

    def to_theirs(self, tensor: torch.Tensor, config: Values) -> torch.Tensor:
        """A tensor of transformers as they have it."""
        return tensor if self.rope_heads is None else halves_to_pairs(tensor, config[self.rope_heads])


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """The map of one family for one checkpoint format; bijective on parameters.

    ``rules`` stand in the order of the transformers model. ``derived`` are names (with ``{}``) that hold nothing of
    their own and are left out. ``to_config`` gives the values of ``config.json``, with ``model_type``, from those of
    ``params.json``; ``to_params`` goes back, and raises :class:`ModelError` for what cannot be said there.

    ``tied`` are their names of the head and of the embeddings that it may share; ``writes_tied_head`` states that
    the format holds the shared tensor under both names. ``fits`` says whether a ``params.json`` may be of this family.
    """

    rules: tuple[Rule, ...]
    to_config: Callable[[Values], dict[str, Any]]
    to_params: Callable[[Values], dict[str, Any]]
    derived: tuple[str, ...] = ()
    tied: tuple[str, str] | None = None
    writes_tied_head: bool = True
    fits: Callable[[Values], bool] = lambda params: True

    def __post_init__(self) -> None:
        for side in ("theirs", "hf"):
            twice = [name for name, count in Counter(getattr(rule, side) for rule in self.rules).items() if count > 1]
            if twice:
                raise ValueError(f"key map: {twice[0]!r} stands in two rules, so there is no way back")
        for rule in self.rules:
            if rule.theirs.count("{}") != rule.hf.count("{}"):
                raise ValueError(f"key map: {rule.theirs!r} and {rule.hf!r} have different numbers of {{}}")

    def to_hf(self, name: str) -> tuple[str, Rule] | None:
        """The name in transformers of what they call ``name``, and the rule; None where no rule knows it."""
        for pattern, rule in self._by_theirs:
            if match := pattern.fullmatch(name):
                return rule.hf.format(*match.groups()), rule
        return None

    def to_theirs(self, name: str) -> tuple[str, Rule] | None:
        """Their name of transformers' ``name``, and the rule; None where no rule knows it."""
        for pattern, rule in self._by_hf:
            if match := pattern.fullmatch(name):
                return rule.theirs.format(*match.groups()), rule
        return None

    def is_derived(self, name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in self._derived)

    @cached_property
    def _by_theirs(self) -> list[tuple[re.Pattern[str], Rule]]:
        return [(pattern_of(rule.theirs), rule) for rule in self.rules]

    @cached_property
    def _by_hf(self) -> list[tuple[re.Pattern[str], Rule]]:
        return [(pattern_of(rule.hf), rule) for rule in self.rules]

    @cached_property
    def _derived(self) -> list[re.Pattern[str]]:
        return [pattern_of(name) for name in self.derived]


def pattern_of(name: str) -> re.Pattern[str]:
    """A pattern for names with a number at each ``{}``."""
    return re.compile(r"(\d+)".join(re.escape(part) for part in name.split("{}")))


def pairs_to_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from x0 y0 x1 y1 ... to x0 x1 ... y0 y1 ...: (H*D, F) or (H*D,), shape unchanged."""
    rows: torch.Tensor = tensor.unflatten(0, (heads, -1, 2))  # (H, D/2, 2, F)
    return rows.transpose(1, 2).reshape(tensor.shape)


def halves_to_pairs(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """The way back of :func:`pairs_to_halves`."""
    rows: torch.Tensor = tensor.unflatten(0, (heads, 2, -1))  # (H, 2, D/2, F)
    return rows.transpose(1, 2).reshape(tensor.shape)
