"""Conversations to token ids, with the mask of the tokens that are trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from graftwork.chat.content import POLICIES, encode_apart, foreign_tokens, refusal
from graftwork.chat.parts import encode_parts
from graftwork.chat.prefix import spans_by_prefixes
from graftwork.chat.render import (
    Messages,
    plain_messages,
    render,
    require_all_roles,
    require_place_for_tools,
    special_tokens,
    template_of,
    trace,
)
from graftwork.chat.roles import owner_at, owners
from graftwork.chat.vocabulary import hf_tokenizer, vocabulary_of
from graftwork.errors import DataError, UsageError, did_you_mean
from graftwork.messages import Conversation, Message

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from graftwork.chat.content import Foreign
    from graftwork.chat.pieces import Tokens
    from graftwork.chat.template import TemplateSource
    from graftwork.chat.vocabulary import Vocabulary

TrainTarget = Literal["all_assistant_turns", "final_assistant_turn"]
Span = tuple[int, int]
TokenRole = tuple[int, str] | None
"""The number of the message that a token was written for, and its role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedChat:
    """A conversation as tokens.

    ``trained[i]`` says whether ``input_ids[i]`` is to be learnt. ``turns`` are the spans of token positions of
    the trained assistant turns, end not included; ``ends`` holds for each the position of its last token that
    is not white space, which is where it has to stop.
    """

    input_ids: list[int]
    trained: list[bool]
    turns: tuple[Span, ...]
    ends: tuple[int, ...]


class Written(NamedTuple):
    """A conversation as its template writes it: the text, its tokens and its ``{% generation %}`` blocks.

    ``foreign`` are the control tokens in the text that became plain text; ``messages`` and ``variables`` are what
    the template was given. ``untrained`` are the numbers of the messages with weight 0.
    """

    template: TemplateSource
    messages: list[dict[str, Any]]
    variables: Mapping[str, Any]
    text: str
    tokens: Tokens
    blocks: list[tuple[int, str]]
    foreign: Sequence[Foreign]
    untrained: frozenset[int] = frozenset()


