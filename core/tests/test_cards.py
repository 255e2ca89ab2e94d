"""Asset cards: what they say, where they are looked for, what becomes of mistakes, and the models that they name."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from graftwork.errors import GraftworkError, ModelError, UnknownNameError, UsageError
from graftwork.sources.cards import CardError, library, search_order
from graftwork.sources.resolve import checkpoint_of, locate, resolve
from graftwork.sources.web import fetch

if TYPE_CHECKING:
    from collections.abc import Callable

PLUGIN = """
from pathlib import Path
from graftwork import hookimpl
from graftwork.specs import AssetCardSource, ModelFamily, Preset

@hookimpl
def graftwork_model_families():
    values = {{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "vocab_size": 32, "num_key_value_heads": 2}}
    toy = Preset(name="toy_1m", model_type="llama", values=values, num_parameters=1, aliases=("toy-1m",))
    return [ModelFamily(name="toy", model_types=("llama",), presets=(toy,), stop_tokens=("<|eot_id|>",)),
            ModelFamily(name="other", model_types=("gpt2",))]

@hookimpl
def graftwork_asset_cards():
    return [AssetCardSource(name="toy", path=Path({folder!r}))]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install_plugin: Any) -> Any:
    """``place("own" | "user" | "plugin", "file.yaml", text)`` writes a file of cards."""
    folders = {
        "own": tmp_path / "own",
        "user": tmp_path / "config" / "graftwork" / "cards",
        "plugin": tmp_path / "packaged",
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    monkeypatch.setenv("GRAFTWORK_CARD_PATH", str(folders["own"]))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("GRAFTWORK_CARD_ENV", raising=False)
    install_plugin(PLUGIN.format(folder=str(folders["plugin"])))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def write(where: str, name: str, text: str) -> Path:
        file = folders[where] / name
        file.write_text(text)
        return file

    return write


# What a card says


def test_every_field_is_read_and_paths_count_from_the_card(place: Any, tmp_path: Path) -> None:
    text = """\
name: mine
model_family: toy
model_arch: toy-1m
checkpoint: weights
tokenizer: ../tokens/tokenizer.model
tokenizer_family: other
model_config_override: {max_position_embeddings: 64}
tokenizer_config_override: {impl: sp, use_eot: true}
restrict: true
"""
    file = place("own", "a.yaml", text)
    card = library()["MINE"]
    assert (card.name, card.place, card.source) == ("mine", f"{file}:1", "$GRAFTWORK_CARD_PATH")
    assert card.facts() == {
        "name": "mine",
        "model_family": "toy",
        "model_arch": "toy_1m",
        "checkpoint": str(tmp_path / "own" / "weights"),
        "tokenizer": str(tmp_path / "own" / "../tokens/tokenizer.model"),
        "tokenizer_family": "other",
        "model_config_override": {"max_position_embeddings": 64},
        "tokenizer_config_override": {"impl": "sp", "use_eot": True},
        "restrict": True,
    }


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("hf://org/name", "hf://org/name"),
        ("hg://org/name", "hf://org/name"),
        ("hg://org/name;gated=true", "hf://org/name"),
        ("file:///models/a", "file:///models/a"),
        ("/models/a", "/models/a"),
        ("~/a", str(Path("~/a").expanduser())),
    ],
)
def test_places_in_every_spelling(place: Any, written: str, read: str) -> None:
    place("own", "a.yaml", f"name: mine\ncheckpoint: {written!r}\n")
    assert library()["mine"].checkpoint == read


def test_old_spellings_mean_the_same(place: Any) -> None:
    place("own", "a.yaml", "name: mine\nmodel_config: {max_seq_len: 8}\ntokenizer_config: {use_eot: true}\n")
    card = library()["mine"]
    assert card.model_config_override == {"max_seq_len": 8}
    assert card.tokenizer_config_override == {"use_eot": True}


def test_a_card_builds_on_another_override_by_override(place: Any) -> None:
    place(
        "own",
        "a.yaml",
        "name: one\nmodel_arch: toy_1m\ncheckpoint: /a\nmodel_config_override: {a: 1, b: 2}\n---\n"
        "name: two\nbase: one\ncheckpoint: /b\nmodel_config_override: {b: 3}\n",
    )
    card = library()["two"]
    assert (card.model_arch, card.checkpoint, card.model_config_override) == ("toy_1m", "/b", {"a": 1, "b": 3})
    assert card.model_family == "toy"
    assert [layer.rpartition(":")[2] for layer in card.layers] == ["1", "6"]


