"""Mistakes that no single field shows: settings that contradict each other, files that are not there."""

from __future__ import annotations

import math
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, get_args

from graftwork.config.machine import check_machine
from graftwork.config.names import check_names, known
from graftwork.config.peft import PeftParams
from graftwork.config.problems import Problem, near_file
from graftwork.data.names import HUGGINGFACE, Datasets
from graftwork.errors import did_you_mean
from graftwork.registry import get_registry
from graftwork.specs import Schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graftwork.config.data import DataParams, DatasetParams, DatasetSplitParams
    from graftwork.config.origins import Path
    from graftwork.config.run import RunConfig

_SCHEDULER_OPTIONS = {"cosine_with_restarts": ("num_cycles",), "cosine_with_min_lr": ("min_lr", "min_lr_rate")}
_EVAL: Path = ("training", "eval_strategy")


def check_all(config: RunConfig) -> list[Problem]:
    """Everything that is wrong with a configuration whose fields are each right by themselves."""
    checks = (
        check_names,
        _check_preset,
        _check_splits,
        _check_schemas,
        _check_evaluation,
        _check_schedule,
        _check_adapter,
        _check_use_peft,
        _check_sharding,
        _check_optimizer_in_backward,
        _check_trackers,
        _check_paths,
        check_machine,
    )
    return [problem for check in checks for problem in check(config)]


def _check_preset(config: RunConfig) -> Iterator[Problem]:
    """A preset is an architecture: it has neither weights nor a tokenizer, unless a card of its name has them."""
    from graftwork.sources.cards import library

    model, path = config.model, ("model", "model_name")
    if model.model_name in library():
        return
    preset = known(get_registry().presets, model.model_name.removeprefix("preset:"))
    if preset is None:
        return
    published = f" ({', '.join(preset.hub_ids)} on the Hub)" if preset.hub_ids else ""
    if model.load_pretrained_weights:
        text = (
            "a preset is an architecture without weights; set model.load_pretrained_weights to false for fresh "
            f"ones, or name a model that has them{published}"
        )
        yield Problem(path=path, value=model.model_name, text=text, related=(("model", "load_pretrained_weights"),))
    if model.tokenizer_name is None:
        text = f"a preset has no tokenizer; set model.tokenizer_name to a folder or Hub id{published}"
        yield Problem(path=path, value=model.model_name, text=text, related=(("model", "tokenizer_name"),))


def _check_splits(config: RunConfig) -> Iterator[Problem]:
    path: Path = ("data", "train", "datasets")
    if not config.data.train.datasets:
        yield Problem(path=path, text="empty; name at least one dataset to train on", related=(("data",),))
    for name, split in config.data.splits().items():
        yield from _check_mixture(split, ("data", name))
        for index, dataset in _own_datasets(split):
            yield from _check_dataset(dataset, ("data", name, "datasets", index), config)
    yield from _check_collators(config.data)
    yield from _check_holdout(config.data)


def _own_datasets(split: DatasetSplitParams) -> Iterator[tuple[int, DatasetParams]]:
    """The datasets that the split itself names: what is held out of the training data is reported there."""
    for index, dataset in enumerate(split.datasets):
        if dataset.holdout_part == "train":
            yield index, dataset


def _check_holdout(data: DataParams) -> Iterator[Problem]:
    if data.validation_fraction and any(True for _ in _own_datasets(data.validation)):
        text = "data.validation.datasets names the validation data already; keep one of the two"
        related = (("data", "validation", "datasets"),)
        yield Problem(path=("data", "validation_fraction"), value=data.validation_fraction, text=text, related=related)


