"""The model that is trained: from its source or from a checkpoint, with its adapter, in the right types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from graftwork.adapters.tokens import add_rows, added_token_ids
from graftwork.adapters.trained import build_base, with_adapter
from graftwork.builders.dtype import use_float32_masters
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
    params = config.model
    if checkpoint is not None and not config.training.use_peft:
        params = at_checkpoint(params, checkpoint)
    model: Any = build_base(config, params)
    loaded_dtype = model.dtype
    tokens = added_token_ids(config.model)
    if tokens and (checkpoint is None or config.training.use_peft):
        add_rows(model, tokens)
    if config.training.use_peft:
        model = with_adapter(model, config, tokens, checkpoint)
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


def at_checkpoint(params: ModelParams, checkpoint: Path) -> ModelParams:
    """The same model with the weights of a checkpoint, whose own ``config.json`` says all about it."""
    changes = {"model_name": str(checkpoint.absolute()), "load_pretrained_weights": True, "model_kwargs": {}}
    if params.torch_dtype == "auto":
        # Masters beside frozen weights in bfloat16: transformers would load all of them as the first one is
        changes["torch_dtype"] = "float32"
    return params.model_copy(update=changes)


def checkpoint_gradients(model: Any, config: RunConfig) -> None:
    """Recompute each layer on the way back instead of keeping its activations."""
    options = {"use_reentrant": False, **config.training.gradient_checkpointing_kwargs}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if config.training.use_peft:
        model.enable_input_require_grads()


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is."""
    return next(model.parameters()).device
