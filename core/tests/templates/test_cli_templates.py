"""``graft templates``, as a person runs it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES = [{"role": "user", "content": "Hi 🙂"}, {"role": "assistant", "content": "Hello"}]
CHATML = "<|im_start|>user\nHi 🙂<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
LISTING = "{% for message in messages %}{{ message.content }}{% endfor %}{{ tools | tojson }}{{ day }}"


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    (tmp_path / "messages.json").write_text(json.dumps(MESSAGES))
    return tmp_path / "messages.json"


def test_templates_are_listed(graft: Any) -> None:
    code, out, err = graft("templates", "ls")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert "eos_token" in rows["default"]
    assert rows["chatml"].split() == ["chatml", "graftwork", "system", "<|im_end|>", "chat_ml"]
    listed = {row["name"]: row for row in json.loads(graft("templates", "ls", "--json")[1])}
    assert listed["llava"]["supports"] == ["images", "system"]
    assert listed["llava"]["aliases"] == ["llava_next"]
    assert listed["chatml"]["path"].endswith("chatml.jinja")


def test_a_template_is_shown_as_it_is(graft: Any, tmp_path: Path) -> None:
    code, out, _ = graft("templates", "show", "CHAT_ML")
    assert code == 0
    (tmp_path / "copy.jinja").write_text(out)
    assert graft("templates", "show", tmp_path / "copy.jinja")[1] == out
    assert "{%- generation %}" in out
    code, _, err = graft("templates", "show", "chatmll")
    assert code == 2
    assert "there is no chat template 'chatmll'; did you mean chatml" in err


def test_a_conversation_is_rendered_byte_for_byte(graft: Any, messages: Path, folder: Path, tmp_path: Path) -> None:
    assert graft("templates", "render", "chatml", "--messages", messages) == (0, CHATML, "")
    with_bos = graft("templates", "render", "chatml", "--messages", messages, "--tokenizer", folder)[1]
    assert with_bos == f"<s>{CHATML}"
    asked = graft("templates", "render", "chatml", "--messages", messages, "--generation-prompt")[1]
    assert asked == f"{CHATML}<|im_start|>assistant\n"
    (tmp_path / "tools.json").write_text('[{"name": "f"}]')
    (tmp_path / "own.jinja").write_text(LISTING)
    code, out, _ = graft(
        *("templates", "render", tmp_path / "own.jinja", "--messages", "-", "--tools", tmp_path / "tools.json"),
        *("--var", "day=1 Jan 2020"),
        piped=json.dumps({"messages": MESSAGES}),
    )
    assert (code, out) == (0, 'Hi 🙂Hello[{"name": "f"}]1 Jan 2020')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{]", "messages.json:1: no JSON: "),
        (
            '{"rows": []}',
            "messages.json: expected a list of messages or an object with 'messages', found an object with rows",
        ),
        ("3", "messages.json: expected a list of messages or an object with 'messages', found int"),
        ('[{"content": "x"}]', "a message must be an object with 'role' and 'content'"),
        ('[{"role": "assistant", "content": "x"}]', "every second message must be a user's, beginning with one"),
    ],
)
def test_what_cannot_be_rendered_is_said(graft: Any, messages: Path, text: str, said: str) -> None:
    messages.write_text(text)
    code, out, err = graft("templates", "render", "chatml", "--messages", messages)
    assert (code, out) == (2, "")
    assert said in err


def test_options_that_are_wrong(graft: Any, messages: Path, tmp_path: Path) -> None:
    code, _, err = graft("templates", "render", "chatml", "--messages", tmp_path / "none.json")
    assert code == 2
    assert "none.json: there is no such file; give a JSON file" in err
    code, _, err = graft("templates", "render", "chatml", "--messages", messages, "--var", "day")
    assert code == 2
    assert "--var 'day': expected NAME=VALUE" in err
    messages.write_bytes(b'["\xff"]')
    assert "messages.json: not UTF-8 at byte 2" in graft("templates", "render", "chatml", "--messages", messages)[2]


def test_a_template_that_fits_its_tokenizer(graft: Any, folder: Path) -> None:
    code, out, err = graft("templates", "check", "chatml", "--tokenizer", folder)
    assert (code, err) == (0, "")
    assert "assistant + A n ·" in out
    assert "user        <|im_start|> u s e r \\n" in out
    assert "holds     every trained turn ends in a token that generation stops at" in out
    assert "VIOLATED" not in out
    assert "\x1b[" not in out
    document = json.loads(graft("templates", "check", "chatml", "--tokenizer", folder, "--json")[1])
    assert document["ok"]
    assert document["template"] == "chatml"
    assert document["tokens"][0] == {"id": document["tokens"][0]["id"], "text": "<s>", "role": None, "trained": False}


def test_colours_where_they_are_wanted(graft: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = graft("templates", "check", "chatml", "--tokenizer", folder)[1]
    assert "\x1b[1;32mA n" in out  # the assistant's, trained: bold green
    assert "\x1b[36m<|im_start|> u s e r" in out  # the user's: cyan


def test_a_template_that_does_not_fit(graft: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    code, out, _ = graft("templates", "check", tmp_path / "own.jinja", "--tokenizer", folder)
    assert code == 1
    assert "VIOLATED  every trained turn ends in a token that generation stops at" in out
    assert "the model would not learn to stop. Write the end-of-turn token at its end" in out.replace("\n", " ")
    code, out, _ = graft("templates", "check", tmp_path / "own.jinja", "--tokenizer", folder, "--json")
    assert code == 1
    assert {violation["rule"] for violation in json.loads(out)["violations"]} >= {"stop"}


def test_the_tokenizers_own_template_and_rows_of_ones_own(
    graft: Any, folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = graft("templates", "show", "chatml")[1]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": MESSAGES}) + "\n\n" + json.dumps(MESSAGES[1:]) + "\n")
    code, out, _ = graft("templates", "check", "--tokenizer", folder, "--rows", rows, "--json")
    assert code == 1
    document = json.loads(out)
    assert document["template"] == "chatml"
    assert [violation["conversations"] for violation in document["violations"]] == [[f"{rows}:3"]]
    for text, said in (
        ("{}\n{", "rows.jsonl:1: fields none are no known row; expected one of: messages; conversations"),
        (json.dumps(MESSAGES) + "\n{", "rows.jsonl:2: no JSON"),
        ("3", "rows.jsonl:1: expected an object or a list of messages, found int"),
    ):
        rows.write_text(text)
        assert said in graft("templates", "check", "--tokenizer", folder, "--rows", rows)[2]
    rows.write_text(json.dumps({"instruction": "Add", "output": "4"}))
    assert graft("templates", "check", "--tokenizer", folder, "--rows", rows)[0] == 0
