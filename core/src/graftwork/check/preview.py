"""``graft preview data``: the tokens of a few samples, whose each is, and which of them are trained."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from graftwork.chat.check import ShownToken
from graftwork.check.subject import SAMPLE, Subject
from graftwork.errors import DataError, GraftworkError, UsageError, did_you_mean
from graftwork.messages import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graftwork.config import RunConfig
    from graftwork.data.readers import Row
    from graftwork.data.samples import Sample


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One sample, token by token. ``parts`` are the numbers of tokens of prompt, chosen and rejected answer."""

    where: str
    tokens: tuple[ShownToken, ...]
    parts: tuple[int, int, int] | None = None

    @property
    def labels(self) -> int:
        """How many tokens are predicted: the trained ones but the first of all."""
        return sum(token.trained for token in self.tokens[1:])

    def to_plain(self) -> dict[str, Any]:
        """For ``--json``."""
        tokens = [token._asdict() for token in self.tokens]
        return {
            "where": self.where,
            "length": len(tokens),
            "labels": self.labels,
            "parts": self.parts,
            "tokens": tokens,
        }


def preview(config: RunConfig, split: str = "train", count: int = 3) -> list[list[ShownSample]]:
    """The first ``count`` samples of a split, each as a block of its own; of packed data the first blocks.

    Raises :class:`DataError` with what became of the rows where none can be shown.
    """
    splits = config.data.splits()
    if split not in splits:
        raise UsageError(f"--split {split!r} is none: {did_you_mean(split, splits)}")
    if not splits[split].datasets:
        raise UsageError(f"data.{split}.datasets is empty: name a dataset there, or another --split")
    packed = splits[split].pack
    subject = Subject.of(config, max(SAMPLE, count) if packed else count, only=split)
    if subject.tokenizer is None:
        raise UsageError(f"there is no tokenizer: {subject.tokenizer_trouble}")
    blocks = list(islice(chosen(subject, split, packed=packed), count))
    if not blocks:
        raise DataError("\n".join(line for dataset in subject.splits[split] for line in why_none(dataset)))
    roles = roles_of(subject, split, {sample.where for block in blocks for sample in block})
    return [[shown(subject, sample, roles.get(sample.where)) for sample in block] for block in blocks]


def chosen(subject: Subject, split: str, *, packed: bool) -> Iterator[Sequence[Sample]]:
    """What goes through the model together, or one sample after the other."""
    if packed:
        loader = subject.loader(split)
        yield from loader.blocks(0) if loader else ()
    else:
        yield from ([sample] for dataset in subject.splits[split] for sample in dataset.samples)


def why_none(dataset: Any) -> list[str]:
    return [f"{dataset.name}: {dataset.trouble}"] if dataset.trouble else list(dataset.account.lines())


def roles_of(subject: Subject, split: str, wanted: set[str]) -> dict[str, list[str | None]]:
    """Of each conversation that is wanted, the role of each token; nothing for rows that have none."""
    from graftwork.data.encoders import open_source
    from graftwork.data.names import look_up

    found = {}
    for params in subject.config.data.splits()[split].datasets:
        spec, options = look_up(params)
        if spec.schema == "chat":
            for row in islice(open_source(params, spec, options).rows(), subject.limit):
                if row.where in wanted:
                    found[row.where] = conversation_roles(subject, row, getattr(options, "messages_field", None))
    return found


def conversation_roles(subject: Subject, row: Row, messages_field: str | None) -> list[str | None]:
    """The role of each token; empty where the template does not tell."""
    from graftwork.chat.encode import token_roles
    from graftwork.data.conversations import to_conversation, tools_of

    config = subject.config
    try:
        messages = to_conversation(row, messages_field).messages
        if subject.prompts is not None and messages[-1].role is Role.ASSISTANT:
            messages = messages[:-1]
        roles = token_roles(
            messages,
            tokenizer=subject.tokenizer,
            special_tokens_in_content=config.data.special_tokens_in_content,
            **{"add_generation_prompt": subject.prompts is not None, **config.model.chat_template_kwargs}
            | {"tools": tools_of(row)},
        )
    except GraftworkError:
        return []
    return [role[1] if role else None for role in roles]


def shown(subject: Subject, sample: Sample, roles: Sequence[str | None] | None) -> ShownSample:
    """Roles by the conversation, by the part of a pair, or none; of a sample that was cut they may not fit."""
    from graftwork.chat.trial import readable

    if sample.parts is not None:
        names = ("prompt", "chosen", "rejected")
        roles = [name for name, length in zip(names, sample.parts, strict=True) for _ in range(length)]
    if roles is None or len(roles) != len(sample):
        roles = [None] * len(sample)
    tokens = zip(sample.input_ids.tolist(), roles, sample.trained.tolist(), strict=True)
    return ShownSample(
        sample.where,
        tuple(ShownToken(index, readable(subject.tokenizer, index), role, trained) for index, role, trained in tokens),
        sample.parts,
    )
