"""The roles attention and mlp: in families that name their parts, in fused ones, and by structure in any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from graftwork import PeftParams, attach_adapter
from graftwork.adapters import resolve_lora_targets
from graftwork.errors import UsageError
from graftwork.specs import DECODER_LORA_TARGETS, ModelFamily

if TYPE_CHECKING:
    from pathlib import Path

SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.arange(3, 15).reshape(2, 6)


def model(kind: str = "llama", **values: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZE, **values}))


def family(**targets: tuple[str, ...]) -> ModelFamily:
    return ModelFamily(name="toy", lora_targets={**DECODER_LORA_TARGETS, **targets})


def test_attention_is_its_four_projections() -> None:
    assert resolve_lora_targets(family(), ["attention"], model()) == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_attention_where_three_are_one_module() -> None:
    fused = family(**dict.fromkeys(("q_proj", "k_proj", "v_proj"), ("qkv_proj",)), mlp=("gate_up_proj", "down_proj"))
    assert resolve_lora_targets(fused, ["attention"], model("phi3")) == ["qkv_proj", "o_proj"]
    assert resolve_lora_targets(fused, ["attention", "mlp"], model("phi3")) == [
        "qkv_proj",
        "o_proj",
        "gate_up_proj",
        "down_proj",
    ]


def test_a_family_may_say_otherwise() -> None:
    assert resolve_lora_targets(family(attention=("q_proj",)), ["attention"], model()) == ["q_proj"]


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.mark.parametrize(
    ("kind", "values", "attention", "mlp"),
    [
        ("llama", {}, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16}, {"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
        ("gpt2", GPT2, {"c_attn", "c_proj"}, {"c_fc", "c_proj"}),
        ("bloom", {"n_layer": 2, "n_head": 4}, {"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    ],
)
def test_a_model_that_no_family_claims(kind: str, values: Any, attention: set[str], mlp: set[str]) -> None:
    toy, unknown = model(kind, **values), ModelFamily(name="generic")
    for role, leaves in (("attention", attention), ("mlp", mlp)):
        found = resolve_lora_targets(unknown, [role], toy)
        config = LoraConfig(target_modules=found, fan_in_fan_out=kind == "gpt2")
        adapted = get_peft_model(model(kind, **values), config)
        names = [name for name, part in adapted.named_modules() if hasattr(part, "lora_A")]
        assert {name.rpartition(".")[2] for name in names} == leaves
        assert len(names) == 2 * len(leaves)
        assert all(("attn" in name or "attention" in name) == (role == "attention") for name in names)


def test_a_role_that_a_family_has_no_modules_for() -> None:
    without = ModelFamily(name="toy", lora_targets={"q_proj": ("q_proj",)})
    with pytest.raises(UsageError, match="'mlp' is no "):
        resolve_lora_targets(without, ["mlp"], model())


# Against PEFT used by hand

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "saved": {"modules_to_save": ["lm_head"]},
    "dropout": {"lora_dropout": 0.3},
}
TRANSLATED = {"modules_to_save": "lora_modules_to_save"}


@pytest.mark.parametrize("option", OPTIONS)
def test_the_same_as_peft_by_hand(option: str, tmp_path: Path) -> None:
    """The same start, output, gradients and file, to the bit."""
    options = OPTIONS[option]
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    theirs = get_peft_model(
        model(), LoraConfig(r=4, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM", **options)
    )
    mine = attach_adapter(  # model() seeds: both adapters begin at the same random number
        model(),
        PeftParams(
            lora_r=4,
            lora_alpha=8,
            lora_target_modules=["attention"],
            **{TRANSLATED.get(name, name): value for name, value in options.items()},
        ),
    )
    pairs = list(zip(theirs.named_parameters(), mine.named_parameters(), strict=True))
    assert all(left[0] == right[0] and torch.equal(left[1], right[1]) for left, right in pairs)
    results = []
    for adapted in (theirs, mine):
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.linspace(-0.1, 0.1, weight.numel()).reshape(weight.shape))
        torch.manual_seed(11)
        output = adapted.train()(IDS, labels=IDS)
        output.loss.backward()
        results.append((output.logits, {name: w.grad for name, w in adapted.named_parameters() if w.requires_grad}))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    assert all(torch.equal(gradient, results[1][1][name]) for name, gradient in results[0][1].items())
    files = []
    for name, adapted in (("theirs", theirs), ("mine", mine)):
        adapted.save_pretrained(tmp_path / name)
        files.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    listed = [{file.name for file in (tmp_path / name).iterdir()} for name in ("theirs", "mine")]
    assert listed[0] == listed[1]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
