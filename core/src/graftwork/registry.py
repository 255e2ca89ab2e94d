"""The registry: what all plugins together declare, by kind and by name.

Discovery and import happen once, when the registry is first asked for. A declaration hook is called when a
record of its kind is first looked up, once per plugin, each plugin alone. A plugin whose hook raises or returns
something else than records is set aside from that moment on, with everything it had declared of any kind: tables
are live views, so one that was taken before shows it too. A record that was already handed out stays valid. Looking
at :attr:`Registry.plugins` calls every hook, so the states seen there are final.
"""

from __future__ import annotations

import logging
import os
from threading import RLock
from typing import TYPE_CHECKING, Any, cast

from importlib_metadata import Distribution

from graftwork import declarations as kinds
from graftwork import discovery
from graftwork.discovery import Plugin, PluginState, describe
from graftwork.errors import ClashError, PluginError, did_you_mean
from graftwork.tables import Entry, Table, index_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import pluggy

    from graftwork.declarations import Kind, R
    from graftwork.runs.run import Run
    from graftwork.specs import ModelFamily, Preset

__all__ = ["PluginState", "Registry", "Table", "get_registry", "presets", "reset_registry"]

logger = logging.getLogger(__name__)


class Events:
    """Tells every listening plugin what happens in a run.

    A listener that raises is warned about once per plugin and event, and the run goes on.
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

    def _tell_one(self, plugin: Plugin, event: str, listener: pluggy.HookImpl, arguments: Mapping[str, Any]) -> None:
        try:
            listener.function(*(arguments[name] for name in listener.argnames))
        except (Exception, SystemExit) as error:
            if (plugin.name, event) not in self._warned:
                self._warned.add((plugin.name, event))
                logger.warning(
                    "plugin %s failed in %s: %s; the run goes on, and this is said once",
                    plugin.source,
                    event,
                    describe(error),
                )


class Registry:
    """What all active plugins declare. ``distributions`` and ``environ`` are what is installed and the
    environment, unless a test says otherwise. ``problems`` says what is wrong with the allow and deny lists.
    """

    def __init__(
        self, distributions: Iterable[Distribution] | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._lock = RLock()
        self._indexes: dict[str, dict[str, list[Entry[Any]]]] = {}
        self._served_generic: set[str | None] = set()
        self._plugins = discovery.installed(Distribution.discover() if distributions is None else distributions)
        self.problems = tuple(discovery.sort_out(self._plugins, os.environ if environ is None else environ))
        discovery.load_all(self._plugins)
        self.events = Events(self._plugins)
        self.families = Table(self, kinds.FAMILIES)
        self.tokenizers = Table(self, kinds.TOKENIZERS)
        self.chat_templates = Table(self, kinds.CHAT_TEMPLATES)
        self.trainers = Table(self, kinds.TRAINERS)
        self.quantizers = Table(self, kinds.QUANTIZERS)
        self.datasets = Table(self, kinds.DATASETS)
        self.collators = Table(self, kinds.COLLATORS)
        self.engines = Table(self, kinds.ENGINES)
        self.commands = Table(self, kinds.COMMANDS)
        self.sources = Table(self, kinds.SOURCES)
        self.reward_functions = Table(self, kinds.REWARD_FUNCTIONS)
        self.optimizers = Table(self, kinds.OPTIMIZERS)
        self.checkpoint_formats = Table(self, kinds.CHECKPOINT_FORMATS)
        self.asset_cards = Table(self, kinds.ASSET_CARDS)
        self.presets = Table(self, kinds.PRESETS)

    # What is there

    @property
    def plugins(self) -> tuple[PluginState, ...]:
        """Every installed plugin, sorted by name, after all its declaration hooks were called."""
        self._declare_all()
        return tuple(self.state_of(plugin) for plugin in self._plugins)

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that the entry modules of active plugins lie in."""
        return tuple(plugin.package for plugin in self._plugins if plugin.active)

    @property
    def clashes(self) -> tuple[str, ...]:
        """One message for each name that two plugins declare."""
        self._declare_all()
        tables = [Table(self, kind) for kind in (*kinds.DECLARED, kinds.PRESETS)]
        return tuple(str(clash) for table in tables for clash in table.clashes())

    @property
    def dangling(self) -> tuple[str, ...]:
        """One message for each name in a record that should be another record's, and is nobody's."""
        self._declare_all()
        tables = {table.kind.name: table for table in (self.chat_templates, self.tokenizers, self.checkpoint_formats)}
        return tuple(
            f"plugin {entry.plugin.source}: {noun} {entry.record.name!r}: {field} names {name!r}, and no "
            f"{tables[kind].kind.noun} is called that; {did_you_mean(name, tables[kind])}"
            for noun, entry in self._referring()
            for field, kind in kinds.REFERENCES.items()
            for name in _names(getattr(entry.record, field, None))
            if not tables[kind].knows(name)
        )

    def _referring(self) -> list[tuple[str, Entry[Any]]]:
        families = [(kinds.FAMILIES.noun, entry) for entry in self.entries(kinds.FAMILIES)]
        return [*families, *((kinds.PRESETS.noun, entry) for entry in self.entries(kinds.PRESETS))]

    def state_of(self, plugin: Plugin) -> PluginState:
        """What is known of a plugin by now. ``provides`` holds the kinds that were looked up so far."""
        return PluginState(
            name=plugin.name,
            distribution=plugin.distribution,
            version=plugin.version,
            state=plugin.state,
            reason=plugin.reason,
            provides=_provides(plugin),
            import_ms=plugin.import_ms,
        )

    def unavailable(self) -> str:
        """The tail of an error about an unknown name: who is installed, not in use, and might have had it."""
        blocked = [plugin.name for plugin in self._plugins if plugin.state == "blocked"]
        failed = [plugin for plugin in self._plugins if plugin.state not in ("active", "blocked")]
        lines = [f"plugin {plugin.source} might, but is {plugin.state}: {plugin.reason}" for plugin in failed]
        if blocked:
            lines.append(f"blocked plugins might: {', '.join(blocked)} ({discovery.ALLOW}, {discovery.DENY})")
        return "".join(f"\n  {line}" for line in lines)

    # Families and presets

    def family_for(self, model_type: str | None, architectures: Sequence[str] = ()) -> ModelFamily:
        """The family that claims a model, by its ``model_type`` or one of its ``architectures``.

        ``generic`` where none does; raises ClashError where more than one does.
        """
        claims = [entry for entry in self.entries(kinds.FAMILIES) if _claims(entry.record, model_type, architectures)]
        if len(claims) > 1:
            raise _doubly_claimed(claims, model_type, architectures)
        return claims[0].record if claims else self._generic(model_type)

    def _generic(self, model_type: str | None) -> ModelFamily:
        """Says so where a plugin that could not load may have been meant to serve the model."""
        failed = [plugin.source for plugin in self._plugins if plugin.state not in ("active", "blocked")]
        if failed and model_type not in self._served_generic:
            self._served_generic.add(model_type)
            logger.warning(
                "model_type %r is served by the generic family; a plugin that is not in use may have been meant for "
                "it: %s (`graft plugins` says why)",
                model_type,
                ", ".join(failed),
            )
        return self.families[f"{discovery.CORE}:generic"]

    def family_of_preset(self, name: str) -> ModelFamily:
        """The family that a preset belongs to; raises as a lookup of the preset does."""
        preset = self.presets[name]
        families = [entry.record for entry in self.entries(kinds.FAMILIES)]
        return next(family for family in families if any(own is preset for own in family.presets))

    # What the tables are made of

    def entries(self, kind: Kind[R]) -> list[Entry[R]]:
        """Every record of a kind with its plugin, calling the hooks that were not called yet."""
        if kind.name == kinds.PRESETS.name:
            return cast("list[Entry[R]]", self._presets())
        with self._lock:
            for plugin in self._plugins:
                self._declare(plugin, kind)
            return [Entry(plugin, record) for plugin in self._plugins for record in plugin.records.get(kind.name, ())]

    def index(self, kind: Kind[R]) -> Mapping[str, list[Entry[R]]]:
        """Every name and alias of a kind, case-folded, with all who declare it."""
        if kind.name not in self._indexes:
            index = index_of(self.entries(kind))
            self._indexes[kind.name] = index
        return self._indexes[kind.name]

    def _presets(self) -> list[Entry[Preset]]:
        families = self.entries(kinds.FAMILIES)
        return [Entry(entry.plugin, preset) for entry in families for preset in entry.record.presets]

    def _declare_all(self) -> None:
        for kind in kinds.DECLARED:
            self.entries(kind)

    def _declare(self, plugin: Plugin, kind: Kind[Any]) -> None:
        if not plugin.active or kind.name in plugin.records:
            return
        try:
            plugin.records[kind.name] = kinds.declare(plugin.hooks.get(kind.hook, ()), kind)
        except (Exception, SystemExit) as error:
            logger.debug("plugin %s", plugin.source, exc_info=error)
            plugin.set_aside("broken", f"{kind.hook} failed: {describe(error)}")
            self._indexes.clear()


