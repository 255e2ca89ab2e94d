"""What users of Oumi know from its page on training methods runs here: every block of it, for every text family.

The page lies beside the test data and not in this repository. Its rows become the data, its YAML the configuration;
what it leaves to the reader (the model, the output, how many steps) stands in ``OVERRIDES``. Vision is not here yet.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftwork import load_tokenizer
from graftwork.builders.torchtune_names import fresh_model
from graftwork.config import load_config
from graftwork.registry import get_registry
from graftwork.training import train

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(os.environ.get("GRAFTWORK_TEST_DATA", "/nowhere"))
PAGE = DATA.parent / "reference" / "oumi-training-methods.md"
pytestmark = [
    pytest.mark.skipif(not PAGE.is_file(), reason="the reference documents do not lie beside GRAFTWORK_TEST_DATA"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]

FAMILIES = {
    # family: its model type, and a published tokenizer of it
    "llama": ("llama", "llama3/tokenizer.model"),
    "gemma": ("gemma2", "gemma"),
    "mistral": ("mistral", "mistral/mistral_instruct_tokenizer_240323.model.v3"),
    "phi3": ("phi3", "phi3"),
    "qwen": ("qwen2", "qwen2.5"),
}
OVERRIDES = (
    "model.model_name=./model",
    "training.output_dir=run",
    "training.max_steps=1",
    "training.per_device_train_batch_size=1",
    "training.gradient_accumulation_steps=2",
    "training.save_steps=0",
    "training.learning_rate=1e-3",
    "training.mixed_precision_dtype=none",
)
TURNS = 'model.added_tokens=["<start_of_turn>", "<end_of_turn>"]'
"""What the tokenizer of Gemma's base model has as plain text."""
METHODS = ("Supervised Fine-Tuning (SFT)", "Pretraining", "Direct Preference Optimization (DPO)")


def section(title: str) -> str:
    """The text under a heading of the page."""
    (found,) = re.findall(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.M | re.S)
    return str(found)


def block(title: str, language: str) -> str:
    """The one block of a language under a heading."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", section(title), re.M | re.S)
    return str(found)


def rows(title: str, count: int = 8) -> list[dict[str, Any]]:
    """The page's row, and others like it."""
    row = json.dumps(ast.literal_eval(block(title, "python")))
    return [json.loads(row.replace("robot", f"robot {number}").replace("learning", "study")) for number in range(count)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A small model of the family in ``./model`` with its real tokenizer."""
    monkeypatch.chdir(tmp_path)
    model_type, files = FAMILIES[request.param]
    tokenizer = load_tokenizer(DATA / "tokenizers" / files).hf
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    model = fresh_model(get_registry().families[request.param].tiny_config(model_type, **sizes, pad_token_id=None))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return request.param


@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_the_page(method: str, family: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(method)))
    written = block(method, "yaml").replace("/path/to/data", str(data)).replace("/path/to/corpus", str(data))
    (tmp_path / "page.yaml").write_text(written)
    config = load_config(tmp_path / "page.yaml", [*OVERRIDES, *([TURNS] if family == "gemma" else [])])
    assert config.training.trainer_type == yaml.safe_load(written)["training"]["trainer_type"]
    result = train(config)
    assert result.step == 1 and math.isfinite(result.metrics["loss"]) and result.metrics["loss"] > 0
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    changed = [
        not torch.equal(one, other) for one, other in zip(trained.parameters(), before.parameters(), strict=True)
    ]
    assert all(changed) or sum(changed) >= len(changed) - 1, "all weights are trained"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    assert tokenizer.chat_template is not None or method == "Pretraining"


@pytest.mark.parametrize("family", ["llama"], indirect=True)
def test_pretraining_as_it_is_written_goes_through_the_corpus(family: str, tmp_path: Path) -> None:
    """Streamed, and without a number of steps: the run counts those of its epochs."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": "A tree. " * 40}) + "\n" for _ in range(60)))
    written = block("Pretraining", "yaml").replace("/path/to/corpus", str(tmp_path / "rows.jsonl"))
    (tmp_path / "page.yaml").write_text(written.replace("2048", "256"))
    overrides = [*(line for line in OVERRIDES if "max_steps" not in line), "model.model_max_length=256"]
    config = load_config(tmp_path / "page.yaml", overrides)
    epochs = config.training.num_train_epochs
    assert config.data.train.datasets[0].stream and config.training.max_steps < 0
    result = train(config)
    tokens = result.metrics["total_tokens"]
    assert result.step > epochs and tokens == result.step * 2 * 256
    in_memory = load_config(tmp_path / "page.yaml", [*overrides, "training.output_dir=two"])
    for params in in_memory.data.train.datasets:
        params.stream = False
    assert abs(train(in_memory).step - result.step) <= epochs


def test_every_block_of_the_page_is_one_of_these_or_of_vision() -> None:
    everywhere = re.findall(r"^```(?:python|yaml)\n", PAGE.read_text("utf-8"), re.M)
    assert len(everywhere) == 2 * len(METHODS) + 1, "a row and a configuration for each method, and one for vision"
