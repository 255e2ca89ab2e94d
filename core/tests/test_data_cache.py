"""Prepared samples on disk: the same as those made anew, rebuilt where damaged, never in anybody's way."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from graftwork.config import DatasetSplitParams
from graftwork.data import cache
from graftwork.data.account import Account
from graftwork.data.loader import LoadRequest, load_indexed
from graftwork.data.prepare import Chunk
from graftwork.data.prepared import PreparedSamples
from graftwork.data.samples import Sample
from graftwork.errors import DataError
from graftwork.registry import reset_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from graftwork.data.indexed import IndexedLoader

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '?' }}{% endif %}{% endfor %}"
)


def make_tokenizer(template: str = TEMPLATE) -> Any:
    """A token for each byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=template)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where entries of the cache are."""
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "samples"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    write_rows(path, 20)
    return path


def write_rows(path: Path, count: int) -> None:
    turns = [
        {"prompt": f"ask {number}", "completion": "so " * (number % 7 + 1), "turns": None} for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in turns))


def load(path: Path, tokenizer: Any = None, *, dataset: dict[str, Any] | None = None, **fields: Any) -> IndexedLoader:
    """The rows through the chat template, with ``fields`` of the request or of the split."""
    tokenizer = tokenizer or make_tokenizer()
    known = LoadRequest.__dataclass_fields__
    named = {"dataset_name": "text_sft", "dataset_path": str(path), **(dataset or {})}
    split = DatasetSplitParams(datasets=[named], **{name: value for name, value in fields.items() if name not in known})
    values = {"max_length": 100, "seed": 1, "batch_size": 1, "stop_ids": frozenset({tokenizer.eos_token_id})}
    given = {name: value for name, value in fields.items() if name in known}
    return load_indexed(LoadRequest(split=split, tokenizer=tokenizer, **{**values, **given}))


def contents(loader: IndexedLoader) -> list[Any]:
    return [
        (sample.input_ids.tolist(), sample.trained.tolist(), sample.where, sample.parts)
        for samples in loader.datasets
        for sample in samples
    ]


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no row may be encoded."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("the rows are prepared again")

    monkeypatch.setattr("graftwork.data.loader.prepare_rows", refuse)


def test_the_second_start_reads_the_same_samples(folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_CACHE", "off")
    plain = load(rows)
    assert not folder.exists()
    monkeypatch.setenv("GRAFTWORK_CACHE", str(folder.parent))
    first = load(rows)
    no_reading(monkeypatch)
    second = load(rows)
    assert contents(plain) == contents(first) == contents(second)
    assert plain.counts == first.counts == second.counts
    assert (plain.largest_token, plain.longest_sample) == (second.largest_token, second.longest_sample)
    # What was read is a view of a file: nothing is copied to memory.
    assert isinstance(second.datasets[0].input_ids.base, np.memmap)


def test_held_out_rows_are_an_entry_of_their_own(folder: Path, rows: Path) -> None:
    """The same file, tokenizer and options as the rows that are trained on."""
    part = {"holdout": 0.4}
    train, validation = (load(rows, dataset={**part, "holdout_part": name}) for name in ("train", "validation"))
    again, other = (load(rows, dataset={**part, "holdout_part": "validation", "holdout_seed": seed}) for seed in (0, 1))
    places = [{sample.where for sample in one.datasets[0]} for one in (train, validation, again, other)]
    assert len(places[0]) + len(places[1]) == 20 and not places[0] & places[1]
    assert places[1] == places[2] != places[3]
    assert len(list(folder.iterdir())) == 3


def test_steps_and_a_resumed_run_are_the_same_with_and_without(
    folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(count: int, state: dict[str, Any] | None = None) -> tuple[list[Any], dict[str, Any]]:
        loader = load(rows, pack=True, batch_size=2, dataset={"shuffle": True})
        loader.load_state_dict(state or loader.state_dict())
        found = [[(row.input_ids.tolist(), row.labels.tolist()) for row in step] for step in take(loader, count)]
        return found, loader.state_dict()

    monkeypatch.setenv("GRAFTWORK_CACHE", "off")
    plain, _ = steps(9)
    monkeypatch.setenv("GRAFTWORK_CACHE", str(folder.parent))
    assert steps(9)[0] == plain
    begun, state = steps(4)
    assert state["epoch"] > 0, "the first epoch is over"
    assert begun + steps(5, state)[0] == plain


def take(loader: IndexedLoader, count: int) -> Iterator[Any]:
    return islice(loader.steps(), count)


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 99},
        {"over_long": "drop"},
        {"train_target": "final_assistant_turn"},
        {"special_tokens_in_content": "as_text"},
        {"template_variables": {"mood": "kind"}},
        {"stop_ids": frozenset({256, 3})},
        {"dataset": {"dataset_kwargs": {"messages_field": "turns"}}},
        {"tokenizer": "template"},
        {"tokenizer": "added"},
        {"rows": 21},
    ],
)
def test_whatever_changes_a_sample_has_an_entry_of_its_own(folder: Path, rows: Path, change: dict[str, Any]) -> None:
    load(rows)
    if change == {"rows": 21}:
        write_rows(rows, 21)
        change = {}
    if (kind := change.get("tokenizer")) is not None:
        change = {"tokenizer": make_tokenizer(TEMPLATE + "{# another #}" if kind == "template" else TEMPLATE)}
        if kind == "added":
            change["tokenizer"].add_tokens(["ask"])
    load(rows, **change)
    assert len(entries(folder)) == 2


def test_weights_hold_in_the_cache_and_when_packed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files that differ in nothing but the weights of answers are two entries, with other labels."""
    tokenizer, found = make_tokenizer(), []
    for name, weight in (("learned", 1), ("not", 0), ("silent", None)):
        turns = [("user", None), ("assistant", weight), ("user", None), ("assistant", 1)]
        rows = [
            {"messages": [{"role": role, "content": f"{role[0]}{number}", "weight": told} for role, told in turns]}
            for number in range(6)
        ]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        loader = load(path, tokenizer, pack=True, max_length=40)
        steps = [row for step in take(loader, len(loader.plan(0).plan)) for row in step]
        with monkeypatch.context() as patched:
            no_reading(patched)
            again = load(path, tokenizer, pack=True, max_length=40)
        assert contents(again) == contents(loader)
        assert max(len(row.segment_lengths) for row in steps) > 1, name
        found.append(
            (
                [row.input_ids.tolist() for row in steps],
                "".join(tokenizer.decode(np.concatenate([r.labels for r in steps])).split()),
            )
        )
    learned, left_out, silent = found
    assert learned == silent
    assert learned[0] == left_out[0]
    assert learned[1] == "".join(f"a{number}<end>" * 2 for number in range(6))
    assert left_out[1] == "".join(f"a{number}<end>" for number in range(6))
    assert len(entries(folder)) == 3


