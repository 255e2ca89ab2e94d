"""``check_template``: for each rule a template that breaks it, and some that are as they should be."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from graftwork import load_tokenizer
from graftwork.chat.check import RULES, check_template
from graftwork.registry import get_registry

MARKED = "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
GOOD = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}"
    f"{MARKED}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED = GOOD.replace("{% generation %}", "").replace("{% endgeneration %}", "")
LAST_ONLY = GOOD.replace(
    MARKED, "{% if loop.last %}" + MARKED + "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}"
)


def change(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


WRONG = {
    "never renders": (
        "{{ raise_exception('not today') }}",
        "rendered",
        r"refuses the conversation \(user assistant\): not today",
    ),
    "drops the system message": (
        "{% for message in messages if message.role != 'system' %}" + GOOD.partition("messages %}")[2],
        "dropped",
        "drops the system message number 1 without a word; choose a template that renders the role 'system'",
    ),
    "counts the messages": (
        change("{{ bos_token }}", "{{ bos_token }}{{ messages | length }}"),
        "prefix",
        "a longer conversation does not begin as the shorter one did: .* becomes .* train on the last answer only",
    ),
    "shortens earlier answers": (
        change(
            "message.content + '<|im_end|>' }}{% endg",
            "(message.content if loop.last else message.content | replace(' by', '')) + '<|im_end|>' }}{% endg",
        ),
        "prefix",
        r"'by train\..*' becomes 'train\..*'",
    ),
    "asks with another header": (
        change("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant: ' }}"),
        "prompt",
        r"the generation prompt ends in ': ', where the conversation has '\\nAn hour by train.*write both the same",
    ),
    "has no generation prompt": (
        change("{{ '<|im_start|>assistant\n' }}", ""),
        "marks",
        r"begins 11 tokens after the generation prompt ends: the model has to write them",
    ),
    "lets the header join the answer": (
        GOOD.replace("message.role + '\n'", "message.role + ':'").replace("assistant\n", "assistant:"),
        "prompt",
        r"ends in the tokens : \(\d+\), but in training they are :A \(\d+\) n .*: the tokenizer joins",
    ),
    "marks one answer of two": (LAST_ONLY, "marks", r"marks 1 of 2 answers: put it around what each assistant message"),
    "marks the header": (
        change("{{ '<|im_start|>' + message.role + '\n' }}", "")
        .replace(
            MARKED,
            "{% generation %}{{ '<|im_start|>assistant\n' + message.content + '<|im_end|>' }}{% endgeneration %}",
        )
        .replace("{% else %}{{ mess", "{% else %}{{ '<|im_start|>' + message.role + '\n' + mess"),
        "marks",
        "begins 11 tokens before the answer does: the model would learn to write its own prompt",
    ),
    "marks too late": (
        change("{% generation %}{{ message.content", "{{ message.content[:3] }}{% generation %}{{ message.content[3:]"),
        "marks",
        "begins 3 tokens after the generation prompt ends",
    ),
    "never stops": (
        change("{{ message.content + '<|im_end|>' }}{% endgeneration %}", "{{ message.content }}{% endgeneration %}"),
        "stop",
        r"a trained turn ends in \. \(\d+\), which is no stop token \(<\|im_end\|> \(\d+\)\): .* inside \{% gen",
    ),
    "stops outside of the mark": (
        change("+ '<|im_end|>' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>' }}"),
        "stop",
        "the model would not learn to stop",
    ),
    "begins twice": (
        change("{{ bos_token }}", "{{ bos_token + bos_token }}"),
        "doubled",
        r"the token <s> \(\d+\) stands twice in a row",
    ),
    "ends twice": (
        change(MARKED, MARKED.replace("<|im_end|>", "<|im_end|><|im_end|>")),
        "doubled",
        r"<\|im_end\|> \(\d+\) stands twice",
    ),
    "trains padding": (
        change(MARKED, MARKED.replace("+ '<|im_end|>'", "+ '<pad><|im_end|>'")),
        "padding",
        r"the pad token <pad> \(\d+\) is trained: take it out",
    ),
    "writes a token that is none": (
        change("'<|im_start|>' + message.role", "'<|turn|><|im_start|>' + message.role"),
        "vocabulary",
        r"has no token <\|turn\|>, which the template writes: it would fall apart into several",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_template_that_breaks_a_rule(tokenizer: Any, what: str) -> None:
    source, rule, message = WRONG[what]
    report = check_template(source, tokenizer)
    assert not report.ok
    said = [violation.message for violation in report.violations if violation.rule == rule]
    assert said, report.violations
    assert any(re.search(message, text, re.S) for text in said), said


def test_every_rule_is_broken_by_one_of_them() -> None:
    assert {rule for _, rule, _ in WRONG.values()} == set(RULES)


@pytest.mark.parametrize("source", [GOOD, UNMARKED, "chatml"])
def test_a_template_that_keeps_them_all(tokenizer: Any, source: str) -> None:
    report = check_template(source, tokenizer)
    assert report.violations == ()
    assert report.conversations == ("one question", "two questions", "a system message", "tools")
    roles = [(token.role, token.trained) for token in report.tokens]
    assert roles[0] == (None, False)
    trained = "".join(token.text for token in report.tokens if token.trained)
    assert trained == "An·hour·by·train.<|im_end|>In·June.<|im_end|>"
    assert {role for role, trained in roles if trained} == {"assistant"}
    assert {"system", "user"} <= {role for role, _ in roles}


def test_tools_that_are_left_out_are_a_note_until_somebody_uses_them(tokenizer: Any) -> None:
    report = check_template(GOOD, tokenizer)
    assert any("leaves out the tools that it is given" in note for note in report.notes)
    assert any("leaves out the assistant's tool calls" in note for note in report.notes)
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    rows = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Four."},
    ]
    report = check_template(GOOD, tokenizer, rows=[("data.jsonl:3", {"messages": rows})])
    assert [violation.conversations for violation in report.violations] == [("data.jsonl:3",)]
    assert report.violations[0].rule == "dropped"


def test_a_token_that_is_a_plain_piece_only(tokenizer: Any, tmp_path: Any) -> None:
    file = tmp_path / "tokenizer.json"
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] != "<|im_end|>"]
    file.write_text(json.dumps(document))
    said = [violation.message for violation in check_template("chatml", load_tokenizer(file)).violations]
    assert any(text.startswith("the tokenizer has no token <|im_end|>, which the template writes") for text in said)
    index = document["model"]["vocab"]["<|im_end|>"] = len(document["model"]["vocab"])
    file.write_text(json.dumps(document))
    report = check_template("chatml", load_tokenizer(file))
    assert [violation.message for violation in report.violations if violation.rule == "vocabulary"] == [
        f"the template writes <|im_end|> ({index}), which the vocabulary has as a plain piece only, not among the "
        "added tokens: no text becomes it, it falls apart into several. Add it to the added_tokens of the tokenizer's "
        'file ("special": true, with the same id), or take the tokenizer of the instruct model'
    ]


def test_rows_are_tried_too(tokenizer: Any) -> None:
    rows = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Take <pad> and go."}]
    report = check_template(GOOD, tokenizer, rows=[("mine:1", {"messages": rows})])
    assert [(violation.rule, violation.conversations) for violation in report.violations] == [("rendered", ("mine:1",))]
    assert "message number 2 (assistant) holds <pad>" in report.violations[0].message
    silent = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hello?"}]
    report = check_template("chatml", tokenizer, rows=[("mine:2", {"messages": silent})])
    assert report.violations[0].rule == "rendered"
    assert "every second message must be a user's" in report.violations[0].message


def test_a_pad_token_that_ends_turns_is_a_note(tokenizer: Any) -> None:
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    report = check_template(GOOD, padded)
    assert report.ok
    assert any("also ends a turn: it is learnt there only" in note for note in report.notes)


def test_a_conversation_may_be_closed_by_its_end_of_text_token(tokenizer: Any) -> None:
    closed = copy.deepcopy(tokenizer)
    closed.eos_token = "</s>"
    source = GOOD.replace("{% endif %}", "{% endif %}", 1) + "{% if not add_generation_prompt %}</s>{% endif %}"
    family = get_registry().families["generic"]
    report = check_template(
        source, closed, family=family, generation_config={"eos_token_id": closed.convert_tokens_to_ids("<|im_end|>")}
    )
    assert report.violations == ()


PLUGIN = """
from pathlib import Path
from graftwork import hookimpl
from graftwork.specs import chat_template

@hookimpl
def graftwork_chat_templates():
    here = Path({folder!r})
    moved = "the system message moves into the last question"
    return [
        chat_template(here, "moving", stop=("<|im_end|>",), rewrites=moved),
        chat_template(here, "seeing", stop=("<|im_end|>",), supports=("images", "tools")),
    ]
"""


def test_what_a_named_template_declares(tokenizer: Any, install_plugin: Any, tmp_path: Any) -> None:
    (tmp_path / "moving.jinja").write_text(WRONG["counts the messages"][0])
    (tmp_path / "seeing.jinja").write_text(GOOD.replace("message.content", "(message.content | string)"))
    install_plugin(PLUGIN.format(folder=str(tmp_path)))
    moving = check_template("moving", tokenizer)
    assert moving.ok
    assert moving.excused == ("prefix",)
    assert "the system message moves into the last question, as in the original: train on the last" in moving.notes[0]
    seeing = check_template("seeing", tokenizer)
    assert "an image" in seeing.conversations
    said = {violation.message for violation in seeing.violations if violation.rule == "dropped"}
    assert "the template leaves out the tools that it is given; choose one that supports tools" in said
