"""torchtune's tokenizers: messages to ids and mask, by a layout that a family declares as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.errors import UsageError
from graftwork.tokenizers.load import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

    from graftwork.specs import MessageLayout, ModelFamily
    from graftwork.tokenizers.tokenizer import Tokenizer

Prompt = Mapping[str, tuple[str, str]]
Tokens = tuple[list[int], list[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchtuneMessage:
    """A message with torchtune's flags; ``masked`` is not trained, ``eot`` ends a turn, ``ipython`` is a tool call."""

    role: str
    content: list[dict[str, Any]]
    masked: bool
    ipython: bool
    eot: bool


def torchtune_tokenizer(name: str, layout: MessageLayout, *, family: str | None = None) -> Callable[..., Any]:
    """The function ``name`` of torchtune: from a file or folder to a :class:`TorchtuneTokenizer` of ``layout``."""

    def build(
        path: str | Path,
        merges_file: str | Path | None = None,
        special_tokens_path: str | Path | None = None,
        max_seq_len: int | None = None,
        prompt_template: Prompt | str | None = "default",
        truncation_type: str = "right",
    ) -> TorchtuneTokenizer:
        base = load(path, family=family) if merges_file is None else _of_vocabulary(path, merges_file, layout)
        if layout.impls and base.impl not in layout.impls:
            raise UsageError(
                f"{name}: {path} is a file for {base.impl}, and those of this family are for "
                f"{' or '.join(layout.impls)}: give the family's own, or read it with graftwork.load_tokenizer"
            )
        special = _special_tokens(layout, base, special_tokens_path)
        prompt = _prompt(layout, prompt_template)
        if truncation_type not in ("right", "left"):
            raise UsageError(f"{name}: truncation_type {truncation_type!r} is not known; use right or left")
        return TorchtuneTokenizer(base, replace(layout, prompt=prompt), special, max_seq_len, truncation_type)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"torchtune's ``{name}``: the tokenizer in the file or folder ``path``, with ``tokenize_messages``."
    return build


