"""What wandb would upload holds every line of a run; and a tracker that fails fails nothing."""

from __future__ import annotations

import json
import logging
import struct

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from graftwork.config import RunConfig, check_config
from graftwork.errors import ConfigError
from graftwork.registry import Registry, reset_registry
from graftwork.runs.run import open_run


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    yield
    reset_registry()


def config(folder, **training) -> RunConfig:
    return RunConfig(model={"model_name": "m"}, training={"output_dir": str(folder), **training})


def sitting(folder, steps: range, *, resume: bool = False, **training):
    """What a trainer does with its run, without the training."""
    run = open_run(config(folder, enable_tensorboard=False, **training), resume=resume)
    run.start(steps.start - 1)
    for step in steps:
        run.log(step, {"loss": 1.0 / step})
    run.log(steps.stop - 1, {"eval_loss": 0.5})
    run.finish(None)
    return run


BLOCK, HEADER = 32768, 7


def entries(data: bytes):
    """The entries of a file in LevelDB's log format: blocks of pieces, each with checksum, length and kind."""
    place, whole = HEADER, b""  # wandb's own mark takes the place of a first header
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # full, or the last piece
            yield whole
            whole = b""


def recorded(file) -> tuple[str, list[dict], list[int]]:
    """The run's id, its history, and its exit codes, as wandb would upload them."""
    ids, history, exits = [], [], []
    for entry in entries(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(entry)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            ids.append(record.run.run_id)
        elif kind == "history":
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            history.append({key: value for key, value in values.items() if not key.startswith("_")})
        elif kind == "exit":
            exits.append(record.exit.exit_code)
    return ids[0], history, exits


def test_a_run_and_its_second_sitting_are_one_curve(tmp_path):
    sitting(tmp_path / "run", range(1, 3), enable_wandb=True)
    sitting(tmp_path / "run", range(3, 4), resume=True, enable_wandb=True)
    first, second = sorted(
        (tmp_path / "run").glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime
    )
    known, history, exits = recorded(first)
    assert history == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 2, "eval_loss": 0.5}]
    assert exits == [0]
    again, history, _ = recorded(second)
    assert again == known
    assert [line["step"] for line in history] == [3, 3]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["wandb_id"] == known


def test_nothing_is_tracked_where_it_was_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", None)
    sitting(tmp_path / "run", range(1, 3))
    assert not (tmp_path / "run" / "wandb").exists()


def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(**settings):
        raise wandb.errors.CommError("no route to api.wandb.ai")

    monkeypatch.setattr(wandb, "init", refuse)
    reset_registry()
    with caplog.at_level(logging.WARNING):
        run = sitting(tmp_path / "run", range(1, 4), enable_wandb=True)
    (said,) = [record.getMessage() for record in caplog.records if "wandb" in record.getMessage()]
    assert "failed in graftwork_run_started: CommError: no route to api.wandb.ai; the run goes on" in said
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()] == [1, 2, 3, 3]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_asking_for_it_without_the_plugin_names_the_package(tmp_path, monkeypatch):
    given = config(tmp_path / "run", enable_wandb=True)
    with pytest.raises(ConfigError) as error:
        check_config(given)
    assert "enable_wandb" not in str(error.value), "the plugin is here"
    monkeypatch.setenv("GRAFTWORK_DISABLE_PLUGINS", "wandb")
    reset_registry()
    with pytest.raises(ConfigError, match=r"training.enable_wandb = True: the plugin wandb, .* is blocked: "):
        check_config(given)
    monkeypatch.setattr("graftwork.config.checks.get_registry", lambda: Registry([], {}))
    with pytest.raises(ConfigError, match="is not installed: pip install graftwork-wandb"):
        check_config(given)
