"""The builder functions that torchtune's users know, for any family: ``llama3_8b``, ``lora_llama3_8b``, ``llama3``, ...

A family's module defines its own with one line for each preset, and one statement for those of any size::

    llama3_8b, lora_llama3_8b, qlora_llama3_8b = builders(LLAMA3_8B)
    mistral, lora_mistral = generic_builders("mistral", "mistral", required=DECODER, defaults=DECODER_DEFAULTS)

They give fresh weights in training mode, on the device and in the dtype of the context
(``torch.device("meta")``, ``torch.set_default_dtype``), as any ``nn.Module`` does.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from inspect import Parameter, Signature, signature
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from graftwork.builders.load import fresh, model_class
from graftwork.builders.model_config import config_of_values
from graftwork.builders.quantize import choose_quantizer, quantizer_options
from graftwork.config import PeftParams
from graftwork.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

    from graftwork.specs import Preset

T = TypeVar("T")

LoraModule = Literal["q_proj", "k_proj", "v_proj", "output_proj"]
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "output_proj")

SHAPE = ("vocab_size", "num_layers", "num_heads", "num_kv_heads", "embed_dim")
DECODER = (*SHAPE, "intermediate_dim", "max_seq_len")
DECODER_DEFAULTS: Mapping[str, Any] = {"attn_dropout": 0.0, "norm_eps": 1e-5, "rope_base": 10_000}
"""What most of torchtune's generic builders take, in its order, and their defaults."""

FIELDS: Mapping[str, str] = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "embed_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "attn_dropout": "attention_dropout",
    "norm_eps": "rms_norm_eps",
    "rope_base": "rope_parameters.rope_theta",
    "scale_factor": "rope_parameters.factor",
    "num_classes": "num_labels",
}
"""torchtune's argument to transformers' field, where the two differ; a dot leads into a part of the configuration."""


class LoraModulesError(UsageError, ValueError):
    """No module, or an unknown one, was named for a LoRA. A ``ValueError`` too, as in torchtune."""


def builders(
    preset: Preset, *, positional_dropout: bool = False, lora_output: bool = True, latest: bool = False
) -> tuple[Callable[[], PreTrainedModel], Callable[..., PeftModel], Callable[..., PeftModel]]:
    """The functions ``X()``, ``lora_X(...)`` and ``qlora_X(...)`` of a preset.

    ``lora_X`` takes ``lora_attn_modules, apply_lora_to_mlp=False, apply_lora_to_output=False, lora_rank=8,
    lora_alpha=16, quantize_base=False`` in this order; ``positional_dropout`` puts ``lora_dropout=0.05``
    before the last, where torchtune has it for Llama 2, instead of keyword-only after it. Without ``lora_output``
    there is no ``apply_lora_to_output``, as for families whose output layer is always the embedding. ``latest`` is
    how torchtune's last release has it: ``lora_dropout=0.0, use_dora=False`` before ``quantize_base``.
    """
    dropout, quantize = ("lora_dropout", 0.05), ("quantize_base", False)
    more = [("lora_dropout", 0.0), ("use_dora", False)] if latest else [dropout] if positional_dropout else []
    tail = [("lora_rank", 8), ("lora_alpha", 16), *more, quantize]
    parameters = [*_lora_head(lora_output), *_parameters(tail)]
    if not more:
        parameters += _parameters([dropout], Parameter.KEYWORD_ONLY)
    size = f"{preset.name} with fresh weights ({preset.num_parameters:,} parameters)."
    build = _function(preset.name, size, [], lambda _: fresh_model(preset.config()))
    lora = _function(
        f"lora_{preset.name}",
        f"{preset.name} with fresh weights and a LoRA on the modules named.",
        parameters,
        lambda arguments: lora_model(preset.config(), lora_params(**arguments)),
    )
    return build, lora, partial(lora, quantize_base=True)


def sized_builders(presets: Iterable[Preset], start: str, **options: Any) -> dict[str, Callable[..., Any]]:
    """:func:`builders` with ``options`` of every preset whose name begins with ``start``, by their names.

    For a module of many sizes: ``globals().update(sized_builders(PRESETS, "qwen3_"))``.
    """
    found: dict[str, Callable[..., Any]] = {}
    for preset in presets:
        if preset.name.startswith(start):
            names = (preset.name, f"lora_{preset.name}", f"qlora_{preset.name}")
            found.update(zip(names, builders(preset, **options), strict=True))
    return found


