"""Checkpoints: a folder that any Hugging Face tool loads, with what a run needs to go on to the last bit.

``checkpoints/step-N/`` holds the model (or the adapter) and the tokenizer, ``optimizer.pt`` (the optimizer's
tensors and PyTorch's generators; loaded with ``weights_only``) and ``trainer_state.json``. It gets its name when
all of it lies on the disk.
"""

from __future__ import annotations

import json
import logging
import pickle
import random
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from graftwork.builders.quiet import no_progress_bar
from graftwork.errors import RunError
from graftwork.files import complete_folder, remove_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from graftwork.runs.run import Run

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE = "optimizer.pt"


@dataclass(slots=True)
class TrainerState:
    """Where a run stands. ``best_metric`` is the lowest so far, seen at ``best_step``; ``model_dtype`` is what
    the model was in when it was loaded at first.
    """

    step: int = 0
    tokens: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    model_dtype: str = "float32"
    loader: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: Path,
    state: TrainerState,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Writes the folder ``path``, or leaves nothing of it."""
    with whole_folder(path) as folder:
        save_model(folder, model, tokenizer)
        torch.save({"optimizer": optimizer.state_dict(), "generators": generators()}, folder / OPTIMIZER_FILE)
        (folder / STATE_FILE).write_text(json.dumps({**asdict(state), "python": python_generator()}))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that is written whole or not at all; what the disk, torch or safetensors say is explained."""
    try:
        with complete_folder(path) as folder:
            yield folder
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{path} could not be written: {error}; nothing of it was left behind. Make room, then go on from the "
            "last checkpoint with --resume"
        ) from error


def save_model(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """The model (or its adapter) and the tokenizer with its chat template, as transformers and PEFT save them."""
    inner: Any = getattr(model, "_orig_mod", model)
    with no_progress_bar():
        inner.save_pretrained(folder, max_shard_size="50GB")
    tokenizer.save_pretrained(folder)


def generators() -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """PyTorch's random states."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def python_generator() -> list[Any]:
    """Python's random state as JSON keeps it."""
    version, internal, gauss = random.getstate()
    return [version, list(internal), gauss]


def load_state(path: Path) -> TrainerState:
    """The run's state in a checkpoint. Raises :class:`RunError` where the folder is none."""
    with readable(path):
        data = json.loads((path / STATE_FILE).read_text())
        data.pop("python")
        return TrainerState(**data)


def restore(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Gives the optimizer and every generator the state they had."""
    with readable(path):
        saved = torch.load(path / OPTIMIZER_FILE, weights_only=True, map_location="cpu")
        optimizer.load_state_dict(saved["optimizer"])
        version, internal, gauss = json.loads((path / STATE_FILE).read_text())["python"]
        random.setstate((version, tuple(internal), gauss))
        if torch.cuda.is_available() and saved["generators"]["cuda"]:
            torch.cuda.set_rng_state_all(saved["generators"]["cuda"])
        torch.set_rng_state(saved["generators"]["cpu"])


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever is wrong with a checkpoint's files, as an error that says what to do."""
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise RunError(
            f"{path} is not a checkpoint that can be resumed: {type(error).__name__}: {error}; delete or move it, and "
            "--resume goes on from the one before it"
        ) from error


def remove_old(run: Run, state: TrainerState) -> None:
    """Keeps the newest ``save_total_limit`` checkpoints, and the best one."""
    limit = run.config.training.save_total_limit
    for path in run.checkpoints[:-limit] if limit else []:
        if path.name != f"step-{state.best_step}":
            remove_folder(path)
