"""Whole runs on preference pairs: what is learned, what the reference is, and that none of it is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from graftwork import train
from graftwork.errors import DataError, UsageError
from graftwork_native import reference

LORA = {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"]}


def split(path: Path, **changes: Any) -> dict[str, Any]:
    return {"datasets": [{"dataset_name": "preference_pairs_jsonl", "dataset_path": str(path)}], **changes}


@pytest.fixture
def data(toys: Any, tmp_path: Path) -> dict[str, Any]:
    return {"train": split(toys.pairs(tmp_path / "pairs.jsonl"))}


def run(
    toys: Any, tmp_path: Path, toy: Path, data: dict[str, Any], name: str = "run", options: Any = None, **sections: Any
) -> list[dict[str, float]]:
    """The metrics of each step. ``options`` are the trainer's."""
    training = {"trainer_type": "NATIVE_DPO", "output_dir": str(tmp_path / name), "per_device_train_batch_size": 4}
    training |= {"trainer_kwargs": {"sample_count": 0, **(options or {})}, **sections.pop("training", {})}
    train(toys.config(tmp_path, toy, data, training=training, **sections), resume=sections.pop("resume", False))
    found: list[dict[str, float]] = toys.metrics(tmp_path / name)
    return found


def numbers(lines: list[dict[str, float]]) -> list[tuple[float, ...]]:
    """What must be the same where a run is."""
    return [(line["loss"], line["rewards/margins"], line["logps/chosen"]) for line in lines if "loss" in line]


