"""The model that is trained, its reference, and a reward model out of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from graftwork.adapters.tokens import add_rows, added_token_ids
from graftwork.adapters.trained import build_base, with_adapter
from graftwork.builders.dtype import bfloat16_is_fast, use_float32_masters
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from graftwork.config import RunConfig

QUANTIZED = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""What transformers notes on a quantized model."""


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
    """The same decoder with one output (transformers' ``...ForSequenceClassification``, ``num_labels`` 1).

    The decoder is taken as it is, quantized or not; the new head is drawn as transformers draws it.
    """
    if type(model) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.values():
        if model.config.num_labels != 1:
            raise UsageError(
                f"model.model_name: a reward model gives one number, and this one gives {model.config.num_labels} "
                "(num_labels); name a language model or a reward model"
            )
        return model
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    cls = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if cls is None:
        raise UsageError(
            f"model.model_name: transformers has no sequence classification for model_type {config.model_type!r}, "
            "which a reward model is; choose another model"
        )
    with torch.device("meta"):
        scorer = cls._from_config(config, dtype=model.dtype, attn_implementation=model.config._attn_implementation)
    prefix = scorer.base_model_prefix
    setattr(scorer, prefix, getattr(model, prefix))
    for name, module in scorer.named_children():
        if name != prefix:
            module.to_empty(device=model.device)
            module.apply(lambda part: nn.init.normal_(part.weight, std=config.initializer_range))
    for name in QUANTIZED:
        if hasattr(model, name):
            setattr(scorer, name, getattr(model, name))
    scorer.name_or_path = model.name_or_path
    return scorer


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
