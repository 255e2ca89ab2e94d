"""What is known of a TRL run before anything loads: what it refuses, and how long it is."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from graftwork.check.methods import StepCount
from graftwork.errors import UsageError
from graftwork.registry import get_registry
from graftwork_trl.data import for_method, has_labels, labels_of, of_one_kind, require_honoured
from graftwork_trl.grpo import prompts_per_step, require_held, require_weights, steps_of_run
from graftwork_trl.methods import METHODS
from graftwork_trl.params import GrpoOptions, KtoOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graftwork.check.methods import MethodRequest
    from graftwork.config import RunConfig

LABELS = 10_000
"""Rows of a dataset whose labels are looked at unless all are asked for."""


def refuse(request: MethodRequest) -> None:
    """Raises :class:`UsageError` for settings that the method cannot do together."""
    config, options = request.config, request.params
    method = METHODS[get_registry().trainers[config.training.trainer_type].name]
    splits = [split for split in (config.data.train, config.data.validation) if split.datasets]
    for split in splits:
        require_honoured(split, method)
    if isinstance(options, KtoOptions):
        require_others(config, options)
    if isinstance(options, GrpoOptions):
        for split in splits:
            require_held(split, method)
        require_weights(options)
        prompts_per_step(config, options, request.processes)


def doubts(request: MethodRequest, rows: int | None) -> Iterator[str]:
    """What a run would warn of: that KTO's answers are of one kind.

    Of labels more rows are looked at than ``rows``, until there is one of the other kind: a file may be sorted by them,
    and reading them takes no tokenizer.
    """
    config = request.config
    method = METHODS[get_registry().trainers[config.training.trainer_type].name]
    split = for_method(config.data.train, method)
    if not has_labels(split, method):
        return
    most = None if rows is None else max(rows, LABELS)
    labels: dict[str, bool] = {}
    cut = False
    for params in split.datasets:
        found = labels_of(split.model_copy(update={"datasets": [params]}))
        for where, label in islice(found, most):
            labels[where] = label
            if label is not next(iter(labels.values())):
                return
        cut = next(found, None) is not None or cut
    among = f" that were looked at ({most:,} rows of a dataset at most; --all for all)" if cut else ""
    if said := of_one_kind(labels, among):
        yield f"data.train: {said}"


def require_others(config: RunConfig, options: KtoOptions) -> None:
    """Raises :class:`UsageError` where a batch has no other sample to estimate KTO's KL term from."""
    size = config.training.per_device_train_batch_size
    if options.loss_type == "kto" and size < 2:
        raise UsageError(
            f"training.per_device_train_batch_size: {size}: KTO estimates its KL term from the answers of the others "
            "in a batch; set 2 or more (gradient_accumulation_steps does not count), or trainer_kwargs.loss_type to "
            "apo_zero_unpaired, which has no such term"
        )


def count_steps(request: MethodRequest, samples: int | None) -> StepCount:
    """GRPO's steps, each of some prompts; ``samples`` are the prompts of an epoch."""
    options, training = request.params, request.config.training
    assert isinstance(options, GrpoOptions)
    each = prompts_per_step(request.config, options, request.processes)
    epoch, steps = steps_of_run(training, each, samples) if samples is not None else (None, max(0, training.max_steps))
    return StepCount(
        each=each,
        unit=f"prompts ({options.num_generations} answers to each)",
        per_epoch=epoch,
        steps=steps or None,
        note=f"the answers are drawn in the run, of {options.max_completion_length:,} tokens at most: how many tokens "
        "a step has is not known before",
    )
