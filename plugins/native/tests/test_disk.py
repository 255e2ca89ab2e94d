"""A disk that is full, a folder that cannot be written: said with place and remedy, nothing half-written, resumable."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graftwork import files, train
from graftwork.cli import main
from graftwork.errors import DataError, RunError, UsageError
from graftwork.runs import room
from graftwork.runs import run as run_module


@pytest.fixture
def small(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> Any:
    return toys.config(tmp_path, llama, chat, training={"save_steps": 2, "max_steps": 6})


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


def leftovers(run: Path) -> list[Path]:
    return [path for path in run.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("what", ["model", "optimizer", "state", "sync"])
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch, toys: Any, what: str
) -> None:
    """Whoever hits the end of the disk: nothing of the checkpoint stays, and the run goes on from the one before."""
    import safetensors.torch
    import torch
    from transformers import modeling_utils

    run = tmp_path / "run"
    train(
        small.model_copy(update={"training": small.training.model_copy(update={"output_dir": str(tmp_path / "whole")})})
    )
    saves: list[int] = []

    def at_the_second(function: Any, error: Any = full_disk) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            saves.append(1)
            return error() if (run / "checkpoints" / "step-2").exists() else function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if what == "model":

            def safetensors_error() -> None:
                raise safetensors.SafetensorError(
                    "Error while serializing: I/O error: No space left on device (os error 28)"
                )

            patch.setattr(
                modeling_utils, "safe_save_file", at_the_second(modeling_utils.safe_save_file, safetensors_error)
            )
        elif what == "optimizer":

            def torch_error() -> None:
                raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

            patch.setattr(torch, "save", at_the_second(torch.save, torch_error))
        elif what == "state":
            patch.setattr(Path, "write_text", at_the_second(Path.write_text))
        else:
            sync = files.sync
            patch.setattr(files, "sync", lambda path: full_disk() if "step-4" in str(path) else sync(path))
            saves.append(1)
        with pytest.raises(RunError, match=r"step-4 could not be written: .*nothing of it was left behind\. Make room"):
            train(small)
    assert saves
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"]
    assert leftovers(run) == []
    if what != "state":  # where the record could not be written either, it still says running
        record = json.loads((run / "run.json").read_text())
        assert record["status"] == "failed"
        assert "step-4 could not be written" in record["error"]
    train(small, resume=True)
    name = Path("final") / "model.safetensors"
    assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [row["loss"] for row in toys.metrics(run) if "loss" in row] == [
        row["loss"] for row in toys.metrics(tmp_path / "whole") if "loss" in row
    ]


SMALL_DISK = "mount -t tmpfs -o size=300k tmpfs {folder}"
"""In a name space of its own: it is gone with the process, and no right is needed for it."""


def in_own_names(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", command], capture_output=True, text=True, check=False
    )


def test_a_disk_that_is_really_full(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    """The model fits and the optimizer does not: PyTorch's zip writer says no word of the disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = SMALL_DISK.format(folder=disk)
    if shutil.which("unshare") is None or in_own_names(mount).returncode:
        pytest.skip("a small disk of one's own cannot be had here")
    config = toys.config(tmp_path, llama, chat, training={"save_steps": 2, "output_dir": str(disk / "run")})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    run = in_own_names(
        f"{mount} && {sys.executable} -m graftwork train -c {tmp_path / 'config.yaml'}; ls -A {disk}/run/*"
    )
    checkpoints = disk / "run" / "checkpoints"
    assert re.search(
        rf"Error: {checkpoints}/step-2 could not be written: the disk that {checkpoints} lies on is full "
        r"\(No space left on device\)\. It takes "
        r"about 0\.37 MiB, and there was room for 0\.2\d MiB; nothing of it was left behind\. Make room or choose "
        "another training.output_dir, then go on from the last checkpoint with --resume",
        run.stderr,
    ), run.stderr
    assert "step-2" not in run.stdout