def _check_mixture(split: DatasetSplitParams, path: Path) -> Iterator[Problem]:
    shares = [dataset.mixture_proportion for dataset in split.datasets]
    paths = tuple((*path, "datasets", index, "mixture_proportion") for index in range(len(shares)))
    given = [share for share in shares if share is not None]
    if len(shares) > 1 and not given and split.mixture_strategy != "first_exhausted":
        text = (
            "has a meaning only with proportions: without them every row comes once an epoch; give each dataset a "
            "mixture_proportion, or remove it"
        )
        yield Problem(path=(*path, "mixture_strategy"), value=split.mixture_strategy, text=text)
    if given and len(given) < len(shares):
        at = paths[shares.index(None)]
        text = "missing; where one dataset of a split has a mixture_proportion, all need one"
        yield Problem(path=at, text=text, related=paths)
    elif given and not math.isclose(sum(given), 1, abs_tol=1e-6):
        listed = " + ".join(f"{share:g}" for share in given)
        text = f"the proportions of the split are {listed} = {sum(given):g}; they must add up to 1"
        yield Problem(path=paths[0], value=given[0], text=text, related=paths)


def _check_dataset(dataset: DatasetParams, path: Path, config: RunConfig) -> Iterator[Problem]:
    at = (*path, "dataset_path")
    spec = known(Datasets(), dataset.dataset_name)
    related = ((*path, "dataset_name"),)
    if spec and dataset.dataset_path is None and (spec.needs_path or spec.name == HUGGINGFACE):
        yield Problem(path=at, text=f"missing; {dataset.dataset_name} reads a file or folder", related=related)
    if spec and spec.needs_path:
        splits = _has_splits(dataset)
        for field, neutral in (("subset", None), ("split", "train")):
            value = getattr(dataset, field)
            if value != neutral and not (field == "split" and splits):
                text = f"files have no {field}; remove it, and name in dataset_path the files of this split"
                yield Problem(path=(*path, field), value=value, text=text, related=related)
    if dataset.dataset_path is not None and not FilePath(dataset.dataset_path).exists():
        yield Problem(path=at, value=dataset.dataset_path, text=_not_there(dataset.dataset_path, config.where(at)))


def _has_splits(dataset: DatasetParams) -> bool:
    """Whether the path is a folder that `datasets` saved several splits to."""
    return dataset.dataset_path is not None and (FilePath(dataset.dataset_path) / "dataset_dict.json").is_file()


def _not_there(path: str, place: str) -> str:
    """What to say of a file that is not there; ``place`` is where it was named (``dir/run.yaml:12``)."""
    text = "there is no such file or folder"
    if not FilePath(path).is_absolute():
        text += f" in {FilePath.cwd()}"
    beside = FilePath(place.rpartition(":")[0]).parent / path
    if place and beside.exists():
        return f"{text}; paths are relative to the working directory: did you mean {beside}?"
    return f"{text}{near_file(FilePath(path))}"


def _check_collators(data: DataParams) -> Iterator[Problem]:
    named = [(name, split.collator_name) for name, split in data.splits().items() if split.collator_name]
    for name, collator in named[1:]:
        first, wanted = named[0]
        if collator.casefold() != wanted.casefold():
            text = f"differs from data.{first}.collator_name = {wanted!r}; one run has one collator"
            related = (("data", first, "collator_name"),)
            yield Problem(path=("data", name, "collator_name"), value=collator, text=text, related=related)
    for name, split in data.splits().items():
        yield from _check_collator(split, ("data", name))


def _check_collator(split: DatasetSplitParams, path: Path) -> Iterator[Problem]:
    """It takes what the datasets give. Of a dataset whose rows tell what they are, that is seen when it is opened."""
    registry = get_registry()
    collator = known(registry.collators, split.collator_name)
    for index, dataset in _own_datasets(split) if collator else ():
        schema = schema_in(dataset)
        if schema and schema not in (taken := (collator.schema, *collator.other_schemas)):
            text = f"takes {' or '.join(taken)} rows, and {dataset.dataset_name} gives {schema}; change one of the two"
            related = ((*path, "datasets", index, "dataset_name"),)
            yield Problem(path=(*path, "collator_name"), value=split.collator_name, text=text, related=related)
            return


def schema_in(dataset: DatasetParams) -> str | None:
    """What the dataset holds, as far as its name and options tell; None where only its rows do."""
    spec = known(Datasets(), dataset.dataset_name)
    if spec is None or spec.recognise is None:
        return spec.schema if spec else None
    stated = (dataset.dataset_kwargs.get(key) for key in ("schema", "rows_are"))
    return next((str(value).lower() for value in stated if str(value).lower() in get_args(Schema)), None)


