"""The resolved configuration as YAML: reading it gives the same, by this package's reader and by PyYAML."""

from __future__ import annotations

import random

import pytest
import yaml

from graftwork.config import RunConfig, load_config
from graftwork.config.reader import read_yaml

TEXTS = [
    "no",
    "1e-5",
    "null",
    "~",
    "",
    "a: b",
    "#x",
    "yes",
    "<<",
    "0x1F",
    "0o7",
    "1_000",
    "2024-01-01",
    "12:30",
    "=",
    "é\n\ty",
    "'",
    "- a",
    "*a",
    " x ",
]


def _random_config(rng):
    def text():
        return rng.choice(TEXTS)

    def options():
        return {
            text(): rng.choice(
                [text(), rng.random() * 10.0 ** rng.randint(-12, 12), None, True, 3, [text()], {"a": []}]
            )
        }

    datasets = [
        {"dataset_name": f"d{text()}", "dataset_kwargs": options(), "seed": rng.choice([None, 3]), "subset": text()}
        for _ in range(rng.randint(0, 3))
    ]
    return RunConfig(
        model={"model_name": f"m{text()}", "freeze_layers": [text()] * rng.randint(0, 2), "model_kwargs": options()},
        data={"train": {"datasets": datasets, "pack": rng.random() < 0.5}},
        training={"learning_rate": 10.0 ** -rng.randint(0, 9), "run_name": text(), "trainer_kwargs": options()},
        peft={"lora_alpha": rng.choice([8, 0.5]), "lora_target_modules": rng.choice([None, "all-linear", [text()]])},
        generation={"stop_strings": [text(), text()], "temperature": rng.random()},
    )


@pytest.mark.parametrize("seed", range(40))
def test_what_is_dumped_reads_back_equal(seed):
    config = _random_config(random.Random(seed))
    text = config.to_yaml()
    data, reader = read_yaml(text, "dumped", RunConfig)
    assert reader.problems == []
    assert RunConfig.model_validate(data) == config
    assert yaml.safe_load(text) == data


def test_a_loaded_configuration_survives_a_round_trip_through_a_file(cwd, minimal):
    overrides = [
        "training.eval_strategy=no",
        "model.peft_params={lora_r: 4}",
        "training.use_peft=true",
        "model.dtype=bf16",
    ]
    config = load_config(minimal, overrides, env={})
    (cwd / "resolved.yaml").write_text(config.to_yaml())
    again = load_config("resolved.yaml", env={})
    assert again == config
    assert again.peft.lora_r == 4
    assert again.to_yaml() == config.to_yaml()


def test_fields_that_do_nothing_here_are_left_out(minimal):
    text = load_config(minimal, env={}).to_yaml()
    assert "enable_liger_kernel" not in text
    assert "deepspeed" not in text
    assert "adam_epsilon: 1.0e-08" in text


def test_where_says_which_line_set_a_value(minimal):
    config = load_config(minimal, ["training.seed=1"], env={"GRAFTWORK_TRAINING__MAX_STEPS": "5"})
    assert config.where("data.train.datasets.0.dataset_path") == "run.yaml:7"
    assert config.where("training.seed") == "command line: training.seed=1"
    assert config.where("training.max_steps") == "environment: GRAFTWORK_TRAINING__MAX_STEPS=5"
    assert config.where("training.save_steps") == ""
