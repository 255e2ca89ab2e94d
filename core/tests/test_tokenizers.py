"""Tokenizers built from files: ids against public vectors, pad tokens, templates, special and stop tokens."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from graftwork import ModelParams, build_chat_template, build_tokenizer
from graftwork.errors import ClashError, ModelError, UnknownNameError, UsageError
from graftwork.registry import get_registry
from graftwork.tokenizers import get_default_special_tokens, stop_token_ids

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]


def save_tokenizer(folder: Path, special: list[str] = SPECIAL, **settings: Any) -> Path:
    """A tokenizer with a token a byte and the special tokens, saved as transformers does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tokenizer(tmp_path / "tokenizer")


def built(folder: Path, **fields: Any) -> Any:
    return build_tokenizer(ModelParams(model_name=str(folder), **fields))


@pytest.fixture
def data() -> Path:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the real tokenizers are not here")
    return Path(root)


# Ids


@pytest.mark.parametrize(
    ("vectors", "name"), [("llama2", "llama2"), ("phi3", "phi3"), ("gemma", "gemma"), ("qwen2", "qwen2.5")]
)
def test_ids_equal_public_vectors(data: Path, vectors: str, name: str) -> None:
    """Among them Llama 2 from its bare SentencePiece file, with leading and double spaces."""
    tokenizer = built(data / "tokenizers" / name)
    rows = [json.loads(line) for line in (data / f"vectors/tokenizer/{vectors}.jsonl").read_text().splitlines()]
    for row in rows:
        expected = row["ids"][1:] if row["bos_added"] else row["ids"]
        assert tokenizer(row["text"], add_special_tokens=False)["input_ids"] == expected, row["id"]


def test_a_sentencepiece_file_keeps_its_special_tokens(data: Path) -> None:
    tokenizer = built(data / "tokenizers/llama2")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer("Hi")["input_ids"][0] == 1
    assert tokenizer.decode(tokenizer("  Hi  there")["input_ids"], skip_special_tokens=True) == "  Hi  there"
    assert Path(tokenizer.name_or_path) == data / "tokenizers/llama2"


