"""Entry module of the plugin for TRL: declares its trainers and two rewards, imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork import hookimpl
from graftwork.specs import RewardSpec, TrainerSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from graftwork.specs import Schema
    from graftwork.training import Trainer, TrainRequest

IGNORED = (
    "training.compile",
    "training.nonfinite_loss",
    "training.keep_best",
    "training.optimizer_in_backward",
    "training.activation_offloading",
    "fsdp.enable_fsdp",
)
"""What the native trainers have. TRL replaces the model's forward by its own, which is not the one that was compiled,
and accelerate takes FSDP for DDP on a CPU without a word.
"""


def _build(request: TrainRequest) -> Trainer:
    from graftwork_trl.trainer import TrlTrainer

    return TrlTrainer(request)


def _options(name: str) -> Callable[[], type[BaseModel]]:
    def load() -> type[BaseModel]:
        from graftwork_trl import params

        model: type[BaseModel] = getattr(params, name)
        return model

    return load


def _trainer(
    name: str, options: str, schemas: tuple[Schema, ...], *aliases: str, ignored: tuple[str, ...] = ()
) -> TrainerSpec:
    return TrainerSpec(
        name=name,
        aliases=aliases,
        schemas=schemas,
        build=_build,
        params=_options(options),
        ignored_fields=(*IGNORED, *ignored),
    )


@hookimpl
def graftwork_trainers() -> list[TrainerSpec]:
    return [
        _trainer("TRL_SFT", "SftOptions", ("text", "chat")),
        _trainer("TRL_DPO", "DpoOptions", ("preference",)),
        _trainer("TRL_KTO", "KtoOptions", ("chat", "preference")),
        _trainer("TRL_RM", "RewardOptions", ("preference",), "TRL_REWARD"),
        _trainer("TRL_GRPO", "GrpoOptions", ("chat",)),
        _trainer("TRL_ORPO", "OrpoOptions", ("preference",)),
    ]


def _answer_match() -> Callable[..., Any]:
    from graftwork_trl.rewards import answer_match

    return answer_match


def _length_penalty() -> Callable[..., Any]:
    from graftwork_trl.rewards import length_penalty

    return length_penalty


@hookimpl
def graftwork_reward_functions() -> list[RewardSpec]:
    return [
        RewardSpec(name="answer_match", load=_answer_match),
        RewardSpec(name="length_penalty", load=_length_penalty),
    ]
