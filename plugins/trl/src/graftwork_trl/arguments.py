"""The core's configuration as the arguments of TRL and transformers, none of whose own defaults count."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from graftwork_trl.model import autocast_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from graftwork.config import RunConfig, TrainingParams
    from graftwork_trl.methods import Method
    from graftwork_trl.params import Options

OFF: dict[str, Any] = {
    "logging_strategy": "no", "eval_strategy": "no", "save_strategy": "no", "report_to": [], "disable_tqdm": True,
    "push_to_hub": False, "remove_unused_columns": False, "dataloader_pin_memory": False,
    "logging_nan_inf_filter": False, "load_best_model_at_end": False,
}  # fmt: skip
"""What this plugin does itself, at the steps that the configuration says, or not at all."""


def arguments(
    config_class: Any,
    config: RunConfig,
    options: Options,
    method: Method,
    *,
    total_steps: int,
    folder: Path,
    device: torch.device,
) -> Any:
    """An instance of TRL's configuration class."""
    training = config.training
    values = {
        **OFF,
        "output_dir": str(folder),
        "max_steps": total_steps,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.per_device_eval_batch_size,
        # Elsewhere the trainer gets all batches of a step at once: an epoch's last step may have fewer.
        "gradient_accumulation_steps": training.gradient_accumulation_steps if method.batch == "prompts" else 1,
        "ignore_data_skip": method.batch != "prompts",
        "max_grad_norm": training.max_grad_norm or math.inf,
        **schedule(training, total_steps),
        **autocast_of(config, device),
        "gradient_checkpointing": training.enable_gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False, **training.gradient_checkpointing_kwargs},
        "seed": training.seed,
        "use_cpu": device.type == "cpu",
        "log_level": training.dep_log_level,
        **options.for_trl(),
    }
    known = {one.name for one in fields(config_class)}
    if "max_length" in known:  # the loader has applied the policy for long samples; ORPO wants a number all the same
        values["max_length"] = 1 << 20 if method.batch == "odds" else None
    if "pad_to_multiple_of" in known:
        values["pad_to_multiple_of"] = None
    if method.batch == "unpaired":
        values["train_sampling_strategy"] = "sequential"  # TRL asks for it; the order is the loader's
    if method.batch == "prompts":
        values["shuffle_dataset"] = False
    return config_class(**values)


def schedule(training: TrainingParams, total_steps: int) -> dict[str, Any]:
    """The learning rate over the steps. transformers' ``constant`` knows no warm-up."""
    name = training.lr_scheduler_type
    warmup = training.warmup_steps
    if warmup is None:
        warmup = math.ceil(total_steps * (training.warmup_ratio or 0.0))
    return {
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if name == "constant" else name,
        "lr_scheduler_kwargs": dict(training.lr_scheduler_kwargs),
        "warmup_steps": warmup,
    }
