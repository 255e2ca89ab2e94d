"""Words on a chat template that does not fit its tokenizer, before data are read and a model is loaded."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from graftwork.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from graftwork.chat.template import TemplateSource


def missing_stop(template: TemplateSource, folder: Path, added: Collection[str] = ()) -> str | None:
    """Why the tokenizer in ``folder``, with the tokens ``added`` to it, cannot end a turn of ``template``, as far as
    ``tokenizer.json`` alone tells; None where it can, and where there is no such file.
    """
    if not template.stop or not (folder / "tokenizer.json").is_file():
        return None
    tokens = {*_tokens(folder), *added}
    if not tokens.isdisjoint(template.stop):
        return None
    written = [text for text in _controls(template) if text not in tokens]
    return (
        f"chat template {template.label} ends a turn in {' or '.join(template.stop)}, and the tokenizer in {folder} "
        f"has no such token: the model would not learn to stop. Add what it writes (model.added_tokens: "
        f"{json.dumps(written)}), or use a template that ends a turn in a token that is there"
        f"{_fitting(tokens)}"
    )


def _controls(template: TemplateSource) -> list[str]:
    """The control tokens that stand in the template, as ``<|im_start|>`` does, and those that end a turn."""
    return list(dict.fromkeys([*re.findall(r"<\|\w+\|>", template.source), *template.stop]))


def _fitting(tokens: Collection[str]) -> str:
    """The registered templates that end a turn in one of ``tokens``, and the one that does so in any eos_token."""
    from graftwork.registry import get_registry

    templates = get_registry().chat_templates
    fitting = [name for name in sorted(templates) if set(templates[name].stop) & set(tokens)]
    return f": {', '.join([*fitting, 'default'][:4])} (graft templates ls)"


def require_stops(tokenizer: Any, stops: Collection[int], variables: Mapping[str, Any]) -> None:
    """Raises :class:`UsageError` where the tokenizer's chat template never ends an answer in one of ``stops``.

    Tried on the built-in questions; a template that refuses them may still take what the data hold.
    """
    from graftwork.chat.encode import check_turns, encode_conversation
    from graftwork.chat.probes import PROBES
    from graftwork.chat.template import find_template

    for probe in PROBES[:2]:
        try:
            encoded = encode_conversation(probe.messages, tokenizer=tokenizer, **variables)
        except DataError:
            continue
        try:
            check_turns(encoded, stops, tokenizer)
        except DataError as error:
            label = find_template(None, tokenizer).label
            raise UsageError(
                f"chat template {label} does not fit the tokenizer: in {probe.name}, {error}. `graft templates check` "
                "shows every token"
            ) from None


def _tokens(folder: Path) -> Iterator[str]:
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    yield from (token["content"] for token in document.get("added_tokens") or ())
    vocabulary = (document.get("model") or {}).get("vocab") or ()
    yield from vocabulary if isinstance(vocabulary, dict) else (entry[0] for entry in vocabulary)
    config = folder / "tokenizer_config.json"
    added = json.loads(config.read_text("utf-8")).get("added_tokens_decoder") if config.is_file() else None
    yield from (token["content"] for token in (added or {}).values())
