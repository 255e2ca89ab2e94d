"""What is trained on: the core's loaders, and what of a row only some methods need."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graftwork.data.conversations import given, verdict_of
from graftwork.data.files import Unreadable
from graftwork.data.loader import load_held_out, load_request, load_split, open_source, schema_of
from graftwork.data.names import look_up
from graftwork.data.shapes import is_pair
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedTokenizerFast

    from graftwork.config import DatasetParams, DatasetSplitParams, RunConfig
    from graftwork.data.indexed import IndexedLoader
    from graftwork.data.loader import Loader
    from graftwork.data.readers import Row as SourceRow
    from graftwork_trl.methods import Method

logger = logging.getLogger(__name__)

COLLATORS = ("text_with_padding", "text_completions_only_with_padding", "dpo_with_padding")
"""What a collator may be called here: the batches are those that the method's loss takes, whatever the name."""


@dataclass(frozen=True, slots=True)
class Data:
    """The loaders, and for KTO which sample (by its place) is a good answer."""

    train: Loader
    validation: IndexedLoader | None
    labels: dict[str, bool] = field(default_factory=dict)


def load_data(
    config: RunConfig, method: Method, tokenizer: PreTrainedTokenizerFast, stop_ids: frozenset[int], processes: int
) -> Data:
    """Both splits. A step of all processes is one step of the loader."""
    train, validation = (for_method(split, method) for split in (config.data.train, config.data.validation))
    loader = load_split(load_request(config, train, tokenizer, stop_ids, processes))
    held_out = load_held_out(config, validation, tokenizer, stop_ids)
    learned, held = (dict(labels_of(split)) if has_labels(split, method) else {} for split in (train, validation))
    if said := of_one_kind(learned):
        logger.warning("data.train: %s", said)
    return Data(loader, held_out, learned | held)


def has_labels(split: DatasetSplitParams, method: Method) -> bool:
    """Whether each row says if its answer is a good one; of preference pairs that is known without."""
    return method.batch == "unpaired" and bool(split.datasets) and schema_of(split) == "chat"


def of_one_kind(labels: Mapping[str, bool], among: str = "") -> str | None:
    """What is to be said of answers that are all good or all bad; None where there are both, or none. ``among`` says
    which answers these are, where they are not all of the data.
    """
    if len(kinds := set(labels.values())) != 1:
        return None
    kind, other = ("good", "bad") if kinds.pop() else ("bad", "good")
    return (
        f"all {len(labels):,} answers{among} are {kind} ones (label), and KTO learns from the difference to {other} "
        "ones: check the labels, or add rows of the other kind"
    )


def for_method(split: DatasetSplitParams, method: Method) -> DatasetSplitParams:
    """The split as the method reads it. Raises :class:`UsageError` for what would not be honoured."""
    require_honoured(split, method)
    if method.batch == "unpaired":
        # One answer is judged: the last one. What the assistant said before is part of the prompt.
        datasets = [judged(as_conversations(params)) for params in split.datasets]
        return split.model_copy(update={"train_target": "final_assistant_turn", "datasets": datasets})
    return split


def require_honoured(split: DatasetSplitParams, method: Method) -> None:
    """Raises :class:`UsageError` for what the method would not honour in a split."""
    if split.collator_name and split.collator_name.casefold() not in COLLATORS:
        raise UsageError(
            f"data.*.collator_name: {split.collator_name}: the batches of {method.name} are those that TRL's loss "
            f"takes; remove it, or name {' or '.join(COLLATORS)}"
        )
    if split.pack and method.name != "TRL_SFT":
        raise UsageError(f"data.*.pack: {method.name} takes its samples one below another; set pack: false")


def as_conversations(params: DatasetParams) -> DatasetParams:
    """The dataset, said to hold conversations where it is of those whose rows tell, and they have a ``label``: such a
    row is a kind of preference to everybody else.
    """
    spec, options = look_up(params)
    if spec.recognise is None or spec.schema != "preference":
        return params
    first = next(iter(open_source(params, spec, options).rows()), None)
    if first is None or is_pair(first.data) or not given(first.data, "label"):
        return params
    return params.model_copy(update={"dataset_kwargs": {**params.dataset_kwargs, "rows_are": "chat"}})


def judged(params: DatasetParams) -> DatasetParams:
    """The dataset, said to need a verdict in each row, where its reader can be told so and it holds conversations."""
    spec, options = look_up(params)
    if spec.schema != "chat" or not hasattr(options, "judged"):
        return params
    return params.model_copy(update={"dataset_kwargs": {**params.dataset_kwargs, "judged": True}})


def source_rows(split: DatasetSplitParams) -> Iterator[tuple[SourceRow, str | None]]:
    """Each row of a split, with the name of the field that holds its messages."""
    for params in split.datasets:
        spec, options = look_up(params)
        messages_field = getattr(options, "messages_field", None)
        for row in open_source(params, spec, options).rows():
            yield row, messages_field


def labels_of(split: DatasetSplitParams) -> Iterator[tuple[str, bool]]:
    """Where each row stands, and whether its answer is a good one. Rows that cannot be used are in the account.

    Raises :class:`DataError` at a row without a verdict on its last turn, of a reader that lets them through.
    """
    for row, messages_field in source_rows(split):
        if not isinstance(row.data, Unreadable):
            yield row.where, verdict_of(row, messages_field)
