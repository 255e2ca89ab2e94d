"""The model that is trained, its reference, and a reward model out of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from graftwork.adapters.judge import is_judge, judge_of
from graftwork.adapters.tokens import add_rows, added_token_ids
from graftwork.adapters.trained import build_base, with_adapter
from graftwork.builders.dtype import bfloat16_is_fast, use_float32_masters
from graftwork.errors import UsageError

if TYPE_CHECKING:
    import torch

    from graftwork.config import RunConfig


def load_model(config: RunConfig, *, scores: bool) -> tuple[Any, torch.dtype]:
    """The model as the configuration says, with its adapter, and the type that it was loaded in.

    Trained weights are float32 masters unless ``model.torch_dtype`` names a type. ``scores``: it gives one number for
    a conversation instead of logits.
    """
    model = build_base(config, config.model)
    loaded = model.dtype
    tokens = added_token_ids(config.model)
    if tokens:
        add_rows(model, tokens)
    if scores:
        model = reward_model(model)
    if config.training.use_peft:
        model = with_adapter(model, config, tokens)
    if config.model.torch_dtype == "auto":
        use_float32_masters(model)
    return model.train(), loaded


def reward_model(model: Any) -> Any:
    """The same decoder with one output (transformers' ``...ForSequenceClassification``, ``num_labels`` 1)."""
    if not is_judge(model):
        return judge_of(model)
    if model.config.num_labels != 1:
        raise UsageError(
            f"model.model_name: a reward model gives one number, and this one gives {model.config.num_labels} "
            "(num_labels); name a language model or a reward model"
        )
    return model


def reference_of(model: Any) -> Any:
    """A frozen copy of the model as it is now; None where an adapter that is switched off is the reference.

    TRL would load it anew from the name in the model's configuration, which a model built from a preset does not have.
    """
    if isinstance(model, PeftModel):
        return None
    return copy.deepcopy(model).eval().requires_grad_(False)


def forget_copy_of_fresh_adapter(model: Any, config: RunConfig) -> None:
    """TRL copies the adapter as reference. A fresh one does nothing yet: the base itself is the reference."""
    if config.model.adapter_model is None and "ref" in getattr(model, "peft_config", {}) and starts_at_zero(config):
        model.delete_adapter("ref")


def starts_at_zero(config: RunConfig) -> bool:
    """Whether a fresh adapter changes nothing: not so with an initialisation that splits the base."""
    return config.peft.lora_init_weights in {"default", "gaussian", "orthogonal"}


def autocast_of(config: RunConfig, device: torch.device) -> dict[str, bool]:
    """``bf16`` and ``fp16`` of transformers' arguments, as ``mixed_precision_dtype`` says."""
    asked = config.training.mixed_precision_dtype
    if asked == "fp16" and device.type == "cpu":
        raise UsageError(
            "training.mixed_precision_dtype: fp16 is hundreds of times slower than bf16 on a CPU; use bf16 or none"
        )
    bf16 = asked == "bf16" or (asked == "auto" and bfloat16_is_fast(device))
    return {"bf16": bf16, "fp16": asked == "fp16"}
