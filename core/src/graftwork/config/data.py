"""``data``: which rows, how they are mixed, packed and cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

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
    holdout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the rows, told by what they say, kept for validation; see validation_fraction.",
    )
    holdout_part: Literal["train", "validation"] = Field(
        "train", description="With holdout: the rows that are trained on, or those that are kept for validation."
    )
    holdout_seed: int = Field(
        0, ge=-(2**63), lt=2**63, description="With holdout: another number keeps other rows; see validation_seed."
    )
    trust_remote_code: Annotated[
        Any, Neutral(False, None, instead="remove it: no dataset brings code that is run here")
    ] = Field(False, description="Oumi's; only false.")
    transform_num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] | None = Field(
        None, description="Processes that prepare the rows; default (auto): one for each core where rows are many."
    )


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
    validation_fraction: float | None = Field(
        None, gt=0, lt=1, description="Hold out this share of the training rows; identical ones stay on one side."
    )
    validation_seed: int = Field(
        0, ge=-(2**63), lt=2**63, description="With validation_fraction: another number holds out other rows."
    )
    special_tokens_in_content: Literal["error", "as_text", "allow"] = Field(
        "error", description="What becomes of a control token in a message: refused, plain text, or a control token."
    )

    @model_validator(mode="after")
    def _hold_out(self) -> DataParams:
        """``validation_fraction`` in the terms of the datasets. What a resolved configuration says stays as it is."""
        parts = {dataset.holdout_part for dataset in self.validation.datasets}
        if self.validation_fraction and parts <= {"validation"}:
            own = {name: getattr(self.validation, name) for name in self.validation.model_fields_set}
            held_out = {**own, "stream": False, "datasets": self._parts("validation")}
            self.__dict__["validation"] = self.train.model_copy(update=held_out)
            self.__dict__["train"] = self.train.model_copy(update={"datasets": self._parts("train")})
            self.model_fields_set.update(("train", "validation"))
        return self

    def _parts(self, part: str) -> list[DatasetParams]:
        changes: dict[str, Any] = {
            "holdout": self.validation_fraction,
            "holdout_part": part,
            "holdout_seed": self.validation_seed,
        }
        if part == "validation":
            # All of them, once, in their order
            changes |= {"sample_count": None, "mixture_proportion": None, "shuffle": False, "stream": False}
        return [dataset.model_copy(update=changes) for dataset in self.train.datasets]

    def splits(self) -> dict[str, DatasetSplitParams]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
