"""Checkpoints: a folder that any Hugging Face tool loads, with what a run needs to go on to the last bit.

``checkpoints/step-N/`` holds the model (or the adapter) and the tokenizer, ``optimizer.pt`` (the optimizer's
tensors and PyTorch's generators; loaded with ``weights_only``) and ``trainer_state.json``. It gets its name when
all of it lies on the disk.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from graftwork.errors import RunError
from graftwork.files import complete_folder

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
    run: Run,
    state: TrainerState,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: torch.optim.Optimizer,
) -> Path:
    """Writes ``checkpoints/step-N``, or leaves nothing of it. Older ones beyond ``save_total_limit`` go."""
    path = run.folder / "checkpoints" / f"step-{state.step}"
    if path.exists():
        return path
    with whole_folder(path) as folder:
        save_model(folder, model, tokenizer)
        torch.save({"optimizer": optimizer.state_dict(), "generators": generators()}, folder / OPTIMIZER_FILE)
        (folder / STATE_FILE).write_text(json.dumps({**asdict(state), "python": python_generator()}))
    remove_old(run, state)
    return path


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


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """The trainer has a line of its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def generators() -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """PyTorch's random states."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def python_generator() -> list[Any]:
    """Python's random state as JSON keeps it."""
    version, internal, gauss = random.getstate()
    return [version, list(internal), gauss]


def load_state(path: Path) -> TrainerState:
    """The run's state in a checkpoint. Raises :class:`RunError` where the folder is none."""
    try:
        data = json.loads((path / STATE_FILE).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"{path} is not a checkpoint that can be resumed: {STATE_FILE}: {error}") from error
    data.pop("python")
    return TrainerState(**data)


def restore(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Gives the optimizer and every generator the state they had."""
    saved = torch.load(path / OPTIMIZER_FILE, weights_only=True, map_location="cpu")
    optimizer.load_state_dict(saved["optimizer"])
    version, internal, gauss = json.loads((path / STATE_FILE).read_text())["python"]
    random.setstate((version, tuple(internal), gauss))
    if torch.cuda.is_available() and saved["generators"]["cuda"]:
        torch.cuda.set_rng_state_all(saved["generators"]["cuda"])
    torch.set_rng_state(saved["generators"]["cpu"])


def remove_old(run: Run, state: TrainerState) -> None:
    """Keeps the newest ``save_total_limit`` checkpoints, and the best one."""
    limit = run.config.training.save_total_limit
    best = run.folder / "checkpoints" / f"step-{state.best_step}"
    for path in run.checkpoints[: -limit if limit else None] if limit else []:
        if path != best:
            # Out of the way by one rename first: half a checkpoint must never look like a whole one.
            doomed = path.rename(path.with_name(f".{path.name}.old"))
            shutil.rmtree(doomed)
