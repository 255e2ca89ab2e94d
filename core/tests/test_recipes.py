"""``graft recipes`` and torchtune's short verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from graftwork.recipes import recipes

if TYPE_CHECKING:
    from pathlib import Path

ROWS = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("verb", [("recipes", "ls"), ("ls",)])
def test_recipes_are_listed_with_what_they_do(graft: Any, verb: tuple[str, ...]) -> None:
    code, out, _ = graft(*verb)
    assert code == 0
    rows = {line.split("  ", 1)[0].strip(): line.split("  ", 1)[1].strip() for line in out.splitlines()}
    assert rows.keys() == recipes().keys() >= {"pretrain", "sft", "sft-lora", "sft-qlora"}
    assert rows["sft-lora"].startswith("Supervised fine-tuning with LoRA")


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid_with_a_data_file(graft: Any, here: Path, name: str) -> None:
    code, _, err = graft("validate", name)
    assert code == 2
    assert "1 mistake\n" in err
    assert "dataset_path = 'data/train.jsonl': there is no such file or folder" in err
    (here / "mine.jsonl").write_text(ROWS)
    code, out, err = graft("recipes", "validate", name, "data.train.datasets.0.dataset_path=mine.jsonl")
    if name != "sft-qlora" or code == 0:  # where no plugin quantizes, that is said
        assert (code, err) == (0, "")
        assert "valid; NATIVE_" in out
    else:
        assert "q_lora" in err


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_says_how_it_is_run_under_its_own_name(name: str) -> None:
    text = recipes()[name].read_text()
    assert f"graft recipes run {name} " in text
    assert f"output_dir: output/{name}\n" in text


def test_a_recipe_is_printed_and_copied(graft: Any, here: Path) -> None:
    text = recipes()["sft"].read_text()
    assert graft("cat", "sft")[:2] == (0, text)
    assert graft("cp", "sft", "mine")[:2] == (0, "copied to mine.yaml; run it with: graft recipes run mine.yaml\n")
    assert (here / "mine.yaml").read_text() == text
    (here / "mine.yaml").write_text("mine")
    code, _, err = graft("cp", "sft", "mine.yaml")
    assert code == 2
    assert "exists and is not overwritten" in err
    assert graft("cp", "-n", "sft", "mine.yaml")[0] == 0
    assert (here / "mine.yaml").read_text() == "mine"
    code, _, err = graft("cp", "sft", "a/b/mine.yaml")
    assert code == 2
    assert "say --make-parents" in err
    assert graft("recipes", "cp", "sft", "a/b/mine.yaml", "--make-parents")[0] == 0
    assert graft("cp", "sft.yaml", "a")[0] == 0
    assert (here / "a/sft.yaml").read_text() == (here / "a/b/mine.yaml").read_text() == text
    code, _, err = graft("cp", "sft", "folder/")
    assert code == 2
    assert "there is no folder folder; make it" in err
    assert graft("cp", "sft", "folder/", "--make-parents")[1].startswith("copied to folder/sft.yaml;")


@pytest.mark.parametrize("verb", ["cat", "validate", "run"])
def test_an_unknown_recipe_has_a_nearest_one(graft: Any, here: Path, verb: str) -> None:
    code, _, err = graft(verb, "stf")
    assert code == 2
    assert "'stf' is neither a recipe nor a file here: did you mean sft?" in err


def test_torchtunes_yaml_is_validated_by_component(graft: Any, here: Path) -> None:
    file = here / "theirs.yaml"
    good = "checkpointer:\n  _component_: torchtune.utils.FullModelHFCheckpointer\n  checkpoint_dir: /a\n"
    good += "  checkpoint_files: [a.safetensors]\n  model_type: X\n  output_dir: /b\n"
    file.write_text(good)
    code, out, err = graft("validate", file)
    assert (code, err) == (0, "")
    assert "each of its components is known and takes its arguments" in out
    file.write_text(good.replace("FullModelHFCheckpointer", "FullModelHFCheckpoint"))
    code, _, err = graft("validate", file)
    assert code == 2
    assert "theirs.yaml:2: checkpointer._component_" in err
    assert "did you mean" in err


@pytest.mark.parametrize("command", [("run",), ("train", "-c"), ("config", "validate")])
def test_torchtunes_yaml_cannot_be_run(graft: Any, here: Path, command: tuple[str, ...]) -> None:
    (here / "theirs.yaml").write_text("loss: {_component_: torch.nn.CrossEntropyLoss}\n")
    code, _, err = graft(*command, "theirs.yaml")
    assert code == 2
    assert "theirs.yaml has components (_component_), as torchtune's files do: graft validate checks it" in err
    assert "a run needs a graftwork configuration (graft recipes ls)" in err


@pytest.mark.parametrize("given", [("--config", "mine.yaml"), ("--config=mine.yaml",)])
def test_torchtunes_run_has_a_configuration_beside_the_recipe(graft: Any, here: Path, given: tuple[str, ...]) -> None:
    code, _, err = graft("run", "lora_finetune_single_device", *given)
    assert code == 2
    assert "run takes no --config: the configuration is NAME itself, as in: graft run my.yaml" in err


def test_run_trains_as_the_recipe_says(graft: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "mine.jsonl").write_text(ROWS)
    seen: list[Any] = []

    def train(config: Any, *, resume: bool, listeners: Any) -> Any:
        from graftwork.training import TrainResult

        seen.append((config, resume))
        return TrainResult(output_dir=here, model_path=None, step=3, metrics={"loss": 1.0})

    monkeypatch.setattr("graftwork.training.train", train)
    overrides = ("data.train.datasets.0.dataset_path=mine.jsonl", "training.max_steps=3")
    code, out, err = graft("run", "sft", *overrides, "--resume")
    assert (code, err) == (0, "")
    assert "3 steps, loss 1.0000" in out
    config, resume = seen[0]
    assert (config.training.max_steps, config.training.learning_rate, resume) == (3, 2e-5, True)
