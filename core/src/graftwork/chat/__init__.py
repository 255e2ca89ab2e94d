"""Chat templates: found by name, rendered in a sandbox, encoded with the mask of what is trained."""

from __future__ import annotations

from graftwork.chat.encode import (
    EncodedChat,
    TrainTarget,
    check_turns,
    encode_chat,
    encode_conversation,
    encode_prompt,
    prompt_mismatch,
    token_roles,
)
from graftwork.chat.render import render_chat
from graftwork.chat.template import TemplateSource, find_template

__all__ = [
    "EncodedChat",
    "TemplateSource",
    "TrainTarget",
    "check_turns",
    "encode_chat",
    "encode_conversation",
    "encode_prompt",
    "find_template",
    "prompt_mismatch",
    "render_chat",
    "token_roles",
]