class TorchtuneTokenizer:
    """A tokenizer with torchtune's names. No special token in a text is ever parsed."""

    def __init__(
        self,
        base: Tokenizer,
        layout: MessageLayout,
        special_tokens: Mapping[str, int],
        max_seq_len: int | None = None,
        truncation_type: str = "right",
    ) -> None:
        self.base, self.layout = base, layout
        self.special_tokens = dict(special_tokens)
        self.max_seq_len, self.truncation_type = max_seq_len, truncation_type
        info = base.vocab_info
        self.bos_id = info.bos_idx if layout.bos is None else self.special_tokens[layout.bos]
        self.eos_id = info.eos_idx if layout.eos is None else self.special_tokens[layout.eos]
        self.pad_id = layout.pad if isinstance(layout.pad, int) else self.special_tokens[layout.pad]
        named = [self.special_tokens[text] for text in layout.stop]
        self.stop_tokens = named or [index for index in (self.eos_id,) if index is not None]
        self.vocab_size = max([info.size, *(index + 1 for index in self.special_tokens.values())])
        self._break = base.encode_ordinary("\n")

    @property
    def hf(self) -> PreTrainedTokenizerFast:
        """The tokenizer as transformers has them."""
        return self.base.hf

    @property
    def family(self) -> ModelFamily | None:
        """The family whose chat template and special tokens count."""
        family: ModelFamily | None = getattr(self.base, "family", None)
        return family

    def control_id(self, text: str) -> int | None:
        """The id of the special token whose whole text is ``text``."""
        return self.special_tokens.get(text, self.base.control_id(text))

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of ``text`` alone."""
        return self.base.encode_ordinary(text)

    def encode(
        self, text: str, add_bos: bool = True, add_eos: bool = True, trim_leading_whitespace: bool = False
    ) -> list[int]:
        """The ids of ``text``, with BOS and EOS unless told otherwise; ``trim_leading_whitespace`` leaves out the
        space that SentencePiece puts before it.
        """
        ids = self._unspaced(text) if trim_leading_whitespace else self.base.encode_ordinary(text)
        first = [self.bos_id] if add_bos and self.bos_id is not None else []
        last = [self.eos_id] if add_eos and self.eos_id is not None else []
        return [*first, *ids, *last]

    def decode(self, ids: Sequence[int], truncate_at_eos: bool | None = None, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``, without special tokens and the headers that they make unless they are to be shown."""
        kept = list(ids)
        if (self.layout.decode_to_eos if truncate_at_eos is None else truncate_at_eos) and self.eos_id in kept[1:]:
            kept = kept[: kept.index(self.eos_id, 1)]
        texts = {index: text for text, index in self.special_tokens.items()}
        if skip_special_tokens and not any("{role}" in part for part in self.layout.header):
            return self.base.decode([index for index in kept if index not in texts])
        text = _shown(kept, texts, self.base)
        return _without_markers(text, self.layout.header, texts.values()) if skip_special_tokens else text

    def tokenize_message(self, message: Any, add_start_tokens: bool = True, add_end_tokens: bool = True) -> list[int]:
        """The ids of one message, with its header and its end unless told otherwise; no BOS and no EOS."""
        row = message_of(message)
        layout = self.layout if add_start_tokens else replace(self.layout, header=())
        ids = self._message(row, layout, trim=False, end=self._end(row) if add_end_tokens else ())
        return [index for index in ids if index is not None]

    def tokenize_messages(
        self,
        messages: Iterable[Any],
        max_seq_len: int | None = None,
        *,
        add_start_tokens: bool = True,
        add_end_tokens: bool | None = None,
        add_eos: bool | None = None,
        ignore_system_prompt: bool = False,
    ) -> Tokens:
        """The ids of a conversation, and for each whether it is left out of the loss.

        ``add_eos`` and ``add_end_tokens`` are one thing under two names. Longer conversations than ``max_seq_len``
        are cut off, and end in EOS where end tokens are added.
        """
        ended = next((flag for flag in (add_end_tokens, add_eos) if flag is not None), self.layout.end_tokens)
        limit = max_seq_len or self.max_seq_len
        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Iterable):
            raise _no_message(messages)
        rows = [message_of(message) for message in messages]
        rows = [row for row in rows if not (ignore_system_prompt and row.role == "system")]
        rows = _templated(rows, self.layout)
        ids, mask, last = self._conversation(rows, ended, add_start_tokens, limit)
        if limit is None or (len(ids) < limit and not self.layout.short_ends):
            return ids, mask
        masked = last.masked if self.layout.cut_masked is None else self.layout.cut_masked
        return self._cut(ids, limit, self.eos_id if ended else None), self._cut(mask, limit, masked if ended else None)

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """``sample`` with ``tokens`` and ``mask`` in place of ``messages``."""
        rest = {name: value for name, value in sample.items() if name != "messages"}
        tokens, mask = self.tokenize_messages(sample["messages"], add_end_tokens=not inference)
        return {**rest, "tokens": tokens, "mask": mask}

    def _conversation(
        self, rows: list[TorchtuneMessage], ended: bool, started: bool, limit: int | None
    ) -> tuple[list[int], list[bool], TorchtuneMessage]:
        """The ids and the mask up to the message that reaches ``limit``, and that message."""
        layout, ids, mask = self.layout, list[int](), list[bool]()
        if layout.bos_before == "conversation" and started and self.bos_id is not None:
            ids, mask = [self.bos_id], [True]
        starts, spaced = True, False
        for position, row in enumerate(rows):
            turn = [self.bos_id] if starts and started and layout.bos_before == "turn" else []
            trim = layout.unspaced == "always" or (layout.unspaced == "within_turn" and not starts and not spaced)
            dropped = position == len(rows) - 1 and self._drops_end(row, ended=ended)
            turn += self._message(row, layout, trim=trim, end=() if dropped else self._end(row))
            closes = row.role == "assistant" and layout.eos_after == "assistant"
            turn += [self.eos_id] if closes and ended else []
            ids += [index for index in turn if index is not None]
            mask += [row.masked] * sum(index is not None for index in turn)
            starts = closes and (ended or not layout.end)
            spaced = bool(row.content) and str(row.content[-1].get("content", "")).endswith(" ")
            if limit is not None and len(ids) >= limit:
                break
        if ended and layout.eos_after == "conversation" and self.eos_id is not None:
            ids, mask = [*ids, self.eos_id], [*mask, row.masked if layout.eos_masked is None else layout.eos_masked]
        return ids, mask, row

    def _message(
        self, row: TorchtuneMessage, layout: MessageLayout, *, trim: bool, end: tuple[str, ...]
    ) -> list[int | None]:
        bare = row.role in layout.bare_roles
        ids = [] if bare else self._parts(part.replace("{role}", row.role.strip()) for part in layout.header)
        if row.ipython and layout.call is not None:
            ids.append(self.special_tokens[layout.call])
        for item in row.content:
            ids += self._item(item, trim)
        return [*ids, *([] if bare else self._parts(end))]

    def _item(self, item: Mapping[str, Any], trim: bool) -> list[int]:
        if item["type"] == "image" and self.layout.image is not None:
            return [self.special_tokens[self.layout.image]]
        if item["type"] != "text":
            raise UsageError(f"tokenize_messages: content of type {item['type']!r} has no token here; give text")
        text = str(item["content"])
        text = {"both": text.strip(), "right": text.rstrip(" "), "no": text}[self.layout.strip]
        return self._unspaced(text) if trim else self.base.encode_ordinary(text)

    def _end(self, row: TorchtuneMessage) -> tuple[str, ...]:
        return self.layout.end if row.eot or not self.layout.open_end else self.layout.open_end

    def _drops_end(self, row: TorchtuneMessage, *, ended: bool) -> bool:
        when = self.layout.last_end
        return {"always": False, "with_end_tokens": not ended, "not_assistant": row.role == "assistant"}[when]

    def _parts(self, parts: Iterable[str]) -> list[int | None]:
        ids: list[int | None] = []
        for part in parts:
            special = self.special_tokens.get(part)
            ids += self.base.encode_ordinary(part) if special is None else [special]
        return ids

    def _unspaced(self, text: str) -> list[int]:
        """Behind a line end SentencePiece puts no space; a vocabulary that joins the two has none to leave out."""
        ids = self.base.encode_ordinary("\n" + text)
        if self._break and ids[: len(self._break)] == self._break:
            return ids[len(self._break) :]
        return self.base.encode_ordinary(text)

    def _cut(self, values: list[Any], limit: int, last: Any) -> list[Any]:
        kept = values[:limit] if self.truncation_type == "right" else values[-limit:]
        return kept if last is None or not kept else [*kept[:-1], last]


