"""A row into a model, its loss out: the fast way, where it is proved that the model allows it.

What a model allows is found out by trying, on two short samples before the first step: do packed samples give
the logits that each gives alone? Do the hidden states times the head's weight give the model's logits? A family
that is known to the registry has been proved by its tests; the trial is cheap enough to be made all the same.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from graftwork.data.batch import Row, to_row
from graftwork.data.samples import Sample
from graftwork.errors import GraftworkError
from graftwork_native.attention import NAME, Segments, recorded_windows, register, segment_mask
from graftwork_native.limits import Limits, limits_of
from graftwork_native.loss import head_loss, plain_loss

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)
Layout = Literal["auto", "segments", "padded"]

LARGE_LOGIT = 1000.0
"""Far beyond any cap on logits (Gemma 2 has 30)."""


@dataclass(frozen=True, slots=True)
class Forward:
    """How rows go through ``model``.

    ``layout``: samples side by side in one row, or padded below one another. ``head``: the loss is made from
    hidden states and this weight, in pieces; None where the model must make its logits itself.
    ``limits``: what rows are held against, where a row of somebody's data can be wrong.
    """

    model: nn.Module
    device: torch.device
    autocast_dtype: torch.dtype | None
    layout: Literal["segments", "padded"]
    fused_head: bool
    limits: Limits | None = None

    def loss(self, row: Row, scale: float) -> torch.Tensor:
        """The sum of the cross-entropy over the row's labels, times ``scale``; a float32 scalar."""
        inputs = self.inputs(row)
        places = places_of(row, self.layout).to(self.device)
        labels = row.labels.to(self.device)
        if self.fused_head:
            hidden, weight = self.hidden(inputs)
            return head_loss(hidden.flatten(0, 1)[places], weight, labels, scale)
        return plain_loss(self.logits(inputs, places), labels, scale)

    def hidden(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden states [B, S, W], and the head's weight [V, W]."""
        decoder, head = parts_of(self.model)
        with self.autocast():
            states: torch.Tensor = decoder(**inputs)[0]
        dtype = self.autocast_dtype or head.weight.dtype
        return states.to(dtype), head.weight

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
            self.limits.check(int(row.input_ids.max()), max(row.segment_lengths))
        if self.layout == "padded":
            return padded_inputs(row, self.device)
        return {
            "input_ids": row.input_ids.to(self.device),
            "position_ids": row.position_ids.to(self.device),
            "attention_mask": segment_mask(self.device),
            "segments": Segments.of(row.segment_lengths, self.device),
            "use_cache": False,
        }


def padded_inputs(row: Row, device: torch.device) -> dict[str, Any]:
    """The row's samples below one another: [B, S], padded on the right with token 0, which nothing attends to."""
    pieces = row.input_ids[0].split(row.segment_lengths)
    ids = nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)
    lengths = torch.tensor(row.segment_lengths)[:, None]
    mask = (torch.arange(ids.shape[1])[None] < lengths).long()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def places_of(row: Row, layout: str) -> torch.Tensor:
    """Where the labels are predicted, in the flattened [B * S] states."""
    if layout == "segments":
        return row.label_positions
    lengths = torch.tensor(row.segment_lengths)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths)  # [T]
    return (segment * int(lengths.max()) + row.position_ids[0])[row.label_positions]


