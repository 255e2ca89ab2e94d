"""``graft convert``: every format and back, bit for bit, and everything that stops it."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from graftwork.checkpoints import convert, open_checkpoint
from graftwork.checkpoints.conversion import size_in_bytes
from graftwork.checkpoints.torch_files import TorchFile
from graftwork.errors import GraftworkError, ModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    ToyModel = Callable[..., Path]

FORMATS = ("hf-bin", "meta", "mistral")
SHARD = "20KB"


def weights(folder: Path) -> dict[str, bytes]:
    """The bytes of every weight file and index."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.index.json"), *folder.glob("*.bin"), *folder.glob("*.pth")]
    return {file.name: file.read_bytes() for file in files}


def sharded(folder: Path, target: Path, *, loaded: bool) -> Path:
    """``folder`` as transformers saves it in shards: a fresh model, or one that was loaded before."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    if not loaded:
        fresh = AutoModelForCausalLM.from_config(model.config)
        fresh.load_state_dict(model.state_dict())
        model = fresh
    model.save_pretrained(target, max_shard_size=SHARD)
    return target


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_there_and_back_gives_the_same_bytes(
    toy_model: ToyModel, tmp_path: Path, to: str, dtype: str, tied: bool
) -> None:
    source = toy_model("llama", dtype=dtype, tie_word_embeddings=tied)
    convert(source, tmp_path / "there", to)
    if to != "hf-bin":
        (tmp_path / "there" / "config.json").unlink()  # params.json says enough
    family = "llama" if to == "mistral" else None
    done = convert(tmp_path / "there", tmp_path / "back", "hf", family=family)
    assert (done.source, done.target) == (to, "hf")
    assert weights(tmp_path / "back") == weights(source)
    back = AutoConfig.from_pretrained(tmp_path / "back").to_dict()
    for key, value in AutoConfig.from_pretrained(source).to_dict().items():
        if key not in {"transformers_version", "_name_or_path"}:
            assert back[key] == value, key


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("loaded", [False, True])
def test_shards_are_those_of_transformers(toy_model: ToyModel, tmp_path: Path, to: str, loaded: bool) -> None:
    source = sharded(toy_model("llama", num_hidden_layers=11), tmp_path / "sharded", loaded=loaded)
    assert len(weights(source)) > 10
    convert(source, tmp_path / "there", to, max_shard_size=SHARD)
    convert(tmp_path / "there", tmp_path / "back", "hf", max_shard_size=SHARD)
    assert weights(tmp_path / "back") == weights(source)


def test_a_tensor_that_is_larger_than_a_shard_is_dealt_as_transformers_deals_it(
    toy_model: ToyModel, tmp_path: Path
) -> None:
    source = sharded(toy_model("llama", num_hidden_layers=11, vocab_size=256), tmp_path / "sharded", loaded=True)
    convert(source, tmp_path / "there", "meta")
    convert(tmp_path / "there", tmp_path / "back", "hf", max_shard_size=SHARD)
    assert weights(tmp_path / "back") == weights(source)


def test_one_file_is_cut_as_transformers_cuts_a_fresh_model(toy_model: ToyModel, tmp_path: Path) -> None:
    single = toy_model("llama", num_hidden_layers=11)
    expected = sharded(single, tmp_path / "expected", loaded=False)
    convert(single, tmp_path / "cut", "hf", max_shard_size=SHARD)
    assert weights(tmp_path / "cut") == weights(expected)


def test_a_mixture_keeps_its_names_on_disk(tmp_path: Path) -> None:
    values = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "sliding_window": None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **values, **heads))
    model.save_pretrained(tmp_path / "whole")
    convert(tmp_path / "whole", tmp_path / "hf", "hf", max_shard_size=SHARD)
    convert(tmp_path / "hf", tmp_path / "there", "mistral", max_shard_size=SHARD)
    names = open_checkpoint(tmp_path / "there").headers
    assert "layers.1.feed_forward.experts.3.w2.weight" in names
    (tmp_path / "there" / "config.json").unlink()
    convert(tmp_path / "there", tmp_path / "back", "hf", max_shard_size=SHARD)
    assert weights(tmp_path / "back") == weights(tmp_path / "hf")
    convert(tmp_path / "there", tmp_path / "whole_back", "hf")
    assert weights(tmp_path / "whole_back") == weights(tmp_path / "whole")


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("vocab_size", [64, 128256])
def test_model_parallel_parts_are_joined(toy_model: ToyModel, tmp_path: Path, parts: int, vocab_size: int) -> None:
    """Llama 2 splits embeddings along their width, Llama 3 along the vocabulary."""
    source = toy_model("llama", vocab_size=vocab_size, dtype="bfloat16", hidden_size=8)
    convert(source, tmp_path / "there", "meta", model_parallel=parts)
    (tmp_path / "there" / "config.json").unlink()
    files = sorted((tmp_path / "there").glob("*.pth"))
    assert len(files) == parts
    part = torch.load(files[-1], weights_only=True)  # torch itself reads what is written here
    whole = load_file(source / "model.safetensors")
    rows, columns = whole["model.embed_tokens.weight"].shape
    shape = (rows // parts, columns) if vocab_size > 100_000 else (rows, columns // parts)
    assert part["tok_embeddings.weight"].shape == shape
    assert part["layers.0.attention.wo.weight"].shape == (8, 8 // parts)
    assert torch.equal(part["norm.weight"], whole["model.norm.weight"])
    convert(tmp_path / "there", tmp_path / "back", "hf")
    assert weights(tmp_path / "back") == weights(source)


@pytest.mark.parametrize("to", ["hf", *FORMATS])
def test_the_same_command_gives_the_same_bytes(toy_model: ToyModel, tmp_path: Path, to: str) -> None:
    source = toy_model("llama")
    convert(source, tmp_path / "a", to)
    time.sleep(0.01)
    convert(source, tmp_path / "b", to)
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()
    }


def test_a_head_that_only_looks_tied_stays_a_head(toy_model: ToyModel, tmp_path: Path) -> None:
    source = toy_model("llama")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, tmp_path / "there", "meta")
    (tmp_path / "there" / "config.json").unlink()
    convert(tmp_path / "there", tmp_path / "back", "hf")
    assert weights(tmp_path / "back") == weights(source)


def test_derived_names_of_older_files_are_left_out(toy_model: ToyModel, tmp_path: Path) -> None:
    source = toy_model("llama")
    convert(source, tmp_path / "there", "meta")
    file = tmp_path / "there" / "consolidated.00.pth"
    torch.save({**torch.load(file, weights_only=True), "rope.freqs": torch.ones(4)}, file)
    convert(tmp_path / "there", tmp_path / "back", "hf")
    assert weights(tmp_path / "back") == weights(source)


def test_every_dtype_comes_through_pickled_files(tmp_path: Path) -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]
    newer = [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16]
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in dtypes}
    tensors |= {str(dtype): torch.arange(6, dtype=torch.float32).to(dtype) for dtype in newer}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    (tmp_path / "hf").mkdir()
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    convert(tmp_path / "hf", tmp_path / "bin", "hf-bin")
    loaded = torch.load(tmp_path / "bin" / "pytorch_model.bin", weights_only=True)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    convert(tmp_path / "bin", tmp_path / "back", "hf")
    assert weights(tmp_path / "back") == weights(tmp_path / "hf")


def test_an_adapter_becomes_pickled_and_back(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    tensors = {
        "base_model.model.q.lora_A.weight": torch.randn(2, 8),
        "base_model.model.q.lora_B.weight": torch.ones(8, 2),
    }
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    convert(tmp_path / "adapter", tmp_path / "bin", "hf-bin")
    assert torch.load(tmp_path / "bin" / "adapter_model.bin", weights_only=True).keys() == tensors.keys()
    convert(tmp_path / "bin", tmp_path / "back", "hf")
    assert {file.name: file.read_bytes() for file in (tmp_path / "back").iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()
    }
    with pytest.raises(UsageError, match=r"the source is an adapter. Possible: adapter, adapter-bin"):
        convert(tmp_path / "adapter", tmp_path / "meta", "meta")


def test_what_lies_beside_the_weights_comes_along(toy_model: ToyModel, tmp_path: Path) -> None:
    source = toy_model("llama")
    for name in ("tokenizer.model", "tekken.json", "chat_template.jinja", "notes.txt", "modeling_llama.py"):
        (source / name).write_text(name)
    done = convert(source, tmp_path / "there", "mistral")
    assert {"tokenizer.model", "tekken.json", "chat_template.jinja", "generation_config.json"} <= set(done.files)
    assert not {"notes.txt", "modeling_llama.py"} & set(done.files)


# What stops it


def test_all_that_does_not_fit_is_listed_at_once_with_the_nearest_names(toy_model: ToyModel, tmp_path: Path) -> None:
    convert(toy_model("llama"), tmp_path / "meta", "meta")
    file = tmp_path / "meta" / "consolidated.00.pth"
    tensors = torch.load(file, weights_only=True)
    tensors["layers.0.attention.wqq.weight"] = tensors.pop("layers.0.attention.wq.weight")
    tensors["surplus"] = torch.ones(3)
    del tensors["norm.weight"]
    tensors["layers.1.feed_forward.w1.weight"] = torch.ones(7, 32)
    torch.save(tensors, file)
    with pytest.raises(ModelError) as caught:
        convert(tmp_path / "meta", tmp_path / "hf", "hf")
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "layers.0.attention.wq.weight (nearest: layers.0.attention.wqq.weight)" in lines
    assert "norm.weight" in lines
    assert "layers.0.attention.wqq.weight (nearest: layers.0.attention.wq.weight)" in lines
    assert "surplus" in lines
    assert "layers.1.feed_forward.w1.weight is 7 x 32, and 64 x 32 was expected" in lines
    assert not (tmp_path / "hf").exists()


def test_a_missing_weight_of_a_folder_of_transformers_is_listed(toy_model: ToyModel, tmp_path: Path) -> None:
    source = toy_model("llama")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"(?s)1 missing:.*model.layers.1.mlp.up_proj.weight"):
        convert(source, tmp_path / "meta", "meta")


def test_values_that_params_json_cannot_say_are_refused(toy_model: ToyModel, tmp_path: Path) -> None:
    source = toy_model("llama", mlp_bias=True, head_dim=16)
    with pytest.raises(ModelError, match=r"no name in the meta format|cannot say what this model's configuration says"):
        convert(source, tmp_path / "meta", "meta")
    gelu = toy_model("llama", hidden_act="gelu", folder="gelu")
    with pytest.raises(ModelError, match=r"hidden_act='gelu' .it would be 'silu'."):
        convert(gelu, tmp_path / "meta", "meta")


def test_a_config_and_params_that_contradict_each_other_are_refused(toy_model: ToyModel, tmp_path: Path) -> None:
    convert(toy_model("llama"), tmp_path / "meta", "meta")
    file = tmp_path / "meta" / "params.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "norm_eps": 0.5}))
    with pytest.raises(ModelError, match=r"contradict each other: rms_norm_eps 1e-06 and 0.5"):
        convert(tmp_path / "meta", tmp_path / "hf", "hf")


def test_a_family_without_a_map_says_which_formats_there_are(toy_model: ToyModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no key maps.*Possible for it: hf, hf-bin$"):
        convert(toy_model("gpt2"), tmp_path / "meta", "meta")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "metta"}, "did you mean meta"),
        ({"to": "mistral", "model_parallel": 2}, "the mistral format has no such parts"),
        ({"to": "hf", "model_parallel": 2}, "the hf format has no such parts"),
        ({"to": "meta", "model_parallel": 3}, "heads .* cannot be shared"),
        ({"to": "meta", "max_shard_size": "5 apples"}, "--max-shard-size '5 apples'"),
    ],
)
def test_requests_that_cannot_be(toy_model: ToyModel, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        convert(toy_model("llama"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(toy_model: ToyModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"exists already, and nothing is overwritten"):
        convert(toy_model("llama"), tmp_path / "out", "meta")
    with pytest.raises(ModelError, match=r"there is no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "new", "meta")


def test_missing_shards_and_parts_are_named(toy_model: ToyModel, tmp_path: Path) -> None:
    source = sharded(toy_model("llama"), tmp_path / "sharded", loaded=False)
    next(iter(sorted(source.glob("model-*")))).unlink()
    with pytest.raises(ModelError, match=r"weight file model-00001-of-\d+.safetensors is missing"):
        convert(source, tmp_path / "out", "meta")
    convert(toy_model("llama"), tmp_path / "meta", "meta", model_parallel=2)
    (tmp_path / "meta" / "consolidated.00.pth").unlink()
    with pytest.raises(ModelError, match=r"consolidated.00.pth is missing"):
        convert(tmp_path / "meta", tmp_path / "out", "hf")


def test_a_file_that_was_cut_off_is_refused(toy_model: ToyModel, tmp_path: Path) -> None:
    source = toy_model("llama")
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"damaged or was cut off"):
        convert(source, tmp_path / "out", "hf-bin")


def test_a_full_disk_leaves_nothing(toy_model: ToyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = TorchFile.write

    def full(self: TorchFile, name: str, tensor: torch.Tensor) -> None:
        if name == "norm.weight":
            raise OSError(errno.ENOSPC, "No space left on device")
        written(self, name, tensor)

    source = toy_model("llama")
    monkeypatch.setattr(TorchFile, "write", full)
    with pytest.raises(GraftworkError, match=r"No space left on device; nothing is left there"):
        convert(source, tmp_path / "out", "meta")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]


def test_a_kill_in_the_middle_leaves_no_target(toy_model: ToyModel, tmp_path: Path) -> None:
    """The child stops itself halfway, and is killed there."""
    source = toy_model("llama")
    code = """
