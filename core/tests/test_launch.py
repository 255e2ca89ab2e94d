"""Several processes of one machine: started together, stopped together, and the one that failed is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from graftwork.config import RunConfig
from graftwork.errors import UsageError
from graftwork.launch import Place, local
from graftwork.launch.batch import describe_batch, divisors, forgive_accumulation, keep_global_batch
from graftwork.launch.local import LaunchError, Rank, launch, shared_environment, shell_code, together
from graftwork.runs.signals import STOPPING, handled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def start(*programs: str) -> list[Callable[[], Rank]]:
    """What starts a process for each program."""
    return [
        partial(Rank, number, [sys.executable, "-c", textwrap.dedent(program)], dict(os.environ))
        for number, program in enumerate(programs)
    ]


def test_one_process_is_the_first_of_one() -> None:
    assert Place.here() == Place(0, 1, 0, 1)
    assert Place.here().is_main


def test_a_place_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert Place.here() == Place(3, 4, 1, 2)
    assert not Place.here().is_main


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "the environment variable RANK is not set; torchrun, accelerate launch and graft train"),
        ({"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is 'two', which is no whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2: the ranks of WORLD_SIZE=2 processes are 0 to 1"),
    ],
)
def test_half_a_place_is_refused(environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        Place.here()
    assert said in str(caught.value)


def test_all_that_end_well_are_zero() -> None:
    assert together(start("pass", "pass")) == 0


def test_the_first_that_fails_is_named_and_the_others_are_stopped(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.2)
    starts = start("import signal; signal.pause()", "import sys; print('Error: no room', file=sys.stderr); sys.exit(2)")
    ranks = [begin() for begin in starts]
    with pytest.raises(LaunchError) as caught:
        together([lambda rank=rank: rank for rank in ranks])
    assert str(caught.value) == "rank 1 of 2 ended with exit code 2: no room"
    assert caught.value.exit_code == 2
    assert ranks[0].process.returncode == -signal.SIGKILL
    assert "[rank 1] Error: no room" in capfd.readouterr().err


def test_one_that_is_killed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.2)
    with pytest.raises(LaunchError) as caught:
        together(start("import os; os.kill(os.getpid(), 9)", "import time; time.sleep(60)"))
    assert str(caught.value) == "rank 0 of 2 was ended by SIGKILL (out of memory?)"
    assert caught.value.exit_code == 137


def test_the_first_process_speaks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.2)
    with pytest.raises(LaunchError, match="rank 0 of 1 ended with exit code 7: its message stands above"):
        together(start("raise SystemExit(7)"))


SAVING = """
    import signal, sys, time
    def save(number, frame):
        time.sleep(0.2)
        sys.exit(128 + number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, save)
    open({ready!r}, "w").close()
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_reaches_every_process_once(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """The launcher in a process of its own, as a scheduler or a terminal sees it."""
    ready = [tmp_path / "0", tmp_path / "1"]
    programs = [textwrap.dedent(SAVING).format(ready=str(path)) for path in ready]
    launcher = f"""
        import os, sys
        from functools import partial
        from graftwork.launch.local import Rank, together
        commands = [[sys.executable, "-c", program] for program in {programs!r}]
        sys.exit(together([partial(Rank, i, command, dict(os.environ)) for i, command in enumerate(commands)]))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(launcher)])
    end = time.monotonic() + 30
    while not all(path.exists() for path in ready):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == code


def test_a_signal_while_processes_are_started_leaves_none_behind(tmp_path: Path) -> None:
    """The second one is not started, and the first one ends before the launcher does."""
    ready, started = tmp_path / "ready", []
    [first] = start(textwrap.dedent(SAVING).format(ready=str(ready)))

    def begin() -> Rank:
        started.append(first())
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        return started[-1]

    def never() -> Rank:
        raise AssertionError("started after a signal")

    assert together([begin, never]) == 143
    assert started[0].process.returncode == 143


def test_a_killed_launcher_leaves_no_process_behind() -> None:
    """What it started hears SIGTERM, and so saves; the pipe's end is reached when the last process has gone."""
    program = """
        import os, signal, sys
        from graftwork.launch.child import follow
        def save(number, frame):
            print("saved", flush=True)
            sys.exit(128 + number)
        signal.signal(signal.SIGTERM, save)
        follow(int(sys.argv[1]))
        print("ready", flush=True)
        signal.pause()
    """
    launcher = f"""
        import os, sys
        from functools import partial
        from graftwork.launch.local import Rank, together
        command = [sys.executable, "-c", {textwrap.dedent(program)!r}, str(os.getpid())]
        together([partial(Rank, 0, command, dict(os.environ))])
    """
    command = [sys.executable, "-c", textwrap.dedent(launcher)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.stdout.read() == "saved\n"


def test_a_process_whose_launcher_is_gone_already_ends() -> None:
    done = subprocess.run([sys.executable, "-m", "graftwork.launch.child", "0", "--help"], check=False)
    assert done.returncode == -signal.SIGTERM


def test_what_a_process_is_told_to_do_comes_after_its_launcher() -> None:
    command = [sys.executable, "-m", "graftwork.launch.child", str(os.getpid()), "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("graft")


def test_a_process_of_a_launch_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError) as caught:
        launch(["train"], 2)
    assert str(caught.value) == (
        "--nproc-per-node 2: this process is one of WORLD_SIZE=4 already; leave the option out under torchrun, "
        "accelerate launch and srun"
    )


def test_processes_are_told_what_the_launcher_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graftwork.cli import main

    given: list[Any] = []
    monkeypatch.setattr("graftwork.launch.local.launch", lambda arguments, count: given.append((arguments, count)) or 3)
    path = tmp_path / "run.yaml"
    (tmp_path / "text.txt").write_text("a text")
    data = f"{{train: {{datasets: [{{dataset_name: text, dataset_path: {tmp_path / 'text.txt'}}}]}}}}"
    path.write_text(f"model: {{model_name: some/model}}\ndata: {data}\n")
    command = ["--debug", "train", "-c", str(path), "--resume", "--nproc-per-node", "2", "training.max_steps=3"]
    with pytest.raises(SystemExit, match="3"):
        main(command)
    assert given == [(["--debug", "train", "-c", str(path), "--resume", "training.max_steps=3"], 2)]


@pytest.mark.parametrize(
    ("programs", "code"),
    [
        (("say(2, 'no room')", "time.sleep(60)"), 2),
        (("say(2, 'no room')", "say(2, 'no room')"), 2),
        (("time.sleep(60)", "say(1, 'no room')"), 1),
    ],
    ids=["found by the first", "found by both", "found by the second"],
)
def test_what_processes_fail_with_is_said_once(
    programs: tuple[str, str], code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launched(programs, monkeypatch) == code
    assert [line.removeprefix("[rank 1] ") for line in capfd.readouterr().err.splitlines()] == ["Error: no room"]


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        (("time.sleep(1); say(1, 'lost another')", "say(2, 'no room')"), "rank 1 of 2 ended with exit code 2: no room"),
        (("time.sleep(1); say(1, 'lost another')", "os.kill(os.getpid(), 9)"), "rank 1 of 2 was ended by SIGKILL"),
        (("time.sleep(60)", "os._exit(7)"), "rank 1 of 2 ended with exit code 7"),
    ],
)
def test_the_first_of_several_that_fail_is_named(
    programs: tuple[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LaunchError) as caught:
        launched(programs, monkeypatch)
    assert said in str(caught.value)


def launched(programs: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a launch whose processes are these: ``say`` fails as ``graft`` does."""
    before = """
        import os, sys, time
        from graftwork.cli import _report
        from graftwork.errors import GraftworkError
        def say(code, text):
            error = GraftworkError(text)
            error.exit_code = code
            sys.exit(_report(error))
    """
    sources = [f"{textwrap.dedent(before)}\n{program}" for program in programs]

    def rank(number: int, command: Any, environment: dict[str, str]) -> Rank:
        return Rank(number, [sys.executable, "-c", sources[number]], environment)

    monkeypatch.setattr(local, "Rank", rank)
    monkeypatch.setattr(local, "GRACE_S", 2.0)
    return launch([], 2)


def test_processes_share_the_cores_and_find_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    with caplog.at_level("INFO", logger="graftwork"):
        environment = shared_environment(2, tmp_path)
    assert environment["OMP_NUM_THREADS"] == "4"
    assert caplog.messages == ["2 processes on 8 cores: OMP_NUM_THREADS=4 in each"]
    assert environment["GRAFTWORK_RENDEZVOUS"] == (tmp_path / "rendezvous").as_uri()
    assert environment["MASTER_ADDR"] == "127.0.0.1"
    assert shared_environment(16, tmp_path)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in shared_environment(2, tmp_path)


def test_shell_codes() -> None:
    assert [shell_code(code) for code in (0, 2, -9)] == [0, 2, 137]


def config(accumulation: int, size: int = 2) -> RunConfig:
    training = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": size}
    return RunConfig.model_validate({"model": {"model_name": "m"}, "training": training})


def begun(processes: int, accumulation: int) -> dict[str, Any]:
    return describe_batch(config(accumulation), {}, processes)


@pytest.mark.parametrize(
    ("record", "asked", "processes", "accumulation"),
    [
        (begun(2, 3), 3, 2, 3),  # as before
        (begun(2, 3), 3, 1, 6),
        (begun(2, 3), 3, 3, 2),
        (begun(1, 4), 4, 4, 1),
        (begun(2, 3), 6, 1, 6),  # the user has done the sum
        (begun(2, 3), 5, 1, 5),  # another step, which the comparison of the configurations refuses
        ({}, 3, 2, 3),  # a run that took no step
    ],
)
def test_a_step_keeps_its_size(record: dict[str, Any], asked: int, processes: int, accumulation: int) -> None:
    kept = keep_global_batch(config(asked), record, processes)
    assert kept.training.gradient_accumulation_steps == accumulation


def test_the_record_keeps_what_a_run_began_with() -> None:
    record = begun(2, 3)
    assert describe_batch(config(6), record, 1) == {"processes": 1, "begun_with": record["begun_with"]}


def test_a_step_that_does_not_divide_is_refused_with_its_numbers() -> None:
    with pytest.raises(UsageError) as caught:
        keep_global_batch(config(3), begun(2, 3), 4)
    assert str(caught.value) == (
        "a step of this run is 12 samples (2 per device x 2 processes x 3 of gradient_accumulation_steps), which 4 "
        "processes cannot share evenly; go on with 1, 2, 3 or 6 of them"
    )
    assert divisors(1) == "1"


def test_an_accumulation_is_no_change_where_the_step_is_the_same() -> None:
    before = {"training": {"gradient_accumulation_steps": 3, "seed": 1}, "model": {}}
    same = forgive_accumulation(before, config(6), begun(2, 3), 1)
    assert same["training"] == {"gradient_accumulation_steps": 6, "seed": 1}
    assert forgive_accumulation(before, config(5), begun(2, 3), 1) == before


def test_a_hangup_that_nohup_has_ignored_stays_ignored() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(STOPPING, heard.append):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGTERM]