def test_the_disk_is_asked_where_an_error_has_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped = RuntimeError("unexpected pos 704 vs 598")
    assert room.full_number(tmp_path, zipped) is None
    assert room.full_number(tmp_path, OSError(errno.EDQUOT, "over quota")) == errno.EDQUOT
    assert room.full_number(tmp_path, OSError(errno.EROFS, "read-only")) is None
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO):

        def refuse(handle: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refuse)
        assert room.full_number(tmp_path, zipped) == (None if number == errno.EIO else number)
    assert list(tmp_path.iterdir()) == []


def test_metrics_that_do_not_fit(tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line is on the disk when it is full; the run says so and goes on later."""
    run = tmp_path / "run"
    append = run_module.Run._append

    def half(self: Any, path: Path, data: Any) -> None:
        if data["step"] == 3:
            with run_module.explained(path), path.open("a") as file:
                file.write(json.dumps(data)[:20])
                file.flush()
                full_disk()
        append(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "_append", half)
        with pytest.raises(RunError, match=r"No space left on device; make room .* then go on with --resume"):
            train(small)
    assert not (run / "metrics.jsonl").read_text().endswith("\n")
    train(small, resume=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 7))


def test_the_final_model_that_does_not_fit(tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from graftwork_native import trainer

    with monkeypatch.context() as patch:
        save = trainer.save_model
        patch.setattr(trainer, "save_model", lambda folder, *args: save(folder, *args) or full_disk())
        with pytest.raises(RunError, match=r"final could not be written: .*No space left on device"):
            train(small)
    assert not (tmp_path / "run" / "final").exists()
    assert leftovers(tmp_path / "run") == []
    assert train(small, resume=True).model_path == tmp_path / "run" / "final"


def test_files_that_may_not_grow(tmp_path: Path, graft: Any, small: Any) -> None:
    """A real process at a real limit: no file may be larger than 60 kB, and the model is."""
    path = tmp_path / "config.yaml"
    path.write_text(small.to_yaml())
    assert graft("train", "-c", str(path), file_bytes=60_000) == 1
    assert "step-2 could not be written" in graft.said
    assert "Traceback" not in graft.said
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert leftovers(tmp_path / "run") == []
    assert graft("train", "-c", str(path), "--resume") == 0, graft.said


def test_a_file_where_a_folder_should_be(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    config = toys.config(tmp_path, llama, chat, training={"output_dir": str(tmp_path / "file" / "run")})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert main(["train", "-c", str(path)]) in (1, 2)
    said = capsys.readouterr().err
    assert "Not a directory" in said or "is a file" in said
    assert "training.output_dir" in said
    assert "Traceback" not in said


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a file system that nobody can write to: /sys")
def test_a_folder_that_nobody_can_write_to(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    """Also root, who may write where permissions say no."""
    config = toys.config(tmp_path, llama, chat, training={"output_dir": "/sys/graftwork-run"})
    with pytest.raises(UsageError, match=r"the folder /sys/graftwork-run cannot be made \(.*\); choose another"):
        train(config)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Make room or choose another training.output_dir, then go on"),
        (errno.EDQUOT, "Make room or choose another training.output_dir, then go on"),
        (errno.EROFS, "Make the folder writable or choose another training.output_dir, then go on"),
        (errno.EACCES, "Make the folder writable or choose another training.output_dir, then go on"),
        (errno.ESTALE, "The run folder was removed or moved while the run was writing to it; put it back, then go on"),
    ],
)
def test_what_helps_depends_on_what_is_wrong(
    tmp_path: Path, small: Any, toys: Any, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    """A file system that changes under the run: the checkpoint before stays, and the run goes on from it."""
    sync, run = files.sync, tmp_path / "run"

    def refuse(path: Path) -> None:
        if "step-4" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", refuse)
        with pytest.raises(RunError) as caught:
            train(small)
    assert f"step-4 could not be written: [Errno {number}]" in str(caught.value)
    assert advice in str(caught.value)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"]
    assert train(small, resume=True).step == 6


@pytest.mark.parametrize("save_steps", [2, 0])
def test_a_folder_that_is_removed_in_the_middle(toys: Any, tmp_path: Path, small: Any, save_steps: int) -> None:
    """Said as what it is, and no half of a run is made in its place."""
    config = toys.changed(small, save_steps=save_steps, logging_strategy="no", output_dir=str(tmp_path / "run"))

    def remove(run: Any, step: int, metrics: Any) -> None:
        shutil.rmtree(run.folder)

    # The first line is the evaluation's before the first step; nothing is logged until the end
    config = toys.changed(config, max_steps=4)
    with pytest.raises(RunError, match=r"the run folder was removed or moved while the run was writing to it; put it"):
        train(config, listeners=[remove])
    assert not (tmp_path / "run" / "final").exists()
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_folder_that_is_moved_and_put_back(toys: Any, tmp_path: Path, small: Any) -> None:
    """What was saved is gone on from."""
    run, away = tmp_path / "run", tmp_path / "away"

    def move(found: Any, step: int, metrics: Any) -> None:
        if step == 3:
            run.rename(away)

    with pytest.raises(RunError, match="the run folder was removed or moved while the run was writing to it"):
        train(small, listeners=[move])
    away.rename(run)
    assert train(small, resume=True).step == 6
    train(toys.changed(small, output_dir=str(tmp_path / "whole")))
    assert toys.weights(run) == toys.weights(tmp_path / "whole")


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_a_record_that_does_not_fit(
    toys: Any, tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The old record or the new one, and the folder can be used."""
    write = run_module.write_text

    def full_for(path: Path, text: str) -> None:
        if path.name == name and "max_steps" in text + name:
            full_disk()
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_text", full_for if name == "config.yaml" else lambda *_: full_disk())
        with pytest.raises(RunError, match=r"No space left on device; make room or choose another"):
            train(small)
    assert leftovers(tmp_path) == []
    assert train(small, resume=(tmp_path / "run" / "run.json").exists()).step == 6


def test_curves_that_do_not_fit_do_not_end_the_run(
    toys: Any, tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorBoard is a listener: said once, and the training goes on."""
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    monkeypatch.setattr(writer, "add_scalar", full_disk)
    assert train(toys.changed(small, enable_tensorboard=True)).step == 6
    assert caplog.text.count("failed in graftwork_step_finished: OSError: [Errno 28] No space left on device") == 1


@pytest.mark.parametrize("resumed", [False, True])
def test_a_preparation_that_dies_leaves_the_folder_right(
    toys: Any, tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    """A worker that was killed, for instance: a new run is taken back, one that had begun is what it was."""
    from graftwork_native import setup

    if resumed:
        train(toys.changed(small, max_steps=4))
    before = toys.weights(tmp_path / "run") if resumed else {}
    with monkeypatch.context() as patch:

        def died(*_: Any) -> None:
            raise DataError("a worker that prepared rows ended by signal 9")

        patch.setattr(setup, "load_split", died)
        with pytest.raises(DataError, match="ended by signal 9"):
            train(small, resume=resumed)
    assert (tmp_path / "run").exists() == resumed
    assert (toys.weights(tmp_path / "run") if resumed else {}) == before
    assert train(small, resume=resumed).step == 6
    train(toys.changed(small, output_dir=str(tmp_path / "whole")))
    if not resumed:
        assert toys.weights(tmp_path / "run") == toys.weights(tmp_path / "whole")


def test_a_worker_that_dies_between_steps_costs_nothing(
    toys: Any, tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loader raises ends the run; it goes on from the last checkpoint to the same numbers."""
    from graftwork.data.indexed import IndexedLoader

    steps = IndexedLoader.steps

    def some(self: IndexedLoader) -> Any:
        for number, rows in enumerate(steps(self)):
            if number == 3:
                raise DataError("a worker that prepared rows ended by signal 9")
            yield rows

    with monkeypatch.context() as patch:
        patch.setattr(IndexedLoader, "steps", some)
        with pytest.raises(DataError, match="ended by signal 9"):
            train(small)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "a worker that prepared rows ended by signal 9")
    train(small, resume=True)
    train(toys.changed(small, output_dir=str(tmp_path / "whole")))
    assert toys.weights(tmp_path / "run") == toys.weights(tmp_path / "whole")