def test_what_changes_no_sample_shares_the_entry(folder: Path, rows: Path) -> None:
    load(rows)
    load(rows, seed=2, batch_size=3, pack=True, dataset={"shuffle": True, "sample_count": 5})
    load(rows, max_rejected=0.5, dataset={"transform_num_workers": 0})
    assert len(entries(folder)) == 1


def test_a_change_of_the_code_makes_an_entry_of_its_own(
    folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(rows)
    monkeypatch.setattr(cache, "code_version", lambda: "another")
    load(rows)
    assert len(entries(folder)) == 2


READER = """
from graftwork import hookimpl
from graftwork.specs import DatasetSpec

def open_rows(request):
    from toy_reading.rows import open_rows
    return open_rows(request)

@hookimpl
def graftwork_datasets():
    return [DatasetSpec(name="toy_rows", schema="chat", open=open_rows)]
"""
ROWS = """
from dataclasses import dataclass
from pathlib import Path
from graftwork.data.readers import Row

@dataclass
class Rows:
    files: tuple

    def rows(self, start=(0, 0)):
        lines = self.files[0].read_text().splitlines()
        for number, line in enumerate(lines[start[1]:], start[1]):
            yield Row({"prompt": line, "completion": "ANSWER"}, f"toy:{number}", (0, number + 1))

def open_rows(request):
    return Rows((Path(request.dataset.dataset_path),))
"""


@pytest.mark.parametrize("packaged", [True, False])
@pytest.mark.parametrize("editable", [True, False])
def test_an_edited_reader_of_an_editable_install_is_heard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editable: bool, packaged: bool
) -> None:
    """Its developer changes no version; of any other install the version says what the code is."""
    site, path = tmp_path / "site", tmp_path / "asked.txt"
    path.write_text("ask\nask more\n")
    info = site / "graftwork_toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: graftwork-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[graftwork.plugins]\ntoy = toy_reading\n")
    (info / "direct_url.json").write_text(json.dumps({"url": "file:///toy", "dir_info": {"editable": editable}}))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("GRAFTWORK_PLUGINS", "toy")

    def learned(answer: str) -> str:
        """What a fresh process would learn with the reader as it is now."""
        for module in [name for name in sys.modules if name.partition(".")[0] == "toy_reading"]:
            del sys.modules[module]
        code = ROWS.replace("ANSWER", answer)
        if packaged:
            (site / "toy_reading").mkdir(exist_ok=True)
            (site / "toy_reading" / "__init__.py").write_text(READER)
            (site / "toy_reading" / "rows.py").write_text(code)
        else:
            begin, end = READER.split("def open_rows(request):")
            (site / "toy_reading.py").write_text(code + begin + end.partition("open_rows(request)\n")[2])
        importlib.invalidate_caches()
        reset_registry()
        tokenizer = make_tokenizer()
        sample = load(path, tokenizer, dataset={"dataset_name": "toy_rows"}).datasets[0][0]
        return "".join(tokenizer.decode(sample.input_ids[sample.trained]).split())

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert learned("one") == "one<end>"
    assert learned("one") == "one<end>"
    assert len(entries(folder)) == 1
    assert learned("another") == ("another<end>" if editable else "one<end>")
    assert len(entries(folder)) == 1 + editable
    for module in [name for name in sys.modules if name.partition(".")[0] == "toy_reading"]:
        del sys.modules[module]
    monkeypatch.undo()
    reset_registry()


