"""The conventions of the house, held by tests: who may import whom, and what a hook must have."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import pytest

from graftwork import hookspecs
from graftwork.declarations import DECLARED

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
CORE = ROOT / "core"
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("graftwork_")}
DECLARATIONS = {kind.hook for kind in DECLARED}
EVENTS = HOOKS.keys() - DECLARATIONS
# Agreed hooks whose first implementer is still to come. Whoever writes it takes the name out of here.
AWAITED = {
    "graftwork_checkpoint_saved",
}
LIGHT_CORE = {"graftwork", "graftwork.specs", "graftwork.hookspecs"}


def sources(distribution: Path) -> list[Path]:
    return sorted((distribution / "src").rglob("*.py"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.with_suffix("").parts
    name = parts[parts.index("src") + 1 :]
    return ".".join(name[:-1] if name[-1] == "__init__" else name)


def imports(nodes: Iterator[ast.AST], module: str) -> set[str]:
    """The absolute names of the modules that import statements among ``nodes`` name."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.rsplit(".", node.level)[0] + "." if node.level else ""
            found.add(f"{base}{node.module or ''}".rstrip("."))
    return found


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that run when a module is imported: none of those in functions or for type checkers."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import(node.orelse)
            continue
        yield node
        for inner in ("body", "orelse", "finalbody"):
            yield from at_import(getattr(node, inner, []))


def packages_of(distribution: Path) -> set[str]:
    return {path.name for path in (distribution / "src").iterdir() if path.is_dir()}


def entry_modules() -> dict[str, tuple[Path, str]]:
    """Plugin name to its distribution's folder and entry module, as the project files declare them."""
    found = {}
    for distribution in [CORE, *PLUGINS]:
        project = tomllib.loads((distribution / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for name, module in project["entry-points"]["graftwork.plugins"].items():
            found[name] = (distribution, module)
    return found


def file_of(distribution: Path, module: str) -> Path:
    base = distribution / "src" / Path(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


# Hooks


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS.keys())
def test_every_hook_documents_its_contract(hook: Any) -> None:
    text = inspect.getdoc(hook) or ""
    parameters = inspect.signature(hook).parameters
    missing = [name for name in parameters if not re.search(rf"\b{name}\b", text)]
    assert missing == [], f"{hook.__name__} says nothing about {missing}"
    if hook.__name__ in DECLARATIONS:
        assert "@hookimpl" in text
        assert f"def {hook.__name__}()" in text


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS.keys())
def test_declarations_take_nothing_and_events_return_nothing(hook: Any) -> None:
    signature = inspect.signature(hook)
    if hook.__name__ in DECLARATIONS:
        assert not signature.parameters
        assert signature.return_annotation.startswith("Iterable[")
        assert hook.__name__.endswith("s"), "a declaration is a plural noun"
    else:
        assert signature.return_annotation == "None"
        assert hook.__name__.endswith("ed"), "an event is a verb in the past tense"
    assert not hook.graftwork_spec["firstresult"]
    assert not hook.graftwork_spec["historic"]


def test_every_hook_is_a_declaration_with_a_table_or_an_event() -> None:
    assert HOOKS.keys() >= DECLARATIONS
    assert {"graftwork_run_started", "graftwork_step_finished"} <= EVENTS


def test_every_hook_has_an_implementer() -> None:
    implemented: set[str] = set()
    for distribution, module in entry_modules().values():
        for node in tree_of(file_of(distribution, module)).body:
            if isinstance(node, ast.FunctionDef) and any(
                "hookimpl" in ast.unparse(mark) for mark in node.decorator_list
            ):
                implemented.add(node.name)
    assert HOOKS.keys() - implemented == AWAITED


# Who imports whom


def test_the_core_never_imports_a_plugin() -> None:
    plugins = set(chain.from_iterable(packages_of(plugin) for plugin in PLUGINS))
    assert plugins, "there are plugins to look for"
    guilty = {
        str(path.relative_to(ROOT)): named & plugins
        for path in sources(CORE)
        if (named := {name.partition(".")[0] for name in imports(ast.walk(tree_of(path)), module_of(path))}) & plugins
    }
    assert guilty == {}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_never_imports_another(plugin: Path) -> None:
    others = set(chain.from_iterable(packages_of(other) for other in PLUGINS if other != plugin))
    for path in sources(plugin):
        named = {name.partition(".")[0] for name in imports(ast.walk(tree_of(path)), module_of(path))}
        assert named & others == set(), path


@pytest.mark.parametrize(("distribution", "module"), entry_modules().values(), ids=entry_modules().keys())
def test_entry_modules_import_only_what_is_light(distribution: Path, module: str) -> None:
    """Followed into the plugin's own modules: whatever an entry module pulls in is part of it."""
    own = packages_of(distribution) - {"graftwork"}
    todo, seen = [module], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        named = imports(at_import(tree_of(file_of(distribution, current)).body), current)
        mine = {name for name in named if name.partition(".")[0] in own}
        foreign = {name for name in named - mine - LIGHT_CORE if name.partition(".")[0] not in sys.stdlib_module_names}
        assert foreign == set(), f"{current} imports {foreign} when it is imported"
        todo += mine


def test_entry_modules_take_only_the_marker_from_the_package_itself() -> None:
    """Any other name of ``graftwork`` is loaded on use, and would load pydantic or torch here."""
    for distribution, module in entry_modules().values():
        for node in at_import(tree_of(file_of(distribution, module)).body):
            if isinstance(node, ast.ImportFrom) and node.module == "graftwork":
                assert {alias.name for alias in node.names} <= {"hookimpl"}, module


# Sizes


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Lines of a function's body that are neither blank, comment nor docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    inside = lines[body[0].lineno - 1 : function.end_lineno]
    return sum(1 for line in inside if line.strip() and not line.strip().startswith("#"))


def test_functions_stay_short() -> None:
    sizes: dict[str, int] = {}
    for path in chain.from_iterable(sources(distribution) for distribution in [CORE, *PLUGINS]):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                sizes[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = code_lines(node, text.splitlines())
    longest = sorted(sizes.items(), key=lambda item: -item[1])[:8]
    assert quantiles(sizes.values(), n=10, method="inclusive")[-1] <= 25, longest
    assert longest[0][1] <= 60, longest


def test_files_stay_readable() -> None:
    every = chain.from_iterable(sources(distribution) for distribution in [CORE, *PLUGINS])
    sizes = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in every}
    assert {path: size for path, size in sizes.items() if size > 600} == {}