def _check_schemas(config: RunConfig) -> Iterator[Problem]:
    """The trainer takes what every dataset gives."""
    registry = get_registry()
    trainer = known(registry.trainers, config.training.trainer_type)
    for name, split in config.data.splits().items():
        for index, dataset in _own_datasets(split):
            schema = schema_in(dataset)
            if trainer and schema and schema not in trainer.schemas:
                text = (
                    f"gives {schema} rows, and the trainer {config.training.trainer_type} takes "
                    f"{' or '.join(trainer.schemas)}; {trainers_of(schema)}"
                )
                path = ("data", name, "datasets", index, "dataset_name")
                related = (("training", "trainer_type"),)
                yield Problem(path=path, value=dataset.dataset_name, text=text, related=related)


def trainers_of(schema: str) -> str:
    """What to do where the trainer does not take such rows: the installed ones that do, as the end of a sentence."""
    trainers = get_registry().trainers
    takers = [name for name in trainers if schema in trainers[name].schemas]
    if takers:
        return (
            f"{schema} rows are for {', '.join(takers)}: set training.trainer_type to one of them, or give other data"
        )
    return f"no installed plugin has a trainer for {schema} rows yet, which can only be read"


def _check_evaluation(config: RunConfig) -> Iterator[Problem]:
    training = config.training
    if training.eval_strategy != "no":
        if not config.data.validation.datasets:
            text = (
                "there is nothing to evaluate on: data.validation.datasets is empty; name a dataset there, or set "
                "data.validation_fraction"
            )
            related = (("data", "validation", "datasets"),)
            yield Problem(path=_EVAL, value=training.eval_strategy, text=text, related=related)
        return
    needs = "needs evaluations; set training.eval_strategy to steps or epoch"
    for name in ("early_stopping_patience", "load_best_model_at_end", "keep_best"):
        if value := getattr(training, name):
            yield Problem(path=("training", name), value=value, text=needs, related=(_EVAL,))


def _check_schedule(config: RunConfig) -> Iterator[Problem]:
    training = config.training
    if training.warmup_ratio is not None and training.warmup_steps is not None:
        path: Path = ("training", "warmup_ratio")
        text = f"training.warmup_steps = {training.warmup_steps} says the same in another unit; keep one"
        yield Problem(path=path, value=training.warmup_ratio, text=text, related=(("training", "warmup_steps"),))
    taken = _SCHEDULER_OPTIONS.get(training.lr_scheduler_type, ())
    for key, value in training.lr_scheduler_kwargs.items():
        path = ("training", "lr_scheduler_kwargs", key)
        related = (("training", "lr_scheduler_type"),)
        if key not in taken:
            text = f"not an option of the schedule {training.lr_scheduler_type}; {did_you_mean(key, taken)}"
            yield Problem(path=path, value=value, text=text, related=related)
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            yield Problem(path=path, value=value, text="expected a number, 0 or more", related=related)


def _check_adapter(config: RunConfig) -> Iterator[Problem]:
    peft, use_peft = config.peft, config.training.use_peft
    own = config.model.peft_params
    if own is not None and own != peft:
        yield Problem(
            path=("model", "peft_params"), text="differs from the section peft; keep one", related=(("peft",),)
        )
    for name in ("q_lora", "quantizer"):
        value = getattr(peft, name)
        if value and not use_peft:
            text = "quantized weights are not trained themselves, an adapter on them is; set training.use_peft to true"
            yield Problem(path=("peft", name), value=value, text=text, related=(("training", "use_peft"),))
    if (peft.q_lora or peft.quantizer) and peft.save_mode != "adapter" and not config.model.load_pretrained_weights:
        text = (
            "merges onto (or saves) the base in full precision, and a quantized base with fresh weights is nowhere in "
            "full precision; save the adapter"
        )
        related = (("model", "load_pretrained_weights"), ("peft", "q_lora"))
        yield Problem(path=("peft", "save_mode"), value=peft.save_mode, text=text, related=related)
    quantizers = get_registry().quantizers.values()
    if peft.q_lora and not peft.quantizer and not any(peft.q_lora_bits in spec.bits for spec in quantizers):
        text = (
            f"no installed plugin quantizes to {peft.q_lora_bits} bits (peft.q_lora_bits); "
            "install one that does (graftwork-bitsandbytes has 4 and 8), see `graft plugins`"
        )
        related = (("peft", "q_lora_bits"), ("peft", "quantizer"))
        yield Problem(path=("peft", "q_lora"), value=True, text=text, related=related)


