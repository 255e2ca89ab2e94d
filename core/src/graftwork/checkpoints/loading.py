"""Weights that transformers does not read itself, given to it one at a time: pickled files, and others' names.

transformers builds the model on the meta device, asks for each tensor when its turn comes, ties what is tied and
computes the buffers that are in no file (rotary frequencies), as it does for its own files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.builders.family import choose_family
from graftwork.checkpoints.formats import find_format
from graftwork.checkpoints.huggingface import is_hf
from graftwork.checkpoints.mapped import as_transformers, stated_config
from graftwork.checkpoints.params import map_of_family

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from graftwork.checkpoints.formats import Checkpoint


class LazyTensor:
    """A tensor that is read when it is indexed, as a slice of a safetensors file is."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self.checkpoint, self.name = checkpoint, name

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.checkpoint.tensor(self.name)[index]


def lazy_weights(path: Path, config: PretrainedConfig) -> dict[str, LazyTensor] | None:
    """The weights in a folder under transformers' names; None where they are in safetensors under those already.

    Raises :class:`ModelError` that lists every name and shape that does not fit, and for a pickle that is more than
    tensors, before anything is read.
    """
    if is_hf(path):
        return None
    found = find_format(path)
    checkpoint = found.open(path)
    if found.names == "own":
        family = choose_family(config.model_type, tuple(config.architectures or ()), None)
        key_map = map_of_family(family, found.name, path)
        stated_config(checkpoint, key_map)
        checkpoint = as_transformers(checkpoint, key_map, config.to_dict())
    return {name: LazyTensor(checkpoint, name) for name in checkpoint.headers}


def load_generation_config(model: PreTrainedModel, path: Path) -> None:
    """What ``generation_config.json`` says, which transformers reads only with its own weight files."""
    from transformers import GenerationConfig

    if (path / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(path)


def stored_dtype(path: Path) -> torch.dtype | None:
    """The dtype of the first floating tensor in a folder, from headers."""
    headers = find_format(path).open(path).headers.values()
    return next((header.dtype for header in headers if header.dtype.is_floating_point), None)
