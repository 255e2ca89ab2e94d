"""The registry: what all plugins together declare, by kind and by name.

Discovery and import happen once, when the registry is first asked for. A declaration hook is called when a
record of its kind is first looked up, once per plugin, each plugin alone. A plugin whose hook raises or returns
something else than records is set aside from that moment on, with everything it had declared of any kind: tables
are live views, so one that was taken before shows it too. Looking at :attr:`Registry.plugins` calls every hook,
so the states seen there are final.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from threading import RLock
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from importlib_metadata import Distribution

from graftwork import discovery, specs
from graftwork.discovery import Plugin, PluginState, describe, normalize
from graftwork.errors import ClashError, PluginError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    import pluggy

    from graftwork.runs.run import Run

T = TypeVar("T")
D = TypeVar("D")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of record: its name in the registry, its hook, its class, and what a person calls it."""

    name: str
    hook: str
    record: type[T]
    noun: str


FAMILIES = Kind("families", "graftwork_model_families", specs.ModelFamily, "model family")
TOKENIZERS = Kind("tokenizers", "graftwork_tokenizers", specs.TokenizerSpec, "tokenizer implementation")
CHAT_TEMPLATES = Kind("chat_templates", "graftwork_chat_templates", specs.ChatTemplate, "chat template")
TRAINERS = Kind("trainers", "graftwork_trainers", specs.TrainerSpec, "trainer")
QUANTIZERS = Kind("quantizers", "graftwork_quantizers", specs.QuantizerSpec, "quantizer")
DATASETS = Kind("datasets", "graftwork_datasets", specs.DatasetSpec, "dataset")
COLLATORS = Kind("collators", "graftwork_collators", specs.CollatorSpec, "collator")
ENGINES = Kind("engines", "graftwork_engines", specs.EngineSpec, "engine")
COMMANDS = Kind("commands", "graftwork_commands", specs.CommandSpec, "command")
SOURCES = Kind("sources", "graftwork_sources", specs.SourceSpec, "source")
OPTIMIZERS = Kind("optimizers", "graftwork_optimizers", specs.OptimizerSpec, "optimizer")
DECLARED: tuple[Kind[Any], ...] = (
    COMMANDS,
    SOURCES,
    FAMILIES,
    TOKENIZERS,
    CHAT_TEMPLATES,
    QUANTIZERS,
    DATASETS,
    COLLATORS,
    TRAINERS,
    OPTIMIZERS,
    ENGINES,
)
# Presets are declared inside families, and looked up like everything else.
PRESETS = Kind("presets", "", specs.Preset, "preset")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A record and the plugin that declared it."""

    plugin: Plugin
    record: T

    @property
    def spelling(self) -> str:
        return f"{self.plugin.distribution}:{getattr(self.record, 'name')}"  # noqa: B009


class Table(Mapping[str, T]):
    """The records of one kind by name, a live view.

    Names and aliases are found in any case; ``distribution:name`` selects one of two that clash. Iteration and
    length are over the canonical names that nobody else uses.
    """

    def __init__(self, registry: Registry, kind: Kind[T]) -> None:
        self._registry = registry
        self._kind = kind

    def __getitem__(self, name: str) -> T:
        return self._entry(name).record

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and len(self._matches(name)) == 1

    def __iter__(self) -> Iterator[str]:
        entries = self._registry.entries(self._kind)
        names: list[str] = [getattr(entry.record, "name") for entry in entries]  # noqa: B009
        return iter(sorted((name for name in names if name in self), key=str.casefold))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get_or_none(self, name: str) -> T | None:
        """The record, or None where nobody declares the name. Raises ClashError where two do."""
        return self[name] if self._matches(name) else None

    def get(self, name: str, default: T | D | None = None) -> T | D | None:  # type: ignore[override]
        """As :meth:`get_or_none`, with a default."""
        found = self.get_or_none(name)
        return default if found is None else found

    def owner(self, name: str) -> PluginState:
        """The plugin that declares ``name``; raises as a lookup does."""
        return self._entry(name).plugin.snapshot()

    def _matches(self, name: str) -> Sequence[Entry[T]]:
        index = self._registry.index(self._kind)
        distribution, colon, bare = name.rpartition(":")
        if not colon:
            return index.get(name.casefold(), ())
        wanted = normalize(distribution)
        return [entry for entry in index.get(bare.casefold(), ()) if entry.plugin.distribution == wanted]

    def _entry(self, name: str) -> Entry[T]:
        matches = self._matches(name)
        if len(matches) == 1:
            return matches[0]
        raise self._clash(name, matches) if matches else self._unknown(name)

    def _clash(self, name: str, entries: Sequence[Entry[T]]) -> ClashError:
        owners = " and ".join(entry.plugin.source for entry in entries)
        spellings = sorted({entry.spelling for entry in entries})
        remedy = f"write {' or '.join(spellings)}"
        if len(spellings) == 1:
            remedy = f"turn one of the two plugins off with {discovery.DENY}"
        return ClashError(f"{self._kind.noun} {name!r} is declared by {owners}; {remedy}")

    def _unknown(self, name: str) -> UnknownNameError:
        distribution, _, bare = name.rpartition(":")
        where = f" in {distribution}" if distribution else ""
        # Clashed names are known too: spelling one almost right must lead to it.
        hint = did_you_mean(bare, self._known(normalize(distribution)))
        return UnknownNameError(
            f"there is no {self._kind.noun} {bare!r}{where}; {hint}. "
            f"No installed plugin provides it; `graft plugins` lists what is installed"
            f"{self._registry.unavailable()}"
        )

    def _known(self, distribution: str) -> list[str]:
        entries = self._registry.entries(self._kind)
        chosen = [entry.record for entry in entries if distribution in ("", entry.plugin.distribution)]
        return [getattr(record, "name") for record in chosen]  # noqa: B009


class Events:
    """Tells every listening plugin what happens in a run. A listener that raises is warned about once per
    event, and the run goes on.
    """

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._plugins = plugins
        self._warned: set[tuple[str, str]] = set()

    def run_started(self, run: Run) -> None:
        self._tell("graftwork_run_started", run=run)

    def step_finished(self, run: Run, step: int, metrics: Mapping[str, float]) -> None:
        self._tell("graftwork_step_finished", run=run, step=step, metrics=metrics)

    def checkpoint_saved(self, run: Run, step: int, path: Path) -> None:
        self._tell("graftwork_checkpoint_saved", run=run, step=step, path=path)

    def run_finished(self, run: Run, error: BaseException | None) -> None:
        self._tell("graftwork_run_finished", run=run, error=error)

    def _tell(self, event: str, **arguments: Any) -> None:
        for plugin in self._plugins:
            for listener in plugin.hooks.get(event, ()):
                self._tell_one(plugin, event, listener, arguments)

    def _tell_one(self, plugin: Plugin, event: str, listener: pluggy.HookImpl, arguments: dict[str, Any]) -> None:
        try:
            listener.function(*(arguments[name] for name in listener.argnames))
        except (Exception, SystemExit) as error:
            if (plugin.name, event) not in self._warned:
                self._warned.add((plugin.name, event))
                logger.warning(
                    "plugin %s failed in %s, the run goes on: %s (said once)", plugin.source, event, describe(error)
                )


class Registry:
    """What all active plugins declare. ``distributions`` and ``environ`` are what is installed and the
    environment, unless a test says otherwise.
    """

    def __init__(
        self,
        distributions: Iterable[Distribution] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._lock = RLock()
        self._indexes: dict[str, dict[str, list[Entry[Any]]]] = {}
        found = Distribution.discover() if distributions is None else distributions
        self._plugins = discovery.installed(found)
        self.problems = tuple(discovery.sort_out(self._plugins, os.environ if environ is None else environ))
        manager = discovery.new_manager()
        for plugin in self._plugins:
            if plugin.active:
                discovery.load(plugin, manager)
        self.events = Events(self._plugins)
        self.families = Table(self, FAMILIES)
        self.tokenizers = Table(self, TOKENIZERS)
        self.chat_templates = Table(self, CHAT_TEMPLATES)
        self.trainers = Table(self, TRAINERS)
        self.quantizers = Table(self, QUANTIZERS)
        self.datasets = Table(self, DATASETS)
        self.collators = Table(self, COLLATORS)
        self.engines = Table(self, ENGINES)
        self.commands = Table(self, COMMANDS)
        self.sources = Table(self, SOURCES)
        self.optimizers = Table(self, OPTIMIZERS)
        self.presets = Table(self, PRESETS)

    @property
    def plugins(self) -> tuple[PluginState, ...]:
        """Every installed plugin, sorted by name, after all its declaration hooks were called."""
        for kind in DECLARED:
            self.entries(kind)
        return tuple(plugin.snapshot() for plugin in self._plugins)

    def entries(self, kind: Kind[T]) -> list[Entry[T]]:
        """Every record of a kind with its plugin, calling the hooks that were not called yet."""
        if kind.name == PRESETS.name:
            return cast("list[Entry[T]]", self._presets())
        with self._lock:
            for plugin in self._plugins:
                self._declare(plugin, kind)
            return [Entry(plugin, record) for plugin in self._plugins for record in plugin.records.get(kind.name, ())]

    def _presets(self) -> list[Entry[specs.Preset]]:
        return [Entry(entry.plugin, preset) for entry in self.entries(FAMILIES) for preset in entry.record.presets]

    def index(self, kind: Kind[T]) -> dict[str, list[Entry[T]]]:
        """Case-folded names and aliases to whoever declares them."""
        if kind.name not in self._indexes:
            index: dict[str, list[Entry[T]]] = {}
            for entry in self.entries(kind):
                for name in _names(entry.record):
                    index.setdefault(name, []).append(entry)
            self._indexes[kind.name] = index
        return self._indexes[kind.name]

    def _declare(self, plugin: Plugin, kind: Kind[Any]) -> None:
        if not plugin.active or kind.name in plugin.records:
            return
        try:
            plugin.records[kind.name] = _called(plugin.hooks.get(kind.hook, ()), kind)
        except (Exception, SystemExit) as error:
            plugin.set_aside("broken", f"{kind.hook} failed: {describe(error)}")
            self._indexes.clear()

    def family_for(self, model_type: str | None, architectures: Sequence[str] = ()) -> specs.ModelFamily:
        """The family that claims a model, by its ``model_type`` or one of its ``architectures``.

        ``generic`` where none does; raises ClashError where more than one does.
        """
        claims = [entry for entry in self.entries(FAMILIES) if _claims(entry.record, model_type, architectures)]
        if len(claims) > 1:
            raise _doubly_claimed(claims, model_type, architectures)
        if claims:
            return claims[0].record
        return self.families[f"{discovery.CORE}:generic"]

    def family_of_preset(self, name: str) -> specs.ModelFamily:
        """The family that a preset belongs to; raises as a lookup of the preset does."""
        preset = self.presets[name]
        entries = self.entries(FAMILIES)
        return next(entry.record for entry in entries if any(own is preset for own in entry.record.presets))

    def unavailable(self) -> str:
        """The tail of an error about an unknown name: who is installed, not in use, and might have had it."""
        others = [plugin for plugin in self._plugins if not plugin.active]
        return "".join(
            f"\n  might have provided it, but {plugin.source} is {plugin.state}: {plugin.reason}" for plugin in others
        )


def _claims(family: specs.ModelFamily, model_type: str | None, architectures: Sequence[str]) -> bool:
    return model_type in family.model_types or any(name in family.architectures for name in architectures)


def _doubly_claimed(
    claims: Sequence[Entry[specs.ModelFamily]], model_type: str | None, architectures: Sequence[str]
) -> ClashError:
    what = " ".join([f"model_type {model_type!r}", *(f"architecture {name!r}" for name in architectures)])
    owners = " and ".join(f"family {entry.record.name} of {entry.plugin.source}" for entry in claims)
    spellings = " or ".join(f"model.family: {entry.spelling}" for entry in claims)
    return ClashError(f"{what} is claimed by {owners}; choose one with {spellings}")


# What a hook may return


def _called(implementations: Sequence[pluggy.HookImpl], kind: Kind[T]) -> tuple[T, ...]:
    """Calls one plugin's implementations of a hook and checks what they return; raises on anything wrong."""
    records: list[T] = []
    for implementation in implementations:
        records.extend(_checked(record, kind) for record in _iterable(implementation.function(), kind))
    _check_unique([_names(record) for record in records])
    for record in records:
        if isinstance(record, specs.ModelFamily):
            _check_unique([_names(_checked(preset, PRESETS)) for preset in record.presets])
    return tuple(records)


