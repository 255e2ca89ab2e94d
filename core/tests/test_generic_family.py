"""Architectures that no plugin claims: they build, train, merge, save, load with plain transformers, and generate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from graftwork import ModelParams, PeftParams, attach_adapter, build_model, merge_adapter
from graftwork.builders import family_of

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("gpt2", "qwen2", "opt")
LINEAR = {
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
}
IDS = torch.tensor([[5, 9, 3, 7, 11, 4, 8, 6]])


@pytest.fixture(autouse=True)
def core_alone(install_plugin: Any) -> None:
    """A Qwen plugin that somebody has installed must not take part."""
    install_plugin("", name="nothing")


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def train(model: Any, steps: int = 3) -> list[float]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def test_the_whole_way(kind: str, toy_model: Any, tmp_path: Path) -> None:
    path = toy_model(kind)
    model = build_model(ModelParams(model_name=str(path)))
    assert family_of(model).name == "generic"
    base = logits(model)
    assert torch.equal(base, logits(AutoModelForCausalLM.from_pretrained(path)))

    adapted = attach_adapter(model, PeftParams(lora_r=4, lora_alpha=16))
    assert set(adapted.peft_config["default"].target_modules) == LINEAR[kind]
    assert torch.allclose(logits(adapted), base, atol=1e-6), "a fresh LoRA changes nothing"
    frozen = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    losses = train(adapted)
    assert losses[-1] < losses[0]
    assert all(torch.equal(dict(adapted.named_parameters())[name], p) for name, p in frozen.items())

    trained = logits(adapted)
    assert not torch.allclose(trained, base, atol=1e-3)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", output_dir=tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged) is type(AutoModelForCausalLM.from_pretrained(path))
    torch.testing.assert_close(logits(merged), trained, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(build_model(ModelParams(model_name=str(tmp_path / "merged")))), logits(merged))


def test_full_training_saves_what_it_learnt(kind: str, toy_model: Any, tmp_path: Path) -> None:
    model = build_model(ModelParams(model_name=str(toy_model(kind))))
    losses = train(model)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "trained")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "trained")), logits(model))


def test_generation_takes_the_likeliest_token(kind: str, toy_model: Any) -> None:
    model = build_model(ModelParams(model_name=str(toy_model(kind))))
    ids = IDS
    for _ in range(6):
        ids = torch.cat([ids, logits(model, ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    generated = model.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert generated.tolist() == ids.tolist()
