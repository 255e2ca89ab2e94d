"""What a run is said to take before it begins, against what it took: whole runs, each in a process of its own."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from graftwork.check.forecast import ForecastRequest
from graftwork.config import RunConfig
from graftwork.data.batch import Row, to_row
from graftwork.data.samples import Sample
from graftwork_native.forecast import forecast, gaps, telling
from graftwork_native.live import Live
from graftwork_native.masks import square_bias
from graftwork_native.params import DpoParams

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from graftwork_native.params import NativeParams

SIZE = {
    "vocab_size": 8000,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "away", "from", "all", "of", "us"]
LORA = {"use_peft": True}
NEEDS_BITSANDBYTES = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def text(generator: random.Random, letters: int) -> str:
    return " ".join(generator.choices(WORDS, k=letters))[:letters]


def rows_of(kind: str, count: int) -> list[dict[str, Any]]:
    generator = random.Random(0)
    say = partial(text, generator)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        question, answer, other = (say(generator.randint(60, 300)) for _ in range(3))
        asked = [{"role": "user", "content": question}]
        if kind == "chat":
            rows.append({"messages": [*asked, {"role": "assistant", "content": answer}]})
        else:
            rows.append({"prompt": question, "chosen": answer, "rejected": other})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toys: Any) -> Path:
    """A model of 13 million parameters in both types, and data for both methods."""
    folder = tmp_path_factory.mktemp("forecast")
    for name, dtype in (("single", torch.float32), ("half", torch.bfloat16)):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZE), dtype=dtype).save_pretrained(
            folder / name
        )
        tokenizer = toys.tokenizer()
        tokenizer.model_max_length = 1024
        tokenizer.save_pretrained(folder / name)
    for kind in ("chat", "pairs"):
        lines = [json.dumps(row) + "\n" for row in rows_of(kind, 32)]
        (folder / f"{kind}.jsonl").write_text("".join(lines))
    return folder


def configuration(folder: Path, model: str, method: str, **sections: dict[str, Any]) -> dict[str, Any]:
    trainer, reader, kind = {
        "SFT": ("NATIVE_SFT", "text_sft", "chat"),
        "DPO": ("NATIVE_DPO", "preference_pairs_jsonl", "pairs"),
    }[method]
    dataset = {"dataset_name": reader, "dataset_path": str(folder / f"{kind}.jsonl")}
    training = {
        "trainer_type": trainer,
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "save_steps": 0,
        "save_final_model": False,
        "enable_tensorboard": False,
    }
    return {
        "model": {"model_name": str(folder / model)},
        "data": {"train": {"datasets": [dataset], "max_length": 1024}},
        "training": training | sections.get("training", {}),
        "peft": {"lora_r": 16} | sections.get("peft", {}) if sections.get("training", {}).get("use_peft") else {},
    }


def run(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Trains in a fresh process and gives ``memory`` of run.json."""
    number = len(list(folder.glob("run-*.yaml")))
    path, output = folder / f"run-{number}.yaml", folder / f"run-{number}"
    config["training"]["output_dir"] = str(output)
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "graftwork", "train", "-c", str(path)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    memory: dict[str, Any] = json.loads((output / "run.json").read_text())["memory"]
    assert "memory " in done.stdout
    return memory


QLORA = {"q_lora": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("method", "model", "training", "peft"),
    [
        pytest.param("SFT", "single", {}, {}, id="full-SFT"),
        pytest.param("SFT", "single", {"max_steps": 1}, {}, id="full-SFT-one-step"),
        pytest.param("SFT", "half", LORA, {}, id="LoRA-SFT"),
        pytest.param("SFT", "half", {**LORA, "max_steps": 10}, {}, id="LoRA-SFT-ten-steps"),
        pytest.param("SFT", "half", LORA, QLORA, id="QLoRA-SFT", marks=NEEDS_BITSANDBYTES),
        pytest.param("DPO", "single", {}, {}, id="full-DPO"),
        pytest.param("DPO", "half", LORA, {}, id="LoRA-DPO"),
        pytest.param("DPO", "half", LORA, QLORA, id="QLoRA-DPO", marks=NEEDS_BITSANDBYTES),
    ],
)
def test_the_forecast_is_near_the_peak(
    folder: Path, method: str, model: str, training: dict[str, Any], peft: dict[str, Any]
) -> None:
    """LoRA and QLoRA with DPO were not used to find any number of the forecast."""
    memory = run(folder, configuration(folder, model, method, training=training, peft=peft))
    forecast_bytes = memory["forecast"]["total_bytes"]
    assert forecast_bytes == sum(memory["forecast"]["parts"].values())
    assert forecast_bytes == pytest.approx(memory["peak_bytes"], rel=0.15), memory


