"""Tables to rows: CSV and TSV, Parquet, Arrow files and streams, from any position.

Of a CSV file a position is a number of bytes, of the others a number of rows.
"""

from __future__ import annotations

import base64
import csv
import datetime
import decimal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from graftwork.data.files import Unreadable, decode, open_file, row_place, skip_lines
from graftwork.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from graftwork.data.files import Item

CELL = 1 << 30
"""Characters that a cell may have: Python's own limit of 131,072 is less than many documents."""
BLANK: Mapping[str, Any] = {}
"""What a line without anything in it gives, which is no row."""
OTHERS = (";", "\t", "|", ",")
"""What else stands between cells: spreadsheets of many countries write ``;``."""
BATCH = 256
"""Rows that are taken from a Parquet file at a time."""


class Lines:
    """The lines of an open file as texts, with the bytes and the lines taken so far; csv reads no further ahead."""

    def __init__(self, file: BinaryIO, path: Path, offset: int, number: int) -> None:
        self.file, self.path, self.offset, self.number = file, path, offset, number

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        first = self.offset == 0
        self.offset += len(line)
        self.number += 1
        return decode(line, f"{self.path}:{self.number}", mark=first)


def read_csv(path: Path, offset: int, delimiter: str | None = None) -> Iterator[Item]:
    """A row for each record; the first one has the names of the columns. ``.tsv`` is separated by tabs."""
    told = delimiter is not None
    delimiter = delimiter or ("\t" if ".tsv" in path.name.lower() else ",")
    csv.field_size_limit(CELL)
    with open_file(path) as file:
        lines = Lines(file, path, 0, 0)
        names = header(lines, delimiter)
        if not told:
            require_separated(path, names, delimiter)
        if offset > lines.offset:
            lines.number += skip_lines(file, offset - lines.offset)
            lines.offset = offset
        while True:
            first = lines.number + 1
            data = record(lines, names, delimiter, f"{path}:{first}")
            if data is None:
                return
            if data is not BLANK:
                yield data, f"{path}:{first}", lines.offset


def header(lines: Lines, delimiter: str) -> list[str]:
    """The names of the columns: something in each, none of them twice."""
    names = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
    names = [name.strip() for name in names]
    if len(set(names)) < len(names) or not all(names):
        raise DataError(
            f"{lines.path}:1: the first line must name the columns, each once, and is {delimiter.join(names)!r:.80}; "
            "write the names there"
        )
    return names


def require_separated(path: Path, names: list[str], delimiter: str) -> None:
    """Raises :class:`DataError` where the one column's name looks like several that something else stands between."""
    other = next((mark for mark in OTHERS if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        shown, usual = ({"\t": "a tab"}.get(mark, f"'{mark}'") for mark in (other, delimiter))
        setting = '"\\t"' if other == "\t" else f"'{other}'"
        raise DataError(
            f"{path}:1: the first line, {names[0]!r:.80}, has {shown} between its names, not {usual}: set "
            f"dataset_kwargs: {{delimiter: {setting}}} (or delimiter: '{delimiter}' where this is one name)"
        )


def record(lines: Lines, names: list[str], delimiter: str, where: str) -> Mapping[str, Any] | None:
    """The next record by the names of its columns; None at the end of the file."""
    try:
        cells = next(csv.reader(lines, delimiter=delimiter, strict=True), None)
    except (csv.Error, DataError) as error:
        text = str(error) if isinstance(error, DataError) else f"not CSV: {error}"
        return Unreadable(f"{where}: {text.removeprefix(f'{where}: ')}; mend or remove the record")
    if cells is None or not cells:
        return None if cells is None else BLANK
    if len(cells) != len(names):
        return Unreadable(
            f"{where}: {len(cells)} cells, but the first line names {len(names)} columns; quote a cell that holds "
            f"{delimiter!r} or a line break"
        )
    return dict(zip(names, cells, strict=True))


def read_parquet(path: Path, offset: int) -> Iterator[Item]:
    """Row group by row group; those before the position are not read."""
    parquet = arrow("parquet")
    with whole(path), parquet.ParquetFile(path) as file:
        before, groups = 0, list(range(file.num_row_groups))
        while groups and before + (size := file.metadata.row_group(groups[0]).num_rows) <= offset:
            before += size
            groups.pop(0)
        batches = (batch.to_pylist() for batch in file.iter_batches(BATCH, row_groups=groups))
        yield from numbered(path, batches, before, offset)


def read_arrow(path: Path, offset: int) -> Iterator[Item]:
    """Arrow's file or stream format, whichever it is: `datasets` writes streams."""
    pyarrow = arrow()
    with whole(path), pyarrow.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            opened = arrow("ipc").open_file(file)
            tables: Iterable[Any] = (opened.get_batch(number) for number in range(opened.num_record_batches))
        else:
            file.seek(0)
            tables = arrow("ipc").open_stream(file)
        before = 0
        for table in tables:
            if before + table.num_rows > offset:
                rest = table.slice(max(0, offset - before))
                pieces = (rest.slice(start, BATCH).to_pylist() for start in range(0, rest.num_rows, BATCH))
                yield from numbered(path, pieces, max(before, offset), offset)
            before += table.num_rows


def numbered(path: Path, batches: Iterable[list[dict[str, Any]]], first: int, offset: int) -> Iterator[Item]:
    """The rows from ``offset`` on, of batches that begin with row ``first``."""
    for batch in batches:
        for number, data in enumerate(batch, first):
            if number >= offset:
                yield plain(data), row_place(path, number), number + 1
        first += len(batch)


def plain(value: Any) -> Any:
    """Values that JSON knows, so that a checkpoint can hold a row: bytes in base64, times as ISO 8601."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    return value


def arrow(part: str = "") -> Any:
    """pyarrow, or a part of it. It comes with the extra ``models``, through `datasets`."""
    from importlib import import_module

    try:
        return import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ImportError as error:
        raise MissingExtraError('Parquet and Arrow files need pyarrow: pip install "graftwork[models]"') from error


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Says of which file it is that Arrow cannot read it."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("pyarrow"):
            raise
        raise DataError(
            f"{path}: damaged, or no file of its kind: {str(error)[:160]}; fetch or write it again"
        ) from None
