"""Which sample when: each once an epoch, mixtures as `datasets` draws them, streams that go on where they were."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from itertools import islice
from math import ceil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pytest

from graftwork.config import DatasetParams, DatasetSplitParams, RunConfig
from graftwork.data.account import Account, Outcome
from graftwork.data.batch import to_row
from graftwork.data.blocks import Packer
from graftwork.data.indexed import IndexedLoader
from graftwork.data.lengths import prepare
from graftwork.data.loader import count_steps
from graftwork.data.order import epoch_order, interleave
from graftwork.data.readers import FileSource, read_json_lines
from graftwork.data.samples import Sample
from graftwork.data.streaming import Mixture, ShuffledRows, StreamedLoader
from graftwork.errors import DataError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.data.readers import Row


def split_of(*params: dict[str, Any], **fields: Any) -> DatasetSplitParams:
    return DatasetSplitParams(datasets=[{"dataset_name": "text", **one} for one in params], **fields)


def order(sizes: list[int], split: DatasetSplitParams, seed: int = 1, epoch: int = 0) -> list[tuple[int, int]]:
    return epoch_order(sizes, split, seed, epoch)


def test_datasets_follow_one_another() -> None:
    assert order([2, 3], split_of({}, {})) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_a_shuffle_is_a_permutation_of_its_own_for_each_epoch_and_seed() -> None:
    split = split_of({"shuffle": True}, {"shuffle": True})
    epochs = [order([20, 30], split, epoch=epoch) for epoch in range(3)]
    everything = order([20, 30], split_of({}, {}))
    assert all(sorted(picks) == everything for picks in epochs)
    assert len({tuple(picks) for picks in [*epochs, everything, order([20, 30], split, seed=2)]}) == 5
    assert order([20, 30], split, epoch=1) == epochs[1], "the same question has the same answer"
    # Mixed as a whole, not one after the other
    assert {number for number, _ in epochs[0][:20]} == {0, 1}


def test_one_dataset_is_shuffled_and_the_other_is_not() -> None:
    picks = order([20, 5], split_of({"shuffle": True}, {}))
    assert sorted(picks[:20]) == [(0, index) for index in range(20)] != picks[:20]
    assert picks[20:] == [(1, index) for index in range(5)]


def test_a_dataset_has_a_seed_of_its_own() -> None:
    same = [order([20], split_of({"shuffle": True, "seed": 7}), seed=seed) for seed in (1, 2)]
    assert same[0] == same[1]


@pytest.mark.parametrize("count", [0, 3, 5, 12])
def test_sample_count_takes_the_first_and_repeats_them(count: int) -> None:
    picks = order([5], split_of({"sample_count": count}))
    assert picks == [(0, index % 5) for index in range(count)]
    shuffled = order([5], split_of({"sample_count": count, "shuffle": True}))
    assert sorted(shuffled) == sorted(picks)


@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("seed", range(4))
def test_a_mixture_is_that_of_datasets(strategy: str, seed: int) -> None:
    """``datasets.interleave_datasets`` with the same generator gives the same rows."""
    sizes, shares = [11, 40, 23], [0.2, 0.5, 0.3]
    parts = [datasets.Dataset.from_dict({"row": [[n, i] for i in range(size)]}) for n, size in enumerate(sizes)]
    theirs = datasets.interleave_datasets(parts, probabilities=shares, seed=seed, stopping_strategy=strategy)
    queues = [np.arange(size) for size in sizes]
    ours = interleave(queues, shares, strategy, np.random.default_rng(seed))
    assert ours == [tuple(row) for row in theirs["row"]]


def test_proportions_hold_and_epochs_differ() -> None:
    split = split_of({"mixture_proportion": 0.8}, {"mixture_proportion": 0.2}, mixture_strategy="all_exhausted")
    picks = [order([500, 500], split, epoch=epoch) for epoch in range(2)]
    share = Counter(number for number, _ in picks[0])[0] / len(picks[0])
    assert share == pytest.approx(0.8, abs=0.03)
    assert {index for number, index in picks[0] if number == 1} == set(range(500))
    assert picks[0] != picks[1]


def test_a_proportion_of_nothing_and_rounded_ones() -> None:
    picks = order([5, 5], split_of({"mixture_proportion": 1.0}, {"mixture_proportion": 0.0}))
    assert picks == [(0, index) for index in range(5)]
    thirds = split_of({"mixture_proportion": 0.33}, {"mixture_proportion": 0.33}, {"mixture_proportion": 0.33})
    assert len(order([50, 50, 50], thirds)) > 100


# In memory


def sample_of(number: int, length: int = 4) -> Sample:
    return Sample(np.full(length, number, np.int32), np.ones(length, np.bool_), str(number))


def indexed(count: int = 10, *, batch_size: int = 2, accumulation: int = 1, **fields: Any) -> IndexedLoader:
    return IndexedLoader(
        [[sample_of(number) for number in range(count)]],
        split_of({"shuffle": True}, **fields),
        lambda: Packer(8, "none", documents=False),
        seed=3,
        batch_size=batch_size,
        accumulation=accumulation,
    )


def tokens(step: Any) -> list[list[int]]:
    return [row.input_ids[0].tolist() for row in step]


def first_tokens(step: Any) -> list[int]:
    return [int(piece[0]) for row in step for piece in row.input_ids[0].split(row.segment_lengths)]


@pytest.mark.parametrize(("batch_size", "accumulation", "steps"), [(2, 1, 5), (3, 1, 4), (2, 2, 3), (1, 16, 1)])
def test_every_sample_once_an_epoch(batch_size: int, accumulation: int, steps: int) -> None:
    loader = indexed(batch_size=batch_size, accumulation=accumulation)
    assert loader.count_steps(1) == steps
    seen, epochs = [], []
    for step in islice(loader.steps(), 2 * steps):
        seen += first_tokens(step)
        epochs.append(loader.epoch)
        assert all(len(row.segment_lengths) <= batch_size for row in step)
        assert len(step) <= accumulation
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert epochs == [0] * (steps - 1) + [1] * steps + [2], "the last step of an epoch begins the next"


def test_counts() -> None:
    loader = indexed()
    assert (loader.counts.samples, loader.counts.tokens, loader.counts.supervised_tokens) == (10, 40, 30)
    assert [loader.count_steps(epochs) for epochs in (0.1, 0.5, 1, 1.5, 2.0, 2.01)] == [1, 3, 5, 8, 10, 11]


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_loader_goes_on_where_it_was(stop: int) -> None:
    straight = [tokens(step) for step in islice(indexed(accumulation=2).steps(), 12)]
    first, second = indexed(accumulation=2), indexed(accumulation=2)
    for _ in islice(first.steps(), stop):
        pass
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [tokens(step) for step in islice(second.steps(), 12 - stop)] == straight[stop:]
    assert second.epoch == 4


def test_an_evaluation_is_the_same_every_time() -> None:
    loader = indexed()
    first = tokens(loader.rows())
    list(islice(loader.steps(), 7))
    assert tokens(loader.rows()) == first
    assert sorted(first_tokens(loader.rows())) == list(range(10))


def test_nothing_to_learn_from_is_said() -> None:
    loader = IndexedLoader(
        [[sample_of(0)]],
        split_of({"sample_count": 0}),
        lambda: Packer(8, "none", documents=False),
        seed=0,
        batch_size=1,
        accumulation=1,
    )
    for use in (lambda: loader.count_steps(1), lambda: next(loader.steps()), lambda: list(loader.rows())):
        with pytest.raises(DataError, match=r"none that can be learned from: .*sample_count"):
            use()


# Streamed


def write(path: Path, count: int, first: int = 0) -> Path:
    path.write_text("".join(json.dumps({"n": number}) + "\n" for number in range(first, first + count)))
    return path


def streamed(tmp_path: Path, *params: dict[str, Any], packing: Any = "cut", batch_size: int = 2) -> StreamedLoader:
    params = params or (
        {"shuffle": True, "shuffle_buffer_size": 4, "mixture_proportion": 0.7},
        {"shuffle": True, "shuffle_buffer_size": 3, "mixture_proportion": 0.3},
    )
    paths = [write(tmp_path / f"{number}.jsonl", 9 + 4 * number, 100 * number) for number in range(len(params))]
    split = split_of(*({**one, "dataset_path": str(path)} for one, path in zip(params, paths, strict=True)))
    streams = [
        ShuffledRows(FileSource((path,), read_json_lines), one, 5)
        for path, one in zip(paths, split.datasets, strict=True)
    ]

    def encode(row: Row) -> Sample:
        return sample_of(row.data["n"], 3 + row.data["n"] % 5)

    packer = Packer(8, packing, documents=packing == "cut")
    return StreamedLoader(
        Mixture(streams, split, 5),
        [used(encode)] * len(paths),
        [Account(path.name) for path in paths],
        packer,
        batch_size=batch_size,
        accumulation=2,
    )


def used(encode: Any) -> Any:
    """What becomes of a row whose sample is what ``encode`` gives, and that is dropped where it gives None."""

    def prepare(row: Row) -> Outcome:
        sample = encode(row)
        return Outcome(row.where, sample, "used" if sample else "dropped", "" if sample else "too long")

    return prepare


@pytest.mark.parametrize("stop", [1, 2, 5, 9, 14])
@pytest.mark.parametrize("packing", ["cut", "whole", "none"])
def test_a_stream_goes_on_where_it_was(tmp_path: Path, stop: int, packing: str) -> None:
    """Through JSON, in the middle of an epoch, with rows in the buffers and half a block."""
    straight = [tokens(step) for step in islice(streamed(tmp_path, packing=packing).steps(), 20)]
    first = streamed(tmp_path, packing=packing)
    for _ in islice(first.steps(), stop):
        pass
    second = streamed(tmp_path, packing=packing)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [tokens(step) for step in islice(second.steps(), 20 - stop)] == straight[stop:]
    assert second.epoch > first.epoch or stop == 14


@pytest.mark.parametrize("length", [3, 20])
@pytest.mark.parametrize(("sizes", "batch_size"), [([6], 1), ([6], 2), ([2, 4], 1), ([1], 1)])
def test_an_epoch_of_a_stream_is_over_with_its_last_step(
    tmp_path: Path, sizes: list[int], batch_size: int, length: int
) -> None:
    """As that of data in memory, also where a row makes three blocks, and wherever it is resumed."""
    split = split_of(*[{}] * len(sizes))
    samples = [[sample_of(number, length) for number in range(size)] for size in sizes]
    batches = {"batch_size": batch_size, "accumulation": 1}

    def packer() -> Packer:
        return Packer(8, "none", documents=True)

    def stream() -> StreamedLoader:
        mixture = mixture_of(tmp_path, sizes, *[{}] * len(sizes))
        encode = used(lambda row: sample_of(row.data["n"], length))
        return StreamedLoader(mixture, [encode] * len(sizes), [Account("a")] * len(sizes), packer(), **batches)

    indexed, streamed = IndexedLoader(samples, split, packer, seed=5, **batches), stream()
    theirs = [(first_tokens(step), indexed.epoch) for step in islice(indexed.steps(), 40)]
    ours, states = [], []
    for step in islice(streamed.steps(), 40):
        ours.append((first_tokens(step), streamed.epoch))
        states.append(json.loads(json.dumps(streamed.state_dict())))
    assert ours == theirs
    for stop, state in enumerate(states[:20], 1):
        resumed = stream()
        resumed.load_state_dict(state)
        assert resumed.epoch == ours[stop - 1][1]
        assert [(first_tokens(step), resumed.epoch) for step in islice(resumed.steps(), 40 - stop)] == ours[stop:]


def rows_of(path: Path, **params: Any) -> ShuffledRows:
    dataset = DatasetParams(dataset_name="text", dataset_path=str(path), **params)
    return ShuffledRows(FileSource((path,), read_json_lines), dataset, 5)


def take(stream: ShuffledRows, count: int) -> list[int]:
    return [stream.next().data["n"] for _ in range(count)]


@pytest.mark.parametrize("buffer", [1, 3, 10, 50])
def test_a_stream_gives_every_row_once_an_epoch(tmp_path: Path, buffer: int) -> None:
    stream = rows_of(write(tmp_path / "a.jsonl", 10), shuffle=True, shuffle_buffer_size=buffer)
    epochs = [take(stream, 10) for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert stream.epoch == 2
    if buffer > 1:
        assert len({tuple(epoch) for epoch in epochs}) == 3
    # A row leaves the buffer no earlier than it came in: row n is at most buffer - 1 places early.
    assert all(place >= row - (buffer - 1) for epoch in epochs for place, row in enumerate(epoch))


def test_an_unshuffled_stream_keeps_its_order_and_its_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 10)
    assert take(rows_of(path), 12) == [*range(10), 0, 1]
    assert take(rows_of(path, sample_count=3), 7) == [0, 1, 2, 0, 1, 2, 0]
    assert set(take(rows_of(path, sample_count=3, shuffle=True), 30)) == {0, 1, 2}


def test_a_streamed_mixture_keeps_its_proportions(tmp_path: Path) -> None:
    loader = streamed(tmp_path)
    numbers = Counter(loader.mixture.next()[0] for _ in range(2000))
    assert numbers[0] / 2000 == pytest.approx(0.7, abs=0.03)


def test_a_dataset_that_is_never_drawn_does_not_hold_up_the_epoch(tmp_path: Path) -> None:
    loader = streamed(tmp_path, {"mixture_proportion": 1.0}, {"mixture_proportion": 0.0})
    list(islice(loader.steps(), 10))
    assert loader.epoch > 0


@pytest.mark.parametrize("empty", ["no rows", "all dropped", "one token each"])
def test_a_stream_without_samples_ends_with_a_reason(tmp_path: Path, empty: str) -> None:
    loader = streamed(tmp_path, {})
    if empty == "no rows":
        (tmp_path / "0.jsonl").write_text("\n")
    elif empty == "all dropped":
        loader.prepare = [used(lambda row: None)]
    else:
        loader.prepare = [used(lambda row: sample_of(1, 1))]
    message = {
        "no rows": r"0\.jsonl: no rows in the dataset",
        "all dropped": r"0\.jsonl: none of its 9 rows can be used: .*rows 1, 2, 3 and 6 more: too long; there",
        "one token each": r"none that can be learned from",
    }
    with pytest.raises(DataError, match=message[empty]):
        next(loader.steps())


def test_short_epochs_still_fill_a_block(tmp_path: Path) -> None:
    """Fewer tokens in an epoch than in a block are no reason to give up."""
    path = write(tmp_path / "a.jsonl", 1)
    split = split_of({"dataset_path": str(path)})
    stream = ShuffledRows(FileSource((path,), read_json_lines), split.datasets[0], 5)
    packer = Packer(50, "cut", documents=True)
    loader = StreamedLoader(
        Mixture([stream], split, 5),
        [used(lambda row: sample_of(1))],
        [Account("a")],
        packer,
        batch_size=1,
        accumulation=1,
    )
    assert next(loader.steps())[0].num_tokens == 50


def test_a_row_of_one_token_samples_has_no_labels() -> None:
    row = to_row([sample_of(1, 1), sample_of(2, 1)])
    assert (row.num_tokens, row.num_labels) == (2, 0)


# A streamed mixture is the one in memory


def mixture_of(tmp_path: Path, sizes: list[int], *params: dict[str, Any], **fields: Any) -> Mixture:
    paths = [write(tmp_path / f"{number}.jsonl", size) for number, size in enumerate(sizes)]
    split = split_of(*({**one, "dataset_path": str(path)} for one, path in zip(params, paths, strict=True)), **fields)
    streams = [
        ShuffledRows(FileSource((path,), read_json_lines), one, 5)
        for path, one in zip(paths, split.datasets, strict=True)
    ]
    return Mixture(streams, split, 5)


def drawn(mixture: Mixture, count: int) -> list[tuple[int, int]]:
    return [(number, row.data["n"]) for number, row in (mixture.next() for _ in range(count))]


@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
def test_a_streamed_mixture_is_the_one_in_memory(tmp_path: Path, strategy: str) -> None:
    """Epoch after epoch, which end where the strategy says; that in memory is the one of `datasets`."""
    sizes, shares = [11, 40, 23], [{"mixture_proportion": share} for share in (0.2, 0.5, 0.3)]
    mixture = mixture_of(tmp_path, sizes, *shares, mixture_strategy=strategy)
    for epoch in range(3):
        ours = order(sizes, split_of(*shares, mixture_strategy=strategy), seed=5, epoch=epoch)
        assert drawn(mixture, len(ours)) == ours
        assert mixture.epoch == epoch


def test_without_proportions_every_row_comes_once_an_epoch(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, [2, 3], {}, {})
    assert drawn(mixture, 10) == order([2, 3], split_of({}, {})) * 2
    shuffled = mixture_of(tmp_path, [20, 30], {"shuffle": True}, {"shuffle": True})
    epochs = [drawn(shuffled, 50) for _ in range(2)]
    assert all(sorted(epoch) == order([20, 30], split_of({}, {})) for epoch in epochs)
    assert {number for number, _ in epochs[0][:20]} == {0, 1}, "drawn among both, not one after the other"


def test_a_stream_repeats_its_rows_where_more_are_asked_for(tmp_path: Path) -> None:
    """As in memory, and wherever it is resumed; each row is new once."""
    counts = [{"sample_count": 7}, {"sample_count": 2}]
    wanted = order([3, 5], split_of(*counts)) * 2
    assert len(wanted) == 18
    mixture = mixture_of(tmp_path, [3, 5], *counts)
    assert drawn(mixture, 18) == wanted
    assert mixture.epoch == 1
    for stop in range(18):
        mixture = mixture_of(tmp_path, [3, 5], *counts)
        drawn(mixture, stop)
        resumed = mixture_of(tmp_path, [3, 5], *counts)
        resumed.load_state_dict(json.loads(json.dumps(mixture.state_dict())))
        assert drawn(resumed, 18 - stop) == wanted[stop:]
    mixture = mixture_of(tmp_path, [3, 5], *counts)
    new = [mixture.streams[number].is_new(row) for number, row in (mixture.next() for _ in range(18))]
    assert new == [True] * 3 + [False] * 4 + [True] * 2 + [False] * 9


def test_a_dataset_of_which_no_row_is_wanted_holds_up_nothing(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, [2, 3], {"sample_count": 0}, {})
    assert drawn(mixture, 6) == [(1, 0), (1, 1), (1, 2)] * 2
    with pytest.raises(DataError, match=r"none that can be learned from: .*sample_count"):
        drawn(mixture_of(tmp_path, [2], {"sample_count": 0}), 1)


# What became of the rows


def counted(tmp_path: Path, *, max_rejected: float, **params: Any) -> StreamedLoader:
    """Every third row is bad, and the last is no JSON."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"n": number}) + "\n" for number in range(9)) + "oops\n")
    split = split_of({"dataset_path": str(path), **params})
    stream = ShuffledRows(FileSource((path,), read_json_lines), split.datasets[0], 5)

    def encode(row: Row) -> Sample:
        if row.data["n"] % 3 == 2:
            raise DataError(f"{row.where}: bad")
        return sample_of(row.data["n"])

    return StreamedLoader(
        Mixture([stream], split, 5),
        [lambda row: prepare(row, encode, None, "error")],
        [Account("a.jsonl", max_rejected)],
        Packer(8, "none", documents=True),
        batch_size=1,
        accumulation=1,
    )


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 7, 13])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stream_counts_each_row_once_also_when_it_is_resumed(tmp_path: Path, stop: int, shuffle: bool) -> None:
    straight = counted(tmp_path, max_rejected=4, shuffle=shuffle, shuffle_buffer_size=3)
    rows = [first_tokens(step) for step in islice(straight.steps(), 20)]
    first = counted(tmp_path, max_rejected=4, shuffle=shuffle, shuffle_buffer_size=3)
    list(islice(first.steps(), stop))
    second = counted(tmp_path, max_rejected=4, shuffle=shuffle, shuffle_buffer_size=3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [first_tokens(step) for step in islice(second.steps(), 20 - stop)] == rows[stop:]
    for loader in (straight, second):
        [account] = loader.accounts
        assert (account.read, account.used, account.closed) == (10, 6, True)
        said = [(kind.reason.partition(":")[0], kind.rows) for kind in account.rejected.values()]
        assert sorted(said) == [("bad", 3), ("not JSON", 1)]


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_steps_of_a_stream_are_counted_and_leave_it_as_it_was(tmp_path: Path, shuffle: bool) -> None:
    """Six rows of ten are good. The last two are not, which is known with the step after them."""
    straight, loader = (
        counted(tmp_path, max_rejected=4, shuffle=shuffle, shuffle_buffer_size=3) for _ in ("straight", "counted")
    )
    steps = loader.count_steps(1)
    assert steps in (6, 7)
    assert loader.count_steps(2.5) == ceil(2.5 * steps)
    assert loader.epoch == 0
    [account] = loader.accounts
    assert (account.read, account.used) == (10, 6)
    rows = [first_tokens(step) for step in islice(straight.steps(), 20)]
    assert [first_tokens(step) for step in islice(loader.steps(), 20)] == rows
    assert (account.read, account.used, account.closed) == (10, 6, True)
    assert account.to_plain() == straight.accounts[0].to_plain()


def cut_short(tmp_path: Path, buffer: int) -> tuple[StreamedLoader, list[set[str]]]:
    """Epochs that end with three rows of the one dataset, whatever is read of the other; and the rows that came."""
    half = {"mixture_proportion": 0.5, "shuffle": True, "shuffle_buffer_size": buffer}
    mixture = mixture_of(tmp_path, [3, 40], half, half)
    came: list[set[str]] = [set(), set()]

    def encode(number: int, row: Row) -> Sample:
        came[number].add(row.where)
        return sample_of(row.data["n"])

    encoders = [used(partial(encode, number)) for number in range(2)]
    accounts = [Account("short"), Account("long")]
    packer = Packer(8, "none", documents=True)
    return StreamedLoader(mixture, encoders, accounts, packer, batch_size=2, accumulation=3), came


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("buffer", [1, 4, 30])
def test_rows_that_an_epoch_left_in_the_buffer_are_counted_when_they_come(
    tmp_path: Path, buffer: int, ahead: bool
) -> None:
    """They were read, and passed for counted. Also after the steps were counted, and wherever it is resumed."""
    loader, came = cut_short(tmp_path, buffer)
    if ahead:
        loader.count_steps(1)
    for _ in range(30):
        next(loader.steps())
        assert [account.read for account in loader.accounts] == [len(rows) for rows in came]
        resumed, _ = cut_short(tmp_path, buffer)
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        resumed.prepare, loader = loader.prepare, resumed
    assert loader.epoch > 5
    assert len(came[1]) > buffer / 2


@pytest.mark.parametrize("packing", ["cut", "whole", "none"])
def test_a_packed_mixture_has_counted_its_steps(tmp_path: Path, packing: str) -> None:
    straight, loader = (streamed(tmp_path, packing=packing) for _ in ("straight", "counted"))
    steps = 0
    for _ in straight.steps():
        steps += 1
        if straight.epoch:
            break
    assert loader.count_steps(1) == steps > 1
    again = streamed(tmp_path, packing=packing)
    ours, theirs = ([tokens(step) for step in islice(one.steps(), 20)] for one in (loader, again))
    assert ours == theirs


def test_of_data_on_the_hub_the_steps_have_to_be_said(tmp_path: Path) -> None:
    loader = counted(tmp_path, max_rejected=4)
    loader.mixture.streams[0].source = SimpleNamespace(revisions={"hf://datasets/a/b@c/d.jsonl": "c"})
    config = RunConfig(model={"model_name": "gpt2"}, training={"num_train_epochs": 2})
    with pytest.raises(UsageError, match=r"training\.max_steps: .* streamed from the Hub .*; say how many steps to"):
        count_steps(config, loader)
    config.training.max_steps = 7
    assert count_steps(config, loader) == 7
    # What is held out of files is known by another name too, and is no data on the Hub.
    loader.mixture.streams[0].source = SimpleNamespace(
        revisions={"a.jsonl (holdout)": "training beside 0.1 by seed 0"},
        rows=counted(tmp_path, max_rejected=4).mixture.streams[0].source.rows,
    )
    config.training.max_steps = -1
    assert count_steps(config, loader) > 0


def test_a_stream_stops_where_too_many_rows_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:3: bad$"):
        list(islice(counted(tmp_path, max_rejected=0).steps(), 5))
    loader = counted(tmp_path, max_rejected=1)
    assert len(list(islice(loader.steps(), 4))) == 4
    with pytest.raises(
        DataError, match=r"2 of 6 rows cannot be used:\n.*rows 3 and 6: bad\n  more than max_rejected: 1 a"
    ):
        next(loader.steps())
    # A share is judged after a hundred rows, or at the end of the epoch.
    loader = counted(tmp_path, max_rejected=0.3)
    assert len(list(islice(loader.steps(), 6))) == 6
    with pytest.raises(DataError, match=r"4 of 10 rows cannot be used:"):
        next(loader.steps())
