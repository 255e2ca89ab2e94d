"""A saved model stops where the turns of its training end, in transformers' generate and in ``graft generate``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftwork.adapters import merge_adapter
from graftwork.cli import main
from graftwork.training import train

if TYPE_CHECKING:
    from pathlib import Path

END, TURN_END = 257, 260
MORE = 12


@pytest.fixture
def base(toys: Any, tmp_path: Path) -> Path:
    """Its generation_config.json names the tokenizer's end of text, and ChatML's turns end with another token."""
    folder: Path = toys.save(tmp_path / "base", vocab_size=264)
    tokenizer = toys.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(["<end>", "<|im_end|>"]) == [END, TURN_END]
    assert stops(folder) == END
    return folder


def stops(folder: Path) -> Any:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def trained(toys: Any, tmp_path: Path, base: Path, **sections: Any) -> Path:
    """``final/`` of a run that learns one answer by heart."""
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    data = {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(rows)}]}}
    training = {"trainer_type": "NATIVE_SFT", "max_steps": 40, "per_device_train_batch_size": 1}
    training |= sections.pop("training", {})
    config = toys.config(tmp_path, base, data, model={"chat_template": "chatml"}, training=training, **sections)
    path = train(config).model_path
    assert path is not None
    return path


def answer(folder: Path) -> str:
    """What plain transformers writes, with its special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        given = model.generate(**ids, do_sample=False, max_new_tokens=MORE, pad_token_id=258)
    return str(tokenizer.decode(given[0, ids["input_ids"].shape[1] :]))


def test_transformers_and_graft_stop_at_the_turns_end(
    toys: Any, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = trained(toys, tmp_path, base)
    assert stops(final) == [END, TURN_END]
    assert answer(final) == "yes<|im_end|>"
    capsys.readouterr()
    assert main(["generate", str(final), "hi", "--max-new-tokens", str(MORE), "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip() == "yes"


@pytest.mark.parametrize("mode", ["merged", "full", "adapter"])
def test_so_do_adapters_in_each_way_of_saving(toys: Any, tmp_path: Path, base: Path, mode: str) -> None:
    peft = {"lora_r": 16, "lora_alpha": 32, "lora_target_modules": "all-linear", "save_mode": mode}
    final = trained(toys, tmp_path, base, training={"use_peft": True, "max_steps": 60}, peft=peft)
    assert stops(final) == [END, TURN_END]
    if mode == "adapter":  # graft merge takes them along
        merge_adapter(final, output_dir=tmp_path / "merged")
        final = tmp_path / "merged"
        assert stops(final) == [END, TURN_END]
    assert answer(final) == "yes<|im_end|>"
