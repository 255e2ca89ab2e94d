"""What a run would be refused for once it has loaded is said before."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 64, "vocab_size": 9, "n_layer": 1}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64, "vocab_size": 9}


@pytest.fixture
def stated(cwd):
    """Writes what the model's config.json says."""

    def write(values):
        (cwd / "model" / "config.json").write_text(json.dumps(values))

    return write


def found(mistakes, minimal, cwd, *overrides):
    return mistakes((cwd / minimal).read_text(), *overrides)


def test_an_attention_whose_package_is_missing(mistakes, minimal, cwd, monkeypatch):
    monkeypatch.setattr("graftwork.builders.attention.importable", lambda module: False)
    (problem,) = found(mistakes, minimal, cwd, "model.attn_implementation=flash_attention_2")
    assert "needs the package flash_attn, which is not installed; sdpa and eager are part of torch" in problem
    monkeypatch.setattr("graftwork.builders.attention.importable", lambda module: True)
    assert found(mistakes, minimal, cwd, "model.attn_implementation=flash_attention_2") == []


def test_an_optimizer_that_does_not_run_here(mistakes, minimal, cwd):
    (problem,) = found(mistakes, minimal, cwd, "training.optimizer=toy_elsewhere", "model.device_map=cpu")
    assert "runs on xpu, and the model goes to cpu here; choose another: adafactor, adamw, sgd" in problem


def test_a_length_beyond_a_table_of_positions(mistakes, minimal, cwd, stated):
    """The table is only looked at where a greater length is asked for: a smaller one costs no import."""
    stated(GPT2)
    longer = ("model.model_max_length=65", "data.train.max_length=65")
    problems = found(mistakes, minimal, cwd, *longer)
    assert len(problems) == 2
    assert all("the model's positions are a table of 64; use at most 64" in problem for problem in problems)
    assert found(mistakes, minimal, cwd, "data.train.max_length=64") == []
    assert found(mistakes, minimal, cwd, "data.train.max_length=65", "model.model_kwargs={n_positions: 65}") == []


def test_rotary_positions_have_no_end(mistakes, minimal, cwd, stated):
    stated(LLAMA)
    assert found(mistakes, minimal, cwd, "data.train.max_length=65", "model.model_max_length=65") == []


def test_none_of_it_loads_torch_where_nothing_asks_for_it(minimal, stated, monkeypatch):
    stated(GPT2)
    monkeypatch.setenv("GRAFTWORK_PLUGINS", "builtin,native")
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers')))\n"
        "from graftwork.config import load_config\n"
        f"load_config({minimal!r}, ['data.train.max_length=64', 'model.attn_implementation=sdpa'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
