"""``train``: a configuration in, a run folder out. Everything that does not depend on the method."""

from __future__ import annotations

import logging
import os
import random
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from graftwork.config import check_config, plugin_params
from graftwork.config.fsdp import FsdpParams
from graftwork.errors import RunError, UsageError
from graftwork.launch import Place
from graftwork.launch.batch import describe_batch, forgive_accumulation, keep_global_batch
from graftwork.notices import own_loggers
from graftwork.registry import get_registry
from graftwork.runs.checkpoints import as_json, newest_whole, read_seal, require_whole, set_aside_newer
from graftwork.runs.follower import Follower
from graftwork.runs.run import Listener, Run, open_run, read_settings
from graftwork.runs.signals import ENDING, handled, stop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel

    from graftwork.config import RunConfig
    from graftwork.specs import TrainerSpec

logger = logging.getLogger(__name__)

FREE_TO_CHANGE = {
    "training": {
        "output_dir", "run_name", "save_steps", "save_epoch", "save_total_limit", "save_final_model", "logging_steps",
        "logging_strategy", "logging_first_step", "log_level", "dep_log_level", "enable_tensorboard", "enable_wandb",
        "resume_from_checkpoint", "try_resume_from_last_checkpoint", "max_steps", "num_train_epochs", "keep_best",
        "nonfinite_loss", "ddp_find_unused_parameters", "nccl_default_timeout_minutes",
    },
    # How a model is cut changes no number; in which type its pieces are put together does.
    "fsdp": set(FsdpParams.model_fields) - {"mixed_precision"},
    "generation": None,
}  # fmt: skip
"""What a resumed run may have otherwise than before: none of it changes a step that was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What a trainer gets: the validated configuration, its own validated option block, the run to write
    to, and the checkpoint folder to go on from (which the first of several processes tells the others).
    """

    config: RunConfig
    params: BaseModel | None
    run: Run
    resume_from: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run came to. ``metrics`` are the last ones of each name, ``model_path`` the final folder;
    ``interrupted_by`` is the number of the signal that ended it early; ``generates`` says whether the final model
    writes text, as one that judges it does not.
    """

    output_dir: Path
    model_path: Path | None
    step: int
    metrics: Mapping[str, float]
    interrupted_by: int | None = None
    generates: bool = True

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before its end."""
        return self.interrupted_by is not None


class Trainer(Protocol):
    """One training method, ready to run."""

    def train(self) -> TrainResult:
        """Runs to the end, or to Ctrl-C or SIGTERM, which saves and returns with ``interrupted_by`` set."""
        ...


def train(config: RunConfig, *, resume: bool = False, listeners: Sequence[Listener] = ()) -> TrainResult:
    """Trains as ``config`` says. ``resume`` goes on from the run folder's last checkpoint; ``listeners`` are
    called with the run, the step and its metrics.

    Raises :class:`UsageError` where the run cannot begin as asked, :class:`RunError` where it cannot go on.
    """
    from graftwork.data.loader import fingerprint

    check_config(config)
    place = Place.here()
    set_log_levels(config, place)
    spec = get_registry().trainers[config.training.trainer_type]
    params = plugin_params(spec, config.training.trainer_kwargs)
    resume = resume or config.training.try_resume_from_last_checkpoint or bool(config.training.resume_from_checkpoint)
    with handled(ENDING, stop):
        data = {"train": fingerprint(config.data.train), "validation": fingerprint(config.data.validation)}
        run = open_run(config, resume=resume) if place.is_main else Follower(config)
        run.listeners.extend(listeners)
        try:
            if resume:
                config = run.config = keep_global_batch(config, run.record, place.size)
            resume_from = checkpoint_to_resume(run, config, data) if resume and run.writes else None
            if resume_from is not None:
                set_aside_newer(run, resume_from)
        except BaseException:
            if run.fresh:
                run.discard()
            run.release()
            raise
        return carry_out(spec, TrainRequest(config=config, params=params, run=run, resume_from=resume_from), data)