def encode_chat(
    messages: Messages,
    *,
    tokenizer: Any,
    template: TemplateSource | Path | str | None = None,
    train_target: TrainTarget | str = "all_assistant_turns",
    special_tokens_in_content: str = "error",
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> tuple[list[int], list[bool]]:
    """The token ids of a conversation, and for each whether the assistant has to learn it.

    The ids are those of ``tokenizer.apply_chat_template``, or of the format's own library where that encodes texts
    and markup apart (``ChatTemplate.encoding``). ``tokenizer`` is one of ours or of transformers; ``template`` a
    name, a file or Jinja text, None is the tokenizer's own, else its family's where that fits.
    ``special_tokens_in_content`` says what becomes of a control token in a message: it is refused (``error``), plain
    text (``as_text``), or a control token (``allow``).
    A conversation without an assistant turn has nothing to learn, and every place is False. An assistant's message
    with ``weight`` 0 is not learnt.
    """
    written = write_chat(
        messages,
        tokenizer=tokenizer,
        template=template,
        special_tokens_in_content=special_tokens_in_content,
        tools=tools,
        **variables,
    )
    if all(message["role"] != "assistant" for message in written.messages):
        return written.tokens.ids, [False] * len(written.tokens.ids)
    encoded = with_mask(written, tokenizer, train_target)
    return encoded.input_ids, encoded.trained


def encode_conversation(
    messages: Messages,
    *,
    tokenizer: Any,
    template: TemplateSource | Path | str | None = None,
    train_target: TrainTarget | str = "all_assistant_turns",
    special_tokens_in_content: str = "error",
    **variables: Any,
) -> EncodedChat:
    """As :func:`encode_chat`, with the turns that are trained; there has to be one.

    Those are the template's ``{% generation %}`` blocks; a template without them is rendered up to each assistant
    turn instead, which has to give a prefix of the whole. Raises :class:`~graftwork.errors.DataError` with the
    reason where there is nothing to train, a role is dropped, or the turns cannot be told for certain.
    """
    _require_assistant(plain_messages(messages))
    written = write_chat(
        messages,
        tokenizer=tokenizer,
        template=template,
        special_tokens_in_content=special_tokens_in_content,
        **variables,
    )
    if _writes_no_answer(written):
        raise DataError(
            f"chat template {written.template.label} writes nothing of the assistant's answer, which is white space "
            "only and is to be continued: there is nothing to train on; give it a text, or leave the row out"
        )
    return with_mask(written, tokenizer, train_target)


def encode_prompt(
    messages: Messages,
    *,
    tokenizer: Any,
    template: TemplateSource | Path | str | None = None,
    special_tokens_in_content: str = "as_text",
    **variables: Any,
) -> tuple[str, list[int]]:
    """The text and the ids of a conversation up to where the assistant's answer begins."""
    variables = {"add_generation_prompt": True, **variables}
    written = write_chat(
        messages,
        tokenizer=tokenizer,
        template=template,
        special_tokens_in_content=special_tokens_in_content,
        **variables,
    )
    return written.text, written.tokens.ids


def token_roles(
    messages: Messages, *, tokenizer: Any, template: TemplateSource | Path | str | None = None, **variables: Any
) -> list[TokenRole]:
    """For each token of :func:`encode_chat`, the number of the message that it was written for and its role.

    None is a token before, between or after the messages (BOS, the generation prompt), and every token where the
    template writes its messages from inside a macro, which does not tell.
    """
    written = write_chat(messages, tokenizer=tokenizer, template=template, **variables)
    _, rendering = trace(written.template, written.messages, written.variables)
    found = owner_at(owners(rendering.visits, written.messages), written.tokens.starts)
    return [None if index is None else (index, str(written.messages[index]["role"])) for index in found]


def write_chat(
    messages: Messages,
    *,
    tokenizer: Any,
    template: TemplateSource | Path | str | None = None,
    special_tokens_in_content: str = "error",
    **variables: Any,
) -> Written:
    """Renders a conversation and encodes it, without a mask."""
    if special_tokens_in_content not in POLICIES:
        raise UsageError(
            f"special_tokens_in_content: {special_tokens_in_content!r} is not known; "
            f"{did_you_mean(special_tokens_in_content, POLICIES)}"
        )
    found = template_of(template, tokenizer)
    rows = plain_messages(messages)
    names = {**own_names(found, tokenizer), "tools": None, "add_generation_prompt": False, **variables}
    require_place_for_tools(found, rows, names)
    write = _in_parts if found.encoding == "parts" else _whole
    written = write(found, rows, names, tokenizer, special_tokens_in_content)
    require_all_roles(found, rows, names, written.text)
    return written._replace(untrained=untrained_of(messages))


def with_mask(written: Written, tokenizer: Any, train_target: TrainTarget | str) -> EncodedChat:
    """The tokens with the mask of the assistant's turns."""
    spans = [] if _writes_no_answer(written) else marked_spans(written.text, written.blocks)
    marked = spans is not None
    if spans is None:
        spans = spans_by_prefixes(
            written.template,
            written.messages,
            written.variables,
            written.text,
            written.tokens,
            lambda part: _encode_like(written, part, vocabulary_of(tokenizer)),
        )
    _require_single_bos(written.tokens.ids, tokenizer)
    wanted = wanted_spans(spans, train_target)
    if written.untrained:
        left = _left_of_marked(written) if marked else _left_of_turns(written, spans)
        wanted = [span for span in left if any(start <= span[0] and span[1] <= end for start, end in wanted)]
    return _encoded(written.text, written.tokens, wanted)


def check_turns(encoded: EncodedChat, stop_ids: Collection[int], tokenizer: Any = None) -> EncodedChat:
    """Raises :class:`~graftwork.errors.DataError` where a trained turn does not end in one of ``stop_ids``.

    Gives the same conversation without labels for the white space that some templates mark after the stop:
    generation ends before it. ``tokenizer`` is for the words of the error.
    """
    trained = list(encoded.trained)
    for (_, end), last in zip(encoded.turns, encoded.ends, strict=True):
        if encoded.input_ids[last] not in stop_ids:
            raise DataError(
                f"a trained assistant turn ends in the token {_listed([encoded.input_ids[last]], tokenizer)}, which is "
                f"no stop token ({_listed(stop_ids, tokenizer)}): the model would not learn to stop. Use a chat "
                "template that ends an assistant turn in the tokenizer's end-of-turn token, inside {% generation %}"
            )
        trained[last + 1 : end] = [False] * (end - last - 1)
    return replace(encoded, trained=trained)


def prompt_mismatch(
    messages: Messages, *, tokenizer: Any, template: TemplateSource | Path | str | None = None, **variables: Any
) -> str | None:
    """Why the model will be asked with other tokens than it is trained on, or None where it will not.

    Generation begins after the tokens of the generation prompt; training saw the tokens that the prompt's text has
    in front of an answer. A tokenizer that joins the prompt's end with what follows makes them differ, and the
    model answers something it never learnt to, while every loss looks fine.
    """
    rows = plain_messages(messages)
    first = next((index for index, row in enumerate(rows) if row["role"] == "assistant"), 0)
    given = {"tokenizer": tokenizer, "template": template, "special_tokens_in_content": "as_text", **variables}
    asked = write_chat(rows[:first], **{**given, "add_generation_prompt": True}).tokens.ids if first else []
    trained = write_chat(rows, **{**given, "add_generation_prompt": False}).tokens.ids
    shared = next((i for i, pair in enumerate(zip(asked, trained, strict=False)) if pair[0] != pair[1]), len(asked))
    if shared == len(asked):
        return None
    return (
        f"the generation prompt of the chat template ends in the tokens {_listed(asked[shared:], tokenizer)} when the "
        f"model is asked, but in {_listed(trained[shared : shared + 3], tokenizer)}... when it is trained: it would be "
        "asked what it never learnt. Use a template whose prompt ends in a special token, or a tokenizer that does not "
        "join the prompt's last characters"
    )


# Text to tokens


def own_names(found: TemplateSource, tokenizer: Any) -> dict[str, str]:
    """The special tokens of ``tokenizer`` as variables. Parts need no tokenizer of transformers, which takes seconds
    to build from some files: one of ours tells its roles itself.
    """
    ours = getattr(tokenizer, "roles", None) if found.encoding == "parts" else None
    return special_tokens(tokenizer) if ours is None else dict(ours)


def _whole(
    found: TemplateSource, rows: list[dict[str, Any]], names: dict[str, Any], tokenizer: Any, policy: str
) -> Written:
    vocabulary = vocabulary_of(tokenizer)
    text, blocks = render(found, rows, names)
    given = {**names, "messages": rows}
    foreign = [] if policy == "allow" else foreign_tokens(found, given, text, vocabulary)
    if foreign and policy == "error":
        raise refusal(found, given, text, foreign, vocabulary)
    tokens: Tokens = encode_apart(vocabulary, text, foreign) if foreign else vocabulary.encode(text)
    return Written(found, rows, names, text, tokens, blocks, foreign)


def _in_parts(
    found: TemplateSource, rows: list[dict[str, Any]], names: dict[str, Any], tokenizer: Any, policy: str
) -> Written:
    text, rendering = trace(found, rows, names)
    tokens = encode_parts(found, rendering.pieces, text, tokenizer, allow_special=policy == "allow")
    return Written(found, rows, names, text, tokens, rendering.spans, ())


def _encode_like(written: Written, part: str, vocabulary: Vocabulary) -> Tokens:
    """The tokens of another rendering, in which plain text stays so as far as it is the same."""
    if not written.foreign or not written.text.startswith(part):
        return vocabulary.encode(part)
    return encode_apart(vocabulary, part, [token for token in written.foreign if token.end <= len(part)])


# Tokens to the mask


def _require_assistant(messages: Sequence[dict[str, Any]]) -> None:
    roles = [str(message["role"]) for message in messages]
    if "assistant" not in roles:
        raise DataError(f"the conversation has no assistant turn to train on, only {', '.join(dict.fromkeys(roles))}")


def _require_single_bos(ids: list[int], tokenizer: Any) -> None:
    if ids[:1] != ids[1:2]:
        return
    hf = hf_tokenizer(tokenizer)
    if ids[:1] == [hf.bos_token_id]:
        raise DataError(
            f"the conversation begins with two {hf.bos_token} tokens: the template writes one, "
            "and the first message begins with another; take it out of the data"
        )


def _writes_no_answer(written: Written) -> bool:
    """Whether the template marks the answers and writes nothing there, as they are white space: an answer of spaces
    that is to be continued has no text and no end in some formats.
    """
    answers = [message for message in written.messages if message["role"] == "assistant"]
    said = any(str(message.get("content") or "").strip() or message.get("tool_calls") for message in answers)
    return bool(written.blocks) and not any(text for _, text in written.blocks) and not said


def marked_spans(text: str, blocks: list[tuple[int, str]]) -> list[Span] | None:
    """Character spans of the ``{% generation %}`` blocks, adjacent ones as one; None where they are not to be had."""
    spans: list[Span] = []
    for start, block in blocks:
        end = start + len(block)
        if text[start:end] != block:  # a macro or a filter held the block back, and it came out elsewhere
            return None
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        elif block:
            spans.append((start, end))
    return spans or None


def untrained_of(messages: Messages) -> frozenset[int]:
    """The numbers of the messages with ``weight`` 0 (OpenAI's fine-tuning format). Raises
    :class:`~graftwork.errors.DataError` at one that is neither 0 nor 1.
    """
    listed = messages.messages if isinstance(messages, Conversation) else messages
    weights = [message.weight if isinstance(message, Message) else message.get("weight") for message in listed]
    for number, weight in enumerate(weights):
        if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
            raise DataError(f"the weight of message number {number + 1} is {weight!r}; it is 0 (not trained) or 1")
    return frozenset(number for number, weight in enumerate(weights) if weight == 0)


def _left_of_marked(written: Written) -> list[Span]:
    """The spans of the ``{% generation %}`` blocks that were not written for a message of weight 0."""
    _, rendering = trace(written.template, written.messages, written.variables)
    writers = list(owner_at(owners(rendering.visits, written.messages), (start for start, _ in written.blocks)))
    if any(index is None or written.messages[index]["role"] != "assistant" for index in writers):
        raise DataError(
            f"chat template {written.template.label} does not tell for which message it writes an answer, as it does "
            "not loop over the messages, so weight cannot be obeyed; take the weights out, or use another template"
        )
    left = [block for block, index in zip(written.blocks, writers, strict=True) if index not in written.untrained]
    return marked_spans(written.text, left) or []


def _left_of_turns(written: Written, spans: list[Span]) -> list[Span]:
    """The spans, one for each message of the assistant, without those of weight 0."""
    numbers = [number for number, message in enumerate(written.messages) if message["role"] == "assistant"]
    return [span for number, span in zip(numbers, spans, strict=True) if number not in written.untrained]


def wanted_spans(spans: list[Span], train_target: str) -> list[Span]:
    if train_target == "all_assistant_turns":
        return spans
    if train_target == "final_assistant_turn":
        return spans[-1:]
    raise UsageError(f"train_target: {train_target!r} is not known; use all_assistant_turns or final_assistant_turn")


def _encoded(text: str, tokens: Tokens, spans: list[Span]) -> EncodedChat:
    turns = tuple(tokens.within(*span) for span in spans)
    trained = [False] * len(tokens.ids)
    for start, end in turns:
        trained[start:end] = [True] * (end - start)
    closing = ((start, start + len(text[start:end].rstrip())) for start, end in spans)
    return EncodedChat(
        input_ids=tokens.ids,
        trained=trained,
        turns=turns,
        ends=tuple(max(tokens.within(*span)[1] - 1, 0) for span in closing),
    )


def _listed(ids: Collection[int], tokenizer: Any) -> str:
    """Ids with their texts, where a tokenizer tells them."""
    if tokenizer is None:
        return ", ".join(map(str, sorted(ids))) or "none is known"
    ordered = ids if isinstance(ids, list) else sorted(ids)
    return ", ".join(f"{index} {hf_tokenizer(tokenizer).decode([index])!r}" for index in ordered) or "none is known"
