"""The examples run as they are, and on real data where there is some; plain transformers agrees with the result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftwork import ModelParams, build_model, load_config, train
from graftwork.cli import main
from graftwork.data.conversations import to_conversation
from graftwork.data.readers import Row

if TYPE_CHECKING:
    from graftwork.training import TrainResult

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
GRU = ROOT / "examples" / "plugins" / "graftwork-gru"
CHATS = ["sft-chat", "sft-alpaca-lora", "sft-gsm8k"]
REAL = {
    "pretrain-text": "text/tinyshakespeare.train.txt",
    "pretrain-mixture": "text/tinystories.train.txt",
    "sft-chat": "instruct/alpaca_en_demo.0-499.json",
    "sft-alpaca-lora": "instruct/alpaca_en_demo.0-499.json",
    "sft-gsm8k": "instruct/gsm8k_train.0-999.jsonl",
    "dpo": "preference/dpo_en_demo.0-149.json",
}
NEEDS_DATA = pytest.mark.skipif(
    "GRAFTWORK_TEST_DATA" not in os.environ, reason="set GRAFTWORK_TEST_DATA to a folder with real datasets"
)
# Two steps are enough to see that it runs. Without autocast, so that others' float32 numbers can be compared.
SHORT = (
    "training.max_steps=2",
    "training.warmup_steps=1",
    "training.warmup_ratio=null",
    "training.mixed_precision_dtype=none",
    "training.trainer_kwargs.sample_max_new_tokens=4",
)


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    # Paths in an example are relative to the working directory, which its comment says is the root.
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)


def run(name: str, folder: Path, *overrides: str) -> TrainResult:
    config = load_config(ROOT / "examples" / f"{name}.yaml", [*SHORT, f"training.output_dir={folder}", *overrides])
    return train(config)


def final(result: TrainResult) -> Path:
    assert result.model_path is not None
    return result.model_path


def test_there_is_an_example_of_each_kind_of_training() -> None:
    assert {path.stem for path in EXAMPLES} == REAL.keys()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_valid(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "validate", str(path)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_to_run_it(path: Path) -> None:
    relative = path.relative_to(ROOT)
    assert f"graft train -c {relative}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", REAL)
def test_an_example_leaves_a_model_that_transformers_reads(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path / "run")
    assert result.step == 2
    assert_same_logits(final(result))


@NEEDS_DATA
@pytest.mark.parametrize("name", REAL)
def test_an_example_runs_on_real_data(name: str, tmp_path: Path) -> None:
    path = Path(os.environ["GRAFTWORK_TEST_DATA"]) / "datasets" / REAL[name]
    result = run(name, tmp_path / "run", f"data.train.datasets.0.dataset_path={path}", "data.train.over_long=drop")
    assert result.step == 2
    assert_same_logits(final(result))


@pytest.mark.parametrize("name", CHATS)
def test_transformers_measures_the_loss_that_the_run_measured(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path / "run", "training.eval_strategy=steps", "training.eval_steps=2")
    held_out = load_config(ROOT / "examples" / f"{name}.yaml").data.validation.datasets[0].dataset_path
    measured = loss_of(final(result), rows_of(Path(held_out or "")))
    assert measured == pytest.approx(result.metrics["eval_loss"], abs=1e-4)


@NEEDS_DATA
def test_the_lora_example_goes_onto_a_real_model(tmp_path: Path) -> None:
    base = Path(os.environ["GRAFTWORK_TEST_DATA"]) / "weights" / "stories260K" / "hf"
    result = run(
        "sft-alpaca-lora",
        tmp_path / "run",
        f"model.model_name={base}",
        "model.load_pretrained_weights=true",
        "model.model_kwargs={}",
        "model.tokenizer_name=null",
        "model.chat_template=null",
    )
    before, after = AutoModelForCausalLM.from_pretrained(base), AutoModelForCausalLM.from_pretrained(final(result))
    changed = {
        name for name, weight in after.state_dict().items() if not torch.equal(weight, before.state_dict()[name])
    }
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_example_of_a_plugin_installs_with_pip_and_passes_its_own_tests(tmp_path: Path) -> None:
    plugin, site = tmp_path / "plugin", tmp_path / "site"
    shutil.copytree(GRU, plugin)
    # Beside the environment, not into it; pip asks for nothing that is not here.
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    python(["-m", "pip", "install", *offline, "--target", str(site), str(plugin)], site)
    assert "gru_1m" in python(["-c", "from graftwork.cli import main; main()", "models", "ls"], site)
    assert " passed" in python(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(GRU / "tests")], site
    )


def python(arguments: list[str], site: Path) -> str:
    """Runs Python where ``site`` can be imported too."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_same_logits(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("What goes on a rootstock?", return_tensors="pt").input_ids
    ours = build_model(ModelParams(model_name=str(folder), torch_dtype="float32")).eval()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


def rows_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = (
        json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    )
    return rows


def loss_of(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Transformers' own template, mask and loss, one conversation at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for row in rows:
        messages = to_conversation(Row(row, "row", (0, 0))).to_dict()["messages"]
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        labels = encoded.input_ids.masked_fill(encoded.assistant_masks == 0, -100)
        labelled = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(encoded.input_ids, labels=labels).loss) * labelled
        count += labelled
    return total / count
