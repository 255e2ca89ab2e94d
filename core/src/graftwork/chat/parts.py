"""Tokens of a template that is encoded in parts: what each ``{{ }}`` gave, on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.chat.vocabulary import ListedTokens, piece_encoders
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftwork.chat.limits import Piece
    from graftwork.chat.template import TemplateSource


def encode_parts(
    template: TemplateSource, pieces: Sequence[Piece], text: str, tokenizer: Any, *, allow_special: bool
) -> ListedTokens:
    """The tokens of ``text``, which is ``pieces`` joined; each has the characters of its whole piece.

    A constant or a special token of the tokenizer that is a control token's text is that token. Nothing else is,
    whatever it says, unless ``allow_special``; so a message cannot bring one. White space of the file stands for
    the space that a tokenizer writes before a text, and is no token.
    """
    if "".join(piece.text for piece in pieces) != text:
        raise _not_in_parts(template, "a macro, a filter or a {% set %} block holds some of its output back")
    encode, control_id = piece_encoders(tokenizer)
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    end = 0
    for piece in pieces:
        start, end = end, end + len(piece.text)
        if piece.kind == "literal":
            if piece.text.strip():
                raise _not_in_parts(template, f"{piece.text.strip()[:40]!r} stands outside of {{{{ }}}}")
            continue
        control = control_id(piece.text) if piece.kind == "markup" or allow_special else None
        of_piece = encode(piece.text) if control is None else [control]
        ids.extend(of_piece)
        places.extend([(start, end)] * len(of_piece))
    return ListedTokens(ids, [start for start, _ in places], [end for _, end in places])


def _not_in_parts(template: TemplateSource, reason: str) -> UsageError:
    return UsageError(
        f"chat template {template.label} is encoded in parts, each {{{{ }}}} on its own, and {reason}; write every "
        "part of the text with a {{ }} of its own"
    )
