"""The training loop: rows in, a model out. Pretraining and fine-tuning differ only in their data.

The loss of an optimizer step is the sum of the cross-entropy over all its labels divided by their number, over
every row of the step: how the step is cut into rows changes nothing.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from graftwork.errors import RunError
from graftwork.registry import get_registry
from graftwork.runs.run import read_lines
from graftwork.training import TrainRequest, TrainResult
from graftwork_native.checkpoint import (
    TrainerState,
    load_state,
    remove_old,
    restore,
    save_checkpoint,
    save_model,
    whole_folder,
)
from graftwork_native.evaluation import complete, evaluate
from graftwork_native.interrupt import Interrupt
from graftwork_native.memory import keep_freed_memory, peak_memory_bytes
from graftwork_native.model import load_model
from graftwork_native.params import NativeParams
from graftwork_native.schedule import learning_rate
from graftwork_native.setup import set_up

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from graftwork.data.batch import Row
    from graftwork.runs.run import Run

logger = logging.getLogger(__name__)

CLIP_EPSILON = 1e-6
"""What PyTorch adds to the norm before it divides by it."""


def build(request: TrainRequest) -> NativeTrainer:
    """The trainer of a request; the heavy part begins with its ``train``."""
    return NativeTrainer(request)


class NativeTrainer:
    """One run of the native trainer."""

    def __init__(self, request: TrainRequest) -> None:
        self.request = request
        self.run = request.run
        self.training = request.config.training
        self.state = TrainerState()
        self.last: dict[str, float] = {}
        self._saved_step: int | None = None

    def train(self) -> TrainResult:
        """Runs to the last step, to an early stop, or to Ctrl-C."""
        keep_freed_memory()
        self.parts = set_up(self.request)
        self._go_on_from(self.request.resume_from)
        self.run.update(**self.parts.facts)
        self.run.start(self.state.step)
        self.last = last_metrics(self.run)
        with Interrupt() as interrupt:
            if self.state.step == 0:
                self._evaluate()
                self._sample("before training")
            self._loop(interrupt)
            if interrupt.asked and self.state.step < self.parts.total_steps:
                return self._stop()
        return self._end()

    def _go_on_from(self, checkpoint: Path | None) -> None:
        if checkpoint is None:
            self.state.model_dtype = str(self.parts.loaded_dtype).removeprefix("torch.")
            # The trial passes and the model's making have drawn numbers; a resumed run draws as many.
            torch.manual_seed(self.training.seed)
            return
        self.state = load_state(checkpoint)
        self._forget_a_best_that_is_gone()
        self.parts.loader.load_state_dict(self.state.loader)
        restore(checkpoint, self.parts.optimizer)
        logger.info("resumed from %s: step %d of %d", checkpoint, self.state.step, self.parts.total_steps)

    def _forget_a_best_that_is_gone(self) -> None:
        """A run that goes on from another folder's checkpoint has none of the earlier ones."""
        state = self.state
        if self.training.load_best_model_at_end and state.best_step and not self._checkpoint(state.best_step).is_dir():
            logger.warning(
                "the best weights so far (step %d) are not in %s; the best from here on is kept",
                state.best_step,
                self.run.folder,
            )
            state.best_metric = state.best_step = None

    def _checkpoint(self, step: int) -> Path:
        return self.run.folder / "checkpoints" / f"step-{step}"

    def _loop(self, interrupt: Interrupt) -> None:
        steps: Iterator[list[Row]] = self.parts.loader.steps()
        while self.state.step < self.parts.total_steps and not interrupt.asked and not self._has_stalled():
            epoch = self.parts.loader.epoch
            begin = time.perf_counter()
            rows = next(steps)
            metrics = self._step(rows)
            new_epoch = self.parts.loader.epoch > epoch
            self._log(rows, metrics, time.perf_counter() - begin, new_epoch=new_epoch)
            self._after_step(new_epoch=new_epoch)

    def _step(self, rows: list[Row]) -> dict[str, float]:
        """One optimizer step over all its rows."""
        rate = learning_rate(self.training, self.state.step, self.parts.total_steps)
        objective = self.parts.objective
        scale = 1.0 / max(1, sum(objective.weight(row) for row in rows))
        loss = 0.0
        for row in rows:
            part = objective.loss(row, scale)
            part.backward()
            loss += float(part.detach())
        norm = self._clip()
        self._require_finite(loss, norm)
        for group in self.parts.optimizer.param_groups:
            group["lr"] = rate
        self.parts.optimizer.step()
        self.parts.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        further = {name: total * scale for name, total in objective.sums().items()}
        return {"loss": loss, **further, "learning_rate": rate, "grad_norm": norm}

    def _clip(self) -> float:
        """The norm of the whole gradient, which is scaled down to ``max_grad_norm`` where it is larger.

        As ``clip_grad_norm_``, which also goes over every gradient to multiply it by one where it is not.
        """
        trained = [parameter for group in self.parts.optimizer.param_groups for parameter in group["params"]]
        norm = get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
        limit = self.training.max_grad_norm
        if limit is not None and limit < float(norm) + CLIP_EPSILON:
            clip_grads_with_norm_(trained, limit, norm)
        return float(norm)

    def _require_finite(self, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise RunError(
                f"step {self.state.step + 1}: loss {loss}, gradient norm {norm}: the weights were left as they were "
                "before it. Lower training.learning_rate, lengthen the warm-up, or set max_grad_norm, in a new run"
            )

    def _is_logged(self, *, new_epoch: bool) -> bool:
        training, step = self.training, self.state.step
        if step == self.parts.total_steps or (step == 1 and training.logging_first_step):
            return True
        if training.logging_strategy == "steps":
            return step % training.logging_steps == 0
        return training.logging_strategy == "epoch" and new_epoch

    def _log(self, rows: list[Row], metrics: dict[str, float], seconds: float, *, new_epoch: bool) -> None:
        tokens = sum(row.num_tokens for row in rows)
        self.state.tokens += tokens
        self.last |= metrics
        if not self._is_logged(new_epoch=new_epoch):
            return
        self.run.log(
            self.state.step,
            {
                **metrics,
                "tokens": tokens,
                "supervised_tokens": sum(row.num_labels for row in rows),
                "tokens_per_s": round(tokens / seconds, 1),
                "step_time_s": round(seconds, 4),
                "peak_memory_bytes": peak_memory_bytes(self.parts.forward.device),
            },
        )

    def _after_step(self, *, new_epoch: bool) -> None:
        training, step = self.training, self.state.step
        last = step == self.parts.total_steps
        strategy = training.eval_strategy
        best_before = self.state.best_step
        if last or (strategy == "steps" and step % training.eval_steps == 0) or (strategy == "epoch" and new_epoch):
            self._evaluate()
        if step == self.parts.total_steps // 2:
            self._sample("half-way")
        wanted = training.load_best_model_at_end and self.state.best_step != best_before
        if wanted or (training.save_steps and step % training.save_steps == 0) or (training.save_epoch and new_epoch):
            self._save()

    def _evaluate(self) -> None:
        if self.parts.validation is None:
            return
        metrics = evaluate(self.parts.forward.model, self.parts.objective, self.parts.validation.rows())
        self.last |= metrics
        self.run.log(self.state.step, metrics)
        if self.state.step:
            self._compare(metrics[self.training.metric_for_best_model])

    def _compare(self, metric: float) -> None:
        """Keeps count of the best evaluation. An equal one is no gain, and neither is one that is no number."""
        state, best = self.state, self.state.best_metric
        if metric < (math.inf if best is None else best - self.training.early_stopping_threshold):
            state.best_metric, state.best_step, state.evaluations_without_gain = metric, state.step, 0
        else:
            state.evaluations_without_gain += 1

    def _has_stalled(self) -> bool:
        patience = self.training.early_stopping_patience
        if patience is None or self.state.evaluations_without_gain < patience:
            return False
        logger.info("early stop: no gain in eval_loss since step %s", self.state.best_step)
        return True

    def _sample(self, stage: str) -> None:
        parts, params = self.parts, self.request.params
        assert isinstance(params, NativeParams)
        texts = complete(parts.forward, parts.tokenizer, parts.prompts, parts.stop_ids, params.sample_max_new_tokens)
        samples = [
            {"prompt": prompt.text, "completion": text, "reference": prompt.reference}
            for prompt, text in zip(parts.prompts, texts, strict=True)
        ]
        self.run.log_samples(self.state.step, stage, samples)

    def _save(self) -> Path:
        self.state.loader = self.parts.loader.state_dict()
        parts = self.parts
        path = self._checkpoint(self.state.step)
        if self._saved_step == self.state.step:
            return path
        self.run.flush()
        save_checkpoint(path, self.state, parts.model, parts.tokenizer, parts.optimizer)
        self._saved_step = self.state.step
        remove_old(self.run, self.state)
        get_registry().events.checkpoint_saved(self.run, self.state.step, path)
        return path

    def _stop(self) -> TrainResult:
        path = self._save()
        logger.warning("stopped at step %d; saved %s; go on with --resume", self.state.step, path)
        return self._result(None, interrupted=True)

    def _end(self) -> TrainResult:
        self._sample("after training")
        return self._result(self._save_final() if self.training.save_final_model else None)

    def _save_final(self) -> Path:
        """``final/``: the last weights, or the best ones, in the type that the model was loaded in."""
        path = self.run.folder / "final"
        model = self._final_model()
        with whole_folder(path) as folder:
            save_model(folder, model, self.parts.tokenizer)
            if isinstance(model, PeftModel) and self.request.config.peft.peft_save_mode == "adapter_and_base_model":
                save_model(folder, model.unload(), self.parts.tokenizer)
        return path

    def _final_model(self) -> Any:
        state, model = self.state, self.parts.model
        if self.training.load_best_model_at_end and state.best_step not in (None, state.step):
            logger.info("final/ gets the weights of step %d, eval_loss %.4f", state.best_step, state.best_metric)
            # A base with fresh weights lies in no checkpoint: it is drawn again, as at the start
            torch.manual_seed(self.training.seed)
            model, _ = load_model(self.request.config, self._checkpoint(state.best_step))
        if not isinstance(model, PeftModel):
            return model.to(getattr(torch, state.model_dtype))
        if self.request.config.peft.peft_save_mode == "merged":
            return model.merge_and_unload()
        return model

    def _result(self, path: Path | None, *, interrupted: bool = False) -> TrainResult:
        return TrainResult(
            output_dir=self.run.folder,
            model_path=path,
            step=self.state.step,
            metrics={**self.last, "total_tokens": self.state.tokens},
            interrupted=interrupted,
        )


def last_metrics(run: Run) -> dict[str, float]:
    """The last value of each metric that the run has logged."""
    found: dict[str, float] = {}
    for line in read_lines(run.metrics_path):
        found |= {name: value for name, value in line.items() if name != "step"}
    return found
