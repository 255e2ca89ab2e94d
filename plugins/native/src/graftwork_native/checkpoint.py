"""Checkpoints: a folder that any Hugging Face tool loads, with what a run needs to go on to the last bit.

``checkpoints/step-N/`` holds the model (or the adapter) and the tokenizer, ``optimizer.pt`` (the optimizer's
tensors and PyTorch's generators; loaded with ``weights_only``), ``trainer_state.json`` (where the run stands: step,
place in the data, the other generators) and the core's ``checkpoint.json``. It gets its name when all of it lies on
the disk. The schedule is a function of the step and has no state.

A model that is cut over several processes is kept as it lies (``fsdp.state_dict_type: SHARDED_STATE_DICT``): in the
place of the model and the optimizer's tensors stands ``shards/``; see :mod:`graftwork_native.shards`.
"""

from __future__ import annotations

import json
import logging
import pickle
import random
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from graftwork.adapters import save_adapter
from graftwork.builders.quiet import no_progress_bar
from graftwork.errors import RunError
from graftwork.runs.checkpoints import new_checkpoint, written
from graftwork.runs.room import saved_bytes
from graftwork_native import shards
from graftwork_native.sharding import Weights, cut_optimizer, in_one_piece, whole_optimizer, whole_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from graftwork.runs.kept import Best
    from graftwork.runs.run import Run
    from graftwork_native.world import World

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE = "optimizer.pt"


@dataclass(slots=True)
class TrainerState:
    """Where a run stands.

    ``epoch`` is the loader's, as of the last step whose evaluation and samples are done; ``evaluated`` says whether
    those of ``step`` are. ``best`` are the best evaluations, as (step, metric), the best first. ``skipped`` counts
    the batches that were left out, ``skipped_in_a_row`` those since the last step. ``model_dtype`` is what the model
    was in when it was loaded at first.
    """

    step: int = 0
    tokens: int = 0
    epoch: int = 0
    evaluated: bool = True
    best: Best = field(default_factory=list)
    evaluations_without_gain: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    model_dtype: str = "float32"
    loader: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a checkpoint holds, in the first process's memory: a checkpoint does not say how many processes there were,
    and any number of them can go on from it. ``weights`` are those that the model has in pieces; ``generators`` are
    each process's.
    """

    weights: Weights
    optimizer: dict[str, Any]
    generators: list[dict[str, Any]]


def gather(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Gathered:
    """Every process has to call this."""
    return Gathered(
        whole_weights(model, keep=world.is_main),
        whole_optimizer(optimizer, keep=world.is_main),
        world.collected(generators(model)),
    )


def save_checkpoint(
    run: Run,
    state: TrainerState,
    evaluation: Mapping[str, float] | None,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    gathered: Gathered,
) -> None:
    """Writes the checkpoint of ``state.step``, or leaves nothing of it. ``evaluation`` are its metrics."""
    path = run.folder / "checkpoints" / f"step-{state.step}"
    needed = partial(saved_bytes, getattr(model, "_orig_mod", model), gathered.optimizer)
    with written(path), new_checkpoint(run, state.step, evaluation, needed) as folder:
        with in_one_piece(model, gathered.weights):
            save_model(folder, model, tokenizer)
        write_state(folder, state, gathered.optimizer, gathered.generators)


def save_in_shards(
    run: Run,
    state: TrainerState,
    evaluation: Mapping[str, float] | None,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: torch.optim.Optimizer,
    world: World,
) -> None:
    """:func:`save_checkpoint` with each process writing its own part of a model that is cut: all have to call this.

    The first one makes the folder and gives it its name when all are done; what one of them fails with all fail with.
    """
    path = run.folder / "checkpoints" / f"step-{state.step}"
    with ExitStack() as stack:
        made: list[Path] = []

        def begin() -> None:
            with written(path):
                made.append(stack.enter_context(new_checkpoint(run, state.step, evaluation)))

        def finish() -> None:
            with written(path):
                tokenizer.save_pretrained(made[0])
                write_state(made[0], state, plain, everyones)
                stack.pop_all().close()

        world.by_main(begin)
        with written(path):
            plain = shards.write_shards(world.told(made[0] if made else None), model, optimizer)
        everyones = world.collected(generators(model))
        world.by_main(finish)


def write_state(folder: Path, state: TrainerState, optimizer: dict[str, Any], everyones: list[dict[str, Any]]) -> None:
    """Where the run stands; ``everyones`` are the generators of each process."""
    torch.save({"optimizer": optimizer, "generators": everyones}, folder / OPTIMIZER_FILE)
    (folder / STATE_FILE).write_text(json.dumps({**asdict(state), "generators": plain_generators()}))


def save_model(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """The model (or its adapter) and the tokenizer with its chat template, as transformers and PEFT save them."""
    inner: Any = getattr(model, "_orig_mod", model)
    if isinstance(inner, PeftModel):
        save_adapter(folder, inner)
    else:
        with no_progress_bar():
            inner.save_pretrained(folder, max_shard_size="50GB")
    tokenizer.save_pretrained(folder)


def generators(model: nn.Module) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """PyTorch's random states: the CPU's, and those of :func:`own_gpus`."""
    return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state(gpu) for gpu in own_gpus(model)]}


def own_gpus(model: nn.Module) -> list[int]:
    """The numbers of the GPUs that this process computes on. To ask another process's takes memory there."""
    if not torch.cuda.is_initialized():
        return []
    own = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    return sorted(own or {torch.cuda.current_device()})


def plain_generators() -> dict[str, Any]:
    """Python's and numpy's random states as JSON keeps them."""
    numpy_name, numpy_keys, *numpy_rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": [numpy_name, np.asarray(numpy_keys).tolist(), *numpy_rest]}


def restore_plain(saved: Mapping[str, Any]) -> None:
    """The inverse of :func:`plain_generators`."""
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(saved["numpy"]))


def load_state(path: Path) -> TrainerState:
    """The run's state in a checkpoint. Raises :class:`RunError` where the folder is none."""
    with readable(path):
        data = json.loads((path / STATE_FILE).read_text())
        data.pop("generators")
        data["best"] = [(step, metric) for step, metric in data["best"]]
        return TrainerState(**data)


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    """Gives the optimizer and every generator the state they had, and the model its weights where they lie in parts; a
    process that is new begins with its own.
    """
    with readable(path):
        saved = torch.load(path / OPTIMIZER_FILE, weights_only=True, map_location="cpu")
        if shards.is_sharded(path):
            shards.read_shards(path, model, optimizer, saved["optimizer"])
        else:
            optimizer.load_state_dict(cut_optimizer(saved["optimizer"], optimizer))
        restore_plain(json.loads((path / STATE_FILE).read_text())["generators"])
        if world.rank < len(saved["generators"]):
            restore_generators(saved["generators"][world.rank], model)
        else:
            torch.manual_seed(torch.initial_seed() + world.rank)


def restore_generators(saved: Mapping[str, Any], model: nn.Module) -> None:
    """The inverse of :func:`generators`. A GPU that is new goes on with its own state."""
    for gpu, state in zip(own_gpus(model), saved["cuda"], strict=False):
        torch.cuda.set_rng_state(state, gpu)
    torch.set_rng_state(saved["cpu"])


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever is wrong with a checkpoint's files, as an error that says what to do."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise RunError(
            f"{path} is not a checkpoint that can be resumed here: {type(error).__name__}: {error}; move it away, and "
            "--resume goes on from the one before it"
        ) from error
