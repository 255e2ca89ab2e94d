"""Two parts of a dataset, for training and for validation, with identical records always in the same part.

Which part a row is in is told by a hash of what it says, so it depends neither on its place nor on the other rows:
real sets repeat records, and a split by position would put one of two equal ones on each side. For the same reason a
stream is split as it is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.data.account import note, rows_of
from graftwork.data.conversations import messages_of, tools_of
from graftwork.data.readers import START, Position, Row, RowSource
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pydantic import BaseModel

    from graftwork.config import DatasetParams
    from graftwork.data.account import Kinds
    from graftwork.data.samples import Sample

logger = logging.getLogger(__name__)

BESIDE = ("id", "idx", "index", "uid", "uuid", "conversation_id", "prompt_id", "question_id", "metadata", "source")
"""Fields that tell equal records apart without being part of what they say."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a source that are held out, or the others."""

    source: RowSource
    params: DatasetParams
    key: Callable[[Row], bytes]

    @property
    def files(self) -> tuple[Path, ...]:
        return self.source.files

    @property
    def revisions(self) -> dict[str, str]:
        """The source's, and which part this is: the other one has the same files, and is another dataset to the cache.

        Empty where the source itself is known by nothing, so that nothing of it is kept.
        """
        params = self.params
        revisions: dict[str, str] = getattr(self.source, "revisions", {})
        if not revisions and not self.files:
            return {}
        part = f"{params.holdout_part} beside {params.holdout:g} by seed {params.holdout_seed}"
        return {**revisions, f"{params.dataset_path or params.dataset_name} (holdout)": part}

    def rows(self, start: Position = START) -> Iterator[Row]:
        wanted = self.params.holdout_part == "validation"
        for row in self.source.rows(start):
            if self.is_held_out(row) == wanted:
                yield row

    def is_held_out(self, row: Row) -> bool:
        """Whether the row is for validation. One that cannot be read is not: it is told once, in training."""
        try:
            key = self.key(row)
        except DataError:
            return False
        seed = self.params.holdout_seed.to_bytes(8, "big", signed=True)
        number = int.from_bytes(hashlib.blake2b(key, digest_size=8, salt=seed).digest(), "big")
        return number < self.params.holdout * 2**64


def key_of(schema: str, options: BaseModel | None) -> Callable[[Row], bytes]:
    """What a row says, as bytes that are equal for identical records, however they are spelt."""
    if schema == "text":
        field: str = getattr(options, "text_field", "text")
        return lambda row: str(row.data.get(field)).encode()
    messages_field: str | None = getattr(options, "messages_field", None)
    return lambda row: said_in(row, messages_field)


def said_in(row: Row, messages_field: str | None) -> bytes:
    """The turns and tools of a conversation; of any other row all fields but those that only number it."""
    content: Any = {key: value for key, value in row.data.items() if key not in BESIDE}
    if not {"chosen", "rejected", "label"} & row.data.keys():
        messages = messages_of(row.data, row.where, messages_field)
        if messages is not None:
            content = [[message.model_dump(mode="json", exclude={"weight"}) for message in messages], tools_of(row)]
    return json.dumps(content, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def report_shared(train: Sequence[Sequence[Sample]], validation: Sequence[Sequence[Sample]]) -> int:
    """Says how many validation samples are in the training data too, token by token, and where; gives the number.

    Where the two are given as separate data nothing else would tell that the loss of validation is partly that of
    training.
    """
    seen = {digest(sample): sample.where for dataset in train for sample in dataset}
    kinds: Kinds = {}
    for sample in (sample for dataset in validation for sample in dataset):
        if (first := seen.get(digest(sample))) is not None:
            note(kinds, sample.where, f"also in the training data ({first})")
    count, total = rows_of(kinds), sum(map(len, validation))
    if count:
        listed = "\n  ".join(str(kind) for kind in list(kinds.values())[:3])
        logger.warning(
            "%s of %s validation samples are in the training data as well, so eval_loss is partly that of training; "
            "leave them out, or set data.validation_fraction instead of data.validation\n  %s",
            f"{count:,}",
            f"{total:,}",
            listed,
        )
    return count


def digest(sample: Sample) -> bytes:
    """Equal for samples of the same tokens."""
    return hashlib.blake2b(sample.input_ids.tobytes(), digest_size=16).digest()
