"""Hugging Face datasets: on disk by the Hub's rules, and from a local server that speaks the Hub's protocol."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote

import datasets
import pytest

from graftwork.config import DatasetParams
from graftwork.data import hub as hub_module
from graftwork.data.hub import EVERY, bound_of
from graftwork.data.names import Datasets, look_up
from graftwork.data.readers import OpenRequest, read_rows
from graftwork.errors import DataError, UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"prompt": f"Q{number}", "completion": "A"} for number in range(30)]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def opened(path: Path, name: str = "huggingface", **fields: Any) -> Any:
    params = DatasetParams(dataset_name=name, dataset_path=str(path), **fields)
    spec, options = look_up(params)
    return spec.open(OpenRequest(dataset=params, params=options))


def data(source: Any) -> list[dict[str, Any]]:
    return [dict(row.data) for row in source.rows()]


# Names


def test_a_name_is_a_reader_or_a_hub_id_or_an_error_with_the_nearest() -> None:
    assert Datasets()["tatsu-lab/alpaca"].name == "tatsu-lab/alpaca"
    assert Datasets()["TEXT_SFT_jsonl"].name == "text_sft"
    with pytest.raises(UnknownNameError, match=r"there is no dataset 'text_stf'; did you mean text_sft"):
        Datasets()["text_stf"]
    for name in ("a/b/c", "../up", "org/", "org/a--b", "-a/b"):
        with pytest.raises(UnknownNameError, match="there is no dataset"):
            Datasets()[name]


# On disk


def test_a_folder_by_the_rules_of_the_hub(tmp_path: Path) -> None:
    """Splits by the names of the files, as `datasets` reads them."""
    (tmp_path / "train.jsonl").write_text(lines(ROWS[:20]))
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[20:]).encode()))
    for split, rows in (("train", ROWS[:20]), ("test", ROWS[20:])):
        assert data(opened(tmp_path, split=split)) == rows
        theirs = datasets.load_dataset(str(tmp_path), split=split, cache_dir=str(tmp_path / ".cache"))
        assert theirs.to_list() == rows
    assert data(opened(tmp_path, "org/name")) == ROWS[:20], "a copy of a dataset on the Hub"
    with pytest.raises(DataError, match=r"there is no split 'tset'; did you mean test"):
        opened(tmp_path, split="tset")


def test_subsets_are_those_of_the_card(tmp_path: Path) -> None:
    card = {"configs": [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in ("easy", "hard")]}
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    for number, name in enumerate(("easy", "hard")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text(lines(ROWS[10 * number : 10 * number + 10]))
    assert data(opened(tmp_path, subset="hard")) == ROWS[10:20]
    with pytest.raises(DataError, match=r"'eazy' not found\. Available: \['easy', 'hard'\]"):
        opened(tmp_path, subset="eazy")


@pytest.mark.parametrize(
    "piece",
    ["[:10]", "[5:]", "[5:12]", "[-4:]", "[:-25]", "[10%:50%]", "[:33%]", "[-10%:]", "[40:50]", "[7:3]", "[:0]", "[:]"],
)  # fmt: skip
def test_a_piece_of_a_split_is_the_one_of_datasets(tmp_path: Path, piece: str) -> None:
    (tmp_path / "train.jsonl").write_text(lines(ROWS))
    theirs = datasets.Dataset.from_list(ROWS)
    [instruction] = datasets.ReadInstruction.from_spec(f"train{piece}").to_absolute({"train": len(ROWS)})
    expected = theirs.to_list()[instruction.from_ : instruction.to]
    source = opened(tmp_path, split=f"train{piece}", dataset_kwargs={"schema": "chat"})
    assert data(source) == expected
    rows = list(source.rows())
    for index, row in enumerate(rows):
        assert [dict(one.data) for one in source.rows(row.after)] == expected[index + 1 :]


@pytest.mark.parametrize(
    ("piece", "looked"), [("[90%:]", 3000), ("[-300:]", 3000), ("[10%:50%]", 3000), ("[:40]", 40), ("[20:]", 20)]
)
def test_a_piece_is_found_in_one_pass_and_then_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: str, looked: int
) -> None:
    """Counted are the rows that are read. Beside the pass, a bound is looked for between two that were remembered."""
    path = tmp_path / "train.jsonl"
    path.write_text(lines([{"text": f"T{number}"} for number in range(3000)]))
    read: list[Any] = []

    def counting(*args: Any) -> Any:
        for row in read_rows(*args):
            read.append(row)
            yield row

    monkeypatch.setattr(hub_module, "read_rows", counting)
    given = {"split": f"train{piece}", "dataset_kwargs": {"schema": "text"}}
    source = opened(tmp_path, **given)
    assert looked <= len(read) <= looked + min(looked, 2 * EVERY)
    [instruction] = datasets.ReadInstruction.from_spec(f"train{piece}").to_absolute({"train": 3000})
    wanted = [{"text": f"T{number}"} for number in range(3000)][instruction.from_ : instruction.to]
    assert data(source) == wanted
    read.clear()
    again = opened(tmp_path, **given)
    assert not read, "it is remembered"
    assert data(again) == wanted
    path.write_text(lines([{"text": f"U{number}"} for number in range(3100)]))
    assert data(opened(tmp_path, **given))[-1]["text"].startswith("U"), "a file that changed is looked at anew"


def test_halves_of_a_row_are_rounded_as_in_datasets() -> None:
    for total in range(1, 60):
        for percent in range(0, 101, 5):
            [theirs] = datasets.ReadInstruction.from_spec(f"a[:{percent}%]").to_absolute({"a": total})
            assert bound_of(f"{percent}%", total) == (total if theirs.to is None else theirs.to)


def test_a_split_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split 'train\[a:b\]': expected a name, or a piece of one: train\[:100\]"):
        opened(tmp_path, split="train[a:b]", dataset_kwargs={"schema": "chat"})


@pytest.mark.parametrize(
    ("row", "kwargs", "schema"),
    [
        ({"text": "T"}, {}, "text"),
        ({"messages": []}, {}, "chat"),
        ({"chosen": "A", "rejected": "B"}, {}, "preference"),
        ({"body": "T"}, {"text_field": "body"}, "text"),
        ({"dialog": []}, {"messages_field": "dialog"}, "chat"),
        ({"body": "T"}, {"schema": "Text", "text_field": "body"}, "text"),
    ],
)
def test_what_it_holds_is_told_by_its_rows_or_its_options(
    tmp_path: Path, row: dict[str, Any], kwargs: dict[str, Any], schema: str
) -> None:
    (tmp_path / "a.jsonl").write_text("no json\n" + lines([row]))
    spec, _ = look_up(DatasetParams(dataset_name="hf", dataset_path=str(tmp_path), dataset_kwargs=kwargs))
    assert spec.schema == schema


def test_rows_of_which_nothing_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines([{"body": "T", "n": 1}]))
    said = r"what its rows are cannot be told from the fields body, n; set dataset_kwargs\.schema \(text, chat or"
    with pytest.raises(DataError, match=said):
        opened(tmp_path)


@pytest.mark.parametrize("row", [{"text": "T", "n": 1}, {"dialog": [], "n": 1}])
def test_a_wrong_name_of_the_turns_is_an_error(tmp_path: Path, row: dict[str, Any]) -> None:
    """Rows with another field that tells what they are would be taken for that."""
    (tmp_path / "a.jsonl").write_text("no json\n" + lines([row]))
    with pytest.raises(
        DataError,
        match=rf"dataset {tmp_path}: dataset_kwargs\.messages_field is 'dialogs', and the row's fields are "
        rf"{', '.join(row)}; name the one that holds the turns, or leave messages_field out",
    ):
        opened(tmp_path, dataset_kwargs={"messages_field": "dialogs"})


def test_a_text_file_is_a_row_for_each_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one\n\ntwo\r\n three\n")
    source = opened(tmp_path)
    assert data(source) == [{"text": "one"}, {"text": "two"}, {"text": " three"}]
    rows = list(source.rows())
    assert [[one.where for one in source.rows(row.after)] for row in rows] == [
        [one.where for one in rows[index + 1 :]] for index in range(3)
    ]


def test_code_and_folders_without_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "one.py").write_text("raise SystemExit('run')")
    with pytest.raises(DataError, match=r"one comes as code of its own, which is never run here; take"):
        opened(tmp_path / "one", dataset_kwargs={"schema": "chat"})
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "README.md").write_text("nothing")
    with pytest.raises(DataError, match=r"two: there are no data files in it \(.*\); give another"):
        opened(tmp_path / "two", dataset_kwargs={"schema": "chat"})
    with pytest.raises(DataError, match=r"dataset huggingface has no dataset_path; set it to a file or folder"):
        params = DatasetParams(dataset_name="huggingface", dataset_kwargs={"schema": "chat"})
        spec, options = look_up(params)
        spec.open(OpenRequest(dataset=params, params=options))


# From a server

COMMIT = "b" * 40
FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "data/train-00000-of-00002.jsonl": lines(ROWS[:12]).encode(),
    "data/train-00001-of-00002.jsonl": lines(ROWS[12:20]).encode(),
    "data/test-00000-of-00001.jsonl": lines(ROWS[20:]).encode(),
}


class Hub(BaseHTTPRequestHandler):
    """One dataset, ``org/rows``."""

    sent: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        size = int(self.headers.get("content-length", 0))
        asked = self.rfile.read(size).decode()
        wanted = json.loads(asked)["paths"] if asked.startswith("{") else []
        entries = [entry for entry in self.tree("", recursive=True) if entry["path"] in wanted]
        self.reply(200, json.dumps(entries).encode(), body=True)

    def tree(self, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
        files = [name for name in FILES if not folder or name.startswith(f"{folder}/")]
        entries: list[dict[str, Any]] = [
            {"type": "file", "path": name, "size": len(FILES[name]), "oid": hashlib.sha1(FILES[name]).hexdigest()}
            for name in files
        ]
        folders = {name.rpartition("/")[0] for name in FILES if "/" in name} - {folder}
        entries += [{"type": "directory", "path": name, "size": 0, "oid": "d" * 40} for name in sorted(folders)]
        depth = folder.count("/") + bool(folder)
        return [entry for entry in entries if recursive or entry["path"].count("/") == depth]

    def answer(self, *, body: bool) -> None:
        path, _, query = unquote(self.path).partition("?")
        if "org/rows" not in path:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
        elif "/tree/" in path:
            folder = path.split("/tree/")[1].partition("/")[2]
            self.reply(200, json.dumps(self.tree(folder, recursive="recursive=True" in query)).encode(), body=body)
        elif path.startswith("/api/datasets/"):
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "org/rows", "sha": COMMIT, "siblings": siblings, "private": False, "downloads": 0, "tags": []}
            self.reply(200, json.dumps(info).encode(), body=body)
        elif (name := path.split("/resolve/")[-1].partition("/")[2]) in FILES:
            if body:
                self.sent.append(name)
            headers = {"ETag": hashlib.sha256(FILES[name]).hexdigest(), "X-Repo-Commit": COMMIT}
            self.reply(200, FILES[name], headers, body=body)
        else:
            self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)

    def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


SCRIPT = """
import json, sys
from itertools import islice
from graftwork.config import DatasetParams
from graftwork.data.names import look_up
from graftwork.data.readers import OpenRequest
from graftwork.errors import GraftworkError

