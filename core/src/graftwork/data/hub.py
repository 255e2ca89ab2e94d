"""Datasets of Hugging Face: a folder as `datasets` saves or shares it, or a repository on the Hub.

Which files make up a split is for the `datasets` library to say; the rows are read by our own readers, file by file
as they are needed. So every position can be resumed, the same rows come from a copy on disk as from the Hub, and no
code of a repository is ever run.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.data.conversations import require_field
from graftwork.data.files import Item, decode, kind_of, open_file, read_documents, skip_lines
from graftwork.data.readers import START, TABLES, Position, Row, RowSource, is_saved, read_rows, reader_of, saved_files
from graftwork.data.shapes import shape_of
from graftwork.errors import DataError, MissingExtraError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from graftwork.data.files import Reader
    from graftwork.data.params import HubDatasetParams
    from graftwork.data.readers import OpenRequest
    from graftwork.specs import Schema

CLIENTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub")
"""Whose errors say that the Hub cannot be asked."""
EVERY = 1024
"""Rows after which a position is remembered while rows are counted: all of them would be too many of a large set."""
LOOKED_AT = 20
"""Rows that are tried to tell what a dataset holds."""
_PLACE = re.compile(r"hf://datasets/(?P<repository>[^@]+)@(?P<revision>[^/]+)/(?P<file>.+)")
_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True, slots=True)
class HubSource:
    """Rows of the data files of a split, local paths or places on the Hub; each is fetched when it is its turn."""

    places: tuple[str, ...]
    read_other: Reader
    delimiter: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that lie here."""
        return tuple(Path(place) for place in self.places if not _PLACE.fullmatch(place))

    @property
    def revisions(self) -> dict[str, str]:
        """The files that lie on the Hub, each with the commit that fixes its content."""
        matches = {place: _PLACE.fullmatch(place) for place in self.places}
        return {place: match["revision"] for place, match in matches.items() if match}

    def rows(self, start: Position = START) -> Iterator[Row]:
        first, offset = start
        for number, place in enumerate(self.places[first:], first):
            path = local_path(place)
            yield from read_rows(path, number, offset, reader_of(path, self.read_other, self.delimiter))
            offset = 0


@dataclass(frozen=True, slots=True)
class Sliced:
    """A piece of a source: the rows after the position ``begin`` up to the one that ends at ``end``, or to the last."""

    source: HubSource
    begin: Position
    end: Position | None

    @property
    def files(self) -> tuple[Path, ...]:
        return self.source.files

    @property
    def revisions(self) -> dict[str, str]:
        return self.source.revisions

    def rows(self, start: Position = START) -> Iterator[Row]:
        if self.end is not None and max(start, self.begin) >= self.end:
            return
        for row in self.source.rows(max(start, self.begin)):
            if self.end is not None and row.after > self.end:
                return
            yield row


def open_huggingface(request: OpenRequest) -> RowSource:
    """The rows of one split of a dataset on disk (``dataset_path``) or on the Hub (``dataset_name: org/name``)."""
    from graftwork.data.params import HubDatasetParams

    dataset, params = request.dataset, request.params
    assert isinstance(params, HubDatasetParams)
    match = _SPLIT.fullmatch(dataset.split)
    if not match:
        raise DataError(f"split {dataset.split!r}: expected a name, or a piece of one: train[:100] or train[90%:]")
    if dataset.dataset_path:
        places = folder_places(Path(dataset.dataset_path), dataset.subset, match["name"])
    else:
        places = hub_places(dataset.dataset_name, dataset.subset, match["name"])
    known = (*TABLES, ".txt")
    if other := next((place for place in places if kind_of(Path(place)) not in known), None):
        raise DataError(f"{other}: rows are read from {', '.join(known)} files; convert it, or take another dataset")
    source = source_of(places, params)
    if match["start"] is None and match["stop"] is None:
        return source
    states = tuple((state.st_size, state.st_mtime_ns) for state in (path.stat() for path in source.files))
    return Sliced(source, *find_piece(places, params.model_dump_json(), match["start"], match["stop"], states))


