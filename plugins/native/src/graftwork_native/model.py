"""The model that is trained: from its source or from a checkpoint, with its adapter, in the right types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from graftwork.adapters import attach_adapter, load_adapter
from graftwork.adapters.folder import adapter_folder
from graftwork.adapters.tokens import add_rows, added_token_ids, require_trained
from graftwork.builders import build_model
from graftwork.builders.dtype import use_float32_masters
from graftwork.errors import UsageError
from graftwork_native import precision
from graftwork_native.checkpoint import load_state
from graftwork_native.forward import base_of
from graftwork_native.shards import is_sharded

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from graftwork.config import ModelParams, RunConfig


def load_model(config: RunConfig, checkpoint: Path | None) -> tuple[nn.Module, torch.dtype]:
    """The model in training mode, with the weights of ``checkpoint`` where a run goes on from one.

    Those of a checkpoint in parts come later, when it is known which part is whose; here they are a new run's.
    ``model.added_tokens`` get rows in its embeddings, and the rows are trained. Also the type that it was loaded in:
    its trained weights are float32 masters from here on, unless ``model.torch_dtype`` names another type.
    """
    if checkpoint is not None and is_sharded(checkpoint):
        checkpoint = None
    model = base_model(config, checkpoint)
    loaded_dtype = model.dtype
    tokens = added_token_ids(config.model)
    if tokens and (checkpoint is None or config.training.use_peft):
        add_rows(model, tokens)
    if config.training.use_peft:
        model = with_adapter(model, config, checkpoint, tokens)
    if config.model.torch_dtype == "auto":
        use_float32_masters(model)
        precision.require_products(model, precision.autocast_dtype(config, device_of(model)))
        if checkpoint is not None:
            precision.return_frozen(model, getattr(torch, load_state(checkpoint).model_dtype))
    if config.training.enable_gradient_checkpointing:
        checkpoint_gradients(model, config)
    if config.training.compile:
        base_of(model).compile()
    return model.train(), loaded_dtype


def base_model(config: RunConfig, checkpoint: Path | None) -> Any:
    """The model without an adapter; from the checkpoint where all weights are trained."""
    use_peft, adapter = config.training.use_peft, config.model.adapter_model
    params = config.model.model_copy(update={"adapter_model": None})
    if checkpoint is not None and not use_peft:
        params = at_checkpoint(params, checkpoint)
    model = build_model(params, config.peft if use_peft and (config.peft.q_lora or config.peft.quantizer) else None)
    if isinstance(model, PeftModel) or (adapter and not use_peft):
        raise UsageError(
            f"model.model_name {config.model.model_name!r} comes with an adapter. To train the adapter further, give "
            "its base as model_name, the adapter as model.adapter_model, and set training.use_peft: true; to train "
            "all weights, merge it first (graft merge)"
        )
    return model


def at_checkpoint(params: ModelParams, checkpoint: Path) -> ModelParams:
    """The same model with the weights of a checkpoint, whose own ``config.json`` says all about it."""
    changes = {"model_name": str(checkpoint.absolute()), "load_pretrained_weights": True, "model_kwargs": {}}
    if params.torch_dtype == "auto":
        # Masters beside frozen weights in bfloat16: transformers would load all of them as the first one is
        changes["torch_dtype"] = "float32"
    return params.model_copy(update=changes)


def with_adapter(model: Any, config: RunConfig, checkpoint: Path | None, tokens: list[int]) -> Any:
    """The checkpoint's adapter, else the one that the configuration names, else a fresh one. Each trains ``tokens``."""
    adapter = config.model.adapter_model
    folder = checkpoint or (adapter_folder(adapter) if adapter else None)
    if folder is None:
        return attach_adapter(model, config.peft, family=config.model.family, tokens=tokens)
    adapted = load_adapter(model, folder, trainable=True)
    require_trained(adapted, tokens)
    return adapted


def checkpoint_gradients(model: Any, config: RunConfig) -> None:
    """Recompute each layer on the way back instead of keeping its activations."""
    options = {"use_reentrant": False, **config.training.gradient_checkpointing_kwargs}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if config.training.use_peft:
        model.enable_input_require_grads()


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is."""
    return next(model.parameters()).device
