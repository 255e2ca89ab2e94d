"""The part of a check about tokens and steps."""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import TYPE_CHECKING

from graftwork.check.report import Part
from graftwork.errors import DataError

if TYPE_CHECKING:
    from graftwork.check.subject import Subject
    from graftwork.data.indexed import IndexedLoader

FEW_STEPS = 10
"""Steps below which a run of epochs hardly moves a model: the learning rate has risen and fallen by then."""


def steps_part(subject: Subject) -> Part:
    """How much of what in an epoch, and how long the run is."""
    part = Part("steps", "Tokens and steps")
    training = subject.config.training
    part.facts |= {"max_steps": training.max_steps, "epochs": training.num_train_epochs}
    if subject.trainer.count_steps is not None:
        counted_by_trainer(part, subject)
        return part
    blocks = training.per_device_train_batch_size * training.gradient_accumulation_steps
    each = f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps} forward passes"
    part.facts |= {"blocks_per_step": blocks}
    part.ok(f"a step takes {blocks:,} {kind_of(subject)} ({each}) on each device")
    loader = subject.loader() if subject.tokenizer is not None else None
    if loader is None:
        part.note("tokens and epochs are not known, because no training row could be read")
        return part
    try:
        loader.plan(0)
    except DataError as error:
        part.error(str(error))
        return part
    count_tokens(part, subject, loader)
    count_steps(part, subject, loader, blocks)
    return part


def counted_by_trainer(part: Part, subject: Subject) -> None:
    """What the trainer says of a run whose batches are not the samples of the data."""
    count, training = subject.trainer.count_steps, subject.config.training
    assert count is not None
    loader = subject.loader() if subject.tokenizer is not None else None
    picks = picks_of(subject, loader) if loader is not None else None
    said = count(subject.method_request(), None if picks is None else round(sum(picks)))
    estimated = any(dataset.estimated for dataset in subject.splits.get("train", ()))
    part.facts |= {"blocks_per_step": said.each, "estimated": estimated, "tokens_per_epoch": None}
    part.facts |= {"trained_tokens_per_epoch": None, "steps_per_epoch": said.per_epoch, "steps": said.steps}
    part.ok(f"a step takes {said.each:,} {said.unit}")
    if said.note:
        part.note(said.note)
    if said.steps is None and loader is None:
        part.note("the number of steps is not known, because no training row could be read")
    elif said.steps is None:
        part.note("how many rows there are is not known without reading all of them (--all), nor how many steps")
    else:
        say_steps(part, said.steps, about=estimated and training.max_steps <= 0, subject=subject)
        say_too_few(part, said.steps, None, subject)


def count_tokens(part: Part, subject: Subject, loader: IndexedLoader) -> None:
    """Tokens of an epoch: counted, or estimated from the sample and the size of the files."""
    estimated = any(dataset.estimated for dataset in subject.splits["train"])
    part.facts |= {"estimated": estimated, "tokens_per_epoch": None, "trained_tokens_per_epoch": None}
    picks = picks_of(subject, loader)
    if picks is None:
        part.note("how many rows there are is not known without reading all of them (--all)")
        return
    tokens, trained = tokens_of(subject, loader, picks)
    part.facts |= {"tokens_per_epoch": tokens, "trained_tokens_per_epoch": trained}
    about = "about " if estimated else ""
    part.ok(f"{about}{tokens:,} tokens in an epoch, {about}{trained:,} of them trained")


def is_read_whole(subject: Subject) -> bool:
    """Whether all training rows were read, and not a sample of them."""
    return all(dataset.whole for dataset in subject.splits["train"])


def picks_of(subject: Subject, loader: IndexedLoader) -> list[float] | None:
    """Samples that an epoch takes of each dataset, after sampling and mixing; None where the rows are not known."""
    datasets, split = subject.splits["train"], subject.config.data.train
    if any(dataset.rows is None for dataset in datasets):
        return None
    if is_read_whole(subject):
        counts = Counter(loader.plan(0).picks[:, 0].tolist())
        return [float(counts[number]) for number in range(len(datasets))]
    takes: list[float] = []
    for params, dataset in zip(split.datasets, datasets, strict=True):
        usable = (dataset.rows or 0) * len(dataset.samples) / max(1, dataset.account.read)
        takes.append(usable if params.sample_count is None else params.sample_count)
    shares = [params.mixture_proportion or 0.0 for params in split.datasets]
    if not any(shares):
        return takes
    ends = [count * sum(shares) / share for count, share in zip(takes, shares, strict=True) if share and count]
    drawn = (min if split.mixture_strategy == "first_exhausted" else max)(ends, default=0.0)
    return [drawn * share / sum(shares) for share in shares]


