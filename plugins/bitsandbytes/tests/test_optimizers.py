"""Optimizers of bitsandbytes by name: against PyTorch's and a formula, resumed to the bit, refused without pages."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from graftwork.config import TrainingParams
from graftwork.errors import UsageError
from graftwork.registry import get_registry

HERE = ["adamw_8bit", "lion_32bit", "lion_8bit"]
PAGED = ["paged_adamw_8bit", "paged_adamw_32bit", "paged_lion_32bit", "paged_lion_8bit"]


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.randn(96, 64, generator=torch.Generator().manual_seed(0)))


def build(name: str, weight: nn.Parameter, **training: Any) -> torch.optim.Optimizer:
    groups = [{"params": [weight], "weight_decay": 0.1}]
    made: torch.optim.Optimizer = get_registry().optimizers[name].build(groups, 1e-2, TrainingParams(**training))
    return made


def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 + number))
        weight.grad = weight.detach() + 0.1 * noise
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("alias", "name"), [("adamw_bnb_8bit", "adamw_8bit"), ("paged_adamw", "paged_adamw_32bit"), ("LION", "lion_32bit")]
)
def test_names_of_transformers(alias: str, name: str) -> None:
    assert get_registry().optimizers[alias].name == name


def test_eight_bit_adamw_follows_pytorchs() -> None:
    """Twenty steps; the states' rounding moves a weight by a few percent of its way."""
    weights = parameter(), parameter()
    plain = torch.optim.AdamW([weights[0]], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-6)
    small = build("adamw_8bit", weights[1], adam_beta2=0.99, adam_epsilon=1e-6)
    for optimizer, weight in zip((plain, small), weights, strict=True):
        steps(optimizer, weight, 20)
    way = (weights[0] - parameter()).norm()
    assert 0 < (weights[0] - weights[1]).norm() < 0.1 * way
    state = small.state[weights[1]]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8


def test_lion_is_the_published_rule() -> None:
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", Algorithm 2."""
    weight, expected, momentum = parameter(), parameter().detach(), torch.zeros(96, 64)
    optimizer = build("lion_32bit", weight, adam_beta2=0.99)
    for number in range(5):
        gradient = weight.detach() + 0.1 * torch.randn(96, 64, generator=torch.Generator().manual_seed(100 + number))
        update = (0.9 * momentum + 0.1 * gradient).sign()
        expected = expected - 1e-2 * (update + 0.1 * expected)
        momentum = 0.99 * momentum + 0.01 * gradient
        steps(optimizer, weight, 1, first=number)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HERE)
def test_resumed_to_the_bit(name: str, tmp_path: Any) -> None:
    through, weight = parameter(), parameter()
    steps(build(name, through), through, 6)
    first = build(name, weight)
    steps(first, weight, 3)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    again = nn.Parameter(weight.detach().clone())
    second = build(name, again)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    steps(second, again, 3, first=3)
    assert torch.equal(again, through)


@pytest.mark.parametrize("name", PAGED)
def test_pages_need_a_gpu(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(name, parameter())
    instead = {"paged_adamw_32bit": "adamw"}.get(name, name.removeprefix("paged_"))
    assert str(caught.value) == (
        f"training.optimizer {name!r}: its pages move between a GPU's memory and the host's, and the model is on the "
        f"CPU: use {instead}"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pages need a GPU")
@pytest.mark.parametrize("name", PAGED)
def test_paged_ones_on_a_gpu(name: str) -> None:
    weight = nn.Parameter(torch.randn(96, 64, device="cuda"))
    optimizer = build(name, weight)
    assert isinstance(optimizer, bnb.optim.optimizer.Optimizer8bit)
    assert optimizer.is_paged
    weight.grad = torch.ones_like(weight)
    optimizer.step()
