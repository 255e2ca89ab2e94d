"""Files to rows: every format, every position, and what each bad file is told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pytest

from graftwork.config import DatasetParams
from graftwork.data.account import Account, Outcome
from graftwork.data.files import row_place
from graftwork.data.params import ChatDatasetParams, TextDatasetParams
from graftwork.data.readers import START, OpenRequest, find_files, open_chat, open_text
from graftwork.errors import DataError

if TYPE_CHECKING:
    from graftwork.data.readers import FileSource

MARK = b"\xef\xbb\xbf"


def text(path: Path, **options: Any) -> FileSource:
    dataset = DatasetParams(dataset_name="text", dataset_path=str(path))
    return open_text(OpenRequest(dataset=dataset, params=TextDatasetParams(**options)))


def chat(path: Path) -> FileSource:
    dataset = DatasetParams(dataset_name="text_sft", dataset_path=str(path))
    return open_chat(OpenRequest(dataset=dataset, params=ChatDatasetParams()))


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def assert_resumes_anywhere(source: FileSource) -> None:
    """From any row's ``after`` on come the rows that follow it, with the same places."""
    rows = list(source.rows())
    assert list(source.rows(START)) == rows
    for index, row in enumerate(rows):
        assert list(source.rows(row.after)) == rows[index + 1 :]


def test_json_lines(tmp_path: Path) -> None:
    huge = "x" * 3_000_000
    lines = [MARK + b'{"text": "one"}\r\n', b"\r\n", b'{"text": "zwei \xc3\xa4"}\n', b"\n", b"  \n"]
    lines += [json.dumps({"text": huge}).encode() + b"\n", b'{"text": "last, without a newline"}']
    source = text(write(tmp_path / "rows.jsonl", b"".join(lines)))
    rows = list(source.rows())
    assert [row.data["text"] for row in rows] == ["one", "zwei ä", huge, "last, without a newline"]
    assert [row.where.rpartition(":")[2] for row in rows] == ["1", "3", "6", "7"]
    assert_resumes_anywhere(source)


def test_json_list(tmp_path: Path) -> None:
    source = text(write(tmp_path / "rows.json", MARK + json.dumps([{"text": str(i)} for i in range(4)]).encode()))
    assert [(row.data["text"], row.where) for row in source.rows()] == [
        (str(i), f"{tmp_path / 'rows.json'} row {i + 1}") for i in range(4)
    ]
    assert_resumes_anywhere(source)


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    source = text(write(tmp_path / "a.txt", MARK + b"Erste Zeile\nzweite\n"))
    assert [row.data["text"] for row in source.rows()] == ["Erste Zeile\nzweite\n"]
    assert_resumes_anywhere(source)
    assert list(text(write(tmp_path / "blank.txt", "\n \n")).rows()) == []


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", ["", "-----"])
def test_documents_between_separators(tmp_path: Path, end: str, separator: str) -> None:
    lines = ["one", "  indented", separator, separator, "\ufefftwo", separator, "three"]
    source = text(write(tmp_path / "a.txt", MARK + end.join(lines).encode()), separator=separator)
    rows = list(source.rows())
    # Only the first mark is one: what else looks like it is a character of the text.
    assert [row.data["text"] for row in rows] == [f"one{end}  indented", "\ufefftwo", "three"]
    assert [row.where.rpartition(":")[2] for row in rows] == ["1", "5", "7"]
    assert_resumes_anywhere(source)


