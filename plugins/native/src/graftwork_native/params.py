"""Options of the native trainers, in ``training.trainer_kwargs``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class NativeParams(BaseModel):
    """What only the native trainers have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Literal["auto", "segments", "padded"] = Field(
        "auto", description="Samples side by side in one row of segments, or padded; auto proves the first, else pads."
    )
    sample_prompts: tuple[str, ...] = Field(
        (), description="Prompts that are completed before, during and after training, for the report."
    )
    sample_count: int = Field(
        3, ge=0, description="Without sample_prompts: so many prompts are taken from the validation data."
    )
    sample_max_new_tokens: int = Field(64, ge=1, description="Length of a completion in the report.")
