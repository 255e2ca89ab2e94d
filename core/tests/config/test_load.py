"""Every mistake of a configuration, at once, each with place, path, value and the nearest right name."""

from __future__ import annotations

import logging

import pytest

from graftwork.config import load_config
from graftwork.errors import ConfigError

WRONG = """\
modle:
  model_name: x
model:
  model_name: toy_2b
  torch_dtype: bf17
  freeze_layers: [a, {}]
data:
  train:
    colator_name: text_with_padding
    datasets:
      - dataset_name: text_stf
        dataset_path: rows.json
      - dataset_name: toy_pairs
        mixture_proportion: 1.5
        dataset_kwargs: {a: 1}
training:
  trainer_type: NATIV
  max_stepz: 10
  learning_rate: fast
  seed: true
  use_peft: false
  eval_strategy: steps
  enable_wandb: true
  lora_r: 8
  seed: 3
peft: 5
generation:
  top_p: 0
"""

FOUND = [
    "1: modle = {'model_name': 'x'}: unknown key; did you mean model? Known: ",
    "4: model.model_name = 'toy_2b': model 'toy_2b' is neither a folder here, a card nor a preset: did you mean ",
    "5: model.torch_dtype = 'bf17': not a choice; ",
    "6: model.freeze_layers.1 = {}: expected a text",
    "9: data.train.colator_name = 'text_with_padding': unknown key; did you mean collator_name?",
    "11: data.train.datasets.0.dataset_name = 'text_stf': there is no dataset 'text_stf'; did you mean text_sft?",
    "12: data.train.datasets.0.dataset_path = 'rows.json': there is no such file or folder in ",
    "14: data.train.datasets.1.mixture_proportion = 1.5: input should be less than or equal to 1",
    "15: data.train.datasets.1.dataset_kwargs = {'a': 1}: toy_pairs takes no options; remove them",
    "17: training.trainer_type = 'NATIV': there is no trainer 'NATIV'; did you mean NATIVE?",
    "18: training.max_stepz = 10: unknown key; did you mean max_steps?",
    "19: training.learning_rate = 'fast': expected a number",
    "20: training.seed = True: expected a number, not true or false",
    "22: training.eval_strategy = 'steps': there is nothing to evaluate on: data.validation.datasets is empty",
    "23: training.enable_wandb = True: the plugin wandb, which writes to Weights & Biases, is blocked: ",
    "24: training.lora_r = 8: unknown key; did you mean peft.lora_r?",
    "25: training.seed: written twice, at lines 20 and 25; keep one",
    "26: peft = 5: expected a block of settings, not a single value or a list",
    "28: generation.top_p = 0: input should be greater than 0",
]


def test_all_mistakes_of_all_kinds_are_reported_at_once_in_order(mistakes):
    found = mistakes(WRONG, "training.max_steps=x", GRAFTWORK_TRAINING__RUN_NAM="y")
    for problem, expected in zip(found, FOUND, strict=False):
        assert problem.startswith(expected)
    assert len(found) == len(FOUND) + 2
    assert any(problem.startswith("command line: training.max_steps=x: expected a whole number") for problem in found)
    assert any(
        problem.startswith("environment: GRAFTWORK_TRAINING__RUN_NAM=y: unknown key; did you") for problem in found
    )


def test_the_message_names_the_file_and_counts(cwd):
    (cwd / "run.yaml").write_text(WRONG)
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml", env={})
    lines = str(caught.value).splitlines()
    assert lines[0] == f"run.yaml: {len(FOUND)} mistakes"
    assert sum(line.startswith("  run.yaml:") for line in lines) == len(FOUND)
    assert caught.value.exit_code == 2


def test_a_mistake_hides_no_other_one_and_makes_none(mistakes):
    """The schedule is wrong, so nothing is said of its options; the proportions are judged all the same."""
    found = mistakes("""\
        model: {model_name: ./model}
        data:
          train:
            datasets:
              - {dataset_name: text, dataset_path: rows.jsonl, mixture_proportion: 0.5, spilt: x}
              - {dataset_name: text, dataset_path: rows.jsonl, mixture_proportion: 0.4}
        training: {lr_scheduler_type: cosin, lr_scheduler_kwargs: {num_cycles: 2}}
    """)
    assert len(found) == 3
    assert "datasets.0.spilt = 'x': unknown key; did you mean split?" in found[0] + found[1]
    assert "0.5 + 0.4 = 0.9; they must add up to 1" in found[0] + found[1]
    assert "lr_scheduler_type = 'cosin': not a choice; did you mean cosine?" in found[2]


def test_what_is_missing_is_named(mistakes):
    assert mistakes("model: {}\n") == [
        "1: model.model_name: missing. A folder, a Hub id (org/name), a preset or a registered model.",
        "data.train.datasets: empty; name at least one dataset to train on",
    ]
    assert mistakes("") == [
        "model: missing; set at least model.model_name: A folder, a Hub id (org/name), a preset or a registered model.",
        "data.train.datasets: empty; name at least one dataset to train on",
    ]


@pytest.mark.parametrize("place", ["training.model_name", "peft.dataset_name", "data.model", "data.train.model_name"])
def test_a_required_name_in_the_wrong_section_is_an_unknown_key(minimal, place):
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, [f"{place}=x"], env={})
    (problem,) = caught.value.problems
    assert problem.startswith(f"command line: {place}=x: unknown key; ")