def test_hidden_files_of_a_folder_are_nobodys_data(tmp_path: Path) -> None:
    folder = tmp_path / ".data"
    for name in ("rows.jsonl", "._rows.jsonl", ".ipynb_checkpoints/rows.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "a"}\n')
    found = find_files(DatasetParams(dataset_name="text", dataset_path=str(folder)), "text")
    assert found == (folder / "rows.jsonl",), "what the folder itself is called does not matter"


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a.jsonl", '{"text": "a1"}\n{"text": "a2"}\n')
    write(tmp_path / "sub" / "c.json", '[{"text": "c"}]')
    write(tmp_path / "ignored.pdf", "text")
    write(tmp_path / "empty.md", "")
    source = text(tmp_path)
    assert [row.data["text"] for row in source.rows()] == ["a1", "a2", "b", "c"]
    assert_resumes_anywhere(source)
    assert [file.name for file in chat(tmp_path).files] == ["a.jsonl", "c.json"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"text": "good"}\n{"text": oops}\n',
            r'a\.jsonl:2: not JSON: .* \(column 10\): \{"text": oops\}; mend',
        ),
        ("a.jsonl", '["a list"]\n', r'a\.jsonl:1: \["a list"\] is not an object; each row must be \{\.\.\.\}'),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl:1: not UTF-8 \(byte 10: 0xff\); convert the file"),
        ("a.jsonl", '{"text": "\\ud800"}\n', r"a\.jsonl:1: not JSON: .*surrogates not allowed"),
        ("a.jsonl", '{"text": ' + "1" * 5000 + "}\n", r"a\.jsonl:1: not JSON: Exceeds the limit"),
        ("a.jsonl", "[" * 200_000, r"a\.jsonl:1: not JSON: maximum recursion"),
        ("a.json", '{"text": "one object"}', r"a\.json: holds a JSON dict, not a list of rows; wrap it in \[ \]"),
        (
            "a.json",
            '[{"text": "good"},\n{"text" "bad"}]',
            r"a\.json:2: not JSON: .*; mend the file, or rename it \.jsonl",
        ),
        ("a.json", '[{"text": "good"}, 7]', r"a\.json row 2: 7 is not an object"),
        ("a.txt", b"fine\n\xc3\x28", r"a\.txt: not UTF-8 \(byte 5: 0xc3\); convert the file"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        for row in text(write(tmp_path / name, content)).rows():
            dict(row.data)


def test_a_separated_file_names_the_line_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt:3: not UTF-8 \(byte 0: 0xff\)"):
        list(text(write(tmp_path / "a.txt", b"one\n\n\xff\n"), separator="").rows())


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"dataset_path .*nowhere does not exist \(looked from .*\); give a file or folder"
    ):
        text(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"has no file that ends in \.txt, .*\.parquet, \.arrow; add one or name a file"
    ):
        text(tmp_path)
    with pytest.raises(DataError, match=r"dataset text has no dataset_path; set it to a file or folder"):
        find_files(DatasetParams(dataset_name="text"), "text")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.arrow",
        "/etc/passwd",
        "data/../../secret.arrow",
        "..\\secret.arrow",
        "C:\\secret.arrow",
        "",
        7,
        "a\0b",
    ],
)
@pytest.mark.parametrize("splits", [False, True])
def test_a_saved_dataset_names_files_of_its_own_folder_only(tmp_path: Path, name: Any, splits: bool) -> None:
    """The folder comes from anywhere: its state.json must not have other files of the machine read."""
    saved = tmp_path / "saved"
    datasets.Dataset.from_list([{"text": "own"}]).save_to_disk(saved / "train" if splits else saved)
    if splits:
        (saved / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert [row.data["text"] for row in text(saved).rows()] == ["own"]
    datasets.Dataset.from_list([{"text": "secret"}]).save_to_disk(tmp_path / "other")
    (tmp_path / "other" / "data-00000-of-00001.arrow").rename(tmp_path / "secret.arrow")
    state = saved / "train" / "state.json" if splits else saved / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}, {"filename": name}]}))
    with pytest.raises(DataError) as error:
        text(saved)
    assert str(error.value) == (
        f"{state}: names the data file {name!r}, which does not lie in the dataset's own folder; nothing is read from "
        "elsewhere. Save the dataset again, or mend the name"
    )


@pytest.mark.parametrize("state", ["no json", "{}", '{"_data_files": [3]}'])
def test_a_saved_dataset_without_a_list_of_files(tmp_path: Path, state: str) -> None:
    datasets.Dataset.from_list([{"text": "own"}]).save_to_disk(tmp_path)
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"state\.json: lists no data files \(.*\); save the dataset again"):
        text(tmp_path)


