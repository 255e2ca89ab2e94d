"""The run folder: whose it is, what is appended, what is dropped."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from graftwork.config import RunConfig
from graftwork.errors import RunError, UsageError
from graftwork.runs import checkpoints
from graftwork.runs.checkpoints import damage, new_checkpoint, read_seal
from graftwork.runs.run import Run, keep_lines, open_run, read_lines, read_record, read_settings, step_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def make_config(folder: Path, **training: Any) -> RunConfig:
    training = {"output_dir": str(folder), "enable_tensorboard": False, **training}
    return RunConfig.model_validate({"model": {"model_name": "./somewhere"}, "training": training})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = open_run(make_config(tmp_path / "run"), resume=False)
    yield run
    run.release()


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_folder(run: Run) -> None:
    assert files_of(run.folder) == {"run.json", "config.yaml", "checkpoints", ".lock"}
    saved = RunConfig.model_validate(yaml.safe_load((run.folder / "config.yaml").read_text()))
    assert saved == run.config
    assert (run.fresh, run.started) == (True, False)


def test_a_run_that_never_began_is_taken_back(tmp_path: Path, run: Run) -> None:
    run.discard()
    assert not run.folder.exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    again = open_run(make_config(tmp_path / "run"), resume=False)
    again.discard()
    assert files_of(tmp_path / "run") == {"notes.txt"}, "somebody's own file stays, and so does its folder"


def test_a_run_is_only_gone_on_with(run: Run) -> None:
    run.update(status="finished")
    run.release()
    with pytest.raises(
        UsageError, match=r"training\.output_dir: .*run holds a run already; go on with it \(--resume\)"
    ):
        open_run(run.config, resume=False)
    again = open_run(run.config, resume=True)
    assert (again.record["status"], again.fresh) == ("finished", False)
    again.release()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "final", "tensorboard"])
def test_what_a_run_would_write_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=rf"{tmp_path} has {name} in it, which no run here wrote .*choose another"):
        open_run(make_config(tmp_path), resume=False)
    assert (tmp_path / name).read_text() == "mine"


def test_two_at_once(run: Run) -> None:
    with pytest.raises(RunError, match=r"another process is writing to this run; wait for it, or stop it first"):
        open_run(run.config, resume=True)
    run.release()
    open_run(run.config, resume=True).release()


def test_a_damaged_record(run: Run) -> None:
    (run.folder / "run.json").write_text('{"status": ')
    run.release()
    with pytest.raises(RunError, match=r"run\.json is damaged .*as training\.resume_from_checkpoint"):
        open_run(run.config, resume=True)
    with pytest.raises(RunError, match="damaged"):
        open_run(run.config, resume=True)  # not: another process is writing to this run


def test_a_record_without_configuration_gets_one(run: Run) -> None:
    """Killed between the two files."""
    (run.folder / "config.yaml").unlink()
    run.release()
    open_run(run.config, resume=True).release()
    assert (run.folder / "config.yaml").exists()


def test_checkpoints_are_counted_not_spelled(run: Run) -> None:
    for name in ("step-9", "step-10", "step-2", ".step-11.4.tmp", ".step-1.old", "step-best", "notes"):
        (run.folder / "checkpoints" / name).mkdir()
    assert [path.name for path in run.checkpoints] == ["step-2", "step-9", "step-10"]
    assert step_of(Path("step-0")) == 0


def test_metrics_are_lines_and_listeners_hear_them(run: Run) -> None:
    heard: list[Any] = []
    run.listeners.append(lambda *args: heard.append(args))
    run.log(1, {"loss": 2.5})
    run.log(1, {"eval_loss": 3.0})
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 2.5}, {"step": 1, "eval_loss": 3.0}]
    assert heard == [(run, 1, {"loss": 2.5}), (run, 1, {"eval_loss": 3.0})]


def test_samples_of_a_stage_are_written_once(run: Run) -> None:
    for completion in ("first", "after a resume"):
        run.log_samples(
            4, "half-way", [{"prompt": "p", "completion": completion}, {"prompt": "q", "completion": "\u2028"}]
        )
    run.log_samples(8, "after training", [{"prompt": "p", "completion": "c"}])
    rows = read_lines(run.samples_path)
    assert [(row["step"], row["stage"], row["completion"]) for row in rows] == [
        (4, "half-way", "first"),
        (4, "half-way", "\u2028"),
        (8, "after training", "c"),
    ]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (1, [0, 1, 1]), (2, [0, 1, 1, 2]), (9, [0, 1, 1, 2, 3])])
def test_lines_up_to_the_checkpoint_stay(tmp_path: Path, step: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": number, "text": "ä\u2028"} for number in (0, 1, 1, 2, 3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text + "\x00\x00\n[1]\n" + '{"step": 1, "te', encoding="utf-8")
    keep_lines(path, step)
    assert [row["step"] for row in read_lines(path)] == kept
    keep_lines(tmp_path / "none.jsonl", step)
    assert not (tmp_path / "none.jsonl").exists()


def test_an_evaluation_that_is_made_again_is_one_line(run: Run) -> None:
    for step in (1, 2, 3):
        run.log(step, {"loss": 1.0})
        run.log(step, {"eval_loss": 2.0})
    run.start(2, evaluated=False)
    rows = read_lines(run.metrics_path)
    assert [(row["step"], "eval_loss" in row) for row in rows] == [(1, False), (1, True), (2, False)]


def test_a_folder_that_went_is_not_made_anew(run: Run) -> None:
    shutil.rmtree(run.folder)
    with pytest.raises(RunError, match=r"run: the run folder was removed or moved .*put it back, then go on with"):
        run.require_folder()
    with pytest.raises(RunError, match="the run folder was removed or moved"), new_checkpoint(run, 3):
        pytest.fail("there is no folder to write into")
    with pytest.raises(RunError, match=r"metrics\.jsonl: No such file .*the run folder was removed or moved"):
        run.log(1, {"loss": 1.0})
    assert not run.folder.exists()


def test_a_checkpoint_is_all_of_it_or_nothing(run: Run) -> None:
    with pytest.raises(ZeroDivisionError), new_checkpoint(run, 3) as folder:
        (folder / "half").write_text("x")
        raise ZeroDivisionError
    assert files_of(run.folder / "checkpoints") == set()
    with new_checkpoint(run, 3, {"eval_loss": float("nan")}) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
    path = run.folder / "checkpoints" / "step-3"
    assert damage(path) is None
    assert list(read_seal(path)["files"]) == ["sub/file"]
    (path / "sub" / "file").unlink()
    (path / "sub" / "file").mkdir()
    assert damage(path) == "sub/file is missing"


def test_a_file_that_the_disk_does_not_give_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_checkpoint(run, 3) as folder:
        (folder / "file").write_text("x")

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoints, "digest_of", broken)
    assert damage(run.folder / "checkpoints" / "step-3") == "file cannot be read (Input/output error)"


def test_a_start_says_so_and_keeps_the_first_time(run: Run) -> None:
    run.start(0)
    record = json.loads((run.folder / "run.json").read_text())
    assert (record["status"], record["resumed_from"]) == ("running", None)
    run.start(3)
    again = json.loads((run.folder / "run.json").read_text())
    assert (again["started"], again["resumed_from"], run.start_step) == (record["started"], 3, 3)


@pytest.mark.parametrize(
    ("error", "interrupted", "status"),
    [(None, False, "finished"), (None, True, "interrupted"), (ValueError("why"), False, "failed")],
)
def test_an_end_is_written_down_with_a_report(run: Run, error: Any, interrupted: bool, status: str) -> None:
    run.start(0)
    run.log(1, {"loss": 2.5})
    run.finish(error, interrupted=interrupted, step=1)
    record = json.loads((run.folder / "run.json").read_text())
    assert (record["status"], record["error"]) == (status, "why" if error else None)
    assert (run.folder / "report.html").exists()
    open_run(run.config, resume=True).release()


def test_a_report_that_fails_is_only_said(run: Run, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    from graftwork.runs import report

    def broken(folder: Path) -> None:
        raise ZeroDivisionError("no curve")

    monkeypatch.setattr(report, "write_report", broken)
    run.finish(None)
    assert "no report: ZeroDivisionError: no curve" in caplog.text
    assert json.loads((run.folder / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("run.json", b"", "Expecting value"),
        ("run.json", b"[]", "it holds no names and values"),
        ("run.json", b"null", "it holds no names and values"),
        ("run.json", b'{"data": 3}', "its fields are not what a run writes"),
        ("run.json", b'{"data": {"train": []}}', "its fields are not what a run writes"),
        ("run.json", b'{"begun_with": 2}', "its fields are not what a run writes"),
        ("run.json", b"\xff\x00", "can't decode byte"),
        ("config.yaml", b"", "it holds no names and values"),
        ("config.yaml", b"model: {a: [b", "while parsing a flow sequence"),
        ("config.yaml", b"- 1", "it holds no names and values"),
        ("config.yaml", b"model: 3", "its sections are not what a run writes"),
        ("config.yaml", b"\xff\xfe\x00", "can't decode byte"),
    ],
)
def test_a_damaged_file_of_the_run_is_said_with_the_way_on(run: Run, name: str, content: bytes, reason: str) -> None:
    (run.folder / name).write_bytes(content)
    with pytest.raises(RunError) as caught:
        (read_record if name == "run.json" else read_settings)(run.folder / name)
    assert str(caught.value).startswith(f"{run.folder / name} is damaged (")
    assert reason in str(caught.value)
    assert "give it as training.resume_from_checkpoint, and another training.output_dir" in str(caught.value)


def test_lines_of_something_else_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": null}\n{"step": "1"}\n\xff\xfe{"step": 1}\n{"step": 1, "loss": 2.0}\n')
    keep_lines(path, 3)
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'


@pytest.mark.parametrize("content", ["[]", "3", "null", "[" * 100_000])
def test_a_seal_that_is_something_else(run: Run, content: str) -> None:
    with new_checkpoint(run, 3):
        pass
    (run.folder / "checkpoints" / "step-3" / "checkpoint.json").write_text(content)
    assert str(damage(run.folder / "checkpoints" / "step-3")).startswith("checkpoint.json cannot be read (")


def test_a_folder_that_cannot_be_made_is_said_so() -> None:
    said = (
        r"^training\.output_dir: the folder /proc/x cannot be made \(No such file .*: /proc/x.*\); choose another one"
    )
    with pytest.raises(UsageError, match=said):
        open_run(make_config(Path("/proc/x")), resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_checkpoints_without_a_run_json_are_recognised(run: Run, resume: bool) -> None:
    for step in (1, 2):
        with new_checkpoint(run, step) as folder:
            (folder / "model").write_text("weights")
    run.release()
    (run.folder / "run.json").unlink()
    (run.folder / "checkpoints" / "step-2" / "model").write_text("other")
    newest = run.folder / "checkpoints" / "step-1"
    said = (
        rf"run\.json is missing in {run.folder}, .* whole is step-1\); .* training\.resume_from_checkpoint={newest} and"
    )
    with pytest.raises(UsageError, match=said):
        open_run(run.config, resume=resume)
    again = open_run(make_config(run.folder.parent / "other"), resume=True)  # what it says can be done
    assert damage(newest) is None
    again.release()
    (newest / "model").unlink()
    with pytest.raises(UsageError, match=r"run\.json is missing .* none of its checkpoints \(step-2\) is whole; bring"):
        open_run(run.config, resume=resume)
