"""What a run trains: the base model, and the adapter on it where only that is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import PeftModel

from graftwork.adapters.attach import attach_adapter, load_adapter
from graftwork.adapters.folder import adapter_folder
from graftwork.adapters.tokens import require_trained
from graftwork.builders import build_model
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.config import ModelParams, RunConfig


def build_base(config: RunConfig, params: ModelParams) -> Any:
    """The model without an adapter, as ``params`` say; quantized where an adapter is trained on it that asks for it.

    Raises :class:`UsageError` for a model that comes with an adapter of its own.
    """
    use_peft, peft = config.training.use_peft, config.peft
    quantized = use_peft and (peft.q_lora or peft.quantizer)
    model = build_model(params.model_copy(update={"adapter_model": None}), peft if quantized else None)
    if isinstance(model, PeftModel) or (config.model.adapter_model and not use_peft):
        raise UsageError(
            f"model.model_name {config.model.model_name!r} comes with an adapter. To train the adapter further, give "
            "its base as model_name, the adapter as model.adapter_model, and set training.use_peft: true; to train "
            "all weights, merge it first (graft merge)"
        )
    return model


def with_adapter(model: Any, config: RunConfig, tokens: list[int], checkpoint: Path | None = None) -> PeftModel:
    """The checkpoint's adapter, else the one that the configuration names, else a fresh one. Each trains ``tokens``."""
    named = config.model.adapter_model
    folder = checkpoint or (adapter_folder(named) if named else None)
    if folder is None:
        return attach_adapter(model, config.peft, family=config.model.family, tokens=tokens)
    adapted = load_adapter(model, folder, trainable=True)
    require_trained(adapted, tokens)
    return adapted