def message_of(message: Any) -> TorchtuneMessage:
    """A message given as torchtune's object, as ours or as a dictionary; ``masked`` is by default all but the
    assistant's. Raises :class:`UsageError` for what is no message, and for a tool call that is not the assistant's.
    """
    get = message.get if isinstance(message, Mapping) else lambda name, default=None: getattr(message, name, default)
    if get("role") is None:
        raise _no_message(message)
    role, content = str(get("role")), get("content")
    if isinstance(content, str):
        content = [{"type": "text", "content": content}]
    items = [item if isinstance(item, Mapping) else item.model_dump(mode="json") for item in content or ()]
    parts = [{"content": item.get("text"), **item, "type": str(item["type"]).partition("_")[0]} for item in items]
    ipython = bool(get("ipython", False))
    if ipython and role != "assistant":
        raise UsageError(f"tokenize_messages: only the assistant calls tools (ipython), not the role {role!r}")
    return TorchtuneMessage(
        role=role,
        content=parts,
        masked=bool(get("masked", role != "assistant")),
        ipython=ipython,
        eot=bool(get("eot", True)),
    )


def _no_message(given: Any) -> UsageError:
    return UsageError(
        "tokenize_messages takes a list of messages, each with role and content, such as "
        f"{{'role': 'user', 'content': 'Hi'}}; given was {str(given)[:80]!r}"
    )


