"""The training loop: rows in, a model out. Methods differ in their data and in their objective, never here.

The loss of an optimizer step is the sum of its rows' losses divided by the sum of their weights (labels, or pairs),
over every row of the step and of every process: how the step is cut into rows changes nothing.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from graftwork.adapters.final import final_models, save_stops
from graftwork.data.loader import describe
from graftwork.errors import RunError
from graftwork.files import complete_folder
from graftwork.registry import get_registry
from graftwork.runs.checkpoints import written
from graftwork.runs.due import is_evaluated, is_logged, is_saved
from graftwork.runs.kept import (
    best_to_load,
    chosen_metric,
    is_gain,
    metric_name,
    ranked,
    remove_old,
    without_lost,
)
from graftwork.runs.memory import peak_memory_bytes
from graftwork.runs.progress import evaluating
from graftwork.runs.run import read_lines
from graftwork.training import TrainRequest, TrainResult
from graftwork_native import nonfinite
from graftwork_native.checkpoint import (
    TrainerState,
    gather,
    load_state,
    restore,
    save_checkpoint,
    save_in_shards,
    save_model,
)
from graftwork_native.evaluation import complete, evaluate
from graftwork_native.interrupt import Interrupt, Left
from graftwork_native.memory import keep_freed_memory, lasting
from graftwork_native.model import load_model
from graftwork_native.params import NativeParams
from graftwork_native.schedule import learning_rate
from graftwork_native.setup import set_up
from graftwork_native.sharding import uncut, whole_tensor, whole_weights
from graftwork_native.shards import is_sharded, read_weights
from graftwork_native.vocabulary import clear_gradients
from graftwork_native.world import World, joined

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from graftwork.data.batch import Row
    from graftwork.runs.run import Run

logger = logging.getLogger(__name__)

CLIP_EPSILON = 1e-6
"""What PyTorch adds to the norm before it divides by it."""
LAST_SAMPLES = "after training"


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
        self.world = World()
        self.interrupt = Interrupt(self.world)
        self.last: dict[str, float] = {}
        self.evaluation: dict[str, float] | None = None
        self._saved_step: int | None = None

    def train(self) -> TrainResult:
        """Runs to the last step, to an early stop, or to Ctrl-C or SIGTERM."""
        keep_freed_memory()
        with joined(self.training) as world:
            self.world = self.interrupt.world = world
            return self._train()

    def _train(self) -> TrainResult:
        self.request = replace(self.request, resume_from=self.world.told(self.request.resume_from))
        self.parts = set_up(self.request, self.world)
        self._go_on_from(self.request.resume_from)
        # Not before: PyTorch restores no optimizer where a gradient is there
        with lasting():
            self._clear_gradients()
        self._require_metric()
        self.run.update(**self.parts.facts)
        self.run.start(self.state.step, evaluated=self.state.evaluated)
        self.last = last_metrics(self.run)
        with self.interrupt.listening():
            with suppress(Left):
                self._begin()
                self._loop()
            if self.interrupt.asked and (self.state.step < self.parts.total_steps or not self.state.evaluated):
                return self._stop(self.interrupt.asked)
            return self._end()

    def _go_on_from(self, checkpoint: Path | None) -> None:
        if checkpoint is None:
            self.state.model_dtype = str(self.parts.loaded_dtype).removeprefix("torch.")
            # The trial passes and the model's making have drawn numbers; a resumed run draws as many.
            torch.manual_seed(self.training.seed + self.world.rank)
            return
        self.state = load_state(checkpoint)
        if checkpoint.resolve() == self._checkpoint(self.state.step).resolve():
            self._saved_step = self.state.step
        if self._keeps_best():
            self.state.best = without_lost(self.run, self.state.best)
        self.parts.loader.load_state_dict(self.state.loader)
        with lasting():
            restore(checkpoint, self.parts.model, self.parts.optimizer, self.world)
        logger.info("resumed from %s: step %d of %d", checkpoint, self.state.step, self.parts.total_steps)

    def _require_metric(self) -> None:
        """The metric that ranks evaluations is looked for in one row, before the run folder is a run."""
        if self.parts.validation is not None and metric_name(self.training) != "eval_loss":
            rows = islice(self.parts.validation.rows(), 1)
            chosen_metric(self.training, evaluate(self.parts.forward.model, self.parts.objective, rows))

    def _keeps_best(self) -> bool:
        return self.training.load_best_model_at_end or self.training.keep_best is not None

    def _checkpoint(self, step: int) -> Path:
        return self.run.folder / "checkpoints" / f"step-{step}"

    def _begin(self) -> None:
        """What comes before the first step, or what was broken off after the last one."""
        if self.state.step == 0:
            self._evaluate()
            self._sample("before training")
        elif not self.state.evaluated:
            self._saved_step = None
            self._after_step()

    def _loop(self) -> None:
        steps: Iterator[list[Row]] = self.parts.loader.steps()
        while self.state.step < self.parts.total_steps and not self.interrupt.asked and not self._has_stalled():
            begin = time.perf_counter()
            rows = next(steps)
            metrics = self._step(rows)
            if metrics is not None:
                self._log(rows, metrics, time.perf_counter() - begin)
                self._after_step()

    def _step(self, rows: list[Row]) -> dict[str, float] | None:
        """One optimizer step over all its rows; None where their loss is no number and they are left out."""
        rate = learning_rate(self.training, self.state.step, self.parts.total_steps)
        objective, optimizer = self.parts.objective, self.parts.optimizer
        if self.parts.backward_step is not None:
            self.parts.backward_step.rows = rows
        scale = 1.0 / max(1, sum(objective.weight(row) for row in rows))
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = []
        for row, counts in objective.share(rows):
            with self.parts.saving():
                part = objective.loss(row, scale * counts)
            part.backward()
            losses.append(float(part.detach()))
        losses = objective.of_all(losses)[: len(rows)]
        norm = self._clip()
        further = {name: total * scale for name, total in objective.sums().items()}
        if not (math.isfinite(sum(losses)) and math.isfinite(norm)):
            self._leave_out(rows, losses, norm)
            return None
        self._optimize()
        self._clear_gradients()
        self.state.step += 1
        self.state.skipped_in_a_row = 0
        return {"loss": sum(losses), **further, "learning_rate": rate, "grad_norm": norm}

    def _optimize(self) -> None:
        """The optimizer's step. The first one makes what it keeps of each weight."""
        with nullcontext() if self.parts.optimizer.state else lasting():
            self.parts.optimizer.step()

    def _clear_gradients(self) -> None:
        clear_gradients(self.parts.optimizer, self.parts.forward.kept)

    def _leave_out(self, rows: list[Row], losses: list[float], norm: float) -> None:
        """Takes no step: weights, optimizer and schedule stay as they are. Raises :class:`RunError` where the run is
        to stop, or where leaving out does not help.
        """
        self._clear_gradients()
        state, model = self.state, self.parts.forward.model
        state.skipped_in_a_row += 1
        alone = self.world.size == 1 and self.parts.backward_step is None
        clear = self._clear_gradients if alone else None
        said = nonfinite.explain(state.step + 1, losses, norm, rows, self.parts.objective, model, clear)
        if self.training.nonfinite_loss == "skip" and state.skipped_in_a_row < nonfinite.MOST_IN_A_ROW:
            if not self.world.any(nonfinite.broken_weight(model) is not None):
                state.skipped += 1
                logger.warning("%s. The batch is left out (%d so far)", said, state.skipped)
                return
        elif self.training.nonfinite_loss == "skip":
            said += f"\n{state.skipped_in_a_row} batches in a row had no finite loss or gradient: it is hardly the rows"
        remedy = "Mend those rows and start anew"
        if self.training.nonfinite_loss == "stop":
            remedy = (
                "Go on without such batches (--resume training.nonfinite_loss=skip), or mend those rows and start anew"
            )
        raise RunError(
            f"{said}\nThe weights were left as they were before it{self._last_saved()}. {remedy}. Where it is not the "
            "rows: lower training.learning_rate, lengthen the warm-up, or set max_grad_norm, in a new run"
        )

    def _last_saved(self) -> str:
        """The checkpoint that is there, as the end of a sentence."""
        saved = self.run.checkpoints
        return f"; the last checkpoint is {saved[-1]}" if saved else "; there is no checkpoint yet"

    def _clip(self) -> float:
        """The norm of the whole gradient, which is scaled down to ``max_grad_norm`` where it is larger.

        As ``clip_grad_norm_``, which also goes over every gradient to multiply it by one where it is not.
        """
        if self.parts.backward_step is not None:
            return self.parts.backward_step.norm()
        trained = [parameter for group in self.parts.optimizer.param_groups for parameter in group["params"]]
        norm = whole_tensor(get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None]))
        limit = self.training.max_grad_norm
        if limit is not None and limit < float(norm) + CLIP_EPSILON:
            clip_grads_with_norm_(trained, limit, norm)
        return float(norm)

    def _new_epoch(self) -> bool:
        """Whether a pass over the data ended with this step."""
        return self.parts.loader.epoch > self.state.epoch

    def _log(self, rows: list[Row], metrics: dict[str, float], seconds: float) -> None:
        tokens = sum(row.num_tokens for row in rows)
        self.state.tokens += tokens
        if self.state.skipped:
            metrics["skipped_batches"] = self.state.skipped
        self.last |= metrics
        if not is_logged(self.training, self.state.step, self.parts.total_steps, new_epoch=self._new_epoch()):
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

    def _after_step(self) -> None:
        """Evaluation and samples, where they are due, then a checkpoint. Left and done later where a signal comes."""
        training, state = self.training, self.state
        step, new_epoch = state.step, self._new_epoch()
        self.evaluation, state.evaluated = None, False
        if is_evaluated(training, step, self.parts.total_steps, new_epoch=new_epoch):
            self._evaluate()
        if step == self.parts.total_steps // 2:
            self._sample("half-way")
        state.evaluated, state.epoch = True, self.parts.loader.epoch
        wanted = self._keeps_best() and any(step == best for best, _ in state.best)
        if wanted or is_saved(training, step, new_epoch=new_epoch):
            self._save()

    def _evaluate(self) -> None:
        parts = self.parts
        if parts.validation is None:
            return
        sized = ((row, len(row.wheres)) for row in parts.validation.rows())
        rows = evaluating(sized, parts.validation.counts.samples)
        metrics = evaluate(parts.forward.model, parts.objective, self.interrupt.until_asked(rows))
        self.evaluation = metrics
        self.last |= metrics
        self.run.log(self.state.step, metrics)
        if self.state.step:
            self._compare(chosen_metric(self.training, metrics))

    def _compare(self, metric: float) -> None:
        """Keeps count of the best evaluations. An equal one is no gain, and neither is one that is no number."""
        state = self.state
        gained = is_gain(self.training, state.best, metric)
        state.evaluations_without_gain = 0 if gained else state.evaluations_without_gain + 1
        state.best = ranked(self.training, state.best, state.step, metric)

    def _has_stalled(self) -> bool:
        patience = self.training.early_stopping_patience
        if patience is None or self.state.evaluations_without_gain < patience:
            return False
        name, best = metric_name(self.training), self.state.best[0][0] if self.state.best else 0
        logger.info("early stop: %d evaluations without gain in %s; the best was at step %d", patience, name, best)
        return True

    def _sample(self, stage: str) -> None:
        parts, params = self.parts, self.request.params
        assert isinstance(params, NativeParams)
        prompts = parts.prompts if stage == LAST_SAMPLES else self.interrupt.until_asked(parts.prompts)
        texts = parts.objective.call(
            complete, parts.forward, parts.tokenizer, prompts, parts.stop_ids, params.sample_max_new_tokens
        )
        samples = [
            {"prompt": prompt.text, "completion": text, "reference": prompt.reference}
            for prompt, text in zip(parts.prompts, texts, strict=True)
        ]
        self.run.log_samples(self.state.step, stage, samples)

    def _save(self) -> Path:
        parts, state = self.parts, self.state
        path = self._checkpoint(state.step)
        if self._saved_step == state.step:
            return path
        self._require_good_weights()
        state.loader = parts.loader.state_dict()
        self.run.flush()
        parts.objective.rest()
        content = (self.run, state, self.evaluation, parts.model, parts.tokenizer)
        if self.world.size > 1 and self.request.config.fsdp.saves_shards:
            save_in_shards(*content, parts.optimizer, self.world)
        else:
            gathered = gather(parts.model, parts.optimizer, self.world)
            self.world.by_main(lambda: save_checkpoint(*content, gathered))
        self._saved_step = state.step
        if self.world.is_main:
            remove_old(self.run, state.best)
            get_registry().events.checkpoint_saved(self.run, state.step, path)
        return path

    def _require_good_weights(self) -> None:
        """What a step with far too high a rate leaves must not take the place of what was good."""
        weight = nonfinite.broken_weight(self.parts.model)
        if self.world.any(weight is not None):
            raise RunError(
                f"after step {self.state.step} {weight or 'a weight'} is not finite any more: it is not saved"
                f"{self._last_saved()}. Lower training.learning_rate, lengthen the warm-up, or set max_grad_norm, in "
                "a new run"
            )

    def _stop(self, number: int) -> TrainResult:
        if self.state.step:
            logger.warning("stopped at step %d; saved %s; go on with --resume", self.state.step, self._save())
        else:
            logger.warning("stopped before the first step; begin again with --resume")
        return self._result(None, interrupted_by=number)

    def _end(self) -> TrainResult:
        """The last checkpoint, from which the run can be made longer, and the model that was trained."""
        self._sample(LAST_SAMPLES)
        error: RunError | None = None
        try:
            if self.training.save_steps or self.training.save_epoch:
                self._save()
        except RunError as caught:
            error = caught  # what was trained is worth more than the way to go on from it
        path = self._save_final() if self.training.save_final_model else None
        if error is not None:
            raise error
        return self._result(path)

    def _save_final(self) -> Path:
        """``final/``: the last weights, or the best ones, in the type that the model was loaded in."""
        path = self.run.folder / "final"
        self._require_good_weights()
        self.parts.objective.rest()
        uncut(self.parts.model, whole_weights(self.parts.model, keep=self.world.is_main))
        self.world.by_main(lambda: self._write_final(path))
        return path

    def _write_final(self, path: Path) -> None:
        self.run.require_folder()
        model = self._final_model()
        with written(path), complete_folder(path) as folder:
            for part in final_models(model, self.request.config):
                save_model(folder, part, self.parts.tokenizer)
                save_stops(folder, part, self.parts.tokenizer, self.parts.stop_ids)

    def _final_model(self) -> Any:
        state, model = self.state, self.parts.model
        best = best_to_load(self.run, state.best, state.step) if self.training.load_best_model_at_end else None
        if best is not None:
            step, metric = best
            logger.info("final/ gets the weights of step %d, %s %.4f", step, metric_name(self.training), metric)
            # A base with fresh weights lies in no checkpoint: it is drawn again, as at the start
            torch.manual_seed(self.training.seed)
            model, _ = load_model(self.request.config, self._checkpoint(step))
            if is_sharded(self._checkpoint(step)):
                read_weights(self._checkpoint(step), model)
        return model if isinstance(model, PeftModel) else model.to(getattr(torch, state.model_dtype))

    def _result(self, path: Path | None, *, interrupted_by: int | None = None) -> TrainResult:
        # Of a stream the start knew nothing: its rows were read on the way.
        self.run.update(data_train=describe(self.parts.loader))
        return TrainResult(
            output_dir=self.run.folder,
            model_path=path,
            step=self.state.step,
            metrics={**self.last, "total_tokens": self.state.tokens},
            interrupted_by=interrupted_by,
        )


def last_metrics(run: Run) -> dict[str, float]:
    """The last value of each metric that the run has logged."""
    found: dict[str, float] = {}
    for line in read_lines(run.metrics_path):
        found |= {name: value for name, value in line.items() if name != "step"}
    return found