def notices_of(config: RunConfig) -> list[str]:
    """What is not wrong, but may not be what is meant: for the start of a run and for ``graft check``."""
    if config.training.use_peft or config.peft == PeftParams():
        return []
    return ["the section peft has no effect, because training.use_peft is false: all weights are trained"]


def _check_use_peft(config: RunConfig) -> Iterator[Problem]:
    """Settings of an adapter where nobody said whether there is to be one; a written false is an answer."""
    changed = [name for name in PeftParams.model_fields if getattr(config.peft, name) != getattr(PeftParams(), name)]
    told = config.peft.q_lora or config.peft.quantizer or config.peft.quantizer_kwargs or config.model.peft_params
    if not changed or "use_peft" in config.training.model_fields_set or told:
        return  # of a quantized base, and of two sections, that is said above
    text = (
        f"peft.{changed[0]} is set and training.use_peft is not, so all weights would be trained; set "
        "training.use_peft to true for an adapter, to false for all weights"
    )
    yield Problem(path=("peft",), text=text, related=(("training", "use_peft"), ("peft", changed[0])))


def _check_sharding(config: RunConfig) -> Iterator[Problem]:
    """A quantized weight is bytes in an order of their own."""
    for name in ("q_lora", "quantizer"):
        if config.fsdp.shards and (value := getattr(config.peft, name)):
            text = (
                "a quantized weight cannot be cut over processes (fsdp.enable_fsdp); leave fsdp out, and each process "
                "holds the quantized model, or train without it"
            )
            yield Problem(path=("peft", name), value=value, text=text, related=(("fsdp", "enable_fsdp"),))


def _check_trackers(config: RunConfig) -> Iterator[Problem]:
    """``enable_NAME`` without the plugin that hears it would be a run without the curves that were asked for."""
    states = {plugin.name: plugin for plugin in get_registry().plugins}
    wandb = states.get("wandb")
    if config.training.enable_wandb and (wandb is None or wandb.state != "active"):
        found = f"is {wandb.state}: {wandb.reason}" if wandb else "is not installed: pip install graftwork-wandb"
        text = f"the plugin wandb, which writes to Weights & Biases, {found}"
        yield Problem(path=("training", "enable_wandb"), value=True, text=text)


def _check_optimizer_in_backward(config: RunConfig) -> Iterator[Problem]:
    """Nothing can be asked of all gradients together where each is gone before the next is made."""
    training = config.training
    if not training.optimizer_in_backward:
        return
    asked = (
        ("gradient_accumulation_steps", 1, "gradients of several passes are added up, and here none is kept"),
        ("max_grad_norm", None, "clipping needs the norm of all gradients before the first step; set it to null"),
        ("nonfinite_loss", "stop", "a step that is half done cannot be left out"),
    )
    for name, neutral, reason in asked:
        if (value := getattr(training, name)) != neutral:
            path: Path = ("training", name)
            text = f"does not go with training.optimizer_in_backward: {reason}"
            yield Problem(path=path, value=value, text=text, related=(("training", "optimizer_in_backward"),))


def _check_paths(config: RunConfig) -> Iterator[Problem]:
    training = config.training
    resume = training.resume_from_checkpoint
    if resume is not None and not FilePath(resume).is_dir():
        path: Path = ("training", "resume_from_checkpoint")
        yield Problem(path=path, value=resume, text=f"there is no such folder in {FilePath.cwd()}")
    if FilePath(training.output_dir).is_file():
        text = "is a file; name a folder, which is made where it is missing"
        yield Problem(path=("training", "output_dir"), value=training.output_dir, text=text)