def test_a_template_that_writes_the_date_is_not_read_on_another_day(
    folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated = make_tokenizer("{{ strftime_now('%Y') }}" + TEMPLATE)

    class Tomorrow:
        @staticmethod
        def today() -> Any:
            import datetime

            return datetime.date(2031, 1, 1)

    load(rows)
    load(rows, dated)
    monkeypatch.setattr(cache, "date", Tomorrow)
    load(rows)
    assert len(entries(folder)) == 2
    load(rows, dated)
    assert len(entries(folder)) == 3


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "meta", "empty"])
def test_a_damaged_entry_is_said_and_made_anew(
    folder: Path, rows: Path, harm: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(load(rows))
    [entry] = entries(folder)
    ids = entry / "input_ids.npy"
    data = bytearray(ids.read_bytes())
    if harm == "flip":
        data[-3] ^= 1
    if harm in ("truncate", "flip"):
        ids.write_bytes(data[:-8] if harm == "truncate" else data)
    elif harm == "remove":
        ids.unlink()
    else:
        (entry / "meta.json").write_text("{" if harm == "meta" else "")
    with caplog.at_level(logging.WARNING, "graftwork"):
        assert contents(load(rows)) == expected
    [message] = [message for message in caplog.messages if str(entry) in message]
    assert message.startswith(f"{rows}: the prepared samples in {entry} are damaged (")
    assert message.endswith("; they are made anew")
    no_reading(monkeypatch)
    assert contents(load(rows)) == expected


def test_the_account_and_the_warnings_are_said_again(
    folder: Path, rows: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rows.open("a") as file:
        file.write('{"prompt": 3, "completion": "x"}\n' + json.dumps({"prompt": "x", "completion": "y" * 200}) + "\n")
    # A template that writes the prompt otherwise than the text before an answer is warned of
    odd = make_tokenizer(TEMPLATE + "{% if add_generation_prompt %}!{% endif %}")
    fields = {"max_rejected": 1, "over_long": "drop"}
    said = []
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "graftwork"):
            first = load(rows, odd, **fields)
        said.append(caplog.messages)
        assert (first.accounts[0].read, first.accounts[0].used) == (22, 20)
        no_reading(monkeypatch)
    assert said[0] == said[1]
    assert said[0][0].startswith(f"{rows}:1: the generation prompt of the chat template ends in")
    assert said[0][1] == f"{rows}: 22 rows read, 20 used, 1 rejected, 1 dropped"
    # The threshold is that of now.
    with pytest.raises(DataError, match=r"rows\.jsonl:21: prompt is int 3, not a text"):
        load(rows, odd, over_long="drop")


def test_rejected_rows_are_not_kept_where_none_may_be(folder: Path, rows: Path) -> None:
    with rows.open("a") as file:
        file.write('{"prompt": 3, "completion": "x"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:21: prompt is int 3"):
        load(rows)
    assert not entries(folder)


def test_a_full_disk_is_a_warning(
    folder: Path, rows: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save

    def full(path: Any, array: Any, **options: Any) -> None:
        if path.name == "trained.npy":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, array, **options)

    monkeypatch.setattr(np, "save", full)
    with caplog.at_level(logging.WARNING, "graftwork"):
        loader = load(rows)
    assert loader.counts.samples == 20
    assert caplog.messages == [
        f"{folder}: prepared samples cannot be kept for the next start: No space left on device; the run goes on "
        "without. Make room, or set GRAFTWORK_CACHE to another folder or to off"
    ]
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_warning(
    tmp_path: Path, rows: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "file"))
    assert load(rows).counts.samples == 20
    assert "prepared samples cannot be kept for the next start: Not a directory" in caplog.text


def test_preference_pairs_and_empty_columns_come_back(tmp_path: Path) -> None:
    pairs = [
        Sample(np.arange(5, dtype=np.int32), np.asarray([0, 0, 1, 1, 1], np.bool_), "a.jsonl:1", (2, 1, 2)),
        Sample(np.arange(4, dtype=np.int32), np.asarray([0, 1, 1, 1], np.bool_), "é[2]", (1, 2, 1)),
    ]
    account = Account("a.jsonl")
    account.read = account.used = 2
    made = Chunk(PreparedSamples.of(pairs), account)

    class AnyJob:
        name = "a.jsonl"

        @staticmethod
        def account() -> Account:
            return Account("a.jsonl")

    assert cache.store(tmp_path / "entry", made)
    found = cache.load(tmp_path / "entry", AnyJob())  # type: ignore[arg-type]
    assert found is not None
    assert [(s.input_ids.tolist(), s.trained.tolist(), s.where, s.parts) for s in found.samples] == [
        (s.input_ids.tolist(), s.trained.tolist(), s.where, s.parts) for s in pairs
    ]
    assert found.samples.longest == 4
    assert found.account.to_plain() == account.to_plain()


def test_samples_are_a_sequence() -> None:
    samples = [Sample(np.full(n, n, np.int32), np.ones(n, np.bool_), str(n)) for n in (3, 1, 2)]
    both = PreparedSamples.joined([PreparedSamples.of(samples[:2]), PreparedSamples.of(samples[2:])])
    assert [sample.where for sample in both] == ["3", "1", "2"]
    assert (both[-1].where, [sample.where for sample in both[1:]]) == ("2", ["1", "2"])
    with pytest.raises(IndexError):
        both[3]
    assert both.supervised.tolist() == [2, 0, 1]
    assert (len(PreparedSamples.joined([])), PreparedSamples.of([]).longest) == (0, 0)


def test_the_least_used_entries_make_room(folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, length in enumerate((90, 91, 92)):
        load(rows, max_length=length)
        for path in entries(folder):
            past = time.time() - 100 * (3 - number)
            os.utime(path / "meta.json", (past, past))
    size = sum(file.stat().st_size for file in entries(folder)[0].iterdir())
    before = {path: (path / "meta.json").stat().st_mtime for path in entries(folder)}
    load(rows, max_length=90)  # used again
    abandoned = folder / ".x.1.tmp"
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    monkeypatch.setenv("GRAFTWORK_CACHE_GB", str(2.5 * size / 1e9))
    load(rows, max_length=93)
    left = entries(folder)
    assert len(left) == 2
    again = [path for path in left if path in before]
    assert len(again) == 1
    assert (again[0] / "meta.json").stat().st_mtime > max(before.values()), "the one that was used again stays"
    assert not abandoned.exists()


def test_two_processes_may_make_room_at_once(folder: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(rows, max_length=90)

    def gone_already(path: Path) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(cache, "remove_folder", gone_already)
    monkeypatch.setenv("GRAFTWORK_CACHE_GB", "0")
    assert load(rows, max_length=91).counts.samples == 20


def test_a_limit_that_is_no_number_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_CACHE_GB", "much")
    assert cache.limit_bytes() == 20e9
    assert caplog.messages == ["GRAFTWORK_CACHE_GB=much is no number of gigabytes; 20 is used"]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GRAFTWORK_CACHE", "GRAFTWORK_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "graftwork" / "samples"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "graftwork" / "samples"
    monkeypatch.setenv("GRAFTWORK_HOME", str(tmp_path / "home"))
    assert cache.cache_folder() == tmp_path / "home" / "cache" / "samples"
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "named"))
    assert cache.cache_folder() == tmp_path / "named" / "samples"
    monkeypatch.setenv("GRAFTWORK_CACHE", "OFF")
    assert cache.cache_folder() is None


HOLDER = """
import sys, time
from pathlib import Path
from graftwork.data import cache
with cache.alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_makes_an_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = tmp_path / "samples" / "entry"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(entry)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        held = (entry.parent / ".entry.lock").stat().st_ino
        import threading

        threading.Timer(0.3, holder.stdin.close).start()
        begin = time.perf_counter()
        with caplog.at_level(logging.INFO, "graftwork"), cache.alone(entry):
            waited = time.perf_counter() - begin
        holder.wait()
    assert held
    assert waited > 0.2
    assert caplog.messages == ["another process prepares the same samples: waiting for it"]
    assert not list(entry.parent.iterdir()), "no lock is left behind"


def test_without_locks_nobody_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have none."""

    def refuse(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cache.fcntl, "flock", refuse)
    entry = tmp_path / "samples" / "entry"
    with caplog.at_level(logging.INFO, "graftwork"), cache.alone(entry) as waited:
        assert not waited
    assert not caplog.messages
    assert not list(entry.parent.iterdir())


LOADER = """
import hashlib, json, logging, sys
from transformers import PreTrainedTokenizerFast
from graftwork.config import DatasetSplitParams
from graftwork.data.loader import LoadRequest, load_split
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
split = DatasetSplitParams(datasets=[{"dataset_name": "text_sft", "dataset_path": sys.argv[2]}])
request = LoadRequest(split=split, tokenizer=tokenizer, max_length=100, stop_ids=frozenset({tokenizer.eos_token_id}),
    seed=1, batch_size=1)
print("ready", flush=True)
sys.stdin.readline()
[samples] = load_split(request).datasets
digest = hashlib.sha256(samples.input_ids.tobytes() + samples.trained.tobytes() + samples.where.tobytes())
print(json.dumps([len(samples), digest.hexdigest()]))
"""


def test_two_processes_that_want_the_same_entry_both_get_it(folder: Path, rows: Path, tmp_path: Path) -> None:
    write_rows(rows, 2000)
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-c", LOADER, str(tmp_path / "tokenizer"), str(rows)]
    pipe: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pair = [subprocess.Popen(command, **pipe) for _ in range(2)]
    try:
        for process in pair:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in pair:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=100) for process in pair]
    finally:
        for process in pair:
            process.kill()
    found = [json.loads(output) for output, _ in said]
    assert [process.returncode for process in pair] == [0, 0]
    assert found[0] == found[1]
    assert found[0][0] == 2000
    assert len(entries(folder)) == 1
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    logs = [errors for _, errors in said]
    # Whoever came second read what the first had made.
    assert sum("prepared before, read from" in log for log in logs) == 1, logs


