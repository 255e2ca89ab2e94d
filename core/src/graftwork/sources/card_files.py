"""The files that cards stand in: YAML documents, each checked on its own, with the line of every field."""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.errors import ModelError, did_you_mean
from graftwork.sources import local

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graftwork.config.reader import Reader

FIELDS: Mapping[str, type] = {
    "base": str,
    "model_family": str,
    "model_arch": str,
    "checkpoint": str,
    "tokenizer": str,
    "tokenizer_family": str,
    "tokenizer_ref": str,
    "model_config_override": dict,
    "tokenizer_config_override": dict,
    "restrict": bool,
}
_LEGACY = {"model_config": "model_config_override", "tokenizer_config": "tokenizer_config_override"}
PLACES = ("checkpoint", "tokenizer")
TOKENIZER_OPTIONS: Mapping[str, type] = {"impl": str, "use_eot": bool, "split_regex": str}
_KINDS = {str: "a text", dict: "a block of settings", bool: "true or false"}
# What would let a file on the disk decide that code is run, or that a pickle is safe.
_TRUST = {"trust_remote_code", "trust", "allow_pickle", "unsafe", "auto_map", "weights_only", "code_revision"}
_URI = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*(@[A-Za-z0-9][\w.+-]*)?")


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong with a card or its file, with its place."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Document:
    """One card as it is written: ``fields`` under their present names, places absolute. ``source`` is whose it is."""

    name: str
    file: Path
    lines: Mapping[str, int]
    fields: Mapping[str, Any] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    source: str = ""

    @property
    def place(self) -> str:
        """``file:line`` of its name."""
        return self.place_of("name")

    def place_of(self, key: str) -> str:
        """``file:line`` of a field."""
        return f"{self.file}:{self.lines.get(key, self.lines.get('name', 1))}"

    def mistake(self, key: str, text: str) -> Mistake:
        """What is wrong with the value of ``key``."""
        return Mistake(f"card {self.name!r} ({self.place_of(key)}): {key}: {text}")


def scheme_of(place: str) -> str | None:
    """The scheme of a place that is a URI."""
    match = _URI.match(place)
    return match.group(1).lower() if match else None


def documents_of(path: Path, label: str) -> tuple[list[Document], list[Mistake]]:
    """Every card under a folder, or in a file, and what could not be read at all. ``label`` says who names it."""
    documents: list[Document] = []
    mistakes: list[Mistake] = []
    if not may_be_there(path):
        return [], [Mistake(f"cards: there is no folder or file {path} ({label} names it)")]
    files, locked = card_files(path)
    for error in locked:
        text = f"cards: the folder {error.filename} cannot be read ({error.strerror}), so nobody knows what is in it"
        mistakes.append(Mistake(f"{text}: give your user the right to list and enter it, or name another ({label})"))
    for file in files:
        try:
            state = file.stat()
            found, wrong = _parsed(file, state.st_mtime_ns, state.st_size)
        except (OSError, UnicodeDecodeError) as error:
            mistakes.append(Mistake(f"cards: {file} cannot be read: {error}"))
            continue
        documents += found
        mistakes += wrong
    return documents, mistakes


def may_be_there(path: Path) -> bool:
    """Whether there is such a file or folder, or it lies where nobody may look."""
    try:
        return path.exists()
    except OSError:
        return True


def card_files(path: Path) -> tuple[list[Path], list[OSError]]:
    """A file itself, or all YAML files under a folder, and why some folders in it cannot be listed."""
    if os.path.isfile(path):  # noqa: PTH113 - which is an answer where the folder above may not be entered
        return [path], []
    locked: list[OSError] = []
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(path, onerror=locked.append)
        for name in fnmatch.filter(names, "*.y*ml")
    ]
    return sorted(found), locked


@lru_cache(maxsize=256)
def _parsed(file: Path, _changed: int, _size: int) -> tuple[tuple[Document, ...], tuple[Mistake, ...]]:
    """Read once for as long as the file stays as it is."""
    import yaml

    from graftwork.config.reader import CoreSchema

    found: list[Document | Mistake] = []
    nodes = yaml.compose_all(file.read_text(encoding="utf-8"), Loader=CoreSchema)
    try:
        for node in nodes:
            if node is not None:
                found.append(_document(node, file))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        deep = isinstance(error, RecursionError)
        text = "too many blocks within blocks" if deep else getattr(error, "problem", None) or str(error)
        unread = "this card and those below it are not read" if found else "its cards are not read"
        found.append(Mistake(f"cards: {file}{line}: not valid YAML: {text}; {unread}"))
    documents = tuple(one for one in found if isinstance(one, Document))
    return documents, tuple(one for one in found if isinstance(one, Mistake))


