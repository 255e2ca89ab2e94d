"""From a train request to what the loop needs: model, tokenizer, data, optimizer. In this order, every time."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from graftwork.builders import build_tokenizer
from graftwork.builders.family import family_of_params
from graftwork.builders.optimizers import parameter_groups
from graftwork.config.checks import trainers_of
from graftwork.data.holdout import report_shared
from graftwork.data.indexed import IndexedLoader
from graftwork.data.loader import (
    Loader,
    count_steps,
    describe,
    load_held_out,
    load_request,
    load_split,
    schema_of,
)
from graftwork.errors import UsageError
from graftwork.registry import get_registry
from graftwork.runs.memory import resident_bytes
from graftwork.tokenizers import stop_token_ids
from graftwork_native import precision
from graftwork_native.backward_step import BackwardStep
from graftwork_native.dpo import Dpo, prepare_for_pairs
from graftwork_native.evaluation import Prompt, prompts_of
from graftwork_native.memory import lasting
from graftwork_native.model import device_of, load_model
from graftwork_native.objective import CrossEntropy, Objective
from graftwork_native.offload import Offloading
from graftwork_native.params import DpoParams, NativeParams
from graftwork_native.reference import reference_of, rows_ahead
from graftwork_native.spread import Spread, spread
from graftwork_native.trial import plan_forward
from graftwork_native.vocabulary import keeps_gradients, kept_gradients

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from graftwork.config import RunConfig
    from graftwork.training import TrainRequest
    from graftwork_native.forward import Forward
    from graftwork_native.world import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything the loop works with. ``loaded_dtype`` is what the model was in before its float32 masters."""

    model: nn.Module
    forward: Forward
    objective: Spread
    tokenizer: PreTrainedTokenizerFast
    stop_ids: frozenset[int]
    loader: Loader
    validation: IndexedLoader | None
    prompts: list[Prompt]
    optimizer: torch.optim.Optimizer
    total_steps: int
    loaded_dtype: torch.dtype
    facts: dict[str, Any]
    saving: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Where what the backward pass needs is kept on the way forward."""
    backward_step: BackwardStep | None = None


def set_up(request: TrainRequest, world: World) -> Parts:
    """Data first: its mistakes are found before the model is loaded, which takes longest."""
    config, params = request.config, request.params
    assert isinstance(params, NativeParams)
    check_schema(config)
    # A model pretrained on documents, saved with a template that it was never trained on, would pass for a chat model.
    tokenizer = build_tokenizer(config.model, stand_in_template=schema_of(config.data.train) != "text")
    stop_ids = stop_token_ids(tokenizer, family=family_of_params(config.model))
    with world.main_first():
        loader = load_split(load_request(config, config.data.train, tokenizer, stop_ids, world.size))
        validation = load_held_out(config, config.data.validation, tokenizer, stop_ids)
    if isinstance(loader, IndexedLoader) and validation is not None:
        report_shared(loader.datasets, validation.datasets)
    total_steps = count_steps(config, loader)
    before_model = resident_bytes()
    with lasting():
        model, loaded_dtype = load_model(config, request.resume_from)
    forward = plan_forward(model, precision.autocast_dtype(config, device_of(model)), params.layout)
    if isinstance(params, DpoParams):
        forward = prepare_for_pairs(forward, params)
    for split in (loader, validation):
        if isinstance(split, IndexedLoader) and forward.limits:
            forward.limits.check(split.largest_token, split.longest_sample)
    if world.size == 1 and keeps_gradients(config):
        forward = replace(forward, kept=kept_gradients(forward))
    facts = {**facts_of(model, forward), "data_train": describe(loader), "total_steps": total_steps}
    if validation is not None:
        facts["data_validation"] = describe(validation)
    facts["before_model_bytes"] = 0 if forward.device.type == "cuda" else before_model
    objective = spread(objective_of(request, forward, loader, validation, total_steps, world), model, config, world)
    facts["parallel"] = str(objective)
    # After the model may have been cut: the optimizer holds what this process has of it.
    optimizer = (
        get_registry()
        .optimizers[config.training.optimizer]
        .build(parameter_groups(model, config.training.weight_decay), config.training.learning_rate, config.training)
    )
    logger.info(
        "%s; %s; %s", precision.describe(model, forward.autocast_dtype), facts["layout"], f"{total_steps:,} steps"
    )
    return Parts(
        model=model,
        forward=forward,
        objective=objective,
        tokenizer=tokenizer,
        stop_ids=stop_ids,
        loader=loader,
        validation=validation,
        prompts=choose_prompts(config, params, tokenizer, validation),
        optimizer=optimizer,
        total_steps=total_steps,
        loaded_dtype=loaded_dtype,
        facts=facts,
        saving=saving_of(config, model),
        backward_step=backward_step_of(config, optimizer),
    )


def saving_of(config: RunConfig, model: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """Where activations are kept: where they are made, or on the host (``training.activation_offloading``)."""
    if not config.training.activation_offloading:
        return nullcontext
    return partial(Offloading, model)


def backward_step_of(config: RunConfig, optimizer: torch.optim.Optimizer) -> BackwardStep | None:
    """The steps within the backward pass, where they are asked for."""
    return BackwardStep(optimizer) if config.training.optimizer_in_backward else None


def objective_of(
    request: TrainRequest,
    forward: Forward,
    loader: Loader,
    validation: IndexedLoader | None,
    total_steps: int,
    world: World,
) -> Objective:
    """What the trainer minimises."""
    if not isinstance(request.params, DpoParams):
        return CrossEntropy(forward)
    rows = rows_ahead(loader, validation, total_steps)
    return Dpo(forward, reference_of(request, request.params, forward, rows, world), request.params)


def check_schema(config: RunConfig) -> None:
    """The data must be of a kind that the trainer learns from. What rows are is often known from their names before;
    those of a set on the Hub have to be looked at.
    """
    spec = get_registry().trainers[config.training.trainer_type]
    schema = schema_of(config.data.train)
    if schema not in spec.schemas:
        raise UsageError(
            f"training.trainer_type: {spec.name} trains on {' or '.join(spec.schemas)} data, but data.train holds "
            f"{schema}; {trainers_of(schema)}"
        )


def choose_prompts(
    config: RunConfig, params: NativeParams, tokenizer: PreTrainedTokenizerFast, validation: IndexedLoader | None
) -> list[Prompt]:
    """The prompts of the report: those that were asked for, else the first of the validation split."""
    documents = schema_of(config.data.train) == "text"
    if params.sample_prompts:
        return [
            Prompt(text=text, input_ids=encode_prompt(text, tokenizer, documents)) for text in params.sample_prompts
        ]
    if validation is None:
        return []
    return prompts_of(validation.rows(), tokenizer, params.sample_count, documents=documents)


def encode_prompt(text: str, tokenizer: PreTrainedTokenizerFast, documents: bool) -> tuple[int, ...]:
    """A text to go on with, or a question through the chat template."""
    if documents:
        return tuple(tokenizer(text).input_ids)
    from graftwork.chat import encode_prompt as encode_question

    return tuple(encode_question([{"role": "user", "content": text}], tokenizer=tokenizer)[1])


def facts_of(model: nn.Module, forward: Forward) -> dict[str, Any]:
    """What ``run.json`` says of the model."""
    parameters = list(model.parameters())
    return {
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "device": str(forward.device),
        "dtype": precision.describe(model, forward.autocast_dtype),
        "layout": "rows of segments" if forward.layout == "segments" else "padded batches",
    }