def source_of(places: tuple[str, ...], params: HubDatasetParams) -> HubSource:
    """The rows of the files at these places."""
    return HubSource(places, partial(read_lines, params=params), params.delimiter)


def read_lines(path: Path, offset: int, params: HubDatasetParams) -> Iterator[Item]:
    """A text file as `datasets` reads it: a row for each line that is not blank; else what is between separators."""
    if params.separator is not None:
        for text, where, after in read_documents(path, offset, params.separator):
            yield {params.text_field: text}, where, after
        return
    with open_file(path) as file:
        number = skip_lines(file, offset)
        for line in iter(file.readline, b""):
            number, offset = number + 1, offset + len(line)
            text = decode(line, f"{path}:{number}", mark=offset == len(line)).rstrip("\r\n")
            if text.strip():
                yield {params.text_field: text}, f"{path}:{number}", offset


# What it holds


def recognise(request: OpenRequest) -> Schema:
    """The schema that ``dataset_kwargs.schema`` names, or that the first rows have."""
    params: Any = request.params
    if params.rows_are is not None:
        schema: Schema = params.rows_are
        return schema
    fields: list[str] = []
    for _, row in zip(range(LOOKED_AT), open_huggingface(request).rows(), strict=False):
        try:
            fields = fields or list(row.data)
            found = shape_of(row.data, params.messages_field, params.text_field)
            if found == "text":  # told by another field than the one with the turns: the name may be wrong
                require_field(row.data, params.messages_field, row.where)
        except DataError:
            continue
        if found is not None:
            return found
    name = request.dataset.dataset_path or request.dataset.dataset_name
    if fields:
        require_field(dict.fromkeys(fields), params.messages_field, f"dataset {name}")
    raise DataError(
        f"dataset {name}: what its rows are cannot be told from the fields {', '.join(fields) or 'none'}; set "
        "dataset_kwargs.schema (text, chat or preference), with text_field or messages_field where the text or the "
        "turns have another name"
    )


# Which files


def folder_places(path: Path, subset: str | None, split: str) -> tuple[str, ...]:
    """The files of a split in a folder: of a saved dataset, or by the rules that the Hub has for a repository."""
    if path.is_file():
        return (str(path),)
    if not path.is_dir():
        raise DataError(f"dataset_path {path} does not exist (looked from {Path.cwd()}); give a file or folder")
    saved = saved_files(path, split) if is_saved(path) else None
    if saved is not None:
        return tuple(str(file) for file in saved)
    return split_files(str(path.resolve()), subset, split)


def hub_places(repository: str, subset: str | None, split: str) -> tuple[str, ...]:
    """The files of a split on the Hub, or, where that cannot be reached, in the copy that was fetched before."""
    from graftwork.data.names import is_hub_id

    if not is_hub_id(repository):
        raise DataError(f"dataset {repository} has no dataset_path; set it to a file or folder")
    try:
        return split_files(repository, subset, split)
    except ConnectionError as error:
        copy, reason = cached_folder(repository), str(error)[:120]
    with suppress(DataError):
        if copy is not None:
            return split_files(copy, subset, split)
    raise DataError(
        f"dataset {repository}: the Hub cannot be reached, and its split {split} was not fetched before ({reason}); go "
        "online, or give a copy in dataset_path"
    )


def split_files(path: str, subset: str | None, split: str) -> tuple[str, ...]:
    """The data files of a split as `datasets` finds them: by the repository's card, or by the names of its files."""
    by_split = data_files(path, subset)
    if split not in by_split:
        raise DataError(f"dataset {path}: there is no split {split!r}; {did_you_mean(split, list(by_split))}")
    return tuple(str(file) for file in by_split[split])


