"""Which plugins are installed, which of them may load, and loading one in isolation.

A plugin is an entry point of group ``graftwork.plugins``. Everything that can be said about it before its code
runs (blocked, clashing, incompatible) is said here first: only what is left is imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from graftwork import __version__, hookspecs
from graftwork.errors import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from importlib_metadata import Distribution, EntryPoint

GROUP = "graftwork.plugins"
ALLOW = "GRAFTWORK_PLUGINS"
DENY = "GRAFTWORK_DISABLE_PLUGINS"
CORE = "graftwork"
BUILTIN = "builtin"

State = Literal["active", "blocked", "broken", "clashing", "incompatible"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginState:
    """What ``graft plugins`` shows of one plugin. ``reason`` is empty where it is active; ``provides`` maps a
    kind (``families``) to names; ``import_ms`` is None where the plugin was not imported.
    """

    name: str
    distribution: str
    version: str
    state: State
    reason: str = ""
    provides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    import_ms: float | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Plugin:
    """One entry point, and what became of it."""

    name: str
    distribution: str
    version: str
    entry_point: EntryPoint
    requires: tuple[str, ...] = ()
    state: State = "active"
    reason: str = ""
    import_ms: float | None = None
    hooks: dict[str, list[pluggy.HookImpl]] = field(default_factory=dict)
    records: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        return self.state == "active"

    @property
    def source(self) -> str:
        """The plugin with its distribution, as messages name it."""
        return f"{self.name} ({self.distribution} {self.version})"

    def set_aside(self, state: State, reason: str) -> None:
        """Takes the plugin out of use, and with it everything that it had declared."""
        self.state, self.reason = state, reason
        self.hooks.clear()
        self.records.clear()

    def snapshot(self) -> PluginState:
        names = {kind: tuple(record.name for record in records) for kind, records in self.records.items() if records}
        return PluginState(
            name=self.name,
            distribution=self.distribution,
            version=self.version,
            state=self.state,
            reason=self.reason,
            provides=names,
            import_ms=self.import_ms,
        )


def normalize(distribution: str) -> str:
    """The one spelling of a distribution's name, as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# What is installed


def installed(distributions: Iterable[Distribution]) -> list[Plugin]:
    """Every entry point of the group, sorted by name and distribution."""
    found: dict[str, list[Distribution]] = {}
    for distribution in distributions:
        if GROUP in (distribution.read_text("entry_points.txt") or ""):
            found.setdefault(normalize(_fields(distribution)["name"][0]), []).append(distribution)
    plugins = [plugin for name, same in found.items() for plugin in _plugins_of(name, _in_force(same))]
    return sorted(plugins, key=lambda plugin: (plugin.name.casefold(), plugin.name, plugin.distribution))


def _fields(distribution: Distribution) -> dict[str, list[str]]:
    """Name, version and requirements. ``Distribution.metadata`` would import the email package and parse the
    whole README for these three, which costs more than loading the plugin.
    """
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    head = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
    fields: dict[str, list[str]] = {}
    for line in re.sub(r"\r?\n[ \t]+", " ", head).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.lower(), []).append(value.strip())
    return {"name": ["unnamed"], "version": ["unknown"], "requires-dist": [], **fields}


def _in_force(same: Sequence[Distribution]) -> Distribution:
    """Of several descriptions of one distribution, the one that tells of the code that an import finds: the
    first on the path, where a stale egg-info yields to an install and an older leftover to a newer.
    """
    wheels = [distribution for distribution in same if distribution.read_text("METADATA") is not None]
    candidates = wheels or list(same)
    folder = candidates[0].locate_file("")
    together = [distribution for distribution in candidates if distribution.locate_file("") == folder]
    if len(together) == 1:
        return together[0]
    from packaging.version import Version

    return max(together, key=lambda distribution: Version(distribution.version))


def _plugins_of(name: str, distribution: Distribution) -> Iterator[Plugin]:
    fields = _fields(distribution)
    for entry_point in distribution.entry_points.select(group=GROUP):
        yield Plugin(
            name=entry_point.name,
            distribution=name,
            version=fields["version"][0],
            requires=tuple(fields["requires-dist"]),
            entry_point=entry_point,
        )


# Which may load


def sort_out(plugins: Sequence[Plugin], environ: Mapping[str, str], core_version: str = __version__) -> list[str]:
    """Blocks, then finds clashes, then compares requirements. Returns what is wrong with the two lists."""
    problems = _apply_lists(plugins, environ)
    _find_clashes([plugin for plugin in plugins if plugin.active])
    for plugin in plugins:
        if plugin.active:
            _check_requirements(plugin, core_version)
    return problems


