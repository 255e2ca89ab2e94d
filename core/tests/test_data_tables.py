"""CSV, Parquet, Arrow, gzip and saved datasets: the rows that `datasets` and `csv` read, from every position."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graftwork.config import DatasetParams
from graftwork.data.params import ChatDatasetParams
from graftwork.data.readers import START, FileSource, OpenRequest, open_chat, open_text
from graftwork.data.tables import read_csv
from graftwork.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"prompt": f'Frage {number} „ä“,\n"zwei"', "completion": f"{number}\ttabbed"} for number in range(700)]


def source(path: Path, opener: Any = open_chat, **options: Any) -> FileSource:
    split = options.pop("split", "train")
    dataset = DatasetParams(dataset_name="text_sft", dataset_path=str(path), split=split)
    found: FileSource = opener(OpenRequest(dataset=dataset, params=ChatDatasetParams(**options)))
    return found


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_arrow(path: Path, *, stream: bool) -> Path:
    table = pa.Table.from_pylist(ROWS)
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, opened(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=300):
            writer.write_batch(batch)
    return path


def write_as(folder: Path, name: str) -> Path:
    """The rows in each format, written by the library that is known for it."""
    path = folder / name.removesuffix(".gz")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if name.startswith("stream"):
        return write_arrow(path, stream=True)
    if ".arrow" in name:
        return write_arrow(path, stream=False)
    if ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=128)
    elif ".csv" in name or ".tsv" in name:
        write_csv(path, ROWS, "\t" if ".tsv" in name else ",")
    else:
        path.write_text(json.dumps(ROWS) if name.startswith("list") else lines)
    if name.endswith(".gz"):
        packed = folder / name
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        return packed
    return path


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "list.json", "list.json.gz", "lines.json", "lines.json.gz", "a.csv", "a.csv.gz",
     "a.tsv", "a.tsv.gz", "a.parquet", "a.arrow", "stream.arrow"],
)  # fmt: skip
def test_every_format_gives_the_rows_and_resumes_after_each(tmp_path: Path, name: str) -> None:
    path = write_as(tmp_path, name)
    opened = source(tmp_path)
    assert opened.files == (path,)
    rows = list(opened.rows())
    assert [dict(row.data) for row in rows] == ROWS
    assert [row.after for row in rows] == sorted({row.after for row in rows}), "each position is its own, in order"
    for index in (0, 1, 127, 128, 299, 300, 400, 698, 699):
        rest = list(opened.rows(rows[index].after))
        assert [(dict(row.data), row.where, row.after) for row in rest] == [
            (dict(row.data), row.where, row.after) for row in rows[index + 1 :]
        ]


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_the_rows_are_those_of_datasets(tmp_path: Path, kind: str) -> None:
    write_as(tmp_path, f"a.{kind}" if kind != "json" else "a.jsonl")
    theirs = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert [dict(row.data) for row in source(next(tmp_path.glob("a.*"))).rows()] == theirs.to_list()


def test_a_gzipped_text_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("Grüße\n".encode()))
    opened = source(tmp_path, open_text)
    assert [row.data["text"] for row in opened.rows()] == ["Grüße\n"]
    assert [list(opened.rows(row.after)) for row in opened.rows()] == [[]]


def test_a_saved_dataset_and_its_splits(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"), num_shards=3)
    opened = source(tmp_path / "one")
    assert len(opened.files) == 3
    assert [dict(row.data) for row in opened.rows()] == ROWS
    both = datasets.DatasetDict({"train": whole.select(range(5)), "test": whole.select(range(5, 8))})
    both.save_to_disk(str(tmp_path / "two"))
    assert [dict(row.data) for row in source(tmp_path / "two").rows()] == ROWS[:5]
    assert [dict(row.data) for row in source(tmp_path / "two", split="test").rows()] == ROWS[5:8]
    with pytest.raises(DataError, match=r"two: there is no split 'tests'; did you mean test"):
        source(tmp_path / "two", split="tests")


def test_values_that_json_does_not_know_become_texts(tmp_path: Path) -> None:
    day, moment = datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4)
    pq.write_table(
        pa.Table.from_pylist([{"a": {"day": day, "at": moment}, "b": [b"\x00\xff"]}]), tmp_path / "a.parquet"
    )
    [row] = source(tmp_path).rows()
    assert row.data == {"a": {"day": "2026-01-02", "at": "2026-01-02T03:04:00"}, "b": ["AP8="]}


def test_records_that_are_none(tmp_path: Path) -> None:
    text = 'prompt,completion\n"a","b"\n\nonly one\n"a"b,c\nx,y,z\n"fine\nover two lines",d\n"never closed,e\n'
    (tmp_path / "a.csv").write_bytes(text.encode())
    said = {}
    for row in source(tmp_path).rows():
        number = row.where.rpartition(":")[2]
        try:
            said[number] = list(row.data.values())
        except DataError as error:
            said[number] = str(error).partition(f"a.csv:{number}: ")[2]
    assert said["2"] == ["a", "b"]
    assert said["4"] == ("1 cells, but the first line names 2 columns; quote a cell that holds ',' or a line break")
    assert said["5"].startswith("not CSV: ',' expected after '\"'; mend or remove")
    assert said["6"].startswith("3 cells, but the first line names 2 columns")
    assert said["7"] == ["fine\nover two lines", "d"]
    assert said["9"].startswith("not CSV: unexpected end of data")
    assert len(said) == 6


def test_a_csv_with_another_separator_and_a_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffprompt;completion\r\nä;b\r\n".encode())
    [row] = source(tmp_path, delimiter=";").rows()
    assert (row.data, row.where) == ({"prompt": "ä", "completion": "b"}, f"{tmp_path / 'a.csv'}:2")
    assert list(read_csv(tmp_path / "a.csv", 0, ";"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"a,a\n1,2\n", r"a\.csv:1: the first line must name the columns, each once, and is 'a,a'; write"),
        ("a.csv", b"a,\n1,2\n", r"a\.csv:1: the first line must name the columns"),
        ("a.csv", b"\xff,b\n", r"a\.csv:1: not UTF-8 \(byte 0: 0xff\); convert the file"),
        ("a.parquet", b"PAR1 no", r"a\.parquet: damaged, or no file of its kind: .*; fetch or write it again"),
        ("a.arrow", b"ARROW1 no", r"a\.arrow: damaged, or no file of its kind: .*; fetch or write it again"),
        ("a.arrow", b"nonsense", r"a\.arrow: damaged, or no file of its kind: .*; fetch or write it again"),
        ("a.jsonl.gz", b"not packed", r"a\.jsonl\.gz: damaged gzip: Not a gzipped file .*; fetch or pack the file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-12], r"a\.jsonl\.gz: damaged gzip: .*; fetch or"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(source(tmp_path).rows(START))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.xlsx", r"rows\.xlsx: rows are read from \.jsonl, .*\.arrow files, not \.xlsx; convert or rename it"),
        ("rows.jsonl.zst", r"rows\.jsonl\.zst: \.zst files are not unpacked here; unpack it, or use \.gz"),
    ],
)
def test_kinds_that_are_not_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        source(tmp_path / name)


def test_a_file_that_must_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, offset: int) -> Any:
        raise PermissionError(13, "Permission denied")
        yield

    with pytest.raises(DataError, match=r"a\.txt: cannot be read: Permission denied"):
        list(FileSource((tmp_path / "a.txt",), refuse).rows())


@pytest.mark.parametrize(
    ("name", "mark", "said"),
    [
        ("a.csv", ";", r"has ';' between its names, not ',': set dataset_kwargs: \{delimiter: ';'\} \(or .*: ','"),
        ("a.csv", "\t", r"has a tab between its names, not ',': set dataset_kwargs: \{delimiter: \"\\t\"\}"),
        ("a.tsv", ",", r"has ',' between its names, not a tab: set dataset_kwargs: \{delimiter: ','\}"),
    ],
)
def test_a_header_with_another_delimiter_says_what_to_set(tmp_path: Path, name: str, mark: str, said: str) -> None:
    path = write_csv(tmp_path / name, ROWS[:2], mark)
    with pytest.raises(DataError, match=rf"{name}:1: the first line, .*{said}"):
        list(source(path).rows())
    assert [row.data for row in source(path, delimiter=mark).rows()] == ROWS[:2], "what it says to set reads the file"
    one = tmp_path / "one.csv"
    one.write_text("first;second\nx\n")
    assert [row.data for row in source(one, delimiter=",").rows()] == [{"first;second": "x"}]
