"""Conversations as data: who said what. Torch-free; the dict form is the OpenAI and Oumi one."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Type(StrEnum):
    """What a content item holds."""

    TEXT = "text"
    IMAGE_PATH = "image_path"
    IMAGE_URL = "image_url"
    IMAGE_BINARY = "image_binary"


class ContentItem(BaseModel):
    """One part of a message: a text, or an image by path, URL or bytes (base64 in JSON)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Type
    content: str | None = None
    binary: bytes | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, data: Any) -> Any:
        """OpenAI's spelling of a text part has the text under ``text``."""
        if isinstance(data, dict) and "text" in data and "content" not in data:
            return {("content" if key == "text" else key): value for key, value in data.items()}
        return data


class Message(BaseModel):
    """One turn. ``content`` is a text or a list of parts; a message that calls tools may be without.

    ``tool_calls`` are as OpenAI has them (``{"id": ..., "type": "function", "function": {"name": ..., "arguments":
    ...}}``); ``tool_call_id`` is the call that a tool's message answers, and ``name`` the tool. ``weight`` 0 of an
    assistant's message says that it is not trained.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role
    content: str | list[ContentItem] | None
    id: str | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    weight: Literal[0, 1] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_content(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("tool_calls"):
            return {"content": None, **data}
        return data

    @model_validator(mode="after")
    def _require_content(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("content is null, and there are no tool_calls: give one of them")
        return self

    @field_validator("weight", mode="before")
    @classmethod
    def _require_number(cls, weight: Any) -> Any:
        """``true`` is equal to 1, and is none of OpenAI's weights."""
        if isinstance(weight, bool):
            raise ValueError("weight is 0 or 1")
        return weight

    @model_validator(mode="after")
    def _require_trainable(self) -> Message:
        if self.weight == 1 and self.role is not Role.ASSISTANT:
            raise ValueError(f"weight 1 on a turn of {self.role}: only the assistant's turns are trained; remove it")
        return self

    @property
    def text(self) -> str:
        """The texts of the message, joined; images are left out."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(item.content or "" for item in self.content if item.type is Type.TEXT)


class Conversation(BaseModel):
    """A list of turns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: list[Message]
    conversation_id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data, without the fields that are not set."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Conversation:
        """The inverse of :meth:`to_dict`; raises ``pydantic.ValidationError`` on anything else."""
        return cls.model_validate(data)

    def to_json(self) -> str:
        return self.model_dump_json(exclude_none=True, exclude_defaults=True)

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        return cls.model_validate_json(text)

    def last_message(self, role: Role | None = None) -> Message | None:
        """The last turn, or the last turn of ``role``."""
        found = self.filter_messages(role)
        return found[-1] if found else None

    def first_message(self, role: Role | None = None) -> Message | None:
        """The first turn, or the first turn of ``role``."""
        found = self.filter_messages(role)
        return found[0] if found else None

    def filter_messages(self, role: Role | None = None) -> list[Message]:
        """All turns, or those of ``role``."""
        return [message for message in self.messages if role is None or message.role is role]
