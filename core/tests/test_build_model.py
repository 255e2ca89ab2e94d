"""``build_model``: every source, precision, length, attention, quantizer and frozen layer, and what is refused."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from graftwork import ModelParams, PeftParams, attach_adapter, build_model
from graftwork.builders.model_config import config_of_values
from graftwork.errors import ClashError, MissingExtraError, ModelError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

PLUGIN = """
from graftwork import hookimpl
from graftwork.specs import ModelFamily, Preset

VALUES = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
              max_position_embeddings=64)

@hookimpl
def graftwork_model_families():
    presets = (
        Preset(name="toy_base", model_type="llama", values=VALUES, num_parameters=1, hub_ids=("org/toy",)),
        Preset(name="toy_bare", model_type="llama", values=VALUES, num_parameters=1),
    )
    return [ModelFamily(name="toy", model_types=("llama",), presets=presets, freeze_aliases={"eyes": "embed_tokens"})]
"""
IDS = torch.arange(12).reshape(2, 6)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def fresh(name: str = "toy_base", **fields: Any) -> ModelParams:
    return ModelParams(model_name=name, load_pretrained_weights=False, **fields)


# Where a model comes from


def test_a_folder_gives_what_transformers_gives(toy_model: Any) -> None:
    path = toy_model("llama")
    model = build_model(ModelParams(model_name=str(path)))
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(path)))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.name_or_path == model.config.name_or_path == str(path)
    assert not model.training


def test_a_folder_with_fresh_weights(toy_model: Any) -> None:
    path = toy_model("llama", dtype="bfloat16")
    torch.manual_seed(3)
    model = build_model(ModelParams(model_name=str(path), load_pretrained_weights=False))
    torch.manual_seed(3)
    expected = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32).eval()
    assert model.dtype is torch.float32
    assert torch.equal(logits(model), logits(expected))


def test_a_preset_has_fresh_weights_that_the_seed_decides(install_plugin: Any) -> None:
    install_plugin(PLUGIN)
    torch.manual_seed(1)
    first = build_model(fresh())
    torch.manual_seed(1)
    second = build_model(fresh("graftwork-toy:toy_base"))
    third = build_model(fresh("preset:toy_base"))
    assert first.dtype is torch.float32
    assert first.config.hidden_size == 32
    assert torch.equal(logits(first), logits(second))
    assert not torch.equal(logits(first), logits(third))
    assert first.config.name_or_path == ""


def test_a_preset_respects_the_meta_device_and_the_default_dtype(install_plugin: Any) -> None:
    install_plugin(PLUGIN)
    with torch.device("meta"):
        assert {parameter.device.type for parameter in build_model(fresh()).parameters()} == {"meta"}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert build_model(fresh()).dtype is torch.bfloat16
    finally:
        torch.set_default_dtype(before)


def test_a_preset_has_no_weights_to_load(install_plugin: Any) -> None:
    install_plugin(PLUGIN)
    with pytest.raises(ModelError) as caught:
        build_model(ModelParams(model_name="toy_base"))
    assert "an architecture without weights. Its weights are on the Hub as org/toy" in str(caught.value)
    assert "load_pretrained_weights=False" in str(caught.value)
    with pytest.raises(ModelError, match="Give a folder"):
        build_model(ModelParams(model_name="toy_bare"))


def test_meta_and_a_checkpoint_do_not_go_together(toy_model: Any) -> None:
    path = toy_model("llama")
    with torch.device("meta"), pytest.raises(ModelError, match="load_pretrained_weights=False"):
        build_model(ModelParams(model_name=str(path)))


def test_a_hub_model_is_recorded_by_its_id(toy_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy_model("llama")
    seen = []
    monkeypatch.setattr(
        "graftwork.sources.hub.fetch", lambda name, cache_dir, **settings: seen.append((name, settings)) or path
    )
    model = build_model(ModelParams(model_name="org/toy", model_revision="v1"))
    assert model.config.name_or_path == model.name_or_path == "org/toy"
    assert seen[0] == ("org/toy", {"revision": "v1", "trust_remote_code": False, "weights": True})
    build_model(ModelParams(model_name="org/toy", load_pretrained_weights=False))
    assert seen[-1] == ("org/toy", {"revision": None, "trust_remote_code": False, "weights": False})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (None, "there is no config.json"),
        ("{", "not readable as JSON"),
        ("[]", "there is no model_type in it"),
        ('{"model_type": "lama"}', "nobody here knows model_type 'lama'"),
        ('{"model_type": "llama", "architectures": "Llama"}', "architectures is 'Llama', and must be a list of names"),
        ('{"model_type": "gpt2", "n_embd": "wide"}', "the configuration of this gpt2 model is not valid"),
        ('{"model_type": "gpt2", "n_embd": 8, "n_head": 2}', "no weights in a known format are here"),
    ],
)
def test_folders_that_are_no_models(tmp_path: Path, config: str | None, text: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError) as caught:
        build_model(ModelParams(model_name=str(tmp_path)))
    assert text in str(caught.value)


def test_an_architecture_without_a_language_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="has no causal language model in transformers"):
        build_model(ModelParams(model_name=str(tmp_path)))


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"\xff" * 9, b"\2" + bytes(7) + b"[]", b""]
)
def test_a_weight_file_that_is_none(toy_model: Any, content: bytes) -> None:
    path = toy_model("llama")
    edit(path, dtype=None)
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(
        ModelError, match=r"model\.safetensors: a weight file is damaged or was cut off .*fetch it again"
    ):
        build_model(ModelParams(model_name=str(path)))


def test_a_shard_outside_the_folder_is_not_read(toy_model: Any) -> None:
    path = toy_model("llama")
    (path / "model.safetensors").rename(path.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"the shard '\.\./elsewhere\.safetensors' would lie outside this folder"):
        build_model(ModelParams(model_name=str(path)))


def test_weights_that_do_not_fit_the_configuration(toy_model: Any) -> None:
    path = toy_model("llama")
    edit(path, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"9 weights of the architecture are not in the checkpoint"):
        build_model(ModelParams(model_name=str(path)))
    edit(path, num_hidden_layers=2, intermediate_size=48)
    with pytest.raises(ModelError) as caught:
        build_model(ModelParams(model_name=str(path)))
    text = "weight model.layers.0.mlp.down_proj.weight is 32 x 64 in the checkpoint and 32 x 48 in the architecture"
    assert text in str(caught.value)
    assert "(6 in all differ)" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", None])
@pytest.mark.parametrize("size", [0, 5, 3000])
def test_weights_that_were_cut_off(toy_model: Any, dtype: str | None, size: int) -> None:
    path = toy_model("llama")
    edit(path, dtype=dtype)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ModelError, match="a weight file is damaged or was cut off"):
        build_model(ModelParams(model_name=str(path)))


def test_weights_that_nobody_uses_are_said(toy_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = toy_model("llama")
    edit(path, num_hidden_layers=1)
    build_model(ModelParams(model_name=str(path)))
    assert any("9 weights of the checkpoint are not used" in message for message in caplog.messages)


def edit(path: Path, **values: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# Nothing in a checkpoint names code

REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM
from pathlib import Path
Path({marker!r}).write_text("ran")
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def remote(toy_model: Any, tmp_path: Path) -> tuple[Path, Path]:
    path, marker = toy_model("llama"), tmp_path / "ran"
    (path / "own.py").write_text(REMOTE.format(marker=str(marker)))
    edit(path, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"})
    return path, marker


def test_code_beside_the_weights_is_refused(remote: tuple[Path, Path]) -> None:
    path, marker = remote
    with pytest.raises(ModelError) as caught:
        build_model(ModelParams(model_name=str(path)))
    assert "its architecture 'own' is Python code that lies beside the weights. Nothing of it was run" in str(
        caught.value
    )
    assert "model.trust_remote_code=true" in str(caught.value)
    assert not marker.exists()


def test_code_beside_the_weights_of_a_known_architecture_is_left_alone(
    remote: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    path, marker = remote
    edit(path, model_type="llama", attn_implementation="org/kernel", _attn_implementation="org/kernel")
    caplog.set_level(logging.INFO, "graftwork")
    model = build_model(ModelParams(model_name=str(path)))
    assert type(model).__module__.startswith("transformers.")
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "auto_map")
    assert any("it is not run" in message for message in caplog.messages)
    assert not marker.exists()


def test_code_that_the_user_trusts_runs(remote: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, marker = remote
    model = build_model(ModelParams(model_name=str(path), trust_remote_code=True))
    assert type(model).__name__ == "OwnModel"
    assert marker.exists()


# The configuration


def test_model_kwargs_go_over_the_configuration(toy_model: Any, install_plugin: Any) -> None:
    install_plugin(PLUGIN)
    assert build_model(fresh(model_kwargs={"num_hidden_layers": 1}), hidden_size=16).config.hidden_size == 16
    assert build_model(fresh(), num_hidden_layers=1).config.num_hidden_layers == 1
    assert build_model(fresh(), rope_theta=5.0).config.rope_parameters["rope_theta"] == 5.0
    path = toy_model("gpt2", attn_pdrop=0.1)
    model = build_model(ModelParams(model_name=str(path), model_kwargs={"attn_pdrop": 0.5, "resid_pdrop": 0.25}))
    assert (model.config.attn_pdrop, model.config.resid_pdrop) == (0.5, 0.25)
    smaller = build_model(ModelParams(model_name=str(path), load_pretrained_weights=False), hidden_size=16)
    assert smaller.config.n_embd == 16


def test_older_spellings_of_rotary_values_reach_a_model_that_states_the_newer(toy_model: Any) -> None:
    stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
    path = str(toy_model("llama", rope_parameters=stretched))

    def rope(**changes: Any) -> Any:
        return build_model(ModelParams(model_name=path, model_kwargs=changes)).config.rope_parameters

    assert rope() == stretched
    assert rope(rope_theta=5.0) == {**stretched, "rope_theta": 5.0}
    dynamic = {"rope_type": "dynamic", "factor": 4.0}
    assert rope(rope_scaling=dynamic) == {**dynamic, "rope_theta": 100.0}
    assert rope(rope_scaling=None, rope_theta=7.0) == {"rope_type": "default", "rope_theta": 7.0}
    assert rope(rope_parameters={**stretched, "factor": 8.0}) == {**stretched, "factor": 8.0}


def test_rotary_values_for_each_kind_of_layer_are_changed_as_such() -> None:
    rope = {kind: {"rope_type": "default", "rope_theta": 100.0} for kind in ("full_attention", "sliding_attention")}
    with pytest.raises(UsageError, match=r"rope_theta: this model has rotary values for each kind of layer .*: write"):
        config_of_values("gemma3_text", {"rope_parameters": rope}, {"rope_theta": 5.0})


@pytest.mark.parametrize("source", ["preset", "folder"])
def test_an_unknown_configuration_key_is_an_error(toy_model: Any, install_plugin: Any, source: str) -> None:
    install_plugin(PLUGIN)
    params = fresh() if source == "preset" else ModelParams(model_name=str(toy_model("llama")))
    with pytest.raises(UsageError) as caught:
        build_model(params, num_hiden_layers=1)
    assert "model.model_kwargs: 'num_hiden_layers' is no key of a llama configuration" in str(caught.value)
    assert "did you mean num_hidden_layers?" in str(caught.value)


def test_code_is_not_named_within_a_block_either(toy_model: Any) -> None:
    kernels = {"text_config": {"_attn_implementation": "org/kernels"}}
    for block in ({"rope_parameters": kernels}, {"rope_parameters": {"auto_map": {"AutoModel": "x.py"}}}):
        with pytest.raises(UsageError, match="rope_parameters holds a key that can name code; remove it"):
            build_model(ModelParams(model_name=str(toy_model("llama")), model_kwargs=block))


def test_a_length_beyond_the_model(toy_model: Any, install_plugin: Any, caplog: pytest.LogCaptureFixture) -> None:
    install_plugin(PLUGIN)
    gpt2 = str(toy_model("gpt2"))
    build_model(ModelParams(model_name=gpt2, model_max_length=64))
    with pytest.raises(ModelError, match=r"model_max_length 65 is more than .* 64: its positions are a table"):
        build_model(ModelParams(model_name=gpt2, model_max_length=65))
    assert not caplog.messages
    build_model(fresh(model_max_length=65))
    assert any("model_max_length 65 is more than" in message for message in caplog.messages)


def test_the_family_can_be_chosen(install_plugin: Any, toy_model: Any) -> None:
    install_plugin(PLUGIN)
    install_plugin(PLUGIN.replace('"toy"', '"other"').replace("toy_", "other_"), name="other")
    path = str(toy_model("llama"))
    with pytest.raises(
        ClashError, match=r"choose one with model\.family: graftwork-other:other or model\.family: graftwork-toy:toy"
    ):
        build_model(ModelParams(model_name=path))
    build_model(ModelParams(model_name=path, family="graftwork-toy:toy", freeze_layers=["eyes"]))
    with pytest.raises(UnknownNameError, match="did you mean other"):
        build_model(ModelParams(model_name=path, family="othre"))


# Precision and place


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_auto_is_the_checkpoints_precision(toy_model: Any, dtype: str) -> None:
    path = toy_model("llama", dtype=dtype)
    assert build_model(ModelParams(model_name=str(path))).dtype is getattr(torch, dtype)
    edit(path, dtype=None)
    assert build_model(ModelParams(model_name=str(path))).dtype is getattr(torch, dtype)


def test_a_half_precision_checkpoint_on_a_cpu_becomes_bfloat16_and_says_so_once(
    toy_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = toy_model("llama", dtype="float16")
    caplog.set_level(logging.INFO, "graftwork")
    model = build_model(ModelParams(model_name=str(path), device_map="cpu"))
    assert model.dtype is torch.bfloat16
    assert len([message for message in caplog.messages if "loaded as bfloat16" in message]) == 1
    original = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float16).state_dict()
    assert all(torch.equal(tensor, original[name].bfloat16()) for name, tensor in model.state_dict().items())


def test_half_precision_on_a_cpu_is_refused_with_the_reason(toy_model: Any, install_plugin: Any) -> None:
    install_plugin(PLUGIN)
    for params in (ModelParams(model_name=str(toy_model("llama")), torch_dtype="float16"), fresh(torch_dtype="fp16")):
        with pytest.raises(UsageError) as caught:
            build_model(params.model_copy(update={"device_map": "cpu"}))
        assert "0.27 GFLOP/s there, against 795 in bfloat16. Use bfloat16, float32 or auto" in str(caught.value)


def test_half_precision_without_a_device_is_nobodys_business(install_plugin: Any) -> None:
    install_plugin(PLUGIN)
    with torch.device("meta"):
        assert build_model(fresh(torch_dtype="float16", device_map=None)).dtype is torch.float16


def test_an_explicit_precision(toy_model: Any, install_plugin: Any) -> None:
    install_plugin(PLUGIN)
    assert build_model(fresh(torch_dtype="bf16")).dtype is torch.bfloat16
    path = str(toy_model("llama", dtype="float16"))
    assert build_model(ModelParams(model_name=path, torch_dtype="float32")).dtype is torch.float32


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is an accelerator")
@pytest.mark.parametrize("device_map", ["auto", "balanced", "cpu", None])
def test_without_an_accelerator_every_map_is_the_cpu_and_nothing_is_hooked(toy_model: Any, device_map: Any) -> None:
    model = build_model(ModelParams(model_name=str(toy_model("llama")), device_map=device_map))
    assert model.device.type == "cpu"
    assert not hasattr(model, "hf_device_map")
    assert not hasattr(model.model.layers[0], "_hf_hook")


def test_places_that_do_not_exist(toy_model: Any) -> None:
    path = str(toy_model("llama"))
    with pytest.raises(UsageError, match="neither a device"):
        build_model(ModelParams(model_name=path, device_map="graphics card"))
    with pytest.raises(ModelError, match=r"this machine has \d+ CUDA devices"):
        build_model(ModelParams(model_name=path, device_map="cuda:77"))


# Attention


def test_attention_by_name(toy_model: Any) -> None:
    path = str(toy_model("llama"))
    eager = build_model(ModelParams(model_name=path, attn_implementation="eager"))
    assert eager.config._attn_implementation == "eager"
    assert torch.allclose(logits(eager), logits(build_model(ModelParams(model_name=path))), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sdpaa", "is unknown: did you mean sdpa?"),
        ("flash_attention_2", "needs the package flash_attn, which is not installed. Available here: eager, "),
        ("org/kernel", "would be downloaded from the Hub and run: set model.trust_remote_code=true"),
    ],
)
def test_attention_that_is_not_there(toy_model: Any, name: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_model(ModelParams(model_name=str(toy_model("llama")), attn_implementation=name))
    assert text in str(caught.value)


# Frozen layers


@pytest.mark.parametrize(
    ("layers", "frozen"),
    [
        (["model.embed_tokens"], {"model.embed_tokens.weight"}),
        (["embed_tokens"], {"model.embed_tokens.weight"}),
        (["eyes"], {"model.embed_tokens.weight"}),
        (["*.q_proj"], {f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)}),
        (["model.layers.[1-9].mlp", "lm_head"], {
            *(f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")), "lm_head.weight"}),
    ],
)  # fmt: skip
def test_frozen_layers(
    install_plugin: Any, caplog: pytest.LogCaptureFixture, layers: list[str], frozen: set[str]
) -> None:
    install_plugin(PLUGIN)
    caplog.set_level(logging.INFO, "graftwork")
    model = build_model(fresh(freeze_layers=layers))
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    still = sum(parameter.numel() for name, parameter in model.named_parameters() if name in frozen)
    assert any(f"parameters trained, {still:,} frozen" in message for message in caplog.messages)


def test_an_unknown_layer_is_an_error(install_plugin: Any) -> None:
    install_plugin(PLUGIN)
    for layer, near in (("model.embed_token", "model.embed_tokens"), ("model.layers.7", ""), ("eye", "eyes")):
        with pytest.raises(UsageError) as caught:
            build_model(fresh(freeze_layers=[layer]))
        assert f"model.freeze_layers: {layer!r} is no module of this model" in str(caught.value)
        assert not near or f"did you mean {near}?" in str(caught.value)


# Compiling


def test_a_compiled_model_keeps_its_names(toy_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, *_, **__: compiled.append(call) or call)
    path = str(toy_model("llama"))
    model = build_model(ModelParams(model_name=path, compile=True))
    assert len(compiled) == 1
    assert list(model.state_dict()) == list(build_model(ModelParams(model_name=path)).state_dict())


# Quantizers

QUANTIZERS = """
from graftwork import hookimpl
from graftwork.specs import QuantizerSpec

