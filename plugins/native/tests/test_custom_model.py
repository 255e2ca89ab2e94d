"""A model of somebody's own, on graftwork's ``BaseModel``: trains, takes a LoRA, comes back, generates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from graftwork import BaseModel, ModelParams, build_model, merge_adapter, train

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.tensor([[5, 9, 3, 7]])


class RecurrentForTest(BaseModel):
    """A GRU: state runs through the row, so samples must not stand side by side."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids: torch.Tensor, labels: Any = None, **kwargs: Any) -> torch.Tensor:
        states, _ = self.gru(self.embed(input_ids))
        logits: torch.Tensor = self.head(states)
        return logits


@pytest.fixture
def model(toys: Any, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    RecurrentForTest({"vocab_size": 260, "hidden_size": 16}).save_pretrained(tmp_path / "mine")
    toys.tokenizer().save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("use_peft", [False, True])
def test_the_native_trainer_trains_it(
    toys: Any, tmp_path: Path, model: Path, chat: dict[str, Any], use_peft: bool, caplog: pytest.LogCaptureFixture
) -> None:
    training = {"use_peft": use_peft, "max_steps": 8, "learning_rate": 0.03, "per_device_train_batch_size": 12}
    peft = {"lora_r": 4, "lora_target_modules": ["head"]}
    train(toys.config(tmp_path, model, chat, training={**training, "trainer_kwargs": {"sample_count": 1}}, peft=peft))
    run = tmp_path / "run"
    assert "samples are padded, not packed into one row of segments: RecurrentForTest" in caplog.text
    assert json.loads((run / "run.json").read_text())["layout"] == "padded batches"
    losses = [row["loss"] for row in toys.metrics(run) if "loss" in row]
    assert losses[-1] < losses[0] - 0.1
    final = run / "final"
    if use_peft:
        merge_adapter(final, output_dir=tmp_path / "merged")
        final = tmp_path / "merged"
    again = build_model(ModelParams(model_name=str(final)))
    assert type(again) is RecurrentForTest
    output = again.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert output.shape == (1, 7)
    with torch.no_grad():
        assert not torch.equal(again(IDS).logits, build_model(ModelParams(model_name=str(model)))(IDS).logits)


def test_packing_does_not_change_what_it_learns(toys: Any, tmp_path: Path, model: Path, chat: dict[str, Any]) -> None:
    """Several samples in a block are taken apart again for a model that needs them padded."""
    losses = []
    for pack, size in ((False, 12), (True, 1)):
        data = {"train": {**chat["train"], "pack": pack, "max_length": 128 if not pack else 2000}}
        output_dir = str(tmp_path / f"packed {pack}")
        training = {"output_dir": output_dir, "max_steps": 2, "per_device_train_batch_size": size}
        train(toys.config(tmp_path, model, data, training=training))
        losses.append([row["loss"] for row in toys.metrics(tmp_path / f"packed {pack}")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_preference_pairs_are_padded_for_it(
    toys: Any, tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its state would run from the chosen answer into the rejected one: each answer has its own prompt, padded."""
    path = toys.pairs(tmp_path / "pairs.jsonl")
    data = {"train": {"datasets": [{"dataset_name": "preference_pairs_jsonl", "dataset_path": str(path)}]}}
    training = {"trainer_type": "NATIVE_DPO", "max_steps": 6, "learning_rate": 0.03, "per_device_train_batch_size": 12}
    train(toys.config(tmp_path, model, data, training=training))
    assert "samples are padded" in caplog.text
    lines = toys.metrics(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert lines[-1]["rewards/margins"] > 0.05
    assert lines[-1]["rewards/accuracies"] > 0.9
