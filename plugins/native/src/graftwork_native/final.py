"""``final/``: the adapter, one model with the adapter merged into it, or both side by side (``peft.save_mode``).

Onto a quantized base nothing is merged: its weights are rounded already. The adapter goes onto the original base, in
the type that it is stored in, as ``graft merge`` would put it later.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from graftwork.adapters import merge_adapter, save_adapter
from graftwork.adapters.record import rows_of
from graftwork.adapters.tokens import make_room
from graftwork.builders.model import load_as_stored
from graftwork_native.checkpoint import save_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from graftwork.config import RunConfig


def write_final(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerFast, config: RunConfig) -> None:
    """Writes the trained ``model`` into the empty ``folder``. The model may be changed."""
    mode = config.peft.save_mode
    if not isinstance(model, PeftModel) or mode == "adapter":
        save_model(folder, model, tokenizer)
    elif mode == "merged":
        save_model(folder, merged(model, config), tokenizer)
    else:
        save_model(folder, model, tokenizer)
        save_model(folder, base_of_adapter(model, config), tokenizer)


def merged(model: PeftModel, config: RunConfig) -> Any:
    """A plain model with the adapter in its weights."""
    if not is_quantized(model):
        return merge_adapter(model)
    with TemporaryDirectory() as adapter:
        save_adapter(adapter, model)
        return merge_adapter(load_as_stored(config.model), adapter)


def base_of_adapter(model: PeftModel, config: RunConfig) -> Any:
    """The base without the adapter, and with the rows of added tokens."""
    if not is_quantized(model):
        return model.unload()
    base = load_as_stored(config.model)
    make_room(base, rows_of(model.get_base_model()))
    return base


def is_quantized(model: PeftModel) -> bool:
    """Whether some weight of the base is held in fewer bits."""
    base = model.get_base_model()
    return bool(getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False)) or any(
        not weight.is_floating_point() for weight in base.parameters()
    )