def rows(*lengths: tuple[int, ...]) -> tuple[Row, ...]:
    return tuple(
        to_row([Sample(np.zeros(length, np.int32), np.ones(length, np.bool_), "row") for length in row])
        for row in lengths
    )


def said(change: Callable[[dict[str, Any]], None] = lambda _: None, lengths: tuple[int, ...] = (40, 60)) -> Any:
    """The forecast of a preset without weights, and of one row."""
    return forecast_of_rows(change, rows(lengths))


def forecast_of_rows(change: Callable[[dict[str, Any]], None], some: tuple[Row, ...]) -> Any:
    """The same for several rows."""
    config: dict[str, Any] = {
        "model": {
            "model_name": "llama3_8b",
            "load_pretrained_weights": False,
            "tokenizer_name": "anything",
            "device_map": "cpu",
            "model_kwargs": {**SIZE, "num_hidden_layers": 2},
        },
        "training": {"mixed_precision_dtype": "none"},
        "peft": {},
    }
    change(config)
    return forecast(ForecastRequest(config=RunConfig(**config), params=None, rows=some))


def test_the_parts_are_what_a_run_holds() -> None:
    """Adam's two states of float32 masters, gradients beside them; one file of weights, and one with the states."""
    made = said(lengths=(2, 2))
    weights, states = made.parts["weights"], made.parts["optimizer"]
    assert states == pytest.approx(2 * weights, rel=1e-3)
    assert made.parts["gradients"] <= weights
    assert made.final_bytes == pytest.approx(weights, rel=1e-3)
    assert made.checkpoint_bytes == pytest.approx(weights + states, rel=1e-3)


def test_a_single_step_ends_before_the_optimizer_has_its_state() -> None:
    """It is made when what the rows took is free again, and is in what is said only where it is the larger."""

    def of(steps: int, *lengths: int) -> Any:
        return forecast_of_rows(lambda config: config["training"].update(max_steps=steps), rows(lengths, (2,)))

    one, two = of(1, 300, 300, 300, 300), of(2, 300, 300, 300, 300)
    assert "optimizer" not in one.parts
    assert two.parts["optimizer"] == pytest.approx(2 * two.parts["weights"], rel=1e-3)
    assert {**one.parts, "optimizer": 0, "allocator": 0} == {**two.parts, "optimizer": 0, "allocator": 0}
    assert one.checkpoint_bytes == two.checkpoint_bytes
    assert of(1, 2, 2).parts["optimizer"] == two.parts["optimizer"]


def test_a_forecast_leaves_no_tensor_without_memory_behind() -> None:
    """What attention keeps for its next call was met by the next training in the same process."""
    said(lengths=(2, 2))
    kept = square_bias(256, None, torch.float32, torch.device("cpu"))
    assert type(kept) is torch.Tensor
    assert kept[0, 1].item() == float("-inf")


def test_more_tokens_take_more_activations() -> None:
    short, long = said(lengths=(300,) * 4), said(lengths=(300,) * 8)
    assert long.tokens == 2 * short.tokens
    assert long.parts["activations"] == pytest.approx(2 * short.parts["activations"], rel=0.1)


def test_recomputed_layers_take_fewer() -> None:
    plain = said(lengths=(200, 200))
    less = said(lambda config: config["training"].update(enable_gradient_checkpointing=True), (200, 200))
    assert less.parts["activations"] < 0.8 * plain.parts["activations"]


def test_an_adapter_has_small_states_and_files() -> None:
    made = said(lambda config: config["training"].update(use_peft=True))
    assert made.parts["optimizer"] < 0.1 * made.parts["weights"]
    assert made.final_bytes < 0.1 * made.parts["weights"]
    assert "gradients" not in made.parts or made.parts["gradients"] < 0.1 * made.parts["weights"]


