"""torchtune's names for Mistral: signatures, what they build, and where a LoRA goes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from graftwork import ModelParams, PeftParams, attach_adapter, build_model
from graftwork.errors import UsageError
from graftwork_mistral import mistral, mixtral

SHAPE = {
    "vocab_size": 64,
    "num_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 32,
    "intermediate_dim": 48,
    "max_seq_len": 64,
}
# Of torchtune as of June 2024, whose users call these by position.
SIGNATURES = {
    mistral.mistral: "(vocab_size, num_layers, num_heads, num_kv_heads, embed_dim, intermediate_dim, max_seq_len, "
    "attn_dropout=0.0, norm_eps=1e-05, rope_base=10000)",
    mistral.mistral_classifier: "(num_classes, *, vocab_size, num_layers, num_heads, num_kv_heads, embed_dim, "
    "intermediate_dim, max_seq_len, attn_dropout=0.0, norm_eps=1e-05, rope_base=10000)",
    mistral.lora_mistral_7b: "(lora_attn_modules, apply_lora_to_mlp=False, apply_lora_to_output=False, lora_rank=8, "
    "lora_alpha=16, quantize_base=False, *, lora_dropout=0.05)",
    mistral.lora_mistral_classifier_7b: "(lora_attn_modules, apply_lora_to_mlp=False, apply_lora_to_output=False, "
    "lora_rank=8, lora_alpha=16, quantize_base=False, *, lora_dropout=0.05)",
}


@pytest.mark.parametrize("function", list(SIGNATURES), ids=lambda function: function.__name__)
def test_signatures(function: Any) -> None:
    assert str(inspect.signature(function)) == SIGNATURES[function]


def test_lora_classifier_takes_all_by_keyword() -> None:
    parameters = inspect.signature(mistral.lora_mistral_classifier).parameters
    assert list(parameters)[:4] == ["lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output", "num_classes"]
    assert parameters["num_classes"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    "function",
    [
        *(getattr(mistral, f"mistral_{size}") for size in ("7b", "7b_v0_2", "7b_v0_3", "nemo_12b", "classifier_7b")),
        mixtral.mixtral_8x7b,
    ],
    ids=lambda function: function.__name__,
)
def test_sized_builders_on_meta(function: Any) -> None:
    with torch.device("meta"):
        assert function().training


def test_the_generic_builder_has_no_window_as_torchtune_has_none() -> None:
    config = mistral.mistral(*SHAPE.values(), rope_base=500).config
    assert (config.sliding_window, config.rope_parameters["rope_theta"]) == (None, 500.0)
    assert mistral.mistral_7b.__doc__ == "mistral_7b with fresh weights (7,241,732,096 parameters)."


def trained(model: Any) -> set[str]:
    return {
        name.replace(".modules_to_save", "").split(".lora_")[0].removesuffix(".default.weight").rsplit(".", 1)[1]
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def test_a_classifier_scores_texts() -> None:
    model = mistral.mistral_classifier(3, **SHAPE)
    assert type(model).__name__ == "MistralForSequenceClassification"
    assert model(torch.arange(5)[None]).logits.shape == (1, 3)


def test_a_lora_on_a_classifier_trains_its_head_whole_or_by_lora() -> None:
    size = {**SHAPE, "num_classes": 2, "lora_rank": 2, "lora_alpha": 4}
    model = mistral.lora_mistral_classifier(["q_proj", "output_proj"], **size)
    assert trained(model) == {"q_proj", "o_proj", "score"}
    assert any("score.modules_to_save" in name for name, weight in model.named_parameters() if weight.requires_grad)
    model = mistral.lora_mistral_classifier(["q_proj"], True, True, **size)
    assert trained(model) == {"q_proj", "gate_proj", "up_proj", "down_proj", "score"}
    assert not any("modules_to_save" in name for name, _ in model.named_parameters())
    model(torch.arange(5)[None]).logits.sum().backward()


def test_a_classifiers_folder_loads_as_one(tmp_path: Any) -> None:
    model = mistral.mistral_classifier(3, **SHAPE).eval()
    model.save_pretrained(tmp_path)
    loaded = build_model(ModelParams(model_name=str(tmp_path), torch_dtype_str="float32"))
    assert type(loaded).__name__ == "MistralForSequenceClassification"
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert trained(attach_adapter(loaded, PeftParams(lora_target_modules=["v_proj"]))) == {"v_proj", "score"}


def test_mixtral_has_experts_and_a_lora_beside_them() -> None:
    size = {**SHAPE, "num_experts": 3, "experts_per_token": 2}
    config = mixtral.mixtral(**size).config
    assert (config.num_local_experts, config.num_experts_per_tok, config.sliding_window) == (3, 2, None)
    assert config.rope_parameters["rope_theta"] == 1e6
    model = mixtral.lora_mixtral(["k_proj"], False, True, **size, lora_rank=2, lora_alpha=4)
    assert trained(model) == {"k_proj", "lm_head"}
    with pytest.raises(UsageError, match=r"'mlp' is no layer of this model \(family mixtral\).*lora_target_par"):
        mixtral.lora_mixtral(["k_proj"], True, **size, lora_rank=2, lora_alpha=4)