def test_a_tokenizer_of_another_card(place: Any) -> None:
    place(
        "own",
        "a.yaml",
        "name: one\ntokenizer: /t\ntokenizer_family: toy\ntokenizer_config_override: {impl: sp}\n---\n"
        "name: two\ncheckpoint: /b\ntokenizer_ref: one\ntokenizer_config_override: {use_eot: true}\n---\n"
        "name: three\nbase: two\ntokenizer: /own\n---\n"
        "name: four\nmodel_family: toy\ncheckpoint: /c\n---\n"
        "name: round\ntokenizer_ref: round\n---\nname: none\nmodel_arch: toy_1m\n",
    )
    cards = library()
    two = cards.tokenizer_of(cards["two"])
    assert (two.place, two.family, two.options) == ("/t", "toy", {"impl": "sp", "use_eot": True})
    assert cards.tokenizer_of(cards["three"]).place == "/own"
    assert cards.tokenizer_of(cards["four"]).place == "/c"
    with pytest.raises(CardError, match=r"tokenizer_ref leads back to itself \(round > round\)"):
        cards.tokenizer_of(cards["round"])
    with pytest.raises(CardError, match="has no tokenizer: give it the field tokenizer"):
        cards.tokenizer_of(cards["none"])


# Where cards are looked for


def test_the_first_place_wins_and_says_what_it_shadows(place: Any, tmp_path: Path) -> None:
    for where in ("plugin", "user", "own"):
        place(where, "a.yaml", f"name: mine\ncheckpoint: /{where}\n")
    card = library()["mine"]
    assert card.checkpoint == "/own"
    assert card.shadows == (f"{tmp_path}/config/graftwork/cards/a.yaml:1", f"{tmp_path}/packaged/a.yaml:1")
    (tmp_path / "own" / "a.yaml").unlink()
    assert (library()["mine"].checkpoint, library()["mine"].source) == ("/user", "the user")
    (tmp_path / "config/graftwork/cards/a.yaml").unlink()
    assert (library()["mine"].checkpoint, library()["mine"].source) == ("/plugin", "graftwork-toy")


def test_a_list_of_places_and_the_home_of_configurations(place: Any, tmp_path: Path) -> None:
    home = str(tmp_path / "config")
    order = search_order({"GRAFTWORK_CARD_PATH": os.pathsep.join(["/a", "/b"]), "XDG_CONFIG_HOME": home})
    assert [str(path) for _, path in order][:3] == ["/a", "/b", f"{tmp_path}/config/graftwork/cards"]


