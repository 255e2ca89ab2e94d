"""FSDP2: weights, gradients and optimizer state cut over the processes, as the section ``fsdp`` says."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from graftwork.errors import UsageError, did_you_mean
from graftwork_native.forward import base_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

    from torch.distributed.device_mesh import DeviceMesh

    from graftwork.config import RunConfig
    from graftwork.config.fsdp import FsdpParams
    from graftwork_native.world import World

logger = logging.getLogger(__name__)
Weights = dict[int, nn.Parameter]
"""Parameters in the place of those with these ids."""


def shard(whole: nn.Module, model: nn.Module, config: RunConfig, world: World) -> nn.Module:
    """Cuts ``model`` in place. What no piece has taken (embeddings, head) belongs to ``whole``."""
    fsdp = config.fsdp
    device = next(model.parameters()).device
    refuse_uncuttable(model)
    if fsdp.sync_module_states:
        send_weights(model)
    options = options_of(fsdp, mesh_of(fsdp, device, world), device)
    pieces = list(pieces_of(model, fsdp))
    for piece in pieces:
        fully_shard(piece, **options)
    fully_shard(whole, **options)
    for module in whole.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if fsdp.forward_prefetch:
        for piece, following in pairwise(pieces):
            piece.set_modules_to_forward_prefetch([following])  # type: ignore[operator]
    return whole


def refuse_uncuttable(model: nn.Module) -> None:
    """Quantized weights are bytes in an order of their own."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise UsageError(
                f"fsdp.enable_fsdp: {name} is quantized ({str(parameter.dtype).removeprefix('torch.')}), and a "
                "quantized weight cannot be cut; leave fsdp out (each process then holds the quantized model, as DDP "
                "does), or train without q_lora"
            )


def send_weights(model: nn.Module) -> None:
    """The first process's parameters and buffers, everywhere."""
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), src=0)


def mesh_of(fsdp: FsdpParams, device: torch.device, world: World) -> DeviceMesh:
    """One dimension over all processes; for the hybrid strategies machines by processes of one."""
    inner = world.place.local_size
    if fsdp.sharding_strategy.startswith("HYBRID") and world.size > inner:
        names = ("replicate", "shard")
        return init_device_mesh(device.type, (world.size // inner, inner), mesh_dim_names=names)
    return init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))


def options_of(fsdp: FsdpParams, mesh: DeviceMesh, device: torch.device) -> dict[str, Any]:
    """What ``fully_shard`` is told."""
    half = torch.bfloat16 if fsdp.mixed_precision == "bf16" else None
    offload = fsdp.cpu_offload and device.type != "cpu"
    if fsdp.cpu_offload and not offload:
        logger.info("fsdp.cpu_offload: the weights are in host memory already")
    return {
        "mesh": mesh,
        "reshard_after_forward": fsdp.sharding_strategy in ("FULL_SHARD", "HYBRID_SHARD"),
        "mp_policy": MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None),
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }


def pieces_of(model: nn.Module, fsdp: FsdpParams) -> Iterator[nn.Module]:
    """The modules that are gathered by themselves, inner ones before outer ones."""
    if fsdp.auto_wrap_policy == "TRANSFORMER_BASED_WRAP":
        names = layer_classes(model, fsdp.transformer_layer_cls)
        yield from (module for module in model.modules() if type(module).__name__ in names)
    elif fsdp.auto_wrap_policy == "SIZE_BASED_WRAP":
        base = base_of(model)
        decoder = getattr(base, getattr(base, "base_model_prefix", "") or " ", base)
        # These may share one weight, and the head's is used without the head's own forward.
        ends = {base.get_input_embeddings(), base.get_output_embeddings()}
        yield from large_pieces(decoder, fsdp.min_num_params, ends)[0]


def layer_classes(model: nn.Module, asked: str | None) -> set[str]:
    """The names of the layers' classes: those asked for (a dotted path may stand before), or the model's own."""
    present = {type(module).__name__ for module in model.modules()}
    if asked is None:
        return set(getattr(base_of(model), "_no_split_modules", None) or ()) & present
    names = {name.strip().rpartition(".")[2] for name in asked.split(",")}
    for name in sorted(names - present):
        raise UsageError(f"fsdp.transformer_layer_cls: the model has no {name}; {did_you_mean(name, sorted(present))}")
    return names


def large_pieces(module: nn.Module, smallest: int, without: Set[nn.Module]) -> tuple[list[nn.Module], int]:
    """The smallest modules with at least so many parameters that no inner piece has, and how many are left over.

    A module that is never called by itself (a list of layers) is none, and neither is one of ``without``.
    """
    if module in without:
        return [], 0
    pieces: list[nn.Module] = []
    left = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    for child in module.children():
        inner, count = large_pieces(child, smallest, without)
        pieces += inner
        left += count
    if left >= smallest and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [*pieces, module], 0
    return pieces, left


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may lie in pieces, in one. Every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module, *, keep: bool) -> Weights:
    """The parameters that lie in pieces, gathered one after the other into host memory; empty where they are not to be
    kept. Every process has to ask.
    """
    whole: Weights = {}
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            full = whole_tensor(parameter.detach())
            if keep:
                whole[id(parameter)] = nn.Parameter(full.cpu(), requires_grad=parameter.requires_grad)
    return whole


def put(model: nn.Module, weights: Weights) -> None:
    """Gives the model other parameters in the place of those that are named."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in weights:
                module._parameters[name] = weights[id(parameter)]


def uncut(model: nn.Module, weights: Weights) -> None:
    """Makes the model a plain one with these parameters, for the end of its training."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.__class__ = type(module).__bases__[1]  # what fully_shard made the class from
    put(model, weights)


@contextmanager
def in_one_piece(model: nn.Module, weights: Weights) -> Iterator[None]:
    """Within the block the model has these whole parameters, and can be saved as any other."""
    own = {id(weights[id(parameter)]): parameter for parameter in model.parameters() if id(parameter) in weights}
    put(model, weights)
    try:
        yield
    finally:
        put(model, own)


def whole_optimizer(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """The optimizer's state as one process would have it, gathered tensor by tensor into host memory."""
    state = optimizer.state_dict()
    if not any(isinstance(value, DTensor) for entry in state["state"].values() for value in entry.values()):
        return state
    gathered: dict[int, dict[str, Any]] = {}
    for number, entry in state["state"].items():
        whole = {name: whole_tensor(value).cpu() if torch.is_tensor(value) else value for name, value in entry.items()}
        if keep:
            gathered[number] = whole
    return {**state, "state": gathered}


def cut_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The inverse of :func:`whole_optimizer`: what has a parameter's shape is cut as the parameter is."""
    parameters: Sequence[torch.Tensor] = [item for group in optimizer.param_groups for item in group["params"]]

    def cut(value: Any, like: torch.Tensor) -> Any:
        if isinstance(like, DTensor) and torch.is_tensor(value) and value.shape == like.shape:
            return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
        return value

    entries = {
        number: {name: cut(value, parameters[number]) for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}