def generic_builders(
    name: str,
    model_type: str | Mapping[str, Mapping[str, Any]],
    *,
    required: Sequence[str] = DECODER,
    defaults: Mapping[str, Any] = DECODER_DEFAULTS,
    fields: Mapping[str, str] | None = None,
    derive: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    lora_output: bool = True,
    latest: bool = False,
    **values: Any,
) -> tuple[Callable[..., PreTrainedModel], Callable[..., PeftModel]]:
    """The functions ``X(...)`` and ``lora_X(...)`` that build a model of any size, with torchtune's signatures.

    ``X`` takes ``required`` and ``defaults`` in this order, from a ``"*"`` on by keyword only; ``lora_X`` takes the
    modules first and all of these by keyword. :data:`FIELDS` and over them ``fields`` translate an argument into
    the field of the configuration, and any other is that field itself; an argument that is None is left to the
    configuration's default. Where transformers has one value for an argument, ``model_type`` is a mapping that holds
    these, of one model type or of several that they tell apart: other values are refused.
    ``derive(arguments)`` gives fields that follow from several arguments, ``values`` those that are always so;
    ``lora_output`` and ``latest`` (which adds ``use_dora``) are as for :func:`builders`::

        gemma, lora_gemma = generic_builders(
            "gemma",
            {"gemma": {"norm_embeddings": True}},
            required=("vocab_size", "num_layers", "num_heads", "head_dim", "num_kv_heads", "embed_dim",
                      "intermediate_dim", "max_seq_len"),
            defaults={"attn_dropout": 0.0, "norm_eps": 1e-6, "rope_base": 10_000, "norm_embeddings": True},
            lora_output=False,
        )
    """
    kinds = {model_type: {}} if isinstance(model_type, str) else model_type

    def config(arguments: Mapping[str, Any]) -> PretrainedConfig:
        found_type = _model_type(name, kinds, arguments)
        given = {key: value for key, value in arguments.items() if key not in kinds[found_type] and value is not None}
        if given.get("intermediate_dim") is None:
            given["intermediate_dim"] = scale_hidden_dim(given["embed_dim"])
        found = _nested(given, {**FIELDS, **(fields or {})}, values)
        return config_of_values(found_type, {**found, **(derive(arguments) if derive else {})}, {})

    def lora(arguments: dict[str, Any]) -> PeftModel:
        peft = {key: arguments.pop(key) for key in signature(lora_params).parameters if key in arguments}
        return lora_model(config(arguments), lora_params(**peft))

    plain = _parameters([*required, *defaults.items()])
    by_keyword = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in plain]
    dora = [("use_dora", False)] if latest else []
    tail: list[str | tuple[str, Any]] = ["lora_rank", "lora_alpha", ("lora_dropout", 0.0), *dora]
    tail.append(("quantize_base", False))
    more = [*_lora_head(lora_output), *by_keyword, *_parameters(tail, Parameter.KEYWORD_ONLY)]
    return (
        _function(name, f"A {name} of any size with fresh weights.", plain, lambda given: fresh_model(config(given))),
        _function(f"lora_{name}", f"As {name}, with a LoRA on the modules named.", more, lora),
    )


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
    adapted = attach_adapter(model, peft).train()
    adapted.register_load_state_dict_pre_hook(_base_names)
    return adapted


def _base_names(model: Any, state_dict: dict[str, Any], *_: Any) -> None:
    """The base's weights under the names that they have without the LoRA, as torchtune's recipes load them with
    ``strict=False``; otherwise that would find none of them, and say nothing.
    """
    for name in model.state_dict():
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if plain in state_dict:
            state_dict[name] = state_dict.pop(plain)


def lora_params(
    lora_attn_modules: Sequence[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    *,
    lora_rank: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    use_dora: bool = False,
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
        use_dora=use_dora,
        q_lora=quantize_base,
        bnb_4bit_quant_type="nf4",
    )


def scale_hidden_dim(embed_dim: int, multiple_of: int = 256) -> int:
    """The feed-forward width of Llama 1 and 2, torchtune's default: 2/3 of 4 x width, rounded up to a multiple."""
    return multiple_of * ceil(4 * int(2 * embed_dim / 3) / multiple_of)


def _function(
    name: str, doc: str, parameters: Sequence[Parameter], call: Callable[[dict[str, Any]], T]
) -> Callable[..., T]:
    """A function of this name and signature, which hands what it was called with to ``call``."""
    accepted = Signature(parameters)

    def function(*args: Any, **kwargs: Any) -> T:
        try:
            bound = accepted.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}; it takes {accepted}") from None
        bound.apply_defaults()
        return call(bound.arguments)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    function.__signature__ = accepted  # type: ignore[attr-defined]
    return function


def _parameters(names: Iterable[str | tuple[str, Any]], kind: Any = Parameter.POSITIONAL_OR_KEYWORD) -> list[Parameter]:
    """Parameters from names, those with a default from pairs; what stands behind a ``"*"`` is by keyword only."""
    found = []
    for entry in names:
        if entry == "*":
            kind = Parameter.KEYWORD_ONLY
            continue
        name, default = (entry, Parameter.empty) if isinstance(entry, str) else entry
        found.append(Parameter(name, kind, default=default))
    return found


def _lora_head(lora_output: bool) -> list[Parameter]:
    output = [("apply_lora_to_output", False)] if lora_output else []
    return _parameters(["lora_attn_modules", ("apply_lora_to_mlp", False), *output])


def _model_type(name: str, kinds: Mapping[str, Mapping[str, Any]], arguments: Mapping[str, Any]) -> str:
    """The one whose fixed arguments are these. Raises :class:`UsageError` by the nearest where there is none."""
    wrong = {kind: [key for key, value in fixed.items() if arguments[key] != value] for kind, fixed in kinds.items()}
    nearest = min(wrong, key=lambda kind: len(wrong[kind]))
    for key in wrong[nearest]:
        raise UsageError(
            f"{name}: {key}={arguments[key]!r} cannot be had: transformers' {nearest} always has "
            f"{key}={kinds[nearest][key]!r}"
        )
    return nearest


def _nested(given: Mapping[str, Any], fields: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values``, and over them ``given`` under transformers' names. What goes into a part is a rotary float."""
    found: dict[str, Any] = deepcopy(dict(values))
    for argument, value in given.items():
        *parts, field = fields.get(argument, argument).split(".")
        place = found
        for part in parts:
            place = place.setdefault(part, {})
        place[field] = float(value) if parts else value
    return found


def _check_modules(names: Sequence[str]) -> None:
    if isinstance(names, str):
        raise LoraModulesError(f"lora_attn_modules is the text {names!r}, and takes a list: [{names!r}]")
    if not names:
        raise LoraModulesError(f"lora_attn_modules is empty: name one or more of {', '.join(LORA_MODULES)}")
    for name in names:
        if name not in LORA_MODULES:
            hint = "did you mean output_proj?" if name == "o_proj" else did_you_mean(name, LORA_MODULES)
            raise LoraModulesError(f"lora_attn_modules: {name!r} is not known: {hint}")
