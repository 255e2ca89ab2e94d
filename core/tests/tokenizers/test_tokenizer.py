"""What every tokenizer does: modes, special tokens that stay text, roles, names that users bring."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from graftwork import ModelParams, Tokenizer, build_tokenizer, load_tokenizer
from graftwork.builders import extras
from graftwork.errors import ClashError, MissingExtraError, ModelError, UnknownNameError, UsageError
from graftwork.tokenizers import TokenizerConfig, VocabularyInfo, get_default_special_tokens

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(params=["sentencepiece", "tiktoken", "hf of sentencepiece", "hf of tiktoken", "hf"])
def tokenizer(request: pytest.FixtureRequest, model: Path, ranks: Path, toy_family: None, tmp_path: Path) -> Tokenizer:
    path = ranks if "tiktoken" in request.param else model
    if request.param == "hf":
        load_tokenizer(model).hf.save_pretrained(tmp_path / "saved")
        path = tmp_path / "saved"
    return load_tokenizer(path, impl=request.param.partition(" ")[0])


def test_it_is_a_tokenizer(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.path.exists()


def test_modes(tokenizer: Tokenizer) -> None:
    text = "hello world"
    plain = tokenizer.encode_ordinary(text)
    bos, eos = [tokenizer.vocab_info.bos_idx], [tokenizer.vocab_info.eos_idx]
    for mode, expected in {
        None: bos + plain + eos,
        "default": bos + plain + eos,
        "prompt": bos + plain,
        "prompt_response": plain + eos,
        "as_is": plain,
    }.items():
        encoder = tokenizer.create_encoder(mode=mode)
        assert encoder.ids(text) == expected
        encoded = encoder(text)
        assert (encoded.dtype, encoded.ndim, encoded.tolist()) == (torch.int64, 1, expected)
    assert tokenizer.create_raw_encoder().ids(text) == plain
    assert tokenizer.create_encoder(mode="as_is", device="cpu")("").shape == (0,)
    assert tokenizer.encode(text) == bos + plain + eos
    assert tokenizer.encode(text, add_bos=False, add_eos=False) == plain
    with pytest.raises(UsageError, match=r"mode 'promt' is not known; did you mean prompt\? Known: as_is, default"):
        tokenizer.create_encoder(mode="promt")
    with pytest.raises(UsageError, match="task 'translation': language models have none"):
        tokenizer.create_encoder(task="translation")


def test_special_tokens_in_a_text_stay_text(tokenizer: Tokenizer) -> None:
    bos, eos = tokenizer.special_tokens.bos_token, tokenizer.special_tokens.eos_token
    assert bos is not None
    assert eos is not None
    text = f"say {bos.text}x{eos.text} {eos.text}"
    ids = tokenizer.create_encoder(mode="as_is").ids(text)
    assert not {bos.id, eos.id} & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_ordinary(text) == ids
    parsed = tokenizer.create_encoder(mode="as_is", allow_special=True).ids(text)
    assert [index for index in parsed if index in (bos.id, eos.id)] == [bos.id, eos.id, eos.id]
    assert tokenizer.hf(text, add_special_tokens=False)["input_ids"] == parsed
    assert (tokenizer.control_id(eos.text), tokenizer.control_id("say")) == (eos.id, None)


def test_a_bos_in_the_text_is_not_doubled(tokenizer: Tokenizer) -> None:
    bos, eos = tokenizer.special_tokens.bos_token, tokenizer.special_tokens.eos_token
    assert bos is not None
    assert eos is not None
    ids = tokenizer.create_encoder(allow_special=True).ids(f"{bos.text}hello{eos.text}")
    assert (ids.count(bos.id), ids.count(eos.id)) == (1, 1)


def test_decoding(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("  hello  world")
    bos, eos = tokenizer.special_tokens.bos_token, tokenizer.special_tokens.eos_token
    assert bos is not None
    assert eos is not None
    shown = tokenizer.create_decoder()(torch.tensor(ids))
    assert shown.startswith(bos.text)
    assert shown.endswith(f"hello  world{eos.text}")
    assert shown == tokenizer.hf.decode(ids)
    assert tokenizer.create_decoder(skip_special_tokens=True)(ids) == "  hello  world"
    assert tokenizer.decode(ids) == "  hello  world"


def test_halves_of_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_ordinary("a\ud83db") == tokenizer.encode_ordinary("a\ufffdb")
    assert tokenizer.encode_ordinary("a\ud83e\udd99b") == tokenizer.encode_ordinary("a🦙b")


def test_what_transformers_leaves_behind_is_not_there(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("hello hello hello")
    tokenizer.hf(["hello hello", "hello"], truncation=True, max_length=2)
    same = load_tokenizer(tokenizer.path, impl=tokenizer.impl)
    assert tokenizer.encode("hello hello hello") == same.encode("hello hello hello") == whole


def test_names_that_users_bring(tokenizer: Any) -> None:
    assert tokenizer._eos_token == tokenizer.special_tokens.eos_token.text
    assert tokenizer._model._tok is tokenizer.hf
    assert get_default_special_tokens(tokenizer) == tokenizer.special_tokens
    assert tokenizer.hf.name_or_path == str(tokenizer.path)


def test_added_tokens_that_are_not_marked_special(tmp_path: Path) -> None:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = {letter: index for index, letter in enumerate("abcdehlostuxy</>|_ \n")}
    backend = Backend(BPE({**letters, "</s>": len(letters), "\n\n": len(letters) + 1}, []))
    plain = {"special": False, "normalized": False}
    backend.add_tokens([AddedToken("</s>", **plain), AddedToken("\n\n", **plain), AddedToken("<tool>", **plain)])
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.control_id(text) for text in ("</s>", "<tool>", "\n\n")] == [20, 22, None]
    assert not {20, 22} & set(tokenizer.encode_ordinary("a</s>b<tool>"))
    assert 21 in tokenizer.encode_ordinary("a\n\nb")  # a piece of text, not markup


# Options


def test_use_eot(ranks: Path, model: Path, toy_family: None) -> None:
    for impl in ("tiktoken", "hf"):
        tokenizer = load_tokenizer(ranks, impl=impl, config={"use_eot": True})
        assert tokenizer.special_tokens.eos_token is not None
        assert tokenizer.special_tokens.eos_token.text == "<|turn|>"
        assert tokenizer.encode("a")[-1] == tokenizer.control_id("<|turn|>") == tokenizer.hf.eos_token_id
    with pytest.raises(UsageError, match=r"use_eot: .* has no end-of-turn token \(looked for .*<\|eot_id\|>"):
        load_tokenizer(model, config=TokenizerConfig(use_eot=True))


def test_use_eot_where_eos_ends_turns_already(model: Path, tmp_path: Path, install_plugin: Any) -> None:
    install_plugin("")
    hf = load_tokenizer(model).hf
    hf.add_special_tokens({"eos_token": "<|im_end|>"})
    hf.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, config={"use_eot": True})
    assert tokenizer.encode("a") == load_tokenizer(tmp_path).encode("a")
    assert tokenizer.create_encoder(mode="prompt_response").ids("a")[-1] == hf.convert_tokens_to_ids("<|im_end|>")


def test_split_regex(ranks: Path, model: Path, toy_family: None, tmp_path: Path) -> None:
    for impl in ("tiktoken", "hf"):
        assert load_tokenizer(ranks, impl=impl).encode_ordinary("hell") == [258]
        lone = load_tokenizer(ranks, impl=impl, config=TokenizerConfig(split_regex="."))
        assert lone.encode_ordinary("hell") == list(b"hell")
        whole = load_tokenizer(ranks, impl=impl, config=TokenizerConfig(split_regex=".+"))
        assert whole.encode_ordinary("<|end|>") == list(b"<|end|>")
    with pytest.raises(UsageError, match=r"the pattern '\(' is no regular expression: "):
        load_tokenizer(ranks, config={"split_regex": "("})
    with pytest.raises(UsageError, match=r"pattern '\(\?s\)\.' cannot be had for a fast tokenizer: Oniguruma"):
        load_tokenizer(ranks, impl="hf", config={"split_regex": "(?s)."})
    with pytest.raises(UsageError, match="is a SentencePiece model, which no pattern splits: leave split_regex out"):
        load_tokenizer(model, config={"split_regex": "."})
    load_tokenizer(model).hf.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"has its own pattern: split_regex is for tiktoken ranks"):
        load_tokenizer(tmp_path, config={"split_regex": "."})


def test_implementations_by_name(ranks: Path, model: Path, toy_family: None) -> None:
    assert load_tokenizer(model, impl="SP").impl == "sentencepiece"
    assert load_tokenizer(model, config={"impl": "hg"}).impl == "hf"
    with pytest.raises(UnknownNameError, match="tokenizer implementation 'sentencepeice'"):
        load_tokenizer(model, impl="sentencepeice")
    with pytest.raises(ModelError, match=r"neither tiktoken ranks nor a tekken\.json at .*leave impl out"):
        load_tokenizer(model, impl="tiktoken")
    with pytest.raises(ModelError, match=r"no SentencePiece model at .*leave impl out"):
        load_tokenizer(ranks, impl="sp")
    with pytest.raises(UsageError, match="impl is 'hf' and in the configuration 'sp'; give one"):
        load_tokenizer(model, impl="hf", config={"impl": "sp"})
    with pytest.raises(UsageError, match=r"'use_eos' is no option of a tokenizer; did you mean use_eot\?"):
        load_tokenizer(model, config={"use_eos": True})


@pytest.mark.parametrize(("kind", "package"), [("ranks", "tiktoken"), ("model", "sentencepiece")])
def test_a_missing_package_is_named_with_its_extra(
    request: pytest.FixtureRequest, toy_family: None, monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else found(name))
    for impl in (None, "hf"):
        with pytest.raises(
            MissingExtraError, match=rf'{package}, which is not installed: pip install "graftwork\[{package}\]"'
        ):
            load_tokenizer(request.getfixturevalue(kind), impl=impl)


def test_without_protobuf_a_model_encodes_but_has_no_hf(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        if name == "google.protobuf":
            raise ModuleNotFoundError(name)  # as where the package google is missing too
        return found(name)

    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", gone)
    tokenizer = load_tokenizer(model)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    with pytest.raises(
        MissingExtraError, match=r'protobuf, which is not installed: pip install "graftwork\[sentencepi'
    ):
        _ = tokenizer.hf
    with pytest.raises(MissingExtraError, match="protobuf"):
        build_tokenizer(ModelParams(model_name=str(model.parent)))


# Files


def test_a_file_is_told_by_its_content(model: Path, ranks: Path, toy_family: None, tmp_path: Path) -> None:
    for number, name in enumerate(("tokenizer.model", "x.model.v3", "vocab.spm", "tokenizer.model.v1")):
        for source, impl in ((model, "sentencepiece"), (ranks, "tiktoken")):
            folder = tmp_path / f"{impl}{number}"
            folder.mkdir()
            (folder / name).write_bytes(source.read_bytes())
            assert load_tokenizer(folder).impl == load_tokenizer(folder / name).impl == impl


def test_a_folder_with_a_tokenizer_json_is_read_by_hf(model: Path, tmp_path: Path) -> None:
    load_tokenizer(model).hf.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    assert load_tokenizer(tmp_path).impl == "hf"
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).impl == "hf"
    assert load_tokenizer(tmp_path, impl="sentencepiece").encode("hello") == load_tokenizer(tmp_path).encode("hello")


def test_a_tokenizer_json_has_the_roles_that_stand_beside_it_or_that_it_uses(model: Path, tmp_path: Path) -> None:
    """The settings in its folder; where there are none, what its post-processor puts around a text."""
    original = load_tokenizer(model)
    original.hf.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab_info == original.vocab_info
    (tmp_path / "tokenizer_config.json").unlink()
    lone = load_tokenizer(tmp_path / "tokenizer.json")
    assert (lone.vocab_info.bos_idx, lone.vocab_info.eos_idx) == (original.vocab_info.bos_idx, None)
    assert lone.create_encoder(mode="prompt").ids("hello") == original.create_encoder(mode="prompt").ids("hello")


def test_what_lies_beside_a_model_counts(model: Path, tmp_path: Path) -> None:
    """Phi-3 is published so: the SentencePiece file of Llama 2, and its own special tokens in the settings."""
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    size = load_tokenizer(model).vocab_info.size
    added = {
        str(size + index): {"content": text, "special": True} for index, text in enumerate(("<|end|>", "<|user|>"))
    }
    settings = {"eos_token": "<|end|>", "added_tokens_decoder": added, "chat_template": "{{ messages }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_info == VocabularyInfo(size=size + 2, unk_idx=0, bos_idx=1, eos_idx=size, pad_idx=None)
    assert tokenizer.hf.convert_tokens_to_ids(["<|end|>", "<|user|>"]) == [size, size + 1]
    assert tokenizer.hf.eos_token_id == size
    assert tokenizer.hf.chat_template == "{{ messages }}"
    text = "a<|user|>b"
    parsed = tokenizer.create_encoder(mode="as_is", allow_special=True).ids(text)
    assert parsed == tokenizer.hf(text, add_special_tokens=False)["input_ids"]
    assert size + 1 in parsed
    assert tokenizer.create_decoder()(parsed) == tokenizer.hf.decode(parsed)


def test_files_that_are_not_right(tmp_path: Path, toy_family: None, model: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(ModelError, match=r"notes\.txt is not a known kind of file: neither a tokenizer\.json nor"):
        load_tokenizer(tmp_path / "notes.txt")
    with pytest.raises(ModelError, match=r"there is no tokenizer in .*looked for tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="there is no such file or folder"):
        load_tokenizer(tmp_path / "gone.model")
    (tmp_path / "a.model").write_text("IQ== 0\nno line\n")
    with pytest.raises(ModelError, match=r"a\.model, line 2: b'no line' is no base64 token with its rank"):
        load_tokenizer(tmp_path)
    (tmp_path / "b.model").write_bytes(model.read_bytes())
    with pytest.raises(ModelError, match=r"several files hold one; give one of them: .*a\.model or .*b\.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "b.model").write_bytes(model.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"b\.model is no SentencePiece model that can be read"):
        load_tokenizer(tmp_path / "b.model")
    (tmp_path / "tekken.json").write_text('{"config": {"pattern": "."}, "vocab": []}')
    with pytest.raises(ModelError, match=r"tekken\.json is no tekken vocabulary that can be read: KeyError"):
        load_tokenizer(tmp_path / "tekken.json")


def test_ranks_that_no_family_knows(tmp_path: Path, ranks: Path, toy_family: None) -> None:
    few = tmp_path / "tokenizer.model"
    few.write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(ModelError, match=r"no installed family declares those for 2 ranks: install the fam"):
        load_tokenizer(few)
    assert load_tokenizer(few, family="toy").control_id("<|begin|>") == 2
    assert load_tokenizer(ranks).control_id("<|begin|>") == 260


def test_ranks_that_two_families_know(ranks: Path, install_plugin: Callable[..., str]) -> None:
    from graftwork.registry import get_registry

    install_plugin(
        """
        from graftwork import hookimpl
        from graftwork.specs import ModelFamily, RankLayout

        @hookimpl
        def graftwork_model_families():
            layout = RankLayout(ranks=260, split_regex=".", special_tokens=("<|end|>",))
            return [ModelFamily(name=name, model_types=(name,), rank_layouts=(layout,)) for name in ("one", "two")]
        """
    )
    with pytest.raises(ClashError, match=r"holds 260 tiktoken ranks, and several families.*family=one or two"):
        load_tokenizer(ranks)
    assert load_tokenizer(ranks, family="two").encode_ordinary("he") == list(b"he")
    own = replace(get_registry().families["one"], special_tokens={"eos_token": "<|end|>"})
    assert load_tokenizer(ranks, family=own).vocab_info.eos_idx == 260


def test_a_tokenizer_is_printed_in_a_line(tokenizer: Tokenizer) -> None:
    shown = repr(tokenizer)
    assert shown.startswith("<tokenizer of /") and shown.endswith(" tokens>") and f": {tokenizer.impl}, " in shown
    assert len(shown) < 300
