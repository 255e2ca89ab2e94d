"""Conversations to token ids, with the mask of the tokens that are trained."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from graftwork.chat.prefix import spans_by_prefixes
from graftwork.chat.render import Messages, plain_messages, render, require_all_roles, special_tokens
from graftwork.chat.template import TemplateSource, find_template
from graftwork.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

TrainTarget = Literal["all_assistant_turns", "final_assistant_turn"]
Span = tuple[int, int]


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


def encode_chat(
    messages: Messages,
    *,
    tokenizer: Any,
    template: TemplateSource | str | None = None,
    train_target: TrainTarget | str = "all_assistant_turns",
    **variables: Any,
) -> EncodedChat:
    """The ids that ``tokenizer.apply_chat_template`` gives, and which of them the assistant has to learn.

    Those are the tokens in the template's ``{% generation %}`` blocks; a template without them is rendered up
    to each assistant turn instead, which has to give a prefix of the whole. Raises
    :class:`~graftwork.errors.DataError` with the reason where there is nothing to train, a role is dropped, or
    the turns cannot be told for certain.
    """
    found = find_template(template, tokenizer)
    rows = plain_messages(messages)
    _require_assistant(rows)
    names = {**special_tokens(tokenizer), "tools": None, "add_generation_prompt": False, **variables}
    text, blocks = render(found, rows, names)
    require_all_roles(found, rows, names, text)
    encoding = encode_text(tokenizer, text)
    spans = _marked(text, blocks)
    if spans is None:
        spans = spans_by_prefixes(found, rows, names, text, lambda part: encode_text(tokenizer, part).ids)
    _require_single_bos(encoding.ids, tokenizer)
    return _encoded(text, encoding, _wanted(spans, train_target))


def check_turns(encoded: EncodedChat, stop_ids: Collection[int]) -> EncodedChat:
    """Raises :class:`~graftwork.errors.DataError` where a trained turn does not end in one of ``stop_ids``.

    Gives the same conversation without labels for the white space that some templates mark after the stop:
    generation ends before it.
    """
    trained = list(encoded.trained)
    for (start, end), last in zip(encoded.turns, encoded.ends, strict=True):
        if encoded.input_ids[last] not in stop_ids:
            raise DataError(
                f"a trained assistant turn (tokens {start} to {end - 1}) ends in the token {encoded.input_ids[last]}, "
                f"which is no stop token ({_listed(stop_ids)}): the model would not learn to stop. Use a chat template "
                "that ends an assistant turn in the tokenizer's end-of-turn token, inside {% generation %}"
            )
        trained[last + 1 : end] = [False] * (end - last - 1)
    return replace(encoded, trained=trained)


def prompt_mismatch(
    messages: Messages, *, tokenizer: Any, template: TemplateSource | str | None = None, **variables: Any
) -> str | None:
    """Why the model will be asked with other tokens than it is trained on, or None where it will not.

    Generation begins after the tokens of the generation prompt; training saw the tokens that the prompt's text has
    in front of an answer. A tokenizer that joins the prompt's end with what follows makes them differ, and the
    model answers something it never learnt to, while every loss looks fine.
    """
    found = find_template(template, tokenizer)
    rows = plain_messages(messages)
    first = next((index for index, row in enumerate(rows) if row["role"] == "assistant"), 0)
    names = {**special_tokens(tokenizer), "tools": None, **variables}
    prompt, _ = render(found, rows[:first], {**names, "add_generation_prompt": True})
    whole, _ = render(found, rows, {**names, "add_generation_prompt": False})
    asked, trained = encode_text(tokenizer, prompt).ids, encode_text(tokenizer, whole).ids[: len(prompt)]
    shared = next((i for i, pair in enumerate(zip(asked, trained, strict=False)) if pair[0] != pair[1]), len(asked))
    if shared == len(asked):
        return None
    return (
        f"the generation prompt of the chat template ends in the tokens {asked[shared:]} when the model is asked, but "
        f"in {trained[shared : shared + 3]}... when it is trained: it would be asked what it never learnt. Use a "
        "template whose prompt ends in a special token, or a tokenizer that does not join the prompt's last characters"
    )


def encode_text(tokenizer: Any, text: str) -> Any:
    """The ``tokenizers.Encoding`` of a rendered text: nothing added, padded or truncated."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(f"{type(tokenizer).__name__} is not a fast tokenizer: chats need one with character offsets")
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    return backend.encode(text, add_special_tokens=False)


def _require_assistant(messages: Sequence[dict[str, Any]]) -> None:
    roles = [str(message["role"]) for message in messages]
    if "assistant" not in roles:
        raise DataError(f"the conversation has no assistant turn to train on, only {', '.join(dict.fromkeys(roles))}")


def _require_single_bos(ids: list[int], tokenizer: Any) -> None:
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise DataError(
            f"the conversation begins with two {tokenizer.bos_token} tokens: the template writes one, "
            "and the first message begins with another; take it out of the data"
        )


def _marked(text: str, blocks: list[tuple[int, str]]) -> list[Span] | None:
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


def _wanted(spans: list[Span], train_target: str) -> list[Span]:
    if train_target == "all_assistant_turns":
        return spans
    if train_target == "final_assistant_turn":
        return spans[-1:]
    raise UsageError(f"train_target: {train_target!r} is not known; use all_assistant_turns or final_assistant_turn")


def _encoded(text: str, encoding: Any, spans: list[Span]) -> EncodedChat:
    starts, ends = zip(*encoding.offsets, strict=True)
    turns = tuple(_tokens(starts, ends, span) for span in spans)
    trained = [False] * len(starts)
    for start, end in turns:
        trained[start:end] = [True] * (end - start)
    closing = ((start, start + len(text[start:end].rstrip())) for start, end in spans)
    return EncodedChat(
        input_ids=encoding.ids,
        trained=trained,
        turns=turns,
        ends=tuple(max(_tokens(starts, ends, span)[1] - 1, 0) for span in closing),
    )


def _tokens(starts: Sequence[int], ends: Sequence[int], span: Span) -> Span:
    """The positions of the tokens that share a character with ``span``; offsets never run backwards."""
    return bisect_right(ends, span[0]), bisect_left(starts, span[1])


def _listed(ids: Collection[int]) -> str:
    return ", ".join(map(str, sorted(ids))) or "none is known"