def carry_out(spec: TrainerSpec, request: TrainRequest, data: Mapping[str, Any]) -> TrainResult:
    """Builds the trainer and has it train; however that ends, the run folder says so."""
    from graftwork.check.measured import record_memory

    error: BaseException | None = None
    result: TrainResult | None = None
    try:
        request.run.update(**description(request.config, data))
        request.run.update(**describe_batch(request.config, request.run.record, Place.here().size))
        require_supported(spec, request)
        require_adapter_names(request.config)
        seed_everything(request.config.training.seed)
        result = spec.build(request).train()
        record_memory(request, interrupted=result.interrupted)
    except BaseException as caught:
        error = caught
        raise
    finally:
        finish(request.run, result, error)
    return result


def require_supported(spec: TrainerSpec, request: TrainRequest) -> None:
    """What the method cannot do is said before data are prepared. Raises :class:`UsageError`."""
    if spec.refuse is not None:
        from graftwork.check.methods import MethodRequest

        spec.refuse(MethodRequest(config=request.config, params=request.params, processes=Place.here().size))


def require_adapter_names(config: RunConfig) -> None:
    """Modules that the adapter names and the model lacks are said before data are prepared."""
    if config.training.use_peft:
        from graftwork.adapters.attach import check_names

        check_names(config)


def set_log_levels(config: RunConfig, place: Place) -> None:
    """``log_level`` for the notices of graftwork and its plugins (``graft --debug`` has the last word),
    ``dep_log_level`` for those of the libraries below it. Of several processes the first one speaks for all.
    """
    if not place.is_main:
        logging.disable(logging.WARNING)
    for own in own_loggers():
        if own.level != logging.DEBUG:
            own.setLevel(config.training.log_level.upper())
    for library in ("transformers", "peft", "datasets"):
        logging.getLogger(library).setLevel(config.training.dep_log_level.upper())


def finish(run: Run, result: TrainResult | None, error: BaseException | None) -> None:
    """Ends the run; a disk that is full when a run fails must not hide why it failed."""
    try:
        if error is not None and run.fresh and not run.started:
            run.discard()
        elif result is None:
            run.finish(error, interrupted=isinstance(error, KeyboardInterrupt))
            if isinstance(error, KeyboardInterrupt) and run.writes:
                at = run.checkpoints[-1].name if run.checkpoints else "step 0: it has no checkpoint yet"
                logger.warning("the run in %s was broken off; --resume goes on from %s", run.folder, at)
        else:
            run.finish(None, interrupted=result.interrupted, step=result.step, **result.metrics)
    except RunError:
        if error is None:
            raise


