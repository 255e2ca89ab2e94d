"""The functions under torchtune's names: signatures, what they build, and where a LoRA goes."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork import ModelParams, PeftParams, build_model
from graftwork.adapters import attach_adapter
from graftwork.errors import UsageError
from graftwork.registry import get_registry
from graftwork_phi3 import phi3, phi4

SHAPE = {
    "vocab_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 32,
    "intermediate_dim": 48,
    "max_seq_len": 64,
}
DECODER = "vocab_size num_layers num_heads num_kv_heads embed_dim intermediate_dim max_seq_len"
MORE = "attn_dropout=0.0 norm_eps=1e-05 rope_base=10000"
LORA = "lora_attn_modules apply_lora_to_mlp=False apply_lora_to_output=False"
# Phi-3 as in June 2024, Phi-4 as in torchtune's last release; their users call these by position.
SIGNATURES = {
    phi3.phi3: f"{DECODER} {MORE}",
    phi3.lora_phi3: f"{LORA} * {DECODER} {MORE} lora_rank lora_alpha lora_dropout=0.0 quantize_base=False",
    phi3.lora_phi3_mini: f"{LORA} lora_rank=8 lora_alpha=16 quantize_base=False * lora_dropout=0.05",
    phi4.lora_phi4_14b: f"{LORA} lora_rank=8 lora_alpha=16 lora_dropout=0.0 use_dora=False quantize_base=False",
}
FUSED = ["q_proj", "k_proj", "v_proj"]


def spelled(function: Any) -> str:
    words, starred = [], False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        words.append(name if parameter.default is parameter.empty else f"{name}={parameter.default}")
    return " ".join(words)


def adapted(model: Any) -> set[str]:
    return {
        name.split(".lora_")[0].rsplit(".", 1)[1] for name, weight in model.named_parameters() if weight.requires_grad
    }


@pytest.mark.parametrize("function", list(SIGNATURES), ids=lambda function: function.__name__)
def test_signatures(function: Any) -> None:
    assert spelled(function) == SIGNATURES[function]


def test_every_size_has_its_three_functions() -> None:
    for preset in get_registry().families["phi3"].presets:
        module = phi4 if preset.name.startswith("phi4") else phi3
        assert all(callable(getattr(module, f"{kind}{preset.name}")) for kind in ("", "lora_", "qlora_"))


@pytest.mark.parametrize(
    ("modules", "mlp", "output", "expected"),
    [
        (FUSED, False, False, {"qkv_proj"}),
        (["output_proj"], False, False, {"o_proj"}),
        (["output_proj"], True, False, {"o_proj", "gate_up_proj", "down_proj"}),
        ([*FUSED, "output_proj"], True, True, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"}),
    ],
)
def test_a_lora_goes_onto_the_fused_modules(modules: Any, mlp: bool, output: bool, expected: set[str]) -> None:
    assert adapted(phi3.lora_phi3(modules, mlp, output, **SHAPE, lora_rank=4, lora_alpha=8)) == expected


@pytest.mark.parametrize("modules", [["q_proj"], ["v_proj", "q_proj"], ["k_proj", "output_proj"]])
def test_a_part_of_the_fused_module_is_refused(modules: list[str]) -> None:
    asked = ", ".join(role for role in FUSED if role in modules)
    missing = ", ".join(role for role in FUSED if role not in modules)
    with torch.device("meta"), pytest.raises(UsageError) as error:
        phi3.lora_phi3_mini(modules)
    assert str(error.value) == (
        f"peft.lora_target_modules: {asked} without {missing} cannot be had: in family phi3 q_proj, k_proj, v_proj "
        "are one module, qkv_proj; name all of them, or none"
    )


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["qkv_proj"], {"qkv_proj"}),
        (None, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        (["all-linear"], {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    ],
)
def test_the_modules_own_names_and_the_default_work_too(wanted: Any, expected: set[str]) -> None:
    params = ModelParams(model_name="phi3_mini", load_pretrained_weights=False)
    with torch.device("meta"):
        model = attach_adapter(build_model(params), PeftParams(lora_target_modules=wanted))
    assert adapted(model) == expected


def test_stop_tokens_are_among_the_published_ones() -> None:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the published tokenizer is not here")
    added = json.loads((Path(root) / "tokenizers/phi3/tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    published = json.loads((Path(root) / "model_meta/generation_config/phi-3.json").read_text())
    family = get_registry().families["phi3"]
    here = {ids[text] for text in family.stop_tokens if text in ids}
    assert here == {32000, 32007} <= set(published["stop_token_ids"])
    assert all(text in ids for text in family.special_tokens.values())
