"""torchtune's tokenizer functions of the families: ids and masks of torchtune's and Meta's own tests, and the rules."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from graftwork import ModelParams, build_tokenizer, encode_chat, load_tokenizer, render_chat
from graftwork.chat import find_template
from graftwork.errors import UsageError
from graftwork.messages import ContentItem, Message, Role, Type
from graftwork_gemma.gemma import gemma_tokenizer
from graftwork_llama.llama2 import llama2_tokenizer
from graftwork_llama.llama3 import llama3_tokenizer
from graftwork_mistral.mistral import mistral_tokenizer
from graftwork_phi3.phi3 import phi3_mini_tokenizer
from graftwork_qwen.qwen2 import qwen2_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(os.environ.get("GRAFTWORK_TEST_DATA", "/nowhere"))
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Llama2Tokenizer": llama2_tokenizer,
    "Llama3Tokenizer": llama3_tokenizer,
    "Phi3MiniTokenizer": phi3_mini_tokenizer,
    "GemmaTokenizer": gemma_tokenizer,
    "MistralTokenizer": mistral_tokenizer,
    "Qwen2Tokenizer": qwen2_tokenizer,
}
needs_data = pytest.mark.skipif(not ROOT.is_dir(), reason="GRAFTWORK_TEST_DATA is not set: the vectors are not here")


def rows(name: str) -> list[dict[str, Any]]:
    file = ROOT / "vectors/chat_tokens" / name
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


# torchtune's own tests


@needs_data
@pytest.mark.parametrize("row", rows("torchtune.jsonl"), ids=lambda row: row["test"].rpartition("::")[2])
def test_a_vector_of_torchtune(row: dict[str, Any]) -> None:
    files = [ROOT / "tokenizers/small" / Path(name).name for name in row["tokenizer_file"].split(" + ")]
    prompt = None if row["prompt_template"] == "NoneType" else row["prompt_template"]
    tokenizer = FUNCTIONS[row["tokenizer"]](*files, max_seq_len=row["max_seq_len"], prompt_template=prompt)
    flags = {name: value for name, value in row["kwargs"].items() if name != "args"}
    ids, mask = tokenizer.tokenize_messages(row["messages"], **flags)
    assert ids == row["tokens"]
    assert mask == row["mask"]


@needs_data
def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"llama3_tokenizer: .* is a file for sentencepiece, .* are for tiktoken or hf"
    ):
        llama3_tokenizer(ROOT / "tokenizers/llama2/tokenizer.model")
    with pytest.raises(UsageError, match=r"llama2_tokenizer: .* is a file for tiktoken, .* for sentencepiece or hf"):
        llama2_tokenizer(ROOT / "tokenizers/llama3/tokenizer.model")


@needs_data
def test_metas_own_expectations() -> None:
    tokenizer = llama3_tokenizer(ROOT / "tokenizers/llama3/tokenizer.model")
    text, message, prompt = rows("llama3_upstream.jsonl")
    assert tokenizer.encode(text["text"], text["bos"], text["eos"]) == text["tokens"]
    assert tokenizer.tokenize_message(message["message"]) == message["tokens"]
    asked = [*prompt["messages"], {"role": "assistant", "content": ""}]
    assert tokenizer.tokenize_messages(asked, add_end_tokens=False)[0] == prompt["tokens"]
    assert tokenizer.decode(prompt["tokens"]) == "This is a test sentence.This is a response."
    assert tokenizer.decode(prompt["tokens"], skip_special_tokens=False).startswith(
        "<|begin_of_text|><|start_header_id|>"
    )


@needs_data
def test_how_many_vectors_that_were() -> None:
    assert (len(rows("torchtune.jsonl")), len(rows("llama3_upstream.jsonl"))) == (10, 3)


# The rules, by hand


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model in which each letter is a piece, with the ids of Llama 2's special tokens."""
    from sentencepiece import SentencePieceTrainer

    file = tmp_path_factory.mktemp("letters") / "tokenizer.model"
    with file.open("wb") as opened:
        SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d [INST] / <<SYS>>"] * 10),
            model_writer=opened,
            model_type="bpe",
            vocab_size=290,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=3,
        )
    return file


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bytes alone, as tiktoken ranks: an id is a byte."""
    import base64

    file = tmp_path_factory.mktemp("bytes") / "tokenizer.model"
    file.write_text("".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)))
    return file


TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


def shown(tokenizer: Any, messages: Any = TURNS, **flags: Any) -> str:
    """The tokens of a conversation; those that are trained in braces."""
    ids, mask = tokenizer.tokenize_messages(messages, **flags)
    texts = {index: text for text, index in tokenizer.special_tokens.items()}
    piece = chr if tokenizer.base.impl == "tiktoken" else tokenizer.base.codec.processor.id_to_piece
    parts = [texts[index] if index in texts else piece(index) for index in ids]
    return "".join(part if masked else f"{{{part}}}" for part, masked in zip(parts, mask, strict=True))


def test_llama_2_and_mistral_put_their_marks_around_the_user(model: Path) -> None:
    # torchtune encodes the marks apart from the text, each with the space that SentencePiece puts before it.
    expected = "<s>▁[INST]▁a▁▁[/INST]{▁b}{</s>}<s>▁[INST]▁c▁▁[/INST]{▁d}{</s>}"
    assert joined(shown(llama2_tokenizer(model))) == expected
    assert joined(shown(mistral_tokenizer(model))) == expected
    assert joined(shown(llama2_tokenizer(model), add_end_tokens=False)) == expected.replace("{</s>}", "")
    assert joined(shown(llama2_tokenizer(model), add_start_tokens=False)) == expected.replace("<s>", "")
    assert joined(shown(llama2_tokenizer(model, prompt_template=None))) == "<s>▁a{b}{</s>}<s>▁c{d}{</s>}"
    assert joined(shown(gemma_tokenizer(model))) == "<s>▁a{b}{</s>}<s>▁c{d}{</s>}"


def joined(text: str) -> str:
    """Neighbouring letters of a trained text are one thing here."""
    return text.replace("{▁}{b}", "{▁b}").replace("{▁}{d}", "{▁d}")


def test_the_system_message(model: Path) -> None:
    messages = [{"role": "system", "content": "d"}, *TURNS[:2]]
    assert "<<SYS>>" in tokenizer_text(llama2_tokenizer(model), messages)
    with pytest.raises(UsageError, match="this family's prompt has no place for a system message"):
        mistral_tokenizer(model).tokenize_messages(messages)
    assert tokenizer_text(gemma_tokenizer(model), messages).startswith("<s>▁d")


def tokenizer_text(tokenizer: Any, messages: Any) -> str:
    return shown(tokenizer, messages).replace("{", "").replace("}", "").replace("<0x0A>", "\n")


def test_llama_3(ranks: Path) -> None:
    tokenizer = llama3_tokenizer(ranks)
    user = "<|start_header_id|>user<|end_header_id|>\n\n"
    reply = "".join(f"{{{part}}}" for part in ("<|start_header_id|>", *"assistant", "<|end_header_id|>", "\n", "\n"))
    whole = f"<|begin_of_text|>{user}a<|eot_id|>{reply}{{b}}{{<|eot_id|>}}"
    assert shown(tokenizer, TURNS[:2]) == f"{whole}<|end_of_text|>"
    assert shown(tokenizer, TURNS[:2], add_end_tokens=False) == whole.removesuffix("{<|eot_id|>}")
    assert shown(tokenizer, TURNS[:2], add_eos=False) == whole.removesuffix("{<|eot_id|>}")
    call = [TURNS[0], {"role": "assistant", "content": " b ", "ipython": True, "eot": False}]
    assert shown(tokenizer, call).endswith(f"{reply}{{<|python_tag|>}}{{b}}{{<|eom_id|>}}<|end_of_text|>")
    seen = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "content": "a"}]}]
    assert shown(tokenizer, seen) == f"<|begin_of_text|>{user}<|image|>a<|eot_id|><|end_of_text|>"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (128_000, 128_001, 128_004)
    assert (tokenizer.stop_tokens, tokenizer.vocab_size) == ([128_001, 128_009, 128_008], 128_257)


def test_phi_3(model: Path) -> None:
    tokenizer = phi3_mini_tokenizer(model)
    assert tokenizer_text(tokenizer, TURNS) == (
        "<s><|user|>▁\na<|end|>▁\n<|assistant|>▁\nb<|end|>▁\n<|user|>▁\nc<|end|>▁\n<|assistant|>▁\nd<|end|>▁\n"
    )
    ended = tokenizer.tokenize_messages(TURNS, add_end_tokens=True)[0]
    assert (ended.count(32_000), ended.count(tokenizer.bos_id), tokenizer.pad_id) == (2, 2, 32_000)
    system = [{"role": "system", "content": "a"}, *TURNS]
    assert 32_006 in tokenizer.tokenize_messages(system)[0]
    assert 32_006 not in tokenizer.tokenize_messages(system, ignore_system_prompt=True)[0]
    with pytest.raises(UsageError, match="role 'ipython' is not known; use system, user, assistant"):
        tokenizer.tokenize_messages([{"role": "ipython", "content": "a"}])


def test_what_is_cut_off_ends_in_eos(ranks: Path, model: Path) -> None:
    for tokenizer in (llama3_tokenizer(ranks), llama2_tokenizer(model)):
        whole = tokenizer.tokenize_messages(TURNS)
        for limit in range(1, len(whole[0])):
            ids, mask = tokenizer.tokenize_messages(TURNS, limit)
            assert (ids, len(mask)) == ([*whole[0][: limit - 1], tokenizer.eos_id], limit)
        ids, _ = tokenizer.tokenize_messages(TURNS, 5, add_end_tokens=False)
        assert ids == whole[0][:5]
    left = llama3_tokenizer(ranks, max_seq_len=7, truncation_type="left")
    assert left.tokenize_messages(TURNS[:1])[0] == llama3_tokenizer(ranks).tokenize_messages(TURNS[:1])[0][-7:]


def test_special_tokens_in_a_message_stay_text(ranks: Path, model: Path) -> None:
    messages = [{"role": "user", "content": "a<|eot_id|></s><|end|>"}, {"role": "assistant", "content": "b"}]
    ids, _ = llama3_tokenizer(ranks).tokenize_messages(messages)
    assert ids.count(128_009) == 2
    assert phi3_mini_tokenizer(model).tokenize_messages(messages)[0].count(32_007) == 2
    assert llama2_tokenizer(model).tokenize_messages(messages)[0].count(2) == 1


def test_messages_in_other_shapes(ranks: Path) -> None:
    tokenizer = llama3_tokenizer(ranks)
    ours = [Message(role=Role.USER, content=[ContentItem(type=Type.TEXT, content="a")])]
    expected = tokenizer.tokenize_messages(TURNS[:1])
    assert tokenizer.tokenize_messages(ours) == expected
    assert tokenizer({"messages": ours, "id": 3}) == {"tokens": expected[0], "mask": expected[1], "id": 3}
    assert tokenizer.tokenize_messages([{"role": "user", "content": "a", "masked": False}])[1].count(False) > 0
    with pytest.raises(UsageError, match=r"only the assistant calls tools \(ipython\), not the role 'user'"):
        tokenizer.tokenize_messages([{"role": "user", "content": "a", "ipython": True}])
    with pytest.raises(UsageError, match="content of type 'audio' has no token here"):
        tokenizer.tokenize_messages([{"role": "user", "content": [{"type": "audio"}]}])
    with pytest.raises(UsageError, match="there is no message to tokenize"):
        tokenizer.tokenize_messages([])


@pytest.mark.parametrize(
    ("given", "shown"),
    [("x", "'x'"), (["x"], "'x'"), ({"role": "user", "content": "a"}, '"{'), ([{"content": "a"}], '"{'), (5, "'5'")],
)
def test_what_is_no_list_of_messages(ranks: Path, given: Any, shown: str) -> None:
    said = rf"takes a list of messages, each with role and content, such as \{{.*\}}; given was {shown}"
    with pytest.raises(UsageError, match=said):
        llama3_tokenizer(ranks).tokenize_messages(given)


@pytest.mark.parametrize(("end", "name"), [("<|end|>", "phi3-instruct"), ("<|fin|>", "default")])
def test_without_a_template_all_use_the_familys_where_it_fits(model: Path, tmp_path: Path, end: str, name: str) -> None:
    hf = load_tokenizer(model).hf
    hf.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", end]})
    hf.save_pretrained(tmp_path)
    built = build_tokenizer(ModelParams(model_name=str(tmp_path), family="phi3"))
    expected = encode_chat(TURNS, tokenizer=built)
    assert built.chat_template == find_template(name).source
    ours = load_tokenizer(tmp_path, family="phi3")
    for tokenizer in (phi3_mini_tokenizer(tmp_path), ours):
        assert encode_chat(TURNS, tokenizer=tokenizer) == expected
        assert render_chat(TURNS, tokenizer=tokenizer) == render_chat(TURNS, tokenizer=built)
    assert render_chat(TURNS, tokenizer=ours, template="chatml").startswith("<s><|im_start|>")


@needs_data
def test_llama_3_without_a_template() -> None:
    file = ROOT / "tokenizers/llama3/tokenizer.model"
    expected = encode_chat(TURNS, tokenizer=llama3_tokenizer(file), template="llama3-instruct")
    built = build_tokenizer(ModelParams(model_name=str(file), tokenizer_name=str(file), family="llama"))
    for tokenizer in (llama3_tokenizer(file), load_tokenizer(file, family="llama"), built):
        assert encode_chat(TURNS, tokenizer=tokenizer) == expected


def test_prompts_by_name(model: Path) -> None:
    named = llama2_tokenizer(model, prompt_template="torchtune.models.llama2.Llama2ChatTemplate")
    assert shown(named) == shown(llama2_tokenizer(model))
    own = llama2_tokenizer(model, prompt_template={"user": ("c", "d")})
    assert tokenizer_text(own, TURNS[:1]) == "<s>▁c▁a▁d"
    with pytest.raises(
        UsageError, match=r"prompt_template 'os\.path' is not known here; give Llama2ChatTemplate, None"
    ):
        llama2_tokenizer(model, prompt_template="os.path")
    with pytest.raises(UsageError, match="llama2_tokenizer: truncation_type 'up' is not known; use right or left"):
        llama2_tokenizer(model, truncation_type="up")


def test_qwen_reads_a_bare_vocabulary_with_merges(tmp_path: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    (tmp_path / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate([*letters, "ab"])}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = qwen2_tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert tokenizer.special_tokens == {"<|endoftext|>": 257, "<|im_start|>": 258, "<|im_end|>": 259}
    ids, mask = tokenizer.tokenize_messages([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "b"}])
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    )
    assert 256 in ids
    assert (ids[-1], mask[-1], tokenizer.bos_id, tokenizer.pad_id) == (259, False, None, 257)
    assert tokenizer.decode(ids) == "ab\nb"


def test_encode_and_decode(ranks: Path, model: Path) -> None:
    tokenizer = llama3_tokenizer(ranks)
    assert tokenizer.encode("ab") == [128_000, *b"ab", 128_001]
    assert tokenizer.encode("ab", add_bos=False, add_eos=False) == list(b"ab")
    assert tokenizer.decode([*b"ab", 128_001, *b"cd"]) == "ab"
    assert tokenizer.decode([*b"ab", 128_001, *b"cd"], truncate_at_eos=False) == "abcd"
    spm = llama2_tokenizer(model)
    assert spm.decode(spm.encode("a b")) == "a b"
    spaced, bare = spm.encode("a", False, False), spm.encode("a", False, False, trim_leading_whitespace=True)
    piece = spm.base.codec.processor.id_to_piece
    assert ("".join(map(piece, spaced)), "".join(map(piece, bare))) == ("▁a", "a")
    assert spm.hf("a b", add_special_tokens=False)["input_ids"] == spm.encode_ordinary("a b")
    assert (spm.control_id("</s>"), tokenizer.control_id("<|eot_id|>")) == (2, 128_009)
