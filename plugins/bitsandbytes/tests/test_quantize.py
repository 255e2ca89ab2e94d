"""Quantized models against bitsandbytes' own functions, and their gradients against plain PyTorch."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from graftwork import ModelParams, PeftParams, attach_adapter, build_model
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:.*MatMul8bitLt.*")
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def build(folder: Path, **peft: Any) -> Any:
    return build_model(ModelParams(model_name=str(folder)), PeftParams(q_lora=True, **peft))


def test_bits_pick_the_quantizer() -> None:
    names = {bits: spec.name for spec in get_registry().quantizers.values() for bits in spec.bits}
    assert (names[4], names[8]) == ("bnb_4bit", "bnb_8bit")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_four_bit_weights_are_bitsandbytes_own(folder: Path, kind: str, nested: bool) -> None:
    model = build(folder, bnb_4bit_quant_type=kind, use_bnb_nested_quant=nested)
    plain = LlamaForCausalLM.from_pretrained(folder)
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        layer = model.model.layers[1].get_submodule(name)
        original = plain.model.layers[1].get_submodule(name).weight.data
        packed, state = bnb.functional.quantize_4bit(original, compress_statistics=nested, quant_type=kind)
        assert isinstance(layer, bnb.nn.Linear4bit)
        assert torch.equal(layer.weight.data, packed)
        got = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(got, dequantize_4bit(packed, state))
        assert not torch.equal(got, original)
    assert type(model.lm_head) is nn.Linear


def test_eight_bit_logits_are_near_and_not_equal(folder: Path) -> None:
    model, plain = build(folder, q_lora_bits=8), LlamaForCausalLM.from_pretrained(folder)
    assert isinstance(model.model.layers[0].mlp.up_proj, bnb.nn.Linear8bitLt)
    assert type(model.lm_head) is nn.Linear
    ids = torch.arange(2, 34).view(2, 16)
    with torch.no_grad():
        apart = (model(ids).logits - plain(ids).logits).abs().max() / plain(ids).logits.abs().max()
    assert 0 < apart < 0.05


@pytest.mark.parametrize("bits", [4, 8])
def test_fresh_weights_are_quantized_as_loaded_ones_are(folder: Path, bits: int) -> None:
    loaded = build(folder, q_lora_bits=bits)
    spec = get_registry().quantizers[f"bnb_{bits}bit"]
    assert spec.quantize is not None and spec.params is not None
    fresh: Any = spec.quantize(LlamaForCausalLM.from_pretrained(folder), spec.params()())
    ids = torch.arange(2, 34).view(2, 16)
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, loaded(ids).logits)


def test_modules_named_to_be_skipped_keep_their_weights(folder: Path) -> None:
    spec = get_registry().quantizers["bnb_4bit"]
    assert spec.quantize is not None and spec.params is not None
    skip = spec.params()(llm_int8_skip_modules=["down_proj"])
    fresh: Any = spec.quantize(LlamaForCausalLM.from_pretrained(folder), skip)
    for model in (fresh, build(folder, llm_int8_skip_modules=["down_proj", "lm_head"])):
        assert type(model.model.layers[0].mlp.down_proj) is nn.Linear
        assert isinstance(model.model.layers[0].mlp.up_proj, bnb.nn.Linear4bit)


def gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def with_lora(folder: Path) -> Any:
    model = build(folder, bnb_4bit_quant_type="nf4")
    torch.manual_seed(1)
    model = attach_adapter(model, PeftParams(q_lora=True, lora_r=4, lora_target_modules=["q_proj", "mlp"]))
    for name, value in model.named_parameters():
        if "lora_B" in name:  # zeros would hide what lies before them
            nn.init.normal_(value, std=0.1)
    return model


def test_evaluating_in_between_changes_no_gradient(folder: Path) -> None:
    ids = torch.arange(2, 34).view(2, 16)
    model = with_lora(folder)
    before = gradients(model, ids)
    model.eval()
    with torch.no_grad():
        model(ids)
    after = gradients(model, ids)
    assert before.keys() == after.keys() and len(before) == 2 * 2 * 4
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_8_bits_compute_in_evaluation_as_in_training(folder: Path) -> None:
    """On a CPU bitsandbytes itself rounds the inputs only in evaluation."""
    ids = torch.arange(2, 34).view(2, 16)
    model = build(folder, q_lora_bits=8)
    with torch.no_grad():
        training, evaluation = model.train()(ids).logits, model.eval()(ids).logits
    assert torch.equal(training, evaluation)
    assert not model.training


@pytest.mark.skipif(not has_avx512bf16(), reason="only a CPU with AVX512-BF16 packs the weights")
def test_packing_them_would_change_the_gradients(folder: Path) -> None:
    """What the plugin guards against is still there: when this fails, the guard can go."""
    ids = torch.arange(2, 34).view(2, 16)
    model = with_lora(folder)
    before = gradients(model, ids)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = True
    model.eval()
    with torch.no_grad():
        model(ids)
    after = gradients(model, ids)
    wrong = [name for name in before if name not in after or not torch.allclose(before[name], after[name], rtol=0.5)]
    assert wrong, "gradients were lost or changed"


def test_gradients_are_those_of_the_dequantized_weights(folder: Path) -> None:
    ids = torch.arange(2, 34).view(2, 16)
    model = with_lora(folder)
    got = gradients(model, ids)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, bnb.nn.Linear4bit) and not hasattr(layer, "lora_A"):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
                plain.weight = nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state), False)
                setattr(parent, name, plain)
    wanted = gradients(model, ids)
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)


def test_a_classifiers_head_stays_whole_and_is_trained() -> None:
    from transformers import LlamaForSequenceClassification

    from graftwork_bitsandbytes.params import FourBitParams
    from graftwork_bitsandbytes.quantize import quantize

    model = quantize(LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=2)), FourBitParams())
    assert type(model.score) is nn.Linear
    assert isinstance(model.model.layers[0].self_attn.q_proj, bnb.nn.Linear4bit)
    adapted = attach_adapter(model, PeftParams(lora_target_modules=["q_proj"]))
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert any("score.modules_to_save" in name for name in trained)


def test_nothing_is_said_about_what_bitsandbytes_did_not_fetch() -> None:
    code = "from graftwork.registry import get_registry\nget_registry().quantizers['bnb_4bit']\nimport bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == ""
