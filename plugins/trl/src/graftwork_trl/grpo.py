"""GRPO: prompts out of chat rows, rewards out of the registry."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from graftwork.chat import encode_prompt
from graftwork.data.account import Account, Outcome
from graftwork.data.conversations import to_conversation, tools_of
from graftwork.data.encoders import load_request
from graftwork.data.order import epoch_order
from graftwork.data.samples import Sample
from graftwork.errors import DataError, RunError, UsageError
from graftwork.messages import Role
from graftwork.registry import get_registry
from graftwork_trl.data import for_method, source_rows
from graftwork_trl.loops import Recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerFast

    from graftwork.config import DatasetParams, DatasetSplitParams, RunConfig, TrainingParams
    from graftwork.data.encoders import LoadRequest
    from graftwork.data.readers import Row
    from graftwork_trl.methods import Method
    from graftwork_trl.params import GrpoOptions

PLAIN = (str, int, float, bool)
Key = tuple[tuple[str, str], ...]


class Prompts:
    """The prompts of a split: rows for TRL, and the ids of each, by our template."""

    def __init__(
        self, config: RunConfig, split: DatasetSplitParams, method: Method, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self.config, self.split = config, for_method(split, method)
        self.request = load_request(config, self.split, tokenizer, frozenset())
        self.ids: dict[Key, list[int]] = {}
        self.rows: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        require_held(split, method)
        self.accounts: list[Account] = []
        for params in self.split.datasets:
            before = len(self.rows)
            self._read(params)
            self.sizes.append(len(self.rows) - before)

    def _read(self, params: DatasetParams) -> None:
        """The rows of one dataset, each counted. Raises :class:`DataError` where too many are rejected."""
        account = Account(params.dataset_path or params.dataset_name, self.split.max_rejected)
        self.accounts.append(account)
        for row, field in source_rows(self.split.model_copy(update={"datasets": [params]})):
            outcome, prompt = read_prompt(row, field, self.request)
            if prompt is not None:
                self.ids[key_of(prompt.turns)] = prompt.ids
                self.rows.append(prompt.row)
            account.add(outcome)
            account.judge(complete=False)
        account.close()

    def facts(self) -> dict[str, Any]:
        """For run.json: how many prompts there are, and what became of each dataset's rows."""
        return {"prompts": len(self.rows), "datasets": [account.to_plain() for account in self.accounts]}

    def dataset(self, needed: int | None = None) -> Any:
        """``needed`` prompts in the order of a run, epoch after epoch; without it each prompt once."""
        from datasets import Dataset
        from pyarrow import ArrowException  # type: ignore[import-untyped]

        shared = set.intersection(*(set(row) for row in self.rows))
        try:
            whole = Dataset.from_list([{name: row[name] for name in sorted(shared)} for row in self.rows])
        except (ArrowException, TypeError) as error:
            raise DataError(f"data: a field has values of different kinds in different rows: {error}") from error
        return whole if needed is None else whole.select(self.order(needed))

    def order(self, needed: int) -> list[int]:
        """The numbers of the rows, epoch after epoch."""
        epochs = chain.from_iterable(map(self.order_of_epoch, count()))
        return list(islice(epochs, needed))

    def order_of_epoch(self, epoch: int = 0) -> list[int]:
        """The numbers of the rows, as the core orders and mixes samples."""
        starts = [sum(self.sizes[:number]) for number in range(len(self.sizes))]
        seed = self.config.training.seed if self.split.seed is None else self.split.seed
        picks = epoch_order(self.sizes, self.split, seed, epoch)
        if not picks:
            raise DataError("data.train: sample_count or mixture_proportion leaves no row; change them")
        return [starts[number] + index for number, index in picks]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row for TRL: ``prompt``, ``answer`` (the last answer in the data) and the row's own plain fields; the prompt
    alone, and its ids.
    """

    row: dict[str, Any]
    turns: list[dict[str, str]]
    ids: list[int]


def read_prompt(row: Row, messages_field: str | None, request: LoadRequest) -> tuple[Outcome, Prompt | None]:
    """What becomes of a row, and the prompt of one that can be used."""
    try:
        prompt = to_prompt(row, messages_field, request)
        size = f"the prompt has {len(prompt.ids)} tokens, but may have {request.max_length}"
        too_long = len(prompt.ids) > request.max_length
        if too_long and request.split.over_long != "drop":
            raise DataError(f"{size}; raise max_length, or set over_long: drop")
    except DataError as error:
        return Outcome(row.where, None, "rejected", str(error).removeprefix(f"{row.where}: ")), None
    if too_long:
        return Outcome(row.where, None, "dropped", f"too long: {size}"), None
    ids = np.asarray(prompt.ids, np.int32)
    return Outcome(row.where, Sample(ids, np.zeros(len(ids), np.bool_), row.where)), prompt


def to_prompt(row: Row, messages_field: str | None, request: LoadRequest) -> Prompt:
    """The row up to its last answer. Raises :class:`DataError` where nothing is asked, or not in plain text."""
    messages = to_conversation(row, messages_field).messages
    if any(not isinstance(message.content, str) for message in messages):
        raise DataError(f"{row.where}: prompts and answers for TRL_GRPO are messages of plain text; mend the row")
    turns = [{"role": str(message.role.value), "content": str(message.content)} for message in messages]
    prompt, answer = (turns[:-1], turns[-1]["content"]) if messages[-1].role is Role.ASSISTANT else (turns, "")
    if not prompt:
        raise DataError(f"{row.where}: there is an answer, but nothing is asked; remove the row")
    plain = {name: value for name, value in row.data.items() if isinstance(value, PLAIN)}
    return Prompt({**plain, "prompt": prompt, "answer": answer}, prompt, encoded(row, prompt, request))


def encoded(row: Row, prompt: list[dict[str, str]], request: LoadRequest) -> list[int]:
    """The ids of a prompt, up to where its answer begins."""
    try:
        _, ids = encode_prompt(
            prompt,
            tokenizer=request.tokenizer,
            tools=tools_of(row),
            special_tokens_in_content=request.special_tokens_in_content,
            **request.template_variables,
        )
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None
    return ids


def key_of(prompt: Sequence[dict[str, str]]) -> Key:
    """A prompt as something to look up by."""
    return tuple((message["role"], message["content"]) for message in prompt)


class Grpo(Recorded):
    """TRL's GRPO trainer with our prompts' ids; how often it generates, and on what, is TRL's."""

    prompts: Prompts

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """TRL would render the template a second time, by other rules."""
        return [list(self.prompts.ids[key_of(prompt)]) for prompt in prompts], None, {}


