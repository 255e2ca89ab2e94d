"""A TRL method from a train request to a run folder."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
from peft import PeftModel
from transformers import PrinterCallback

from graftwork.adapters.final import final_models, save_stops
from graftwork.builders import build_tokenizer
from graftwork.builders.family import family_of_params
from graftwork.data.loader import count_steps, describe, schema_of
from graftwork.errors import UsageError
from graftwork.files import complete_folder
from graftwork.registry import get_registry
from graftwork.runs.checkpoints import written
from graftwork.runs.kept import best_to_load, metric_name
from graftwork.runs.signals import STOPPING, handled, stop
from graftwork.tokenizers import stop_token_ids
from graftwork.training import TrainRequest, TrainResult
from graftwork_trl.arguments import arguments
from graftwork_trl.batches import maker
from graftwork_trl.data import load_data
from graftwork_trl.grpo import Grpo, Prompts, prompts_per_step, rewards_of, steps_of_run
from graftwork_trl.loops import OwnSteps, as_came, as_it_came, recorded, save_model
from graftwork_trl.methods import METHODS, quiet
from graftwork_trl.model import forget_copy_of_fresh_adapter, load_model, reference_of
from graftwork_trl.params import GrpoOptions, Options
from graftwork_trl.recorder import Recorder
from graftwork_trl.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

STAND_INS = {
    "odds": {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]},
    "language": {"input_ids": [[0]], "labels": [[0]]},
}
"""One row for the constructor of a TRL trainer, which looks at the columns; the batches come from elsewhere."""


class TrlTrainer:
    """One run of a TRL method."""

    def __init__(self, request: TrainRequest) -> None:
        assert isinstance(request.params, Options)
        self.request, self.config, self.options = request, request.config, request.params
        spec = get_registry().trainers[self.config.training.trainer_type]
        self.method = METHODS[spec.name]
        self.classes = self.method.load()
        quiet(self.config.training.dep_log_level)

    def train(self) -> TrainResult:
        """Runs to the last step, to an early stop, or to a signal, which saves."""
        self._set_up()
        run, session = self.request.run, self.session
        resume = self.resume
        if resume is not None:
            session.restore(resume)
            self.trainer._total_train_tokens = session.state.tokens_of_trl
        run.update(**self._facts())
        run.start(step_of(resume))
        self.trainer.args.eval_on_start = resume is None and session.evaluates and self.method.batch != "prompts"
        with handled(STOPPING, self._ask), calm():
            self.trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        step = self.trainer.state.global_step
        if session.stopped_by is not None and step < session.total_steps:
            path = session.checkpoint(step)
            logger.warning("stopped at step %d; saved %s; go on with --resume", step, path)
            return self._result(None, interrupted_by=session.stopped_by)
        return self._result(self._save_final() if self.config.training.save_final_model else None)

    def _ask(self, number: int) -> None:
        if self.session.stopped_by is not None:
            stop(number)
        self.session.stopped_by = number
        logger.warning("stopping after this step and saving; press Ctrl-C again to stop at once without saving")

    # Setting up

    def _set_up(self) -> None:
        """Data first: its mistakes are found before the model is loaded, which takes longest."""
        config = self.config
        self.tokenizer = build_tokenizer(config.model, stand_in_template=schema_of(config.data.train) != "text")
        self.stop_ids = stop_token_ids(self.tokenizer, family=family_of_params(config.model))
        self.processes = PartialState(cpu=is_cpu(config.model.device_map)).num_processes
        # Only the first process looks for a checkpoint
        self.resume: Path | None = broadcast_object_list([self.request.resume_from])[0]
        parts = self._prompts() if self.method.batch == "prompts" else self._batches()
        model, self.loaded_dtype = load_model(config, scores=self.method.batch == "reward")
        masters = [(one, one.data) for one in model.parameters() if one.requires_grad]
        came = as_came(model)
        trainer_class = recorded(self.classes[0], Grpo if self.method.batch == "prompts" else OwnSteps)
        with calm(), refusals():
            self.trainer = trainer_class(
                model=model,
                args=self._arguments(model),
                processing_class=self._padding_tokenizer(),
                callbacks=[Recorder(self.session)],
                **parts,
                **self._reference(model),
            )
        for parameter, data in masters:  # TRL rounds the adapter of a quantized model to bfloat16
            parameter.data = data.to(parameter.device)
        forget_copy_of_fresh_adapter(model, config)
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.session = self.session
        if self.method.batch == "reward":  # it finds an answer's end by the padding token
            came[0]["pad_token_id"] = model.config.get_text_config().pad_token_id
        self.trainer.came = came
        if self.method.batch == "odds":
            self.trainer.use_dpo_data_collator = True  # the batches are as that one makes them
        if isinstance(self.trainer, Grpo):
            self.trainer.prompts = self.prompts

    def _batches(self) -> dict[str, Any]:
        """Loaders, and a row that stands in for them where TRL asks for a data set."""
        config, method = self.config, self.method
        data = load_data(config, method, self.tokenizer, self.stop_ids, self.processes)
        pad_id = self._padding_tokenizer().pad_token_id
        make = maker(method.batch, pad_id, pack=config.data.train.pack, labels=data.labels)
        self.session = Session(
            run=self.request.run,
            config=config,
            tokenizer=self.tokenizer,
            total_steps=count_steps(config, data.train),
            data=data,
            make=make,
            evaluates=data.validation is not None,
        )
        row = STAND_INS.get(method.batch, {"prompt_ids": [[0]]})
        return {"train_dataset": Dataset.from_dict(row), "data_collator": first}

    def _prompts(self) -> dict[str, Any]:
        """Prompts and rewards for GRPO."""
        config, options = self.config, self.options
        assert isinstance(options, GrpoOptions)
        self.prompts = Prompts(config, config.data.train, self.method, self.tokenizer)
        at_once = prompts_per_step(config, options, self.processes)
        epoch, steps = steps_of_run(config.training, at_once, len(self.prompts.order_of_epoch()))
        parts: dict[str, Any] = {
            "train_dataset": self.prompts.dataset(steps * at_once),
            "reward_funcs": rewards_of(options),
        }
        if config.data.validation.datasets:
            held_out = Prompts(config, config.data.validation, self.method, self.tokenizer)
            self.prompts.ids |= held_out.ids
            parts["eval_dataset"] = held_out.dataset()
        self.session = Session(
            run=self.request.run,
            config=config,
            tokenizer=self.tokenizer,
            total_steps=steps,
            steps_in_epoch=epoch,
            evaluates="eval_dataset" in parts,
        )
        return parts

    def _arguments(self, model: Any) -> Any:
        if self.method.batch == "prompts":
            # Answers end where the family's answers end, not only at the tokenizer's EOS.
            model.generation_config.eos_token_id = sorted(self.stop_ids)
        return arguments(
            self.classes[1],
            self.config,
            self.options,
            self.method,
            total_steps=self.session.total_steps,
            folder=self.request.run.folder,
            device=model.device,
        )

    def _reference(self, model: Any) -> dict[str, Any]:
        if not self.method.reference:
            return {}
        return {"ref_model": reference_of(model)}

    def _padding_tokenizer(self) -> PreTrainedTokenizerFast:
        """A copy for TRL, which pads with a token and changes what it is given."""
        tokenizer = deepcopy(self.tokenizer)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        return tokenizer

    def _facts(self) -> dict[str, Any]:
        """What ``run.json`` says of the run."""
        parameters = list(self.trainer.model.parameters())
        data = self.session.data
        return {
            "num_parameters": sum(one.numel() for one in parameters),
            "trained_parameters": sum(one.numel() for one in parameters if one.requires_grad),
            "device": str(self.trainer.args.device),
            "processes": self.processes,
            "layout": "padded batches",
            "data_train": describe(data.train) if data else self.prompts.facts(),
            "total_steps": self.session.total_steps,
        }

    # The end

    def _save_final(self) -> Path:
        """``final/``: the last weights, or the best ones, in the type that the model was loaded in."""
        path = self.request.run.folder / "final"
        trainer, training = self.trainer, self.config.training
        if training.load_best_model_at_end:
            best = best_to_load(self.request.run, self.session.state.best, trainer.state.global_step)
            if best is not None:
                logger.info("final/ gets the weights of step %d, %s %.4f", best[0], metric_name(training), best[1])
                trainer._load_from_checkpoint(str(self.session.checkpoint(best[0])))
        if not trainer.is_world_process_zero():
            return path
        model = trainer.accelerator.unwrap_model(trainer.model)
        if not isinstance(model, PeftModel):
            model = model.to(self.loaded_dtype)
        self.request.run.require_folder()
        with written(path), complete_folder(path) as folder:
            for part in final_models(model, self.config):
                save_model(folder, part, self.session, trainer.came)
                with as_it_came(part, trainer.came):
                    save_stops(folder, part, self.tokenizer, self.stop_ids)
        return path

    def _result(self, path: Path | None, *, interrupted_by: int | None = None) -> TrainResult:
        if self.session.data:  # of a stream the start knew nothing: its rows were read on the way
            self.request.run.update(data_train=describe(self.session.data.train))
        return TrainResult(
            output_dir=self.request.run.folder,
            model_path=path,
            step=self.trainer.state.global_step,
            metrics={**self.session.last, "total_tokens": self.session.state.tokens},
            interrupted_by=interrupted_by,
            generates=self.method.batch != "reward",
        )


def first(examples: Any) -> Any:
    """A collator that is never asked: the batches are made before."""
    return examples[0]


def step_of(checkpoint: Path | None) -> int:
    """The step in a checkpoint's name."""
    if checkpoint is None:
        return 0
    return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])


def is_cpu(device_map: Any) -> bool:
    """Whether the model is to be on the CPU."""
    return device_map == "cpu" or not torch.cuda.is_available()


@contextmanager
def calm() -> Iterator[None]:
    """Without the progress bars of datasets, and without notices about what TRL and transformers do here."""
    bars, logger_of_transformers = is_progress_bar_enabled(), logging.getLogger("transformers.trainer_utils")
    disable_progress_bars()
    logger_of_transformers.addFilter(is_news)
    try:
        with warnings.catch_warnings():
            # TRL 1.16 has the old names of transformers 5.23 for gradient checkpointing in its own code
            warnings.filterwarnings(
                "ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning
            )
            yield
    finally:
        logger_of_transformers.removeFilter(is_news)
        if bars:
            enable_progress_bars()


def is_news(record: logging.LogRecord) -> bool:
    """Whether a notice is worth passing on: that the special tokens were aligned is undone in what is saved."""
    return "new PAD/BOS/EOS tokens" not in str(record.msg)


@contextmanager
def refusals() -> Iterator[None]:
    """What TRL's constructors refuse, as an error of ours; the text is theirs, and so are the names in it."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"training: TRL refuses this configuration: {error}") from error
