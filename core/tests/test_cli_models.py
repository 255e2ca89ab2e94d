"""``graft models`` and ``graft merge``, as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from graftwork.cli import main

if TYPE_CHECKING:
    from pathlib import Path

PLUGIN = """
from graftwork import hookimpl
from graftwork.specs import ModelFamily, Preset

@hookimpl
def graftwork_model_families():
    small = Preset(name="toy_s", model_type="toy", values={}, num_parameters=15_000_000, aliases=("toy-small",),
                   hub_ids=("org/toy-s", "org/toy-s-old"), chat_template="chatml")
    large = Preset(name="toy_l", model_type="toy", values={}, num_parameters=8_030_261_248)
    return [ModelFamily(name="toy", model_types=("gpt2", "toy"), presets=(small, large), chat_template="own")]
"""


@pytest.fixture
def graft(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(map(str, arguments)))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_presets_are_listed(install_plugin: Any, graft: Any) -> None:
    install_plugin(PLUGIN)
    code, out, err = graft("models", "ls")
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=3) for line in out.splitlines()]
    assert lines[1] == ["toy_l", "toy", "8.03B", "-"]
    assert lines[2] == ["toy_s", "toy", "15M", "org/toy-s, org/toy-s-old"]
    assert "Families: generic, toy." in out


def test_presets_as_json(install_plugin: Any, graft: Any) -> None:
    install_plugin(PLUGIN)
    listed = json.loads(graft("models", "ls", "--json")[1])
    assert listed["families"] == ["generic", "toy"]
    assert listed["presets"][1] == {
        "name": "toy_s",
        "aliases": ["toy-small"],
        "family": "toy",
        "model_type": "toy",
        "num_parameters": 15_000_000,
        "hub_ids": ["org/toy-s", "org/toy-s-old"],
        "chat_template": "chatml",
    }
    assert listed["presets"][0]["chat_template"] == "own"


def test_without_a_family_that_is_said(install_plugin: Any, graft: Any) -> None:
    install_plugin("", name="nothing")
    assert "No preset: no plugin with a model family is installed." in graft("models", "ls")[1]


def test_a_preset_is_explained(install_plugin: Any, graft: Any) -> None:
    install_plugin(PLUGIN)
    facts = json.loads(graft("models", "resolve", "toy-small", "--json")[1])
    assert facts == {
        "name": "toy_s",
        "kind": "preset",
        "why": "a preset",
        "model_type": "toy",
        "parameters": "15,000,000",
        "family": "toy (graftwork-toy 1.0)",
    }


def test_generic_says_what_is_unproven(install_plugin: Any, toy_model: Any, graft: Any) -> None:
    path = toy_model("gpt2")
    install_plugin("", name="nothing")
    code, out, _ = graft("models", "resolve", path)
    assert code == 0
    assert "family        generic (graftwork 0.1.0)" in out
    unproven = out.partition("unproven")[2]
    for what in ("packed training equals padded", "stop tokens", "chat template", "where a LoRA goes"):
        assert what in unproven
    install_plugin(PLUGIN)
    claimed = json.loads(graft("models", "resolve", path, "--json")[1])
    assert claimed["family"] == "toy (graftwork-toy 1.0)"
    assert claimed["architecture"] == "GPT2LMHeadModel"
    assert claimed["path"] == str(path)
    assert "unproven" not in claimed


def test_a_hub_model_is_not_downloaded_to_explain_it(
    graft: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("graftwork.cli.models.cached", lambda name: None)
    code, out, _ = graft("models", "resolve", "org/name", "--revision", "v1")
    assert code == 0
    assert "a Hub id, because there is no folder org/name here" in out
    assert "revision  v1" in out
    assert "not known before the download" in out


def test_an_adapter_is_explained(graft: Any, tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    for base, text in (
        (None, "not recorded: give the base as model_name"),
        ("org/base", "org/base (a Hub id"),
        ("/gone", "/gone, which is not to be had: model /gone: there is no folder"),
    ):
        file.write_text(json.dumps({"base_model_name_or_path": base}))
        assert text in graft("models", "resolve", tmp_path)[1]


def test_names_that_mean_nothing_leave_with_2(install_plugin: Any, graft: Any, tmp_path: Path) -> None:
    install_plugin(PLUGIN)
    code, out, err = graft("models", "resolve", "toy_x")
    assert (code, out) == (2, "")
    assert err.startswith("Error: model 'toy_x' is neither a folder here, a card nor a preset: did you mean toy_")
    code, _, err = graft("models", "resolve", tmp_path)
    assert code == 2
    assert "there is no config.json" in err


def test_torch_is_not_needed_to_explain(toy_model: Any) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'numpy', 'peft', 'huggingface_hub'): sys.modules[name] = None\n"
        "from graftwork.cli import main\n"
        "sys.exit(main(['models', 'resolve', sys.argv[1]]) or main(['models', 'ls']) or "
        "main(['models', 'resolve', 'org/name']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(toy_model("gpt2"))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "GPT2LMHeadModel" in done.stdout


def test_merge(toy_model: Any, tmp_path: Path, graft: Any) -> None:
    from graftwork import ModelParams, PeftParams, attach_adapter, build_model

    base = toy_model("gpt2")
    attach_adapter(build_model(ModelParams(model_name=str(base))), PeftParams()).save_pretrained(tmp_path / "adapter")
    code, out, _ = graft("merge", tmp_path / "adapter", "--output-dir", tmp_path / "merged")
    assert code == 0
    assert f"merged model: {tmp_path / 'merged'}" in out
    assert f"graft generate {tmp_path / 'merged'} --prompt '...'" in out
    assert (tmp_path / "merged/model.safetensors").is_file()
    base.rename(tmp_path / "moved")
    code, _, err = graft("merge", tmp_path / "adapter", "--output-dir", tmp_path / "second")
    assert code == 2
    assert "graft merge: --base" in err
    code, _, err = graft(
        "merge", tmp_path / "adapter", "--base", tmp_path / "moved", "--output-dir", tmp_path / "second"
    )
    assert code == 0
    assert "make sure that they are the same" in err
    assert (tmp_path / "second/model.safetensors").read_bytes() == (tmp_path / "merged/model.safetensors").read_bytes()
    code, _, err = graft("merge", tmp_path / "adapter", "--output-dir", tmp_path / "second")
    assert code == 2
    assert "nothing is overwritten" in err
