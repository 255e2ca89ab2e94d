"""``graft config``: validate, show, schema, init; without torch, without a traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from graftwork.cli import main
from graftwork.config import RunConfig, TrainingParams, load_config

PLUGIN = """
from pydantic import BaseModel, Field
from graftwork import hookimpl
from graftwork.specs import ModelFamily, Preset, TrainerSpec

class TrainerParams(BaseModel):
    beam: int = Field(3, description="How wide.")

@hookimpl
def graftwork_model_families():
    return [ModelFamily(name="toy", presets=(Preset(name="toy_1b", model_type="t", values={}, num_parameters=1),))]

@hookimpl
def graftwork_trainers():
    return [
        TrainerSpec(name="NATIVE", schemas=("text", "chat"), build=None, params=lambda: TrainerParams),
        TrainerSpec(name="TOY_SFT", schemas=("chat",), build=None),
    ]
"""

RUN = """\
model: {model_name: ./model}
data:
  train:
    datasets:
      - dataset_name: text
        dataset_path: rows.txt
training:
  max_steps: 7
"""


@pytest.fixture(autouse=True)
def run_yaml(install_plugin, monkeypatch, tmp_path):
    monkeypatch.setenv("GRAFTWORK_PLUGINS", "builtin,toy")
    monkeypatch.chdir(tmp_path)
    install_plugin(PLUGIN)
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.txt").write_text("text")
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "run.yaml"


@pytest.fixture
def graft(capsys):
    def run(*args):
        code = main(["config", *args])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_validate_says_in_one_line_what_would_run(graft):
    assert graft("validate", "run.yaml") == (0, "run.yaml: valid; NATIVE trains all weights of ./model on text\n", "")


def test_validate_takes_overrides_of_both_forms(graft):
    words = ["--training.use_peft", "true", "training.max_steps=-1", "--training.seed=3", "--training.max_steps", "-1"]
    assert graft("validate", "run.yaml", *words)[:2] == (
        0,
        "run.yaml: valid; NATIVE trains an adapter of ./model on text\n",
    )


def test_validate_shows_all_mistakes_and_exits_with_2(graft, run_yaml):
    run_yaml.write_text(RUN.replace("max_steps", "max_stepz").replace("rows.txt", "row.txt"))
    code, out, err = graft("validate", "run.yaml", "training.seed=x")
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    head, *lines = err.splitlines()
    assert head == "Error: run.yaml: 3 mistakes"
    assert lines[0].startswith("  run.yaml:6: data.train.datasets.0.dataset_path = 'row.txt': there is no such file")
    assert lines[1].startswith("  run.yaml:8: training.max_stepz = 7: unknown key; did you mean max_steps?")
    assert lines[2].startswith("  command line: training.seed=x: expected a whole number")


def test_show_prints_what_reads_back_and_where_values_came_from(graft, run_yaml, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_TRAINING__SEED", "5")
    code, out, _ = graft("show", "run.yaml", "training.run_name=no")
    assert code == 0
    assert "  max_steps: 7  # run.yaml:8\n" in out
    assert "  seed: 5  # environment: GRAFTWORK_TRAINING__SEED=5\n" in out
    assert "  run_name: 'no'  # command line: training.run_name=no\n" in out
    assert "  save_steps: 500\n" in out
    assert yaml.safe_load(out)["training"]["run_name"] == "no"
    run_yaml.with_name("shown.yaml").write_text(out)
    assert load_config("shown.yaml") == load_config("run.yaml", ["training.run_name=no"])


def test_schema_explains_every_field_and_every_plugins_options(graft):
    code, out, _ = graft("schema")
    assert code == 0
    for name, field in TrainingParams.model_fields.items():
        assert re.search(rf"^  {name} .*{re.escape(field.description)}$", out, re.MULTILINE)
    assert re.search(r"^training.trainer_kwargs \(NATIVE\)\n  beam  int  3  How wide\.$", out, re.MULTILINE)
    assert re.search(r"^data\.\*\.datasets\[\]\.dataset_kwargs \(text\)\n(  .*\n)*  text_field ", out, re.MULTILINE)


@pytest.mark.parametrize("section", ["peft", "PEFT", "data.*.datasets[]", "NATIVE", "text_sft"])
def test_schema_of_one_section(graft, section):
    code, out, _ = graft("schema", section)
    assert code == 0
    assert "max_steps" not in out
    assert section.casefold() in out.casefold()


def test_schema_of_no_section_suggests(graft):
    code, _, err = graft("schema", "trainig")
    assert code == 2
    assert "no section 'trainig'; did you mean training?" in err


def test_the_json_schema_is_pydantics_and_holds_the_plugins(graft):
    schema = json.loads(graft("schema", "--json")[1])
    plugins = schema.pop("x-plugins")
    assert schema == json.loads(json.dumps(RunConfig.model_json_schema()))
    assert list(plugins["training.trainer_kwargs"]["NATIVE"]["properties"]) == ["beam"]


@pytest.mark.parametrize(("trainer", "reader"), [("NATIVE", "text"), ("TOY_SFT", "text_sft")])
def test_init_writes_what_is_valid_once_its_two_blanks_are_filled(graft, trainer, reader):
    code, out, _ = graft("init", "--trainer", trainer, "--output", "fresh.yaml")
    said = "fresh.yaml: fill in model_name and dataset_path, then run: graft config validate fresh.yaml\n"
    assert (code, out) == (0, said)
    config = load_config("fresh.yaml", ["model.model_name=./model", "data.train.datasets.0.dataset_path=rows.txt"])
    assert (config.training.trainer_type, config.data.train.datasets[0].dataset_name) == (trainer, reader)


def test_the_comments_of_init_are_the_defaults(graft, run_yaml):
    graft("init", "-o", "fresh.yaml")
    lines = run_yaml.with_name("fresh.yaml").read_text().splitlines()[2:]
    bare = [re.sub(r"^( *)# ( *\w+:)", r"\1\2", line) for line in lines]
    run_yaml.with_name("bare.yaml").write_text("\n".join(bare))
    filled = ["model.model_name=./model", "data.train.datasets.0.dataset_path=rows.txt"]
    explicit, short = load_config("bare.yaml", filled), load_config("fresh.yaml", filled)
    assert explicit.where("training.adam_epsilon").startswith("bare.yaml:")
    assert explicit.training.trainer_kwargs == {"beam": 3}
    explicit.training.trainer_kwargs = {}
    assert explicit == short


def test_init_never_overwrites(graft, run_yaml):
    code, _, err = graft("init", "--output", "run.yaml")
    assert code == 2
    assert "run.yaml exists and is not overwritten; choose another file with --output" in err
    assert run_yaml.read_text() == RUN


def test_init_says_why_it_cannot_write(graft):
    code, _, err = graft("init", "-o", "no/such/folder.yaml")
    assert code == 2
    assert "no/such/folder.yaml cannot be written: No such file or directory" in err


def test_init_of_an_unknown_trainer_suggests(graft):
    code, _, err = graft("init", "--trainer", "TOY_SFTT", "-o", "fresh.yaml")
    assert code == 2
    assert "there is no trainer 'TOY_SFTT'; did you mean TOY_SFT?" in err


def test_init_prints_on_request(graft):
    code, out, _ = graft("init", "-o", "-")
    assert code == 0
    assert "\n  trainer_type: NATIVE  # The training method, by name.\n" in out


HEAVY = ("torch", "transformers", "numpy", "peft", "datasets", "accelerate", "safetensors")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["validate", "run.yaml"], 0),
        (["validate", "run.yaml", "model.chat_template=chatml"], 0),
        (["validate", "run.yaml", "training.trainer_type=NO"], 2),
        (["show", "run.yaml"], 0),
        (["schema", "--json"], 0),
        (["init", "-o", "-"], 0),
    ],
)
def test_nothing_heavy_is_imported(run_yaml, words, code):
    program = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "sys.path.insert(0, 'site')\n"
        "from graftwork.cli import main\n"
        f"sys.exit(main({['config', *words]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_help_names_the_four_commands():
    from graftwork.cli.config import config

    out = CliRunner().invoke(config, ["--help"]).output
    assert all(name in out for name in ("validate", "show", "schema", "init"))


# graft train FILE


def test_train_takes_the_file_without_c(capsys):
    said = []
    for form in (["run.yaml"], ["-c", "run.yaml"]):
        assert main(["train", *form, "training.max_steps=x"]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert "training.max_steps=x: expected a whole number" in said[0]


@pytest.mark.parametrize("words", [(), ("training.max_steps=1",), ("--resume",)])
def test_train_without_a_file_says_how_to_name_one(capsys, words):
    assert main(["train", *words]) == 2
    assert "no configuration: graft train -c run.yaml" in capsys.readouterr().err


def test_train_of_a_misspelt_file_names_the_nearest(capsys):
    assert main(["train", "rum.yaml"]) == 2
    assert "rum.yaml: there is no such file" in capsys.readouterr().err
