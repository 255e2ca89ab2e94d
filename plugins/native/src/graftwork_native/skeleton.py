"""The model of a run without its weights: built on the meta device, then with fake tensors in their place."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from graftwork.adapters import attach_adapter
from graftwork.builders import build_model
from graftwork.builders.dtype import checkpoint_dtype, choose_device_map, choose_dtype, device_of, use_float32_masters
from graftwork.builders.quantize import choose_quantizer, quantizer_options
from graftwork.errors import UsageError
from graftwork.sources import locate, resolve
from graftwork.sources.local import read_config
from graftwork_native.model import checkpoint_gradients

if TYPE_CHECKING:
    from graftwork.config import ModelParams, RunConfig
    from graftwork.specs import QuantizerSpec

META = torch.device("meta")


def run_device(config: RunConfig) -> torch.device:
    """Where the run's model will lie."""
    return device_of(choose_device_map(config.model.device_map))


def loaded_dtype(params: ModelParams, device: torch.device) -> torch.dtype:
    """What the weights will be loaded in; of a checkpoint only its configuration and headers are looked at."""
    stored = None
    if params.load_pretrained_weights:
        path = locate(resolve(params.model_name, revision=params.model_revision), weights=True)
        stored = checkpoint_dtype(read_config(path, params.family), path)
    return choose_dtype(params.torch_dtype, device, stored)


def skeleton(config: RunConfig, device: torch.device) -> tuple[Any, torch.dtype]:
    """The model as the trainer will have it, adapter and float32 masters included, on the meta device; and the type
    that it is loaded in.

    Its quantized layers are there, their weights still whole: :func:`materialise` puts them right.
    """
    dtype = loaded_dtype(config.model, device)
    plain = config.model.model_copy(
        update={
            "load_pretrained_weights": False,
            "adapter_model": None,
            "device_map": None,
            "compile": False,
            "torch_dtype": str(dtype).removeprefix("torch."),
        }
    )
    with META:
        model: Any = build_model(plain)
        if config.training.use_peft:
            quantizer = choose_quantizer(config.peft, device)
            if quantizer is not None:
                model = quantized(model, quantizer, config)
            # Values do not matter here, and what would compute them from the weights has none
            changes = {"q_lora": False, "quantizer": None, "lora_init_weights": "default"}
            model = attach_adapter(model, config.peft.model_copy(update=changes), family=config.model.family)
    if config.model.torch_dtype == "auto":
        use_float32_masters(model)
    if config.training.enable_gradient_checkpointing:
        kwargs = {**config.training.gradient_checkpointing_kwargs, "preserve_rng_state": False}
        training = config.training.model_copy(update={"gradient_checkpointing_kwargs": kwargs})
        checkpoint_gradients(model, config.model_copy(update={"training": training}))
    return model.train(), dtype


def quantized(model: Any, quantizer: QuantizerSpec, config: RunConfig) -> Any:
    """The model with its quantized layers marked by ``quantized_from``: shape, bias and type of what they were."""
    if quantizer.quantize is None:
        raise UsageError(
            f"quantizer {quantizer.name!r} works only while a checkpoint is loaded, and none is loaded here"
        )
    before = {
        path: (layer.out_features, layer.in_features, layer.bias is not None, layer.weight.dtype)
        for path, layer in model.named_modules()
        if type(layer) is nn.Linear
    }
    model = quantizer.quantize(model, quantizer_options(quantizer, config.peft))
    for path, layer in model.named_modules():
        if path in before and type(layer) is not nn.Linear:
            layer.quantized_from = before[path]
    return model


def materialise(model: Any, config: RunConfig, device: torch.device) -> None:
    """Gives every parameter and buffer a fake tensor on ``device``; called within a ``FakeTensorMode``.

    A quantized weight is the copy of a real one: one layer of each shape is quantized for that.
    """
    made: dict[int, nn.Parameter] = {}
    examples: dict[Any, Any] = {}
    for module in list(model.modules()):
        if (shape := getattr(module, "quantized_from", None)) is not None:
            if shape not in examples:
                examples[shape] = example(shape, config, device)
            module._parameters["weight"] = faked(examples[shape], device)
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.device.type == "meta":
                if id(parameter) not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                    made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def example(shape: tuple[int, int, bool, torch.dtype], config: RunConfig, device: torch.device) -> torch.Tensor:
    """The weight of one real layer of this shape after it was quantized, in real memory."""
    from torch.utils._python_dispatch import _disable_current_modes

    outputs, inputs, bias, dtype = shape
    quantizer = choose_quantizer(config.peft, device)
    assert quantizer is not None and quantizer.quantize is not None
    with _disable_current_modes():
        whole = nn.Sequential(nn.Linear(inputs, outputs, bias, device="cpu", dtype=dtype))
        weight = next(quantizer.quantize(whole, quantizer_options(quantizer, config.peft)).parameters())
    assert isinstance(weight, torch.Tensor)
    return weight


def faked(weight: torch.Tensor, device: torch.device) -> nn.Parameter:
    """A fake of a quantized weight, with fakes of all that is attached to it."""
    parameter = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device=device), requires_grad=False)
    for name, value in vars(weight).items():
        setattr(parameter, name, without_memory(value, device))
    return parameter


def without_memory(value: Any, device: torch.device) -> Any:
    """A copy of ``value`` in which each tensor is a fake one on ``device``."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=device)
    if not hasattr(value, "__dict__") or isinstance(value, (type, nn.Module)):
        return value
    twin = copy.copy(value)
    for name, inner in vars(value).items():
        setattr(twin, name, without_memory(inner, device))
    return twin
