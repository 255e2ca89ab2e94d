"""Names, option blocks, files, and settings that contradict each other."""

from __future__ import annotations

import pytest

from graftwork.config import RunConfig, check_config, load_config, plugin_params
from graftwork.errors import ConfigError
from graftwork.registry import get_registry


def problems(file, *overrides):
    try:
        load_config(file, overrides, env={})
    except ConfigError as error:
        return list(error.problems)
    return []


VALIDATION = ("data.validation.datasets.0.dataset_name=text_sft", "data.validation.datasets.0.dataset_path=rows.jsonl")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.trainer_type=TRL_DPO"], "there is no trainer 'TRL_DPO'"),
        (["training.optimizer=adamv"], "there is no optimizer 'adamv'; did you mean adamw?"),
        (["model.family=tory"], "there is no model family 'tory'; did you mean toy?"),
        (["model.tokenizer_impl=hff"], "there is no tokenizer implementation 'hff'; did you mean hf?"),
        (["model.chat_template=chatmll"], "there is no chat template 'chatmll'; did you mean chatml?"),
        (["model.chat_template=./no.jinja"], "chat template no.jinja: there is no such file"),
        (["model.model_name=./nowhere"], "model ./nowhere: there is no folder "),
        (["model.tokenizer_name=./nowhere"], "model ./nowhere: there is no folder "),
        (["model.adapter_model=./nowhere"], "model ./nowhere: there is no folder "),
        (["data.train.collator_name=ppo_with_padding"], "there is no collator 'ppo_with_padding'; did you mean dpo_w"),
        (["peft.quantizer=toy4", "training.use_peft=true"], "there is no quantizer 'toy4'; did you mean toy8?"),
    ],
)
def test_a_name_that_nobody_declares(minimal, overrides, said):
    (problem,) = problems(minimal, *overrides)
    assert said in problem


@pytest.mark.parametrize(
    "override",
    [
        "training.trainer_type=oumi",
        "training.trainer_type=graftwork-toy:native",
        "training.optimizer=ADAMW_TORCH",
        "model.chat_template=CHATML",
        "model.chat_template='{{ messages }}'",
        "model.chat_template=auto",
        "model.model_name=org/name",
        "data.train.collator_name=text_with_padding",
        "data.train.datasets.0.dataset_name=TEXT_SFT_JSONL",
    ],
)
def test_a_name_in_any_case_and_by_every_spelling(minimal, override):
    assert problems(minimal, override) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.trainer_kwargs.bean=4"], "unknown key; did you mean beam? Known: beam, shape"),
        (
            ["training.trainer_kwargs.group_size=4"],
            "=4: unknown key; known: beam, shape; group_size is an option of the trainer TOY_GROUPS",
        ),
        (["training.trainer_kwargs.nothing=4"], "trainer_kwargs.nothing=4: unknown key; known: beam, shape"),
        (["training.trainer_kwargs.beam=0"], "input should be greater than or equal to 1"),
        (["training.trainer_type=TOY_SFT", "training.trainer_kwargs={beam: 3}"], "TOY_SFT takes no options; remove"),
        (
            ["training.trainer_type=TOY_BROKEN"],
            "the options of TOY_BROKEN cannot be checked: ImportError: no scales here",
        ),
        (["data.train.collator_name=toy_pad", "data.train.collator_kwargs.groupsize=1"], "did you mean group_size?"),
        (["data.train.collator_kwargs={a: 1}"], "options of which collator? Set collator_name too"),
        (["data.train.datasets.0.dataset_kwargs.message_field=x"], "did you mean messages_field?"),
        (
            ["peft.quantizer=toy8", "training.use_peft=true", "peft.quantizer_kwargs={gruop_size: 1}"],
            "did you mean group_size?",
        ),
        (["peft.quantizer_kwargs={a: 1}"], "options of which quantizer? Set peft.quantizer, or peft.q_lora"),
        (["training.trainer_type=TOY_SFT", "training.adam_beta1=0.8"], "the trainer TOY_SFT cannot honour it"),
        (["training.trainer_type=TOY_SFT", "data.train.pack=true"], "data.train.pack=true: the trainer TOY_SFT cannot"),
    ],
)
def test_options_of_a_plugin(minimal, overrides, said):
    (problem,) = problems(minimal, *overrides)
    assert said in problem


