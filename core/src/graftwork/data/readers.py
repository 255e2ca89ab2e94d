"""Files to rows: text, JSON lines and JSON files, whole or streamed, from any position.

A position is ``(file, offset)``: the index of the file among the source's files, and the number of bytes (JSON
lines, text) or of elements (JSON) already read from it. A reader can start at any position that it gave out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from graftwork.errors import DataError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from graftwork.config import DatasetParams

Position = tuple[int, int]
START: Position = (0, 0)

SUFFIXES = {
    "text": (".txt", ".text", ".md", ".rst", ".jsonl", ".json"),
    "chat": (".jsonl", ".json"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """What a dataset's ``open`` gets: its section of the configuration and its validated option block."""

    dataset: DatasetParams
    params: BaseModel | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its data, where it stands (``file.jsonl:12``), and the position just after it."""

    data: Mapping[str, Any]
    where: str
    after: Position


class RowSource(Protocol):
    """The rows of one dataset, in file order."""

    def rows(self, start: Position = START) -> Iterator[Row]:
        """The rows from a position on. Raises :class:`DataError` at a row that cannot be read."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read; their content is the dataset's fingerprint."""
        ...


Reader = Callable[[Path, int], Iterator[tuple[Mapping[str, Any], str, int]]]
"""``(path, offset)`` to ``(data, where, offset after)``."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """Rows of a list of files, each read by the reader of its suffix."""

    files: tuple[Path, ...]
    read_text: Reader

    def rows(self, start: Position = START) -> Iterator[Row]:
        first, offset = start
        for number, path in enumerate(self.files[first:], first):
            read = {".jsonl": read_json_lines, ".json": read_json}.get(path.suffix.lower(), self.read_text)
            for data, where, after in read(path, offset):
                yield Row(data, where, (number, after))
            offset = 0


def open_text(request: OpenRequest) -> FileSource:
    """Documents: each text file is one (or one per ``separator``), each JSON row one in its ``text_field``."""
    separator: str | None = getattr(request.params, "separator", None)

    def read_text(path: Path, offset: int) -> Iterator[tuple[Mapping[str, Any], str, int]]:
        field = getattr(request.params, "text_field", "text")
        for text, where, after in read_documents(path, offset, separator):
            yield {field: text}, where, after

    return FileSource(find_files(request.dataset, "text"), read_text)


def open_chat(request: OpenRequest) -> FileSource:
    """Conversations: JSON lines or JSON files."""
    return FileSource(find_files(request.dataset, "chat"), read_json_lines)


def find_files(dataset: DatasetParams, schema: str) -> tuple[Path, ...]:
    """The file, or the files of a folder in the order of their names, that ``dataset_path`` means."""
    if not dataset.dataset_path:
        raise DataError(f"dataset {dataset.dataset_name} has no dataset_path; set it to a file or folder")
    path = Path(dataset.dataset_path)
    suffixes = SUFFIXES[schema]
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise DataError(f"dataset_path {path} does not exist (looked from {Path.cwd()}); give a file or folder")
    files = tuple(sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in suffixes))
    if not files:
        raise DataError(f"dataset_path {path} has no file that ends in {', '.join(suffixes)}; add one or name a file")
    return files


def read_json_lines(path: Path, offset: int) -> Iterator[tuple[Mapping[str, Any], str, int]]:
    """One object a line; blank lines are skipped. The line number is counted from the start of the file."""
    with path.open("rb") as file:
        line_number = skip_lines(file, offset)
        for line in iter(file.readline, b""):
            line_number += 1
            offset += len(line)
            if line.strip():
                where = f"{path}:{line_number}"
                yield parse_object(line, where), where, offset


def read_json(path: Path, offset: int) -> Iterator[tuple[Mapping[str, Any], str, int]]:
    """A file with one list of objects; ``offset`` counts its elements."""
    try:
        rows = parse(decode(path.read_bytes(), str(path)))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}; mend the file, or rename it .jsonl") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a JSON {type(rows).__name__}, not a list of rows; wrap it in [ ]")
    for index, data in enumerate(rows[offset:], offset):
        where = f"{path}[{index}]"
        if not isinstance(data, dict):
            raise DataError(f"{where}: {json.dumps(data)[:60]} is not an object; each row must be {{...}}")
        yield data, where, index + 1


def read_documents(path: Path, offset: int, separator: str | None) -> Iterator[tuple[str, str, int]]:
    """The documents of a text file: the whole of it, or the pieces between lines that hold ``separator``."""
    if separator is None:
        if offset == 0:
            text = decode(path.read_bytes(), str(path))
            if text.strip():
                yield text, str(path), max(1, path.stat().st_size)
        return
    yield from read_separated(path, offset, separator)


def read_separated(path: Path, offset: int, separator: str) -> Iterator[tuple[str, str, int]]:
    """Line by line, so that a file of any size can be streamed."""
    lines: list[str] = []
    with path.open("rb") as file:
        number = first = skip_lines(file, offset) + 1
        for line in iter(file.readline, b""):
            offset += len(line)
            # A byte order mark is one at the start of the file; anywhere else it is a character of the text.
            text = decode(line, f"{path}:{number}", mark=offset == len(line))
            number += 1
            if text.strip() != separator.strip():
                lines.append(text)
                continue
            if document := "".join(lines).strip("\r\n"):
                yield document, f"{path}:{first}", offset
            lines, first = [], number
    if document := "".join(lines).strip("\r\n"):
        yield document, f"{path}:{first}", offset


def skip_lines(file: BinaryIO, offset: int) -> int:
    """Moves to ``offset`` and gives the number of lines before it, in pieces: the file may be larger than memory."""
    lines = 0
    while offset and (piece := file.read(min(offset, 1 << 20))):
        lines += piece.count(b"\n")
        offset -= len(piece)
    return lines


def parse_object(line: bytes, where: str) -> Mapping[str, Any]:
    """A line as a JSON object."""
    try:
        data = parse(decode(line, where))
    except json.JSONDecodeError as error:
        shown = line.decode("utf-8", "replace").strip()[:60]
        raise DataError(
            f"{where}: not JSON: {error.msg} (column {error.colno}): {shown}; mend or remove the line"
        ) from None
    if not isinstance(data, dict):
        raise DataError(f"{where}: {json.dumps(data)[:60]} is not an object; each row must be {{...}}")
    return data


def parse(text: str) -> Any:
    """JSON; what Python cannot hold (too deep, too many digits, half a character) counts as no JSON."""
    try:
        data = json.loads(text)
        if "\\u" in text:
            json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise json.JSONDecodeError(str(error), text, 0) from None
    return data


def decode(data: bytes, where: str, *, mark: bool = True) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return data.decode("utf-8-sig" if mark else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start}: {data[error.start]:#x}); convert the file") from None
