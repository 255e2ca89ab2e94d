"""Modules that an adapter names and the model lacks are said before data are prepared."""

from __future__ import annotations

from typing import Any

import pytest

from graftwork import train
from graftwork.check.check import check_run
from graftwork.errors import UsageError


@pytest.mark.parametrize(
    ("peft", "said"),
    [
        ({"lora_target_modules": ["q_porj"]}, "peft.lora_target_modules: 'q_porj' is no module and no role"),
        ({"lora_modules_to_save": ["lm_haed"]}, "peft.lora_modules_to_save: 'lm_haed' is no module of this model"),
    ],
)
def test_a_name_that_the_model_lacks(
    toys: Any, llama: Any, tmp_path: Any, monkeypatch: Any, peft: dict[str, Any], said: str
) -> None:
    toys.chat(tmp_path / "chat.jsonl")
    data = {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(tmp_path / "chat.jsonl")}]}}
    config = toys.config(tmp_path, llama, data, training={"use_peft": True}, peft=peft)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    report = check_run(str(tmp_path / "run.yaml"))
    assert any(said in line.text for part in report.parts for line in part.lines if line.status == "error")

    def prepared(*_: Any) -> None:
        pytest.fail("data were prepared first")

    monkeypatch.setattr("graftwork_native.setup.load_split", prepared)
    with pytest.raises(UsageError) as caught:
        train(config)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_peft_section_that_has_no_effect_is_a_warning_of_the_check(toys: Any, llama: Any, tmp_path: Any) -> None:
    toys.chat(tmp_path / "chat.jsonl")
    data = {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(tmp_path / "chat.jsonl")}]}}
    config = toys.config(tmp_path, llama, data, training={"use_peft": False}, peft={"lora_r": 3})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    part = check_run(str(tmp_path / "run.yaml")).parts[0]
    assert any(line.status == "warn" and "all weights are trained" in line.text for line in part.lines)
