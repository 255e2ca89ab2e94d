"""Looking records up by name: the typed tables of the registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from graftwork.declarations import Kind, R, spellings
from graftwork.discovery import DENY, Plugin, normalize
from graftwork.errors import ClashError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from graftwork.discovery import PluginState
    from graftwork.registry import Registry

D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Entry(Generic[R]):
    """A record and the plugin that declared it."""

    plugin: Plugin
    record: R

    @property
    def spelling(self) -> str:
        """The name that nobody else can have."""
        return f"{self.plugin.distribution}:{self.record.name}"


class Table(Mapping[str, R]):
    """The records of one kind by name, a live view.

    Names and aliases are found in any case; ``distribution:name`` selects one of two that clash. Iteration and
    length are over the canonical names that nobody else uses.
    """

    def __init__(self, registry: Registry, kind: Kind[R]) -> None:
        self._registry = registry
        self.kind = kind

    def __getitem__(self, name: str) -> R:
        """The record. Raises UnknownNameError where nobody declares the name, ClashError where two do."""
        return self.entry(name).record

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and len(self._matches(name)) == 1

    def __iter__(self) -> Iterator[str]:
        names = [entry.record.name for entry in self._registry.entries(self.kind)]
        return iter(sorted((name for name in names if name in self), key=str.casefold))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get_or_none(self, name: str) -> R | None:
        """The record, or None where nobody declares the name. Raises ClashError where two do."""
        return self[name] if self._matches(name) else None

    def get(self, name: str, default: R | D | None = None) -> R | D | None:  # type: ignore[override]
        """As :meth:`get_or_none`, with a default."""
        return self[name] if self._matches(name) else default

    def knows(self, name: str) -> bool:
        """Whether anybody declares ``name``, be it one or several."""
        return bool(self._matches(name))

    def owner(self, name: str) -> PluginState:
        """The plugin that declares ``name``; raises as a lookup does."""
        return self._registry.state_of(self.entry(name).plugin)

    def clashes(self) -> list[ClashError]:
        """What a lookup of each doubly declared name would raise."""
        index = self._registry.index(self.kind)
        return [self._clash(name, entries) for name, entries in sorted(index.items()) if len(entries) > 1]

    def entry(self, name: str) -> Entry[R]:
        """The record with its plugin; raises as a lookup does."""
        matches = self._matches(name)
        if len(matches) == 1:
            return matches[0]
        raise self._clash(name, matches) if matches else self._unknown(name)

    def _matches(self, name: str) -> Sequence[Entry[R]]:
        index = self._registry.index(self.kind)
        distribution, colon, bare = name.rpartition(":")
        found = index.get(bare.casefold(), [])
        return [entry for entry in found if entry.plugin.distribution == normalize(distribution)] if colon else found

    def _clash(self, name: str, entries: Sequence[Entry[R]]) -> ClashError:
        owners = " and ".join(f"plugin {entry.plugin.source}" for entry in entries)
        names = sorted({entry.spelling for entry in entries})
        # Two plugins of one distribution share the spelling that tells distributions apart.
        remedy = f"write {' or '.join(names)}" if len(names) > 1 else f"turn one of the two off with {DENY}"
        return ClashError(f"{self.kind.noun} {name!r} is declared by {owners}; {remedy}")

    def _unknown(self, name: str) -> UnknownNameError:
        distribution, _, bare = name.rpartition(":")
        where = f" in distribution {distribution!r}" if distribution else ""
        hint = did_you_mean(bare, self._known(normalize(distribution)))
        return UnknownNameError(
            f"there is no {self.kind.noun} {bare!r}{where}; {hint}. No installed plugin provides it; "
            f"`graft plugins` lists what is installed{self._registry.unavailable()}"
        )

    def _known(self, distribution: str) -> list[str]:
        """Clashing names too: a spelling that is almost one must lead to it."""
        entries = self._registry.entries(self.kind)
        return [entry.record.name for entry in entries if distribution in ("", entry.plugin.distribution)]


def index_of(entries: Sequence[Entry[R]]) -> dict[str, list[Entry[R]]]:
    """Case-folded names and aliases to whoever declares them."""
    index: dict[str, list[Entry[R]]] = {}
    for entry in entries:
        for name in spellings(entry.record):
            index.setdefault(name, []).append(entry)
    return index