def require_held(split: DatasetSplitParams, method: Method) -> None:
    """Raises :class:`UsageError` for prompts that are streamed."""
    if any(params.stream if params.stream is not None else split.stream for params in split.datasets):
        raise UsageError(f"data.*.stream: {method.name} reads its prompts before the first step; set stream: false")


def prompts_per_step(config: RunConfig, options: GrpoOptions, processes: int) -> int:
    """How many prompts a step draws answers to. Raises :class:`UsageError` where they are not whole."""
    training = config.training
    answers = training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
    if answers % options.num_generations:
        raise UsageError(
            f"training.trainer_kwargs.num_generations: {options.num_generations} answers to each prompt do not go "
            f"evenly into the {answers} of a step (per_device_train_batch_size x gradient_accumulation_steps x "
            f"{processes} process{'es' if processes > 1 else ''}); change one of them"
        )
    return answers // options.num_generations


def steps_of_run(training: TrainingParams, at_once: int, prompts: int) -> tuple[int, int]:
    """Steps of an epoch of so many prompts, ``at_once`` in each, and of the run."""
    epoch = max(1, prompts // at_once)
    return epoch, training.max_steps if training.max_steps > 0 else max(1, round(training.num_train_epochs * epoch))


def rewards_of(options: GrpoOptions) -> list[Callable[..., Any]]:
    """The reward functions that the options name. Raises where a name is nobody's or does not load."""
    require_weights(options)
    return [reward_function(name) for name in options.reward_functions]


def require_weights(options: GrpoOptions) -> None:
    """Raises :class:`UsageError` where there is not a weight for each reward."""
    weights = options.reward_weights
    if weights is not None and len(weights) != len(options.reward_functions):
        raise UsageError(
            f"training.trainer_kwargs.reward_weights: {len(weights)} weights for {len(options.reward_functions)} "
            "reward_functions; give one for each"
        )


def reward_function(name: str) -> Callable[..., Any]:
    """A registered reward as TRL calls it, under its registered name in the metrics."""
    spec = get_registry().reward_functions[name]
    function = spec.load()

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        try:
            return list(function(prompts=prompts, completions=completions, **columns))
        except Exception as error:
            known = ", ".join(sorted(columns))
            raise RunError(
                f"the reward function {spec.name} failed: {type(error).__name__}: {error}; the columns it was given: "
                f"{known}"
            ) from error

    reward.__name__ = spec.name
    return reward
