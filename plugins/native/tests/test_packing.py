"""Packed samples give the loss and every gradient that padded ones give, by transformers' own loss as well."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from graftwork.data.batch import Row, to_row
from graftwork.data.collators import Padded
from graftwork.data.samples import Sample
from graftwork.errors import GraftworkError
from graftwork_native import attention, forward
from graftwork_native.trial import plan_forward

if TYPE_CHECKING:
    from graftwork_native.forward import Forward

LENGTHS = (9, 5, 14, 2)
PACKED = ("llama", "qwen2", "mistral", "gemma2", "gpt2", "opt", "mixtral")


def samples(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[Sample]:
    """Random tokens, about half of them trained, and at least the last one."""
    generator = np.random.default_rng(seed)
    found = []
    for length in lengths:
        trained = generator.random(length) < 0.5
        trained[-1] = True
        found.append(Sample(generator.integers(0, 256, length).astype(np.int32), trained, "test"))
    return found


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def reference(model: Any, chosen: list[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
    """transformers' own loss on the padded batch: the mean over its labels."""
    loss = model(**Padded(pad_token_id=258)(chosen)).loss
    return float(loss.detach()), gradients(model, loss)


def assert_same(
    found: tuple[float, dict[str, torch.Tensor]],
    expected: tuple[float, dict[str, torch.Tensor]],
    tolerance: float = 1e-5,
) -> None:
    """The loss, and each gradient within ``tolerance`` of its own largest entry. A gradient that is zero but for
    rounding (OPT's bias of the keys, which softmax does not see) is measured by the model's largest.
    """
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        size = float(gradient.abs().max())
        size = size if size > 1e-4 * largest else largest
        difference = float((found[1][name] - gradient).abs().max()) / size
        assert difference < tolerance, f"{name}: {difference}"


def ours(plan: Forward, rows: list[Row]) -> tuple[float, dict[str, torch.Tensor]]:
    scale = 1.0 / sum(row.num_labels for row in rows)
    loss = torch.stack([plan.loss(row, scale) for row in rows]).sum()
    return float(loss.detach()), gradients(plan.model, loss)


@pytest.mark.parametrize("kind", PACKED)
def test_packed_loss_and_gradients_are_transformers_own(toys: Any, kind: str) -> None:
    model = toys.model(kind)
    expected = reference(model, samples())
    plan = plan_forward(model, None, "segments")
    assert plan.layout == "segments"
    assert_same(ours(plan, [to_row(samples())]), expected)
    # The same samples in two rows: what stands in which row changes nothing.
    assert_same(ours(plan, [to_row(samples()[:1]), to_row(samples()[1:])]), expected)


@pytest.mark.parametrize("kind", [*PACKED, "bloom"])
def test_padded_layout_gives_the_same(toys: Any, kind: str) -> None:
    model = toys.model(kind)
    expected = reference(model, samples())
    plan = plan_forward(model, None, "padded")
    assert plan.layout == "padded"
    assert_same(ours(plan, [to_row(samples())]), expected)


def test_gradient_checkpointing_gives_the_same(toys: Any) -> None:
    model = toys.model("llama").train()
    expected = reference(model, samples())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(ours(plan_forward(model, None, "segments"), [to_row(samples())]), expected)


@pytest.mark.parametrize("kind", PACKED)
def test_the_segments_are_what_makes_it_so(toys: Any, kind: str) -> None:
    """Taken for one sample, the row has another loss: the comparison would see a leak."""
    model = toys.model(kind)
    expected = reference(model, samples())
    plan = plan_forward(model, None, "segments")
    row = to_row(samples())
    leaking = dataclasses.replace(row, segment_lengths=(row.num_tokens,))
    with pytest.raises(AssertionError):
        assert_same(ours(plan, [leaking]), expected)