def _apply_lists(plugins: Sequence[Plugin], environ: Mapping[str, str]) -> list[str]:
    allowed, denied = _names(environ.get(ALLOW, "")), _names(environ.get(DENY, ""))
    for plugin in plugins:
        if plugin.distribution == CORE and plugin.name == BUILTIN:
            continue
        if denied & _spellings(plugin):
            plugin.set_aside("blocked", f"{DENY} names it")
        elif allowed and not allowed & _spellings(plugin):
            plugin.set_aside("blocked", f"{ALLOW} does not name it")
    problems = [*_unknown(ALLOW, allowed, plugins), *_unknown(DENY, denied, plugins)]
    if BUILTIN in denied:
        problems.append(f"{DENY}: {BUILTIN!r} is the core itself and stays active; remove it from the list")
    return problems


def _names(value: str) -> set[str]:
    return {name.strip().casefold() for name in value.split(",") if name.strip()}


def _spellings(plugin: Plugin) -> set[str]:
    """How a list may name the plugin. By distribution too: that is what tells two clashing ones apart."""
    name = plugin.name.casefold()
    return {name, plugin.distribution, f"{plugin.distribution}:{name}"}


def _unknown(variable: str, names: set[str], plugins: Sequence[Plugin]) -> Iterator[str]:
    known = {spelling for plugin in plugins for spelling in _spellings(plugin)}
    listed = {plugin.name for plugin in plugins}
    for name in sorted(names - known):
        yield f"{variable}: no plugin is called {name!r}; {did_you_mean(name, listed)}"


def _find_clashes(plugins: Sequence[Plugin]) -> None:
    """Two distributions with one plugin name are both set aside: neither may win by the order of the path."""
    by_name: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        by_name.setdefault(plugin.name.casefold(), []).append(plugin)
    for name, same in by_name.items():
        # The core's own plugin cannot be taken away by naming another one like it.
        losers = [plugin for plugin in same if plugin.distribution != CORE] if name == BUILTIN else same
        if len(same) > 1:
            owners = " and ".join(f"{plugin.distribution} {plugin.version}" for plugin in same)
            for plugin in losers:
                plugin.set_aside("clashing", _clash_reason(plugin, owners))


def _clash_reason(plugin: Plugin, owners: str) -> str:
    return (
        f"{owners} both bring a plugin called {plugin.name!r}; "
        f"uninstall one of them, or name its distribution in {DENY}"
    )


def _check_requirements(plugin: Plugin, core_version: str) -> None:
    for text in plugin.requires:
        name = re.match(r"[\w.-]+", text)
        if name and normalize(name.group()) == CORE:
            _check_requirement(plugin, text, core_version)


def _check_requirement(plugin: Plugin, text: str, core_version: str) -> None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        plugin.set_aside("broken", f"its metadata holds an unreadable requirement {text!r}: {describe(error)}")
        return
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and not requirement.specifier.contains(core_version, prereleases=True):
        plugin.set_aside(
            "incompatible",
            f"{plugin.distribution} {plugin.version} needs graftwork {requirement.specifier}, this is graftwork "
            f"{core_version}; install versions that fit: pip install -U graftwork {plugin.distribution}",
        )


# Loading


def new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def load(plugin: Plugin, manager: pluggy.PluginManager) -> None:
    """Imports and registers one plugin. Whatever it does wrong is its own: it becomes ``broken``."""
    started = perf_counter()
    try:
        module = plugin.entry_point.load()
        manager.register(module, name=plugin.name)
        plugin.hooks = _implementations(manager, module, plugin.name)
    except (Exception, SystemExit) as error:
        plugin.set_aside("broken", _load_failure(plugin, error))
    plugin.import_ms = (perf_counter() - started) * 1000


def _load_failure(plugin: Plugin, error: BaseException) -> str:
    if isinstance(error, pluggy.PluginValidationError):
        return " ".join(str(error).split())
    return f"importing {plugin.entry_point.value} failed: {describe(error)}"


def _implementations(manager: pluggy.PluginManager, module: Any, name: str) -> dict[str, list[pluggy.HookImpl]]:
    callers = manager.get_hookcallers(module) or []
    found = {
        caller.name: [implementation for implementation in caller.get_hookimpls() if implementation.plugin_name == name]
        for caller in callers
    }
    known = {hook for hook in vars(hookspecs) if hook.startswith("graftwork_")}
    for hook, implementations in found.items():
        _check_implementations(module, hook, implementations, known)
    for hook in sorted(known - set(found)):
        if callable(getattr(module, hook, None)):
            raise pluggy.PluginValidationError(module, f"{hook} is defined without @hookimpl, so it is never called")
    return found


def _check_implementations(
    module: Any, hook: str, implementations: Sequence[pluggy.HookImpl], known: Iterable[str]
) -> None:
    if hook not in known:
        raise pluggy.PluginValidationError(module, f"there is no hook {hook}; {did_you_mean(hook, known)}")
    if any(implementation.wrapper or implementation.hookwrapper for implementation in implementations):
        raise pluggy.PluginValidationError(module, f"{hook} is a hook wrapper; hooks here are called one by one")