LISTED = [{"messages": [{"role": "user", "content": f"Q{number}"}]} for number in range(3)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.txt", "rows.jsonl.gz"])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(LISTED),
        "\n" + json.dumps(LISTED) + "\n\n",
        "\ufeff" + json.dumps(LISTED),
        json.dumps(LISTED, indent=2),
        "[\n" + ",\n".join(map(json.dumps, LISTED)) + "\n]\n",
        "[" + ",\n".join(map(json.dumps, LISTED)) + "]",
    ],
)
def test_a_json_list_under_the_name_of_lines_is_one_error(tmp_path: Path, name: str, content: str) -> None:
    data = gzip.compress(content.encode()) if name.endswith(".gz") else content
    path = write(tmp_path / name, data)
    with pytest.raises(DataError) as error:
        list(chat(path).rows())
    assert str(error.value) == f"{path}: this is a JSON list, where each line has to be an object; name it rows.json"
    renamed = tmp_path / "rows.json"
    renamed.write_text(content, encoding="utf-8")
    assert [row.data for row in chat(renamed).rows()] == LISTED, "what the message says to do helps"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(
    "content",
    [
        "\n".join(json.dumps(row, indent=2) for row in LISTED),
        json.dumps(LISTED[0])[:-1] + "\n}\n" + json.dumps(LISTED[1]),
    ],
)
def test_objects_over_several_lines_are_one_error(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        list(chat(path).rows())
    assert str(error.value) == (
        f"{path}: an object over several lines, where each line has to be a whole one; write it on one line, or put "
        "all objects into a list [ ] and name it rows.json"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"turn": "user"}]\n[{"turn": "user"}]\n', "is not an object; each row must be"),
        ('{"messages": [\n{"messages": []}\n', "not JSON: Expecting value"),
        ('["a", {}]\n', "is not an object"),
    ],
)
def test_lines_that_are_no_rows_are_bad_rows_and_not_a_bad_file(tmp_path: Path, content: str, reason: str) -> None:
    rows = list(chat(write(tmp_path / "rows.jsonl", content)).rows())
    assert len(rows) == content.count("\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{reason}"):
        len(rows[0].data)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("lists", [1, 2])
@pytest.mark.parametrize("turn", [{"role": "user", "content": "Q"}, {"from": "human", "value": "Q"}])
def test_a_bare_list_of_messages_is_told_to_be_wrapped(
    tmp_path: Path, name: str, lists: int, turn: dict[str, str]
) -> None:
    """It was told to be a JSON list that wants the name rows.json, under which it failed again."""
    told = 'a bare list of messages, where a row has to be an object; wrap it: {"messages": [...]}: [{"'
    talk = json.dumps([turn, turn])
    jsonl = name.endswith("l")
    path = write(tmp_path / name, (talk + "\n") * lists if jsonl else f"[{', '.join([talk] * lists)}]")
    rows = list(chat(path).rows())
    assert len(rows) == lists
    with pytest.raises(DataError) as error:
        len(rows[0].data)
    assert str(error.value).startswith(f"{path}{':1' if jsonl else ' row 1'}: {told}")
    wrapped = write(tmp_path / "wrapped.jsonl", f'{{"messages": {talk}}}\n')
    assert [row.data for row in chat(wrapped).rows()] == [{"messages": [turn, turn]}], "what it says to do helps"


def test_rows_of_files_without_lines_are_told_apart_by_their_numbers() -> None:
    account = Account("rows.json", max_rejected=2)
    for index in range(2):
        account.add(Outcome(row_place(Path("rows.json"), index), None, "rejected", "bad"))
    assert list(account.lines())[-1].endswith("rows.json: rows 1 and 2: bad")


def test_a_conversation_over_several_lines_is_one_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json.dumps([{"role": "user", "content": "Q"}], indent=2))
    with pytest.raises(DataError, match=r'over several lines, .* wrap it: \{"messages": \[\.\.\.\]\}, each conv'):
        list(chat(path).rows())


@pytest.mark.parametrize("name", ["notes.txt", "notes"])
def test_prose_where_rows_are_read_is_said_once(tmp_path: Path, name: str) -> None:
    said = rf"{name}:2: plain text \('Dear reader'\), where rows are read, .* set dataset_name: text; a row of a chat"
    with pytest.raises(DataError, match=said):
        list(chat(write(tmp_path / name, "\nDear reader\nhow are you\n")).rows())
    rows = '{"messages": []}\nDear reader\n'
    assert len(list(chat(write(tmp_path / name, rows)).rows())) == 2, "one bad line among rows is a bad row"
