"""Configurations in the shape that Oumi's users write for each training method."""

from __future__ import annotations

import pytest

SFT = """\
model:
  model_name: ./model
data:
  train:
    datasets:
      - dataset_name: "text_sft"
        dataset_path: "rows.jsonl"
        split: "train"
    collator_name: "text_with_padding"
training:
  trainer_type: "OUMI"
"""

PRETRAINING = """\
model:
  model_name: ./model
  load_pretrained_weights: false
data:
  train:
    datasets:
      - dataset_name: "text"
        dataset_path: "rows.jsonl"
        streaming: true
    pack: true
    max_length: 2048
training:
  trainer_type: "OUMI"
"""

RECIPE = """\
model:
  model_name: ./model
  model_max_length: 2048
  torch_dtype_str: "bfloat16"
  attn_implementation: "sdpa"
  trust_remote_code: False
data:
  train:
    datasets:
      - dataset_name: text_sft_jsonl
        dataset_path: rows.jsonl
        shuffle: True
        seed: 42
    seed: 42
  validation:
    datasets: [{dataset_name: text_sft_jsonl, dataset_path: rows.jsonl}]
training:
  trainer_type: OUMI
  use_peft: True
  save_steps: 200
  num_train_epochs: 3
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 8
  max_grad_norm: null
  enable_gradient_checkpointing: True
  gradient_checkpointing_kwargs:
    use_reentrant: False
  ddp_find_unused_parameters: False
  optimizer: "adamw_torch"
  learning_rate: 3.0e-04
  lr_scheduler_type: "COSINE"
  warmup_steps: 100
  weight_decay: 0.01
  eval_strategy: "steps"
  compile: False
  dataloader_num_workers: "auto"
  logging_steps: 10
  include_performance_metrics: True
  output_dir: "output/toy.lora"
peft:
  q_lora: False
  lora_r: 8
  lora_alpha: 16
  lora_target_modules: ["q_proj", "k_proj", "v_proj"]
  peft_save_mode: MERGED
"""

VISION = """\
model:
  model_name: ./model
  chat_template: "chatml"
  freeze_layers: ["vision_encoder"]
data:
  train:
    collator_name: "vision_language_with_padding"
    datasets:
      - dataset_name: "vl_sft_jsonl"
        dataset_path: "rows.jsonl"
        trust_remote_code: False
        dataset_kwargs:
          processor_name: "org/vision-model"
training:
  trainer_type: "TRL_SFT"
"""

DPO = """\
model:
  model_name: ./model
data:
  train:
    datasets:
      - dataset_name: "preference_pairs_jsonl"
        dataset_path: "rows.jsonl"
    collator_name: "dpo_with_padding"
training:
  trainer_type: "TRL_DPO"
"""


@pytest.mark.parametrize("text", [SFT, PRETRAINING, RECIPE], ids=["sft", "pretraining", "recipe"])
def test_what_the_installed_methods_can_do_is_valid(mistakes, text):
    assert mistakes(text) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (VISION, ["no collator 'vision_language_with_padding'", "no trainer 'TRL_SFT'"]),
        (DPO, ["no trainer 'TRL_DPO'"]),
    ],
    ids=["vision", "dpo"],
)
def test_of_methods_that_are_not_installed_only_the_names_are_wrong(mistakes, text, missing):
    found = mistakes(text)
    assert len(found) == len(missing)
    for problem, name in zip(found, missing, strict=True):
        assert f"there is {name}" in problem


OUMI_FIELDS = {
    "model": """model_name adapter_model tokenizer_name tokenizer_pad_token tokenizer_kwargs processor_kwargs
        model_max_length load_pretrained_weights trust_remote_code torch_dtype_str compile chat_template
        chat_template_kwargs attn_implementation device_map model_kwargs enable_liger_kernel shard_for_eval
        freeze_layers model_revision tool_call_parser""",
    "peft": """lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save lora_bias lora_init_weights
        lora_task_type q_lora q_lora_bits bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage
        bnb_4bit_compute_dtype peft_save_mode lora_exclude_modules lora_target_parameters llm_int8_skip_modules""",
    "data.train": """datasets collator_name collator_kwargs pack stream target_col mixture_strategy seed
        use_async_dataset use_torchdata train_target""",
    "data.train.datasets": """dataset_name dataset_path subset split dataset_kwargs sample_count mixture_proportion
        shuffle seed shuffle_buffer_size trust_remote_code transform_num_workers""",
    "training": """use_peft trainer_type enable_gradient_checkpointing gradient_checkpointing_kwargs output_dir
        per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps max_steps num_train_epochs
        save_epoch save_steps save_final_model seed run_name metrics_function log_level dep_log_level enable_wandb
        enable_tensorboard logging_strategy logging_dir logging_steps logging_first_step eval_strategy eval_steps
        learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_ratio warmup_steps optimizer weight_decay
        adam_beta1 adam_beta2 adam_epsilon sgd_momentum mixed_precision_dtype compile include_performance_metrics
        log_model_summary resume_from_checkpoint try_resume_from_last_checkpoint dataloader_num_workers
        dataloader_prefetch_factor dataloader_main_process_only ddp_find_unused_parameters max_grad_norm
        trainer_kwargs profiler telemetry empty_device_cache_steps nccl_default_timeout_minutes""",
}


@pytest.mark.parametrize("place", OUMI_FIELDS)
def test_every_field_of_oumis_is_known(place):
    from graftwork.config import RunConfig
    from graftwork.config.fields import known_names, model_at

    model = model_at(RunConfig, tuple(place.split(".")))
    assert set(OUMI_FIELDS[place].split()) <= set(known_names(model))