def test_environments_are_laid_over(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place("plugin", "a.yaml", "name: mine\ncheckpoint: hf://org/mine\nmodel_config_override: {a: 1}\n")
    place("own", "a.yaml", "name: mine@lab\ncheckpoint: /lab\n---\nname: mine@home\ncheckpoint: /home\n")
    assert library()["mine"].checkpoint == "hf://org/mine"
    monkeypatch.setenv("GRAFTWORK_CARD_ENV", "lab")
    assert (library()["mine"].checkpoint, library()["mine"].model_config_override) == ("/lab", {"a": 1})
    monkeypatch.setenv("GRAFTWORK_CARD_ENV", "lab, home")
    assert library()["mine"].checkpoint == "/home"
    place("user", "b.yaml", "name: mine@user\ncheckpoint: /user\n")
    assert library()["mine"].checkpoint == "/user"
    assert library().names == ["mine"]
    monkeypatch.delenv("GRAFTWORK_CARD_ENV")
    named = resolve("mine@lab")
    assert (named.name, library()[named.name].facts()) == (
        "mine@lab",
        {"name": "mine@lab", "checkpoint": "/lab", "model_config_override": {"a": 1}},
    )
    place("user", "b.yaml", "name: alone@lab\ncheckpoint: /lab\n")
    for name in ("mine@work", "alone@lab"):
        with pytest.raises(UnknownNameError, match=f"there is no card '{name}'"):
            resolve(f"card:{name}")


# Mistakes


MISTAKES = {
    "name: a\nmodelfamily: toy": "a.yaml:2): modelfamily: a card has no such field; did you mean model_family?",
    "name: a\nmodel_family: tpy": "a.yaml:2): model_family: no family is called 'tpy'; did you mean toy?",
    "name: a\nmodel_arch: toy_2m": "a.yaml:2): model_arch: no preset is called 'toy_2m'; did you mean toy_1m?",
    "name: a\nmodel_family: other\nmodel_arch: toy_1m": "'toy_1m' is of the family toy, and model_family says 'other'",
    "name: a\ncheckpoint: [b]": "a.yaml:2): checkpoint: it is ['b'], and must be a text",
    "name: a\nmodel_config: 3": "a.yaml:2): model_config_override: it is 3, and must be a block of settings",
    "name: a\nrestrict: yes": "restrict: it is 'yes', and must be true or false",
    "name: a\nrestrict: false": "pickles are always read by the restricted reader",
    "name: a\ntrust_remote_code: true": "a card cannot vouch for code or for pickles",
    "name: a\nmodel_config_override: {auto_map: x}": "auto_map could name code, which a card never does",
    "name: a\ntokenizer_config: {use_etc: true}": "'use_etc' is no option of a tokenizer; did you mean use_eot?",
    "name: a\ntokenizer_config_override: {use_eot: 1}": "use_eot is 1, and must be true or false",
    "name: a\nmodel_config_override: {text_config: {auto_map: x}}": "auto_map could name code, which a card never does",
    "name: a\ncheckpoint: ''": "a.yaml:2): checkpoint: '' is no place",
    "name: a\ncheckpoint: s3://b": "a.yaml:2): checkpoint: s3://b: there is no source 's3'; known: file, hf, https",
    "name: a\ntokenizer: hff://org/b": "a.yaml:2): tokenizer: hff://org/b: there is no source 'hff'; did you mean hf?",
    'name: a\ntokenizer: "/a\\0b"': "a.yaml:2): tokenizer: '/a\\x00b' is no place",
    "name: a\ncheckpoint: ~nobody-of-this-name/a": "checkpoint: ~nobody-of-this-name/a: there is no such home",
    "name: a\nbase: b": "a.yaml:2): base: there is no card 'b' to build on",
    "name: a\nbase: a": "its bases lead back to itself (a > a). To change a card, write one named a@user",
    "name: a\ncheckpoint: /a\ncheckpoint: /b": "checkpoint: written twice, at lines 2 and 3; keep one",
    "name: a\nmodel_config: {}\nmodel_config_override: {}": "model_config is the old name of model_config_override",
    "name: 'a b'": "'a b' is no name",
    "name: a\n---\nname: a": "card 'a' stands twice among the cards of $GRAFTWORK_CARD_PATH",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text.replace("\n", " "))
def test_a_mistake_is_an_error_of_its_card_only(place: Any, graft: Any, text: str) -> None:
    place("own", "a.yaml", text)
    place("own", "z.yaml", "name: good\ncheckpoint: /z\n")
    name = "a b" if "a b" in text else "a"
    with pytest.raises(CardError) as caught:
        library()[name]
    assert MISTAKES[text] in str(caught.value)
    assert library()["good"].checkpoint == "/z"
    code, out, _ = graft("models", "ls")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("mistake: ") and MISTAKES[text] in line]
    listed = json.loads(graft("models", "ls", "--json")[1])
    assert [card["name"] for card in listed["cards"]] == ["good"]
    assert any(MISTAKES[text] in mistake for mistake in listed["mistakes"])


BOMB = "".join(f"{name}: &{name} [*{below}, *{below}]\n" for below, name in pairwise("bcdefghijklmnopqrstuvwz"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "a.yaml:2: not valid YAML"),
        ("- a", "a.yaml:1: a card is a block of fields, and one of them is its name"),
        ("checkpoint: /a", "one of them is its name"),
        ("name: good\n---\nname: {a: b", "this card and those below it are not read"),
        ("name: 7", "one of them is its name (a text)"),
        ('name: "a\\e[31m"', "one of them is its name (a text)"),
        ('name: "a\\n"', "one of them is its name (a text)"),
        ("name: bomb\na: &a [x, x]\nb: &b [*a, *a]\n" + BOMB, "more than 100,000 values; do its anchors repeat"),
        ("name: deep\na: " + "[" * 5000 + "]" * 5000, "too many blocks within blocks"),
        ("name: !!python/name:os.system x", "one of them is its name"),
        ("name: x@lab", "it changes the card 'x', and there is none"),
    ],
)
def test_files_that_cannot_be_read_are_said(place: Any, text: str, said: str) -> None:
    place("own", "a.yaml", text + "\n")
    place("own", "z.yaml", "name: other\n")
    assert any(said in mistake for mistake in library().mistakes())
    assert "other" in library()
    assert ("good" in library()) is ("good" in text)