def test_an_ignored_field_at_its_default_is_no_mistake(minimal):
    assert problems(minimal, "training.trainer_type=TOY_SFT", "training.adam_beta1=0.9") == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.eval_strategy=steps"], "there is nothing to evaluate on: data.validation.datasets is empty"),
        ([*VALIDATION, "training.early_stopping_patience=2"], "needs evaluations; set training.eval_strategy"),
        ([*VALIDATION, "training.load_best_model_at_end=true"], "needs evaluations; set training.eval_strategy"),
        ([*VALIDATION, "training.keep_best=2"], "needs evaluations; set training.eval_strategy"),
        (["training.warmup_ratio=0.1", "training.warmup_steps=3"], "training.warmup_steps = 3 says the same"),
        (["training.lr_scheduler_kwargs={min_lr: 0.1}"], "not an option of the schedule linear"),
        (
            ["training.lr_scheduler_type=cosine_with_restarts", "training.lr_scheduler_kwargs={num_cycle: 1}"],
            "did you mean num_cycles?",
        ),
        (
            ["training.lr_scheduler_type=cosine_with_min_lr", "training.lr_scheduler_kwargs={min_lr: x}"],
            "expected a number",
        ),
        (["peft.q_lora=true", "peft.q_lora_bits=8"], "an adapter on them is; set training.use_peft to true"),
        (["peft.q_lora=true", "training.use_peft=true"], "no installed plugin quantizes to 4 bits (peft.q_lora_bits)"),
        (
            ["data.train.datasets.0.dataset_name=toy_pairs"],
            "gives preference rows, and the trainer NATIVE takes text or chat",
        ),
        (
            ["training.trainer_type=TOY_SFT", "data.train.datasets.0.dataset_name=text"],
            "gives text rows, and the trainer TOY_SFT takes chat",
        ),
        (
            [*VALIDATION, "data.train.collator_name=text_with_padding", "data.validation.collator_name=toy_pad"],
            "one run has one collator",
        ),
        (
            ["data.train.datasets.0.mixture_proportion=0.5"],
            "the proportions of the split are 0.5 = 0.5; they must add up to 1",
        ),
        (["model.model_max_length=0"], "input should be greater than 0"),
        (["model.model_max_length=-5"], "input should be greater than 0"),
        (["training.resume_from_checkpoint=nowhere"], "there is no such folder in "),
        (["training.output_dir=rows.jsonl"], "is a file; name a folder"),
        (["data.train.datasets.0.dataset_path=null"], "missing; text_sft reads a file or folder"),
        (["data.train.datasets.0.split=test"], "files have no split; remove it, and name in dataset_path"),
        (["data.train.datasets.0.subset=en"], "files have no subset; remove it, and name in dataset_path"),
        (
            ["model.model_name=toy_1b", "model.tokenizer_name=./model"],
            "a preset is an architecture without weights; set",
        ),
        (["model.model_name=preset:toy_1b", "model.load_pretrained_weights=false"], "a preset has no tokenizer; set"),
        (["data.train.datasets.0.dataset_path=row.jsonl"], "there is no such file or folder in "),
        (["data.train.datasets.0.dataset_path=row.jsonl"], "; did you mean rows.jsonl?"),
        (["data.train.datasets.0.dataset_path=ROWS.jsonl"], "; did you mean rows.jsonl?"),
        (["model.peft_params={lora_r: 4}", "peft.lora_r=5"], "differs from the section peft; keep one"),
    ],
)
def test_settings_that_contradict(minimal, overrides, said):
    (problem,) = problems(minimal, *overrides)
    assert said in problem


def test_a_preset_with_fresh_weights_and_a_tokenizer_is_complete(minimal):
    fresh = ("model.load_pretrained_weights=false", "model.tokenizer_name=./model")
    assert problems(minimal, "model.model_name=toy_1b", *fresh) == []


def test_one_proportion_asks_for_all(minimal):
    second = ["data.train.datasets.1.dataset_name=text_sft", "data.train.datasets.1.dataset_path=rows.jsonl"]
    (problem,) = problems(minimal, *second, "data.train.datasets.1.mixture_proportion=1")
    assert "data.train.datasets.0.mixture_proportion: missing; where one dataset of a split has a" in problem
    shares = ["data.train.datasets.0.mixture_proportion=0.3", "data.train.datasets.1.mixture_proportion=0.7"]
    assert problems(minimal, *second, *shares) == []


def test_a_path_that_is_relative_to_the_file_is_recognised(cwd, minimal):
    folder = cwd / "configs"
    folder.mkdir()
    (folder / "near.jsonl").write_text("")
    (folder / "run.yaml").write_text((cwd / minimal).read_text().replace("rows.jsonl", "near.jsonl"))
    (problem,) = problems("configs/run.yaml")
    assert problem.startswith("configs/run.yaml:7: data.train.datasets.0.dataset_path = 'near.jsonl': ")
    assert problem.endswith("paths are relative to the working directory: did you mean configs/near.jsonl?")


def test_quantizers_take_the_fields_of_peft_that_they_have(minimal):
    base = ["training.use_peft=true", "peft.q_lora=true", "peft.q_lora_bits=8"]
    assert problems(minimal, *base, "peft.quantizer=toy8", "peft.quantizer_kwargs={group_size: 32}") == []


def test_a_configuration_built_in_python_is_checked_the_same_way():
    config = RunConfig(
        model={"model_name": "./model"},
        data={"train": {"datasets": [{"dataset_name": "text", "dataset_path": "gone.txt"}]}},
        training={"eval_strategy": "steps"},
    )
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "data.train.datasets.0.dataset_path = 'gone.txt'",
        "training.eval_strategy = 'steps'",
    ]


def test_plugin_params_gives_the_plugins_own_model():
    spec = get_registry().trainers["NATIVE"]
    assert plugin_params(spec, {"beam": 5}).model_dump() == {"beam": 5, "shape": "round"}
    assert plugin_params(get_registry().trainers["TOY_SFT"], {}) is None
    with pytest.raises(ConfigError, match="options of NATIVE: 2 mistakes"):
        plugin_params(spec, {"beam": 0, "bean": 1})


def test_a_list_without_a_dash_is_told_where_to_put_it(minimal, cwd):
    """It said "expected a list", and not how one is written."""
    text = (cwd / minimal).read_text()
    dash = text.replace("- dataset_name", "  dataset_name")
    assert dash != text
    (cwd / minimal).write_text(dash)
    (problem,) = problems(minimal)
    assert problem.endswith(
        ": expected a list; put '- ' before its first key, and indent the others to stand below that key"
    )
    (cwd / minimal).write_text(text)
    assert problems(minimal) == [], "what it says to do helps"


def test_a_single_value_where_a_list_is_expected(minimal):
    (problem,) = problems(minimal, "model.freeze_layers=embeddings")
    assert problem.endswith(": expected a list; put it in [ ], or on a line of its own after '- '")
    assert problems(minimal, "model.freeze_layers=[embeddings]") == []
