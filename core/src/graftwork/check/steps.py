"""The part of a check about tokens and steps."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from graftwork.check.report import Part

if TYPE_CHECKING:
    from graftwork.check.subject import Subject
    from graftwork.data.indexed import IndexedLoader


def steps_part(subject: Subject) -> Part:
    """How much of what in an epoch, and how long the run is."""
    part = Part("steps", "Tokens and steps")
    training = subject.config.training
    blocks = training.per_device_train_batch_size * training.gradient_accumulation_steps
    kind = "packed rows" if subject.config.data.train.pack else "samples"
    each = f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps} forward passes"
    part.facts |= {"blocks_per_step": blocks, "max_steps": training.max_steps, "epochs": training.num_train_epochs}
    part.ok(f"a step takes {blocks:,} {kind} ({each}) on each device")
    loader = subject.loader() if subject.tokenizer is not None else None
    if loader is None:
        part.note("tokens and epochs are not known, because no training row could be read")
        return part
    count_tokens(part, subject, loader)
    count_steps(part, subject, loader, blocks)
    return part


def scale_of(subject: Subject) -> float | None:
    """Rows in all for each sampled row; None where it is not known how many there are."""
    datasets = subject.splits["train"]
    if any(dataset.rows is None for dataset in datasets):
        return None
    return sum(dataset.rows or 0 for dataset in datasets) / max(1, sum(dataset.account.read for dataset in datasets))


def count_tokens(part: Part, subject: Subject, loader: IndexedLoader) -> None:
    """Tokens of an epoch: counted, or estimated from the sample and the size of the files."""
    scale = scale_of(subject)
    estimated = any(dataset.estimated for dataset in subject.splits["train"])
    part.facts |= {"estimated": estimated, "tokens_per_epoch": None, "trained_tokens_per_epoch": None}
    if scale is None:
        part.note("how many rows there are is not known without reading all of them (--all)")
        return
    tokens, trained = round(loader.counts.tokens * scale), round(loader.counts.supervised_tokens * scale)
    part.facts |= {"tokens_per_epoch": tokens, "trained_tokens_per_epoch": trained}
    about = "about " if estimated else ""
    part.ok(f"{about}{tokens:,} tokens in an epoch, {about}{trained:,} of them trained, before sampling and mixing")


def count_steps(part: Part, subject: Subject, loader: IndexedLoader, blocks: int) -> None:
    """``max_steps``, or the steps of the epochs."""
    training, split = subject.config.training, subject.config.data.train
    streamed = split.stream or any(dataset.stream for dataset in split.datasets)
    scale = scale_of(subject)
    each = 0 if scale is None else scale * sum(1 for _ in loader.blocks(0)) / blocks
    part.facts["steps_per_epoch"] = ceil(each) or None
    if training.max_steps > 0:
        total: int | None = training.max_steps
    elif streamed:
        total = None
        part.error("training.max_steps: data that is streamed has no known end; say how many steps to train")
    else:
        whole = loader.count_steps(training.num_train_epochs) if scale == 1 else None
        total = whole if whole is not None else ceil(each * training.num_train_epochs) or None
    part.facts["steps"] = total
    if total:
        about = "about " if part.facts["estimated"] and training.max_steps <= 0 else ""
        warmup = training.warmup_steps or ceil((training.warmup_ratio or 0) * total)
        text = f"{about}{total:,} steps" + (f", {warmup:,} of them warm-up" if warmup else "")
        if epoch := part.facts["steps_per_epoch"]:
            text += f"; an epoch has {'about ' if part.facts['estimated'] else ''}{epoch:,}"
        part.ok(text)
        part.facts["warmup_steps"] = warmup
