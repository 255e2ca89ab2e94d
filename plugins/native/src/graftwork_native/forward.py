"""A row into a model, its loss out. Which of the ways a model allows, :mod:`graftwork_native.trial` finds out."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from graftwork_native.attention import Segments, segment_mask
from graftwork_native.head import factors_of, linear_of
from graftwork_native.log_probs import head_log_probs, plain_log_probs
from graftwork_native.loss import head_loss, plain_loss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graftwork.data.batch import Row
    from graftwork_native.limits import Limits

Layout = Literal["segments", "padded"]


@dataclass(frozen=True, slots=True)
class Forward:
    """How rows go through ``model``.

    ``layout``: samples side by side in one row, or padded below one another. ``fused_head``: the loss is made from
    hidden states and the head's weight, in pieces; where it is false the model makes its logits itself.
    ``limits``: what rows are held against, where a row of somebody's data can be wrong. ``shared_prompts``: the prompt
    of a preference pair is computed once for both answers, else each answer has its own. ``kept``: the weights whose
    gradients are there and are added to; see :mod:`graftwork_native.vocabulary`.
    """

    model: nn.Module
    device: torch.device
    autocast_dtype: torch.dtype | None
    layout: Layout
    fused_head: bool
    limits: Limits | None = None
    shared_prompts: bool = False
    kept: tuple[nn.Parameter, ...] = ()

    def loss(self, row: Row, scale: float) -> torch.Tensor:
        """The sum of the cross-entropy over the row's labels, times ``scale``; a float32 scalar."""
        inputs = self.inputs(row)
        places = places_of(row, self.layout).to(self.device)
        labels = row.labels.to(self.device)
        if self.fused_head:
            hidden, weight, *more = self.factors(inputs, places)
            return head_loss(hidden, weight, labels, scale, *more, into=self.gradient_of(weight))
        return plain_loss(self.logits(inputs, places), labels, scale)

    def log_probs(self, row: Row) -> torch.Tensor:
        """Of each pair of the row the log-probabilities of the chosen and the rejected answer: [P, 2] float32.

        Each is the sum over the answer's labels.
        """
        assert row.pair_labels is not None
        row = self.laid_out(row)
        inputs = self.inputs(row)
        places = places_of(row, self.layout).to(self.device)
        labels = row.labels.to(self.device)
        counts = torch.tensor(row.pair_labels).flatten()
        owners = torch.repeat_interleave(torch.arange(len(counts)), counts, output_size=len(labels)).to(self.device)
        if self.fused_head:
            hidden, weight, *more = self.factors(inputs, places)
            into = self.gradient_of(weight)
            sums = head_log_probs(hidden, weight, labels, owners, len(counts), *more, into=into)
        else:
            sums = plain_log_probs(self.logits(inputs, places), labels, owners, len(counts))
        return sums.view(-1, 2)

    def gradient_of(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Where the gradient of the head's weight is to be added; None where autograd is to see to it."""
        learns = torch.is_grad_enabled() and any(weight is one for one in self.kept)
        return weight.grad if learns else None

    def laid_out(self, row: Row) -> Row:
        """The row as this forward takes it: where prompts are not shared, each answer behind a prompt of its own."""
        shares = self.shared_prompts and self.layout == "segments"
        return row if row.pairs is None or shares else with_own_prompts(row)

    def factors(self, inputs: dict[str, Any], places: torch.Tensor) -> list[torch.Tensor]:
        """What the logits at ``places`` are made of: the last hidden states there [L, W], the head's weight [V, W], and
        what an adapter on the head adds; see :func:`~graftwork_native.head.factors_of`.
        """
        decoder, head = parts_of(self.model)
        with self.autocast():
            states: torch.Tensor = decoder(**inputs)[0]
            dtype = self.autocast_dtype or linear_of(head).weight.dtype
            return factors_of(head, states.to(dtype).flatten(0, 1)[places])

    def logits(self, inputs: dict[str, Any], places: torch.Tensor) -> torch.Tensor:
        """The logits [L, V] at ``places``, made only there where the model can."""
        keeps = "logits_to_keep" in inspect.signature(base_of(self.model).forward).parameters
        with self.autocast():
            if keeps and self.layout == "segments":
                kept: torch.Tensor = self.model(**inputs, logits_to_keep=places).logits
                return kept[0]
            every: torch.Tensor = self.model(**inputs).logits
            return every.flatten(0, 1)[places]

    def autocast(self) -> torch.autocast:
        """Half precision for the products, where the run asks for it."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def inputs(self, row: Row) -> dict[str, Any]:
        """What the model is called with."""
        if self.limits is not None:
            self.limits.check(int(row.input_ids.max()), row.longest)
        if self.layout == "padded":
            return padded_inputs(row, self.device)
        lengths = row.segment_lengths
        stems: tuple[int, ...] = ()
        if row.pairs is not None:
            lengths = tuple(length for prompt, chosen, rejected in row.pairs for length in (prompt + chosen, rejected))
            stems = tuple(stem for prompt, _, _ in row.pairs for stem in (0, prompt))
        return {
            "input_ids": row.input_ids.to(self.device),
            "position_ids": row.position_ids.to(self.device),
            "attention_mask": segment_mask(self.device),
            "segments": Segments.of(lengths, self.device, stems),
            "use_cache": False,
        }


def padded_inputs(row: Row, device: torch.device) -> dict[str, Any]:
    """The row's samples below one another: [B, S], padded on the right with token 0, which nothing attends to."""
    pieces = row.input_ids[0].split(row.segment_lengths)
    ids = nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)
    lengths = torch.tensor(row.segment_lengths)[:, None]
    mask = (torch.arange(ids.shape[1])[None] < lengths).long()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def with_own_prompts(row: Row) -> Row:
    """The row with two segments for each pair: its prompt with the chosen, and again with the rejected answer."""
    assert row.pairs is not None
    assert row.pair_labels is not None
    gather, moved, lengths = [], [], []
    start = written = label = 0
    for (prompt, chosen, rejected), counts in zip(row.pairs, row.pair_labels, strict=True):
        second = start + prompt + chosen
        gather += [torch.arange(start, second), torch.arange(start, start + prompt)]
        gather += [torch.arange(second, second + rejected)]
        first, other = row.label_positions[label : label + sum(counts)].split(counts)
        moved += [first - start + written, torch.where(other < second, other + prompt + chosen, other + prompt)]
        moved[-1] += written - start
        lengths += [prompt + chosen, prompt + rejected]
        start, written, label = second + rejected, written + sum(lengths[-2:]), label + sum(counts)
    places = torch.cat(gather)
    return replace(
        row,
        input_ids=row.input_ids[:, places],
        position_ids=row.position_ids[:, places],
        segment_lengths=tuple(lengths),
        label_positions=torch.cat(moved),
        pairs=None,
    )


def places_of(row: Row, layout: Layout) -> torch.Tensor:
    """Where the labels are predicted, in the flattened [B * S] states."""
    if layout == "segments":
        return row.label_positions
    lengths = torch.tensor(row.segment_lengths)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths, output_size=sum(row.segment_lengths))  # [T]
    return (segment * int(lengths.max()) + row.position_ids[0])[row.label_positions]


def base_of(model: nn.Module) -> Any:
    """The transformers model inside a PEFT or compiled one; its attributes are not typed."""
    inner: Any = getattr(model, "_orig_mod", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def parts_of(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The decoder and the head of a causal language model; the head within its adapter, where it has one."""
    base = base_of(model)
    return getattr(base, base.base_model_prefix), base.get_output_embeddings()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; afterwards the model is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
