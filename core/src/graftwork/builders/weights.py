"""The tensors of a checkpoint folder, by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from graftwork.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors in ``model.safetensors`` or its shards. Raises :class:`ModelError` where there is neither."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return dict(load_file(single))
    if not index.is_file():
        raise ModelError(f"model {path}: there is neither {single.name} nor {index.name}")
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    lacking = [shard for shard in shards if not (path / shard).is_file()]
    if lacking:
        raise ModelError(f"model {path}: weight file {lacking[0]} is missing ({len(lacking)} of {len(shards)} are)")
    return {name: tensor for shard in shards for name, tensor in load_file(path / shard).items()}
