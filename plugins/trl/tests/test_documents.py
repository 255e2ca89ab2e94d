"""The text snippets of Oumi's document on training methods, with the paths filled in, through `graft train`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from graftwork.cli import main

DATA = Path(os.environ.get("GRAFTWORK_TEST_DATA") or "nowhere")
DOCUMENT = DATA.parent / "reference" / "oumi-training-methods.md"
SMALL = {
    "max_steps": 1, "per_device_train_batch_size": 2, "mixed_precision_dtype": "none", "enable_tensorboard": False,
}  # fmt: skip

pytestmark = pytest.mark.skipif(not DOCUMENT.is_file(), reason="needs the reference documents beside the test data")


def snippets() -> dict[str, dict[str, Any]]:
    """The YAML blocks of the document by what they train."""
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.is_file() else ""
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    return {f"{block['training']['trainer_type']} {block['data']['train']['collator_name']}": block
            for block in blocks if "collator_name" in block["data"]["train"] and "model" not in block}  # fmt: skip


@pytest.mark.parametrize("name", ["TRL_SFT text_with_padding", "TRL_DPO dpo_with_padding"])
def test_the_snippet_trains(toys: Any, tmp_path: Path, llama: Path, name: str) -> None:
    config = snippets()[name]
    rows = toys.chat() if name.startswith("TRL_SFT") else toys.pairs()
    (dataset,) = config["data"]["train"]["datasets"]
    assert dataset["dataset_path"] == "/path/to/data"
    dataset["dataset_path"] = str(toys.write(tmp_path / "rows.jsonl", rows))
    config["model"] = {"model_name": str(llama), "device_map": "cpu"}
    config["training"] |= {**SMALL, "output_dir": str(tmp_path / "run")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "-c", str(tmp_path / "config.yaml")]) == 0
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert len(toys.losses(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("method", "file"), [("TRL_KTO", "kto_en_demo.0-149.json"), ("TRL_GRPO", "gsm8k_train.0-999.jsonl")]
)
def test_public_rows_are_read(toys: Any, tmp_path: Path, method: str, file: str) -> None:
    """Verdicts on answers, and sums with their answers, as published."""
    from graftwork_trl.data import load_data
    from graftwork_trl.grpo import Prompts
    from graftwork_trl.methods import METHODS
    from graftwork_trl.rewards import answer_match

    (path,) = DATA.rglob(file)
    data = {"train": toys.split(path, max_length=100_000)}
    config = toys.config(tmp_path, tmp_path, method, data)
    if method == "TRL_KTO":
        labels = load_data(config, METHODS[method], toys.tokenizer(), frozenset({257}), 1).labels
        assert list(labels.values()) == [row["label"] for row in json.loads(path.read_text())]
        return
    prompts = Prompts(config, config.data.train, METHODS[method], toys.tokenizer())
    rows = prompts.dataset()
    assert len(rows) == 1000
    assert rows[0]["prompt"][0]["content"].startswith("Natalia sold clips")
    assert answer_match(rows["prompt"], rows["answer"], answer=rows["answer"]) == [1.0] * 1000
    assert answer_match(rows[:1]["prompt"], ["She sold 72."], answer=rows[:1]["answer"]) == [1.0]
