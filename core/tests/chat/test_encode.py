"""Ids and masks against transformers', with small tokenizers and real templates."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from graftwork import encode_chat
from graftwork.chat import check_turns, encode_conversation
from graftwork.errors import DataError, UsageError
from graftwork.tokenizers import stop_token_ids

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.chat import EncodedChat

HELLO = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "I am fine"}]
TWICE = [*HELLO, {"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "I am fine"}]
MARKED = ["llama3_training", "phi3_training", "qwen2_5_training", "gemma_training"]
UNMARKED = ["trl/llama3.jinja", "trl/llama3_1.jinja", "trl/qwen2_5.jinja", "chujiezheng/llama-2-chat.jinja"]
PLAIN = "{% for m in messages %}{{ m.role + ' ' }}{{ m.content + eos_token }}{% endfor %}"


def learnt(encoded: EncodedChat, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(encoded.input_ids[start:end]) for start, end in encoded.turns]


def with_trained_text(encoded: EncodedChat, tokenizer: Any) -> str:
    ids = [index for index, trained in zip(encoded.input_ids, encoded.trained, strict=True) if trained]
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("name", MARKED)
def test_ids_and_mask_equal_transformers(
    data: Path, tokenizer: Any, conversation: list[dict[str, str]], name: str
) -> None:
    if name == "gemma_training" and conversation[0]["role"] == "system":
        pytest.skip("Gemma has no system role")
    source = (data / f"templates/trl/{name}.jinja").read_text()
    encoded = encode_conversation(conversation, tokenizer=tokenizer, template=source)
    expected = tokenizer.apply_chat_template(
        conversation, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.input_ids == expected["input_ids"]
    assert [int(trained) for trained in encoded.trained] == expected["assistant_masks"]
    assert sum(end - start for start, end in encoded.turns) == sum(encoded.trained)


@pytest.mark.parametrize("tokenizer_name", ["phi3", "llama2", "qwen2.5"])
def test_ids_and_mask_with_real_tokenizers_and_conversations(data: Path, tokenizer_name: str) -> None:
    from graftwork import ModelParams, build_tokenizer

    real = build_tokenizer(ModelParams(model_name=str(data / "tokenizers" / tokenizer_name), chat_template="chatml"))
    rows = json.loads((data / "datasets/instruct/alpaca_en_demo.0-499.json").read_text())[:60]
    for row in rows:
        messages = [
            {"role": "user", "content": row["instruction"] + row["input"]},
            {"role": "assistant", "content": row["output"]},
        ]
        encoded = encode_conversation(messages, tokenizer=real)
        expected = real.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert encoded.input_ids == expected["input_ids"]
        assert [int(trained) for trained in encoded.trained] == expected["assistant_masks"]


@pytest.mark.parametrize("name", ["default", "chatml"])
def test_our_templates_have_transformers_ids_and_mask(
    tokenizer: Any, conversation: list[dict[str, str]], name: str
) -> None:
    from graftwork import build_chat_template

    encoded = encode_conversation(conversation, tokenizer=tokenizer, template=name)
    expected = tokenizer.apply_chat_template(
        conversation, chat_template=build_chat_template(name), return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.input_ids == expected["input_ids"]
    assert [int(trained) for trained in encoded.trained] == expected["assistant_masks"]


@pytest.mark.parametrize("file", UNMARKED)
def test_unmarked_templates_train_what_follows_the_prompt(
    data: Path, llama3_tokenizer: Any, conversation: list[dict[str, str]], file: str
) -> None:
    source = (data / "templates" / file).read_text()
    encoded = encode_conversation(conversation, tokenizer=llama3_tokenizer, template=source)
    ids = llama3_tokenizer.apply_chat_template(conversation, chat_template=source, return_dict=False)
    assert encoded.input_ids == ids
    stop = {"llama3": "<|eot_id|>", "qwen2": "<|im_end|>", "llama-": "<|end_of_text|>"}
    ending = next(text for part, text in stop.items() if part in file)
    answers = [message["content"] + ending for message in conversation if message["role"] == "assistant"]
    texts = learnt(encoded, llama3_tokenizer)
    # Templates differ in the spaces that they trim and put around a text.
    assert ["".join(text.split()) for text in texts] == ["".join(answer.split()) for answer in answers]


def test_marks_and_prefixes_agree(data: Path, llama3_tokenizer: Any, conversation: list[dict[str, str]]) -> None:
    marked, plain = ((data / f"templates/trl/llama3{kind}.jinja").read_text() for kind in ("_training", ""))
    assert encode_conversation(conversation, tokenizer=llama3_tokenizer, template=marked) == encode_conversation(
        conversation, tokenizer=llama3_tokenizer, template=plain
    )


def test_the_default_template_trains_answers_and_their_end(tokenizer: Any) -> None:
    encoded = encode_conversation(TWICE, tokenizer=tokenizer, template="default")
    assert learnt(encoded, tokenizer) == [" I am fine</s>", " I am fine</s>"]
    assert with_trained_text(encoded, tokenizer) == " I am fine</s> I am fine</s>"
    assert encoded.input_ids[:2] == [tokenizer.bos_token_id, tokenizer.encode("USER")[0]]


def test_only_the_final_turn(tokenizer: Any) -> None:
    encoded = encode_conversation(TWICE, tokenizer=tokenizer, template="default", train_target="final_assistant_turn")
    assert len(encoded.turns) == 1
    assert encoded.turns[0][1] == len(encoded.input_ids)
    assert with_trained_text(encoded, tokenizer) == " I am fine</s>"
    with pytest.raises(UsageError, match="train_target: 'all' is not known; use all_assistant_turns"):
        encode_conversation(TWICE, tokenizer=tokenizer, template="default", train_target="all")


def test_a_prompt_tokenizes_as_the_beginning_of_its_conversation(tokenizer: Any) -> None:
    from graftwork import render_chat

    for name in ("default", "chatml"):
        whole = encode_conversation(HELLO, tokenizer=tokenizer, template=name)
        prompt = render_chat(HELLO[:1], template=name, tokenizer=tokenizer, add_generation_prompt=True)
        begun = tokenizer.encode(prompt, add_special_tokens=False)
        assert whole.input_ids[: whole.turns[0][0]] == begun


def test_a_tokenizer_that_truncates_and_pads_is_not_let(tokenizer: Any) -> None:
    expected = encode_conversation(HELLO, tokenizer=tokenizer, template="default")
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert encode_conversation(HELLO, tokenizer=tokenizer, template="default") == expected


def test_marks_inside_a_macro_are_still_right(tokenizer: Any) -> None:
    template = (
        "{% macro said(m) %}{{ m.role + ' ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content + eos_token }}{% endif %}{% endmacro %}"
        "{% for m in messages %}{{ said(m) }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
    )
    encoded = encode_conversation(
        HELLO,
        tokenizer=tokenizer,
        template=template.replace("+ ' '", "+ '\n'").replace("'assistant '", "'assistant\n'"),
    )
    assert learnt(encoded, tokenizer) == ["I am fine</s>"]


def test_a_conversation_without_an_answer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no assistant turn to train on, only user"):
        encode_conversation(HELLO[:1], tokenizer=tokenizer, template="default")


def test_an_answer_that_is_marked_and_not_written_has_nothing_to_train(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content.rstrip(' ') }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    blank = [HELLO[0], {"role": "assistant", "content": "  "}]
    ids, trained = encode_chat(blank, tokenizer=tokenizer, template=template)
    assert ids == tokenizer(HELLO[0]["content"], add_special_tokens=False)["input_ids"]
    assert not any(trained)
    with pytest.raises(DataError, match=r"writes nothing of the assistant's answer, which is white space only .* text"):
        encode_conversation(blank, tokenizer=tokenizer, template=template)
    # Marks that lie elsewhere than the text do not mark it
    elsewhere = template.replace("{{ m.content.rstrip(' ') }}{% endgeneration %}", "{% endgeneration %}{{ m.content }}")
    assert any(encode_chat([*HELLO[:1], {**HELLO[1], "content": "you"}], tokenizer=tokenizer, template=elsewhere)[1])


def test_a_dropped_role_is_refused(tokenizer: Any) -> None:
    template = "{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="drops the tool message number 2"):
        encode_conversation(
            [HELLO[0], {"role": "tool", "content": "42 degrees"}, HELLO[1]], tokenizer=tokenizer, template=template
        )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        # Earlier turns change when later ones are there
        ("{{ messages | length }}" + PLAIN, "the whole goes on otherwise"),
        # The prompt ends in a space that belongs to the answer's first token
        (PLAIN + "{% if add_generation_prompt %}assistant {% endif %}", "merges with the prompt before it"),
        (PLAIN + "{% if add_generation_prompt %}{{ raise_exception('none') }}{% endif %}", "refuses the conversation"),
    ],
)
def test_turns_that_cannot_be_told_are_refused(tokenizer: Any, template: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        encode_conversation([HELLO[0], {"role": "assistant", "content": "you"}], tokenizer=tokenizer, template=template)
    assert "Use a template with the marks" in str(caught.value)


def test_an_answer_without_a_question_needs_marks(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="there is no message before it"):
        encode_conversation(HELLO[1:], tokenizer=tokenizer, template=PLAIN)


def test_two_bos_tokens_are_refused(tokenizer: Any) -> None:
    template = "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    with pytest.raises(DataError, match="begins with two <s> tokens"):
        encode_conversation(
            [{"role": "assistant", "content": "<s>Hello"}],
            tokenizer=tokenizer,
            template=template,
            special_tokens_in_content="allow",
        )


def test_a_slow_tokenizer_is_refused() -> None:
    slow = SimpleNamespace(special_tokens_map={})
    with pytest.raises(UsageError, match="SimpleNamespace is not a fast tokenizer"):
        encode_conversation(HELLO, tokenizer=slow, template="default")


def test_every_turn_ends_in_a_stop_token(tokenizer: Any) -> None:
    encoded = encode_conversation(TWICE, tokenizer=tokenizer, template="default")
    stops = stop_token_ids(tokenizer, template="default")
    assert check_turns(encoded, stops) == encoded
    assert {encoded.input_ids[last] for last in encoded.ends} == stops
    with pytest.raises(DataError, match=r"ends in the token 1, which is no stop token \(99\).*learn to stop"):
        check_turns(encoded, {99})


def test_a_turn_without_an_end_is_refused(tokenizer: Any) -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    encoded = encode_conversation(HELLO, tokenizer=tokenizer, template=template)
    with pytest.raises(DataError, match="no stop token"):
        check_turns(encoded, stop_token_ids(tokenizer))


def test_white_space_after_the_stop_is_not_learnt(data: Path, tokenizer: Any) -> None:
    source = (data / "templates/trl/qwen2_5_training.jinja").read_text()
    encoded = encode_conversation(HELLO, tokenizer=tokenizer, template=source)
    assert with_trained_text(encoded, tokenizer) == "\nI am fine<|im_end|>\n"
    checked = check_turns(encoded, {tokenizer.convert_tokens_to_ids("<|im_end|>")})
    assert with_trained_text(checked, tokenizer) == "\nI am fine<|im_end|>"
    assert (checked.input_ids, checked.turns) == (encoded.input_ids, encoded.turns)
