"""A plugin that brings one of each thing that a configuration names, and a way to read a configuration's mistakes."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

from graftwork.config import load_config
from graftwork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Mistakes = Callable[..., list[str]]

PLUGIN = """
from pydantic import BaseModel, Field
from graftwork import hookimpl
from graftwork.specs import (
    CollatorSpec, DatasetSpec, ModelFamily, OptimizerSpec, Preset, QuantizerSpec, TrainerSpec
)

class TrainerParams(BaseModel):
    beam: int = Field(3, ge=1, description="How wide.")
    shape: str = "round"

class StrictParams(BaseModel, extra="forbid"):
    q_lora_bits: int = 4
    group_size: int = 64

def broken():
    raise ImportError("no scales here")

@hookimpl
def graftwork_model_families():
    preset = Preset(name="toy_1b", model_type="toy", values={}, num_parameters=1)
    return [ModelFamily(name="toy", model_types=("toy",), presets=(preset,))]

@hookimpl
def graftwork_trainers():
    return [
        TrainerSpec(
            name="NATIVE", aliases=("OUMI",), schemas=("text", "chat"), build=None, params=lambda: TrainerParams
        ),
        TrainerSpec(
            name="TOY_SFT", schemas=("chat",), build=None, ignored_fields=("training.adam_beta1", "data.train.pack")
        ),
        TrainerSpec(name="TOY_GROUPS", schemas=("chat",), build=None, params=lambda: StrictParams),
        TrainerSpec(name="TOY_BROKEN", schemas=("chat",), build=None, params=broken),
    ]

@hookimpl
def graftwork_quantizers():
    return [QuantizerSpec(name="toy8", bits=(8,), devices=("cpu",), params=lambda: StrictParams)]

@hookimpl
def graftwork_optimizers():
    return [OptimizerSpec(name="toy_elsewhere", build=None, devices=("xpu",))]

@hookimpl
def graftwork_datasets():
    return [DatasetSpec(name="toy_pairs", schema="preference", open=None)]

@hookimpl
def graftwork_collators():
    return [CollatorSpec(name="toy_pad", schema="chat", build=None, params=lambda: StrictParams)]
"""


@pytest.fixture(autouse=True)
def cwd(install_plugin, monkeypatch, tmp_path) -> Path:
    """A folder with an (empty) model and one data file, and exactly two plugins: the core's own and the toy."""
    monkeypatch.setenv("GRAFTWORK_PLUGINS", "builtin,toy")
    monkeypatch.chdir(tmp_path)
    install_plugin(PLUGIN)
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    return tmp_path


MINIMAL = """\
model:
  model_name: ./model
data:
  train:
    datasets:
      - dataset_name: text_sft
        dataset_path: rows.jsonl
"""


@pytest.fixture
def minimal(cwd) -> str:
    """The name of a file with the least that a run needs: 7 lines."""
    (cwd / "run.yaml").write_text(MINIMAL)
    return "run.yaml"


@pytest.fixture
def mistakes(cwd) -> Mistakes:
    """``mistakes("yaml text", *overrides, **environment)`` gives the texts of all mistakes, without the file's name."""

    def find(text: str, *overrides: str, **env: str) -> list[str]:
        (cwd / "run.yaml").write_text(textwrap.dedent(text))
        try:
            load_config("run.yaml", overrides, env=env)
        except ConfigError as error:
            return [problem.replace("run.yaml:", "", 1) for problem in error.problems]
        return []

    return find