def test_an_unknown_name_mentions_the_files_that_could_not_be_read(place: Any) -> None:
    place("own", "a.yaml", "name: [\n")
    for name in ("toy_2m", "card:toy_2m"):
        with pytest.raises(UnknownNameError, match="not valid YAML"):
            resolve(name)


def test_a_place_that_is_not_there_is_said(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_CARD_PATH", "/nowhere")
    assert "cards: there is no folder or file /nowhere ($GRAFTWORK_CARD_PATH names it)" in library().mistakes()


def test_a_place_that_a_plugin_does_not_have_is_said(place: Any, tmp_path: Path) -> None:
    (tmp_path / "packaged").rmdir()
    said = [mistake for mistake in library().mistakes() if f"no folder or file {tmp_path}/packaged" in mistake]
    assert len(said) == 1
    assert "$GRAFTWORK_CARD_PATH" not in said[0]


# Names


def test_a_card_of_a_presets_name_is_that_preset_with_files(place: Any) -> None:
    place("own", "a.yaml", "name: toy_1m\nmodel_arch: toy_1m\ncheckpoint: hf://org/toy\n")
    found = resolve("toy_1m")
    assert (found.kind, found.name) == ("card", "toy_1m")
    assert resolve("preset:toy_1m").kind == "preset"


def test_a_card_that_is_another_thing_than_the_preset_is_ambiguous(place: Any, tmp_path: Path) -> None:
    place("own", "a.yaml", "name: toy_1m\nmodel_family: other\ncheckpoint: hf://org/toy\n")
    with pytest.raises(UsageError, match="write card:toy_1m for the card or preset:toy_1m for the preset"):
        resolve("toy_1m")
    assert resolve("card:toy_1m").kind == "card"
    (tmp_path / "here" / "toy_1m").mkdir()
    with pytest.raises(UsageError, match=r"write \./toy_1m for the folder or card:toy_1m for the card or preset:"):
        resolve("toy_1m")


def test_a_card_without_files_or_with_lost_ones(place: Any) -> None:
    place("own", "a.yaml", "name: bare\nmodel_arch: toy_1m\n---\nname: lost\ncheckpoint: gone\n")
    with pytest.raises(ModelError, match="has no checkpoint: give it the field checkpoint"):
        locate(resolve("bare"))
    with pytest.raises(ModelError, match=r"there is no folder .*gone.*a Hub id is hf://org/name"):
        locate(resolve("lost"))


def test_a_card_is_shown_and_explained(place: Any, graft: Any, tmp_path: Path) -> None:
    place("plugin", "a.yaml", "name: mine\ncheckpoint: hf://org/mine\n")
    place("own", "a.yaml", "name: mine\nmodel_arch: toy_1m\ncheckpoint: hf://org/mine@v1\n")
    shown = json.loads(graft("models", "show", "mine", "--json")[1])
    assert shown["shadows"] == [f"{tmp_path}/packaged/a.yaml:1"]
    assert (shown["checkpoint"], shown["preset"], shown["values"]["hidden_size"]) == ("hf://org/mine@v1", "toy_1m", 16)
    facts = json.loads(graft("models", "resolve", "mine", "--json")[1])
    assert (facts["kind"], facts["checkpoint name"], facts["revision"]) == ("card", "org/mine", "v1")
    code, _, err = graft("models", "show", str(tmp_path))
    assert code == 2
    assert "is neither a card nor a preset" in err


def test_a_card_is_shown_with_its_overrides(place: Any, graft: Any) -> None:
    def shown(override: str) -> tuple[Any, str]:
        card = f"name: mine\nmodel_arch: toy_1m\nmodel_config_override: {{{override}}}\n"
        place("own", "a.yaml", card)
        return json.loads(graft("models", "show", "mine", "--json")[1]), graft("models", "show", "mine")[1]

    facts, text = shown("model_dim: 32, vocab_size: 32, rope_theta: 5.0")
    assert (facts["values"]["hidden_size"], facts["values"]["vocab_size"]) == (32, 32)
    assert facts["from the card"] == ["hidden_size", "rope_theta"]
    assert "hidden_size: 32 (from the card)\n" in text
    assert "vocab_size: 32\n" in text
    assert "num_parameters" not in facts
    assert "num_parameters" not in text
    facts, text = shown("max_seq_len: 8, rope_theta: 5.0, pad_idx: 3")
    assert facts["values"]["max_position_embeddings"] == 8
    assert facts["num_parameters"] == 1
    facts, text = shown("vocab_size: 32")
    assert "(from the card)" not in text
    assert facts["num_parameters"] == 1
    facts, text = shown("ffn_inner_dim: 3")
    assert "ffn_inner_dim is no field of transformers by itself" in facts["mistakes"][0]
    assert facts["mistakes"][0] in text


# Models


def test_a_model_and_its_tokenizer_by_a_cards_name(place: Any, toy_model: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from graftwork import ModelParams, build_model, build_tokenizer, load_tokenizer

    weights = toy_model("llama")
    vocabulary = {"a": 0, "b": 1, "<s>": 2, "</s>": 3, "<|eot_id|>": 4}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [])),
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|eot_id|>"],
    )
    tokenizer.save_pretrained(tmp_path / "tokens")
    place(
        "own",
        "a.yaml",
        f"name: toy_1m\nmodel_arch: toy_1m\ncheckpoint: {weights}\ntokenizer: {tmp_path}/tokens\n"
        "model_config_override: {max_seq_len: 48}\n---\n"
        f"name: toy_1m_chat\nbase: toy_1m\ncheckpoint: {weights}/model.safetensors\n"
        "tokenizer_config_override: {use_eot: true}\n",
    )
    model = build_model(ModelParams(model_name="toy_1m_chat"))
    assert (model.config.hidden_size, model.config.max_position_embeddings) == (32, 48)
    assert model.name_or_path == str(weights)
    own = build_model(ModelParams(model_name="toy_1m", model_kwargs={"max_position_embeddings": 16}))
    assert own.config.max_position_embeddings == 16
    fresh = build_model(ModelParams(model_name="toy_1m", load_pretrained_weights=False))
    assert (fresh.config.hidden_size, fresh.config.max_position_embeddings) == (16, 48)
    assert load_tokenizer("toy_1m_chat").vocab_info.eos_idx == 4
    assert load_tokenizer("toy_1m").vocab_info.eos_idx == 3
    assert load_tokenizer("toy_1m_chat", config={"use_eot": False}).vocab_info.eos_idx == 3
    assert build_tokenizer(ModelParams(model_name="toy_1m_chat")).eos_token == "<|eot_id|>"
    other = ModelParams(model_name="toy_1m", load_pretrained_weights=False, tokenizer_name="toy_1m_chat")
    assert build_tokenizer(other).eos_token == "<|eot_id|>"