def _document(node: Any, file: Path) -> Document | Mistake:
    from graftwork.config.reader import Reader

    reader = Reader(str(file), None)
    values: dict[str, Any] | None = reader.value(node, ())
    first = node.start_mark.line + 1
    name = values.get("name") if isinstance(values, dict) else None
    if values is None or not isinstance(name, str) or not name.isprintable():
        return Mistake(f"cards: {file}:{first}: a card is a block of fields, and one of them is its name (a text)")
    lines = {_LEGACY.get(key, key): line for key, line in _lines(reader, values)}
    bare = Document(name, file, lines)
    fields = {_LEGACY.get(key, key): value for key, value in values.items() if key != "name" and value is not None}
    mistakes = [*_of_reader(bare, reader), *_of_fields(bare, values)]
    return Document(bare.name, file, lines, {} if mistakes else _absolute(fields, file), tuple(mistakes))


def _lines(reader: Reader, values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key in values:
        origin = reader.origins.exact((key,))
        if origin is not None and origin.line is not None:
            yield key, origin.line


def _of_reader(document: Document, reader: Reader) -> Iterator[Mistake]:
    for problem in reader.problems:
        line = problem.origin.line if problem.origin else None
        key = ".".join(map(str, problem.path))
        yield Document(document.name, document.file, {"name": line or 1}).mistake(key, problem.text)


def _of_fields(document: Document, values: Mapping[str, Any]) -> Iterator[Mistake]:
    if not _NAME.fullmatch(document.name):
        yield document.mistake("name", f"{document.name!r} is no name: letters, digits and . _ + - (and name@env)")
    for key, value in values.items():
        if key != "name":
            yield from _of_field(document, key, value, values)
    options = values.get("tokenizer_config_override", values.get("tokenizer_config"))
    for key, value in options.items() if isinstance(options, dict) else ():
        if key not in TOKENIZER_OPTIONS:
            text = f"{key!r} is no option of a tokenizer; {did_you_mean(key, TOKENIZER_OPTIONS)}"
            yield document.mistake("tokenizer_config_override", text)
        elif value is not None and not isinstance(value, TOKENIZER_OPTIONS[key]):
            text = f"{key} is {value!r}, and must be {_KINDS[TOKENIZER_OPTIONS[key]]}"
            yield document.mistake("tokenizer_config_override", text)


def _of_field(document: Document, key: str, value: Any, values: Mapping[str, Any]) -> Iterator[Mistake]:
    name = _LEGACY.get(key, key)
    if key in _TRUST:
        text = "a card cannot vouch for code or for pickles; remove it. Whoever uses the card decides that"
        yield document.mistake(key, text)
    elif name not in FIELDS:
        yield document.mistake(key, f"a card has no such field; {did_you_mean(key, [*FIELDS, 'name'], limit=20)}")
    elif name != key and name in values:
        yield document.mistake(key, f"{key} is the old name of {name}, and both are written; keep {name}")
    elif value is not None and not isinstance(value, FIELDS[name]):
        yield document.mistake(name, f"it is {value!r}, and must be {_KINDS[FIELDS[name]]}")
    elif name == "restrict" and value is False:
        yield document.mistake(name, "pickles are always read by the restricted reader; remove it")
    elif name in PLACES and isinstance(value, str):
        yield from _of_place(document, name, value)
    elif name == "model_config_override":
        for inner in sorted(_TRUST & set(_keys(value))):
            yield document.mistake(name, f"{inner} could name code, which a card never does; remove it")


def _of_place(document: Document, name: str, value: str) -> Iterator[Mistake]:
    if not value.strip() or not value.isprintable():
        yield document.mistake(name, f"{value!r} is no place: give a folder, a file or hf://org/name")
        return
    try:
        local.expanded(value)
    except ModelError as error:
        yield document.mistake(name, str(error))


def _keys(value: Any) -> Iterator[str]:
    """The keys of a block and of the blocks in it."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        yield from _keys(inner)


def _absolute(fields: dict[str, Any], file: Path) -> dict[str, Any]:
    """Paths count from the card's own folder; ``hg://`` is ``hf://``. What fairseq2 has after a ``;`` says nothing."""
    for key in PLACES:
        if key in fields:
            place = fields[key].partition(";")[0] if _URI.match(fields[key]) else fields[key]
            place = place.replace("hg://", "hf://", 1) if place.startswith("hg://") else place
            fields[key] = place if _URI.match(place) else str(file.parent / Path(place).expanduser())
    return fields
