"""Segment attention against attention written in one line, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from graftwork.errors import ModelError
from graftwork_native import attention
from graftwork_native.attention import NAME, Segments, register, segment_attention, segment_mask

LENGTHS = (7, 3, 12)
CPU = torch.device("cpu")


class Layer(nn.Module):
    """What an attention function is given of a layer."""

    num_key_value_groups = 2
    is_causal = True
    layer_idx = 0


def operands(heads: int = 4, keys: int = 2, width: int = 8, batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = (heads, keys, keys)
    return [torch.randn(batch, n, sum(LENGTHS), width, generator=generator, requires_grad=True) for n in sizes]


def expected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None = None, softcap: float | None = None
) -> torch.Tensor:
    """One softmax under one T x T mask: causal, block by block, at most ``window`` back."""
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(len(owner))
    seen = (owner[:, None] == owner) & (place[:, None] >= place)
    if window is not None:
        seen &= place[:, None] - place < window
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def call(*tensors: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return segment_attention(Layer(), *tensors, segment_mask(CPU), segments=Segments(LENGTHS), **kwargs)[0]


@pytest.mark.parametrize("limit", [1024, 5], ids=["products", "kernel"])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("softcap", [None, 0.3])
@pytest.mark.parametrize("heads", [2, 4], ids=["equal heads", "grouped heads"])
def test_values_and_gradients(
    limit: int, window: int | None, softcap: float | None, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MATMUL_LIMIT", limit)
    ours, reference = operands(heads), operands(heads)
    found, wanted = call(*ours, sliding_window=window, softcap=softcap), expected(*reference, window, softcap)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    probe = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    for one, other in zip(
        torch.autograd.grad((found * probe).sum(), ours),
        torch.autograd.grad((wanted * probe).sum(), reference),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_no_gradient_crosses_a_segment() -> None:
    query, key, value = operands()
    call(query, key, value)[0, : LENGTHS[0]].sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert not tensor.grad[:, :, LENGTHS[0] :].any()
        assert tensor.grad[:, :, : LENGTHS[0]].any()


@pytest.mark.parametrize("limit", [1024, 5], ids=["products", "kernel"])
def test_dropout_drops_its_share_and_follows_the_seed(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MATMUL_LIMIT", limit)
    with torch.no_grad():
        query, key, _ = operands()
        value = torch.ones_like(key)
        torch.manual_seed(3)
        first = call(query, key, value, dropout=0.5)
        torch.manual_seed(3)
        assert torch.equal(first, call(query, key, value, dropout=0.5))
        assert not torch.equal(first, call(query, key, value, dropout=0.5))
        # Weights add up to one, so each output is one in the mean over draws, and none where all were dropped.
        mean = torch.stack([call(query, key, value, dropout=0.5) for _ in range(400)]).mean(0)
        assert mean.mean().item() == pytest.approx(1.0, abs=0.02)
        assert (first[0, 0] % 2 == 0).all(), "the first token sees one: it is doubled or dropped"
        assert torch.equal(call(query, key, value, dropout=0.0), call(query, key, value))


def test_bfloat16_is_close_to_float32() -> None:
    tensors = operands()
    halves = [tensor.detach().bfloat16() for tensor in tensors]
    found = call(*halves)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected(*tensors), rtol=0.05, atol=0.05)
    # Rotary embeddings under autocast leave float32 queries and keys beside bfloat16 values.
    mixed = call(halves[0].float(), halves[1].float(), halves[2])
    assert torch.equal(mixed, found)


@pytest.mark.parametrize("keyword", ["s_aux", "position_bias", "sinks"])
def test_an_unknown_keyword_is_refused(keyword: str) -> None:
    with pytest.raises(ModelError, match=rf"Layer asks its attention for {keyword}, .*layout: padded"):
        call(*operands(), **{keyword: torch.ones(1)})
    assert call(*operands(), **{keyword: None}) is not None, "what is not set asks for nothing"


def test_attention_in_both_directions_is_refused() -> None:
    """As Gemma's is with ``use_bidirectional_attention``: within segments it would be causal without a word."""
    layer = Layer()
    layer.is_causal = False
    with pytest.raises(ModelError, match=r"Layer attends to later tokens too .*layout: padded"):
        segment_attention(layer, *operands(), segment_mask(CPU), segments=Segments(LENGTHS))


def test_lost_segments_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Layer did not hand the keyword `segments` down .*layout: padded"):
        segment_attention(Layer(), *operands(), segment_mask(CPU))


@pytest.mark.parametrize("padded", [False, True])
def test_without_segments_it_is_sdpa(padded: bool) -> None:
    tensors = operands(batch=2)
    length = tensors[0].shape[2]
    mask = None
    if padded:
        seen = torch.ones(length, length, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
        seen[1, :, :, -4:] = False
        mask = seen
    found, _ = segment_attention(Layer(), *tensors, mask)
    wanted, _ = sdpa_attention_forward(Layer(), *tensors, mask)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("padded", [False, True])
def test_without_segments_a_softcap_is_kept(padded: bool) -> None:
    """PyTorch's kernel has none: transformers' own function would leave it out without a word."""
    tensors = operands(batch=2)
    length = tensors[0].shape[2]
    seen = torch.ones(length, length, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    if padded:
        seen[1, :, :, -4:] = False
    found, _ = segment_attention(Layer(), *tensors, seen if padded else None, softcap=0.3)
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    wanted, _ = eager_attention_forward(Layer().eval(), *tensors, added, softcap=0.3, scaling=8**-0.5)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, sdpa_attention_forward(Layer(), *tensors, seen)[0], atol=1e-2)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_padding_and_generation_under_its_name(toys: Any, kind: str) -> None:
    """A model that was made ready for packed rows still pads and generates as before."""
    register()
    model = toys.model(kind).eval()
    ids = torch.arange(3, 13).view(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        before, tokens = model(ids, attention_mask=mask).logits, model.generate(ids, **options)
        model.set_attn_implementation(NAME)
        after = model(ids, attention_mask=mask).logits
    seen = mask.bool()
    torch.testing.assert_close(after[seen], before[seen], rtol=1e-4, atol=1e-4)
    assert torch.equal(model.generate(ids, **options), tokens)


def test_the_name_is_not_saved(toys: Any, tmp_path: Any) -> None:
    register()
    model = toys.model("llama")
    model.set_attn_implementation(NAME)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


def test_long_segments_do_not_hold_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the kernel does it, which never makes the S x S scores."""
    monkeypatch.setattr(attention, "MATMUL_LIMIT", 5)
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(args[0].shape[2]) or kernel(*args, **kwargs),
    )
    call(*operands())
    assert calls == [7, 12]
