"""fairseq2's hubs of the shipped families, and the cards that they ship, with small local models standing in."""

from __future__ import annotations

import re
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

import graftwork
from graftwork.errors import ModelError, UnknownNameError, UsageError
from graftwork.registry import get_registry
from graftwork.sources.cards import library
from graftwork.sources.hubs import model_hub, tokenizer_hub
from graftwork.sources.resolve import resolve

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES = ("llama", "gemma", "phi3", "mistral", "qwen")
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
CARDS = """\
name: llama3_2_1b
model_family: llama
model_arch: llama3_2_1b
checkpoint: weights
tokenizer: tokens
tokenizer_family: llama
---
name: llama3_2_1b_instruct
base: llama3_2_1b
tokenizer_config_override:
  use_eot: true
---
name: elsewhere
model_family: gemma
checkpoint: weights
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cards of the documents' names that lead to a tiny model and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "weights")
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=special[0], eos_token=special[1], additional_special_tokens=special[2:]
    ).save_pretrained(tmp_path / "tokens")
    (tmp_path / "cards.yaml").write_text(CARDS)
    monkeypatch.setenv("GRAFTWORK_CARD_PATH", str(tmp_path / "cards.yaml"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    return tmp_path


def test_the_documents_quick_start(stand_in: Path) -> None:
    from graftwork_llama import get_llama_model_hub, get_llama_tokenizer_hub

    model = get_llama_model_hub().load_model("llama3_2_1b", progress=False)
    tokenizer = get_llama_tokenizer_hub().load_tokenizer("llama3_2_1b")
    encoded = tokenizer.create_encoder()("The future of AI is")
    assert encoded.dtype == torch.int64
    assert encoded[[0, -1]].tolist() == [256, 257]
    reference = AutoModelForCausalLM.from_pretrained(stand_in / "weights")
    assert torch.equal(model(encoded[None]).logits, reference(encoded[None]).logits)


def test_the_documents_global_functions(stand_in: Path) -> None:
    tokenizer = graftwork.load_tokenizer("llama3_2_1b_instruct")
    assert tokenizer._eos_token == "<|eot_id|>"  # type: ignore[attr-defined]
    assert tokenizer.create_encoder(mode="prompt_response").ids("a")[-1] == 258
    model = graftwork.load_model("llama3_2_1b", device="cpu", dtype=torch.bfloat16)
    assert (model.dtype, model.training) == (torch.bfloat16, False)
    with pytest.raises(ModelError, match="is a preset, an architecture without weights"):
        graftwork.load_model("preset:llama3_2_1b")


def test_configurations_by_fairseq2s_names(stand_in: Path) -> None:
    from graftwork_llama import LLaMAConfig, get_llama_model_hub

    hub = get_llama_model_hub()
    assert {"llama2_7b", "llama3_8b", "llama3_2_1b"} <= hub.get_archs()
    config = hub.get_arch_config("llama3_2_1b")
    assert isinstance(config, LLaMAConfig)
    assert (config.model_dim, config.num_layers, config.tied_embeddings) == (2048, 16, True)
    assert hub.maybe_get_arch_config("llama9") is None
    assert hub.get_model_config("llama3_2_1b").model_dim == 2048
    with pytest.raises(UnknownNameError, match="has no architecture 'llama3_2_1c': did you mean llama3_2_1b"):
        hub.get_arch_config("llama3_2_1c")


def test_new_models_and_models_from_a_folder(stand_in: Path) -> None:
    from graftwork_llama import get_llama_model_hub

    hub = get_llama_model_hub()
    shape = hub.create_new_model(hub.get_arch_config("llama3_2_1b"), meta=True)
    assert sum(parameter.numel() for parameter in shape.parameters()) == 1_235_814_400
    config = hub._own(LlamaConfig(**{**SIZES, "max_position_embeddings": 32}))
    fresh = hub.create_new_model(config, dtype=torch.bfloat16)
    assert (fresh.dtype, fresh.config.max_position_embeddings) == (torch.bfloat16, 32)
    reference = AutoModelForCausalLM.from_pretrained(stand_in / "weights")
    for path in (stand_in / "weights", stand_in / "weights" / "model.safetensors"):
        model = hub.load_custom_model(path, config)
        assert model.config.max_position_embeddings == 32
        assert torch.equal(model.lm_head.weight, reference.lm_head.weight)
    assert hub.load_model("llama3_2_1b", config=config).config.max_position_embeddings == 32
    with pytest.raises(ModelError, match="there is no such file or folder"):
        hub.load_custom_model(stand_in / "gone", config)


@pytest.mark.parametrize("pickled", [False, True])
def test_weights_without_a_configuration_beside_them(stand_in: Path, pickled: bool) -> None:
    folder, ids = stand_in / "weights", torch.arange(20)[None]
    theirs = LlamaConfig(**{**SIZES, "rms_norm_eps": 0.5, "hidden_act": "gelu"})
    expected = AutoModelForCausalLM.from_pretrained(folder, config=theirs)
    (folder / "config.json").unlink()
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(expected.bfloat16().state_dict(), folder / "pytorch_model.bin")
    hub = model_hub("llama")
    for config in (theirs, import_module("graftwork_llama").LLaMAConfig.from_transformers(theirs)):
        model = hub.load_custom_model(folder, config, device=torch.device("cpu"))
        assert torch.equal(model(ids).logits, expected(ids).logits)
        assert model.dtype is (torch.bfloat16 if pickled else torch.float32)
    with pytest.raises(ModelError, match=r"there is no config\.json"):
        hub.load_model(folder)


def test_a_file_that_is_not_what_its_folder_is_read_from(stand_in: Path) -> None:
    other = stand_in / "weights" / "average.safetensors"
    other.write_bytes((stand_in / "weights" / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"average.safetensors: its folder is read from model.safetensors; move"):
        model_hub("llama").load_custom_model(other, LlamaConfig(**SIZES))


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("read", ["model.safetensors", "pytorch_model.bin"])
def test_a_card_that_names_another_file_than_its_folder_is_read_from(stand_in: Path, scheme: str, read: str) -> None:
    weights = stand_in / "weights"
    if read != "model.safetensors":
        torch.save(AutoModelForCausalLM.from_pretrained(weights).state_dict(), weights / read)
        (weights / "model.safetensors").unlink()
    torch.save({"tok_embeddings.weight": torch.ones(300, 32)}, weights / "consolidated.00.pth")
    for name in ("consolidated.00.pth", read, "config.json"):
        place = f"{scheme}{weights / name}"
        (stand_in / "cards.yaml").write_text(CARDS.replace("checkpoint: weights", f"checkpoint: {place}"))
        if name == "consolidated.00.pth":
            said = (
                r"^card 'llama3_2_1b' \(.*cards.yaml:1\): checkpoint: model .*consolidated.00.pth: its folder is read"
            )
            with pytest.raises(ModelError, match=f"{said} from {read}; move this file to one of its own"):
                graftwork.load_model("llama3_2_1b")
            with pytest.raises(ModelError, match=f"{said} from {read}"):
                model_hub("llama").load_model("llama3_2_1b", config=LlamaConfig(**SIZES))
        else:
            assert graftwork.load_model("llama3_2_1b").config.hidden_size == 32


def test_a_configuration_of_no_family_or_of_another(stand_in: Path) -> None:
    hub = model_hub("llama")
    for config, text in (
        (SIZES, "config is a dict: give what get_arch_config returns"),
        (MixtralConfig(**SIZES), "config is of model_type 'mixtral'; this is the hub of llama"),
    ):
        for call in (hub.create_new_model, partial(hub.load_custom_model, stand_in / "weights")):
            with pytest.raises(UsageError, match=text):
                call(config)


def test_the_hub_of_mixtral(tmp_path: Path) -> None:
    hub = model_hub("mixtral")
    assert hub.get_archs() == {"mixtral_8x7b"}
    assert hub.get_arch_config("mixtral_8x7b").num_local_experts == 8
    assert {card.model_family for card in hub.iter_cards()} == {"mixtral"}
    config = MixtralConfig(**{**SIZES, "num_local_experts": 3})
    model = hub.create_new_model(config)
    model.save_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    assert torch.equal(hub.load_custom_model(tmp_path, config)(ids).logits, model(ids).logits)


def test_a_card_whose_checkpoint_is_another_than_its_architecture(
    stand_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def notices() -> list[str]:
        caplog.clear()
        with caplog.at_level("INFO", "graftwork.model"):
            assert graftwork.load_model("llama3_2_1b").config.hidden_size == 32
        return [record.getMessage() for record in caplog.records if "model_arch" in record.getMessage()]

    (notice,) = notices()
    assert "model_arch llama3_2_1b is not what its checkpoint says, which counts: " in notice
    assert "hidden_size 32 instead of 2048" in notice
    assert "token_id" not in notice
    file = stand_in / "cards.yaml"
    sizes = {**SIZES, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    sizes |= {"head_dim": 8, "tie_word_embeddings": False}
    override = f"model_config_override: {sizes}".replace("False", "false")
    file.write_text(CARDS.replace("checkpoint: weights\ntokenizer:", f"checkpoint: weights\n{override}\ntokenizer:"))
    assert notices() == [], "a stand-in that says what it changes"
    file.write_text("name: llama3_2_1b\nmodel_arch: gemma_2b\ncheckpoint: weights\n")
    with pytest.raises(ModelError, match="model_arch gemma_2b is a gemma model, and its checkpoint a llama: mend"):
        graftwork.load_model("llama3_2_1b")


def test_an_override_is_near_a_name_of_fairseq2_where_the_family_has_those(stand_in: Path) -> None:
    file = stand_in / "cards.yaml"
    file.write_text(CARDS + "---\nname: odd\nbase: llama3_2_1b\nmodel_config_override: {modeldim: 3}\n")
    said = (
        f"card 'odd' ({file}:19): model_config_override: 'modeldim' is no key of a llama configuration: did you mean "
    )
    hub = model_hub("llama")
    for call in (hub.load_model, hub.get_model_config, graftwork.load_model):
        with pytest.raises(ModelError, match=re.escape(f"{said}model_dim?")):
            call("odd")
    assert any(mistake.startswith(f"{said}model_dim?") for mistake in library().mistakes())


def test_a_hub_has_the_cards_of_its_family(stand_in: Path) -> None:
    hub, tokenizers = model_hub("llama"), tokenizer_hub("llama")
    cards = {card.name: card for card in hub.iter_cards()}
    assert {"llama3_2_1b", "llama3_2_1b_instruct", "llama2_7b"} <= cards.keys()
    assert "elsewhere" not in cards
    assert "gemma_2b" not in {card.name for card in tokenizers.iter_cards()}
    assert hub.load_model(cards["llama3_2_1b"]).config.hidden_size == 32
    assert tokenizers.get_tokenizer_config("llama3_2_1b_instruct").use_eot is True
    with pytest.raises(ModelError, match=r"is of the family gemma; this is the hub of llama"):
        hub.load_model("elsewhere")
    for call in (hub.load_model, hub.get_model_config, tokenizers.load_tokenizer):
        with pytest.raises(UnknownNameError, match="there is no card 'llama3_2_1c': did you mean llama3_2_1b"):
            call("llama3_2_1c")
    assert hub.load_model(str(stand_in / "weights")).config.hidden_size == 32


def test_a_tokenizer_from_a_folder(stand_in: Path) -> None:
    from graftwork_llama import LLaMATokenizerConfig

    hub = tokenizer_hub("llama")
    path = stand_in / "tokens"
    assert hub.load_custom_tokenizer(path, LLaMATokenizerConfig(use_eot=True)).vocab_info.eos_idx == 258
    assert hub.load_tokenizer("llama3_2_1b_instruct", config={"use_eot": False}).vocab_info.eos_idx == 257


# What is shipped


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_hubs(family: str) -> None:
    package = import_module(f"graftwork_{family}")
    models, tokenizers = (getattr(package, f"get_{family}_{kind}_hub")() for kind in ("model", "tokenizer"))
    assert models.family is tokenizers.family is get_registry().families[family]
    arch = sorted(models.get_archs())[0]
    assert models.create_new_model(models.get_arch_config(arch), meta=True).device.type == "meta"


@pytest.fixture(scope="module")
def shipped() -> Any:
    table = get_registry().asset_cards
    return library({"GRAFTWORK_CARD_PATH": "", "XDG_CONFIG_HOME": "/nowhere"}), [table[name].path for name in table]


def test_shipped_cards_have_no_mistakes_and_lead_where_their_presets_say(shipped: Any) -> None:
    cards, folders = shipped
    assert cards.mistakes() == []
    assert {folder.parent.name for folder in folders} == {f"graftwork_{family}" for family in FAMILIES}
    presets = get_registry().presets
    for card in cards.cards():
        assert card.checkpoint.removeprefix("hf://") in presets[card.model_arch].hub_ids, card.name
        assert presets.get_or_none(card.name) in (None, presets[card.model_arch]), card.name


def test_every_published_model_of_a_preset_has_a_card(shipped: Any) -> None:
    cards, _ = shipped
    named = {card.checkpoint.removeprefix("hf://") for card in cards.cards()}
    published = {one for preset in get_registry().presets.values() for one in preset.hub_ids}
    assert published == named


def test_the_name_of_a_preset_is_its_published_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("GRAFTWORK_CARD_PATH", raising=False)
    assert resolve("llama3_2_1b").card.checkpoint == "hf://meta-llama/Llama-3.2-1B"  # type: ignore[union-attr]
    instruct = resolve("llama3_2_1b_instruct").card
    assert instruct is not None
    assert library().tokenizer_of(instruct).options == {"use_eot": True}
