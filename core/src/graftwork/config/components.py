"""``_component_`` as in torchtune's YAML: a registered name, or a dotted spelling of one, and its arguments.

A name is looked up, never imported: what can be named are the public functions of the modules that families declare
(``ModelFamily.components``), their presets, and the core's own checkpointers. ``os.system`` is as unknown here as any
other misspelling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from graftwork.builders.extras import import_heavy
from graftwork.config.problems import Problem
from graftwork.errors import ConfigError, PluginError, UnknownNameError, UsageError, did_you_mean, nearest
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

    from graftwork.config.origins import Origins, Path
    from graftwork.specs import Preset

KEY = "_component_"

_CHECKPOINTERS = ("FullModelHFCheckpointer", "FullModelMetaCheckpointer")
_CHECKPOINTERS_MODULE = "graftwork.checkpoints"
_CHECKPOINTERS_THERE = ("torchtune.utils", "torchtune.training", "torchtune.training.checkpointing")
_MODELS_THERE = "torchtune.models"


@dataclass(frozen=True, slots=True)
class Component:
    """Something that ``_component_`` may name. ``name`` is its own dotted name, whatever was written."""

    name: str
    call: Callable[..., Any]

    @property
    def arguments(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.call).parameters


def instantiate(section: Mapping[str, Any] | str, *args: Any, **kwargs: Any) -> Any:
    """Calls what a section of a YAML file names, with its other keys as arguments and ``kwargs`` over them.

    A section within the section is instantiated first. ``section`` may be the name alone::

        checkpointer = instantiate({"_component_": "FullModelHFCheckpointer", "checkpoint_dir": ..., ...})
        model = instantiate("torchtune.models.llama3.llama3_8b")

    Raises :class:`UnknownNameError` for a component that nobody declares, :class:`UsageError` for arguments that it
    does not take or lacks.
    """
    section = {KEY: section} if isinstance(section, str) else section
    if not isinstance(section, Mapping) or KEY not in section:
        raise UsageError(f"a component is written as a section with the key {KEY}, or as a name; this is {section!r}")
    values = {**section, **kwargs}
    for path, value in _walk(values, ()):
        if isinstance(value, str) and "${" in value:
            raise UsageError(
                f"{_dotted(path)} = {value!r}: this points to another value of the file; write that value itself"
            )
    component = find_component(values.pop(KEY))
    if problem := _misfit(component, values, len(args)):
        raise UsageError(problem)
    return component.call(*args, **{key: _instantiated(value) for key, value in values.items()})


def find_component(name: str) -> Component:
    """What ``name`` means: ``llama3_8b``, ``torchtune.models.llama3.llama3_8b``, the plugin's own dotted name, ...

    Raises :class:`UnknownNameError` with the nearest names.
    """
    if not isinstance(name, str):
        raise UsageError(f"{KEY} = {name!r}: it must be a name")
    path, _, function = name.rpartition(".")
    found = None
    if path or function == name:
        found = _checkpointer(path, function) or _function(path, function) or (None if path else _of_preset(name))
    if found is None:
        raise UnknownNameError(f"there is no component {name!r}{_nearest(name)} {_NOT_IMPORTED}")
    return found


def component_problems(document: Any) -> list[Problem]:
    """Every mistake in the sections of a document that name components; nothing is built.

    A problem's path leads to the line in the file (``Problem.render(origins)``).
    """
    return [
        problem
        for path, value in _walk(document, ())
        if isinstance(value, Mapping) and KEY in value
        for problem in _problems_of_section(value, path)
    ]


def names_components(document: Any) -> bool:
    """Whether a document names a component anywhere."""
    return any(isinstance(value, Mapping) and KEY in value for _, value in _walk(document, ()))


def validate_components(document: Any, *, origins: Origins | None = None, source: str = "configuration") -> None:
    """Raises :class:`ConfigError` with all of :func:`component_problems`; ``origins`` gives their lines."""
    if problems := component_problems(document):
        raise ConfigError([problem.render(origins) for problem in problems], source=source)


_NOT_IMPORTED = (
    "A component is a function that an installed family declares, a preset or a checkpointer; any other dotted path is "
    "not imported. Data, optimizer and loss are set in a graftwork configuration (graft config schema)"
)


# Looking up


def _checkpointer(path: str, name: str) -> Component | None:
    if name not in _CHECKPOINTERS or path not in ("", _CHECKPOINTERS_MODULE, *_CHECKPOINTERS_THERE):
        return None
    return Component(f"{_CHECKPOINTERS_MODULE}.{name}", getattr(import_heavy(_CHECKPOINTERS_MODULE), name))


def _function(path: str, name: str) -> Component | None:
    """A public function of a declared module; a bare name is one in whatever module it stands.

    A bare name in several modules counts where it means one function in all of them.
    """
    found: dict[int, Component] = {}
    for module_name in _modules():
        if path in ("", module_name, _there(module_name)):
            function = _public(_loaded(module_name)).get(name)
            if function is not None:
                found.setdefault(id(function), Component(f"{module_name}.{name}", function))
    if len(found) > 1:
        names = " or ".join(sorted(component.name for component in found.values()))
        raise UsageError(f"component {name!r} stands in several modules: write {names}")
    return next(iter(found.values()), None)


def _of_preset(name: str) -> Component | None:
    """The builder of a preset under any of its names; a fresh model of it where no module has one."""
    preset = get_registry().presets.get_or_none(name)
    if preset is None:
        return None
    return _function("", preset.name) or Component(f"preset:{preset.name}", partial(_fresh, preset))


def _fresh(preset: Preset) -> Any:
    from graftwork.builders.torchtune_names import fresh_model

    return fresh_model(preset.config())


def _modules() -> list[str]:
    families = get_registry().families
    return list(dict.fromkeys(module for name in families for module in families[name].components))


def _there(module_name: str) -> str:
    return f"{_MODELS_THERE}.{module_name.rpartition('.')[2]}"


def _loaded(module_name: str) -> ModuleType:
    try:
        module: ModuleType = import_heavy(module_name)
        return module
    except ImportError as error:
        families = get_registry().families
        owner = next(name for name in families if module_name in families[name].components)
        raise PluginError(
            f"module {module_name}, which family {owner!r} declares for {KEY}, cannot be imported: {error}; reinstall "
            "or update the plugin that brings it"
        ) from error


def _public(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions that a module is there for: in ``__all__``, else public and not taken from elsewhere."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    values = {name: getattr(module, name) for name in names}
    listed = hasattr(module, "__all__")
    return {
        name: value
        for name, value in values.items()
        if callable(value) and (listed or not _is_imported(value, module.__name__))
    }


def _is_imported(value: Any, module_name: str) -> bool:
    """Whether ``value`` was defined by its name at the top of another module, or is only a type."""
    home = getattr(value, "__module__", None)
    if isinstance(value, type) or home == "typing" or type(value).__module__ == "typing":
        return True
    if home in (None, module_name) or not hasattr(value, "__qualname__"):
        return False
    return getattr(import_module(home), value.__qualname__, None) is value


def _nearest(name: str) -> str:
    bare = [*_CHECKPOINTERS, *(spelling for preset in _presets() for spelling in (preset.name, *preset.aliases))]
    dotted = [f"{path}.{each}" for path in (_CHECKPOINTERS_MODULE, *_CHECKPOINTERS_THERE) for each in _CHECKPOINTERS]
    for module_name in _modules():
        functions = list(_public(_loaded(module_name)))
        bare += functions
        dotted += [f"{path}.{function}" for path in (module_name, _there(module_name)) for function in functions]
    near = nearest(name, dotted, likeness=0.8) if "." in name else nearest(name, bare)
    return f"; did you mean {near}?" if near else "."


def _presets() -> Iterator[Preset]:
    presets = get_registry().presets
    return (presets[name] for name in presets)


# Checking and building


def _problems_of_section(section: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    values = {key: value for key, value in section.items() if key != KEY}
    try:
        component = find_component(section[KEY])
    except UsageError as error:
        yield Problem(path=(*path, KEY), text=str(error))
        return
    known = component.arguments
    unknown = [key for key in values if not _takes(known, key)]
    for key in unknown:
        yield Problem(path=(*path, key), text=_not_taken(component, key), value=values[key])
    if missing := _missing(known, values):
        yield Problem(path=(*path, KEY), text=f"{component.name} also needs {_listed(missing)}", value=section[KEY])


def _misfit(component: Component, values: Mapping[str, Any], positional: int) -> str | None:
    known = component.arguments
    taken = dict(list(known.items())[positional:])
    for key in values:
        if not _takes(taken, key):
            twice = f"{component.name}: {key!r} was given twice, by position and by name"
            return twice if key in known else _not_taken(component, key)
    missing = _missing(taken, values)
    needs = f"{component.name} also needs {_listed(missing)}; its arguments are {_listed(known)}"
    return needs if missing else None


def _takes(known: Mapping[str, inspect.Parameter], key: Any) -> bool:
    keyword = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
    return keyword or (key in known and known[key].kind is not inspect.Parameter.POSITIONAL_ONLY)


def _missing(known: Mapping[str, inspect.Parameter], values: Mapping[str, Any]) -> list[str]:
    required = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name, parameter in known.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind in required and name not in values
    ]


def _not_taken(component: Component, key: Any) -> str:
    if not component.arguments:
        return f"{component.name} has no argument {key!r}; it takes none"
    return f"{component.name} has no argument {key!r}; {did_you_mean(str(key), component.arguments, limit=30)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _instantiated(value: Any) -> Any:
    if isinstance(value, Mapping):
        return instantiate(value) if KEY in value else {key: _instantiated(item) for key, item in value.items()}
    return [_instantiated(item) for item in value] if isinstance(value, list) else value


def _walk(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    yield path, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _walk(item, (*path, key))


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