@NEEDS_BITSANDBYTES
def test_quantized_weights_are_counted_as_they_lie_in_memory() -> None:
    """4 bits for a weight, and a float32 for each block of 64 (QLoRA, arXiv:2305.14314, section 3)."""

    def adapter(config: dict[str, Any]) -> None:
        config["training"]["use_peft"] = True
        config["model"]["torch_dtype"] = "bfloat16"

    def quantized(config: dict[str, Any]) -> None:
        adapter(config)
        config["peft"] |= QLORA

    whole, less = said(adapter), said(quantized)
    in_layers = 2 * sum(linear_sizes())
    saved = in_layers * (2 - 0.5 - 4 / 64)
    assert whole.parts["weights"] - less.parts["weights"] == pytest.approx(saved, rel=0.01)


def linear_sizes() -> list[int]:
    """Weights of each linear layer of one block; the preset's heads are 128 wide."""
    width, hidden, heads, keys = 384, 1024, 6, 2
    head = 128 if head_dim() == 128 else width // heads
    return [width * heads * head] * 2 + [width * keys * head] * 2 + [width * hidden] * 3


def head_dim() -> int:
    from graftwork.builders.model import model_config
    from graftwork.config import ModelParams

    params = ModelParams(model_name="llama3_8b", load_pretrained_weights=False, model_kwargs=SIZE)
    return int(model_config(params).head_dim)


def test_an_optimizer_that_knows_no_fake_tensors_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: object) -> None:
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    made = said(lambda config: config["training"].update(optimizer="sgd"))
    assert made.notes == ("the state of sgd is not counted: NotImplementedError: no kernel",)


def test_what_the_forecast_leaves_out_is_said() -> None:
    made = said(lambda config: config.update(fsdp={"enable_fsdp": True}))
    assert made.notes == (
        "this is for one process; with fsdp each of N has about 1/N of weights, gradients and optimizer state",
    )


def test_every_row_leaves_its_kernels() -> None:
    """The largest row may be the last of many, each of which had shapes of its own."""

    def half(config: dict[str, Any]) -> None:
        config["training"]["mixed_precision_dtype"] = "bf16"

    one, three = said(half, (70,)), forecast_of_rows(half, rows((70,), (60,), (50,)))
    assert three.parts["kernels"] == 3 * one.parts["kernels"] > 0


def test_a_transposed_operand_has_a_kernel_of_its_own() -> None:
    left, right = (torch.zeros(8, 8, dtype=torch.bfloat16) for _ in range(2))
    with Live(kernel_bytes=10) as live:
        for second in (right, right, right.T):
            left @ second
    assert len(live.products) == 2


def test_gaps_grow_over_the_steps_and_are_larger_for_an_adapter() -> None:
    def share(params: NativeParams | None = None, **training: Any) -> float:
        return gaps(RunConfig.model_validate({"model": {"model_name": "llama3_8b"}, "training": training}), params)

    assert share(max_steps=5) == pytest.approx(share() * (1 - math.exp(-1)))
    assert share(max_steps=2, gradient_accumulation_steps=2) == share(max_steps=4)
    assert share(max_steps=20) == pytest.approx(share(), rel=0.01)
    assert share(DpoParams(), max_steps=3) == share(max_steps=6), "the reference's passes leave gaps too"
    assert share(use_peft=True) > share()


def test_a_mask_takes_everything() -> None:
    """How much it takes depends on values, and there are none."""
    live = Live()
    with FakeTensorMode(), live:
        values, mask = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool)
        taken = values[mask]
        assert taken.shape == (6, 5)
        assert values[:, torch.tensor([0, 1])].shape == (2, 2, 5)


def test_what_is_alive_is_what_pytorch_has() -> None:
    """Against the sizes of tensors that are kept by hand, views and temporaries among them."""
    live = Live()
    with live:
        kept = torch.zeros(100)
        kept.view(10, 10)
        torch.zeros(1000).sum()
        torch.zeros(50)
    most, parts = live.record.peak()
    assert most == 4 * (100 + 1000) + 4
    assert parts == {"activations": most}


def test_the_rows_that_tell() -> None:
    few, many, wide = rows((5, 5), (30, 30, 30), (70,))
    assert telling([few, many]) == [many]
    assert telling([many, few, wide]) == [many, wide]
