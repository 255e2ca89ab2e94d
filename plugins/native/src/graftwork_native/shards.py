"""Weights and optimizer state through PyTorch's distributed checkpoint: each process writes and reads its own part.

The parts lie in ``step-N/shards/`` as safetensors, each with the place of its tensors in the whole. PyTorch's usual
files for this are pickles, ``.metadata`` among them, of which the reader runs what it finds; here nothing can be run.
The parts fit together for any number of processes, also for one.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from graftwork_native.sharding import own_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

FOLDER = "shards"
FILE_BYTES = 1 << 30
"""A process writes about so much into one file: a file's bytes are made in host memory before they are written."""


def is_sharded(checkpoint: Path) -> bool:
    """Whether a checkpoint lies in parts."""
    return (checkpoint / FOLDER).is_dir()


def write_shards(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Writes this process's part; every process has to ask. Gives what of the optimizer's state is no tensor.

    Raises what the first process that failed did, in all of them.
    """
    weights, state = get_state_dict(model, optimizer, options=options_of(model))
    tensors = flat(model, weights, state)
    writer = HuggingFaceStorageWriter(
        str(checkpoint / FOLDER), fqn_to_index_mapping=file_numbers(tensors), save_distributed=True
    )
    with plain_errors():
        save(tensors, storage_writer=writer)
    return {name: value for name, value in state.items() if not torch.is_tensor(value)}


def read_shards(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, plain: Mapping[str, Any]) -> None:
    """The inverse of :func:`write_shards`, which any number of processes may have gone through."""
    weights, state = get_state_dict(model, optimizer, options=options_of(model))
    read(checkpoint, flat(model, weights, state), together=dist.is_initialized())
    kept = {name: plain.get(name, value) for name, value in state.items()}
    set_state_dict(
        model, optimizer, model_state_dict=weights, optim_state_dict=kept, options=options_of(model, strict=False)
    )


def read_weights(checkpoint: Path, model: nn.Module) -> None:
    """Gives a whole model the weights of a checkpoint, in this process alone."""
    weights = get_model_state_dict(model, options=options_of(model))
    read(checkpoint, flat(model, weights, {}), together=False)


def read(checkpoint: Path, tensors: dict[str, torch.Tensor], *, together: bool) -> None:
    """Fills ``tensors``, of which this process may hold parts."""
    reader = HuggingFaceStorageReader(str(checkpoint / FOLDER))
    with warnings.catch_warnings(), plain_errors():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(tensors, storage_reader=reader, no_dist=not together)


def options_of(model: nn.Module, *, strict: bool = True) -> StateDictOptions:
    """Of a model with an adapter only what is trained; its base lies where it came from."""
    return StateDictOptions(
        ignore_frozen_params=isinstance(model, PeftModel), flatten_optimizer_state_dict=True, strict=strict
    )


def flat(model: nn.Module, weights: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors by name, each once: a head that is the embeddings has two names."""
    seconds = second_names(model)
    tensors = {f"model.{name}": value for name, value in weights.items() if name not in seconds}
    return tensors | {f"optimizer.{name}": value for name, value in state.items() if torch.is_tensor(value)}


def second_names(model: nn.Module) -> set[str]:
    """The further names of parameters that have several."""
    firsts = dict(model.named_parameters())
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - firsts.keys()


def file_numbers(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Which of a process's files each tensor goes into, from 1."""
    numbers, total = {}, 0
    for name, tensor in tensors.items():
        numbers[name] = 1 + total // FILE_BYTES
        total += own_part(tensor).nbytes
    return numbers


@contextmanager
def plain_errors() -> Iterator[None]:
    """PyTorch hands the errors of all processes on in one that is no :class:`Exception`: the first one counts."""
    try:
        yield
    except CheckpointException as error:
        cause, _ = error.failures[min(error.failures)]
        if isinstance(cause, OSError | RuntimeError | ValueError | KeyError):
            raise cause from error
        raise RuntimeError(f"{type(cause).__name__}: {cause}") from error