@pytest.mark.parametrize(
    ("key", "said"),
    [("ffn_inner_dim", "intermediate_size, the width itself"), ("use_scaled_rope", "rope_parameters")],
)
def test_an_override_that_is_a_rule_in_fairseq2(place: Any, key: str, said: str) -> None:
    from graftwork import ModelParams, build_model

    file = place("own", "a.yaml", f"name: ruled\nmodel_arch: toy_1m\nmodel_config_override: {{{key}: 1}}\n")
    text = f"card 'ruled' ({file}:3): model_config_override: {key} is no field of transformers by itself: write {said}"
    with pytest.raises(ModelError, match=re.escape(text)):
        build_model(ModelParams(model_name="ruled", load_pretrained_weights=False))
    assert any(text in mistake for mistake in library().mistakes())


def test_an_override_that_nothing_has_is_said_of_its_card(place: Any) -> None:
    from graftwork import ModelParams, build_model

    file = place(
        "own",
        "a.yaml",
        "name: odd\nmodel_arch: toy_1m\nmodel_config_override: {hiden_size: 3}\n---\nname: over\nbase: odd\n---\n"
        "name: good\nmodel_arch: toy_1m\n---\nname: good@user\nmodel_config_override: {window_len: 3}\n---\n"
        "name: own\nmodel_arch: toy_1m\nmodel_config_override: {max_seq_len: 8, rope_theta: 2.0, n_ctx_x: 1}\n",
    )
    where, none = "model_config_override", "is no key of a llama configuration: "
    said = {
        "odd": f"card 'odd' ({file}:3): {where}: 'hiden_size' {none}did you mean hidden_size?",
        "over": f"card 'over' ({file}:3): {where}: 'hiden_size' {none}did you mean hidden_size?",
        "good": f"card 'good' ({file}:12): {where}: 'window_len' (sliding_window in transformers) {none}",
        "own": f"card 'own' ({file}:16): {where}: 'n_ctx_x' {none}",
    }
    listed = library().mistakes()
    assert len(listed) == len(said)
    for name, text in said.items():
        assert any(mistake.startswith(text) for mistake in listed), name
        with pytest.raises(ModelError, match=re.escape(text)):
            build_model(ModelParams(model_name=name, load_pretrained_weights=False))
    with pytest.raises(ModelError, match=r"^model\.model_kwargs: 'hiden' is no key"):
        build_model(ModelParams(model_name="toy_1m", load_pretrained_weights=False, model_kwargs={"hiden": 1}))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("{model_dim: abc}", "model_dim='abc': the configuration of this llama model is not valid"),
        ("{model_dim: 33}", "model_dim=33: the configuration of this llama model is not valid"),
        ("{num_layers: 1.5, vocab_size: 64}", "num_layers=1.5: the configuration of this llama model is not valid"),
    ],
)
def test_an_override_of_a_wrong_type_is_said_of_its_card(place: Any, toy_model: Any, override: str, said: str) -> None:
    from graftwork import ModelParams, build_model
    from graftwork.builders.model import model_config

    file = place("own", "a.yaml", f"name: odd\nmodel_arch: toy_1m\nmodel_config_override: {override}\n")
    text = f"^card 'odd' ({file}:3): model_config_override: {said}"
    for call in (build_model, model_config):
        with pytest.raises(ModelError, match=re.escape(text).replace(r"\^", "^")):
            call(ModelParams(model_name="odd", load_pretrained_weights=False))
    kwargs = {"hidden_size": 16, "num_hidden_layers": 1}
    given = ModelParams(model_name="odd", load_pretrained_weights=False, model_kwargs=kwargs)
    assert build_model(given).config.hidden_size == 16, "what is given goes over the card"
    with pytest.raises(ModelError, match=r"^the configuration of this llama model is not valid"):
        build_model(given.model_copy(update={"model_kwargs": {**kwargs, "vocab_size": "x"}}))


