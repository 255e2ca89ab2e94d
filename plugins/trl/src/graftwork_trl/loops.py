"""TRL's trainers with their surroundings replaced: data, optimizer, checkpoints and logging are graftwork's.

``recorded(trl.DPOTrainer)`` gives a subclass. What is overridden are methods of transformers' ``Trainer`` and TRL's
``_BaseTrainer``; the losses are untouched.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import Trainer

from graftwork.adapters import save_adapter
from graftwork.builders.optimizers import parameter_groups
from graftwork.builders.quiet import no_progress_bar
from graftwork.errors import RunError
from graftwork.registry import get_registry
from graftwork.runs.checkpoints import new_checkpoint, written
from graftwork.runs.kept import remove_old
from graftwork.runs.progress import evaluating
from graftwork.runs.room import saved_bytes
from graftwork_trl.batches import IGNORED, weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from graftwork.data.batch import Row
    from graftwork_trl.batches import Batch
    from graftwork_trl.session import Session

logger = logging.getLogger(__name__)
Came = list[dict[str, Any]]


class Recorded(Trainer):  # type: ignore[misc]  # transformers has no types
    """What every method shares. ``session`` and ``came`` are set right after the making."""

    session: Session
    came: Came
    optimizer: Any

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No model card: what a run was is in its folder."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """The rows are prepared; TRL sees none of them before a batch."""
        return dataset

    def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, Any]:
        """As above, under the name that ORPO's trainer has for it."""
        return {}

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of the configuration, from the registry; matrices decay, biases and norms do not."""
        if self.optimizer is None:
            training = self.session.config.training
            spec = get_registry().optimizers[training.optimizer]
            groups = parameter_groups(self.model if model is None else model, training.weight_decay)
            self.optimizer = spec.build(groups, training.learning_rate, training)
        return self.optimizer

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Stops before weights are changed by what is no number; loss scaling (fp16) skips such steps itself."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not self.args.fp16 and not bool(torch.isfinite(torch.as_tensor(norm))):
            self._refuse(f"gradient norm {float(norm)}")
        return norm

    def _refuse(self, what: str) -> None:
        places = [where for row in self.session.rows for where in row.wheres]
        rows = f" of the rows {', '.join(places[:8])}{', ...' if len(places) > 8 else ''}" if places else ""
        raise RunError(
            f"step {self.state.global_step + 1}: {what}{rows}: the weights were left as they were before it. Lower "
            "training.learning_rate, lengthen the warm-up, or set max_grad_norm, in a new run"
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The model (or its adapter) and the tokenizer, without TRL's padding token and without pickled arguments."""
        if self.args.should_save and output_dir is not None:
            save_model(Path(output_dir), self.accelerator.unwrap_model(self.model), self.session, self.came, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """``checkpoints/step-N``, whole or not there."""
        session, step = self.session, self.state.global_step
        if session.saved_step == step:
            return
        session.run.flush()
        self.state.log_history.clear()  # metrics.jsonl has it
        with (
            written(session.checkpoint(step)),
            shared_checkpoint(session, step, self.accelerator, self._needed_bytes) as folder,
        ):
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            if self.args.should_save:
                session.state.tokens_of_trl = getattr(self, "_total_train_tokens", 0)
                self.state.save_to_json(str(folder / "trainer_state.json"))
                session.save(folder)
        session.saved_step = step
        if self.args.should_save:
            remove_old(session.run, session.state.best)
            get_registry().events.checkpoint_saved(session.run, step, session.checkpoint(step))

    def _needed_bytes(self) -> int:
        """What a checkpoint takes."""
        return saved_bytes(self.accelerator.unwrap_model(self.model), self.optimizer.state_dict())


class OwnSteps(Recorded):
    """Steps come from graftwork's loader: all batches of a step at once, in an order that only seed and step decide."""

    def get_train_dataloader(self) -> Any:
        """Steps without end. transformers asks for a data loader, and only iterates it."""
        return Steps(self.session, self.accelerator.process_index, self.accelerator.num_processes)

    def get_batch_samples(self, epoch_iterator: Iterator[list[tuple[Row, bool]]], num_batches: int, device: Any) -> Any:
        """One step as one item, and the number of its labels on all processes."""
        self.session.began = time.perf_counter()
        share = next(epoch_iterator)
        make = self.session.make
        assert make is not None
        batches = [make(row) if counts else unlabelled(make(row)) for row, counts in share]
        self._weights = [weight(batch) if counts else 0 for batch, (_, counts) in zip(batches, share, strict=True)]
        return [batches], self._get_num_items_in_batch(batches, device)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Forward and backward over the batches of a step; a mean over pairs is one over all pairs of the step."""
        total, weights = torch.zeros((), device=self.args.device), self._weights
        processes = self.accelerator.num_processes
        # DDP makes the mean of the processes' gradients, and transformers that of their losses
        share = int(self.accelerator.gather(torch.tensor([sum(weights)], device=self.args.device)).sum()) / processes
        for number, batch in enumerate(inputs):
            last = number == len(inputs) - 1
            self.current_gradient_accumulation_steps = share / weights[number] if weights[number] else math.inf
            with nullcontext() if last else self.accelerator.no_sync(model):
                total = total + super().training_step(model, batch, num_items_in_batch)
        if not bool(torch.isfinite(total)):
            self._refuse(f"loss {float(total)}")
        return total

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The held-out batches; every process takes them all."""
        self._losses: list[tuple[float, int]] = []
        data, make = self.session.data, self.session.make
        assert data is not None
        assert data.validation is not None
        assert make is not None
        rows = list(data.validation.rows())
        return HeldOut([(make(row), len(row.wheres)) for row in rows], data.validation.counts.samples)

    def prediction_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        """As TRL's, with the loss noted."""
        count = weight(inputs)
        result = super().prediction_step(model, inputs, *rest, **named)
        self._losses.append((float(result[0]), count))
        return result

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """``eval_loss`` is the mean over all labels (pairs, answers), not over batches."""
        if "eval_loss" in logs and self._losses:
            logs["eval_loss"] = sum(loss * count for loss, count in self._losses) / sum(n for _, n in self._losses)
        super().log(logs, *rest, **named)


class HeldOut:
    """The held-out batches, which say how far they are where that takes long."""

    def __init__(self, batches: list[tuple[Batch, int]], samples: int) -> None:
        self.batches, self.samples = batches, samples

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return evaluating(self.batches, self.samples)


class Steps:
    """A process's share of each step of the loader: rows, and whether each counts. Where they do not come out even,
    at an epoch's end, those who have none left take part with a row that counts nothing.
    """

    def __init__(self, session: Session, rank: int, processes: int) -> None:
        self.session, self.rank, self.processes = session, rank, processes

    def __iter__(self) -> Iterator[list[tuple[Row, bool]]]:
        data = self.session.data
        assert data is not None
        epoch = data.train.epoch
        for rows in data.train.steps():
            self.session.rows, self.session.new_epoch = rows, data.train.epoch > epoch
            epoch = data.train.epoch
            own = [(row, True) for row in rows[self.rank :: self.processes]]
            if len(own) * self.processes < len(rows):
                own.append((min(rows, key=lambda row: row.num_tokens), False))
            yield own


def unlabelled(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with nothing to learn in it, where its loss is a sum over labels."""
    return {**batch, "labels": torch.full_like(batch["labels"], IGNORED)} if "labels" in batch else batch


def recorded(trainer_class: Any, base: type[Recorded]) -> Any:
    """TRL's trainer with ``base`` in front of it."""
    return type(trainer_class.__name__, (base, trainer_class), {})


@contextmanager
def shared_checkpoint(session: Session, step: int, accelerator: Any, needed_bytes: Callable[[], int]) -> Iterator[Path]:
    """The folder of a new checkpoint, made by the first process and written to by all."""
    with ExitStack() as stack:
        named: list[Any] = [None]
        if accelerator.is_main_process:
            named = [stack.enter_context(new_checkpoint(session.run, step, needed_bytes=needed_bytes))]
        broadcast_object_list(named)
        yield named[0]
        accelerator.wait_for_everyone()


def save_model(folder: Path, model: Any, session: Session, came: Came, state_dict: Any = None) -> None:
    """The model (or its adapter) and the tokenizer with its template, as transformers and PEFT save them."""
    with as_it_came(model, came):
        if isinstance(model, PeftModel):
            # A copy of an adapter that is TRL's reference is made anew from where the adapter came from
            copied = model.peft_config.pop("ref", None)
            save_adapter(folder, model)
            if copied is not None:
                model.peft_config["ref"] = copied
        else:
            with no_progress_bar():
                model.save_pretrained(folder, state_dict=state_dict, max_shard_size="50GB")
    session.tokenizer.save_pretrained(folder)


KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "output_router_logits", "router_aux_loss_coef")


@contextmanager
def as_it_came(model: Any, saved: Came) -> Iterator[None]:
    """Within the block the model's configurations are as they came.

    TRL and transformers write the padding token, and the tokenizer's others, into them for the training, switch the
    cache off, and have a mixture of experts give its router's logits or not.
    """
    now = as_came(model)
    set_back(model, saved)
    try:
        yield
    finally:
        set_back(model, now)


def as_came(model: Any) -> Came:
    """What the training changes in a model's configuration and in its generation configuration."""
    return [{name: getattr(config, name, None) for name in KEPT} for config in configs_of(model)]


def set_back(model: Any, came: Came) -> None:
    """The inverse of :func:`as_came`."""
    for config, values in zip(configs_of(model), came, strict=True):
        for name, value in values.items():
            if hasattr(config, name):
                setattr(config, name, value)


def configs_of(model: Any) -> list[Any]:
    """A model's configurations; a classifier has none for generating."""
    generation = getattr(model, "generation_config", None)
    return [model.config.get_text_config(), *([generation] if generation is not None else [])]
