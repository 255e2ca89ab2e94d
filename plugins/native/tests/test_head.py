"""An adapter on the head: its loss in pieces is that of the logits that PEFT makes, and holds no more of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from graftwork.data.batch import Row, to_row
from graftwork.data.samples import Sample
from graftwork_native import log_probs, loss
from graftwork_native.forward import base_of
from graftwork_native.head import factors_of
from graftwork_native.log_probs import head_log_probs
from graftwork_native.loss import head_loss, logits_of
from graftwork_native.trial import plan_forward

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "lm_head"]},
    "alone": {"target_modules": ["lm_head"]},
    "rslora with dropout": {"target_modules": ["q_proj", "lm_head"], "use_rslora": True, "lora_dropout": 0.3},
    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}
NOT_IN_PIECES = {
    "dora": ({"target_modules": ["lm_head"], "use_dora": True}, "the adapter on the head is no plain LoRA"),
    "bias": ({"target_modules": ["lm_head"], "lora_bias": True}, "the adapter on the head has a bias"),
}


def adapted(toys: Any, **options: Any) -> Any:
    """A toy whose adapter is no longer zero, in training mode."""
    torch.manual_seed(0)
    model = get_peft_model(toys.model("llama"), LoraConfig(r=4, lora_alpha=12, **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model.train()


def row(seed: int = 0) -> Row:
    generator = np.random.default_rng(seed)
    return to_row([Sample(generator.integers(0, 256, n, np.int32), np.arange(n) > 1, "row") for n in (30, 11)])


def pairs() -> Row:
    parts = [(5, 20, 9), (3, 6, 25)]
    generator = np.random.default_rng(1)
    return to_row(
        [Sample(generator.integers(0, 256, sum(p), np.int32), np.arange(sum(p)) >= p[0], "pair", p) for p in parts]
    )


def number_of(forward: Any, kind: str) -> torch.Tensor:
    torch.manual_seed(7)  # of the dropout
    if kind == "loss":
        return forward.loss(row(), 0.37)
    found: torch.Tensor = (forward.log_probs(pairs()) * torch.tensor([[1.0, -2.0], [0.5, -1.0]])).sum()
    return found


@pytest.mark.parametrize("kind", ["loss", "log_probs"])
@pytest.mark.parametrize("case", ADAPTERS)
def test_pieces_are_the_whole(case: str, kind: str, toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PIECE_BYTES", 4 * 260 * 16)
    monkeypatch.setattr(log_probs, "KEPT_BYTES", 4 * 260 * 16)  # one piece is kept, the others are made again
    model = adapted(toys, **ADAPTERS[case])
    forward = plan_forward(model, None)
    assert forward.fused_head
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found, wanted = (number_of(replace(forward, fused_head=fused), kind) for fused in (True, False))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    pairs_of_gradients = [torch.autograd.grad(one, learned) for one in (found, wanted)]
    assert sum(bool(gradient.any()) for gradient in pairs_of_gradients[0]) == len(learned)
    for one, other in zip(*pairs_of_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(number_of(forward, kind), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", ["lora", "whole"])
def test_an_adapter_that_is_off(case: str, toys: Any) -> None:
    """As DPO's reference is made: nothing of it is left."""
    model = adapted(toys, **ADAPTERS[case])
    forward = plan_forward(model, None)
    plain = plan_forward(toys.model("llama"), None)
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(forward.loss(row(), 1.0), plain.loss(row(), 1.0), rtol=1e-6, atol=0)
    with torch.no_grad():
        assert abs(float(forward.loss(row(), 1.0) - plain.loss(row(), 1.0))) > 0.1


def test_bfloat16_products(toys: Any) -> None:
    forward = plan_forward(adapted(toys, **ADAPTERS["lora"]), torch.bfloat16)
    found, wanted = (number_of(replace(forward, fused_head=fused), "loss") for fused in (True, False))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=5e-3, atol=0)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # PEFT's, about merging
@pytest.mark.parametrize("case", NOT_IN_PIECES)
def test_other_adapters_make_their_logits_themselves(case: str, toys: Any, caplog: pytest.LogCaptureFixture) -> None:
    options, reason = NOT_IN_PIECES[case]
    with caplog.at_level(logging.INFO, "graftwork_native"):
        assert not plan_forward(adapted(toys, **options), None).fused_head
    assert f"the logits of a row's labels are made at once, which takes memory, not in pieces: {reason}" in caplog.text


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that is made within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("kind", ["loss", "log_probs"])
def test_all_logits_are_never_held(kind: str, toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At Llama 3's vocabulary, forwards and backwards; what is kept for the way back is small too."""
    vocabulary, labels, piece = 128_256, 128, 16
    monkeypatch.setattr(loss, "PIECE_BYTES", 4 * vocabulary * piece)
    monkeypatch.setattr(log_probs, "KEPT_BYTES", 0)
    torch.manual_seed(0)
    model = adapted(toys, target_modules=["lm_head"])
    head = base_of(model).get_output_embeddings()
    head.base_layer.weight = torch.nn.Parameter(torch.randn(vocabulary, 32), requires_grad=False)
    up = head.lora_B["default"].weight = torch.nn.Parameter(torch.randn(vocabulary, 4))
    states = torch.randn(labels, 32, requires_grad=True)
    target, saved = torch.randint(vocabulary, (labels,)), []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.nbytes) or tensor, lambda it: it),
        Largest() as largest,
    ):
        hidden, weight, *more = factors_of(head, states)
        if kind == "loss":
            found = head_loss(hidden, weight, target, 1.0, *more)
        else:
            found = head_log_probs(hidden, weight, target, torch.zeros_like(target), 1, *more).sum()
        found.backward()
    assert up.grad is not None
    assert states.grad is not None
    whole = 4 * labels * vocabulary
    assert max(saved) <= weight.nbytes < whole
    assert largest.bytes == max(whole * piece // labels, weight.nbytes)
    wanted = torch.nn.functional.cross_entropy(logits_of(*factors_of(head, states)), target, reduction="sum")
    torch.testing.assert_close(found.abs(), wanted, rtol=1e-5, atol=0)
