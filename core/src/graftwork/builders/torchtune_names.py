"""The builder functions that torchtune's users know, for any family: ``llama3_8b``, ``lora_llama3_8b``, ...

A family's module defines its own with one line for each preset::

    llama3_8b, lora_llama3_8b, qlora_llama3_8b = builders(LLAMA3_8B)

They give fresh weights in training mode, on the device and in the dtype of the context
(``torch.device("meta")``, ``torch.set_default_dtype``), as any ``nn.Module`` does.
"""

from __future__ import annotations

import inspect
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import torch

from graftwork.builders.load import fresh, model_class
from graftwork.builders.quantize import choose_quantizer, quantizer_options
from graftwork.config import PeftParams
from graftwork.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

    from graftwork.specs import Preset

LoraModule = Literal["q_proj", "k_proj", "v_proj", "output_proj"]
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "output_proj")


class LoraModulesError(UsageError, ValueError):
    """No module, or an unknown one, was named for a LoRA. A ``ValueError`` too, as in torchtune."""


def builders(
    preset: Preset, *, positional_dropout: bool = False
) -> tuple[Callable[[], PreTrainedModel], Callable[..., PeftModel], Callable[..., PeftModel]]:
    """The functions ``X()``, ``lora_X(...)`` and ``qlora_X(...)`` of a preset.

    ``lora_X`` takes ``lora_attn_modules, apply_lora_to_mlp=False, apply_lora_to_output=False, lora_rank=8,
    lora_alpha=16, quantize_base=False`` in this order; ``positional_dropout`` puts ``lora_dropout=0.05``
    before the last, where torchtune has it for Llama 2, instead of keyword-only after it.
    """

    def build() -> PreTrainedModel:
        return fresh_model(preset.config())

    def lora(
        lora_attn_modules: Sequence[LoraModule],
        apply_lora_to_mlp: bool = False,
        apply_lora_to_output: bool = False,
        lora_rank: int = 8,
        lora_alpha: float = 16,
        quantize_base: bool = False,
        *,
        lora_dropout: float = 0.05,
    ) -> PeftModel:
        peft = lora_params(
            lora_attn_modules,
            apply_lora_to_mlp,
            apply_lora_to_output,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            quantize_base=quantize_base,
        )
        return lora_model(preset.config(), peft)

    def lora_with_dropout(
        lora_attn_modules: Sequence[LoraModule],
        apply_lora_to_mlp: bool = False,
        apply_lora_to_output: bool = False,
        lora_rank: int = 8,
        lora_alpha: float = 16,
        lora_dropout: float = 0.05,
        quantize_base: bool = False,
    ) -> PeftModel:
        return lora(
            lora_attn_modules,
            apply_lora_to_mlp,
            apply_lora_to_output,
            lora_rank,
            lora_alpha,
            quantize_base,
            lora_dropout=lora_dropout,
        )

    chosen = lora_with_dropout if positional_dropout else lora
    build.__name__, chosen.__name__ = preset.name, f"lora_{preset.name}"
    build.__doc__ = f"{preset.name} with fresh weights ({preset.num_parameters:,} parameters)."
    chosen.__doc__ = f"{preset.name} with fresh weights and a LoRA on the modules named."
    return build, chosen, partial(chosen, quantize_base=True)


def fresh_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model with fresh weights in training mode, on the device and in the dtype of the context."""
    return fresh(model_class(config, False), config, torch.get_default_dtype(), None, None).train()


def lora_model(config: PretrainedConfig, peft: PeftParams) -> PeftModel:
    """A fresh model with a fresh LoRA; quantized where ``peft`` says so.

    Raises :class:`~graftwork.errors.MissingExtraError` where no installed plugin quantizes.
    """
    from graftwork.adapters import attach_adapter

    if "output" in (peft.lora_target_modules or ()) and config.tie_word_embeddings:
        raise LoraModulesError("apply_lora_to_output: the output layer of this model is its embedding, so leave it out")
    quantizer = choose_quantizer(peft, torch.get_default_device())
    if quantizer is not None and quantizer.quantize is None:
        raise UsageError(
            f"quantize_base: quantizer {quantizer.name!r} quantizes while it loads a checkpoint, and this has fresh "
            "weights; use build_model(ModelParams(...), PeftParams(q_lora=True)) with a checkpoint"
        )
    model: Any = fresh_model(config)
    if quantizer is not None and quantizer.quantize is not None:
        model = quantizer.quantize(model, quantizer_options(quantizer, peft))
    return attach_adapter(model, peft).train()


def lora_params(
    lora_attn_modules: Sequence[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    *,
    lora_rank: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
) -> PeftParams:
    """The LoRA arguments of torchtune as :class:`~graftwork.PeftParams`; its quantization is 4-bit NormalFloat."""
    _check_modules(lora_attn_modules)
    parts = [("mlp", apply_lora_to_mlp), ("output", apply_lora_to_output)]
    return PeftParams(
        lora_target_modules=[*lora_attn_modules, *(role for role, wanted in parts if wanted)],
        lora_r=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        q_lora=quantize_base,
        bnb_4bit_quant_type="nf4",
    )


def config_of(model_type: str, arguments: Mapping[str, Any]) -> PretrainedConfig:
    """The transformers configuration for the ``arguments`` of a generic builder, by torchtune's names.

    Those of the LoRA, which stand in the same signature, are left aside.
    """
    from transformers import AutoConfig

    values = {_CONFIG_NAMES[name]: value for name, value in arguments.items() if name in _CONFIG_NAMES}
    if values["intermediate_size"] is None:
        values["intermediate_size"] = scale_hidden_dim(values["hidden_size"])
    rope = {"rope_type": "default", "rope_theta": float(arguments["rope_base"])}
    return AutoConfig.for_model(model_type, **values, rope_parameters=rope)


def lora_of(model_type: str, arguments: Mapping[str, Any]) -> PeftModel:
    """A fresh model with a LoRA for the ``arguments`` of a generic ``lora_`` builder."""
    names = inspect.signature(lora_params).parameters
    peft = lora_params(**{name: value for name, value in arguments.items() if name in names})
    return lora_model(config_of(model_type, arguments), peft)


def scale_hidden_dim(embed_dim: int, multiple_of: int = 256) -> int:
    """The feed-forward width of Llama 1 and 2, torchtune's default: 2/3 of 4 x width, rounded up to a multiple."""
    return multiple_of * ceil(4 * int(2 * embed_dim / 3) / multiple_of)


_CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "embed_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "attn_dropout": "attention_dropout",
    "norm_eps": "rms_norm_eps",
}
"""torchtune's argument to transformers' field."""


def _check_modules(names: Sequence[str]) -> None:
    if not names:
        raise LoraModulesError(f"lora_attn_modules is empty: name one or more of {', '.join(LORA_MODULES)}")
    for name in names:
        if name not in LORA_MODULES:
            raise LoraModulesError(f"lora_attn_modules: {name!r} is not known: {did_you_mean(name, LORA_MODULES)}")