def _params():
    from pydantic import BaseModel
    class Params(BaseModel, extra="forbid"):
        q_lora_bits: int
        step: float = 0.5
    return Params

def _quantize(model, params):
    import torch
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter / params.step).round() * params.step)
    model.rounded = params
    return model

def _plain(model, params):
    model.rounded = params
    return model

@hookimpl
def graftwork_quantizers():
    return [
        QuantizerSpec(name="rounding", bits=(8,), devices=("cpu",), quantize=_quantize, params=_params, trainable=True),
        QuantizerSpec(name="frozen", bits=(3,), devices=("cpu",), quantize=_plain),
        QuantizerSpec(name="elsewhere", bits=(8, 5), devices=("tpu",), quantize=_plain),
        QuantizerSpec(name="one", bits=(2,), devices=("cpu",), quantize=_plain),
        QuantizerSpec(name="two", bits=(2,), devices=("cpu",), quantize=_plain),
        QuantizerSpec(name="loading", bits=(6,), devices=("cpu",), quantization_config=lambda params: params),
    ]
"""


@pytest.mark.parametrize("where", ["argument", "params", "both"])
def test_bits_pick_the_quantizer_and_its_options_are_filled_in(toy_model: Any, install_plugin: Any, where: str) -> None:
    install_plugin(QUANTIZERS)
    peft = PeftParams(q_lora=True, q_lora_bits=8, quantizer_kwargs={"step": 0.25})
    inside = peft.model_copy() if where != "argument" else None
    params = ModelParams(model_name=str(toy_model("llama")), peft_params=inside)
    model = build_model(params, peft if where != "params" else None)
    assert (model.rounded.q_lora_bits, model.rounded.step) == (8, 0.25)
    assert bool(torch.all(model.lm_head.weight % 0.25 == 0))


def test_quantizing_is_asked_for_not_implied(toy_model: Any, install_plugin: Any) -> None:
    install_plugin(QUANTIZERS)
    model = build_model(ModelParams(model_name=str(toy_model("llama"))), PeftParams(q_lora_bits=8))
    assert not hasattr(model, "rounded")


def test_a_quantizer_without_options_of_its_own_gets_the_peft_section(toy_model: Any, install_plugin: Any) -> None:
    install_plugin(QUANTIZERS)
    peft = PeftParams(quantizer="frozen")
    model = build_model(ModelParams(model_name=str(toy_model("llama"))), peft)
    assert model.rounded == peft
    with pytest.raises(UsageError, match="adapters cannot be trained on what quantizer 'frozen' makes"):
        attach_adapter(model, peft)


def test_without_a_plugin_the_kind_that_is_missing_is_named(toy_model: Any, install_plugin: Any) -> None:
    params = ModelParams(model_name=str(toy_model("llama")))
    install_plugin("", name="bare")
    with pytest.raises(MissingExtraError) as caught:
        build_model(params, PeftParams(q_lora=True))
    text = "peft.q_lora_bits 4: no installed plugin quantizes to 4 bits on cpu. A quantizer plugin is needed"
    assert text in str(caught.value)
    assert "`pip install graftwork-bitsandbytes` brings 8 and 4 bits. Installed: none" in str(caught.value)
    install_plugin(QUANTIZERS)
    with pytest.raises(
        MissingExtraError, match=r"Set it to 2 or 3 or 6 or 8\. Installed: elsewhere \(8/5 bits on tpu\)"
    ):
        build_model(params, PeftParams(q_lora=True, q_lora_bits=5))


def test_quantizers_that_cannot_be_used(toy_model: Any, install_plugin: Any) -> None:
    install_plugin(QUANTIZERS)
    params = ModelParams(model_name=str(toy_model("llama")))
    with pytest.raises(
        ClashError, match=r"one \(graftwork-toy\), two \(graftwork-toy\).* choose one with peft.quantizer"
    ):
        build_model(params, PeftParams(q_lora=True, q_lora_bits=2))
    with pytest.raises(UsageError, match="'elsewhere' runs on tpu, and the model goes to cpu"):
        build_model(params, PeftParams(quantizer="elsewhere"))
    with pytest.raises(UnknownNameError, match="did you mean rounding"):
        build_model(params, PeftParams(quantizer="roundin"))
    with pytest.raises(UsageError, match="quantizes while it loads a checkpoint"):
        build_model(params.model_copy(update={"load_pretrained_weights": False}), PeftParams(quantizer="loading"))


def test_a_quantization_config_reaches_transformers(
    toy_model: Any, install_plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin(QUANTIZERS)
    passed: dict[str, Any] = {}
    load = LlamaForCausalLM.from_pretrained

    def spy(path: Any, *, quantization_config: Any, **keywords: Any) -> Any:
        passed["config"] = quantization_config
        return load(path, **keywords)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", spy)
    peft = PeftParams(quantizer="loading")
    build_model(ModelParams(model_name=str(toy_model("llama"))), peft)
    assert passed["config"] == peft


def test_peft_params_given_twice_must_agree(toy_model: Any) -> None:
    params = ModelParams(model_name=str(toy_model("llama")), peft_params=PeftParams(lora_r=8))
    build_model(params, PeftParams(lora_r=8))
    with pytest.raises(UsageError, match="peft_params are given twice and differ in lora_r, lora_alpha"):
        build_model(params, PeftParams(lora_r=4, lora_alpha=1))


def test_a_fresh_adapter_is_never_attached(toy_model: Any) -> None:
    model = build_model(ModelParams(model_name=str(toy_model("llama"))), PeftParams())
    assert type(model).__name__ == "LlamaForCausalLM"
    assert all(parameter.requires_grad for parameter in model.parameters())


# Without the heavy packages


@pytest.mark.parametrize("missing", ["torch", "transformers", "peft"])
def test_a_missing_package_names_the_extra(missing: str) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        sys.modules[{missing!r}] = None
        import graftwork
        from graftwork.errors import MissingExtraError
        for name in ("build_model", "attach_adapter", "merge_adapter", "BaseModel"):
            try:
                getattr(graftwork, name)
            except MissingExtraError as error:
                print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    line = f'this needs {missing}, which is not installed: pip install "graftwork[models]"'
    assert set(done.stdout.splitlines()) == {line}
    assert len(done.stdout.splitlines()) == (2 if missing == "peft" else 4)
