"""``build_model`` of folders that transformers does not read: Meta's, Mistral's, pickled ones."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from graftwork import ModelParams, build_model
from graftwork.checkpoints import convert, open_checkpoint
from graftwork.checkpoints.params import config_of_params
from graftwork.errors import ModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    ToyModel = Callable[..., Path]

DATA = os.environ.get("GRAFTWORK_TEST_DATA")
STORIES = Path(DATA or "") / "weights" / "stories260K"
FORMS = ("hf", "hf-bin", "meta", "mistral")
IDS = torch.arange(12).reshape(2, 6)


def logits(folder: Path, **values: Any) -> torch.Tensor:
    model = build_model(ModelParams(model_name=str(folder), **values))
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def without_config(folder: Path) -> Path:
    (folder / "config.json").unlink()
    return folder


# Meta's own forward pass, written from its paper: rows of a head are pairs, which are turned as complex numbers.
# B samples, T tokens, H heads, D numbers a head


def meta_logits(tensors: dict[str, torch.Tensor], params: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    heads, groups = params["n_heads"], params["n_kv_heads"]
    width = params["dim"] // heads
    angles = torch.outer(
        torch.arange(ids.shape[1]).float(), 1 / params["rope_theta"] ** (torch.arange(0, width, 2).float() / width)
    )
    turns = torch.polar(torch.ones_like(angles), angles)[None, :, None]  # (1, T, 1, D/2)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * tensors[name]

    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())  # (B, T, H, D/2)
        return torch.view_as_real(pairs * turns).flatten(-2)

    x = tensors["tok_embeddings.weight"][ids]
    for layer in range(params["n_layers"]):
        at = f"layers.{layer}."
        y = norm(x, at + "attention_norm.weight")
        q = turned((y @ tensors[at + "attention.wq.weight"].T).unflatten(-1, (heads, width)))
        k = turned((y @ tensors[at + "attention.wk.weight"].T).unflatten(-1, (groups, width)))
        v = (y @ tensors[at + "attention.wv.weight"].T).unflatten(-1, (groups, width))
        k, v = (part.repeat_interleave(heads // groups, dim=2) for part in (k, v))
        mixed = functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)), is_causal=True)
        x = x + mixed.transpose(1, 2).flatten(-2) @ tensors[at + "attention.wo.weight"].T
        y = norm(x, at + "ffn_norm.weight")
        gate = functional.silu(y @ tensors[at + "feed_forward.w1.weight"].T)
        up = y @ tensors[at + "feed_forward.w3.weight"].T
        x = x + (gate * up) @ tensors[at + "feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ tensors["output.weight"].T


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_model_in_metas_files_is_the_model_of_metas_forward(tmp_path: Path, groups: int) -> None:
    """Random files in Meta's form, made here: what is built from them computes what Meta's code would."""
    torch.manual_seed(0)
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": groups, "vocab_size": -1, "multiple_of": 16}
    params |= {"norm_eps": 1e-4, "rope_theta": 500.0}
    shapes = {"tok_embeddings.weight": (64, 32), "norm.weight": (32,), "output.weight": (64, 32)}
    for layer in range(2):
        attention = {"wq": (32, 32), "wk": (8 * groups, 32), "wv": (8 * groups, 32), "wo": (32, 32)}
        feed_forward = {"w1": (96, 32), "w2": (32, 96), "w3": (96, 32)}
        shapes |= {f"layers.{layer}.attention.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"layers.{layer}.feed_forward.{name}.weight": shape for name, shape in feed_forward.items()}
        shapes |= {f"layers.{layer}.{name}_norm.weight": (32,) for name in ("attention", "ffn")}
    tensors = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    torch.save({**tensors, "rope.freqs": torch.ones(4)}, tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text(json.dumps(params))
    expected = meta_logits(tensors, params, IDS)
    torch.testing.assert_close(logits(tmp_path), expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.5


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_form_gives_the_same_logits_bit_for_bit(
    toy_model: ToyModel, tmp_path: Path, form: str, tied: bool, dtype: str
) -> None:
    source = toy_model("llama", dtype=dtype, tie_word_embeddings=tied)
    convert(source, tmp_path / "there", form)
    if form != "hf-bin":
        without_config(tmp_path / "there")
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    model = build_model(ModelParams(model_name=str(tmp_path / "there"), torch_dtype="auto"))
    assert model.dtype is getattr(torch, dtype)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, reference(IDS).logits)


def test_model_parallel_parts_load(toy_model: ToyModel, tmp_path: Path) -> None:
    source = toy_model("llama", dtype="bfloat16")
    convert(source, tmp_path / "there", "meta", model_parallel=2)
    assert torch.equal(logits(without_config(tmp_path / "there")), logits(source))


def test_a_mixture_loads(tmp_path: Path) -> None:
    values = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "sliding_window": None}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **values, **heads)).save_pretrained(
        tmp_path / "hf"
    )
    convert(tmp_path / "hf", tmp_path / "there", "mistral")
    assert torch.equal(logits(without_config(tmp_path / "there")), logits(tmp_path / "hf"))


def test_generation_settings_come_with_the_weights(toy_model: ToyModel, tmp_path: Path) -> None:
    convert(toy_model("llama"), tmp_path / "there", "meta")
    (tmp_path / "there" / "generation_config.json").write_text('{"eos_token_id": [5, 7], "temperature": 0.5}')
    model = build_model(ModelParams(model_name=str(tmp_path / "there")))
    assert model.generation_config.eos_token_id == [5, 7]


def test_params_that_no_family_or_several_could_be(
    toy_model: ToyModel, tmp_path: Path, install_plugin: Callable[..., str]
) -> None:
    convert(toy_model("llama"), tmp_path / "there", "meta")
    without_config(tmp_path / "there")
    source = """
    from graftwork import hookimpl
    from graftwork.specs import ModelFamily

    def keys():
        from graftwork.checkpoints.consolidated import consolidated_map
        return consolidated_map(layout="meta", model_type="llama")

    @hookimpl
    def graftwork_model_families():
        return [ModelFamily(name="{name}", key_maps={{"meta": keys}}, model_types=("{name}",))]
    """
    for name in ("one", "two"):
        install_plugin(source.format(name=name), name=name)
    with pytest.raises(UsageError, match=r"could be of several families \(one, two\): say which with model.family"):
        build_model(ModelParams(model_name=str(tmp_path / "there")))
    assert config_of_params(tmp_path / "there", "one")["model_type"] == "llama"
    file = tmp_path / "there" / "params.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_dim": 64}))
    with pytest.raises(ModelError, match=r"is of no family that reads the meta format \(one, two\)"):
        build_model(ModelParams(model_name=str(tmp_path / "there")))


def test_weights_that_do_not_fit_are_listed_before_anything_is_read(
    toy_model: ToyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftwork.checkpoints.unpickle import PickledTensors

    convert(toy_model("llama"), tmp_path / "there", "meta")
    file = tmp_path / "there" / "consolidated.00.pth"
    tensors = torch.load(file, weights_only=True)
    del tensors["norm.weight"], tensors["layers.0.attention.wk.weight"]
    torch.save(tensors, file)

    def read(self: PickledTensors, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} is read")

    monkeypatch.setattr(PickledTensors, "read", read)
    with pytest.raises(ModelError, match=r"(?s)2 missing:.*layers.0.attention.wk.weight.*norm.weight"):
        build_model(ModelParams(model_name=str(tmp_path / "there"), torch_dtype="float32"))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_a_hostile_pickle_is_refused_by_name(toy_model: ToyModel, tmp_path: Path, name: str) -> None:
    source = toy_model("llama")
    convert(source, tmp_path / "there", "hf-bin" if name.endswith("bin") else "meta")
    (tmp_path / "there" / name).write_bytes(pickle.dumps(Hostile()))
    for attempt in (
        lambda: build_model(ModelParams(model_name=str(tmp_path / "there"))),
        lambda: convert(tmp_path / "there", tmp_path / "out", "hf"),
    ):
        with pytest.raises(ModelError, match=r"system"):
            attempt()


# Real files


@pytest.mark.skipif(not DATA, reason="GRAFTWORK_TEST_DATA names no folder of real files")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("config", [True, False])
def test_the_real_model_tells_its_story_from_every_form(tmp_path: Path, form: str, config: bool) -> None:
    told = json.loads((STORIES / "expected_greedy.json").read_text())
    convert(STORIES / "hf", tmp_path / "there", form)
    if not config and form in {"meta", "mistral"}:
        without_config(tmp_path / "there")
    model = build_model(ModelParams(model_name=str(tmp_path / "there")))
    ids = torch.tensor([told["prompt_ids"]])
    settings = {"max_new_tokens": told["max_new_tokens"], "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    written = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    text = AutoTokenizer.from_pretrained(tmp_path / "there").decode(written[0], skip_special_tokens=True)
    assert text == told["expected_text"]
    convert(tmp_path / "there", tmp_path / "back", "hf")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (STORIES / "hf" / "model.safetensors").read_bytes()


@pytest.mark.skipif(not DATA, reason="GRAFTWORK_TEST_DATA names no folder of real files")
def test_torchtunes_tiny_file_is_metas(tmp_path: Path) -> None:
    """A file of torchtune's own test suite, in Meta's names and without a params.json."""
    file = STORIES.parent / "torchtune_tiny_fair_checkpoint.pt"
    assert open_checkpoint(file).format == "meta"
    with pytest.raises(ModelError, match=r"no params.json beside the weights"):
        convert(file, tmp_path / "none", "hf")
    (tmp_path / "meta").mkdir()
    shutil.copy(file, tmp_path / "meta" / "consolidated.00.pth")
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "multiple_of": 256, "norm_eps": 1e-5, "vocab_size": -1}
    (tmp_path / "meta" / "params.json").write_text(json.dumps(params))
    convert(tmp_path / "meta", tmp_path / "hf", "hf")
    theirs = torch.load(file, weights_only=True)
    assert "lm_head.weight" not in load_file(tmp_path / "hf" / "model.safetensors")  # it is the embeddings, bit for bit
    expected = meta_logits(dict(theirs), {**params, "n_kv_heads": 4, "rope_theta": 10000.0}, IDS)
    torch.testing.assert_close(logits(tmp_path / "meta"), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(tmp_path / "meta"), logits(tmp_path / "hf"))
