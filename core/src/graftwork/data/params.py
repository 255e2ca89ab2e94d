"""Options of the core's own readers (``dataset_kwargs``). Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from graftwork.config.base import Params


class FileParams(Params):
    """Options of every reader of files."""

    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="What stands between the cells of a CSV file; default: a comma."
    )
    judged: bool = Field(
        False, description="Whether a row has to say with label: true or false if its answer is a good one (for KTO)."
    )


class TextDatasetParams(FileParams):
    """Options of the reader ``text``."""

    text_field: str = Field("text", min_length=1, description="The key of a JSON row that holds the text.")
    separator: str | None = Field(
        None, description='The line that stands between documents ("": an empty one); default: a file is one document.'
    )


class ChatDatasetParams(FileParams):
    """Options of the reader ``text_sft``."""

    messages_field: str | None = Field(
        None,
        min_length=1,
        description="The key of a JSON row that holds the turns; default: messages, conversations and the like.",
    )


class ImageDatasetParams(ChatDatasetParams):
    """Options of the reader ``vl_sft_jsonl``."""

    processor_name: str | None = Field(None, min_length=1, description="Whose image processor the trainer is to use.")


class HubDatasetParams(FileParams):
    """Options of the reader of Hugging Face datasets, on disk or on the Hub."""

    ALIASES: ClassVar[Mapping[str, str]] = {"schema": "rows_are"}

    rows_are: Literal["text", "chat", "preference", "image-chat"] | None = Field(
        None, description="What the rows are; default: told from their fields."
    )
    text_field: str = Field("text", min_length=1, description="The key of a row that holds its text.")
    messages_field: str | None = Field(
        None,
        min_length=1,
        description="The key of a row that holds its turns; default: messages, conversations and the like.",
    )
    separator: str | None = Field(
        None,
        description='The line that stands between the documents of a text file ("": an empty one); default: '
        "each line is one.",
    )
