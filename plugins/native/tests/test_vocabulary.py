"""The gradients of embedding and head that stay, against those that autograd makes; and that no other of their size is
made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graftwork.data.batch import Row, to_row
from graftwork.data.samples import Sample
from graftwork_native import loss
from graftwork_native.loss import head_loss
from graftwork_native.trial import plan_forward, with_shared_prompts
from graftwork_native.vocabulary import clear_gradients, kept_gradients

if TYPE_CHECKING:
    from graftwork_native.forward import Forward

KINDS = [("llama", True), ("llama", False), ("gpt2", True), ("gemma2", True), ("mixtral", False)]


def rows(number: int = 3) -> list[Row]:
    """Of two samples each, about half of the tokens trained; every one of them draws from the same few tokens."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(number):
        samples = [
            Sample(generator.integers(0, 40, length).astype(np.int32), np.arange(length) % 2 == 1, "test")
            for length in (9, 6)
        ]
        found.append(to_row(samples))
    return found


def model_of(toys: Any, kind: str, tied: bool) -> Any:
    torch.manual_seed(0)
    model = toys.model(kind, tie_word_embeddings=tied)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    return model


def keeping(forward: Forward) -> Forward:
    """With the gradients of zeros that a run begins with."""
    kept = kept_gradients(forward)
    clear_gradients(torch.optim.SGD(forward.model.parameters()), kept)
    assert all(weight.grad is not None for weight in kept)
    return replace(forward, kept=kept)


def backward(forward: Forward, some: list[Row]) -> dict[str, torch.Tensor]:
    """The gradients of a step over several rows, each with its own backward pass, as the trainer makes them."""
    for row in some:
        forward.loss(row, 0.25).backward()
    return {name: p.grad.clone() for name, p in forward.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "tied"), KINDS)
@pytest.mark.parametrize("pieces", [False, True])
def test_they_are_those_that_autograd_makes(
    toys: Any, kind: str, tied: bool, pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pieces:
        monkeypatch.setattr(loss, "PIECE_BYTES", 4 * 16 * 5)
        monkeypatch.setattr(loss, "ADDED_BYTES", 4 * 16 * 7)
    plain = plan_forward(model_of(toys, kind, tied), None)
    expected = backward(plain, rows())
    forward = plan_forward(model_of(toys, kind, tied), None)
    forward = keeping(forward)
    assert len(forward.kept) == (1 if tied or not forward.fused_head else 2)
    found = backward(forward, rows())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_those_of_pairs_are_the_same_too(toys: Any, tied: bool) -> None:
    generator = np.random.default_rng(0)
    parts = [(4, 5, 3), (3, 2, 6)]
    pairs = [
        Sample(generator.integers(0, 40, sum(sizes)).astype(np.int32), np.arange(sum(sizes)) >= sizes[0], "", sizes)
        for sizes in parts
    ]
    weights = torch.tensor([[0.7, -0.3], [0.2, -1.1]])
    gradients = []
    for keeps in (False, True):
        forward = with_shared_prompts(plan_forward(model_of(toys, "llama", tied), None))
        if keeps:
            forward = keeping(forward)
        for pair, weight in zip(pairs, weights, strict=True):
            (forward.log_probs(to_row([pair])) * weight).sum().backward()
        gradients.append({name: p.grad for name, p in forward.model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_they_stay_and_are_zeroed(toys: Any, tied: bool) -> None:
    forward = plan_forward(model_of(toys, "llama", tied), None)
    forward = keeping(forward)
    optimizer = torch.optim.AdamW(forward.model.parameters())
    places = [weight.grad.data_ptr() for weight in forward.kept]
    expected = backward(forward, rows(1))
    clear_gradients(optimizer, forward.kept)
    assert {p for p in forward.model.parameters() if p.grad is not None} == {*forward.kept}
    assert not any(weight.grad.any() for weight in forward.kept)
    again = backward(forward, rows(1))
    assert [weight.grad.data_ptr() for weight in forward.kept] == places
    assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())


class Sizes(TorchDispatchMode):
    """Within the block: how many tensors of each shape and type were made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if is_dense(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if is_dense(leaf) and leaf.untyped_storage()._cdata not in before:
                self.made.append((tuple(leaf.shape), leaf.dtype))
        return result


def is_dense(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_nothing_of_their_size_is_made_beside_the_copy_for_the_products(
    toys: Any, tied: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to autograd there are some: the count sees what it is to see."""
    monkeypatch.setattr(loss, "ADDED_BYTES", 4 * 16 * 7)
    forward = plan_forward(model_of(toys, "llama", tied), torch.bfloat16)
    if kept:
        forward = keeping(forward)
    shape = forward.model.get_input_embeddings().weight.shape
    with Sizes() as sizes:
        backward_only(forward, rows(2))
    of_weight = [dtype for made, dtype in sizes.made if made in (tuple(shape), tuple(shape[::-1]))]
    assert of_weight.count(torch.bfloat16) == 2
    assert (torch.float32 in of_weight) == (not kept)


def backward_only(forward: Forward, some: list[Row]) -> None:
    for row in some:
        forward.loss(row, 0.25).backward()


def test_weights_in_half_precision_and_frozen_ones_have_none_that_stays(toys: Any) -> None:
    half = plan_forward(toys.model("llama").to(torch.bfloat16), None)
    assert kept_gradients(half) == ()
    model = get_peft_model(toys.model("llama"), LoraConfig(target_modules="all-linear", r=2))
    adapted = plan_forward(model, None)
    assert kept_gradients(adapted) == ()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_evaluation_adds_nothing(toys: Any) -> None:
    forward = plan_forward(model_of(toys, "llama", True), None)
    forward = keeping(forward)
    with torch.no_grad():
        forward.loss(rows(1)[0], 1.0)
    assert not any(weight.grad.any() for weight in forward.kept)


def test_a_gradient_other_than_one_is_refused() -> None:
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    found = head_loss(hidden, weight, torch.arange(4), 1.0, into=torch.zeros(20, 8))
    with pytest.raises(RuntimeError, match=r"the gradient at this loss is 2\.0, but .* scale it by `scale`"):
        (found * 2.0).backward()
