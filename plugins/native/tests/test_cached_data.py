"""Whole runs with prepared samples made anew, read back from the cache, and without a cache: the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from graftwork.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def train(toys: Any, folder: Path, llama: Path, data: dict[str, Any]) -> tuple[list[Any], dict[str, bytes]]:
    """The metrics and the weights of a run in ``folder``."""
    folder.mkdir()
    path = folder / "run.yaml"
    path.write_text(toys.config(folder, llama, data, training={"eval_steps": 2}).to_yaml())
    assert main(["train", "-c", str(path)]) == 0
    return toys.numbers(folder / "run"), toys.weights(folder / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_runs_with_and_without_a_cache_are_one(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    chat["train"]["datasets"][0]["transform_num_workers"] = workers
    chat["train"]["pack"] = True
    cache = tmp_path / "cache"
    monkeypatch.setenv("GRAFTWORK_CACHE", "off")
    off, off_weights = train(toys, tmp_path / "off", llama, chat)
    assert not cache.exists()
    monkeypatch.setenv("GRAFTWORK_CACHE", str(cache))
    empty, empty_weights = train(toys, tmp_path / "empty", llama, chat)
    kept = sorted(path.name for path in (cache / "samples").iterdir())
    assert len(kept) == 2  # one for training, one for the evaluation

    def refuse(*_: Any) -> Any:
        raise AssertionError("the rows are prepared again")

    monkeypatch.setattr("graftwork.data.loader.prepare_rows", refuse)
    full, full_weights = train(toys, tmp_path / "full", llama, chat)
    assert sorted(path.name for path in (cache / "samples").iterdir()) == kept
    assert any("loss" in row for row in off)
    assert off == empty == full
    assert off_weights == empty_weights == full_weights != {}
