"""Rows prepared by several processes: the same samples, and a process that dies costs nothing."""

from __future__ import annotations

import copy
import json
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from graftwork.config import DatasetSplitParams
from graftwork.data import lengths, prepare, workers
from graftwork.data.loader import LoadRequest, load_indexed
from graftwork.data.prepare import count_workers, weight
from graftwork.errors import DataError, RunError

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.data.indexed import IndexedLoader

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '?' }}{% endif %}{% endfor %}{% if add_generation_prompt %}!{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A token for each byte; its template warns of the generation prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=TEMPLATE)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    turns = [{"prompt": f"ask {number}", "completion": "so " * (number % 7 + 1)} for number in range(60)]
    turns[33] = {"prompt": 3, "completion": "x"}
    turns[48] = {"prompt": "x", "completion": "y" * 200}
    path.write_text("".join(json.dumps(row) + "\n" for row in turns))
    return path


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare.chunked, "__defaults__", (10,))


def load(rows: Path, tokenizer: Any, processes: int | None, **fields: Any) -> IndexedLoader:
    named = {"dataset_name": "text_sft", "dataset_path": str(rows), "transform_num_workers": processes}
    split = DatasetSplitParams(datasets=[named], **{"max_rejected": 1, "over_long": "drop", **fields})
    stop = frozenset({tokenizer.eos_token_id})
    return load_indexed(
        LoadRequest(split=split, tokenizer=tokenizer, max_length=100, stop_ids=stop, seed=1, batch_size=1)
    )


def contents(loader: IndexedLoader) -> list[Any]:
    return [
        (sample.input_ids.tolist(), sample.trained.tolist(), sample.where)
        for samples in loader.datasets
        for sample in samples
    ]


def test_samples_accounts_and_warnings_are_those_of_one_process(
    rows: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made, said = [], []
    for processes in (0, 2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "graftwork"):
            loader = load(rows, tokenizer, processes)
        made.append((contents(loader), loader.accounts[0].to_plain()))
        said.append(caplog.messages)
    assert made[0] == made[1]
    assert said[0] == said[1]
    assert said[0][0].startswith(f"{rows}:1: the generation prompt of the chat template ends in")
    assert said[0][1] == f"{rows}: 60 rows read, 58 used, 1 rejected, 1 dropped"


def test_mistakes_come_out_as_they_would_in_one_process(rows: Path, tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match=r"^1 of 40 rows cannot be used:\n  \S+rows\.jsonl:34: prompt is int 3, not a text$"
    ):
        load(rows, tokenizer, 2, max_rejected=0)


def kill_at(place: str, times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kills the worker that is given the chunk from row ``place`` on, so many times. Gives whom it killed."""
    give = workers.Worker.give
    killed: list[int] = []

    def watched(worker: workers.Worker, task: workers.Task) -> None:
        give(worker, task)
        if task.first.endswith(place) and len(killed) < times:
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    monkeypatch.setattr(workers.Worker, "give", watched)
    return killed


def test_a_worker_that_dies_costs_nothing(
    rows: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = contents(load(rows, tokenizer, 0))
    killed = kill_at(":31", 1, monkeypatch)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "graftwork"):
        assert contents(load(rows, tokenizer, 2)) == expected
    assert (
        f"a process that prepares data ({killed[0]}) was killed by SIGKILL, as the system does when memory runs out, "
        f"at the 10 rows from {rows}:31 to {rows}:40; they are tried once more in a new one"
    ) in caplog.messages


def test_rows_that_end_two_workers_end_the_run(
    rows: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    killed = kill_at(":11", 2, monkeypatch)
    with pytest.raises(RunError) as caught:
        load(rows, tokenizer, 2)
    assert str(caught.value) == (
        f"a process that prepares data ({killed[1]}) was killed by SIGKILL, as the system does when memory runs "
        f"out, at the 10 rows from {rows}:11 to {rows}:20, as the one before it did. Nothing was trained and nothing "
        "is lost: look at these rows, give the run more memory, or set transform_num_workers: 0 for the dataset, to "
        "prepare them in one process"
    )
    assert not list((tmp_path / "cache" / "samples").iterdir())


def test_a_worker_that_cannot_start_says_with_what_it_ended(
    rows: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RunError, match=r"ended with exit code 1 at the 10 rows from .*rows\.jsonl:1 to"):
        load(rows, tokenizer, 1)


def test_workers_end_with_the_process_that_started_them(rows: Path, tokenizer: Any) -> None:
    job = prepare.Job(dataset=None, request=None, name="x")  # type: ignore[arg-type]
    worker = workers.Worker(workers.packed(job))
    process = worker._process
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0
    worker.stop()


def test_processes_are_started_where_they_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Path, tokenizer: Any
) -> None:
    class Source:
        files = (rows,)

    def asked(processes: Any) -> int:
        named = {"dataset_name": "text_sft", "dataset_path": str(rows), "transform_num_workers": processes}
        dataset = DatasetSplitParams(datasets=[named]).datasets[0]
        return count_workers(Source(), prepare.Job(dataset=dataset, request=None, name="x"))  # type: ignore[arg-type]

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert [asked(None), asked("auto"), asked(4), asked(0)] == [0, 0, 4, 0], "so few rows are not worth any"
    monkeypatch.setattr(prepare, "WORTH_WORKERS", 1000)
    assert [asked(None), asked("auto"), asked(0)] == [3, 3, 0]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert asked(None) == 0, "one core has nobody to share with"
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(b"x" * 100)
    Source.files = (packed,)
    assert weight(Source()) == 400  # type: ignore[arg-type]


BOMB = """
from graftwork.data import lengths


class Bomb:
    def __reduce__(self):
        return arm, ()


def arm():
    teaches = lengths.teaches

    def fails(sample):
        if sample.where.endswith(":18"):
            raise ZeroDivisionError("a fault\\nof a plugin")
        return teaches(sample)

    lengths.teaches = fails
    return None
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_a_fault_of_the_code_names_the_row(
    rows: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """In another process as in this one; the worker ended with a traceback, and its row was one of hundreds."""
    (tmp_path / "bomb_of_the_test.py").write_text(BOMB)
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    bomb = importlib.import_module("bomb_of_the_test")
    if processes:
        armed = copy.copy(tokenizer)
        armed.bomb = bomb.Bomb()  # goes off where the tokenizer is unpickled
    else:
        armed = tokenizer
        monkeypatch.setattr("graftwork.data.lengths.teaches", lengths.teaches)
        bomb.arm()
    with pytest.raises(RunError) as caught:
        load(rows, armed, processes)
    assert str(caught.value).startswith(
        f"{rows}:18: this row could not be prepared: ZeroDivisionError: a fault of a plugin. Nothing was trained"
    )
    (note,) = caught.value.__notes__
    assert "in fails" in note