def data_files(path: str, subset: str | None) -> Mapping[str, list[str]]:
    """The data files by split. Raises ConnectionError where the Hub cannot be asked."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f'dataset {path} needs the library datasets: pip install "graftwork[models]"'
        ) from error
    try:
        found = datasets.load_dataset_builder(path, name=subset).config.data_files
    except Exception as error:
        raise (told(path, error) or error) from None
    if not found:
        raise ConnectionError("only a prepared copy is cached")
    return {str(split): files for split, files in found.items()}


def told(path: str, error: Exception) -> Exception | None:
    """What went wrong when `datasets` looked for the files, in our words; None where that is not known."""
    text, kind = str(error), type(error)
    if kind.__name__ == "DatasetNotFoundError":
        return DataError(
            f"dataset {path}: the Hub has none of that name, or shows it to others only; check the name, and log in "
            "with `hf auth login` where it is private or gated"
        )
    # Whichever client the Hub's library has: its errors share no class with another's.
    if isinstance(error, ConnectionError) or kind.__module__.partition(".")[0] in CLIENTS:
        return ConnectionError(text)
    if isinstance(error, FileNotFoundError):
        return DataError(f"dataset {path}: there are no data files in it ({text[:160]}); give another")
    if isinstance(error, RuntimeError) and "script" in text:
        return DataError(
            f"dataset {path} comes as code of its own, which is never run here; take one that comes as data files"
        )
    return DataError(f"dataset {path}: {text[:300]}") if isinstance(error, ValueError) else None


def cached_folder(repository: str) -> str | None:
    """Where a copy of the repository lies that was fetched before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(repository, repo_type="dataset", local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def local_path(place: str) -> Path:
    """The file on disk; one on the Hub is fetched into the Hub's own cache."""
    match = _PLACE.fullmatch(place)
    if not match:
        return Path(place)
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(match["repository"], match["file"], repo_type="dataset", revision=match["revision"])
        )
    except OSError as error:
        raise DataError(
            f"{place}: cannot be fetched: {str(error)[:160]}; run again, or give a copy in dataset_path"
        ) from None


# A piece of a split


@lru_cache(maxsize=64)
def find_piece(
    places: tuple[str, ...], options: str, start: str | None, stop: str | None, states: tuple[tuple[int, int], ...]
) -> tuple[Position, Position | None]:
    """Between which positions the rows ``[start:stop]`` lie: numbers or percents, counted from the end where negative.

    A run opens its data several times, and this reads them, so it is remembered; ``states`` (size and time of change of
    each local file) are there for that. Plain numbers need no row behind the piece; others need all, once.
    """
    from graftwork.data.params import HubDatasetParams

    source = source_of(places, HubDatasetParams.model_validate_json(options))
    bounds = [bound for bound in (start, stop) if bound is not None]
    relative = any(bound.startswith("-") or bound.endswith("%") for bound in bounds)
    marks, total = count_rows(source, None if relative else max(int(bound) for bound in bounds))
    first, last = (bound_of(bound, total) for bound in (start, stop))
    return position_after(source, first or 0, marks, total), (
        None if last is None else position_after(source, last, marks, total)
    )


def count_rows(source: HubSource, limit: int | None) -> tuple[list[Position], int]:
    """How many rows there are, at most ``limit``, and the position after each :data:`EVERY` of them."""
    marks, total = [START], 0
    for row in islice(source.rows(), limit):
        total += 1
        if total % EVERY == 0:
            marks.append(row.after)
    return marks, total


def position_after(source: HubSource, number: int, marks: Sequence[Position], total: int) -> Position:
    """The position after so many rows, or after the last."""
    number = min(number, total)
    position = marks[number // EVERY]
    for row in islice(source.rows(position), number % EVERY):
        position = row.after
    return position


def bound_of(bound: str | None, total: int | None) -> int | None:
    """A bound as a number of rows; percents are rounded to the closest row, as in `datasets`."""
    if bound is None:
        return None
    if bound.endswith("%"):
        assert total is not None
        number = round(int(bound[:-1]) * total / 100)
    else:
        number = int(bound)
    if number < 0:
        assert total is not None
        number = max(0, number + total)
    return number