def test_the_keys_of_a_checkpoint_here_count(place: Any, toy_model: Any) -> None:
    weights = toy_model("llama")
    text = "name: a\nmodel_family: other\ncheckpoint: {}\nmodel_config_override: {{{}: 1}}\n"
    place("own", "a.yaml", text.format(weights, "rms_norm_eps"))
    assert library().mistakes() == []
    place("own", "a.yaml", text.format("hf://org/a", "rms_norm_eps"))
    assert "'rms_norm_eps' is no key of a gpt2 configuration" in library().mistakes()[0]


def test_keys_read_from_the_source_are_those_of_the_classes() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from graftwork.builders.model_config import config_keys
    from graftwork.sources.config_keys import source_keys

    for model_type in ("llama", "gpt2", "gemma3_text", "qwen3", "mixtral", "phi3", "bert"):
        assert source_keys(model_type) == config_keys(CONFIG_MAPPING[model_type])
    for unknown in ("no_such_model", "../llama", "", "roberta-x"):
        assert source_keys(unknown) is None


@pytest.mark.parametrize(
    ("before", "said"), [("", "did you mean hidden_size"), ("sys.modules['transformers'] = None", "[]")]
)
def test_overrides_are_checked_without_transformers(place: Any, tmp_path: Path, before: str, said: str) -> None:
    place("own", "a.yaml", "name: odd\nmodel_arch: toy_1m\nmodel_config_override: {hiden_size: 3}\n")
    code = f"import sys\n{before}\nfrom graftwork.sources.cards import library\nprint(library().mistakes())\n"
    code += "assert sys.modules.get('transformers') is None and 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert said in done.stdout