import os, signal, sys
from graftwork.checkpoints import convert
from graftwork.checkpoints.torch_files import TorchFile
written = TorchFile.write
def half(self, name, tensor):
    if name == "norm.weight":
        os.kill(os.getpid(), signal.SIGKILL)
    written(self, name, tensor)
TorchFile.write = half
convert(sys.argv[1], sys.argv[2], "meta")
"""
    done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "out"], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", "meta")  # what the killed one left is in nobody's way
    assert (tmp_path / "out" / "consolidated.00.pth").is_file()


@pytest.mark.parametrize(("text", "nbytes"), [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2GiB", 2 << 30), (77, 77)])
def test_sizes(text: str | int, nbytes: int) -> None:
    assert size_in_bytes(text) == nbytes


def test_a_size_on_the_command_line_has_its_unit() -> None:
    with pytest.raises(UsageError, match="write a number with a unit, as 5GB or 500MB"):
        size_in_bytes("200")


def test_the_command(toy_model: ToyModel, tmp_path: Path, graft: Callable[..., tuple[int, str, str]]) -> None:
    source = toy_model("llama")
    code, out, _ = graft("convert", source, tmp_path / "out", "--to", "meta", "--model-parallel", 2)
    assert code == 0
    assert "hf to meta: 21 tensors" in out
    assert "consolidated.01.pth" in out
    code, _, err = graft("convert", source, tmp_path / "out", "--to", "meta")
    assert code == 2
    assert "exists already" in err