name, split, count = sys.argv[1:]
params = DatasetParams(dataset_name=name, split=split)
try:
    spec, options = look_up(params)
    source = spec.open(OpenRequest(dataset=params, params=options))
    rows = list(islice(source.rows(), int(count)))
    rest = [row.data["prompt"] for row in source.rows(rows[0].after)]
    said = {"schema": spec.schema, "rows": [row.data["prompt"] for row in rows], "rest": rest,
            "where": rows[0].where, "revisions": source.revisions}
except GraftworkError as error:
    said = {"error": str(error)}
print(json.dumps(said))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    """``hub(name, split, count)`` reads rows in a process whose Hub is a server here, or nowhere (``down=True``)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Hub.sent.clear()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}

    def read(name: str, split: str = "train", count: int = 99, *, down: bool = False) -> dict[str, Any]:
        place = f"http://127.0.0.1:{9 if down else server.server_port}"
        ours = {"HF_ENDPOINT": place, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", SCRIPT, name, split, str(count)]
        done = subprocess.run(command, env={**kept, **ours}, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    try:
        yield read
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_dataset_on_the_hub_is_read_file_by_file_and_kept(hub: Any) -> None:
    prompts = [row["prompt"] for row in ROWS]
    found = hub("org/rows")
    assert (found["schema"], found["rows"], found["rest"]) == ("chat", prompts[:20], prompts[1:20])
    assert found["where"].endswith("data/train-00000-of-00002.jsonl:1")
    place = f"hf://datasets/org/rows@{COMMIT}/data/train-0000{{}}-of-00002.jsonl"
    assert found["revisions"] == {place.format(number): COMMIT for number in (0, 1)}
    assert not [name for name in Hub.sent if "test" in name], "only what is asked for is fetched"
    assert hub("org/rows", "test[2:5]")["rows"] == prompts[22:25]
    # What was fetched is read without the Hub too.
    assert hub("org/rows", down=True)["rows"] == prompts[:20]


def test_what_the_hub_has_not(hub: Any) -> None:
    assert hub("org/nothing")["error"].startswith(
        "dataset org/nothing: the Hub has none of that name, or shows it to others only; check the name, and log in"
    )
    assert "there is no split 'trian'; did you mean train" in hub("org/rows", "trian")["error"]
    assert hub("org/rows", down=True)["error"].startswith(
        "dataset org/rows: the Hub cannot be reached, and its split train was not fetched before ("
    )