def tokens_of(subject: Subject, loader: IndexedLoader, picks: list[float]) -> tuple[int, int]:
    """Tokens of so many samples of each dataset, and trained ones: exactly where all rows were read."""
    datasets = loader.datasets
    if is_read_whole(subject):
        taken = [(datasets[number], index) for number, index in loader.plan(0).picks.tolist()]
        return sum(int(own.lengths[at]) for own, at in taken), sum(int(own.supervised[at]) for own, at in taken)
    means = [(own.lengths.mean(), own.supervised.mean()) for own in datasets]
    pairs = list(zip(picks, means, strict=True))
    return round(sum(n * each for n, (each, _) in pairs)), round(sum(n * each for n, (_, each) in pairs))


def blocks_of(subject: Subject, loader: IndexedLoader) -> float:
    """Samples, or packed rows, of an epoch; 0 where the rows are not known."""
    picks = picks_of(subject, loader)
    if picks is None:
        return 0
    sampled = loader.plan(0)
    if is_read_whole(subject):
        return len(sampled.plan)
    if subject.config.data.train.pack or subject.schema == "text":
        lengths = [own.lengths for own in loader.datasets]
        tokens = sum(int(lengths[number][index]) for number, index in sampled.picks.tolist())
        return len(sampled.plan) * tokens_of(subject, loader, picks)[0] / tokens
    return len(sampled.plan) * sum(picks) / len(sampled.picks)


def count_steps(part: Part, subject: Subject, loader: IndexedLoader, blocks: int) -> None:
    """``max_steps``, or the steps of the epochs."""
    training, split = subject.config.training, subject.config.data.train
    streamed = split.stream or any(dataset.stream for dataset in split.datasets)
    found = blocks_of(subject, loader)
    each = found / blocks
    part.facts["steps_per_epoch"] = ceil(each) or None
    if training.max_steps > 0:
        total: int | None = training.max_steps
    else:
        whole = not streamed and is_read_whole(subject)
        about_all = ceil(ceil(each) * training.num_train_epochs)
        total = (loader.count_steps(training.num_train_epochs) if whole else about_all) or None
    part.facts["steps"] = total
    if streamed and training.max_steps <= 0:
        part.note("data.train is streamed: the run counts its steps in one pass over it, unless max_steps says them")
    if total:
        say_steps(part, total, about=(part.facts["estimated"] or streamed) and training.max_steps <= 0, subject=subject)
        say_too_few(part, total, found, subject)


def say_steps(part: Part, total: int, *, about: bool, subject: Subject) -> None:
    """The length of the run, its warm-up and the steps of an epoch, where they are known."""
    training = subject.config.training
    warmup = training.warmup_steps or ceil((training.warmup_ratio or 0) * total)
    text = f"{'about ' if about else ''}{total:,} steps" + (f", {warmup:,} of them warm-up" if warmup else "")
    if epoch := part.facts["steps_per_epoch"]:
        text += f"; an epoch has {'about ' if part.facts['estimated'] else ''}{epoch:,}"
    part.ok(text)
    part.facts["warmup_steps"] = warmup


def say_too_few(part: Part, total: int, found: float | None, subject: Subject) -> None:
    """That epochs are too short to learn from; ``found`` is what one of them holds, None where only the trainer knows.
    Who says ``max_steps`` means so few.
    """
    if subject.config.training.max_steps > 0:
        return
    blocks, about = part.facts["blocks_per_step"], "about " if part.facts["estimated"] else ""
    causes = []
    if found is not None and found < blocks:
        causes.append(f"an epoch has {about}{ceil(found):,} of the {blocks:,} {kind_of(subject)} that a step takes")
    if total < FEW_STEPS:
        causes.append(f"{total:,} {'step is' if total == 1 else 'steps are'} too few to learn much")
    if causes:
        part.warn(f"{', and '.join(causes)}: {remedies(subject)}")


def kind_of(subject: Subject) -> str:
    """What goes through the model together."""
    return "packed rows" if subject.config.data.train.pack else "samples"


def remedies(subject: Subject) -> str:
    """What makes more steps, of the settings that can here."""
    training, split = subject.config.training, subject.config.data.train
    sizes = ("gradient_accumulation_steps", "per_device_train_batch_size")
    lower = [f"training.{name} ({size})" for name in sizes if (size := getattr(training, name)) > 1]
    ways = [f"lower {' or '.join(lower)}"] if lower else []
    if split.pack:
        ways.append("set data.train.pack: false")
        ways.append("lower data.train.max_length" + (f" ({split.max_length})" if split.max_length else ""))
    return ", ".join([*ways, f"raise training.num_train_epochs ({training.num_train_epochs:g}), or give more rows"])