def wait_for(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_one_who_waited_is_not_joined_by_the_next(tmp_path: Path) -> None:
    """The first one deletes the lock's file: who waited for it held a file without a name, and a third came in."""
    entry = tmp_path / "samples" / "entry"
    lock = entry.parent / ".entry.lock"

    def start(log: str) -> subprocess.Popen[str]:
        code = "import logging; logging.basicConfig(filename=" + repr(str(tmp_path / log)) + ", level=20)" + HOLDER
        command = [sys.executable, "-c", code, str(entry)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def waits(log: str) -> bool:
        return (tmp_path / log).is_file() and "waiting for it" in (tmp_path / log).read_text()

    with cache.alone(entry):
        second = start("second")
        wait_for(lambda: waits("second"))
    with second:
        assert second.stdout is not None
        assert second.stdin is not None
        assert second.stdout.readline() == "held\n"
        third = start("third")
        with third:
            assert third.stdout is not None
            assert third.stdin is not None
            wait_for(lambda: waits("third") or select.select([third.stdout], [], [], 0)[0])
            assert waits("third"), "two are in at once"
            second.stdin.close()
            assert third.stdout.readline() == "held\n"
            third.stdin.close()
    assert not lock.exists()


def test_the_lock_of_a_killed_process_is_cleared_away(tmp_path: Path) -> None:
    entry = tmp_path / "samples" / "entry"
    (tmp_path / "samples" / "other").mkdir(parents=True)
    with cache.alone(entry):
        cache.make_room(entry.parent, entry)
        assert (entry.parent / ".entry.lock").exists(), "it is held"
    command = [sys.executable, "-c", HOLDER, str(entry)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    assert (entry.parent / ".entry.lock").exists()
    cache.make_room(entry.parent, entry)
    assert not (entry.parent / ".entry.lock").exists()
