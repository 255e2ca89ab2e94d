"""Files to rows: text, JSON, CSV, Parquet and Arrow, whole or streamed, from any position.

A position is ``(file, offset)``: the index of the file among the source's files, and the number of bytes (JSON
lines, CSV, text) or of rows (JSON, Parquet, Arrow) already read from it. A reader can start at any position that it
gave out.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from graftwork.data.conversations import verdict_of
from graftwork.data.files import (
    Item,
    Reader,
    Unreadable,
    kind_of,
    read_documents,
    read_json,
    read_json_lines,
)
from graftwork.data.tables import read_arrow, read_csv, read_parquet
from graftwork.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import BaseModel

    from graftwork.config import DatasetParams

__all__ = [
    "START",
    "FileSource",
    "Judged",
    "OpenRequest",
    "Position",
    "Reader",
    "Row",
    "RowSource",
    "find_files",
    "open_chat",
    "open_text",
    "read_json_lines",
]

Position = tuple[int, int]
START: Position = (0, 0)

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""What holds rows. Each but the last two may be gzipped (``.jsonl.gz``)."""
SUFFIXES = {
    "text": (".txt", ".text", ".md", ".rst", *TABLES),
    "chat": TABLES,
    "preference": TABLES,
    "image-chat": TABLES,
}
LINES = (".jsonl", ".ndjson", ".txt", "")
"""Of rows, what is read as JSON lines where a file is named that ends so."""
PACKED = (".zst", ".xz", ".bz2", ".zip", ".7z", ".tar", ".tgz", ".rar")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """What a dataset's ``open`` gets: its section of the configuration and its validated option block."""

    dataset: DatasetParams
    params: BaseModel | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its data, where it stands (``file.jsonl:12``), and the position just after it.

    The data of a row that cannot be read raise a :class:`DataError` when they are looked at.
    """

    data: Mapping[str, Any]
    where: str
    after: Position


class RowSource(Protocol):
    """The rows of one dataset, in file order."""

    def rows(self, start: Position = START) -> Iterator[Row]:
        """The rows from a position on. Raises :class:`DataError` at a file that cannot be read."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read; their content is the dataset's fingerprint."""
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """Rows of a list of files, each read by the reader of its suffix, or by ``read_other``."""

    files: tuple[Path, ...]
    read_other: Reader
    delimiter: str | None = None

    def rows(self, start: Position = START) -> Iterator[Row]:
        first, offset = start
        for number, path in enumerate(self.files[first:], first):
            yield from read_rows(path, number, offset, reader_of(path, self.read_other, self.delimiter))
            offset = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """The rows of a source of which each has to say with ``label`` whether its last turn, the assistant's, is a good
    answer; one that does not is a row that cannot be used.
    """

    source: RowSource
    messages_field: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return self.source.files

    @property
    def revisions(self) -> Mapping[str, str]:
        """As of a source on the Hub; of files there are none."""
        return getattr(self.source, "revisions", {})

    def rows(self, start: Position = START) -> Iterator[Row]:
        for row in self.source.rows(start):
            try:
                verdict_of(row, self.messages_field)
            except DataError as error:
                yield Row(Unreadable(str(error)), row.where, row.after)
            else:
                yield row


def read_rows(path: Path, number: int, offset: int, read: Reader) -> Iterator[Row]:
    """The rows of file ``number``, from ``offset`` on."""
    try:
        for data, where, after in read(path, offset):
            yield Row(data, where, (number, after))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip: {error}; fetch or pack the file again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def reader_of(path: Path, read_other: Reader, delimiter: str | None = None) -> Reader:
    """The reader of the file's suffix."""
    kind = kind_of(path)
    if kind in (".csv", ".tsv"):
        return partial(read_csv, delimiter=delimiter)
    readers: dict[str, Reader] = {
        ".jsonl": read_json_lines,
        ".ndjson": read_json_lines,
        ".json": read_json,
        ".parquet": read_parquet,
        ".arrow": read_arrow,
    }
    return readers.get(kind, read_other)


def open_text(request: OpenRequest) -> FileSource:
    """Documents: each text file is one (or one per ``separator``), each row of another one in its ``text_field``."""
    separator: str | None = getattr(request.params, "separator", None)
    field: str = getattr(request.params, "text_field", "text")

    def read_text(path: Path, offset: int) -> Iterator[Item]:
        for text, where, after in read_documents(path, offset, separator):
            yield {field: text}, where, after

    return FileSource(find_files(request.dataset, "text"), read_text, delimiter_of(request))


