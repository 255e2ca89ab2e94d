"""Entry module of the plugin for TRL: declares its trainers and two rewards, imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork import hookimpl
from graftwork.specs import RewardSpec, TrainerSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic import BaseModel

    from graftwork.check.methods import MethodRequest, StepCount
    from graftwork.config import DatasetSplitParams
    from graftwork.data.account import Outcome
    from graftwork.data.encoders import LoadRequest
    from graftwork.data.readers import Row
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


def _refuse(request: MethodRequest) -> None:
    from graftwork_trl.checks import refuse

    refuse(request)


def _doubts(request: MethodRequest, rows: int | None) -> Iterable[str]:
    from graftwork_trl.checks import doubts

    return doubts(request, rows)


def _read_as(name: str) -> Callable[[DatasetSplitParams], DatasetSplitParams]:
    def read_as(split: DatasetSplitParams) -> DatasetSplitParams:
        from graftwork_trl.data import for_method
        from graftwork_trl.methods import METHODS

        return for_method(split, METHODS[name])

    return read_as


def _count_steps(request: MethodRequest, samples: int | None) -> StepCount:
    from graftwork_trl.checks import count_steps

    return count_steps(request, samples)


def _prompts(request: LoadRequest, messages_field: str | None) -> Callable[[Row], Outcome]:
    from graftwork_trl.grpo import read_prompt

    return lambda row: read_prompt(row, messages_field, request)[0]


def _options(name: str) -> Callable[[], type[BaseModel]]:
    def load() -> type[BaseModel]:
        from graftwork_trl import params

        model: type[BaseModel] = getattr(params, name)
        return model

    return load


def _trainer(name: str, options: str, schemas: tuple[Schema, ...], *aliases: str, drawn: bool = False) -> TrainerSpec:
    """``drawn``: the answers are not those of the data."""
    return TrainerSpec(
        name=name,
        aliases=aliases,
        schemas=schemas,
        build=_build,
        params=_options(options),
        ignored_fields=IGNORED,
        refuse=_refuse,
        read_as=_read_as(name),
        doubts=_doubts,
        count_steps=_count_steps if drawn else None,
        prompts=_prompts if drawn else None,
    )


@hookimpl
def graftwork_trainers() -> list[TrainerSpec]:
    return [
        _trainer("TRL_SFT", "SftOptions", ("text", "chat")),
        _trainer("TRL_DPO", "DpoOptions", ("preference",)),
        _trainer("TRL_KTO", "KtoOptions", ("chat", "preference")),
        _trainer("TRL_RM", "RewardOptions", ("preference",), "TRL_REWARD"),
        _trainer("TRL_GRPO", "GrpoOptions", ("chat",), drawn=True),
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
