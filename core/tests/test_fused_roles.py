"""Roles of a LoRA that one module fills are asked for together, in any family that says so."""

from __future__ import annotations

import pytest
from torch import nn

from graftwork.adapters import resolve_lora_targets
from graftwork.errors import UsageError
from graftwork.specs import ModelFamily

FAMILY = ModelFamily(
    name="toy",
    lora_targets={"q_proj": ("qk",), "k_proj": ("qk",), "v_proj": ("v",), "output_proj": ("o",)},
    fused_lora_roles=(("q_proj", "k_proj"),),
)


def model() -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(2, 2) for name in ("qk", "v", "o")})


@pytest.mark.parametrize("names", [["q_proj", "k_proj"], ["k_proj", "q_proj"], ["qk"]])
def test_all_of_them(names: list[str]) -> None:
    assert resolve_lora_targets(FAMILY, names, model()) == ["qk"]


def test_none_of_them() -> None:
    assert resolve_lora_targets(FAMILY, ["v_proj", "output_proj"], model()) == ["v", "o"]


def test_a_part_of_them() -> None:
    with pytest.raises(UsageError, match="q_proj without k_proj cannot be had: in family toy q_proj, k_proj are one"):
        resolve_lora_targets(FAMILY, ["q_proj", "v_proj"], model())
