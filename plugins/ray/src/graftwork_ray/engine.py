"""Ray Train as what starts the processes of a run and connects them; the training itself is graftwork's."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.errors import GraftworkError, RunError
from graftwork.runs.signals import STOPPING, Stopped, ask, handled, stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graftwork.config import RunConfig

logger = logging.getLogger(__name__)

# Before Ray is imported: it would tell its makers about the cluster.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

STORE_BYTES = 128 << 20
"""Ray's shared memory in a cluster of one machine. Nothing of the training goes through it."""
STOP = "stop"
"""A file among Ray's notes in the run folder, which all machines see: the number of the signal that came."""
POLL_S = 0.5
LOCALLY_OFF = ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_TRAIN_METRICS_ENABLED")
"""What watches over machines that come and go, and what a dashboard would show: each takes a process and its start."""
SHARED_VARIABLES = (
    *("GRAFTWORK_HOME", "GRAFTWORK_CACHE", "GRAFTWORK_CACHE_GB", "GRAFTWORK_CARD_PATH", "GRAFTWORK_CARD_ENV"),
    *("GRAFTWORK_PLUGINS", "GRAFTWORK_DISABLE_PLUGINS", "GRAFTWORK_DEBUG"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT"),
    *("TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "CUBLAS_WORKSPACE_CONFIG"),
)
"""The environment variables that workers on other machines get too. Each by its name: Ray writes them to its disk,
where a token has no place.
"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which workers train. ``address`` is Ray's; None: ``RAY_ADDRESS``, else a cluster of this machine."""

    workers: int
    use_gpu: bool = False
    address: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is started for this run and stopped after it."""
        return self.address is None and "RAY_ADDRESS" not in os.environ


def train_on(cluster: Cluster, config: RunConfig, *, resume: bool = False) -> None:
    """Trains as ``config`` says on the cluster's workers. Raises :class:`RunError` with what the first one that failed
    said.
    """
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig

    notes = Path(config.training.output_dir).absolute() / "ray"
    settings = {
        "config": config.to_yaml(),
        "resume": resume,
        "folder": str(Path.cwd()),
        "stop": str(notes / STOP),
        "environment": shared_environment(),
    }
    with connected(cluster):
        trainer = trainer_class(cluster)(
            work,
            train_loop_config=settings,
            # What the processes tell each other lies in host memory, also where gradients are on GPUs.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if cluster.use_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=cluster.workers, use_gpu=cluster.use_gpu),
            run_config=RayRunConfig(storage_path=str(notes), failure_config=FailureConfig(max_failures=0)),
        )
        try:
            fit(trainer, notes / STOP)
        except Exception as error:
            raise explained(error) from error


def shared_environment() -> dict[str, str]:
    """What is set of :data:`SHARED_VARIABLES`."""
    return {name: os.environ[name] for name in SHARED_VARIABLES if name in os.environ}


def trainer_class(cluster: Cluster) -> Any:
    """Ray's trainer. In a cluster that goes with its run nothing has to be cleaned up after it: the process that Ray
    would start for that asks a dashboard every second, and where there is none complains of it every second.
    """
    from ray.train.torch import TorchTrainer

    class Leaner(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    return Leaner if cluster.is_local else TorchTrainer


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """The connection to the cluster, for as long as the block lasts."""
    import ray

    if cluster.is_local:
        for name in LOCALLY_OFF:
            os.environ.setdefault(name, "0")
    local: dict[str, Any] = {
        # Ray starts as many processes at once, which all import it.
        "num_cpus": cluster.workers,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
    }
    ray.init(address=cluster.address, logging_level="error", **(local if cluster.is_local else {}))
    try:
        yield
    finally:
        ray.shutdown()


def fit(trainer: Any, note: Path) -> None:
    """Has the workers train; Ctrl-C or SIGTERM asks them, by ``note``, to finish their step, save, and stop.

    Raises :class:`~graftwork.runs.signals.Stopped` where they have, and at once where a second signal comes. A run that
    had come to its end takes the note away.
    """
    note.unlink(missing_ok=True)
    asked: list[int] = []

    def hear(number: int) -> None:
        if asked:
            stop(number)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(str(number))
        asked.append(number)
        logger.warning("asking the workers to stop after their step and to save; a second signal stops them at once")

    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    with handled(STOPPING, hear):
        # In a thread of its own: Ray takes Ctrl-C for itself in the main one, and breaks off without saving.
        threading.Thread(target=run, daemon=True).start()
        while not outcome.done():
            wait([outcome], timeout=POLL_S)
    outcome.result()
    if asked and note.exists():
        note.unlink()
        stop(asked[0])


def listen(note: Path) -> None:
    """Has the training in this process stop, as a signal would, when ``note`` says so; a thread of a worker."""
    while True:
        time.sleep(POLL_S)
        with suppress(FileNotFoundError, Stopped):  # before its first step a run cannot be asked: it is again
            ask(int(note.read_text() or signal.SIGTERM))
            return


def work(settings: dict[str, Any]) -> None:
    """One worker's part. Ray Train has set ``RANK`` and its kin, and has made the process group."""
    import yaml

    from graftwork.config import RunConfig
    from graftwork.launch import Place
    from graftwork.runs.progress import Progress
    from graftwork.training import train

    os.chdir(settings["folder"])
    os.environ.update(settings["environment"])
    config = RunConfig.model_validate(yaml.safe_load(settings["config"]))
    main, note = Place.here().is_main, Path(settings["stop"])
    threading.Thread(target=listen, args=(note,), daemon=True).start()
    result = train(config, resume=settings["resume"], listeners=[Progress()] if main else [])
    if main and not result.interrupted:
        note.unlink(missing_ok=True)


def explained(error: Exception) -> GraftworkError:
    """What the worker that failed first said, without Ray's stack of tracebacks."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items(), key=lambda item: not isinstance(cause_of(item[1]), GraftworkError)):
        cause = cause_of(failure)
        return RunError(f"worker {rank}: {cause}" if isinstance(cause, GraftworkError) else f"worker {rank}: {cause!r}")
    return RunError(f"Ray Train: {error}")


def cause_of(failure: BaseException) -> BaseException:
    """The worker's own error within Ray's."""
    cause = getattr(failure, "cause", None) or failure.__cause__
    return cause if isinstance(cause, BaseException) else failure
