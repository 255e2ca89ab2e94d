"""File, environment and command line, each over the one before."""

from __future__ import annotations

import pytest

from graftwork.config import load_config
from graftwork.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        (["training.max_steps=10"], "training.max_steps=10"),
        (["--training.max_steps=10"], "--training.max_steps=10"),
        (["--training.max_steps", "10"], "--training.max_steps 10"),
        (["training.max_steps=5", "--training.max_steps", "10"], "--training.max_steps 10"),
    ],
)
def test_an_override_sets_a_field(minimal, overrides, shown):
    config = load_config(minimal, overrides, env={})
    assert config.training.max_steps == 10
    assert config.where("training.max_steps") == f"command line: {shown}"


def test_the_command_line_is_over_the_environment_which_is_over_the_file(cwd, minimal):
    (cwd / minimal).write_text((cwd / minimal).read_text() + "training: {max_steps: 1, seed: 1, save_steps: 1}\n")
    env = {"GRAFTWORK_TRAINING__MAX_STEPS": "2", "GRAFTWORK_TRAINING__SEED": "2"}
    training = load_config(minimal, ["training.max_steps=3"], env=env).training
    assert (training.max_steps, training.seed, training.save_steps) == (3, 2, 1)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.learning_rate=1e-5", "training.learning_rate", 1e-5),
        ("training.eval_strategy=NO", "training.eval_strategy", "no"),
        ("model.freeze_layers=[a, b]", "model.freeze_layers", ["a", "b"]),
        ("training.trainer_kwargs={beam: 5}", "training.trainer_kwargs", {"beam": 5}),
        ("training.trainer_kwargs.beam=5", "training.trainer_kwargs", {"beam": 5}),
        ("training.run_name='7'", "training.run_name", "7"),
        ("training.max_grad_norm=null", "training.max_grad_norm", None),
        ("training.max_steps=-1", "training.max_steps", -1),
        ("model.dtype=bf16", "model.torch_dtype", "bfloat16"),
    ],
)
def test_values_are_yaml(minimal, override, path, value):
    section, field = path.split(".")
    assert getattr(getattr(load_config(minimal, [override], env={}), section), field) == value


def test_a_negative_number_is_a_value_and_no_option(minimal):
    assert load_config(minimal, ["--training.max_steps", "-1"], env={}).training.max_steps == -1


@pytest.mark.parametrize("spelling", ["data.train.datasets.0.sample_count=5", "data.train.datasets[0].sample_count=5"])
def test_items_of_a_list_are_reached_by_number(minimal, spelling):
    dataset = load_config(minimal, [spelling], env={}).data.train.datasets[0]
    assert (dataset.dataset_name, dataset.sample_count) == ("text_sft", 5)


def test_the_item_after_the_last_is_added(minimal):
    added = ["data.train.datasets.1.dataset_name=text_sft", "data.train.datasets.1.dataset_path=rows.jsonl"]
    assert len(load_config(minimal, added, env={}).data.train.datasets) == 2


def test_a_configuration_can_stand_on_the_command_line_alone():
    first = "--data.train.datasets.0"
    words = f"--model.model_name ./model {first}.dataset_name text {first}.dataset_path rows.jsonl"
    config = load_config(None, words.split(), env={})
    assert (config.model.model_name, config.data.train.datasets[0].dataset_name) == ("./model", "text")


def test_an_alias_on_the_command_line_replaces_the_field_in_the_file(cwd, minimal):
    (cwd / minimal).write_text((cwd / minimal).read_text() + "    stream: true\n")
    assert load_config(minimal, ["data.train.streaming=false"], env={}).data.train.stream is False


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.max_stepz=10"], "command line: training.max_stepz=10: unknown key; did you mean max_steps?"),
        (["--training.max_steps", "x"], "command line: --training.max_steps x: expected a whole number"),
        (["--max-steps", "3"], "command line: --max-steps 3: unknown key; did you mean training.max_steps=3?"),
        (["--save-stepss=3"], "command line: --save-stepss=3: unknown key; did you mean training.save_steps=3?"),
        (["--keep-last", "3"], "command line: --keep-last 3: unknown key; did you mean training.keep_last=3?"),
        (["--training.use_peft"], "command line: --training.use_peft: is no setting; write section.field=value"),
        (["--training.use_peft", "--training.seed=1"], "command line: --training.use_peft: is no setting"),
        (["max_steps"], "command line: max_steps: is no setting; write section.field=value"),
        (["training.run_name=[a"], "command line: training.run_name=[a: the value is not YAML"),
        (["data.train.datasets.5.split=x"], "command line: data.train.datasets.5.split=x: there is no place 5 here"),
        (["training.seed.deep=1"], "command line: training.seed.deep=1: expected a whole number"),
        (["model.model_name.x=1"], "command line: model.model_name.x=1: there is no place x here"),
        (
            ["training.trainer_kwargs={bean: 1}"],
            "trainer_kwargs={bean: 1}: training.trainer_kwargs.bean = 1: unknown key; did you mean beam?",
        ),
    ],
)
def test_a_wrong_override_is_shown_as_it_was_written(minimal, overrides, said):
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, overrides, env={})
    (problem,) = caught.value.problems
    assert said in problem


def test_a_wrong_variable_is_reported_with_the_nearest_name(minimal):
    env = {"GRAFTWORK_TRAINING__MAX_STEPZ": "10", "GRAFTWORK_TRAINNG__SEED": "1"}
    with pytest.raises(ConfigError) as caught:
        load_config(minimal, env=env)
    first, second = caught.value.problems
    assert "environment: GRAFTWORK_TRAINING__MAX_STEPZ=10: unknown key; did you mean max_steps?" in first + second
    assert "environment: GRAFTWORK_TRAINNG__SEED=1: " in first + second
    assert "did you mean training?" in first + second


def test_other_variables_of_graftwork_are_left_alone(minimal):
    names = ("PLUGINS", "HOME", "TEST_DATA", "DEBUG", "DISABLE_PLUGINS")
    assert load_config(minimal, env={f"GRAFTWORK_{name}": "x" for name in names})


def test_the_process_environment_is_used_by_default(minimal, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_DATA__TRAIN__DATASETS__0__SAMPLE_COUNT", "3")
    assert load_config(minimal).data.train.datasets[0].sample_count == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model: [\n", "run.yaml: not YAML: line 2, column 1"),
        (b"a: 1\n--- \nb: 1\n", "not YAML: line 2, column 1"),
        (b"\ttraining: 1\n", "not YAML: line 1, column 1"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"- a\n", "the top of a configuration is a mapping"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml(cwd, content, said):
    (cwd / "run.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.yaml: \d mistake") as caught:
        load_config("run.yaml", env={})
    assert said in caught.value.problems[0]


def test_a_mistake_in_yaml_shows_its_lines(cwd):
    (cwd / "run.yaml").write_text("model:\n  model_name: x\n training: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml", env={})
    assert caught.value.problems[0].splitlines()[1:] == [
        "       2 |   model_name: x",
        "       3 |  training: 1",
        "            ^",
    ]


def test_a_file_that_is_not_there_names_the_nearest(minimal):
    with pytest.raises(ConfigError, match=r"rum\.yaml: there is no such file in .*; did you mean run\.yaml\?"):
        load_config("rum.yaml", env={})


def test_a_folder_is_no_file(cwd):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(cwd, env={})
