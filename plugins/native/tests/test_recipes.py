"""The recipes that come with graftwork, run on a toy as their own first lines say."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from graftwork import ModelParams, build_model
from graftwork.recipes import recipes

if TYPE_CHECKING:
    from pathlib import Path

SMALL = (
    "model.device_map=cpu",
    "data.train.max_length=64",
    "training.max_steps=3",
    "training.enable_tensorboard=false",
)


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_trains(name: str, toys: Any, llama: Path, graft: Any, tmp_path: Path) -> None:
    quantized = name == "sft-qlora"
    if quantized and find_spec("graftwork_bitsandbytes") is None:
        pytest.skip("sft-qlora needs graftwork-bitsandbytes")
    write = {"pretrain": toys.text, "dpo": toys.pairs}.get(name.partition("-")[0], toys.chat)
    rows = write(tmp_path / "rows.jsonl")
    places = (
        f"model.model_name={llama}",
        f"data.train.datasets.0.dataset_path={rows}",
        f"training.output_dir={tmp_path}/run",
    )
    assert graft("recipes", "run", name, *places, *SMALL) == 0, graft.said

    steps = [line for line in toys.metrics(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in steps][-1] == 3
    final = tmp_path / "run" / "final"
    if "lora" in name:
        changed = load_file(final / "adapter_model.safetensors")
        assert any(tensor.abs().max() > 0 for key, tensor in changed.items() if "lora_B" in key)
    else:
        before, after = (load_file(folder / "model.safetensors") for folder in (llama, final))
        assert before.keys() == after.keys()
        assert not any(torch.equal(before[key], after[key]) for key in before)
    model = build_model(ModelParams(model_name=str(final), device_map="cpu"))
    assert model(torch.arange(8)[None]).logits.isfinite().all()
