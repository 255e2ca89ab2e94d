"""``data``: which rows, how they are mixed, packed and cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from graftwork.config.base import FilePath, Neutral, Params


def _rows_or_share(value: float) -> float:
    """A number of rows is whole."""
    if value >= 1 and value != int(value):
        raise ValueError("neither a whole number of rows nor a share below 1")
    return value


RejectedRows = Annotated[int | float, Field(ge=0), AfterValidator(_rows_or_share)]


class DatasetParams(Params):
    """One dataset of a split."""

    ALIASES: ClassVar[Mapping[str, str]] = {"streaming": "stream"}

    dataset_name: str = Field(min_length=1, description="Name of the reader: text, text_sft, or a plugin's.")
    dataset_path: FilePath | None = Field(None, description="File or folder, relative to the working directory.")
    subset: str | None = Field(None, description="Part of a dataset that has several.")
    split: str = Field("train", description="Split of a dataset that has several.")
    dataset_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options of the reader.")
    sample_count: int | None = Field(None, ge=0, description="Use this many rows; more than there are repeats them.")
    mixture_proportion: float | None = Field(
        None, ge=0, le=1, description="Share of this dataset in the split; for all or none, with sum 1."
    )
    shuffle: bool = Field(False, description="Shuffle the rows.")
    seed: int | None = Field(None, description="Seed of the shuffle; default: the split's or the run's.")
    shuffle_buffer_size: int = Field(1000, ge=1, description="Rows held for shuffling while streaming.")
    stream: bool | None = Field(None, description="Read rows as they are needed; default: the split's.")
    trust_remote_code: Annotated[
        Any, Neutral(False, None, instead="remove it: no dataset brings code that is run here")
    ] = Field(False, description="Oumi's; only false.")
    transform_num_workers: Annotated[
        Any, Neutral(None, "auto", instead="remove it: rows are prepared by the trainer")
    ] = Field(None, description="Oumi's; only null or auto.")


class DatasetSplitParams(Params):
    """The datasets of one split, and how samples are made from their rows."""

    ALIASES: ClassVar[Mapping[str, str]] = {"streaming": "stream"}

    datasets: list[DatasetParams] = Field(default_factory=list, description="What the split is made of.")
    collator_name: str | None = Field(None, description="How samples become a batch; default: the trainer's.")
    collator_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options of the collator.")
    pack: bool = Field(False, description="Put several samples into one sequence; none sees another.")
    stream: bool = Field(False, description="Read rows as they are needed instead of all at first.")
    max_length: int | None = Field(None, gt=0, description="Longest sample in tokens; default: the model's.")
    over_long: Literal["error", "drop", "truncate"] = Field("error", description="What to do with a longer sample.")
    max_rejected: RejectedRows = Field(
        0, description="Rows that may be left out as unusable: a number of them, or below 1 a share of those read."
    )
    train_target: Literal["all_assistant_turns", "final_assistant_turn"] = Field(
        "all_assistant_turns", description="Which turns of a conversation are trained."
    )
    mixture_strategy: Literal["first_exhausted", "all_exhausted"] = Field(
        "first_exhausted", description="When a mixture with proportions ends."
    )
    seed: int | None = Field(None, description="Seed of the mixture; default: the run's.")
    target_col: Annotated[
        Any, Neutral(None, instead="name the column in the dataset's dataset_kwargs (text_field)")
    ] = Field(None, description="Oumi's; only null.")
    use_async_dataset: Annotated[Any, Neutral(False, None, instead="remove it, or use stream")] = Field(
        False, description="Oumi's; only false."
    )
    use_torchdata: Annotated[Any, Neutral(None, False, instead="remove it")] = Field(
        None, description="Oumi's; only null or false."
    )


class DataParams(Params):
    """The three splits."""

    train: DatasetSplitParams = Field(default_factory=DatasetSplitParams, description="What is trained on.")
    validation: DatasetSplitParams = Field(
        default_factory=DatasetSplitParams, description="What eval_loss is measured on during the run."
    )
    test: DatasetSplitParams = Field(default_factory=DatasetSplitParams, description="Held out to the end.")
    special_tokens_in_content: Literal["error", "as_text", "allow"] = Field(
        "error", description="What becomes of a control token in a message: refused, plain text, or a control token."
    )

    def splits(self) -> dict[str, DatasetSplitParams]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
