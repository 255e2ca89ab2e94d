"""A merge goes onto the right base, proves what it changed, and says so."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from graftwork import ModelParams, PeftParams, attach_adapter, build_model, merge_adapter
from graftwork.adapters import load_adapter, save_adapter
from graftwork.adapters.fingerprint import fingerprint
from graftwork.adapters.record import read_record
from graftwork.cli.merge import merge
from graftwork.errors import ModelError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def built(path: Path, **fields: Any) -> Any:
    return build_model(ModelParams(model_name=str(path), **fields))


def adapter_of(base: Path, folder: Path, size: float = 0.1, only: str = "", **peft: Any) -> Path:
    """An adapter whose updates are of about ``size``, or zero where the name lacks ``only``."""
    adapted = attach_adapter(built(base), PeftParams(lora_r=4, lora_target_modules=["attention"], **peft))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name and only in name:
                weight.normal_(std=size)
    save_adapter(folder, adapted)
    return folder


# Fingerprints


def test_the_same_weights_have_one_fingerprint(toy_model: Any, tmp_path: Path) -> None:
    base = toy_model("llama")
    number = fingerprint(base)
    assert number.startswith("sha256-tensors-1:")
    assert len(number) == len("sha256-tensors-1:") + 64
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert fingerprint(tmp_path / "shards") == number
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(load_file(base / "model.safetensors"), pickled / "pytorch_model.bin")
    shutil.copy(base / "config.json", pickled)
    assert fingerprint(pickled) == number


def test_other_weights_have_another(toy_model: Any, tmp_path: Path) -> None:
    base = toy_model("llama")
    found = {fingerprint(base), fingerprint(toy_model("llama", folder="half", dtype="bfloat16"))}
    for name, weight in load_file(base / "model.safetensors").items():
        other = shutil.copytree(base, tmp_path / "other", dirs_exist_ok=True)
        changed = {**load_file(base / "model.safetensors"), name: weight.clone()}
        changed[name].view(-1)[0] += 1e-3
        save_file(changed, other / "model.safetensors", {"format": "pt"})
        found.add(fingerprint(other))
    assert len(found) == 2 + len(load_file(base / "model.safetensors"))


def test_one_weight_anywhere_in_a_large_tensor_counts(tmp_path: Path) -> None:
    weight = torch.zeros(3 * 2**20 // 4 + 5)
    found = set()
    for place in (None, 0, 5000, 300_000, len(weight) - 1):
        changed = weight.clone()
        if place is not None:
            changed[place] = 1e-3
        save_file({"weight": changed}, tmp_path / "model.safetensors", {"format": "pt"})
        found.add(fingerprint(tmp_path))
    assert len(found) == 5


# The base


def test_another_base_is_refused_by_its_fingerprint(toy_model: Any, tmp_path: Path) -> None:
    base = toy_model("llama")
    adapter = adapter_of(base, tmp_path / "adapter")
    assert read_record(adapter).fingerprint == fingerprint(base)
    moved = shutil.copytree(base, tmp_path / "moved")
    merge_adapter(str(moved), adapter, tmp_path / "merged")
    torch.manual_seed(9)
    other = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(base).config)
    shutil.rmtree(base)
    other.save_pretrained(base)  # other weights under the very name that the adapter records
    for refused in (
        lambda: merge_adapter(adapter, output_dir=tmp_path / "no"),
        lambda: load_adapter(built(base), adapter),
    ):
        with pytest.raises(ModelError) as caught:
            refused()
        assert f"adapter {adapter} was trained on {base} with fingerprint " in str(caught.value)
        assert f"and the weights in {base} have " in str(caught.value)
        assert "give the base that it was trained on" in str(caught.value)
    assert not (tmp_path / "no").exists()


def test_an_adapter_from_elsewhere_goes_by_name_and_shapes(
    toy_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "graftwork")
    adapter = adapter_of(toy_model("llama"), tmp_path / "adapter")
    (adapter / "graftwork_adapter.json").unlink()
    merge_adapter(adapter, output_dir=tmp_path / "merged")
    assert "records no fingerprint of its base: its name and the shapes are what is compared" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_modules_are_read_as_they_were_written(toy_model: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    """Beside a base in bfloat16 too, whose copies PEFT would round them into."""
    base = toy_model("llama", dtype="bfloat16")
    peft = PeftParams(lora_r=4, lora_modules_to_save=["embed_tokens", "lm_head"])
    adapted = attach_adapter(built(base), peft)
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    for name, weight in trained.items():
        weight.data = torch.randn(weight.shape, dtype=dtype if "modules_to_save" in name else torch.float32)
    save_adapter(tmp_path / "adapter", adapted)
    again = dict(load_adapter(built(base), tmp_path / "adapter", trainable=True).named_parameters())
    assert all(again[name].dtype == weight.dtype for name, weight in trained.items())
    assert all(torch.equal(again[name], weight) for name, weight in trained.items())
    assert any("modules_to_save" in name for name in trained)


def test_peft_reads_the_folder_as_its_own(toy_model: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    base = toy_model("llama")
    adapter = adapter_of(base, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, load_adapter(built(base), adapter)(ids).logits)


# The proof


def test_every_target_changed(toy_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "graftwork")
    base = toy_model("llama")
    merge_adapter(adapter_of(base, tmp_path / "adapter"), output_dir=tmp_path / "merged")
    assert "merged: 8 of 8 target weights changed" in caplog.text
    assert not any(record.levelno >= logging.WARNING for record in caplog.records)


def test_updates_that_rounding_swallows_are_named(toy_model: Any, tmp_path: Path) -> None:
    base = toy_model("llama", dtype="bfloat16")
    adapter = adapter_of(base, tmp_path / "adapter", size=1e-9)
    with pytest.raises(ModelError) as caught:
        merge_adapter(adapter, output_dir=tmp_path / "merged")
    assert "the adapter was not merged: 8 of 8 target weights did not change" in str(caught.value)
    assert "model.layers.0.self_attn.q_proj.weight" in str(caught.value)
    assert "smaller than the rounding of the base's type. Merge it into a float32 copy of the base" in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_an_update_of_zero_is_said(toy_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = toy_model("llama")
    adapter = adapter_of(base, tmp_path / "adapter", only="layers.0")
    merge_adapter(adapter, output_dir=tmp_path / "merged")
    assert "4 of 8 target weights are the base's: the adapter's update of them is zero" in caplog.text
    assert "model.layers.1.self_attn.q_proj.weight" in caplog.text


@pytest.mark.parametrize("option", [{"use_dora": True}, {"use_rslora": True}, {"lora_modules_to_save": ["lm_head"]}])
def test_the_proof_holds_for_the_relatives(
    toy_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, option: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO, "graftwork")
    merge_adapter(adapter_of(toy_model("llama"), tmp_path / "adapter", **option), output_dir=tmp_path / "merged")
    assert "merged: 8 of 8 target weights changed" in caplog.text


def test_a_quantized_base_in_memory_is_not_merged_into(toy_model: Any, tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    adapted = load_adapter(built(toy_model("llama")), adapter_of(toy_model("llama"), tmp_path / "adapter"))
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    layer.base_layer.weight = bnb.nn.Params4bit(layer.base_layer.weight.data, requires_grad=False)
    with pytest.raises(UsageError, match=r"the base under the adapter is quantized .*q_proj is .*graft merge\)"):
        merge_adapter(adapted)
    assert isinstance(layer.base_layer, nn.Linear)


def test_the_command(toy_model: Any, tmp_path: Path) -> None:
    adapter = adapter_of(toy_model("llama"), tmp_path / "adapter")
    done = CliRunner().invoke(merge, [str(adapter), "--output-dir", str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == f"merged model: {tmp_path / 'merged'}"
    record = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert record["model_type"] == "llama"
    assert not (tmp_path / "merged" / "graftwork_adapter.json").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "give the folder that training wrote an adapter to"),
        (("config.json",), "it holds a whole model, which needs no merge"),
        (("final/config.json",), "it holds a whole model, which needs no merge"),
        (("final/adapter_config.json",), "this is a run's, whose adapter is "),
    ],
)
def test_a_folder_without_an_adapter_is_said_before_torch_is_loaded(
    tmp_path: Path, files: tuple[str, ...], said: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'peft')))\n"
        "from graftwork.cli import main\n"
        f"sys.exit(main(['merge', {str(tmp_path)!r}, '--output-dir', 'new']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no adapter_config.json, so this is not an adapter's folder" in done.stderr
    assert said in done.stderr
    assert "adapter_model" not in done.stderr
