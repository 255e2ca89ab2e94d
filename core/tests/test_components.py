"""``_component_``: registered names and torchtune's spellings of them, and never a path that is imported."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

import graftwork
from graftwork.config.components import component_problems, find_component, validate_components
from graftwork.config.reader import read_yaml
from graftwork.errors import ConfigError, UnknownNameError, UsageError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PLUGIN = """
import sys
from types import ModuleType
from graftwork import hookimpl
from graftwork.specs import ModelFamily, Preset

@hookimpl
def graftwork_model_families():
    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    own = Preset(name="toy_1b", aliases=("toy-1b",), model_type="gpt2", values=sizes, num_parameters=1)
    bare = Preset(name="bare_1b", model_type="gpt2", values=sizes, num_parameters=1)
    return [ModelFamily(name="toy", presets=(own, bare), components=("toy_parts.toy", "toy_parts.toy2"))]
"""

MODULE = """
import os
from os import path, getcwd
from pathlib import Path
from functools import partial

def toy_1b(): return ("toy_1b",)
def lora_toy_1b(lora_attn_modules, apply_lora_to_mlp=False, *, lora_rank=8, inner=None):
    return (lora_attn_modules, apply_lora_to_mlp, lora_rank, inner)
qlora_toy_1b = partial(lora_toy_1b, lora_rank=2)
def toy_tokenizer(path, max_seq_len=None): return ("tokenizer", path, max_seq_len)
def _hidden(): raise AssertionError
CONSTANT = 3
"""


@pytest.fixture
def toy(install_plugin: Callable[..., str], tmp_path: Path) -> Iterator[None]:
    install_plugin(PLUGIN)
    parts = tmp_path / "site" / "toy_parts"
    parts.mkdir()
    (parts / "__init__.py").touch()
    (parts / "toy.py").write_text(MODULE)
    (parts / "toy2.py").write_text(
        "from toy_parts.toy import toy_tokenizer\ndef toy2(width): return width\ndef twice(): ...\n"
    )
    yield
    for name in ("toy_parts", "toy_parts.toy", "toy_parts.toy2"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["toy_1b", "torchtune.models.toy.toy_1b", "toy_parts.toy.toy_1b", "toy-1b", "TOY-1B"])
@pytest.mark.usefixtures("toy")
def test_one_function_under_all_its_names(name: str) -> None:
    assert graftwork.instantiate({"_component_": name}) == ("toy_1b",)
    assert graftwork.instantiate(name) == ("toy_1b",)


@pytest.mark.usefixtures("toy")
def test_a_preset_without_a_function_of_its_own_is_a_fresh_model() -> None:
    assert graftwork.instantiate("bare_1b").config.n_embd == 16


@pytest.mark.usefixtures("toy")
def test_arguments_nested_sections_and_nulls() -> None:
    section = {
        "_component_": "lora_toy_1b",
        "lora_attn_modules": ["q_proj", {"_component_": "toy_1b"}],
        "inner": {"deep": {"_component_": "toy_tokenizer", "path": "x", "max_seq_len": None}},
    }
    assert graftwork.instantiate(section) == (["q_proj", ("toy_1b",)], False, 8, {"deep": ("tokenizer", "x", None)})
    assert graftwork.instantiate(section, inner=1, lora_rank=4) == (["q_proj", ("toy_1b",)], False, 4, 1)
    assert graftwork.instantiate("qlora_toy_1b", ["q_proj"]) == (["q_proj"], False, 2, None)
    assert "_component_" in section


def test_the_checkpointers_have_torchtunes_names() -> None:
    from graftwork.checkpoints import FullModelHFCheckpointer, FullModelMetaCheckpointer

    for path in ("", "torchtune.utils.", "torchtune.training.", "graftwork.checkpoints."):
        assert find_component(f"{path}FullModelHFCheckpointer").call is FullModelHFCheckpointer
        assert find_component(f"{path}FullModelMetaCheckpointer").call is FullModelMetaCheckpointer


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "eval",
        "canary.run",
        "canary",
        "toy_parts.toy.os.system",
        "toy_parts.toy.getcwd",
        "toy_parts.toy.Path",
        "toy_parts.toy.partial",
        "toy_parts.toy._hidden",
        "toy_parts.toy.CONSTANT",
        "torchtune.models.toy.os",
        "torchtune.models.canary.run",
        "graftwork.checkpoints.os.system",
        ".toy_1b",
        "",
    ],
)
@pytest.mark.usefixtures("toy")
def test_nothing_else_is_imported_or_called(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "canary.py").write_text("raise SystemExit('it ran')\ndef run(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnknownNameError, match=r"there is no component .* is not imported"):
        graftwork.instantiate({"_component_": name, "command": "false"})
    assert "canary" not in sys.modules


@pytest.mark.usefixtures("toy")
def test_what_is_like_no_component_is_told_where_it_is_set_instead() -> None:
    with pytest.raises(UnknownNameError) as caught:
        graftwork.instantiate("torchtune.training.metric_logging.DiskLogger")
    assert "did you mean" not in str(caught.value)
    assert "toy" not in str(caught.value)
    assert "Data, optimizer and loss are set in a graftwork configuration" in str(caught.value)


@pytest.mark.usefixtures("toy")
def test_an_unknown_component_gets_the_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match=r"there is no component 'toy_1bb'; did you mean toy_1b\?"):
        graftwork.instantiate("toy_1bb")
    with pytest.raises(UnknownNameError, match=r"did you mean torchtune\.models\.toy\.toy_tokenizer\?"):
        graftwork.instantiate("torchtune.models.toy.toy_tokeniser")
    with pytest.raises(UnknownNameError, match=r"did you mean torchtune\.utils\.FullModelMetaCheckpointer\?"):
        graftwork.instantiate("torchtune.utils.FullModelMetaCheckpoint")


@pytest.mark.usefixtures("toy")
def test_wrong_arguments_name_the_right_ones() -> None:
    with pytest.raises(UsageError, match=r"toy\.toy_tokenizer has no argument 'pth'; did you mean path\? Known: max_"):
        graftwork.instantiate("toy_tokenizer", pth="x")
    with pytest.raises(UsageError, match=r"toy\.toy_tokenizer also needs path; its arguments are path, max_seq_len"):
        graftwork.instantiate("toy_tokenizer")
    with pytest.raises(UsageError, match=r"toy\.toy_1b has no argument 'size'; it takes none"):
        graftwork.instantiate("toy_1b", size=1)
    with pytest.raises(UsageError, match=r"'path' was given twice, by position and by name"):
        graftwork.instantiate("toy_tokenizer", "x", path="y")


def test_a_section_says_what_it_is() -> None:
    with pytest.raises(UsageError, match=r"a section with the key _component_, or as a name; this is \{'path': 1\}"):
        graftwork.instantiate({"path": 1})
    with pytest.raises(UsageError, match=r"_component_ = 3: it must be a name"):
        graftwork.instantiate({"_component_": 3})


@pytest.mark.usefixtures("toy")
def test_a_reference_to_another_value_is_not_taken_for_a_path() -> None:
    with pytest.raises(UsageError, match=r"path = '\$\{output_dir\}/x': this points to another value of the file"):
        graftwork.instantiate({"_component_": "toy_tokenizer", "path": "${output_dir}/x"})


DOCUMENT = """\
tokenizer:
  _component_: torchtune.models.toy.toy_tokeniser
  path: /tmp/tokenizer.model

