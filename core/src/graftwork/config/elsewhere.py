"""What other systems call our settings. None of it is accepted: it only tells who writes it what is meant here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Oumi, torchtune, the arguments of transformers' and TRL's trainers, axolotl: their names behind ours.
_THEIRS: Mapping[str, str] = {
    "model.model_name": "model_name_or_path base_model pretrained_model_name_or_path model_id model_path",
    "model.tokenizer_name": "tokenizer tokenizer_name_or_path tokenizer_path",
    "model.torch_dtype": "model_dtype",
    "model.attn_implementation": "attention_implementation attn flash_attention use_flash_attention_2 sdp_attention",
    "model.added_tokens": "additional_special_tokens special_tokens new_tokens add_tokens",
    "model.adapter_model": "lora_model_dir adapter_path adapter_name_or_path",
    "model.freeze_layers": "unfrozen_parameters frozen_layers freeze",
    "data.train.datasets": "dataset datasets train_dataset train_data dataset_mixer",
    "data.train.datasets.0.dataset_path": "dataset_name_or_path data_files data_path train_file train_path",
    "data.train.max_length": "max_seq_length max_seq_len sequence_len seq_len seq_length cutoff_len block_size",
    "data.train.pack": "packing packed sample_packing",
    "data.validation.datasets": "eval_dataset test_datasets valid_dataset validation_file dataset_val",
    "data.validation_fraction": "val_set_size validation_split test_size eval_split val_size",
    "training.trainer_type": "trainer method train_method recipe rl",
    "training.per_device_train_batch_size": "batch_size train_batch_size micro_batch_size per_device_batch_size",
    "training.per_device_eval_batch_size": "eval_batch_size batch_size_val per_gpu_eval_batch_size",
    "training.gradient_accumulation_steps": "gradient_accumulation grad_accum accumulation_steps",
    "training.num_train_epochs": "epochs num_epochs max_epochs n_epochs",
    "training.max_steps": "max_steps_per_epoch total_steps num_steps max_train_steps num_training_steps",
    "training.learning_rate": "lr base_lr peak_lr",
    "training.lr_scheduler_type": "lr_scheduler scheduler lr_schedule lr_decay_style",
    "training.warmup_steps": "num_warmup_steps lr_warmup_steps",
    "training.optimizer": "optim optimizer_name optimizer_type",
    "training.max_grad_norm": "clip_grad_norm gradient_clipping grad_clip gradient_clip_val grad_norm",
    "training.mixed_precision_dtype": "fp16 bf16 mixed_precision precision amp tf32",
    "training.enable_gradient_checkpointing": "gradient_checkpointing enable_activation_checkpointing",
    "training.activation_offloading": "enable_activation_offloading",
    "training.enable_wandb or training.enable_tensorboard": "report_to use_wandb wandb wandb_project metric_logger",
    "training.save_total_limit": "keep_last_n_checkpoints max_checkpoints",
    "training.save_steps": "save_every save_strategy checkpoint_steps saves_per_epoch save_interval",
    "training.eval_steps": "eval_every run_val_every_n_steps evals_per_epoch val_check_interval eval_interval",
    "training.logging_steps": "log_every log_every_n_steps log_interval",
    "training.resume_from_checkpoint": "resume resume_from auto_resume_from_checkpoints",
    "training.seed": "random_seed random_state",
    "training.use_peft": "use_lora adapter",
    "peft (with training.use_peft: true)": "lora peft_config lora_config model_peft",
    "peft.q_lora": "quantization quantize load_in_4bit load_in_8bit quantization_config bnb bits qlora",
    "peft.lora_r": "lora_rank rank r lora_dim",
    "peft.lora_alpha": "alpha",
    "peft.lora_target_modules": "target_modules lora_target lora_attn_modules lora_target_linear",
    "peft.lora_modules_to_save": "modules_to_save",
    "generation.max_new_tokens": "max_generated_tokens max_completion_length",
}
ELSEWHERE: Mapping[str, str] = {theirs: ours for ours, names in _THEIRS.items() for theirs in names.split()}
"""Their name, and our path for it."""


def meant_by(name: str) -> str | None:
    """Our path for a setting of another system, ``training.learning_rate`` for ``lr``; None for one that is unknown."""
    return ELSEWHERE.get(name.casefold().replace("-", "_"))
