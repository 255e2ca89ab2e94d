"""Pairs on shared prompts: log-probabilities and gradients are those of transformers on each conversation alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from graftwork.data.batch import to_row
from graftwork.data.samples import Sample
from graftwork_native import attention, log_probs, loss
from graftwork_native.forward import with_own_prompts
from graftwork_native.log_probs import head_log_probs, plain_log_probs
from graftwork_native.products import pieces_of
from graftwork_native.trial import plan_forward, with_shared_prompts

if TYPE_CHECKING:
    from graftwork_native.forward import Forward

PARTS = ((6, 4, 9), (3, 8, 2), (5, 1, 1))
SHARING = ("llama", "gemma2", "gemma3", "mistral", "phi3", "qwen2", "qwen3", "gpt2")


def pairs(seed: int = 0) -> list[Sample]:
    """Random tokens; of each answer about half is trained, and its last one."""
    generator = np.random.default_rng(seed)
    found = []
    for prompt, chosen, rejected in PARTS:
        trained = generator.random(prompt + chosen + rejected) < 0.5
        trained[:prompt] = False
        trained[[prompt + chosen - 1, -1]] = True
        ids = generator.integers(0, 256, len(trained)).astype(np.int32)
        found.append(Sample(ids, trained, "test", (prompt, chosen, rejected)))
    return found


def expected(model: Any) -> torch.Tensor:
    """[P, 2], one conversation at a time, with the model's own attention."""
    model.set_attn_implementation("eager")
    sums = []
    for sample in pairs():
        assert sample.parts is not None
        prompt, chosen, _ = sample.parts
        for answer in (slice(prompt, prompt + chosen), slice(prompt + chosen, None)):
            ids = torch.tensor(np.r_[sample.input_ids[:prompt], sample.input_ids[answer]]).long()
            trained = torch.tensor(np.r_[np.zeros(prompt, bool), sample.trained[answer]])
            found = model(ids[None]).logits[0].float().log_softmax(-1)
            sums.append(found[:-1].gather(1, ids[1:, None])[:, 0][trained[1:]].sum())
    return torch.stack(sums).view(-1, 2)