def test_blocks_and_lists_left_empty_are_as_if_left_out(cwd, minimal):
    text = (cwd / minimal).read_text()
    config = load_config(minimal, env={})
    (cwd / minimal).write_text(text + "        dataset_kwargs:\n  validation:\ntraining:\npeft:\n")
    assert load_config(minimal, env={}) == config


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("enable_liger_kernel: true", "model.enable_liger_kernel = True: not supported here; remove it"),
        ("shard_for_eval: true", "not supported here; remove it and use device_map"),
        ("processor_kwargs: {a: 1}", "not supported here; remove it: no installed plugin has processors"),
        ("tool_call_parser: hermes", "not supported here; remove it"),
    ],
)
def test_what_nothing_here_does_yet_is_refused_not_ignored(mistakes, line, said):
    found = mistakes(f"model:\n  model_name: ./model\n  {line}\n", "data.train.datasets.0.dataset_name=toy_pairs")
    assert any(said in problem and problem.startswith("3: model.") for problem in found)


NEUTRAL = """\
model: {model_name: ./model, enable_liger_kernel: false, shard_for_eval: false}
data:
  train:
    use_async_dataset: false
    use_torchdata: null
    target_col: null
    datasets: [{dataset_name: text, dataset_path: rows.jsonl, trust_remote_code: false, transform_num_workers: auto}]
training:
  enable_wandb: false
  dataloader_num_workers: auto
  dataloader_prefetch_factor: null
  dataloader_main_process_only: null
  ddp_find_unused_parameters: false
  empty_device_cache_steps: null
  nccl_default_timeout_minutes: null
  profiler: {}
  telemetry: {}
  logging_dir: null
  metrics_function: null
fsdp: {enable_fsdp: false}
deepspeed: {enable_deepspeed: false}
"""


def test_neutral_values_of_the_same_fields_are_accepted(mistakes):
    assert mistakes(NEUTRAL) == []


@pytest.mark.parametrize(
    "override",
    [
        "training.dataloader_num_workers=4",
        "training.dataloader_prefetch_factor=2",
        "training.profiler={enable_cpu_profiling: true}",
        "training.telemetry={collect_telemetry_for_all_ranks: true}",
        "training.metrics_function=mmlu",
        "training.empty_device_cache_steps=50",
        "fsdp={enable_fsdp: true, backward_prefetch: no_prefetch}",
        "fsdp={enable_fsdp: true, use_orig_params: false}",
        "deepspeed={enable_deepspeed: true}",
        "data.train.use_async_dataset=true",
        "data.train.datasets.0.trust_remote_code=true",
        "generation.presence_penalty=0.5",
    ],
)
def test_other_values_of_them_are_refused(minimal, override):
    with pytest.raises(ConfigError, match="not supported here; ") as caught:
        load_config(minimal, [override], env={})
    assert caught.value.problems[0].startswith(f"command line: {override}: ")


def test_a_peft_section_without_use_peft_asks_which_is_meant(minimal, caplog):
    """Oumi trains all weights then, without a word; a written false is an answer, which is said."""
    with caplog.at_level(logging.WARNING, "graftwork"):
        with pytest.raises(ConfigError) as caught:
            load_config(minimal, ["peft.lora_r=16"], env={})
        load_config(minimal, ["peft.lora_r=16", "training.use_peft=true"], env={})
        load_config(minimal, ["peft.lora_r=8"], env={})
        assert not caplog.messages
        load_config(minimal, ["peft.lora_r=16", "training.use_peft=false"], env={})
    (problem,) = caught.value.problems
    assert "peft.lora_r is set and training.use_peft is not, so all weights would be trained; set" in problem
    assert caplog.messages == [
        "the section peft has no effect, because training.use_peft is false: all weights are trained"
    ]


@pytest.mark.parametrize("name", ["save_mode", "peft_save_mode"])
def test_how_to_save_an_adapter_without_one(minimal, name):
    """As every other setting of an adapter: nothing would be merged."""
    with pytest.raises(ConfigError, match=r"peft\.save_mode is set and training\.use_peft is not, so all weights"):
        load_config(minimal, [f"peft.{name}=merged"], env={})


def test_deepspeed_is_refused_with_its_counterpart(minimal):
    with pytest.raises(ConfigError, match=r"PyTorch's own FSDP2 shards the same; fsdp: \{enable_fsdp: true\} is ZeRO"):
        load_config(minimal, ["deepspeed={enable_deepspeed: true, zero_stage: ZERO_2}"])


def test_a_quantized_weight_is_not_cut(minimal):
    overrides = ["fsdp.enable_fsdp=true", "training.use_peft=true", "peft.quantizer=toy8"]
    with pytest.raises(ConfigError, match=r"peft\.quantizer=toy8: a quantized weight cannot be cut over processes"):
        load_config(minimal, overrides)


def test_the_keys_of_fsdp_are_read_in_any_case(minimal):
    overrides = ["fsdp={enable_fsdp: true, sharding_strategy: shard_grad_op, auto_wrap_policy: no_wrap}"]
    fsdp = load_config(minimal, overrides).fsdp
    assert (fsdp.sharding_strategy, fsdp.auto_wrap_policy, fsdp.shards) == ("SHARD_GRAD_OP", "NO_WRAP", True)
    assert not load_config(minimal, ["fsdp.enable_fsdp=true", "fsdp.sharding_strategy=NO_SHARD"]).fsdp.shards
    with pytest.raises(ConfigError, match=r"did you mean FULL_SHARD\?"):
        load_config(minimal, ["fsdp.sharding_strategy=full_shrd"])
