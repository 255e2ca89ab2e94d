"""Which plugins are installed, which of them may load, and loading one in isolation.

A plugin is an entry point of group ``graftwork.plugins``. Everything that can be said about it before its code
runs (blocked, clashing, incompatible) is said here first: only what is left is imported.
"""

from __future__ import annotations

import logging
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
    from packaging.version import Version

GROUP = "graftwork.plugins"
ALLOW = "GRAFTWORK_PLUGINS"
DENY = "GRAFTWORK_DISABLE_PLUGINS"
CORE = "graftwork"
BUILTIN = "builtin"

_PLAIN_VERSION = re.compile(r"\d+(?:\.\d+)*")
_PLAIN_RANGE = re.compile(r"[\w.-]+ *(?:\[[\w, -]*\])? *((?:>=|<) *\d+(?:\.\d+)*(?: *, *(?:>=|<) *\d+(?:\.\d+)*)*) *")

State = Literal["active", "blocked", "broken", "clashing", "incompatible"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginState:
    """What ``graft plugins`` shows of one plugin.

    ``reason`` is empty where it is active; ``provides`` maps a kind (``families``, ``events``) to names;
    ``import_ms`` is None where the plugin was not imported.
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
    """One entry point, and what became of it. ``entry_point`` is None where it could not even be read."""

    name: str
    distribution: str
    version: str
    entry_point: EntryPoint | None = None
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
    def package(self) -> str:
        """The package that its entry module lies in, or the module where it lies in none."""
        module = "" if self.entry_point is None else self.entry_point.module
        return module.rpartition(".")[0] or module

    @property
    def source(self) -> str:
        """The plugin with its distribution, as messages name it."""
        return f"{self.name} ({self.distribution} {self.version})"

    def set_aside(self, state: State, reason: str) -> None:
        """Takes the plugin out of use, and with it everything that it had declared."""
        self.state, self.reason = state, reason
        self.hooks.clear()
        self.records.clear()


def normalize(distribution: str) -> str:
    """The one spelling of a distribution's name, as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def describe(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# What is installed


@dataclass(frozen=True, slots=True)
class _Installed:
    """One description of a distribution on the path. ``stale`` marks the egg-info form, which lies beside
    sources and outlives an install.
    """

    distribution: Distribution
    name: str
    version: str
    requires: tuple[str, ...]
    stale: bool

    @property
    def folder(self) -> str:
        return str(self.distribution.locate_file(""))


def installed(distributions: Iterable[Distribution]) -> list[Plugin]:
    """Every entry point of the group, sorted by name and distribution."""
    found: dict[str, list[_Installed]] = {}
    plugins: list[Plugin] = []
    for distribution in distributions:
        try:
            if GROUP in (distribution.read_text("entry_points.txt") or ""):
                described = _described(distribution)
                found.setdefault(described.name, []).append(described)
        except Exception as error:
            plugins.append(_unreadable(distribution, error))
    plugins += [plugin for same in found.values() for plugin in _plugins_of(_in_force(same))]
    return sorted(plugins, key=lambda plugin: (plugin.name.casefold(), plugin.name, plugin.distribution))


def _unreadable(distribution: Distribution, error: Exception) -> Plugin:
    """Whose metadata this is cannot be told: a row without a name, so that it can be mended."""
    reason = f"metadata in {distribution.locate_file('')} cannot be read: {describe(error)}; reinstall its package"
    return Plugin(name="unnamed", distribution="unnamed", version="unknown", state="broken", reason=reason)


def _described(distribution: Distribution) -> _Installed:
    """Reads the head of the metadata. ``Distribution.metadata`` would import the email package and parse the
    whole README for three fields, which costs more than loading the plugin.
    """
    text = distribution.read_text("METADATA")
    head = re.split(r"\r?\n\r?\n", text or distribution.read_text("PKG-INFO") or "", maxsplit=1)[0]
    fields: dict[str, list[str]] = {}
    for line in re.sub(r"\r?\n[ \t]+", " ", head).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.lower(), []).append(value.strip())
    name, version = fields.get("name", ["unnamed"])[0], fields.get("version", ["unknown"])[0]
    # An egg-info keeps its requirements in a file of its own, which importlib_metadata can read.
    requires = fields.get("requires-dist", []) if text else distribution.requires or []
    return _Installed(distribution, normalize(name), version, tuple(requires), stale=text is None)


def _in_force(same: Sequence[_Installed]) -> _Installed:
    """Of several descriptions of one distribution, the one that tells of the code that an import finds: the
    first on the path, where an egg-info yields to an install and an older leftover beside it to a newer one.
    """
    candidates = [one for one in same if not one.stale] or list(same)
    together = [one for one in candidates if one.folder == candidates[0].folder]
    if len(together) == 1:
        return together[0]
    return max(together, key=_age)