def test_the_margin_grows(toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any]) -> None:
    data["validation"] = split(toys.pairs(tmp_path / "held-out.jsonl", 5))
    options = {"sample_count": 1, "sample_max_new_tokens": 4}
    lines = run(toys, tmp_path, llama, data, training={"max_steps": 9}, options=options)
    first, last = lines[1], [line for line in lines if "loss" in line][-1]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4), "the log of two: model and reference are the same"
    assert (first["rewards/margins"], first["rewards/accuracies"]) == (0.0, 0.0)
    assert last["loss"] < 0.1
    assert last["rewards/accuracies"] == 1.0
    assert last["rewards/chosen"] > 0 > last["rewards/rejected"]
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], rel=1e-5)
    assert lines[0]["eval_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert lines[-1]["eval_loss"] < 0.3
    assert lines[-1]["eval_rewards/margins"] > 1.0
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["prompt"] == "<user>q0 \n"
    assert samples[0]["reference"] == "yes0 ", "the answer that is wanted, and nothing of the other one"


@pytest.mark.skipif("GRAFTWORK_TEST_DATA" not in os.environ, reason="set GRAFTWORK_TEST_DATA")
def test_the_margin_grows_on_real_pairs(toys: Any, tmp_path: Path, llama: Path) -> None:
    path = Path(os.environ["GRAFTWORK_TEST_DATA"]) / "datasets" / "preference" / "raschka_preference.0-799.json"
    lines = run(
        toys, tmp_path, llama, {"train": split(path, max_length=512)}, options={"beta": 0.5},
        training={"max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 5e-3},
    )  # fmt: skip
    assert sum(line["rewards/margins"] for line in lines[-5:]) > 1.0
    assert sum(line["rewards/accuracies"] for line in lines[-5:]) / 5 > 0.6


def test_accumulation_and_packing_change_nothing(toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any]) -> None:
    shapes = [
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "enable_gradient_checkpointing": True},
    ]
    found = [
        numbers(run(toys, tmp_path, llama, data, f"run {number}", training={"max_steps": 3, **training}))
        for number, training in enumerate(shapes)
    ]
    packed = {"train": {**data["train"], "pack": True, "max_length": 128}}
    assert run(toys, tmp_path, llama, packed, "packed", training={"per_device_train_batch_size": 1})[0]["tokens"] > 64
    for other in found[1:]:
        for one, first in zip(other, found[0], strict=True):
            assert one == pytest.approx(first, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("layout", ["segments", "padded"])
def test_every_layout_learns_the_same(
    toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any], layout: str
) -> None:
    first = numbers(run(toys, tmp_path, llama, data, "auto"))
    other = numbers(run(toys, tmp_path, llama, data, layout, options={"layout": layout}))
    for one, wanted in zip(other, first, strict=True):
        assert one == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_dropout_is_left_out_unless_it_is_asked_for(toys: Any, tmp_path: Path, data: dict[str, Any]) -> None:
    toy = toys.save(tmp_path / "toy", "gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    assert run(toys, tmp_path, toy, data, "without")[0]["rewards/margins"] == 0.0
    lines = run(toys, tmp_path, toy, data, "with", options={"disable_dropout": False})
    assert lines[0]["rewards/margins"] != 0.0


# The reference


def table_of(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((folder / "reference.json").read_text())["log_probs"]
    return found


def test_the_reference_is_computed_once_for_the_pairs_that_are_met(
    toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    measured = reference.measured
    monkeypatch.setattr(reference, "measured", lambda *given: calls.append(1) or measured(*given))
    run(toys, tmp_path, llama, data, "short", training={"max_steps": 2})
    assert (len(calls), len(table_of(tmp_path / "short"))) == (2, 8)
    run(toys, tmp_path, llama, data, "two epochs", training={"max_steps": 6})
    assert (len(calls), len(table_of(tmp_path / "two epochs"))) == (2 + 3, 12)


def test_a_reference_of_another_model_is_none(tmp_path: Path) -> None:
    path = tmp_path / reference.FILE
    reference.Table(path, "this model", {"pair": [-1.5, -2.5]}).write()
    assert reference.Table.read(path, "this model").log_probs == {"pair": [-1.5, -2.5]}
    assert reference.Table.read(path, "another").log_probs == {}


@pytest.mark.parametrize("of", ["the base", "the adapter"])
def test_a_reference_of_replaced_weights_is_none(
    toys: Any, tmp_path: Path, data: dict[str, Any], of: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Other bytes under the same name: what was computed with the old ones is not used for the new ones."""
    toy = toys.save(tmp_path / "toy")
    sections: dict[str, Any] = {"training": {"max_steps": 1}}
    if of == "the adapter":
        sections["training"] |= {"use_peft": True}
        run(toys, tmp_path, toy, data, "before", training={"use_peft": True, "learning_rate": 0.1}, peft=LORA)
        sections |= {"peft": LORA, "model": {"adapter_model": str(tmp_path / "before" / "final")}}
    run(toys, tmp_path, toy, data, **sections)
    folder = tmp_path / "run"
    first = table_of(folder)
    weights = toy / "model.safetensors" if of == "the base" else tmp_path / "before/final/adapter_model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    (folder / "final").rename(tmp_path / "gone")
    options = {"trainer_type": "NATIVE_DPO", "output_dir": str(folder), "per_device_train_batch_size": 4}
    sections["training"] = options | sections["training"]
    train(toys.config(tmp_path, toy, data, **sections), resume=True)
    second = table_of(folder)
    assert second.keys() == first.keys()
    assert all(second[pair] != first[pair] for pair in first)
    assert (
        "reference.json: the model was another one, or its weights were; the reference is computed anew" in caplog.text
    )


def test_fresh_weights_have_a_reference(toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any]) -> None:
    model = {"load_pretrained_weights": False, "tokenizer_name": str(llama)}
    lines = run(toys, tmp_path, llama, data, model=model)
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_an_adapter_switched_off_is_the_same_reference(
    toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any]
) -> None:
    found = [
        numbers(run(toys, tmp_path, llama, data, kind, {"reference": kind}, training={"use_peft": True}, peft=LORA))
        for kind in ("cached", "adapter")
    ]
    assert not (tmp_path / "adapter" / "reference.json").exists()
    assert found[1][-1][1] > 0.01
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


def test_a_loaded_adapter_is_compared_with_what_it_was(
    toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any]
) -> None:
    """Not with the model without it, which it has left far behind."""
    run(toys, tmp_path, llama, data, "before", training={"use_peft": True, "learning_rate": 0.1}, peft=LORA)
    model = {"adapter_model": str(tmp_path / "before" / "final")}
    found = [
        numbers(
            run(
                toys,
                tmp_path,
                llama,
                data,
                kind,
                {"reference": kind},
                training={"use_peft": True},
                model=model,
                peft=LORA,
            )
        )
        for kind in ("cached", "adapter")
    ]
    assert found[0][0][1] == pytest.approx(0.0, abs=1e-5)
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


def test_all_weights_cannot_be_switched_off(toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"reference: adapter needs an adapter to switch off, .*use_peft: true, or"):
        run(toys, tmp_path, llama, data, options={"reference": "adapter"})


def test_streamed_pairs_have_a_reference_too(toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any]) -> None:
    whole = numbers(run(toys, tmp_path, llama, data, "whole"))
    streamed = {"train": {**data["train"], "stream": True}}
    for one, other in zip(numbers(run(toys, tmp_path, llama, streamed, "streamed")), whole, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


# Going on


@pytest.mark.parametrize("lost", ["nothing", "the reference", "half of its file"])
@pytest.mark.parametrize("use_peft", [False, True])
def test_a_run_goes_on_to_the_bit(
    toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any], lost: str, use_peft: bool
) -> None:
    training = {"max_steps": 4, "save_steps": 2, "use_peft": use_peft, "lr_scheduler_type": "constant"}
    wanted = numbers(run(toys, tmp_path, llama, data, "whole", training=training, peft=LORA if use_peft else {}))
    folder = tmp_path / "whole"
    weights = next((folder / "final").glob("*.safetensors"))
    final = load_file(weights)
    for file in (folder / "final", folder / "checkpoints" / "step-4"):
        file.rename(tmp_path / f"gone {file.name}")
    path = folder / "reference.json"
    if lost == "the reference":
        path.unlink()
    elif lost == "half of its file":
        path.write_text(path.read_text()[:100])
    options = {"trainer_type": "NATIVE_DPO", "output_dir": str(folder), "per_device_train_batch_size": 4}
    config = toys.config(tmp_path, llama, data, training=options | training, **({"peft": LORA} if use_peft else {}))
    train(config, resume=True)
    assert numbers(toys.metrics(folder)) == wanted
    for name, tensor in load_file(weights).items():
        assert torch.equal(tensor, final[name]), name


# Data


@pytest.mark.parametrize("name", ["NATIVE", "NATIVE_SFT"])
def test_pairs_are_for_the_trainer_of_pairs(
    toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any], name: str
) -> None:
    """NATIVE goes by the data, but a reference and a beta are not its own."""
    with pytest.raises(UsageError, match=rf"trainer {name} takes .*chat; preference rows are for NATIVE_DPO"):
        run(toys, tmp_path, llama, data, training={"trainer_type": name})


def test_pairs_that_are_known_by_their_rows_only(toys: Any, tmp_path: Path, llama: Path) -> None:
    toys.pairs(tmp_path / "pairs.jsonl")
    dataset = {"dataset_name": "huggingface", "dataset_path": str(tmp_path)}
    words = r"NATIVE trains on text or chat data, but data.train holds preference; preference rows are for NATIVE_DPO"
    with pytest.raises(UsageError, match=words):
        run(toys, tmp_path, llama, {"train": {"datasets": [dataset]}}, training={"trainer_type": "NATIVE"})


def test_pairs_that_are_too_long_are_cut_in_their_answers(
    toys: Any, tmp_path: Path, llama: Path, data: dict[str, Any]
) -> None:
    short = {"train": {**data["train"], "max_length": 25}}
    with pytest.raises(DataError, match=r"tokens, but a sample may have 25"):
        run(toys, tmp_path, llama, short)
    cut = run(toys, tmp_path, llama, {"train": {**short["train"], "over_long": "truncate"}})
    assert cut[0]["supervised_tokens"] < run(toys, tmp_path, llama, data, "whole")[0]["supervised_tokens"]