def _provides(plugin: Plugin) -> dict[str, tuple[str, ...]]:
    provides = {kind: tuple(record.name for record in records) for kind, records in plugin.records.items()}
    families = cast("tuple[ModelFamily, ...]", plugin.records.get(kinds.FAMILIES.name, ()))
    provides[kinds.PRESETS.name] = tuple(preset.name for family in families for preset in family.presets)
    declaring = {kind.hook for kind in kinds.DECLARED}
    provides["events"] = tuple(hook.removeprefix("graftwork_") for hook in plugin.hooks if hook not in declaring)
    return {kind: names for kind, names in provides.items() if names}


def _names(value: str | Mapping[str, object] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else sorted(value)


def _claims(family: ModelFamily, model_type: str | None, architectures: Sequence[str]) -> bool:
    return model_type in family.model_types or any(name in family.architectures for name in architectures)


def _doubly_claimed(
    claims: Sequence[Entry[ModelFamily]], model_type: str | None, architectures: Sequence[str]
) -> ClashError:
    what = ", ".join([f"model_type {model_type!r}", *(f"architecture {name!r}" for name in architectures)])
    owners = " and ".join(f"family {entry.record.name} of plugin {entry.plugin.source}" for entry in claims)
    choices = " or ".join(f"model.family: {entry.spelling}" for entry in claims)
    return ClashError(f"a model with {what} is claimed by {owners}; choose one with {choices}")


# The one registry of the process

_lock = RLock()
_built: list[Registry] = []
_building: list[bool] = []


def get_registry(*, lenient: bool = False) -> Registry:
    """The registry of this process, built on first use.

    Raises PluginError where the allow or deny list names a plugin that is not there, unless ``lenient``: a
    misspelt list would otherwise leave a plugin silently on or off.
    """
    with _lock:
        if not _built:
            _built.append(_build())
    registry = _built[0]
    if registry.problems and not lenient:
        raise PluginError("\n".join(registry.problems))
    return registry


def _build() -> Registry:
    if _building:
        raise PluginError("the registry was asked for while a plugin is imported; ask for it inside a function")
    _building.append(True)
    try:
        return Registry()
    finally:
        _building.clear()


def reset_registry() -> None:
    """Forgets the registry, so that the next use discovers anew. For tests."""
    with _lock:
        _built.clear()


def presets() -> Mapping[str, Preset]:
    """Every preset of every family, by name."""
    return get_registry().presets
