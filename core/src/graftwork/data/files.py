"""Text and JSON files to rows, plain or gzipped, from any position.

A row that cannot be read is a row all the same, one whose data say why as soon as they are looked at
(:class:`Unreadable`): what becomes of it is for the account to say. A file that is none at all is an error.
"""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from graftwork.errors import DataError

Item = tuple[Mapping[str, Any], str, int]
"""A row's data, where it stands, and the offset just after it."""
Reader = Callable[[Path, int], Iterator[Item]]
"""``(path, offset)`` to the rows from there on."""


TEXTS = (".txt", ".text", ".md", ".rst", "")
"""How the names of files end that may hold rows or prose."""
BARE = 'where a row has to be an object; wrap it: {"messages": [...]}'
"""What to do with a conversation that is written as nothing but its messages."""
LOOKED_AT = 16 << 20
"""Bytes in which the first object of a JSON list is looked for."""


class Unreadable(Mapping[str, Any]):
    """The data of a row that cannot be read: whoever looks at them gets the reason as a :class:`DataError`."""

    __slots__ = ("message",)

    def __init__(self, message: str) -> None:
        self.message = message

    def _raise(self) -> NoReturn:
        raise DataError(self.message)

    def __getitem__(self, key: str) -> Any:
        self._raise()

    def __iter__(self) -> Iterator[str]:
        self._raise()

    def __len__(self) -> int:
        raise DataError(self.message)

    def __contains__(self, key: object) -> bool:
        self._raise()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unreadable) and other.message == self.message

    def __hash__(self) -> int:
        return hash(self.message)


def kind_of(path: Path) -> str:
    """The suffix in lower case, without the ``.gz`` behind it."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def open_file(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where its name ends in ``.gz``. Offsets count unpacked bytes."""
    return cast("BinaryIO", gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


def read_file(path: Path) -> bytes:
    """All of it."""
    with open_file(path) as file:
        return file.read()


def read_json_lines(path: Path, offset: int) -> Iterator[Item]:
    """One object a line; blank lines are skipped. The line number is counted from the start of the file."""
    with open_file(path) as file:
        line_number, looked = skip_lines(file, offset), offset > 0
        for line in iter(file.readline, b""):
            line_number += 1
            offset += len(line)
            if line.strip():
                if not looked:
                    require_rows(path, line, line_number)
                looked = True
                where = f"{path}:{line_number}"
                yield parse_object(line, where), where, offset


def require_rows(path: Path, line: bytes, number: int) -> None:
    """Raises :class:`DataError` where a file's first line with anything in it is not the first row, but the beginning
    of one JSON value over the whole file, or of prose.
    """
    require_one_a_line(path, line)
    if kind_of(path) not in TEXTS or decode(line, f"{path}:{number}").lstrip()[:1] in ("{", "["):
        return
    shown = decode(line, f"{path}:{number}").strip()
    raise DataError(
        f"{path}:{number}: plain text ({shown!r:.60}), where rows are read, one JSON object a line. To train on the "
        'text as it is set dataset_name: text; a row of a chat looks like {"messages": [{"role": "user", "content": '
        '"..."}, {"role": "assistant", "content": "..."}]}'
    )


def require_one_a_line(path: Path, line: bytes) -> None:
    """Raises :class:`DataError` where the file, whose first line this is, is a JSON list or has objects that go over
    several lines: one error instead of one for each line.
    """
    begins = line.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if begins not in (b"[", b"{") or (begins == b"{" and is_json(line)):
        return
    with open_file(path) as file:
        head = file.read(LOOKED_AT)
    text = head.decode("utf-8-sig", "replace").lstrip()
    named = f"{path.name.lower().removesuffix('.gz').removesuffix(kind_of(path))}.json"
    if begins == b"{" and first_object(text) is not None:
        raise DataError(
            f"{path}: an object over several lines, where each line has to be a whole one; write it on one line, or "
            f"put all objects into a list [ ] and name it {named}"
        )
    first = first_object(text[1:].lstrip())
    if is_turn(first) and not is_json(line):
        raise DataError(f"{path}: a bare list of messages over several lines, {BARE}, each conversation on one line")
    alone = is_json(line) and (head.strip() != line.strip() or is_turn(first))  # then each line is a list
    if begins == b"[" and not alone and first is not None:
        raise DataError(f"{path}: this is a JSON list, where each line has to be an object; name it {named}")


def is_json(line: bytes) -> bool:
    """Whether the line is a JSON value by itself."""
    try:
        json.loads(line.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return False
    return True


def first_object(text: str) -> dict[str, Any] | None:
    """The object that a text begins with, if it does."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_json(path: Path, offset: int) -> Iterator[Item]:
    """A file with one list of objects, where ``offset`` counts its elements; or with one object a line."""
    text = decode(read_file(path), str(path))
    try:
        rows = parse(text)
    except json.JSONDecodeError as error:
        if text.lstrip()[:1] == "{" and error.msg == "Extra data":
            yield from read_json_lines(path, offset)
            return
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}; mend the file, or rename it .jsonl") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a JSON {type(rows).__name__}, not a list of rows; wrap it in [ ]")
    for index, data in enumerate(rows[offset:], offset):
        where = row_place(path, index)
        yield data if isinstance(data, dict) else no_object(data, where), where, index + 1


def read_documents(path: Path, offset: int, separator: str | None) -> Iterator[tuple[str, str, int]]:
    """The documents of a text file: the whole of it, or the pieces between lines that hold ``separator``."""
    if separator is None:
        if offset == 0:
            data = read_file(path)
            text = decode(data, str(path))
            if text.strip():
                yield text, str(path), max(1, len(data))
        return
    yield from read_separated(path, offset, separator)


def read_separated(path: Path, offset: int, separator: str) -> Iterator[tuple[str, str, int]]:
    """Line by line, so that a file of any size can be streamed."""
    lines: list[str] = []
    with open_file(path) as file:
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
    """A line as a JSON object, or why it is none."""
    try:
        data = parse(decode(line, where))
    except json.JSONDecodeError as error:
        shown = line.decode("utf-8", "replace").strip()[:60]
        return Unreadable(f"{where}: not JSON: {error.msg} (column {error.colno}): {shown}; mend or remove the line")
    except DataError as error:
        return Unreadable(str(error))
    return data if isinstance(data, dict) else no_object(data, where)


def row_place(path: Path, index: int) -> str:
    """Where the row ``index``, from 0, of a file without lines stands: counted from 1, as lines are."""
    return f"{path} row {index + 1}"


def is_turn(value: Any) -> bool:
    """Whether it looks like one message of a conversation."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


def no_object(data: Any, where: str) -> Unreadable:
    """A row that is some other value."""
    if isinstance(data, list) and data and is_turn(data[0]):
        return Unreadable(f"{where}: a bare list of messages, {BARE}: {json.dumps(data)[:60]}")
    return Unreadable(f"{where}: {json.dumps(data)[:60]} is not an object; each row must be {{...}}")


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
