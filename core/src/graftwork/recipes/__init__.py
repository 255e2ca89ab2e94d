"""Recipes: configurations that come with graftwork, to run with changes or to copy."""

from __future__ import annotations

from pathlib import Path

from graftwork.errors import UnknownNameError, did_you_mean

__all__ = ["find_recipe", "recipes"]


def recipes() -> dict[str, Path]:
    """The recipes by name."""
    return {file.stem: file for file in sorted(Path(__file__).parent.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe, by its name or by a path. Raises :class:`UnknownNameError`."""
    known = recipes()
    if (stem := name.removesuffix(".yaml")) in known and "/" not in name and not Path(name).is_file():
        return known[stem]
    path = Path(name).expanduser()
    if path.is_file():
        return path
    raise UnknownNameError(f"{name!r} is neither a recipe nor a file here: {did_you_mean(name, known)}")


def title(path: Path) -> str:
    """The first line of a recipe says what it does."""
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