def test_a_saved_sentencepiece_tokenizer_reads_the_same_in_transformers(data: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = built(data / "tokenizers/llama2")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in (" Hello", "  two  spaces ", "x\n  y"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_other_sentencepiece_kinds_are_refused(data: Path, tmp_path: Path) -> None:
    shutil.copyfile(data / "tokenizers/small/torchtune_m.model", tmp_path / "tokenizer.model")
    with pytest.raises(ModelError, match=r"is no BPE model: a folder with a tokenizer\.json is needed"):
        built(tmp_path)


def test_bare_tiktoken_ranks_that_no_family_knows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(ModelError, match="holds tiktoken ranks, without special tokens and split pattern"):
        built(tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer in .* cannot be read: .*set model\.tokenizer_name"):
        built(tmp_path)


# Where it comes from


def test_no_tokenizer_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no tokenizer in .*looked for tokenizer\.json.*tokenizer_name"):
        built(tmp_path)


def test_a_hub_tokenizer_comes_without_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(repository: str, **options: Any) -> str:
        asked.append((repository, options["revision"], options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    params = ModelParams(model_name="org/model", model_revision="v2")
    assert build_tokenizer(params).eos_token == "</s>"
    build_tokenizer(params.model_copy(update={"tokenizer_name": "org/other"}))
    (name, revision, patterns), (other, none, _) = asked
    assert (name, revision, other, none) == ("org/model", "v2", "org/other", None)
    assert "*.json" in patterns
    assert not [pattern for pattern in patterns if "safetensors" in pattern or "bin" in pattern or "py" in pattern]


def test_an_adapter_without_a_tokenizer_has_its_bases(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert built(adapter).name_or_path == str(folder)
    save_tokenizer(adapter)
    assert built(adapter).name_or_path == str(adapter)


def test_a_preset_has_no_tokenizer(folder: Path, install_plugin: Any) -> None:
    install_plugin(
        """
        from graftwork import hookimpl
        from graftwork.specs import ModelFamily, Preset

        @hookimpl
        def graftwork_model_families():
            toy = Preset(name="toy_1b", model_type="toy", values={}, num_parameters=1, hub_ids=("org/toy",))
            return [ModelFamily(name="toy", model_types=("toy",), presets=(toy,))]
        """
    )
    with pytest.raises(ModelError, match=r"is a preset.*no tokenizer: set model\.tokenizer_name.*such as org/toy"):
        build_tokenizer(ModelParams(model_name="toy_1b"))
    named = build_tokenizer(ModelParams(model_name="toy_1b", tokenizer_name=str(folder)))
    assert named.eos_token == "</s>"


def test_the_implementation_is_looked_up(folder: Path, install_plugin: Any) -> None:
    assert built(folder, tokenizer_impl="HF").eos_token == "</s>"
    with pytest.raises(UnknownNameError, match="tokenizer implementation 'hff'"):
        built(folder, tokenizer_impl="hff")
    install_plugin(
        """
        from graftwork import hookimpl
        from graftwork.specs import TokenizerSpec

        @hookimpl
        def graftwork_tokenizers():
            return [TokenizerSpec(name="other", load=lambda path, kwargs: None, files=("tokenizer.json",))]
        """
    )
    with pytest.raises(ClashError, match=r"set model\.tokenizer_impl to graftwork:hf or graftwork-toy:other"):
        built(folder)
    assert built(folder, tokenizer_impl="graftwork:hf").eos_token == "</s>"


# What is set on it


def test_length_and_kwargs(folder: Path) -> None:
    tokenizer = built(folder, model_max_length=77, tokenizer_kwargs={"padding_side": "left"})
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (77, "left")


def test_without_a_token_made_to_pad_there_is_none(folder: Path) -> None:
    assert built(folder).pad_token is None


def test_a_token_made_to_pad_is_found_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tokenizer(tmp_path, [*SPECIAL, "<|finetune_right_pad_id|>"])
    with caplog.at_level(logging.INFO, "graftwork"):
        tokenizer = built(folder)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert "pad token: <|finetune_right_pad_id|> (id 260), from the vocabulary" in caplog.text


@pytest.mark.parametrize("fields", [{"tokenizer_pad_token": "<unk>"}, {"tokenizer_kwargs": {"pad_token": "<unk>"}}])
def test_a_pad_token_that_is_asked_for(folder: Path, fields: dict[str, Any]) -> None:
    tokenizer = built(folder, **fields)
    assert (tokenizer.pad_token, len(tokenizer)) == ("<unk>", 260)


def test_a_pad_token_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"'\[PAD\]' is not in the vocabulary of 260 tokens.*use <unk> or </s>"):
        built(folder, tokenizer_pad_token="[PAD]")
    with pytest.raises(UsageError, match="'!' is a token of ordinary text"):
        built(folder, tokenizer_pad_token="!")
    with pytest.raises(UsageError, match="pad token is given twice"):
        built(folder, tokenizer_pad_token="<unk>", tokenizer_kwargs={"pad_token": "</s>"})


def test_a_template_by_name_file_and_text(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }} mine")
    assert built(folder, chat_template="chatml").chat_template == build_chat_template("chatml")
    assert built(folder, chat_template=str(file)).chat_template == "{{ messages }} mine"
    assert built(folder, chat_template="{{ messages }}").chat_template == "{{ messages }}"
    assert built(folder).chat_template == build_chat_template("default")
    with pytest.raises(UsageError, match="not valid Jinja"):
        built(folder, chat_template="{% if %}")


def test_a_template_is_saved_with_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    built(folder, chat_template="chatml").save_pretrained(tmp_path / "saved")
    again = built(tmp_path / "saved")
    assert again.chat_template == build_chat_template("chatml")
    assert stop_token_ids(again) == {again.eos_token_id, again.convert_tokens_to_ids("<|im_end|>")}


def test_the_familys_template_needs_its_stop_tokens(tmp_path: Path, install_plugin: Any) -> None:
    install_plugin(
        """
        from graftwork import hookimpl
        from graftwork.specs import ModelFamily

        @hookimpl
        def graftwork_model_families():
            return [ModelFamily(name="toy", model_types=("toy",), chat_template="chatml")]
        """
    )
    for special, expected in ((SPECIAL, "chatml"), (SPECIAL[:3], "default")):
        folder = save_tokenizer(tmp_path / expected, special)
        (folder / "config.json").write_text('{"model_type": "toy"}')
        assert built(folder).chat_template == build_chat_template(expected)
        assert built(folder, family="generic").chat_template == build_chat_template("default")


# Special tokens


def test_special_tokens_say_where_they_come_from(folder: Path, tmp_path: Path) -> None:
    tokens = get_default_special_tokens(built(folder))
    assert tokens.bos_token is not None
    assert (tokens.bos_token.text, tokens.bos_token.id, tokens.bos_token.origin) == ("<s>", 257, "the tokenizer")
    assert tokens.pad_token is None
    assert [token.text for token in tokens.stop_tokens] == ["</s>"]
    padded = save_tokenizer(tmp_path / "padded", [*SPECIAL, "<pad>"], chat_template=build_chat_template("chatml"))
    tokens = get_default_special_tokens(str(padded))
    assert tokens.pad_token is not None
    assert tokens.pad_token.text == "<pad>"
    assert [(token.text, token.origin) for token in tokens.stop_tokens] == [
        ("</s>", "the tokenizer's eos_token"),
        ("<|im_end|>", "the chat template"),
    ]


def test_stop_ids_of_everybody_who_says_one(folder: Path) -> None:
    tokenizer = built(folder)
    eos, im_end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_token_ids(tokenizer) == {eos}
    assert stop_token_ids(tokenizer, template="chatml") == {eos, im_end}
    assert stop_token_ids(tokenizer, generation_config={"eos_token_id": [5, 6]}) == {eos, 5, 6}
    family = get_registry().families["generic"]
    assert stop_token_ids(tokenizer, family=family) == {eos}