def gradients(model: Any, found: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the answers, each weighted differently."""
    model.zero_grad(set_to_none=True)
    (found * torch.tensor([[0.7, -0.3], [0.2, -1.1], [-0.4, 0.9]])).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: Any, forward: Forward) -> None:
    found = forward.log_probs(to_row(pairs()))
    own = gradients(model, found)
    wanted = expected(model)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    theirs = gradients(model, wanted)
    assert own.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        size = float(gradient.abs().max())
        difference = float((own[name] - gradient).abs().max()) / (size if size > 1e-4 * largest else largest)
        assert difference < 1e-5, f"{name}: {difference}"


@pytest.mark.parametrize("kind", SHARING)
def test_a_shared_prompt_changes_nothing(toys: Any, kind: str) -> None:
    model = toys.model(kind)
    forward = with_shared_prompts(plan_forward(model, None))
    assert forward.shared_prompts
    assert forward.inputs(to_row(pairs()))["input_ids"].shape[1] == sum(map(sum, PARTS))
    assert_same(model, forward)


@pytest.mark.parametrize("layout", ["segments", "padded"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_prompts_of_their_own_are_the_same_too(toys: Any, kind: str, layout: Any) -> None:
    model = toys.model(kind)
    forward = plan_forward(model, None, layout)
    assert (forward.layout, forward.shared_prompts) == (layout, False)
    assert_same(model, forward)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_long_answers_take_another_way_to_the_same(toys: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toys.model(kind)
    monkeypatch.setattr(attention, "MATMUL_LIMIT", 6)
    assert_same(model, with_shared_prompts(plan_forward(model, None)))


def test_dropout_and_bfloat16_take_the_shared_way(toys: Any) -> None:
    model = toys.model("llama", attention_dropout=0.5).train()
    forward = with_shared_prompts(plan_forward(model, None))
    assert forward.shared_prompts
    row = to_row(pairs())
    torch.manual_seed(0)
    first = forward.log_probs(row)
    assert not torch.equal(first, forward.log_probs(row))
    torch.manual_seed(0)
    assert torch.equal(first, forward.log_probs(row))
    model.eval()
    exact = forward.log_probs(row)
    torch.testing.assert_close(
        replace(forward, autocast_dtype=torch.bfloat16).log_probs(row), exact, rtol=0.02, atol=0.1
    )


def test_a_model_that_cannot_share_says_why_and_is_right_all_the_same(
    toys: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a model counted its positions itself: the rejected answer would stand behind the chosen one."""
    model = toys.model("llama")
    forward = plan_forward(model, None)
    inputs = type(forward).inputs

    def counted(self: Forward, row: Any) -> dict[str, Any]:
        given = inputs(self, row)
        if row.pairs:
            given["position_ids"] = torch.arange(row.num_tokens)[None]
        return given

    monkeypatch.setattr(type(forward), "inputs", counted)
    forward = with_shared_prompts(forward)
    assert not forward.shared_prompts
    assert (
        "each answer of a pair gets a prompt of its own, not one that both share: LlamaForCausalLM gives" in caplog.text
    )
    assert_same(model, forward)


def test_answers_that_see_each_other_are_found_out(
    toys: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little of the chosen answer comes through to the rejected one."""
    forward = plan_forward(toys.model("llama"), None)
    monkeypatch.setattr(attention, "MATMUL_LIMIT", 0)
    whole = attention.parts_of_row

    def leaky(query: Any, key: Any, value: Any, segments: Any) -> Any:
        for q, k, v in whole(query, key, value, segments):
            yield q, k, v + (1e-9 * value.sum() if segments.stems else 0.0)

    monkeypatch.setattr(attention, "parts_of_row", leaky)
    assert not with_shared_prompts(forward).shared_prompts
    assert "lets the answers on a shared prompt see each other" in caplog.text


def test_a_prompt_that_takes_a_token_of_the_answer_along_is_found_out(
    toys: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = plan_forward(toys.model("llama"), None)

    def longer(lengths: Any, stems: Any, window: Any) -> Any:
        for queries, seen in pieces_of(lengths, stems, window):
            *stem, own = seen
            yield queries, [*(slice(one.start, one.stop + 1) for one in stem), own]

    monkeypatch.setattr(attention, "pieces_of", longer)
    assert not with_shared_prompts(forward).shared_prompts
    assert "each answer of a pair gets a prompt of its own" in caplog.text


def test_a_bloom_pads_its_pairs(toys: Any) -> None:
    model = toys.model("bloom")
    forward = with_shared_prompts(plan_forward(model, None))
    assert (forward.layout, forward.shared_prompts) == ("padded", False)
    assert_same(model, forward)


def test_prompts_that_are_written_twice() -> None:
    row = with_own_prompts(to_row(pairs()))
    wanted = [
        sample.input_ids[[*range(p), *range(start, end)]]
        for sample, (p, c, r) in zip(pairs(), PARTS, strict=True)
        for start, end in ((p, p + c), (p + c, p + c + r))
    ]
    assert row.segment_lengths == tuple(len(ids) for ids in wanted)
    assert row.input_ids[0].tolist() == np.concatenate(wanted).tolist()
    assert row.position_ids[0].tolist() == [place for ids in wanted for place in range(len(ids))]
    assert torch.equal(row.input_ids[0][row.label_positions + 1], row.labels)


# The head


@pytest.mark.parametrize("kept", [0, 2 * 4 * 50 * 16, 1 << 20], ids=["made again", "some kept", "all kept"])
@pytest.mark.parametrize("frozen", [None, "hidden", "weight"])
def test_log_probs_in_pieces(kept: int, frozen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "KEPT_BYTES", kept)
    monkeypatch.setattr(loss, "piece_length", lambda weight: 16)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(60, 16, generator=generator), torch.randn(50, 16, generator=generator)
    learned = [tensor.requires_grad_() for name, tensor in (("hidden", hidden), ("weight", weight)) if name != frozen]
    labels = torch.randint(50, (60,), generator=generator)
    owners = torch.arange(6).repeat_interleave(torch.tensor([1, 20, 3, 17, 11, 8]))
    wanted = plain_log_probs(hidden @ weight.T, labels, owners, 6)
    found = head_log_probs(hidden, weight, labels, owners, 6)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-5)
    factors = torch.randn(6, generator=generator)
    pairs_of_gradients = (torch.autograd.grad((one * factors).sum(), learned) for one in (found, wanted))
    for one, other in zip(*pairs_of_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(head_log_probs(hidden, weight, labels, owners, 6), wanted, rtol=1e-6, atol=1e-5)
