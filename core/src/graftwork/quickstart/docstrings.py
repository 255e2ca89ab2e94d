"""The public docstrings of the standard library as questions and answers.

They are read from the library's source files, never by importing it: nothing runs, and every machine with the same
Python gets the same list.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFT_OUT = frozenset(
    {"antigravity", "this", "test", "tests", "idlelib", "lib2to3", "tkinter", "turtle", "turtledemo", "distutils"}
    | {"ensurepip", "encodings", "pydoc_data", "site-packages", "dist-packages"}
)
"""Not there on every machine (Linux distributions ship them apart), or nothing that a person would ask about."""

SHORTEST_ANSWER, LONGEST_ANSWER = 16, 280
"""Characters of an answer: the first paragraph of a docstring, unless it says next to nothing or goes on and on."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a public name does. ``package`` is the first part of its name, ``textwrap`` of ``textwrap.dedent``."""

    name: str
    answer: str

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def text(self) -> str:
        return f"What does `{self.name}` do?"

    @property
    def key(self) -> str:
        """What two answers have in common that are the same but for case and punctuation."""
        return " ".join(re.findall(r"\w+", self.answer.casefold()))


def read_questions(library: Path | None = None) -> list[Question]:
    """One question for each answer, in the order of the names: of several equal answers the first one stays.

    Raises :class:`DataError` where the source files are not there.
    """
    folder = library or Path(sysconfig.get_path("stdlib"))
    found = [question for path in modules(folder) for question in questions_of(path, folder)]
    if not found:
        raise DataError(
            f"{folder} holds no source files of the standard library, whose docstrings the quickstart learns from; "
            "use a Python that was installed with them"
        )
    distinct: dict[str, Question] = {}
    for question in sorted(found, key=lambda question: question.name):
        distinct.setdefault(question.key, question)
    return list(distinct.values())


def modules(folder: Path) -> list[Path]:
    """The source files of the public modules, in the order of their names."""
    return sorted(path for path in folder.rglob("*.py") if all(map(is_public, path.relative_to(folder).parts)))


def is_public(part: str) -> bool:
    """Whether a folder or file of the library is for everybody to use."""
    name = part.removesuffix(".py")
    return name not in LEFT_OUT and name.isidentifier() and (name == "__init__" or not name.startswith("_"))


def questions_of(path: Path, folder: Path) -> Iterator[Question]:
    """The questions of one module; a file that is no Python of this version has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own texts
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    parts = path.relative_to(folder).with_suffix("").parts
    module = ".".join(part for part in parts if part != "__init__")
    for name, docstring in documented(tree, f"{module}."):
        answer = first_paragraph(docstring)
        if answer:
            yield Question(name, answer)


def documented(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str]]:
    """The names and docstrings of the public functions and classes, and of the classes' public methods."""
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        if docstring := ast.get_docstring(child):
            yield prefix + child.name, docstring
        if isinstance(child, ast.ClassDef):
            yield from documented(child, f"{prefix}{child.name}.")


def first_paragraph(docstring: str) -> str | None:
    """The first paragraph on one line; None where it is no sentence about what something does."""
    text = " ".join(docstring.strip().split("\n\n")[0].split())
    fits = SHORTEST_ANSWER <= len(text) <= LONGEST_ANSWER
    return text if fits and text[0].isupper() and text.isascii() and ">>>" not in text else None