def _iterable(result: object, kind: Kind[Any]) -> Iterable[Any]:
    if isinstance(result, Iterable) and not isinstance(result, (str, bytes, Mapping)):
        return result
    raise TypeError(f"it must return an iterable of {kind.record.__name__}, not {type(result).__name__}")


def _checked(record: Any, kind: Kind[T]) -> T:
    if not isinstance(record, kind.record):
        raise TypeError(f"it must return {kind.record.__name__} records, and one is {type(record).__name__}")
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if str(field.type).startswith("tuple[") and not isinstance(value, tuple):
            raise TypeError(f"{kind.record.__name__}.{field.name} must be a tuple, not {type(value).__name__}")
    for name in _names(record):
        if not name or ":" in name or name != "".join(name.split()):
            raise ValueError(f"the name {name!r} is empty, or has a colon or a space in it")
    return record


def _names(record: Any) -> list[str]:
    """Name and aliases, case-folded."""
    return [name.casefold() for name in (record.name, *record.aliases)]


def _check_unique(groups: Iterable[Sequence[str]]) -> None:
    seen: set[str] = set()
    for name in [name for group in groups for name in dict.fromkeys(group)]:
        if name in seen:
            raise ValueError(f"the name {name!r} is declared twice")
        seen.add(name)


# The one registry of the process

_lock = RLock()
_state: dict[str, Registry] = {}
_building: list[bool] = []


def get_registry() -> Registry:
    """The registry of this process, built on first use."""
    with _lock:
        if "registry" not in _state:
            if _building:
                raise PluginError("the registry was asked for while plugins are imported: do it when a command runs")
            _building.append(True)
            try:
                _state["registry"] = Registry()
            finally:
                _building.clear()
        return _state["registry"]


def reset_registry() -> None:
    """Forgets the registry, so that the next use discovers anew. For tests."""
    with _lock:
        _state.clear()


def presets() -> Mapping[str, specs.Preset]:
    """Every preset of every family, by name."""
    return get_registry().presets