def checkpoint_to_resume(run: Run, config: RunConfig, data: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from, after a look at whether it fits; None where the run has none yet."""
    if run.record:
        check_same_run(run, config, data)
    asked = config.training.resume_from_checkpoint
    found = asked_checkpoint(run, Path(asked)) if asked else newest_whole(run)
    if found is not None:
        check_same_checkpoint(found, config, data, run.record)
        return found
    if run.record.get("status") == "finished":
        raise UsageError(
            f"{run.folder} is finished and kept no checkpoint to go on from (training.save_steps was "
            f"{config.training.save_steps}); its model is in {run.folder / 'final'}: train on from that in another "
            "training.output_dir"
        )
    logger.info("%s has no checkpoint yet: the run begins at step 0", run.folder)
    return None


def asked_checkpoint(run: Run, path: Path) -> Path:
    """The checkpoint that the configuration names. Later ones of the same run would become another run's."""
    if not path.is_dir():
        known = ", ".join(map(str, run.checkpoints)) or "none"
        raise UsageError(f"training.resume_from_checkpoint: {path} is not a folder; checkpoints here: {known}")
    places = [checkpoint.resolve() for checkpoint in run.checkpoints]
    place = path.resolve()
    if place in places and place != places[-1]:
        later = ", ".join(checkpoint.name for checkpoint in places[places.index(place) + 1 :])
        raise UsageError(
            f"training.resume_from_checkpoint: {path} is not the last checkpoint of this run; move {later} out of "
            f"{run.folder / 'checkpoints'} first, or resume in another training.output_dir"
        )
    require_whole(path)
    return path


def check_same_run(run: Run, config: RunConfig, data: Mapping[str, Any]) -> None:
    """Resuming with another configuration or other data would be another run under the same name."""
    settings = read_settings(run.folder / "config.yaml")
    before = forgive_accumulation(settings, config, run.record, Place.here().size)
    changes = differences(before, yaml.safe_load(config.to_yaml()))
    for split, files in run.record.get("data", {}).items():
        changes += changed_files(split, files, data[split])
    refuse(run.folder, changes)


def check_same_checkpoint(path: Path, config: RunConfig, data: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """A checkpoint says itself what it belongs to, wherever it lies."""
    sealed = read_seal(path)
    before = forgive_accumulation(sealed["config"], config, record, Place.here().size)
    changes = differences(before, as_json(yaml.safe_load(config.to_yaml())))
    for split, files in sealed["data"].items():
        changes += changed_files(split, files, data[split])
    refuse(path, changes)
    others = [
        f"{name} {written} (now {installed(name) or 'not installed'})"
        for name, written in sealed["versions"].items()
        if installed(name) != written
    ]
    if others:
        logger.warning(
            "%s was written with %s: the numbers may differ from there on in the last digits", path, ", ".join(others)
        )


def refuse(place: Path, changes: Sequence[str]) -> None:
    """Raises :class:`UsageError` where there are changes."""
    if changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise UsageError(
            f"{place} cannot be resumed, because the run would not be the same:\n{listed}\n"
            "Set these back, or start a new run in another training.output_dir."
        )


def changed_files(split: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What happened to the files of a split."""
    paths = sorted({*before, *now})
    words = {(True, True): "has changed", (True, False): "is not read any more", (False, True): "is new"}
    return [
        f"data.{split}: the file {path} {words[path in before, path in now]}"
        for path in paths
        if before.get(path) != now.get(path)
    ]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields whose change would change the numbers."""
    found = []
    for section in sorted({*before, *now}):
        free = FREE_TO_CHANGE.get(section, set())
        if free is None:
            continue
        old, new = before.get(section) or {}, now.get(section) or {}
        for field in sorted({*old, *new} - free):
            found += changes_of(f"{section}.{field}", old.get(field), new.get(field))
    return found


def changes_of(name: str, before: Any, now: Any) -> list[str]:
    """What became another value, by the name of the innermost field: a whole split of the data nobody can compare."""
    if before == now:
        return []
    old, new = parts_of(before), parts_of(now)
    if old is None or new is None or not (old or new):
        return [f"{name} was {before!r}, is {now!r}"]
    found = []
    for key in sorted({*old, *new}, key=lambda key: (isinstance(key, str), key)):
        if key in old and key in new:
            found += changes_of(f"{name}.{key}", old[key], new[key])
        else:
            side, said = (new[key], "was not there, is {}") if key in new else (old[key], "was {}, is not there")
            path = f"{name}.{key}"
            inner = leaves(path, side) or ([(path, side)] if side is not None else [])
            found += [f"{place} {said.format(repr(leaf))}" for place, leaf in inner]
    return found


def parts_of(value: Any) -> dict[Any, Any] | None:
    """The values in a block or list by key or number; of nothing (null) none, and None for a single value."""
    if isinstance(value, list):
        return dict(enumerate(value))
    return value if isinstance(value, dict) else {} if value is None else None


def leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """The single values in a value that say something, by their names."""
    parts = parts_of(value) or {}
    inner = [leaf for key, part in parts.items() for leaf in leaves(f"{name}.{key}", part)]
    return inner or ([(name, value)] if value not in (None, False, {}, []) else [])


def description(config: RunConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader of ``run.json`` needs to make the run again."""
    packages = ("graftwork", "torch", "transformers", "peft", "tokenizers", "numpy")
    return {
        "name": config.training.run_name,
        "model": config.model.model_name,
        "trainer": config.training.trainer_type,
        "seed": config.training.seed,
        "versions": {name: found for name in packages if (found := installed(name))},
        "plugins": {f"{state.distribution}:{state.name}": state.version for state in get_registry().plugins},
        "data": data,
        "cpus": os.cpu_count(),
    }


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def seed_everything(seed: int) -> None:
    """Python's, numpy's and PyTorch's generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