def _templated(rows: list[TorchtuneMessage], layout: MessageLayout) -> list[TorchtuneMessage]:
    """The rows with the plain text of ``layout.prompt`` around them."""
    made: list[TorchtuneMessage] = []
    system: list[dict[str, Any]] = []
    for row in rows:
        if row.role not in layout.roles:
            raise UsageError(f"tokenize_messages: role {row.role!r} is not known; use {', '.join(layout.roles)}")
        before, after = layout.prompt.get(row.role, ("", ""))
        content = [*_text(before), *(system if row.role == "user" else []), *row.content, *_text(after)]
        if row.role == "system" and layout.prompt and layout.system == "refused":
            raise UsageError("tokenize_messages: this family's prompt has no place for a system message; leave it out")
        if row.role == "system" and layout.prompt and layout.system == "in_user":
            system = content
            continue
        made.append(replace(row, content=content))
    if not made:
        raise UsageError("tokenize_messages: there is no message to tokenize")
    return made


def _text(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "content": text}] if text else []


def _shown(ids: Iterable[int], texts: Mapping[int, str], base: Tokenizer) -> str:
    from graftwork.tokenizers.codec import runs

    decode = base.create_decoder()
    return "".join(decode(run) if text is None else text for run, text in runs(list(ids), texts))


def _without_markers(text: str, header: tuple[str, ...], special: Iterable[str]) -> str:
    whole = "".join(re.escape(part).replace(re.escape("{role}"), ".*?") for part in header)
    single = "|".join(re.escape(token) for token in special)
    return re.sub(single, "", re.sub(whole, "", text))


def _special_tokens(layout: MessageLayout, base: Tokenizer, file: str | Path | None) -> dict[str, int]:
    if file is not None:
        import json

        listed = json.loads(Path(file).read_text("utf-8"))["added_tokens"]
        return {token["content"]: token["id"] for token in listed}
    if isinstance(layout.special_tokens, Mapping):
        return dict(layout.special_tokens)
    given = {text: base.control_id(text) for text in layout.special_tokens}
    free = iter(range(base.vocab_info.size, base.vocab_info.size + len(given)))
    return {text: next(free) if index is None else index for text, index in given.items()}


def _prompt(layout: MessageLayout, asked: Prompt | str | None) -> Prompt:
    """``asked`` is a mapping of role to the texts around, ``default`` or the name of the layout's own, or None."""
    if asked is None:
        return {}
    if not isinstance(asked, str):
        return {role: (before, after) for role, (before, after) in asked.items()}
    if asked == "default" or asked.rpartition(".")[2] == layout.prompt_name:
        return layout.prompt
    raise UsageError(
        f"prompt_template {asked!r} is not known here; give {layout.prompt_name or 'None'}, None, or a mapping of "
        "role to the texts before and after"
    )


def _of_vocabulary(vocabulary: str | Path, merges: str | Path, layout: MessageLayout) -> Tokenizer:
    """A bare vocabulary of byte-level pieces with its merges, cut by the layout's pattern after NFC."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from graftwork.tokenizers.hf import HFCodec
    from graftwork.tokenizers.loaded import LoadedTokenizer

    backend = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(layout.split_regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return LoadedTokenizer(path=Path(vocabulary), codec=HFCodec(PreTrainedTokenizerFast(tokenizer_object=backend)))