def base_of(model: nn.Module) -> Any:
    """The transformers model inside a PEFT or compiled one; its attributes are not typed."""
    inner: Any = getattr(model, "_orig_mod", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def parts_of(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """The decoder and the head of a causal language model."""
    base = base_of(model)
    return getattr(base, base.base_model_prefix), base.get_output_embeddings()


def plan_forward(model: nn.Module, autocast_dtype: torch.dtype | None, layout: Layout = "auto") -> Forward:
    """The fastest way that is proved for this model; what is not possible is said in the log, once."""
    device = next(model.parameters()).device
    register()
    chosen: Literal["segments", "padded"] = "padded" if layout == "padded" else "segments"
    if chosen == "segments" and (reason := segments_fail(model, device)):
        if layout == "segments":
            raise GraftworkError(f"training.trainer_kwargs.layout: segments is not possible: {reason}")
        logger.warning("samples are padded, not packed into one row of segments: %s", reason)
        chosen = "padded"
    fused = head_is_plain(model) and head_agrees(model, device)
    return Forward(model, device, autocast_dtype, chosen, fused, limits_of(base_of(model)))


def trial_rows(model: nn.Module) -> tuple[list[Row], Row]:
    """Two short samples, each alone, and both in one row."""
    vocab_size = base_of(model).get_input_embeddings().weight.shape[0]
    generator = np.random.default_rng(0)
    first, second = (
        Sample(generator.integers(0, vocab_size, length, np.int32), np.ones(length, np.bool_), "trial")
        for length in (5, 7)
    )
    return [to_row([first]), to_row([second])], to_row([first, second])


def segments_fail(model: nn.Module, device: torch.device) -> str | None:
    """Why packed samples do not give what each gives alone, or None where they do.

    Leaves the model with segment attention where they do.
    """
    base = base_of(model)
    if reason := unknown_layers(base):
        return reason
    before = base.config._attn_implementation
    single, both = trial_rows(model)
    plain = Forward(model, device, None, "padded", fused_head=False)
    packed = Forward(model, device, None, "segments", fused_head=False)
    try:
        with evaluating(model), recorded_windows() as windows:
            alone = torch.cat([all_logits(plain, row) for row in single])
            base.set_attn_implementation(NAME)
            together = all_logits(packed, both)
            same = close(alone, together, tolerance_of(model)) and not leaks(packed, both)
    except Exception as error:
        # Somebody's model: whatever it says to a row of segments, it works with padded samples or not at all.
        reason = f"{type(base).__name__}: {(str(error).splitlines() or [type(error).__name__])[0]}"
    else:
        if not same:
            reason = f"{type(base).__name__} gives packed samples other logits than each alone"
        elif has_window(base) and not any(windows):
            reason = f"{type(base).__name__} does not hand its sliding window down to its attention"
        else:
            return None
    base.set_attn_implementation(before)
    return reason


def leaks(packed: Forward, row: Row) -> bool:
    """Whether the last sample's logits depend on the first one's tokens: a gradient tells, however small it is."""
    first, last = row.segment_lengths
    states: list[torch.Tensor] = []
    embeddings = base_of(packed.model).get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda _, __, output: states.append(output.requires_grad_()))
    try:
        with torch.enable_grad():
            logits = all_logits(packed, row)[-last:]
            (gradient,) = torch.autograd.grad(logits.float().square().sum(), states[0])
    finally:
        handle.remove()
    return bool(gradient[:, :first].any())


def unknown_layers(base: Any) -> str | None:
    """A kind of layer that a trial on a few tokens cannot judge: it looks like full attention until its chunk ends."""
    config = base.config.get_text_config()
    unknown = sorted({*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"})
    if not unknown and getattr(config, "attention_chunk_size", None):
        unknown = ["attention_chunk_size"]
    return f"{type(base).__name__} has {', '.join(unknown)}, which rows of segments do not know" if unknown else None


def has_window(base: Any) -> bool:
    """Whether some layer sees only the last tokens."""
    config = base.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None) is not None


def all_logits(forward: Forward, row: Row) -> torch.Tensor:
    """The logits at every token of a row of one or more samples, [T, V] float32."""
    output: torch.Tensor = forward.model(**forward.inputs(row)).logits
    return output.flatten(0, 1)


def head_is_plain(model: nn.Module) -> bool:
    """Whether the head is one weight: no bias, no adapter on it, no quantized storage."""
    base = base_of(model)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    plain = type(head) is nn.Linear and head.bias is None
    return plain and isinstance(getattr(base, getattr(base, "base_model_prefix", "") or " ", None), nn.Module)


def head_agrees(model: nn.Module, device: torch.device) -> bool:
    """Whether the model's logits are its last hidden states times its head's weight, with nothing after it.

    Tried with large hidden states too: a cap on the logits leaves those of a new model nearly as they are.
    """
    row = trial_rows(model)[0][0]
    forward = Forward(model, device, None, "padded", fused_head=True)
    try:
        with evaluating(model):
            hidden, weight = forward.hidden(forward.inputs(row))
            expected = (hidden @ weight.T).flatten(0, 1)
            factor = LARGE_LOGIT / float(expected.abs().max().clamp_min(1e-6))
            with scaled_input(parts_of(model)[1], factor):
                large = all_logits(forward, row)
            tolerance = tolerance_of(model)
            plain = all_logits(forward, row)
            return close(plain, expected, tolerance) and close(large, expected * factor, tolerance)
    except Exception:
        # Somebody's model: one that cannot be tried makes its logits itself.
        return False


@contextmanager
def scaled_input(head: nn.Module, factor: float) -> Iterator[None]:
    """Within the block the head's input comes multiplied."""
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor, *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def close(left: torch.Tensor, right: torch.Tensor, tolerance: float) -> bool:
    """Equal up to ``tolerance`` of the largest."""
    return left.shape == right.shape and bool((left - right).abs().max() <= tolerance * left.abs().max())


def tolerance_of(model: nn.Module) -> float:
    """The rounding of the coarsest type that some weight is in."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return 1e-4 if kinds == {torch.float32} else 0.02


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
