"""The family does what every family does: it is found, trains, and comes back as it was saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from graftwork_gru.plugin import GRU_1M

from graftwork import ModelParams, attach_adapter, build_model, load_config, merge_adapter, train
from graftwork.config import PeftParams
from graftwork.registry import get_registry

if TYPE_CHECKING:
    import pytest

FRESH = ModelParams(model_name="gru_1m", load_pretrained_weights=False)
IDS = torch.arange(12).reshape(2, 6)


def test_the_preset_has_the_size_it_says() -> None:
    assert sum(weight.numel() for weight in build_model(FRESH).parameters()) == GRU_1M.num_parameters


def test_no_token_sees_a_later_one() -> None:
    model = build_model(FRESH).eval()
    torch.testing.assert_close(model(IDS).logits[:, :3], model(IDS[:, :3]).logits)


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model = build_model(FRESH).eval()
    model.save_pretrained(tmp_path)
    again = build_model(ModelParams(model_name=str(tmp_path))).eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_fresh_adapter_changes_nothing_and_merges_away() -> None:
    model = build_model(FRESH).eval()
    before = model(IDS).logits
    adapted = attach_adapter(model, PeftParams(lora_r=4))
    torch.testing.assert_close(adapted(IDS).logits, before)
    torch.testing.assert_close(merge_adapter(adapted)(IDS).logits, before)


def test_it_trains_and_generates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[4])  # its paths are relative to the root of the repository
    config = Path(__file__).parent.parent / "pretrain.yaml"
    result = train(load_config(config, ["training.max_steps=3", f"training.output_dir={tmp_path / 'run'}"]))
    model = build_model(ModelParams(model_name=str(result.model_path)))
    assert model.generate(IDS[:1], max_new_tokens=4).shape == (1, 10)


def test_it_is_a_family_like_any_other() -> None:
    registry = get_registry()
    assert registry.family_for("gru").name == "gru"
    assert registry.presets["gru_1m"] is GRU_1M
