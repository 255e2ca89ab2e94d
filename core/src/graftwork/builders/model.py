"""``build_model``: from :class:`graftwork.ModelParams` to a transformers model."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from graftwork.builders.attention import check_attention
from graftwork.builders.cards import compare_with_arch, fetched_for, model_of_card, said_of_card
from graftwork.builders.dtype import DeviceMap, checkpoint_dtype, choose_device_map, choose_dtype, device_of
from graftwork.builders.family import choose_family
from graftwork.builders.freeze import freeze_layers
from graftwork.builders.length import check_length
from graftwork.builders.load import fresh, load, model_class
from graftwork.builders.model_config import config_of_folder, config_of_values
from graftwork.builders.quantize import choose_quantizer, quantizer_options
from graftwork.config import ModelParams
from graftwork.errors import ModelError, UsageError
from graftwork.registry import get_registry
from graftwork.sources import ResolvedModel, locate, resolve
from graftwork.sources.local import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from graftwork.config import PeftParams
    from graftwork.specs import ModelFamily, Preset, QuantizerSpec

logger = logging.getLogger("graftwork.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """Everything decided about a model before it is built; what :attr:`ModelFamily.build` gets.

    ``path`` is the folder of the checkpoint, None for fresh weights. ``device_map`` and ``quantization_config``
    are what ``from_pretrained`` takes.
    """

    params: ModelParams
    config: PretrainedConfig
    path: Path | None
    dtype: torch.dtype
    device_map: DeviceMap = None
    quantization_config: Any = None

    def build(self, cls: type[PreTrainedModel]) -> PreTrainedModel:
        """A model of class ``cls`` as asked: from the checkpoint, or with fresh weights."""
        if self.path is None:
            return fresh(cls, self.config, self.dtype, self.device_map, self.params.attn_implementation)
        return load(
            cls,
            self.path,
            config=self.config,
            dtype=self.dtype,
            device_map=self.device_map,
            quantization_config=self.quantization_config,
            attn_implementation=self.params.attn_implementation,
        )


def build_model(params: ModelParams, peft_params: PeftParams | None = None, **model_kwargs: Any) -> PreTrainedModel:
    """Builds the model that ``params`` names: a folder, a Hub model, a card, or a preset with fresh weights.

    ``peft_params`` (or ``params.peft_params``, which means the same) quantizes the base; a fresh LoRA is attached
    by :func:`graftwork.attach_adapter` only. ``params.adapter_model`` is loaded, giving a ``PeftModel``.
    ``model_kwargs`` go over ``params.model_kwargs`` into the model's configuration. Fresh weights are float32 (the
    default dtype), the same for the same ``torch.manual_seed``, and respect ``torch.device("meta")``.

    Raises :class:`UsageError` for values that are wrong, :class:`ModelError` for models that are.
    """
    named = _with_kwargs(params, model_kwargs)
    params = model_of_card(named)
    peft = _one_peft(params.peft_params, peft_params)
    with fetched_for(named):
        source, adapter = _source(params)
    with said_of_card(named):
        request, family, quantizer = _request(params, peft, source)
    compare_with_arch(named, request.config)
    model = _build(request, family)
    _remember_source(model, source)
    if quantizer is not None and quantizer.quantize is not None and peft is not None:
        model = quantizer.quantize(model, quantizer_options(quantizer, peft))
    freeze_layers(model, params.freeze_layers, family)
    if adapter is not None:
        from graftwork.adapters.attach import load_adapter

        model = load_adapter(model, adapter)
    if params.compile:
        model.compile()
    return model


def model_config(params: ModelParams) -> PretrainedConfig:
    """The configuration of the model that ``params`` names; no weights are looked at."""
    known = model_of_card(params)
    with fetched_for(params), said_of_card(params):
        return _configured(known, resolve(known.model_name, revision=known.model_revision))[0]


def build_of_config(
    config: PretrainedConfig, *, family: ModelFamily, path: Path | None = None, device: str = "auto", dtype: Any = None
) -> PreTrainedModel:
    """A model built as ``config`` says, in evaluation mode: with the weights in the folder ``path``, whatever
    configuration lies beside them, or with fresh ones.
    """
    device_map = None if device == "meta" else choose_device_map(device)
    params = ModelParams(model_name=str(path or "."), torch_dtype="auto" if dtype is None else dtype)
    stored = checkpoint_dtype({}, path) if path is not None else None
    chosen = choose_dtype(params.torch_dtype, device_of(device_map), stored)
    request = BuildRequest(params=params, config=config, path=path, dtype=chosen, device_map=device_map)
    with torch.device("meta") if device == "meta" else nullcontext():
        model: PreTrainedModel = _build(request, family)
    return model


def load_as_stored(name: str | ModelParams) -> PreTrainedModel:
    """A checkpoint on the CPU in the precision that it is in, also float16: to be changed and saved, not run."""
    given = ModelParams(model_name=name) if isinstance(name, str) else name
    named = given.model_copy(update={"device_map": None, "adapter_model": None})
    params = model_of_card(named)
    source = resolve(params.model_name, revision=params.model_revision)
    _check_weights(params, source)
    with said_of_card(named):
        config, family, path = _configured(params, source)
    dtype = checkpoint_dtype(read_config(path), path) if path is not None else torch.float32
    model: PreTrainedModel = _build(BuildRequest(params=params, config=config, path=path, dtype=dtype), family)
    _remember_source(model, source)
    return model


def _with_kwargs(params: ModelParams, model_kwargs: Mapping[str, Any]) -> ModelParams:
    if not model_kwargs:
        return params
    return params.model_copy(update={"model_kwargs": {**params.model_kwargs, **model_kwargs}})


def _one_peft(inside: PeftParams | None, given: PeftParams | None) -> PeftParams | None:
    if inside is not None and given is not None and inside != given:
        differing = [name for name in type(given).model_fields if getattr(inside, name) != getattr(given, name)]
        raise UsageError(
            f"peft_params are given twice and differ in {', '.join(differing)}: in ModelParams(peft_params=...) and "
            "as the second argument (in a configuration: model.peft_params and peft). Give one"
        )
    return given or inside


def _source(params: ModelParams) -> tuple[ResolvedModel, Path | None]:
    """Where the base model comes from, and the folder of the adapter that goes onto it."""
    from graftwork.adapters.folder import adapter_folder, base_of_adapter, is_adapter_only

    adapter = adapter_folder(params.adapter_model) if params.adapter_model else None
    source = resolve(params.model_name, revision=params.model_revision)
    _check_weights(params, source)
    if source.kind == "preset" or not params.load_pretrained_weights:
        return source, adapter
    path = locate(source, trust_remote_code=params.trust_remote_code)
    if not (path / "adapter_config.json").is_file():
        return source, adapter
    if adapter is not None:
        raise UsageError(
            f"model_name {params.model_name!r} is itself an adapter and adapter_model {params.adapter_model!r} is "
            "another: give the base as model_name"
        )
    return (base_of_adapter(path) if is_adapter_only(path) else source), path


def _check_weights(params: ModelParams, source: ResolvedModel) -> None:
    if source.preset is None or not params.load_pretrained_weights:
        return
    ids = source.preset.hub_ids
    published = f"Its weights are on the Hub as {', '.join(ids)}: give that as model_name" if ids else "Give a folder"
    raise ModelError(
        f"model {params.model_name!r} is a preset, an architecture without weights. {published}; or set "
        "load_pretrained_weights=False for fresh weights"
    )


def _request(
    params: ModelParams, peft: PeftParams | None, source: ResolvedModel
) -> tuple[BuildRequest, ModelFamily, QuantizerSpec | None]:
    check_attention(params.attn_implementation, trust_remote_code=params.trust_remote_code)
    device_map = choose_device_map(params.device_map)
    device = device_of(device_map)
    quantizer = choose_quantizer(peft, device)
    config, family, path = _configured(params, source)
    check_length(params.model_max_length, config)
    weights = path if params.load_pretrained_weights else None
    stored = checkpoint_dtype(read_config(weights, params.family), weights) if weights is not None else None
    request = BuildRequest(
        params=params,
        config=config,
        path=weights,
        dtype=choose_dtype(params.torch_dtype, device, stored),
        device_map=device_map,
        quantization_config=_quantization(quantizer, peft, params),
    )
    return request, family, quantizer


def _configured(params: ModelParams, source: ResolvedModel) -> tuple[PretrainedConfig, ModelFamily, Path | None]:
    if source.preset is not None:
        return *_of_preset(params, source.preset), None
    path = locate(source, trust_remote_code=params.trust_remote_code, weights=params.load_pretrained_weights)
    values = read_config(path, params.family)
    family = choose_family(values["model_type"], values.get("architectures") or (), params.family)
    config = config_of_folder(path, params.model_kwargs, family, trust_remote_code=params.trust_remote_code)
    return config, family, path


def _of_preset(params: ModelParams, preset: Preset) -> tuple[PretrainedConfig, ModelFamily]:
    registry = get_registry()
    family = registry.families[params.family] if params.family else registry.family_of_preset(preset.name)
    return config_of_values(preset.model_type, preset.values, params.model_kwargs), family


def _quantization(quantizer: QuantizerSpec | None, peft: PeftParams | None, params: ModelParams) -> Any:
    if quantizer is None or peft is None or quantizer.quantization_config is None:
        return None
    if params.load_pretrained_weights:
        return quantizer.quantization_config(quantizer_options(quantizer, peft))
    if quantizer.quantize is None:
        raise UsageError(
            f"peft: quantizer {quantizer.name!r} quantizes while it loads a checkpoint, and "
            "load_pretrained_weights=False loads none"
        )
    return None


def _build(request: BuildRequest, family: ModelFamily) -> Any:
    model: nn.Module
    if family.build is not None:
        model = family.build(request)
    else:
        model = request.build(model_class(request.config, request.params.trust_remote_code))
    return model


def _remember_source(model: Any, source: ResolvedModel) -> None:
    """Adapters record their base by ``name_or_path``: a Hub id or an absolute folder, never a cache folder."""
    name = "" if source.kind == "preset" else source.name
    model.name_or_path = name
    if isinstance(getattr(model, "config", None), PretrainedConfig):
        model.config.name_or_path = name
