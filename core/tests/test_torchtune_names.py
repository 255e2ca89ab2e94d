"""The builder functions that any family gets from its presets, here those of a toy Qwen 2."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftwork.builders.torchtune_names import builders, scale_hidden_dim
from graftwork.errors import UsageError
from graftwork.specs import Preset

TOY = Preset(
    name="qwen2_toy",
    model_type="qwen2",
    values={
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    num_parameters=0,
)
FAMILY = """
from graftwork import hookimpl
from graftwork.specs import ModelFamily, QuantizerSpec

@hookimpl
def graftwork_model_families():
    roles = {"output_proj": ("o_proj",), "mlp": ("gate_proj", "up_proj", "down_proj")}
    return [ModelFamily(name="toy", model_types=("qwen2",), lora_targets=roles)]

def _halve(model, params):
    for weight in model.parameters():
        weight.data = (weight.data * 2).round() / 2
    model.halved = params.bnb_4bit_quant_type
    return model

@hookimpl
def graftwork_quantizers():
    how = {HOW}
    return [QuantizerSpec(name="halves", bits=(4,), devices=("cpu",), trainable=True, **how)]
"""


def test_three_functions_from_a_preset(install_plugin: Any) -> None:
    install_plugin(FAMILY.replace("{HOW}", "{'quantize': _halve}"))
    build, lora, qlora = builders(TOY)
    assert (build.__name__, lora.__name__) == ("qwen2_toy", "lora_qwen2_toy")
    assert type(build()).__name__ == "Qwen2ForCausalLM"
    names = {name for name, weight in lora(["output_proj"], True).named_parameters() if weight.requires_grad}
    assert len(names) == 2 * 4 * 2
    quantized = qlora(["q_proj"])
    base = quantized.get_base_model()
    assert base.halved == "nf4"
    weights = [weight for name, weight in base.named_parameters() if "lora_" not in name]
    assert all(torch.equal(weight * 2, (weight * 2).round()) for weight in weights)
    assert quantized.training


def test_a_quantizer_that_only_loads_is_refused(install_plugin: Any) -> None:
    install_plugin(FAMILY.replace("{HOW}", "{'quantization_config': dict}"))
    with pytest.raises(UsageError, match="'halves' quantizes while it loads a checkpoint, and this has fresh weights"):
        builders(TOY)[2](["q_proj"])


@pytest.mark.parametrize(("width", "hidden"), [(4096, 11008), (5120, 13824), (64, 256)])
def test_the_default_hidden_width(width: int, hidden: int) -> None:
    assert scale_hidden_dim(width) == hidden  # of the published Llama 2 7B and 13B
