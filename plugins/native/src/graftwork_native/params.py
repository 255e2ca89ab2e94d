"""Options of the native trainers, in ``training.trainer_kwargs``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


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


LossType = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero",
    "apo_down", "discopop",
]  # fmt: skip
SMOOTHED = ("sigmoid", "sigmoid_norm", "robust", "exo_pair")


class DpoParams(NativeParams):
    """Options of ``NATIVE_DPO``, under the names of TRL's ``DPOConfig`` where it has them."""

    beta: float = Field(0.1, gt=0, description="How closely the model is held to the reference; of ipo, its tau.")
    loss_type: LossType | tuple[LossType, ...] = Field(
        "sigmoid", description="The loss of a pair, or several, which are added up."
    )
    loss_weights: tuple[float, ...] | None = Field(
        None, description="With several loss types: how much each counts; default: 1."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="The share of the pairs that may be the wrong way round."
    )
    length_normalized: bool = Field(
        False, description="Log-probabilities are means over an answer's tokens; sigmoid then is TRL's sigmoid_norm."
    )
    reference: Literal["auto", "cached", "adapter"] = Field(
        "auto",
        description="What answers are compared with, the model as training begins: cached computes its "
        "log-probabilities once, before the first step; adapter computes them at every step, with the adapter "
        "switched off. auto is cached.",
    )
    disable_dropout: bool = Field(
        True, description="Train without dropout, so that model and reference differ in their weights only."
    )

    @property
    def loss_types(self) -> tuple[str, ...]:
        """The losses, also where there is one."""
        return (self.loss_type,) if isinstance(self.loss_type, str) else self.loss_type

    @property
    def weights(self) -> tuple[float, ...]:
        """How much each of them counts."""
        return self.loss_weights or (1.0,) * len(self.loss_types)

    @model_validator(mode="after")
    def _fits_together(self) -> DpoParams:
        if len(self.weights) != len(self.loss_types):
            raise ValueError(
                f"loss_weights has {len(self.weights)} numbers for {len(self.loss_types)} loss types; give one for each"
            )
        if self.label_smoothing and not any(name in SMOOTHED for name in self.loss_types):
            raise ValueError(
                f"label_smoothing: {self.label_smoothing} changes nothing in loss_type {', '.join(self.loss_types)}; "
                f"it belongs to {', '.join(SMOOTHED)}"
            )
        if "exo_pair" in self.loss_types and not self.label_smoothing:
            raise ValueError("loss_type exo_pair needs a label_smoothing above 0; its paper has 0.001")
        return self