def test_fresh_weights_of_a_card_on_the_hub_need_no_network(place: Any) -> None:
    from graftwork import ModelParams, build_model

    place("own", "a.yaml", "name: far\nmodel_arch: toy_1m\ncheckpoint: hf://org/nowhere\n")
    assert build_model(ModelParams(model_name="far", load_pretrained_weights=False)).config.hidden_size == 16


def test_a_tokenizer_at_an_address_is_fetched_once(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    asked: list[str] = []

    class Files(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tokenizer.model").write_bytes(b"ranks")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        text = f"name: web\ntokenizer: {address}/tokenizer.model\n---\nname: lost\ntokenizer: {address}/x\n"
        place("own", "a.yaml", text)
        cards = library()
        for _ in range(2):
            assert locate(resolve(cards.tokenizer_of(cards["web"]).place)).read_bytes() == b"ranks"
        assert asked.count("/tokenizer.model") == 1
        with pytest.raises(GraftworkError, match="/x: the server answered 404"):
            locate(resolve(cards.tokenizer_of(cards["lost"]).place))
        (tmp_path / "taken").write_text("a file where the cache would be")
        with pytest.raises(GraftworkError, match="cannot be kept in"):
            fetch(f"{address}/tokenizer.model", tmp_path / "taken")
        with pytest.raises(GraftworkError, match=r"cannot be fetched .* check address, network and disk"):
            fetch(f"{address}/\u00fc", tmp_path)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    kept = [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert kept == ["tokenizer.model"]


@pytest.mark.parametrize("path", ["", "/", "/..", "/a/%2e%2e", "/%00", "/a%0a"])
def test_an_address_that_is_no_file_is_never_asked_for(tmp_path: Path, path: str) -> None:
    with pytest.raises(ModelError, match="this is no file's address"):
        fetch(f"http://127.0.0.1:1{path}", tmp_path)
    with pytest.raises(ModelError, match="this is no address"):
        fetch("http://[::1/tokenizer.model", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nobodys_home(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place("plugin", "a.yaml", "name: mine\ncheckpoint: HF://org/mine@v1\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", "~nobody-of-this-name/c")
    assert (found := checkpoint_of(library()["mine"])).name == "org/mine"
    assert found.revision == "v1"
    monkeypatch.setenv("GRAFTWORK_CARD_PATH", "~nobody-of-this-name/c")
    with pytest.raises(ModelError, match="~nobody-of-this-name/c: there is no such home folder"):
        library()
    monkeypatch.delenv("GRAFTWORK_CARD_PATH")
    with pytest.raises(ModelError, match="~nobody-of-this-name/a: there is no such home folder"):
        resolve("~nobody-of-this-name/a")


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """``lock(folder)``: neither listed nor entered any more. By hand, as nothing is locked for an administrator."""

    def refuse(folder: Path) -> None:
        for name in ("scandir", "stat"):
            real = getattr(os, name)

            def locked(path: Any, *args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
                if Path(path).is_relative_to(folder) and (name == "scandir" or Path(path) != folder):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                return real(path, *args, **kwargs)

            monkeypatch.setattr(os, name, locked)

    return refuse


def test_a_folder_that_may_not_be_read_is_said(place: Any, lock: Any) -> None:
    """The cards beside it are there, and an unknown name says where it may be."""
    folder = place("own", "open.yaml", "name: seen\n").parent / "closed"
    folder.mkdir()
    place("own", "closed/a.yaml", "name: hidden\n")
    lock(folder)
    (said,) = library().mistakes()
    assert said == (
        f"cards: the folder {folder} cannot be read (Permission denied), so nobody knows what is in it: give your user "
        "the right to list and enter it, or name another ($GRAFTWORK_CARD_PATH)"
    )
    assert "seen" in library()
    with pytest.raises(UnknownNameError, match=r"the folder .*closed cannot be read"):
        resolve("card:hidden")


@pytest.mark.parametrize("inner", ["cards", "a.yaml"])
def test_a_place_within_a_folder_that_may_not_be_entered(
    tmp_path: Path, lock: Any, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    monkeypatch.setenv("GRAFTWORK_CARD_PATH", str(tmp_path / "closed" / inner))
    (tmp_path / "closed").mkdir()
    lock(tmp_path / "closed")
    (said,) = library().mistakes()
    assert f"{tmp_path / 'closed' / inner} cannot be read (Permission denied)" in said
