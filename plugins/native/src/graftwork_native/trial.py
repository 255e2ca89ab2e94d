"""What a model allows, found out by trying on two short samples before the first step.

Do packed samples give the logits that each gives alone, and does nothing leak from one to the other? Do two answers on
one prompt give what each gives behind a prompt of its own? Do the
hidden states times the head's weight give the model's logits? A family that is known to the registry has been
proved by its tests; the trial is cheap enough to be made all the same.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from graftwork.data.batch import Row, to_row
from graftwork.data.samples import Sample
from graftwork.errors import GraftworkError
from graftwork_native.attention import NAME, recorded_windows, register
from graftwork_native.forward import Forward, Layout, base_of, evaluating, parts_of
from graftwork_native.head import not_plain
from graftwork_native.limits import limits_of
from graftwork_native.loss import logits_of

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

LARGE_LOGIT = 1000.0
"""Far beyond any cap on logits (Gemma 2 has 30)."""


def plan_forward(
    model: nn.Module, autocast_dtype: torch.dtype | None, layout: Layout | Literal["auto"] = "auto"
) -> Forward:
    """The fastest way that is proved for this model; what is not possible is said in the log, once."""
    device = next(model.parameters()).device
    register()
    chosen: Layout = "padded" if layout == "padded" else "segments"
    if chosen == "segments" and (reason := segments_fail(model, device)):
        if layout == "segments":
            raise GraftworkError(f"training.trainer_kwargs.layout: segments is not possible: {reason}")
        logger.warning("samples are padded, not packed into one row of segments: %s", reason)
        chosen = "padded"
    whole = whole_logits_for(model)
    if whole is None and not head_agrees(model, device):
        whole = f"{type(base_of(model)).__name__} does more than one product"
    if whole is not None:
        logger.info("the logits of a row's labels are made at once, which takes memory, not in pieces: %s", whole)
    return Forward(model, device, autocast_dtype, chosen, whole is None, limits_of(base_of(model)))


def with_shared_prompts(forward: Forward) -> Forward:
    """The forward with the prompt of a pair computed once, where that is proved for its model."""
    if forward.layout == "segments" and (reason := sharing_fails(forward)):
        logger.warning("each answer of a pair gets a prompt of its own, not one that both share: %s", reason)
        return forward
    return replace(forward, shared_prompts=forward.layout == "segments")


def trial_pairs() -> list[tuple[int, int, int]]:
    """Prompts and answers of different lengths."""
    return [(5, 3, 6), (4, 7, 2)]


def sharing_fails(forward: Forward) -> str | None:
    """Why two answers on one prompt do not give what each gives behind its own, or None where they do."""
    vocab_size = base_of(forward.model).get_input_embeddings().weight.shape[0]
    generator = np.random.default_rng(0)
    pairs = [
        Sample(generator.integers(0, vocab_size, sum(parts), np.int32), np.arange(sum(parts)) >= parts[0], "", parts)
        for parts in trial_pairs()
    ]
    row = to_row(pairs)
    plain = replace(forward, autocast_dtype=None, shared_prompts=False)
    shared = replace(plain, shared_prompts=True)
    name = type(base_of(forward.model)).__name__
    try:
        with evaluating(forward.model):
            apart, together = (all_logits(one, one.laid_out(row)) for one in (plain, shared))
            apart = apart[own_places(trial_pairs())]
            if not close(apart, together, tolerance_of(forward.model)):
                return f"{name} gives answers on a shared prompt other logits than each behind its own"
            if between_answers(shared, row):
                return f"{name} lets the answers on a shared prompt see each other"
    except Exception as error:
        # Somebody's model, as above.
        return f"{name}: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return None


def own_places(pairs: list[tuple[int, int, int]]) -> torch.Tensor:
    """Where the tokens of a row of pairs stand in the row whose answers have prompts of their own."""
    places, start = [], 0
    for prompt, chosen, rejected in pairs:
        second = start + 2 * prompt + chosen
        places += [torch.arange(start, start + prompt + chosen), torch.arange(second, second + rejected)]
        start = second + rejected
    return torch.cat(places)


def between_answers(shared: Forward, row: Row) -> bool:
    """Whether the rejected answer of a row's last pair depends on its chosen one, on another pair, or is seen by it."""
    prompt, chosen, rejected = trial_pairs()[-1]
    begin = row.num_tokens - prompt - chosen - rejected
    second = begin + prompt + chosen
    below = gradient_at_embeddings(shared, row, slice(second, None))
    above = gradient_at_embeddings(shared, row, slice(begin, second))
    return bool(below[:begin].any() or below[begin + prompt : second].any() or above[second:].any())


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
    return bool(gradient_at_embeddings(packed, row, slice(-last, None))[:first].any())


def gradient_at_embeddings(forward: Forward, row: Row, tokens: slice) -> torch.Tensor:
    """How the logits at ``tokens`` depend on each token of a row of segments: [T, W], zero where not at all."""
    states: list[torch.Tensor] = []
    embeddings = base_of(forward.model).get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda _, __, output: states.append(output.requires_grad_()))
    try:
        with torch.enable_grad():
            logits = all_logits(forward, row)[tokens]
            (gradient,) = torch.autograd.grad(logits.float().square().sum(), states[0])
    finally:
        handle.remove()
    return gradient[0]


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
    """Whether the logits are made of the last hidden states and weights alone; see :func:`whole_logits_for`."""
    return whole_logits_for(model) is None


def whole_logits_for(model: nn.Module) -> str | None:
    """Why the model has to make its logits itself, all those of a row's labels at once; None where it has not."""
    base = base_of(model)
    if not isinstance(getattr(base, getattr(base, "base_model_prefix", "") or " ", None), nn.Module):
        return f"{type(base).__name__} names no decoder"
    return not_plain(base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None)


def head_agrees(model: nn.Module, device: torch.device) -> bool:
    """Whether the model's logits are its last hidden states times its head's weight, with nothing after it.

    Tried with large hidden states too: a cap on the logits leaves those of a new model nearly as they are.
    """
    row = trial_rows(model)[0][0]
    forward = Forward(model, device, None, "padded", fused_head=True)
    try:
        with evaluating(model):
            expected = logits_of(*forward.factors(forward.inputs(row), torch.arange(row.num_tokens, device=device)))
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