@pytest.mark.parametrize(("kind", "keyword"), [("mistral", "window"), ("gemma2", "window"), ("gemma2", "softcap")])
def test_a_lost_keyword_is_seen(toys: Any, kind: str, keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toys.model(kind)
    expected = reference(model, samples())
    plan = plan_forward(model, None, "segments")
    name = {"window": "sliding_window"}.get(keyword, keyword)
    monkeypatch.setattr(attention, "refuse_unknown", lambda module, kwargs: kwargs.pop(name, None))
    with pytest.raises(AssertionError):
        assert_same(ours(plan, [to_row(samples())]), expected)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_long_segments_take_another_way_to_the_same(toys: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toys.model(kind)
    expected = reference(model, samples())
    monkeypatch.setattr(attention, "MATMUL_LIMIT", 6)
    assert_same(ours(plan_forward(model, None, "segments"), [to_row(samples())]), expected)


def test_a_model_that_cannot_be_packed_is_padded_and_says_why(toys: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = toys.model("bloom")
    with caplog.at_level(logging.WARNING, "graftwork_native"):
        plan = plan_forward(model, None)
    assert plan.layout == "padded"
    assert "samples are padded, not packed into one row of segments: BloomForCausalLM" in caplog.text
    assert model.config._attn_implementation == "eager"
    with pytest.raises(GraftworkError, match=r"layout: segments is not possible: BloomForCausalLM"):
        plan_forward(model, None, "segments")


def test_a_softcap_on_the_logits_is_seen_however_small_they_are(toys: Any) -> None:
    """A new model's logits are so small that a cap of 30 changes nothing yet; later it would."""
    model = toys.model("gemma2", final_logit_softcapping=30.0)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e-3)
    assert not plan_forward(model, None).fused_head
    assert plan_forward(toys.model("llama"), None).fused_head


def test_a_window_that_only_the_mask_knows_is_not_lost(toys: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Qwen2-MoE's layers get their window through the mask alone: in a row of segments they would see everything."""
    model = toys.model("qwen2_moe")
    with caplog.at_level(logging.WARNING, "graftwork_native"):
        plan = plan_forward(model, None)
    assert plan.layout == "padded"
    assert "sliding window" in caplog.text


def test_layers_that_attend_in_chunks_are_not_packed(toys: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = toys.model("llama")
    model.config.attention_chunk_size = 64
    with caplog.at_level(logging.WARNING, "graftwork_native"):
        assert plan_forward(model, None).layout == "padded"
    assert "attention_chunk_size" in caplog.text


def test_a_leak_too_small_for_the_logits_is_seen(toys: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = toys.model("llama")
    decode = model.model.forward

    def leaking(*args: Any, **kwargs: Any) -> Any:
        output = decode(*args, **kwargs)
        output[0][:, -1] += 1e-9 * output[0][:, 0]
        return output

    model.model.forward = leaking
    with caplog.at_level(logging.WARNING, "graftwork_native"):
        assert plan_forward(model, None).layout == "padded"
    assert "gives packed samples other logits than each alone" in caplog.text


def test_the_trial_leaves_the_model_as_it_was(toys: Any) -> None:
    model = toys.model("llama").train()
    before = torch.get_rng_state()
    plan_forward(model, None)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_keep_labels_within_their_segment() -> None:
    chosen = samples(3)
    row = to_row(chosen)
    start, labels, places = 0, [], []
    for sample in chosen:
        for place in range(1, len(sample)):
            if sample.trained[place]:
                labels.append(int(sample.input_ids[place]))
                places.append(start + place - 1)
        start += len(sample)
    assert row.labels.tolist() == labels
    assert row.label_positions.tolist() == places
    assert row.position_ids[0].tolist() == [place for sample in chosen for place in range(len(sample))]
    assert row.segment_lengths == LENGTHS
    assert forward.places_of(row, "padded").tolist() == [
        index * max(LENGTHS) + place - 1
        for index, sample in enumerate(chosen)
        for place in range(1, len(sample))
        if sample.trained[place]
    ]
