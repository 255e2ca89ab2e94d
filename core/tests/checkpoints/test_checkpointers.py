"""torchtune's checkpointers: what they load goes into the model strictly, what they save loads anywhere."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from graftwork import checkpoints
from graftwork.checkpoints import FullModelHFCheckpointer, FullModelMetaCheckpointer
from graftwork.checkpoints.checkpointers import StateDict, find_family
from graftwork.errors import ModelError, UnknownNameError, UsageError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA = Path(os.environ.get("GRAFTWORK_TEST_DATA", "/nowhere"))
TOY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def toy(model_type: str, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A small model with weights of its own, saved by transformers."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(model_type, **{**TOY, **changes})
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model.eval()


def fresh(model: Any) -> Any:
    torch.manual_seed(99)
    return AutoModelForCausalLM.from_config(model.config).to(model.dtype).eval()


def same(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert list(state) == list(other)
    for name, tensor in other.items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name


def hf(folder: Path, output: Path, model_type: str, **more: Any) -> FullModelHFCheckpointer:
    files = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    return FullModelHFCheckpointer(folder, files, model_type, output, **more)


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "gemma, tied": ("gemma", {}),
    "gemma2, tied": ("gemma2", {"sliding_window": 8}),
    "gemma3, tied": ("gemma3_text", {"sliding_window": 8}),
    "phi3": ("phi3", {}),
    "mistral": ("mistral", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_the_hub_loads_strictly_and_is_saved_for_all(tmp_path: Path, family: str) -> None:
    model_type, changes = FAMILIES[family]
    model = toy(model_type, tmp_path / "model", **changes)
    checkpointer = hf(tmp_path / "model", tmp_path / "out", model_type)
    state = checkpointer.load_checkpoint()
    same(state, model.state_dict())
    built = fresh(model)
    assert str(built.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    assert str(fresh(model).load_state_dict(state["model"])) == "<All keys matched successfully>"
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(1.5)
    saved = checkpointer.save_checkpoint({"model": built.state_dict()}, epoch=3)
    assert saved == tmp_path / "out" / "epoch_3"
    same(AutoModelForCausalLM.from_pretrained(saved).state_dict(), built.state_dict())
    stored = load_file(saved / "model.safetensors")
    assert stored.keys() == load_file(tmp_path / "model" / "model.safetensors").keys()
    same(hf(saved, tmp_path / "again", model_type).load_checkpoint(), built.state_dict())


@pytest.mark.parametrize("safe", [True, False])
def test_shards_and_pickled_files(tmp_path: Path, safe: bool) -> None:
    model = toy("llama", tmp_path / "model", dtype=torch.bfloat16)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = sorted(state)
    for number, part in enumerate((names[:9], names[9:]), 1):
        content = {name: state[name] for name in part}
        if safe:
            save_file(content, tmp_path / "model" / f"model-0000{number}-of-00002.safetensors")
        else:
            torch.save(content, tmp_path / "model" / f"pytorch_model-0000{number}-of-00002.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    checkpointer = hf(tmp_path / "model", tmp_path / "out", "LLAMA2", safe_serialization=safe)
    same(checkpointer.load_checkpoint(), model.state_dict())
    saved = checkpointer.save_checkpoint(model.state_dict(), 0)
    assert (saved / ("model.safetensors" if safe else "pytorch_model.bin")).is_file()
    loaded = AutoModelForCausalLM.from_pretrained(saved, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    same(loaded.state_dict(), model.state_dict())


def test_torchtunes_short_way_to_write_shards(tmp_path: Path) -> None:
    model = toy("llama", tmp_path / "model")
    state = model.state_dict()
    (tmp_path / "model" / "model.safetensors").unlink()
    for number, part in enumerate((list(state)[:9], list(state)[9:]), 1):
        save_file(
            {name: state[name].clone() for name in part}, tmp_path / "model" / f"m-0000{number}-of-00002.safetensors"
        )
    files = {"filename_format": "m-{}-of-{}.safetensors", "max_filename": "00002"}
    checkpointer = FullModelHFCheckpointer(tmp_path / "model", files, "LLAMA3", tmp_path / "out")
    same(checkpointer.load_checkpoint(), state)
    with pytest.raises(UsageError, match=r"a mapping has filename_format and max_filename, not x"):
        FullModelHFCheckpointer(tmp_path / "model", {"x": 1}, "LLAMA3", tmp_path / "out")


def test_what_older_files_hold_beside_the_parameters(tmp_path: Path) -> None:
    """``inv_freq`` is computed, and a tied head may stand there a second time; one that differs is told."""
    model = toy("llama", tmp_path / "model", tie_word_embeddings=True)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    embeddings = stored["model.embed_tokens.weight"]
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    stored["lm_head.weight"] = embeddings.clone()
    save_file(stored, tmp_path / "model" / "model.safetensors")
    same(hf(tmp_path / "model", tmp_path / "out", "llama").load_checkpoint(), model.state_dict())
    stored["lm_head.weight"] = embeddings + 1
    save_file(stored, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=r"lm_head\.weight and model\.embed_tokens\.weight are one parameter"):
        hf(tmp_path / "model", tmp_path / "out", "llama").load_checkpoint()


def test_weights_that_do_not_fit_are_told_all_at_once(tmp_path: Path) -> None:
    toy("llama", tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    stored["model.layers.0.self_attn.q_prj.weight"] = stored.pop("model.layers.0.self_attn.q_proj.weight")
    stored["model.norm.weight"] = torch.ones(31)
    save_file(stored, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        hf(tmp_path / "model", tmp_path / "out", "llama").load_checkpoint()
    text = str(caught.value)
    assert "q_proj.weight (nearest: model.layers.0.self_attn.q_prj.weight)" in text
    assert "1 unexpected" in text
    assert "model.norm.weight is 31, and 32 was expected" in text


def test_the_folder_that_is_saved_has_the_tokenizer_and_no_adapter(tmp_path: Path) -> None:
    model = toy("llama", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    saved = hf(tmp_path / "model", tmp_path / "out", "llama").save_checkpoint(model.state_dict(), 0)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} == {
        file.name for file in saved.iterdir()
    }
    assert list((tmp_path / "out").iterdir()) == [saved]


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path) -> None:
    model = toy("llama", tmp_path / "model")
    checkpointer = hf(tmp_path / "model", tmp_path / "out", "llama")
    saved = checkpointer.save_checkpoint(model.state_dict(), 0)
    before = (saved / "model.safetensors").read_bytes()
    state = model.state_dict()
    del state["model.norm.weight"]
    with pytest.raises(ModelError, match=r"1 missing:\n +model\.norm\.weight"):
        checkpointer.save_checkpoint(state, 0)
    assert (saved / "model.safetensors").read_bytes() == before
    assert list((tmp_path / "out").iterdir()) == [saved]


def test_state_dicts_as_training_leaves_them(tmp_path: Path) -> None:
    model = toy("llama", tmp_path / "model", tie_word_embeddings=True)
    checkpointer = hf(tmp_path / "model", tmp_path / "out", "llama")
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    same(hf(checkpointer.save_checkpoint(compiled, 0), tmp_path, "llama").load_checkpoint(), model.state_dict())
    with pytest.raises(ModelError, match=r"one parameter in this model, and state_dict has two different ones"):
        checkpointer.save_checkpoint({**model.state_dict(), "lm_head.weight": torch.ones(64, 32)}, 0)
    adapted = {"base_model.model.model.norm.base_layer.weight": torch.ones(1)}
    with pytest.raises(UsageError, match=r"of a model with an adapter on it .*: merge it first"):
        checkpointer.save_checkpoint(adapted, 0)


# Meta's files


@pytest.mark.parametrize(("tied", "parts"), [(False, 1), (True, 1), (False, 2)])
def test_metas_files_load_strictly_and_are_saved_as_such(tmp_path: Path, tied: bool, parts: int) -> None:
    pytest.importorskip("graftwork_llama")
    model = toy("llama", tmp_path / "hf", tie_word_embeddings=tied, num_key_value_heads=2)
    checkpoints.convert(tmp_path / "hf", tmp_path / "meta", to="meta", model_parallel=parts)
    files = [f"consolidated.{part:02d}.pth" for part in range(parts)]
    checkpointer = FullModelMetaCheckpointer(
        checkpoint_dir=str(tmp_path / "meta"),
        checkpoint_files=files,
        model_type="llama3",
        output_dir=str(tmp_path / "out"),
    )
    state = checkpointer.load_checkpoint()
    same(state, model.state_dict())
    built = fresh(model)
    built.load_state_dict(state)
    ids = torch.arange(3, 15).view(1, 12)
    with torch.no_grad():
        assert torch.equal(built(ids).logits, model(ids).logits)
    saved = checkpointer.save_checkpoint({"model": built.state_dict()}, 1)
    for name in files:
        written = torch.load(saved / name, weights_only=True)
        original = torch.load(tmp_path / "meta" / name, weights_only=True)
        assert written.keys() == original.keys()
        assert all(torch.equal(written[key], original[key]) for key in original)
    again = FullModelMetaCheckpointer(saved, files, "LLAMA3", tmp_path / "out")
    same(again.load_checkpoint(), model.state_dict())


def test_a_part_of_metas_files_is_not_the_model(tmp_path: Path) -> None:
    pytest.importorskip("graftwork_llama")
    toy("llama", tmp_path / "hf")
    checkpoints.convert(tmp_path / "hf", tmp_path / "meta", to="meta", model_parallel=2)
    with pytest.raises(ModelError, match=r"wrongly shaped"):
        FullModelMetaCheckpointer(tmp_path / "meta", ["consolidated.00.pth"], "llama3", tmp_path).load_checkpoint()
    shutil.copyfile(tmp_path / "meta" / "consolidated.00.pth", tmp_path / "meta" / "consolidated.02.pth")
    files = ["consolidated.00.pth", "consolidated.01.pth"]
    with pytest.raises(UsageError, match=r"parts of one model, .*; consolidated\.02\.pth is on one side only"):
        FullModelMetaCheckpointer(tmp_path / "meta", files, "llama3", tmp_path).load_checkpoint()


def test_files_of_the_other_checkpointer_name_it(tmp_path: Path) -> None:
    pytest.importorskip("graftwork_llama")
    toy("llama", tmp_path / "hf")
    checkpoints.convert(tmp_path / "hf", tmp_path / "meta", to="meta")
    with pytest.raises(UsageError, match=r"consolidated\.00\.pth is of Meta's format: use FullModelMetaCheckpointer"):
        FullModelHFCheckpointer(tmp_path / "meta", ["consolidated.00.pth"], "llama3", tmp_path)
    theirs = FullModelMetaCheckpointer(tmp_path / "hf", ["model.safetensors"], "llama3", tmp_path)
    with pytest.raises(UsageError, match=r"model\.safetensors is no file of Meta's: use FullModelHFCheckpointer"):
        theirs.load_checkpoint()


def test_without_params_json_a_preset_says_the_size(tmp_path: Path) -> None:
    pytest.importorskip("graftwork_llama")
    toy("llama", tmp_path / "hf")
    checkpoints.convert(tmp_path / "hf", tmp_path / "meta", to="meta")
    (tmp_path / "meta" / "params.json").unlink()
    (tmp_path / "meta" / "config.json").unlink(missing_ok=True)
    files = ["consolidated.00.pth"]
    with pytest.raises(ModelError, match=r"no params\.json beside the weights, and model_type 'LLAMA3' is a family"):
        FullModelMetaCheckpointer(tmp_path / "meta", files, "LLAMA3", tmp_path).load_checkpoint()
    with pytest.raises(ModelError, match=r"tok_embeddings\.weight is 64 x 32, and 128256 x 4096 was expected"):
        FullModelMetaCheckpointer(tmp_path / "meta", files, "llama3_8b", tmp_path).load_checkpoint()


def test_a_family_without_metas_format_says_so(tmp_path: Path) -> None:
    toy("gpt2", tmp_path / "m", n_embd=32, n_layer=1, n_head=2)
    torch.save({}, tmp_path / "m" / "consolidated.00.pth")
    with pytest.raises(UsageError, match=r"family generic has no key maps, so nothing says .* in the meta format"):
        FullModelMetaCheckpointer(tmp_path / "m", ["consolidated.00.pth"], "gpt2", tmp_path).load_checkpoint()


# Runs that go on, and adapters


def test_a_run_that_goes_on_finds_what_it_left(tmp_path: Path) -> None:
    model = toy("llama", tmp_path / "model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.arange(12).view(1, 12)).logits.sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "seed": 5, "total_epochs": 3}
    checkpointer = hf(tmp_path / "model", tmp_path / "out", "llama")
    saved = checkpointer.save_checkpoint(content, 0, intermediate_checkpoint=True)
    resumed = hf(saved, tmp_path / "out", "llama", recipe_checkpoint="recipe_state.pt", resume_from_checkpoint=True)
    state = resumed.load_checkpoint()
    same(state, model.state_dict())
    assert (state["seed"], state["epochs_run"], state["total_epochs"]) == (5, 1, 3)
    other = torch.optim.AdamW(model.parameters(), lr=1e-3)
    other.load_state_dict(state["optimizer"])
    for number, entry in optimizer.state_dict()["state"].items():
        assert torch.equal(other.state_dict()["state"][number]["exp_avg"], entry["exp_avg"])
    assert fresh(model).load_state_dict(state)
    with pytest.raises(UsageError, match=r"resume_from_checkpoint: name the file of the interrupted run in recipe_ch"):
        hf(saved, tmp_path / "out", "llama", resume_from_checkpoint=True)


def test_an_adapter_is_saved_as_peft_has_it(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

    model = toy("llama", tmp_path / "model")
    adapted = get_peft_model(fresh(model), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    config = adapted.peft_config["default"].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    content = {"model": model.state_dict(), "adapter": get_peft_model_state_dict(adapted), "adapter_config": config}
    checkpointer = hf(tmp_path / "model", tmp_path / "out", "llama")
    alone = checkpointer.save_checkpoint(content, 0, adapter_only=True)
    assert {file.name for file in alone.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = PeftModel.from_pretrained(fresh(model), alone)
    same(get_peft_model_state_dict(loaded), get_peft_model_state_dict(adapted))
    both = checkpointer.save_checkpoint(content, 1)
    assert not (both / "adapter_config.json").exists()
    assert (both / "adapter" / "adapter_model.safetensors").is_file()
    resumed = hf(both, tmp_path, "llama", adapter_checkpoint="adapter/adapter_model.safetensors").load_checkpoint()
    assert set(resumed["adapter"]) == set(content["adapter"])
    with pytest.raises(UsageError, match=r"adapter_only: state_dict needs 'adapter' and 'adapter_config'"):
        checkpointer.save_checkpoint(model.state_dict(), 0, adapter_only=True)


# Arguments


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    toy("llama", tmp_path / "model")
    with pytest.raises(ModelError, match=r"2 files are not there: a\.safetensors, model\.safetensor"):
        FullModelHFCheckpointer(tmp_path / "model", ["a.safetensors", "model.safetensor"], "llama", tmp_path)
    with pytest.raises(ModelError, match=r"2 files are not there: .*; the weights there are model\.safetensors$"):
        FullModelHFCheckpointer(tmp_path / "model", ["pytorch_model-1.bin", "b.bin"], "llama", tmp_path)
    with pytest.raises(
        ModelError, match=r"1 file is not there: model\.safetensor; did you mean .*model\.safetensors\?"
    ):
        FullModelHFCheckpointer(tmp_path / "model", ["model.safetensor"], "llama", tmp_path)
    with pytest.raises(ModelError, match=r"there is no folder .*modle; did you mean .*model\?"):
        FullModelMetaCheckpointer(tmp_path / "modle", ["a"], "llama", tmp_path)
    wrong: tuple[Any, ...] = ("model.safetensors", [])
    for files in wrong:
        with pytest.raises(UsageError, match=r"checkpoint_files = .*: give a list of file names"):
            FullModelHFCheckpointer(tmp_path / "model", files, "llama", tmp_path)
    (tmp_path / "model" / "x.bin").touch()
    with pytest.raises(UsageError, match=r"safetensors and pickled files are mixed: model\.safetensors, x\.bin"):
        hf(tmp_path / "model", tmp_path, "llama").load_checkpoint()


def test_a_hostile_file_is_refused(tmp_path: Path) -> None:
    toy("llama", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "model.bin").write_bytes(b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R.")
    with pytest.raises(ModelError, match=r"refused: its pickle names os\.system"):
        hf(tmp_path / "model", tmp_path, "llama").load_checkpoint()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *(("LLAMA2", "llama"), ("llama3", "llama"), ("LLAMA3_2", "llama"), ("Llama", "llama"), ("llama3_8b", "llama")),
        *(("GEMMA", "gemma"), ("GEMMA2", "gemma"), ("gemma3_text", "gemma"), ("PHI3_MINI", "phi3"), ("PHI4", "phi3")),
        *(("MISTRAL", "mistral"), ("MISTRAL_REWARD", "mistral"), ("mixtral", "mixtral")),
        *(("QWEN2", "qwen"), ("QWEN2_5", "qwen"), ("QWEN3", "qwen"), ("gpt2", "generic")),
    ],
)
def test_model_type_in_any_case(name: str, family: str) -> None:
    if family not in get_registry().families:
        pytest.skip(f"the {family} family is not installed")
    assert find_family(name)[0].name == family


def test_an_unknown_or_a_wrong_model_type(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"model_type 'lama' is no family, no preset .*; did you mean llama\?"):
        find_family("lama")
    with pytest.raises(UnknownNameError, match=r"did you mean llama3_8b\?"):
        find_family("lama3_8b")
    toy("gemma", tmp_path / "model")
    with pytest.raises(ModelError, match=r"'LLAMA2' is of the family llama, and .*config\.json is of gemma .*='gemma'"):
        hf(tmp_path / "model", tmp_path, "LLAMA2")


def test_the_mapping_is_parameters_and_answers_to_more() -> None:
    tensors = {"a": torch.ones(1), "b": torch.ones(2)}
    state = StateDict(tensors, {"seed": 3})
    assert isinstance(state, dict)
    assert list(state) == list(state.keys()) == list(OrderedDict(state)) == list(dict(state)) == ["a", "b"]
    assert len(state) == 2
    assert state["model"] is state
    assert state["seed"] == state.get("seed") == 3
    assert "model" in state
    assert "adapter" not in state
    assert state.get("adapter") is None
    with pytest.raises(KeyError, match="optimizer"):
        state["optimizer"]


@pytest.mark.skipif(not DATA.is_dir(), reason="real files: set GRAFTWORK_TEST_DATA")
def test_a_real_model_through_both_checkpointers(tmp_path: Path) -> None:
    folder = DATA / "weights" / "stories260K" / "hf"
    reference = AutoModelForCausalLM.from_pretrained(folder)
    checkpointer = hf(folder, tmp_path / "hf", "LLAMA2")
    state = checkpointer.load_checkpoint()
    same(state, reference.state_dict())
    saved = checkpointer.save_checkpoint({"model": state}, 0)
    checkpoints.convert(saved, tmp_path / "meta", to="meta")
    meta = FullModelMetaCheckpointer(tmp_path / "meta", ["consolidated.00.pth"], "LLAMA2", tmp_path / "out")
    same(meta.load_checkpoint(), reference.state_dict())
