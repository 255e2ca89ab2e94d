"""QLoRA through the trainer: it learns, an evaluation changes no gradient, and what it leaves merges."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from graftwork import ModelParams, PeftParams, attach_adapter, build_model, merge_adapter, train
from graftwork.adapters.fingerprint import fingerprint
from graftwork.data.batch import to_row
from graftwork.data.samples import Sample
from graftwork.errors import ConfigError, ModelError
from graftwork_native.trial import plan_forward

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:.*MatMul8bitLt.*")
LORA = {"q_lora": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["attention", "mlp"]}
KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"bnb_4bit_quant_type": "nf4"},
    "fp4": {"bnb_4bit_quant_type": "fp4"},
    "nested": {"bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True},
    "8 bits": {"q_lora_bits": 8},
}


def run_here(toys: Any, tmp_path: Path, toy: Path, data: dict[str, Any], name: str = "run", **sections: Any) -> Path:
    training = {"output_dir": str(tmp_path / name), "use_peft": True, **sections.pop("training", {})}
    sections["peft"] = {**LORA, **sections.pop("peft", {})}
    train(toys.config(tmp_path, toy, data, training=training, **sections))
    return tmp_path / name


def losses(toys: Any, run: Path) -> list[float]:
    return [row["loss"] for row in toys.metrics(run) if "loss" in row]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], kind: str) -> None:
    training = {"max_steps": 12, "per_device_train_batch_size": 12, "trainer_type": "NATIVE_SFT"}
    run = run_here(toys, tmp_path, llama, chat, training=training, peft=KINDS[kind])
    first, *_, last = losses(toys, run)
    assert last < 0.8 * first
    stored = load_file(run / "final" / "adapter_model.safetensors")
    assert all("lora_" in name for name in stored)
    assert any(bool(tensor.any()) for name, tensor in stored.items() if "lora_B" in name)


@pytest.mark.parametrize("kind", ["nested", "8 bits"])
def test_evaluating_in_between_changes_no_step(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], kind: str
) -> None:
    """On a CPU with AVX512-BF16 bitsandbytes would pack the weights at the first evaluation: wrong gradients."""
    peft = {**KINDS[kind], "lora_dropout": 0.1}
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "trainer_kwargs": {"sample_count": 2}}
    with_it = run_here(toys, tmp_path, llama, chat, "with", training=evaluating, peft=peft)
    without = run_here(toys, tmp_path, llama, {"train": chat["train"]}, "without", peft=peft)
    assert sum("eval_loss" in row for row in toys.metrics(with_it)) == 5
    assert losses(toys, with_it) == losses(toys, without)
    one, two = (load_file(run / "final" / "adapter_model.safetensors") for run in (with_it, without))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("kind", ["nested", "8 bits"])
def test_an_adapter_switched_off_is_the_cached_reference(toys: Any, tmp_path: Path, llama: Path, kind: str) -> None:
    """On a quantized base: what is kept before the first step, and what it gives without its adapter at each."""
    pairs = {"dataset_name": "preference_pairs_jsonl", "dataset_path": str(toys.pairs(tmp_path / "pairs.jsonl"))}
    found = []
    for reference in ("cached", "adapter"):
        options = {"trainer_kwargs": {"sample_count": 0, "reference": reference}, "trainer_type": "NATIVE_DPO"}
        data = {"train": {"datasets": [pairs]}}
        run = run_here(toys, tmp_path, llama, data, reference, training=options, peft=KINDS[kind])
        names = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "grad_norm")
        found.append([[row[name] for name in names] for row in toys.metrics(run)])
    assert found[0][0][0] == pytest.approx(0.6931, abs=1e-4)
    assert abs(found[0][-1][1]) > 1e-3, "the adapter has moved away from its base"
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def dequantized(layer: Any) -> nn.Linear:
    import bitsandbytes.functional as bnb

    if hasattr(layer.weight, "quant_state"):
        weight = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    else:
        scale = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB  # it moves at the first forward pass
        weight = layer.weight.data.float() * scale.reshape(-1, 1) / 127
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight = nn.Parameter(weight.float(), requires_grad=False)
    return plain


def gradients(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    samples = [
        Sample(torch.randint(0, 250, (n,), generator=generator).int().numpy(), torch.ones(n).bool().numpy(), "here")
        for n in (20, 30)
    ]
    forward = plan_forward(model.train(), None)
    model.zero_grad()
    forward.loss(to_row(samples), 0.1).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(("kind", "tolerance"), [("nf4", 1e-5), ("fp4", 1e-5), ("nested", 1e-5), ("8 bits", 0.01)])
def test_gradients_are_those_of_the_dequantized_weights(llama: Path, kind: str, tolerance: float) -> None:
    """4 bits: float32 arithmetic on the same weights. 8 bits: the inputs are rounded to 8 bits too (LLM.int8)."""
    import bitsandbytes as bnb

    peft = PeftParams(**LORA, **KINDS[kind])
    model: Any = build_model(ModelParams(model_name=str(llama)), peft)
    torch.manual_seed(1)
    model = attach_adapter(model, peft)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    got = gradients(model)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt) and not hasattr(layer, "lora_A"):
                setattr(parent, name, dequantized(layer))
    wanted = gradients(model)
    assert got.keys() == wanted.keys()
    assert len(got) == 2 * 7 * 2
    apart = {name: float((got[name] - wanted[name]).norm() / wanted[name].norm()) for name in got}
    assert max(apart.values()) < tolerance, apart


# What is left at the end


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    with torch.no_grad():
        return model(torch.arange(8)[None]).logits


def test_merged_is_onto_the_original_base(toys: Any, tmp_path: Path, chat: dict[str, Any]) -> None:
    base = toys.save(tmp_path / "half", dtype=torch.bfloat16)
    runs = {
        mode: run_here(toys, tmp_path, base, chat, mode, peft={**KINDS["nf4"], "save_mode": mode})
        for mode in ("adapter", "merged", "full")
    }
    merge_adapter(runs["adapter"] / "final", output_dir=tmp_path / "later")
    files = [load_file(folder / "model.safetensors") for folder in (tmp_path / "later", runs["merged"] / "final")]
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
    original = load_file(base / "model.safetensors")
    changed = {name for name, tensor in files[0].items() if not torch.equal(tensor, original[name])}
    assert {tensor.dtype for tensor in files[0].values()} == {torch.bfloat16}
    assert changed == {name for name in original if "_proj" in name}
    full = runs["full"] / "final"
    assert all(torch.equal(tensor, original[name]) for name, tensor in load_file(full / "model.safetensors").items())
    both = build_model(ModelParams(model_name=str(full), torch_dtype="float32")).eval()
    with torch.no_grad():
        torch.testing.assert_close(both(torch.arange(8)[None]).logits, logits(tmp_path / "later"), rtol=0.05, atol=0.05)


def test_an_adapter_knows_the_base_it_was_quantized_from(toys: Any, tmp_path: Path, chat: dict[str, Any]) -> None:
    base = toys.save(tmp_path / "base")
    adapter = run_here(toys, tmp_path, base, chat, peft=KINDS["nf4"]) / "final"
    record = json.loads((adapter / "graftwork_adapter.json").read_text())
    assert record == {
        "base": str(base),
        "fingerprint": fingerprint(base),
        "embedding_rows": 260,
        "pad_token_id": None,
    }
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        assert json.loads((checkpoint / "graftwork_adapter.json").read_text()) == record
    moved = shutil.move(base, tmp_path / "moved")
    merge_adapter(str(moved), adapter, tmp_path / "merged")
    weights = load_file(moved / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1.001
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"was trained on .*/base with fingerprint [0-9a-f]{12}, and the weights in"):
        merge_adapter(str(moved), adapter, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_quantized_base_with_fresh_weights_has_nothing_to_merge_onto(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], check: Callable[[Any], None]
) -> None:
    model = {"load_pretrained_weights": False}
    config = toys.config(
        tmp_path, llama, chat, model=model, training={"use_peft": True}, peft={**LORA, "save_mode": "merged"}
    )
    with pytest.raises(
        ConfigError, match=r"peft\.save_mode = 'merged'.*quantized base with fresh weights is nowhere in"
    ):
        check(config)


@pytest.fixture
def check(tmp_path: Path) -> Callable[[Any], None]:
    from graftwork.config import load_config

    def checked(config: Any) -> None:
        (tmp_path / "run.yaml").write_text(config.to_yaml())
        load_config(tmp_path / "run.yaml")

    return checked