def open_chat(request: OpenRequest) -> FileSource:
    """Conversations, in any of the shapes that :mod:`graftwork.data.conversations` knows."""
    return FileSource(find_files(request.dataset, "chat"), read_json_lines, delimiter_of(request))


def open_pairs(request: OpenRequest) -> FileSource:
    """Preference pairs; :mod:`graftwork.data.preference` knows their shapes."""
    return FileSource(find_files(request.dataset, "preference"), read_json_lines, delimiter_of(request))


def open_images(request: OpenRequest) -> FileSource:
    """Conversations with images."""
    return FileSource(find_files(request.dataset, "image-chat"), read_json_lines, delimiter_of(request))


def delimiter_of(request: OpenRequest) -> str | None:
    """What separates the cells of a CSV file, where the options say so."""
    return getattr(request.params, "delimiter", None)


# Which files


def find_files(dataset: DatasetParams, schema: str) -> tuple[Path, ...]:
    """The file, the files of a folder in the order of their names, or the saved dataset that ``dataset_path`` means."""
    if not dataset.dataset_path:
        raise DataError(f"dataset {dataset.dataset_name} has no dataset_path; set it to a file or folder")
    path = Path(dataset.dataset_path)
    if path.is_file():
        return (known_kind(path, schema),)
    if not path.is_dir():
        raise DataError(f"dataset_path {path} does not exist (looked from {Path.cwd()}); give a file or folder")
    saved = saved_files(path, dataset.split)
    if saved is not None:
        return saved
    suffixes = SUFFIXES[schema]
    found = (file for file in path.rglob("*") if file.is_file() and kind_of(file) in suffixes)
    files = tuple(sorted(file for file in found if not is_hidden(file.relative_to(path))))
    if not files:
        raise DataError(f"dataset_path {path} has no file that ends in {', '.join(suffixes)}; add one or name a file")
    return files


def is_hidden(file: Path) -> bool:
    """Whether it, or a folder that it lies in, begins with a dot: what editors and file managers leave behind."""
    return any(part.startswith(".") for part in file.parts)


def known_kind(path: Path, schema: str) -> Path:
    """The file, if it is of a kind that is read."""
    kind = kind_of(path)
    if path.suffix.lower() in PACKED:
        raise DataError(f"dataset_path {path}: {path.suffix} files are not unpacked here; unpack it, or use .gz")
    if schema != "text" and kind not in (*TABLES, *LINES):
        known = ", ".join(TABLES)
        raise DataError(f"dataset_path {path}: rows are read from {known} files, not {kind}; convert or rename it")
    return path


def is_saved(path: Path) -> bool:
    """Whether the folder is what `datasets` writes with ``save_to_disk``, of one split or of several."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def saved_files(path: Path, split: str) -> tuple[Path, ...] | None:
    """The Arrow files of a dataset that ``save_to_disk`` wrote, in order; None where the folder is none."""
    if not is_saved(path):
        return None
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
        if split not in splits:
            raise DataError(f"dataset_path {path}: there is no split {split!r}; {did_you_mean(split, splits)}")
        path = path / split
    return tuple(path / name for name in saved_names(path / "state.json"))


def saved_names(path: Path) -> list[str]:
    """The names of the Arrow files in a ``state.json``. Whoever made the dataset wrote it, so each has to be one of a
    file in its own folder.
    """
    try:
        state = json.loads(path.read_text("utf-8"))
        names = [file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: lists no data files ({error!r:.80}); save the dataset again") from None
    for name in names:
        if not isinstance(name, str) or not is_inside(name):
            raise DataError(
                f"{path}: names the data file {name!r:.120}, which does not lie in the dataset's own folder; nothing "
                "is read from elsewhere. Save the dataset again, or mend the name"
            )
    return names


def is_inside(name: str) -> bool:
    """Whether a name, joined to a folder, cannot lead out of it, on any system."""
    parts = re.split(r"[/\\]", name)
    return bool(name) and ".." not in parts and parts[0] != "" and ":" not in parts[0] and "\0" not in name
