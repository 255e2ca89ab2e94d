"""The keys of transformers' configurations, read from its source files: ``graft models ls`` imports no transformers."""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

ROTARY = ("rope_theta", "rope_scaling", "partial_rotary_factor")
"""Spellings that every rotary configuration turns into its ``rope_parameters``."""

_BASE = "PreTrainedConfig"


@lru_cache(maxsize=64)
def source_keys(model_type: str) -> frozenset[str] | None:
    """Every key that the configuration of ``model_type`` knows, under all its spellings.

    None where the source does not tell: it is not here, or the class is built in another way.
    """
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations or not model_type.isidentifier():
        return None
    root = Path(spec.submodule_search_locations[0])
    base = _classes(root / "configuration_utils.py").get(_BASE)
    for folder in (model_type, model_type.rpartition("_")[0]):
        for file in sorted((root / "models" / folder).glob("configuration_*.py")) if folder else ():
            for made in _classes(file).values():
                if base is not None and _model_type(made) == model_type:
                    return _keys(made, base)
    return None


def _classes(file: Path) -> dict[str, ast.ClassDef]:
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, UnicodeDecodeError):
        return {}
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _keys(made: ast.ClassDef, base: ast.ClassDef) -> frozenset[str] | None:
    methods = {node.name for node in made.body if isinstance(node, ast.FunctionDef)}
    if [ast.unparse(parent) for parent in made.bases] != [_BASE] or "__init__" in methods:
        return None
    names = {name for each in (base, made) for name in _fields(each)}
    aliases = _value(made, "attribute_map")
    if isinstance(aliases, ast.Dict):
        names |= {str(key.value) for key in aliases.keys if isinstance(key, ast.Constant)}
    return frozenset(names | set(ROTARY) if "rope_parameters" in names else names)


def _fields(made: ast.ClassDef) -> set[str]:
    """The fields of a dataclass."""
    return {
        node.target.id
        for node in made.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and "ClassVar" not in ast.unparse(node.annotation)
    }


def _model_type(made: ast.ClassDef) -> object:
    value = _value(made, "model_type")
    return value.value if isinstance(value, ast.Constant) else None


def _value(made: ast.ClassDef, name: str) -> ast.expr | None:
    assigned = (node for node in made.body if isinstance(node, ast.Assign))
    return next((node.value for node in assigned if name in map(ast.unparse, node.targets)), None)
