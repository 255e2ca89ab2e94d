"""``training``: the method, the schedule, the precision, and what is written when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from graftwork.config.base import FilePath, Neutral, Params

_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "no": "none", "float32": "none", "fp32": "none"}


class TrainingParams(Params):
    """How the model is trained. Batch sizes count samples, steps are optimizer steps."""

    ALIASES: ClassVar[Mapping[str, str]] = {"evaluation_strategy": "eval_strategy", "keep_last": "save_total_limit"}

    trainer_type: str = Field("NATIVE", min_length=1, description="The training method, by name.")
    trainer_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options of the training method.")
    use_peft: bool = Field(False, description="Train an adapter (section peft) instead of all weights.")
    output_dir: FilePath = Field("output", min_length=1, description="The run folder.")
    run_name: str | None = Field(None, description="Name of the run in reports.")
    seed: int = Field(42, ge=0, description="Seed of everything random in the run.")

    max_steps: int = Field(-1, ge=-1, description="Stop after this many steps; -1: by num_train_epochs.")
    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the training data.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Samples in one forward pass.")
    per_device_eval_batch_size: int = Field(8, ge=1, description="Samples in one forward pass of an evaluation.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Forward passes in one step.")

    optimizer: str = Field("adamw", min_length=1, description="The optimizer, by name.")
    learning_rate: float = Field(5e-5, ge=0, description="The highest learning rate of the schedule.")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "cosine_with_restarts", "cosine_with_min_lr"] = Field(
        "linear", description="How the learning rate falls after the warm-up."
    )
    lr_scheduler_kwargs: dict[str, Any] = Field(default_factory=dict, description="num_cycles, min_lr, min_lr_rate.")
    warmup_ratio: float | None = Field(None, ge=0, le=1, description="Warm-up as a share of all steps.")
    warmup_steps: int | None = Field(None, ge=0, description="Warm-up in steps.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Added to the denominator.")
    sgd_momentum: float = Field(0.0, ge=0, description="Momentum of SGD.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Clip the gradient's norm; null: do not clip.")
    nonfinite_loss: Literal["stop", "skip"] = Field(
        "stop", description="A loss or gradient that is NaN or infinite stops the run, or its batch is left out."
    )

    optimizer_in_backward: bool = Field(
        False, description="Step each weight when its gradient is made, and free it: no gradients at once in memory."
    )
    activation_offloading: bool = Field(
        False, description="Keep a GPU's activations in the host's memory until the backward pass."
    )
    mixed_precision_dtype: Literal["auto", "none", "bf16", "fp16"] = Field(
        "auto", description="Type of the matrix products; auto: bf16 where the hardware has it, else none."
    )
    compile: bool = Field(False, description="Run the model through torch.compile.")
    enable_gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    gradient_checkpointing_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the model's gradient_checkpointing_enable."
    )

    eval_strategy: Literal["no", "steps", "epoch"] = Field("no", description="When to evaluate.")
    eval_steps: int = Field(500, ge=1, description="Steps between evaluations.")
    save_steps: int = Field(500, ge=0, description="Steps between checkpoints, and one at the end; 0: none.")
    save_epoch: bool = Field(False, description="A checkpoint at the end of each epoch.")
    save_final_model: bool = Field(True, description="Write the trained model to final/.")
    save_total_limit: int | None = Field(
        None,
        ge=1,
        description="Keep so many of the newest checkpoints, and the best; default: all, or 1 with keep_best.",
    )
    keep_best: int | None = Field(
        None, ge=1, description="Keep the checkpoints of this many best evaluations, beside the newest."
    )
    load_best_model_at_end: bool = Field(False, description="final/ gets the best evaluated weights.")
    metric_for_best_model: str = Field("eval_loss", min_length=1, description="The evaluation that says what is best.")
    greater_is_better: bool | None = Field(
        None, description="Whether more of that metric is better; default: less of a loss, more of anything else."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without gain."
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="What counts as a gain.")
    resume_from_checkpoint: FilePath | None = Field(None, description="Folder of the checkpoint to go on from.")
    try_resume_from_last_checkpoint: bool = Field(False, description="Go on from the last checkpoint, if any.")

    logging_strategy: Literal["steps", "epoch", "no"] = Field("steps", description="When to log metrics.")
    logging_steps: int = Field(1, ge=1, description="Steps between lines of metrics.")
    logging_first_step: bool = Field(False, description="Log the first step too.")
    log_level: Literal["debug", "info", "warning", "error", "critical"] = Field("info", description="Level of notices.")
    dep_log_level: Literal["debug", "info", "warning", "error", "critical"] = Field(
        "warning", description="Level of notices of transformers and the like."
    )
    enable_tensorboard: bool = Field(True, description="Write TensorBoard files.")
    enable_wandb: bool = Field(False, description="Send the curves to Weights & Biases (plugin graftwork-wandb).")
    include_performance_metrics: bool = Field(False, description="Oumi's; speed and memory are always measured.")

    enable_mlflow: Annotated[Any, Neutral(False, None, instead="remove it")] = Field(
        False, description="Oumi's; only false."
    )
    logging_dir: Annotated[
        Any, Neutral(None, instead="remove it: TensorBoard files lie in tensorboard/ of the run folder")
    ] = Field(None, description="Oumi's; only null.")
    log_model_summary: Annotated[Any, Neutral(False, None, instead="remove it")] = Field(
        False, description="Oumi's; only false."
    )
    metrics_function: Annotated[Any, Neutral(None, instead="remove it; eval_loss is always measured")] = Field(
        None, description="Oumi's; only null."
    )
    dataloader_num_workers: Annotated[
        Any, Neutral(0, "auto", None, instead="remove it: rows are prepared in the training process")
    ] = Field(0, description="Oumi's; only 0 or auto.")
    dataloader_prefetch_factor: Annotated[
        Any, Neutral(None, instead="remove it: rows are prepared in the training process")
    ] = Field(None, description="Oumi's; only null.")
    dataloader_main_process_only: Annotated[Any, Neutral(None, False, instead="remove it")] = Field(
        None, description="Oumi's; only null or false."
    )
    ddp_find_unused_parameters: bool | None = Field(
        None, description="Several processes: true where some steps leave parameters of the model unused."
    )
    empty_device_cache_steps: Annotated[Any, Neutral(None, instead="remove it")] = Field(
        None, description="Oumi's; only null."
    )
    nccl_default_timeout_minutes: float | None = Field(
        None, gt=0, description="Several processes: how long one waits for another before it fails; default: 30."
    )
    profiler: Annotated[Any, Neutral(None, {}, instead="remove it and profile with torch.profiler")] = Field(
        None, description="Oumi's; only null."
    )
    telemetry: Annotated[
        Any, Neutral(None, {}, instead="remove it: nothing is sent, and metrics.jsonl has the times")
    ] = Field(None, description="Oumi's; only null.")

    @field_validator("mixed_precision_dtype", mode="before")
    @classmethod
    def _short_precision(cls, value: Any) -> Any:
        text = str(value).removeprefix("torch.").casefold()
        return "none" if value is None else _PRECISIONS.get(text, value)
