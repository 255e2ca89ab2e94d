"""LoRA attached, loaded and merged: the right modules, in float32, saved and refused as they should be."""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from graftwork import ModelParams, PeftParams, attach_adapter, build_model, merge_adapter
from graftwork.adapters import load_adapter, resolve_lora_targets
from graftwork.adapters.folder import adapter_folder
from graftwork.errors import GraftworkError, ModelError, UsageError
from graftwork.specs import ModelFamily

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.arange(3, 15).reshape(2, 6)

PLUGIN = """
from graftwork import hookimpl
from graftwork.specs import ModelFamily

@hookimpl
def graftwork_model_families():
    return [ModelFamily(
        name="toy", model_types=("llama",), default_lora_roles=("q_proj", "v_proj"),
        lora_targets={"output_proj": ("o_proj",), "mlp": ("gate_proj", "up_proj", "down_proj"), "output": ("lm_head",)},
    )]
"""


@pytest.fixture(autouse=True)
def toy_family(install_plugin: Any) -> None:
    install_plugin(PLUGIN)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def built(path: Path, **fields: Any) -> Any:
    return build_model(ModelParams(model_name=str(path), **fields))


def stirred(model: Any, seed: int = 1) -> Any:
    """``model`` with every trained parameter moved, as training would have."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def targets(model: Any) -> set[str]:
    return {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "lora_A")}


# Which modules


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, {"q_proj", "v_proj"}),
        (["q_proj", "output_proj"], {"q_proj", "o_proj"}),
        (["mlp"], {"gate_proj", "up_proj", "down_proj"}),
        (["output", "self_attn.k_proj"], {"lm_head", "k_proj"}),
        (["attention"], {"o_proj"}),
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_roles_and_names(toy_model: Any, names: Any, expected: set[str]) -> None:
    adapted = attach_adapter(built(toy_model("llama")), PeftParams(lora_target_modules=names))
    assert targets(adapted) == expected


def test_all_linear_is_what_peft_takes(toy_model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    for kind in ("llama", "gpt2", "opt", "qwen2"):
        path = toy_model(kind)
        mine = attach_adapter(built(path), PeftParams(lora_target_modules="all-linear"))
        config = LoraConfig(target_modules="all-linear", fan_in_fan_out=kind == "gpt2")
        theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(path), config)
        names = [{name for name, module in m.named_modules() if hasattr(module, "lora_A")} for m in (mine, theirs)]
        assert names[0] == names[1]


def test_a_name_that_other_modules_share_is_written_out() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)))
    assert resolve_lora_targets(ModelFamily(name="any"), None, model) == ["1.0", "2"]


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (
            {"lora_target_modules": ["q_porj"]},
            "'q_porj' is no module and no role of this model (family toy): did you mean q_proj? Known: all-linear, "
            "attention, down_proj, gate_proj, k_proj, lm_head, mlp, o_proj, output, output_proj, q_proj, up_proj, "
            "v_proj",
        ),
        ({"lora_modules_to_save": ["lm_haed"]}, "peft.lora_modules_to_save: 'lm_haed' is no module of this model"),
        ({"lora_exclude_modules": ["k_prok"]}, "peft.lora_exclude_modules: 'k_prok' is no module of this model"),
        ({"lora_init_weights": "eva"}, "'eva' needs training data before the first step"),
        ({"lora_init_weights": "loftq"}, "'loftq' needs a quantized copy of the base"),
        ({"lora_target_modules": ["input_layernorm"]}, "the adapter does not fit this model"),
    ],
)
def test_what_does_not_fit_is_an_error(toy_model: Any, params: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        attach_adapter(built(toy_model("llama")), PeftParams(**params))
    assert text in str(caught.value)


def test_an_output_layer_that_is_the_embedding_is_left_alone(toy_model: Any) -> None:
    model = built(toy_model("llama", tie_word_embeddings=True))
    with pytest.raises(UsageError, match=r"'lm_head' shares its weight with the embedding .*leave it out"):
        attach_adapter(model, PeftParams(lora_target_modules=["output"]))
    assert "lm_head" not in targets(attach_adapter(model, PeftParams(lora_target_modules="all-linear")))


def test_one_adapter_is_enough(toy_model: Any) -> None:
    adapted = attach_adapter(built(toy_model("llama")), PeftParams())
    with pytest.raises(UsageError, match="this model has an adapter already"):
        attach_adapter(adapted, PeftParams())


# How


def test_an_adapter_is_float32_on_a_bfloat16_base(toy_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "graftwork")
    path = toy_model("llama", dtype="bfloat16")
    adapted = attach_adapter(built(path), PeftParams(lora_r=2))
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in adapted.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert logits(adapted).dtype is torch.bfloat16
    trained, total = (sum(p.numel() for p in adapted.parameters() if p.requires_grad or n) for n in (0, 1))
    assert f"LoRA of rank 2 on q_proj, v_proj: {trained:,} of {total:,} parameters trained (" in caplog.text
    assert adapted.peft_config["default"].base_model_name_or_path == str(path)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": "all"},
    "own bias": {"lora_bias": "lora_only"},
    "saved": {"lora_modules_to_save": ["lm_head"]},
    "all": {"lora_target_modules": "all-linear", "lora_exclude_modules": ["k_proj"]},
    "random": {"lora_init_weights": "random"},
    "gaussian": {"lora_init_weights": "gaussian"},
    "olora": {"lora_init_weights": "olora"},
    "pissa": {"lora_init_weights": "pissa"},
    "orthogonal": {"lora_init_weights": "orthogonal"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_survives_saving_and_merging(option: str, toy_model: Any, tmp_path: Path) -> None:
    path = toy_model("qwen2" if "bias" in option else "llama")
    params = {"lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], **OPTIONS[option]}
    torch.manual_seed(5)
    adapted = stirred(attach_adapter(built(path), PeftParams(**params)))
    trained = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = built(path, adapter_model=str(tmp_path / "adapter"))
    assert isinstance(loaded, PeftModel)
    torch.testing.assert_close(logits(loaded), trained, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(merge_adapter(loaded)), trained, atol=1e-4, rtol=1e-4)


def test_the_scale_is_alpha_over_the_rank(toy_model: Any) -> None:
    for params, scale in (({}, 2.0), ({"use_rslora": True}, 4.0)):
        adapted = attach_adapter(built(toy_model("llama")), PeftParams(lora_r=4, lora_alpha=8, **params))
        layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
        stirred(adapted)
        x = torch.randn(3, 32)
        expected = layer.base_layer(x) + scale * layer.lora_B["default"](layer.lora_A["default"](x))
        torch.testing.assert_close(layer(x), expected)


# Loading


@pytest.fixture
def trained(toy_model: Any, tmp_path: Path) -> tuple[Path, Path, torch.Tensor]:
    """A base's folder, a trained adapter's, and what the two together say."""
    base = toy_model("llama")
    adapted = stirred(attach_adapter(built(base), PeftParams(lora_r=4)))
    adapted.save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter", logits(adapted)


def test_an_adapter_as_the_model_brings_its_base(trained: tuple[Path, Path, torch.Tensor]) -> None:
    _, adapter, said = trained
    model = built(adapter)
    assert isinstance(model, PeftModel)
    assert torch.allclose(logits(model), said, atol=1e-6)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters())
    again = load_adapter(built(trained[0]), adapter, trainable=True)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, _ in again.named_parameters() if "lora_" in name
    }


def test_an_adapter_beside_its_base_in_one_folder(trained: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    base, adapter, said = trained
    both = shutil.copytree(base, tmp_path / "both")
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, both)
    model = built(both)
    assert isinstance(model, PeftModel)
    assert len(model.peft_config) == 1
    assert torch.allclose(logits(model), said, atol=1e-6)


def rewrite(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_base_that_is_not_to_be_had(trained: tuple[Path, Path, torch.Tensor]) -> None:
    _, adapter, _ = trained
    rewrite(adapter, base_model_name_or_path="/gone")
    with pytest.raises(ModelError, match=r"its base /gone cannot be found .*Give the base as model_name"):
        built(adapter)
    rewrite(adapter, base_model_name_or_path=None)
    with pytest.raises(ModelError, match="does not record its base model: give the base as model_name"):
        built(adapter)


def test_two_adapters_are_one_too_many(trained: tuple[Path, Path, torch.Tensor]) -> None:
    _, adapter, _ = trained
    with pytest.raises(UsageError, match="is itself an adapter and adapter_model"):
        built(adapter, adapter_model=str(adapter))


def test_another_base_is_refused(
    trained: tuple[Path, Path, torch.Tensor], toy_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    base, adapter, said = trained
    other = toy_model("llama", folder="other", dtype="bfloat16")
    with pytest.raises(ModelError, match=r"was trained on .*/llama, and this model is .*/other"):
        built(other, adapter_model=str(adapter))
    moved = shutil.copytree(base, base.with_name("copy"))
    assert torch.allclose(logits(built(moved, adapter_model=str(adapter))), said, atol=1e-6)
    assert not caplog.messages
    shutil.move(base, base.with_name("away"))
    built(moved, adapter_model=str(adapter))
    assert any("make sure that they are the same" in message for message in caplog.messages)
    rewrite(adapter, base_model_name_or_path="org/base")
    model = built(moved)
    model.name_or_path = "org/base-instruct"
    with pytest.raises(ModelError, match="was trained on org/base, and this model is org/base-instruct"):
        load_adapter(model, adapter)


def test_a_base_of_another_shape_is_refused(trained: tuple[Path, Path, torch.Tensor], toy_model: Any) -> None:
    _, adapter, _ = trained
    rewrite(adapter, base_model_name_or_path=None)
    wide = toy_model("llama", folder="wide", hidden_size=64)
    with pytest.raises(ModelError, match=r"does not fit this model: .*size mismatch"):
        built(wide, adapter_model=str(adapter))
    for layers in (1, 3):
        other = toy_model("llama", folder=f"deep{layers}", num_hidden_layers=layers)
        with pytest.raises(ModelError, match=r"does not fit this model: 4 of its weights have no place, or places no"):
            built(other, adapter_model=str(adapter))
    with pytest.raises(ModelError, match=r"does not fit this model: .*[Tt]arget modules"):
        built(toy_model("gpt2"), adapter_model=str(adapter))


def test_adapters_that_are_none(tmp_path: Path, toy_model: Any) -> None:
    base = str(toy_model("llama"))
    with pytest.raises(ModelError, match=r"there is no adapter_config\.json"):
        built(base, adapter_model=base)
    (tmp_path / "half").mkdir()
    (tmp_path / "half/adapter_config.json").write_text("{}")
    (tmp_path / "half/adapter_model.bin").write_text("")
    with pytest.raises(
        ModelError, match=r"no adapter_model\.safetensors.*pickled \(adapter_model\.bin\), which is not"
    ):
        built(base, adapter_model=str(tmp_path / "half"))
    (tmp_path / "run").mkdir()
    (tmp_path / "half").rename(tmp_path / "run/final")
    with pytest.raises(ModelError, match=r"not an adapter's folder; this is a run's, whose adapter is .*/run/final$"):
        built(base, adapter_model=str(tmp_path / "run"))


# Merging


def test_a_merged_folder_is_a_plain_model_with_its_tokenizer(
    trained: tuple[Path, Path, torch.Tensor], tmp_path: Path
) -> None:
    base, adapter, said = trained
    (base / "tokenizer.json").write_text("base")
    (adapter / "tokenizer.json").write_text("adapter")
    (adapter / "chat_template.jinja").write_text("the one that it was trained with")
    (adapter / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    merged = merge_adapter(adapter, output_dir=tmp_path / "out" / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out/merged")
    assert type(merged) is type(plain)
    torch.testing.assert_close(logits(plain), said, atol=1e-5, rtol=1e-5)
    assert (tmp_path / "out/merged/tokenizer.json").read_text() == "adapter"
    assert (tmp_path / "out/merged/chat_template.jinja").read_text() == "the one that it was trained with"
    assert plain.generation_config.eos_token_id == [2, 7]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]


def test_without_a_tokenizer_of_its_own_the_adapter_gets_the_bases(
    trained: tuple[Path, Path, torch.Tensor], tmp_path: Path
) -> None:
    base, adapter, _ = trained
    (base / "tokenizer.json").write_text("base")
    merge_adapter(str(base), adapter, tmp_path / "merged")
    assert (tmp_path / "merged/tokenizer.json").read_text() == "base"
    merge_adapter(built(base), adapter, tmp_path / "again")
    merge_adapter(built(adapter), output_dir=tmp_path / "third")
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("merged", "again", "third")]
    assert all(torch.equal(files[0][name], file[name]) for file in files for name in file)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_merged_model_keeps_the_checkpoints_precision(toy_model: Any, tmp_path: Path, dtype: str) -> None:
    base = toy_model("llama", dtype=dtype)
    adapted = stirred(attach_adapter(built(base, torch_dtype="float32"), PeftParams(lora_r=4)))
    adapted.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", output_dir=tmp_path / "merged")
    expected = adapted.merge_and_unload().state_dict()
    stored = load_file(tmp_path / "merged/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "merged/config.json").read_text())["dtype"] == dtype
    # one unit in the last place of each format: the sum is rounded once
    unit = torch.finfo(getattr(torch, dtype)).eps
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor.float(), expected[name], rtol=unit, atol=1e-6)


def test_nothing_is_overwritten_or_left_half_done(
    trained: tuple[Path, Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, adapter, _ = trained
    out = tmp_path / "out"
    (out / "merged").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"output folder .*/out/merged exists already, and nothing is overwritten"):
        merge_adapter(adapter, output_dir=out / "merged")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graftwork.adapters.merge._copy_tokenizer", full)
    with pytest.raises(GraftworkError, match=r"output folder .*/new could not be written: .*No space left") as caught:
        merge_adapter(adapter, output_dir=out / "new")
    assert caught.value.exit_code == 1
    assert [path.name for path in out.iterdir()] == ["merged"]
    (tmp_path / "file").write_text("")
    with pytest.raises(GraftworkError, match=r"output folder .*/file/new could not be written: .*Not a directory"):
        merge_adapter(adapter, output_dir=tmp_path / "file" / "new")


def test_broken_weights_do_not_merge(trained: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    _, adapter, _ = trained
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="NaN"):
        merge_adapter(adapter, output_dir=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_weights_that_were_cut_off(trained: tuple[Path, Path, torch.Tensor]) -> None:
    _, adapter, _ = trained
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ModelError, match=r"adapter .*/adapter does not fit this model: .*header"):
        built(adapter)


def test_merging_needs_an_adapter(toy_model: Any, trained: tuple[Path, Path, torch.Tensor]) -> None:
    base, adapter, _ = trained
    with pytest.raises(UsageError, match="give the adapter's folder too"):
        merge_adapter(built(base))
    with pytest.raises(UsageError, match="has an adapter already, and another is given"):
        merge_adapter(built(adapter), adapter)
    with pytest.raises(ModelError, match=r"there is no adapter_config\.json"):
        merge_adapter(base)


def test_an_adapter_that_is_not_there_is_called_one() -> None:
    with pytest.raises(ModelError, match=r"adapter \./nowhere: .*there is no folder"):
        adapter_folder("./nowhere")


def test_a_tied_head_trained_whole_beside_added_tokens_names_the_embeddings(toy_model: Any) -> None:
    """PEFT wrapped the one weight twice, and the first forward pass died of it."""
    tied = built(toy_model("llama", tie_word_embeddings=True))
    with pytest.raises(
        UsageError, match=r"'lm_head' shares its weight with 'embed_tokens'.*: name 'embed_tokens' instead"
    ):
        attach_adapter(tied, PeftParams(lora_modules_to_save=["lm_head"]), tokens=[5])
    whole = attach_adapter(tied, PeftParams(lora_modules_to_save=["embed_tokens"]), tokens=[5])
    assert torch.isfinite(whole(IDS).logits).all()
    own_head = built(toy_model("llama", tie_word_embeddings=False))
    adapted = attach_adapter(own_head, PeftParams(lora_modules_to_save=["lm_head"]), tokens=[5])
    assert torch.isfinite(adapted(IDS).logits).all()
