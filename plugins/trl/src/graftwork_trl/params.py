"""Options of TRL's methods, in ``training.trainer_kwargs``: those that are no core field, under TRL's names.

The defaults are those of TRL's configuration classes, which a test compares; only ``router_aux_loss_coef`` is not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from graftwork.errors import GraftworkError
from graftwork.registry import get_registry


class Options(BaseModel):
    """What every method takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def for_trl(self) -> dict[str, Any]:
        """The options as keywords of TRL's configuration class."""
        return self.model_dump()


class WithRouter(Options):
    """Methods in which TRL adds the auxiliary loss of a mixture of experts, by itself unless told otherwise."""

    router_aux_loss_coef: float | None = Field(
        0.0,
        ge=0,
        description="Weight of the loss that balances a mixture of experts; 0: none, as in the native trainers; null: "
        "the weight that the model's configuration names.",
    )


class SftOptions(WithRouter):
    """Supervised fine-tuning."""

    loss_type: Literal["nll", "dft"] = Field("nll", description="nll, or dynamic fine-tuning's weighted loss.")
    neftune_noise_alpha: float | None = Field(None, gt=0, description="Noise on the embeddings (NEFTune); null: none.")


class WithoutDropout(Options):
    """Methods that TRL trains without dropout unless told otherwise."""

    disable_dropout: bool = Field(True, description="Train without dropout.")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class DpoOptions(WithRouter, WithoutDropout):
    """Direct preference optimization."""

    beta: float = Field(0.1, gt=0, description="How near the model stays to the reference.")
    loss_type: Annotated[list[str], BeforeValidator(_listed)] = Field(
        ["sigmoid"], min_length=1, description="sigmoid, ipo, hinge, robust, sft, ...; several are added up."
    )
    loss_weights: list[float] | None = Field(None, description="Weight of each loss_type; null: 1 each.")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of pairs that may be the wrong way round.")
    ld_alpha: float | None = Field(None, ge=0, le=1, description="Weight of what makes the longer answer longer.")
    f_divergence_type: str = Field("reverse_kl", description="reverse_kl, forward_kl, js_divergence, ...")
    use_weighting: bool = Field(False, description="Weigh each pair as WPO does.")


class KtoOptions(WithRouter, WithoutDropout):
    """Kahneman-Tversky optimization: answers marked good or bad, one by one."""

    beta: float = Field(0.1, gt=0, description="How near the model stays to the reference.")
    loss_type: Literal["kto", "apo_zero_unpaired"] = Field("kto", description="The loss.")
    desirable_weight: float = Field(1.0, ge=0, description="Weight of good answers.")
    undesirable_weight: float = Field(1.0, ge=0, description="Weight of bad answers.")


class RewardOptions(WithoutDropout):
    """A reward model: one number for a conversation."""

    center_rewards_coefficient: float | None = Field(None, ge=0, description="Pulls the mean reward to 0; null: not.")


class OrpoOptions(WithoutDropout):
    """Odds ratio preference optimization, which needs no reference."""

    beta: float = Field(0.1, ge=0, description="Weight of the odds ratio beside the likelihood.")


class GrpoOptions(WithRouter):
    """Group relative policy optimization: answers are drawn, scored by reward functions and compared."""

    reward_functions: list[str] = Field(
        min_length=1, description="Names of reward functions, as `graft plugins` lists them."
    )
    reward_weights: list[float] | None = Field(None, description="Weight of each reward; null: 1 each.")
    num_generations: int = Field(8, ge=2, description="Answers drawn for a prompt, which are compared.")
    max_completion_length: int = Field(512, ge=1, description="Longest answer in tokens.")
    temperature: float = Field(1.0, gt=0, description="Of the sampling.")
    top_p: float = Field(1.0, gt=0, le=1, description="Of the sampling.")
    top_k: int = Field(0, ge=0, description="Of the sampling; 0: off.")
    min_p: float | None = Field(None, ge=0, le=1, description="Of the sampling; null: off.")
    repetition_penalty: float = Field(1.0, gt=0, description="Of the sampling.")
    beta: float = Field(0.0, ge=0, description="Weight of the KL term; 0 needs no reference model.")
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = Field("dapo", description="How the loss is averaged.")
    epsilon: float = Field(0.2, gt=0, description="Clipping of the ratio.")
    epsilon_high: float | None = Field(None, gt=0, description="Its upper side; null: as epsilon.")
    scale_rewards: Literal["group", "batch", "none"] = Field("group", description="What rewards are divided by.")
    importance_sampling_level: Literal["token", "sequence"] = Field("token", description="sequence is GSPO.")
    mask_truncated_completions: bool = Field(False, description="Leave answers that did not end out of the loss.")
    disable_dropout: bool = Field(False, description="Train without dropout.")

    @field_validator("reward_functions")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            try:
                get_registry().reward_functions[name]
            except GraftworkError as error:
                raise ValueError(str(error)) from None
        return names

    def for_trl(self) -> dict[str, Any]:
        return self.model_dump(exclude={"reward_functions"})
