"""What one run knows beside what TRL knows: its folder, its data, where it stands."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from graftwork.errors import RunError
from graftwork.runs.kept import Best, chosen_metric, is_gain, ranked, without_lost
from graftwork.runs.memory import peak_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch
    from transformers import PreTrainedTokenizerFast

    from graftwork.config import RunConfig
    from graftwork.data.batch import Row
    from graftwork.runs.run import Run
    from graftwork_trl.batches import Batch
    from graftwork_trl.data import Data

STATE_FILE = "graftwork_state.json"


@dataclass(slots=True)
class State:
    """Where a run stands, as far as transformers' ``trainer_state.json`` does not say it; ``best`` is the best
    evaluation, as (step, metric).

    ``tokens_of_trl`` is TRL's own count (its metric ``num_tokens``), which counts a pair's prompt twice.
    """

    tokens: int = 0
    tokens_of_trl: float = 0
    best: Best = field(default_factory=list)
    evaluations_without_gain: int = 0
    loader: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Session:
    """One run. ``make`` makes a batch of a row; ``data`` is None where TRL draws the samples itself (GRPO), and then
    ``steps_in_epoch`` says how long a pass over the prompts is.

    ``rows`` are those of the step that is being taken, on all processes; ``stopped_by`` is a signal that came.
    """

    run: Run
    config: RunConfig
    tokenizer: PreTrainedTokenizerFast
    total_steps: int
    data: Data | None = None
    make: Callable[[Row], Batch] | None = None
    steps_in_epoch: int = 1
    evaluates: bool = False
    state: State = field(default_factory=State)
    last: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    began: float = 0.0
    seconds: float = 0.0
    new_epoch: bool = False
    saved_step: int | None = None
    stopped_by: int | None = None

    def end_step(self, step: int) -> None:
        """After the optimizer has stepped."""
        self.seconds = time.perf_counter() - self.began
        self.state.tokens += sum(row.num_tokens for row in self.rows)
        if self.data is None:
            self.new_epoch = step % self.steps_in_epoch == 0

    def speed(self, device: torch.device) -> dict[str, float]:
        """What is measured of a step beside TRL's metrics."""
        tokens = sum(row.num_tokens for row in self.rows)
        counted = {
            "tokens": tokens,
            "supervised_tokens": sum(row.num_labels for row in self.rows),
            "tokens_per_s": round(tokens / self.seconds, 1),
        }
        return {
            **(counted if self.rows else {}),
            "step_time_s": round(self.seconds, 4),
            "peak_memory_bytes": peak_memory_bytes(device),
        }

    def compare(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Keeps count of the best evaluation; says whether this is it. An equal one is not.

        Raises :class:`UsageError` where ``metric_for_best_model`` is not measured.
        """
        state, training = self.state, self.config.training
        metric = chosen_metric(training, metrics)
        gained = is_gain(training, state.best, metric)
        state.evaluations_without_gain = 0 if gained else state.evaluations_without_gain + 1
        state.best = ranked(training, state.best, step, metric)
        return (step, metric) in state.best

    def has_stalled(self) -> bool:
        """Whether the evaluations have brought no gain for long enough."""
        patience = self.config.training.early_stopping_patience
        return patience is not None and self.state.evaluations_without_gain >= patience

    def checkpoint(self, step: int | None) -> Path:
        """The folder of a step's checkpoint."""
        return self.run.folder / "checkpoints" / f"step-{step}"

    def save(self, folder: Path) -> None:
        """Writes :class:`State` into a checkpoint."""
        if self.data is not None:
            self.state.loader = self.data.train.state_dict()
        (folder / STATE_FILE).write_text(json.dumps(asdict(self.state)), encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """The inverse of :meth:`save`. Raises :class:`RunError` where the folder is no checkpoint of a TRL trainer."""
        try:
            self.state = State(**json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
            self.state.best = [(step, metric) for step, metric in self.state.best]
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"{folder} is not a checkpoint that a TRL trainer can go on from: {type(error).__name__}: {error}; "
                "delete or move it, and --resume goes on from the one before it"
            ) from error
        if self.config.training.load_best_model_at_end:
            self.state.best = without_lost(self.run, self.state.best)
        if self.data is not None:
            self.data.train.load_state_dict(self.state.loader)
