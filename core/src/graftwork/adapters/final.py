"""What a run leaves in ``final/`` (``peft.save_mode``): the adapter, one model it is merged into, or adapter and base.

Onto a quantized base nothing is merged: its weights are rounded already. The adapter goes onto the original base, in
the type that it is stored in, as ``graft merge`` would put it later.
"""

from __future__ import annotations

import json
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from graftwork.adapters.attach import save_adapter
from graftwork.adapters.merge import merge_adapter
from graftwork.adapters.record import rows_of
from graftwork.adapters.tokens import make_room
from graftwork.builders.model import load_as_stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from graftwork.config import RunConfig


def final_models(model: Any, config: RunConfig) -> Iterator[Any]:
    """The models to be saved, one after the other; what comes first may be changed to make the next.

    A model without an adapter is what is saved. Raises :class:`ModelError` where a merge leaves a target as it was.
    """
    if not isinstance(model, PeftModel) or config.peft.save_mode != "merged":
        yield model
    if isinstance(model, PeftModel) and config.peft.save_mode == "merged":
        yield _merged(model, config)
    elif isinstance(model, PeftModel) and config.peft.save_mode == "full":
        yield _base(model, config)


def save_stops(folder: Path, model: Any, tokenizer: Any, stop_ids: frozenset[int]) -> None:
    """Writes the tokens that the training's turns end with into ``generation_config.json``, so that any engine stops.

    A base may name others there: it was trained with another template. Those of them that are tokens of the
    vocabulary's own (as an end of text is) stay beside ours. An adapter's folder gets the file for ``graft merge``.
    """
    file = folder / "generation_config.json"
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    config = getattr(inner, "generation_config", None)
    if not stop_ids or config is None:
        return
    if not file.is_file():
        config.to_json_file(file)
    values = json.loads(file.read_text("utf-8"))
    own = values.get("eos_token_id")
    before = set(own if isinstance(own, list) else [own])
    after = stop_ids | before & set(tokenizer.added_tokens_decoder)
    if after != before:
        values["eos_token_id"] = sorted(after)
        file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


def _merged(model: PeftModel, config: RunConfig) -> Any:
    """A plain model with the adapter in its weights."""
    if not is_quantized(model):
        return merge_adapter(model)
    with TemporaryDirectory() as adapter:
        save_adapter(adapter, model)
        return merge_adapter(load_as_stored(config.model), adapter)


def _base(model: PeftModel, config: RunConfig) -> Any:
    """The base without the adapter, and with the rows of added tokens."""
    if not is_quantized(model):
        return model.unload()
    base = load_as_stored(config.model)
    make_room(base, rows_of(model.get_base_model()))
    return base


def is_quantized(model: PeftModel) -> bool:
    """Whether some weight of the base is held in fewer bits."""
    base = model.get_base_model()
    kinds = (getattr(base, "is_loaded_in_4bit", False), getattr(base, "is_loaded_in_8bit", False))
    return any(kinds) or any(not weight.is_floating_point() for weight in base.parameters())
