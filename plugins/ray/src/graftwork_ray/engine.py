"""Ray Train as what starts the processes of a run and connects them; the training itself is graftwork's."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.errors import GraftworkError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graftwork.config import RunConfig

# Before Ray is imported: it would tell its makers about the cluster.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

STORE_BYTES = 128 << 20
"""Ray's shared memory in a cluster of one machine. Nothing of the training goes through it."""
SHARED_VARIABLES = ("GRAFTWORK_", "HF_", "TOKENIZERS_", "CUBLAS_")
"""Beginnings of the environment variables that workers on other machines get too."""


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
    from ray.train.torch import TorchConfig, TorchTrainer

    notes = Path(config.training.output_dir).absolute() / "ray"
    settings = {
        "config": config.to_yaml(),
        "resume": resume,
        "folder": str(Path.cwd()),
        "environment": {name: text for name, text in os.environ.items() if name.startswith(SHARED_VARIABLES)},
    }
    with connected(cluster):
        trainer = TorchTrainer(
            work,
            train_loop_config=settings,
            # What the processes tell each other lies in host memory, also where gradients are on GPUs.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if cluster.use_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=cluster.workers, use_gpu=cluster.use_gpu),
            run_config=RayRunConfig(storage_path=str(notes), failure_config=FailureConfig(max_failures=0)),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise explained(error) from error


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """The connection to the cluster, for as long as the block lasts."""
    import ray

    local: dict[str, Any] = {
        "num_cpus": max(cluster.workers, os.cpu_count() or 1),
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
    }
    ray.init(address=cluster.address, logging_level="error", **(local if cluster.is_local else {}))
    try:
        yield
    finally:
        ray.shutdown()


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
    train(config, resume=settings["resume"], listeners=[Progress()] if Place.here().is_main else [])


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