checkpointer:
  _component_: torchtune.utils.FullModelMetaCheckpointer
  checkpoint_dir: /tmp/x
  checkpoint_file: [consolidated.00.pth]
  recipe_checkpoint: null
  output_dir: ${output_dir}
  model_type: LLAMA3

model:
  _component_: torchtune.models.toy.lora_toy_1b
  inner: {_component_: toy_tokenizer, max_seq_len: 3}
seed: null
"""


@pytest.mark.usefixtures("toy")
def test_a_whole_document_is_checked_at_once_with_its_lines() -> None:
    values, reader = read_yaml(DOCUMENT, "run.yaml", None)
    with pytest.raises(ConfigError, match=r"run\.yaml: 5 mistakes") as caught:
        validate_components(values, origins=reader.origins, source="run.yaml")
    starts = [problem.partition(";")[0] for problem in caught.value.problems]
    assert starts == [
        "run.yaml:2: tokenizer._component_: there is no component 'torchtune.models.toy.toy_tokeniser'",
        "run.yaml:8: checkpointer.checkpoint_file = ['consolidated.00.pth']: "
        "graftwork.checkpoints.FullModelMetaCheckpointer has no argument 'checkpoint_file'",
        "run.yaml:6: checkpointer._component_ = 'torchtune.utils.FullModelMetaCheckpointer': "
        "graftwork.checkpoints.FullModelMetaCheckpointer also needs checkpoint_files",
        "run.yaml:14: model._component_ = 'torchtune.models.toy.lora_toy_1b': "
        "toy_parts.toy.lora_toy_1b also needs lora_attn_modules",
        "run.yaml:15: model.inner._component_ = 'toy_tokenizer': toy_parts.toy.toy_tokenizer also needs path",
    ]


@pytest.mark.usefixtures("toy")
def test_a_right_document_has_no_problems() -> None:
    document: dict[str, Any] = {
        "tokenizer": {"_component_": "torchtune.models.toy.toy_tokenizer", "path": "/tmp/x"},
        "model": {"_component_": "torchtune.models.toy2.toy2", "width": 3},
        "epochs": 1,
    }
    assert component_problems(document) == []
    validate_components(document)


@pytest.mark.usefixtures("toy")
def test_a_module_that_is_not_there_is_told_with_its_family(tmp_path: Path) -> None:
    (tmp_path / "site" / "toy_parts" / "toy2.py").unlink()
    with pytest.raises(UsageError, match=r"toy_parts\.toy2, which family 'toy' declares for _component_, cannot be"):
        graftwork.instantiate("torchtune.models.toy2.toy2")
    assert graftwork.instantiate("torchtune.models.toy.toy_1b") == ("toy_1b",)


@pytest.mark.parametrize(
    ("plugin", "tokenizer"),
    [
        ("llama", "llama3.llama3_tokenizer"),
        ("llama", "llama2.llama2_tokenizer"),
        ("gemma", "gemma.gemma_tokenizer"),
        ("phi3", "phi3.phi3_mini_tokenizer"),
        ("mistral", "mistral.mistral_tokenizer"),
        ("qwen", "qwen2.qwen2_tokenizer"),
    ],
)
def test_the_builders_and_tokenizers_of_our_families_are_found(plugin: str, tokenizer: str) -> None:
    families = get_registry().families
    if plugin not in families:
        pytest.skip(f"the {plugin} family is not installed")
    assert find_component(f"torchtune.models.{tokenizer}").name == f"graftwork_{plugin}.{tokenizer}"
    found = 0
    for name in families[plugin].components:
        module = import_module(name)
        presets = [preset.name for preset in families[plugin].presets if hasattr(module, preset.name)]
        builders = [f"{start}{preset}" for preset in presets for start in ("", "lora_", "qlora_")]
        for function in builders:
            component = find_component(f"torchtune.models.{name.rpartition('.')[2]}.{function}")
            assert (component.name, component.call) == (f"{name}.{function}", getattr(module, function))
            assert find_component(f"{name}.{function}") == component
        found += len(presets)
    assert found == len(families[plugin].presets)