def _age(one: _Installed) -> Version:
    """The version to compare by; one that cannot be read is older than all others."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(one.version)
    except InvalidVersion:
        return Version("0.dev0")


def _plugins_of(one: _Installed) -> Iterator[Plugin]:
    try:
        entry_points = one.distribution.entry_points.select(group=GROUP)
    except Exception as error:
        reason = f"its entry_points.txt in {one.folder} cannot be read: {describe(error)}; reinstall {one.name}"
        yield Plugin(name=one.name, distribution=one.name, version=one.version, state="broken", reason=reason)
        return
    for entry_point in entry_points:
        yield Plugin(
            name=entry_point.name,
            distribution=one.name,
            version=one.version,
            requires=one.requires,
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
    if denied & {BUILTIN, CORE, f"{CORE}:{BUILTIN}"}:
        problems.append(f"{DENY}: {BUILTIN!r} is the core itself and cannot be turned off; take it out of the list")
    return problems


def _names(value: str) -> set[str]:
    return {name.strip().casefold() for name in value.split(",") if name.strip()}


def _spellings(plugin: Plugin) -> set[str]:
    """How a list may name the plugin. By distribution too: that is what tells two clashing ones apart."""
    name = plugin.name.casefold()
    return {name, plugin.distribution, f"{plugin.distribution}:{name}"}


def _unknown(variable: str, names: set[str], plugins: Sequence[Plugin]) -> Iterator[str]:
    known = {spelling for plugin in plugins for spelling in _spellings(plugin)}
    for name in sorted(names - known):
        hint = did_you_mean(name, {plugin.name for plugin in plugins})
        yield f"{variable}: no plugin called {name!r} is installed; {hint}"


def _find_clashes(plugins: Sequence[Plugin]) -> None:
    """Two distributions with one plugin name are both set aside: neither may win by the order of the path."""
    by_name: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        by_name.setdefault(plugin.name.casefold(), []).append(plugin)
    for name, same in by_name.items():
        owners = " and ".join(f"{plugin.distribution} {plugin.version}" for plugin in same)
        # Nobody can take the core's own plugin away by calling another one like it.
        losers = [plugin for plugin in same if name != BUILTIN or plugin.distribution != CORE]
        for plugin in losers if len(same) > 1 else []:
            plugin.set_aside(
                "clashing",
                f"{owners} both bring a plugin called {plugin.name!r}; "
                f"uninstall one of them, or name one distribution in {DENY}",
            )


def _check_requirements(plugin: Plugin, core_version: str) -> None:
    for text in plugin.requires:
        name = re.match(r"[\w.-]+", text)
        if name and normalize(name.group()) == CORE and plugin.active:
            _check_requirement(plugin, text, core_version)


def plainly_met(requirement: str, version: str) -> bool:
    """Whether ``name[extras]>=1.2,<2`` admits ``version``, where both are of nothing but digits and dots.

    False also where this cannot tell, which is for ``packaging`` to say: its import is a sixth of what
    ``graft --help`` costs, and nearly every plugin states its range like this.
    """
    match = _PLAIN_RANGE.fullmatch(requirement)
    if match is None or not _PLAIN_VERSION.fullmatch(version):
        return False
    return all(_admits(bound, _release(version)) for bound in match[1].split(","))


def _admits(bound: str, release: tuple[int, ...]) -> bool:
    limit = _release(bound.lstrip("<>= "))
    return release >= limit if bound.strip().startswith(">=") else release < limit


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version without zeros at the end: 1.0 is 1."""
    numbers = [int(number) for number in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _check_requirement(plugin: Plugin, text: str, core_version: str) -> None:
    if plainly_met(text, core_version):
        return
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        plugin.set_aside("broken", f"its requirement {text!r} cannot be read: {describe(error)}")
        return
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and not requirement.specifier.contains(core_version, prereleases=True):
        plugin.set_aside(
            "incompatible",
            f"it needs graftwork {requirement.specifier}, and this is graftwork {core_version}; "
            f"find versions that fit: pip install -U graftwork {plugin.distribution}",
        )


# Loading


def load_all(plugins: Iterable[Plugin]) -> None:
    """Imports every plugin that may load. Whatever one does wrong is its own: it becomes ``broken``."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in plugins:
        if plugin.active and plugin.entry_point is not None:
            _load(plugin, plugin.entry_point, manager)


def _load(plugin: Plugin, entry_point: EntryPoint, manager: pluggy.PluginManager) -> None:
    started = perf_counter()
    try:
        module = entry_point.load()
        manager.register(module, name=plugin.name)
        plugin.hooks = _implementations(manager, module)
    except pluggy.PluginValidationError as error:
        plugin.set_aside("broken", " ".join(str(error).split()))
    except (Exception, SystemExit) as error:
        logger.debug("plugin %s", plugin.source, exc_info=error)
        plugin.set_aside("broken", f"importing {entry_point.value} failed: {describe(error)}")
    plugin.import_ms = (perf_counter() - started) * 1000


def _implementations(manager: pluggy.PluginManager, module: Any) -> dict[str, list[pluggy.HookImpl]]:
    found = {
        caller.name: [implementation for implementation in caller.get_hookimpls() if implementation.plugin is module]
        for caller in manager.get_hookcallers(module) or ()
    }
    known = {hook for hook in vars(hookspecs) if hook.startswith("graftwork_")}
    for hook, implementations in found.items():
        if hook not in known:
            raise pluggy.PluginValidationError(module, f"there is no hook {hook}; {did_you_mean(hook, known)}")
        if any(implementation.wrapper or implementation.hookwrapper for implementation in implementations):
            raise pluggy.PluginValidationError(module, f"{hook} is a wrapper, and here each plugin is called alone")
    for hook in sorted(known - found.keys()):
        if callable(getattr(module, hook, None)):
            raise pluggy.PluginValidationError(module, f"{hook} has no @hookimpl, so it would never be called")
    return found
