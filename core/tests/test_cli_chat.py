"""``graft chat``: what the model sees, what the commands do, and what happens when it becomes too much."""

from __future__ import annotations

import io
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from graftwork.cli.chat import Session, converse
from graftwork.config import GenerationParams
from graftwork.errors import ModelError
from graftwork.inference import Completion

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


class Parrot:
    """An engine whose tokens are words, and which answers with what it was asked last, in pieces."""

    def __init__(self, context_length: int | None = None, interrupt_after: int | None = None) -> None:
        self.context_length = context_length
        self.interrupt_after = interrupt_after
        self.seen: list[list[dict]] = []
        self.closed = 0

    def count(self, prompt) -> int:
        return sum(len(message["content"].split()) for message in prompt)

    def stream(self, prompt, params):
        if self.context_length and self.count(prompt) >= self.context_length:
            raise ModelError("the prompt is too long: shorten it")
        self.seen.append([dict(message) for message in prompt])
        return ParrotStream(self, prompt[-1]["content"].split(), params)


class ParrotStream:
    def __init__(self, engine: Parrot, words: list[str], params) -> None:
        self.engine = engine
        self.words = words[: params.max_new_tokens]
        reason = "length" if len(words) > params.max_new_tokens else "stop"
        self.completion = Completion(
            text=" ".join(self.words), token_ids=tuple(range(len(self.words))), prompt_tokens=1, finish_reason=reason
        )
        self.said = 0

    def __iter__(self):
        return self

    def __next__(self) -> str:
        if self.said == self.engine.interrupt_after:
            raise KeyboardInterrupt
        if self.said == len(self.words):
            raise StopIteration
        self.said += 1
        return self.words[self.said - 1] + " "

    def close(self) -> None:
        self.engine.closed += 1


@pytest.fixture
def talk(monkeypatch, capsys):
    def run(*lines: str, engine: Parrot | None = None, limit: int = 20, **fields) -> tuple[Session, str, str]:
        session = Session(engine=engine or Parrot(), params=GenerationParams(max_new_tokens=limit), **fields)
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        converse(session)
        out, err = capsys.readouterr()
        return session, out, err

    return run


def contents(messages: list[dict]) -> list[str]:
    return [f"{message['role']}: {message['content'].strip()}" for message in messages]


def test_the_model_sees_the_conversation_so_far(talk):
    session, out, _ = talk("hello there", "", "and now", system="be kind")
    assert contents(session.engine.seen[1]) == [
        "system: be kind", "user: hello there", "assistant: hello there", "user: and now",
    ]  # fmt: skip
    assert out == "hello there \nand now \n"
    assert session.engine.closed == 2


def test_commands(talk):
    session, out, err = talk(
        "one", "/system be brief", "two", "/reset", "three", "/system", "four", "/help", "/what", "/quit", "five"
    )
    seen = [contents(messages) for messages in session.engine.seen]
    assert seen[1] == ["system: be brief", "user: one", "assistant: one", "user: two"]
    assert seen[2] == ["system: be brief", "user: three"]
    assert seen[3] == ["user: three", "assistant: three", "user: four"]
    assert len(seen) == 4
    assert "there is no command /what" in err
    assert err.count("/save FILE") == 2
    assert "five" not in out


def test_save_writes_what_can_be_trained_on_and_never_over_a_file(talk, tmp_path):
    file = tmp_path / "talk.jsonl"
    _, _, err = talk("grüezi", f"/save {file}", "more", f"/save {file}", "/save", f"/save {tmp_path}/no/x", system="s")
    saved = json.loads(file.read_text("utf-8"))
    assert contents(saved["messages"]) == ["system: s", "user: grüezi", "assistant: grüezi"]
    assert f"(2 messages saved in {file})" in err
    assert f"{file} exists already: give a new file" in err
    assert "/save FILE: give a file" in err
    assert "No such file or directory" in err


def test_ctrl_c_stops_the_answer_and_not_the_program(talk):
    engine = Parrot(interrupt_after=2)
    session, out, err = talk("one two three four", "five", engine=engine)
    assert contents(session.turns) == [
        "user: one two three four",
        "assistant: one two",
        "user: five",
        "assistant: five",
    ]
    assert "(stopped)" in err
    assert engine.closed == 2
    assert out == "one two \nfive \n"


def test_ctrl_c_at_the_prompt_says_how_to_leave(talk, monkeypatch):
    given = iter([KeyboardInterrupt, "hello", EOFError])

    def line(_):
        value = next(given)
        if isinstance(value, str):
            return value
        raise value

    monkeypatch.setattr("builtins.input", line)
    _, out, err = talk()
    assert "Ctrl-D or /quit leaves" in err
    assert out == "hello \n"


def test_an_answer_that_is_cut_off_is_said_to_be(talk):
    _, out, err = talk("one two three", limit=2)
    assert "(cut off after 2 tokens)" in err
    assert out == "one two \n"


def test_the_oldest_exchanges_are_left_out_with_a_notice(talk):
    words = [f"w{at} x y" for at in range(5)]
    session, _, err = talk(*words, "/reset", "fresh", engine=Parrot(context_length=16), limit=4, system="stay")
    last = contents(session.engine.seen[4])
    assert last[0] == "system: stay"
    assert last[1:] == ["user: w3 x y", "assistant: w3 x y", "user: w4 x y"]
    assert (
        "(the conversation has outgrown the model's 16 tokens: its 2 oldest messages are left out from here on)" in err
    )
    assert all(Parrot().count(messages) <= 12 for messages in session.engine.seen)
    assert contents(session.engine.seen[5]) == ["system: stay", "user: fresh"]


def test_a_message_that_does_not_fit_at_all_is_taken_back(talk):
    session, out, err = talk("a " * 30, "short", engine=Parrot(context_length=16), limit=4)
    assert "the prompt is too long: shorten it" in err
    assert contents(session.turns) == ["user: short", "assistant: short"]
    assert out == "short \n"


# The command, on a model


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    def build(template: str | None) -> str:
        folder = tmp_path_factory.mktemp("model")
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {"<s>": 0, "</s>": 1, **{letter: at + 2 for at, letter in enumerate(letters)}}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
        fast.chat_template = template
        fast.save_pretrained(folder)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        return str(folder)

    return build


def test_a_conversation_is_piped_through_a_model(graft, save):
    model = save(TEMPLATE)
    options = ("--temperature", 0, "--max-new-tokens", 6)
    code, out, err = graft("chat", model, *options, piped="hi\n/reset\nhi\n/quit\n")
    assert code == 0, err
    asked = graft("generate", model, "hi", *options)[1]
    assert out == asked * 2


def test_chat_needs_a_template_that_was_saved_or_asked_for(graft, save, tmp_path):
    model = save(None)
    code, _, err = graft("chat", model, piped="hi\n")
    assert code == 2
    assert "has no chat template saved with it" in err
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATE)
    assert graft("chat", model, "--chat-template", file, "--max-new-tokens", 2, piped="hi\n")[0] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "no model: give MODEL"),
        (("--model-uid", "u"), "no installed plugin provides a server client"),
        (("m", "--model-uid", "u"), "are both given: give one"),
    ],
)
def test_exactly_one_of_model_and_model_uid(graft, args, message):
    code, _, err = graft("chat", *args)
    assert code == 2
    assert message in err
