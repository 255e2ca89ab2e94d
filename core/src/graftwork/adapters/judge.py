"""A reward model (transformers' ``...ForSequenceClassification``) out of a language model, and the one that an adapter
was trained as: its folder holds the head, and names a base that has none.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from graftwork.adapters.folder import ADAPTER_WEIGHTS
from graftwork.adapters.record import read_record
from graftwork.adapters.targets import REWARD_HEAD
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

QUANTIZED = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
"""What transformers notes on a quantized model."""
HEAD = f"base_model.model.{REWARD_HEAD}.weight"
"""The head of a decoder that judges, as PEFT names a module that is trained whole."""


def is_judge(model: Any) -> bool:
    """Whether a model gives scores of a text instead of logits."""
    return type(model) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.values()


def judge_of(model: Any, scores: int = 1) -> Any:
    """The decoder of a language model with a head of ``scores`` outputs, drawn as transformers draws it.

    The decoder is taken as it is, quantized or not. Raises :class:`UsageError` where transformers has no such class.
    """
    config = copy.deepcopy(model.config)
    config.num_labels = scores
    cls = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if cls is None:
        raise UsageError(
            f"model.model_name: transformers has no sequence classification for model_type {config.model_type!r}, "
            "which a reward model is; choose another model"
        )
    with torch.device("meta"):
        judge = cls._from_config(config, dtype=model.dtype, attn_implementation=model.config._attn_implementation)
    prefix = judge.base_model_prefix
    setattr(judge, prefix, getattr(model, prefix))
    for name, module in judge.named_children():
        if name != prefix:
            module.to_empty(device=model.device)
            module.apply(lambda part: nn.init.normal_(part.weight, std=config.initializer_range))
    for name in QUANTIZED:
        if hasattr(model, name):
            setattr(judge, name, getattr(model, name))
    judge.name_or_path = model.name_or_path
    return judge


def as_trained(model: Any, folder: Path) -> Any:
    """The model that the adapter in ``folder`` goes onto: ``model``, with room for the head that the adapter holds."""
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        scores = file.get_slice(HEAD).get_shape()[0] if HEAD in file.keys() else None  # noqa: SIM118
    if scores is None or hasattr(model, REWARD_HEAD):
        return model
    judge = judge_of(model, scores)
    pad = read_record(folder).pad_token_id
    if pad is not None:
        judge.config.pad_token_id = pad
    return judge
