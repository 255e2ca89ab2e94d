"""Which template is meant."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from graftwork import build_chat_template
from graftwork.chat import find_template
from graftwork.errors import PluginError, UnknownNameError, UsageError
from graftwork.specs import ModelFamily

if TYPE_CHECKING:
    from pathlib import Path


def test_a_name_in_any_case_or_an_alias() -> None:
    assert find_template("ChatML") == find_template("chat_ml")
    assert find_template("chatml").stop == ("<|im_end|>",)
    assert build_chat_template("chatml") == find_template("chatml").source


def test_a_file_and_a_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}")
    found = find_template(str(file))
    assert (found.source, found.name, found.origin) == ("{{ messages }}", None, str(file))
    assert find_template("{{ messages }}").source == "{{ messages }}"


def test_what_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match="did you mean chatml"):
        find_template("chatmll")
    with pytest.raises(UsageError, match=r"chat template nowhere/x\.jinja: there is no such file"):
        find_template("nowhere/x.jinja")
    with pytest.raises(UsageError, match="not valid Jinja"):
        build_chat_template("{% if %}")


def test_a_plugin_whose_file_is_not_there(install_plugin: Any, tmp_path: Path) -> None:
    install_plugin(
        "from pathlib import Path\nfrom graftwork import hookimpl\nfrom graftwork.specs import ChatTemplate\n"
        "@hookimpl\ndef graftwork_chat_templates():\n"
        f"    return [ChatTemplate(name='lost', path=Path({str(tmp_path)!r}) / 'lost.jinja')]\n"
    )
    with pytest.raises(
        PluginError, match=r"'lost': there is no file .*/lost\.jinja, which plugin \w+ \(.*mend its path"
    ):
        find_template("lost")


def test_the_tokenizers_own_comes_first(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages }}"
    found = find_template(None, tokenizer, ModelFamily(name="toy", chat_template="chatml"))
    assert (found.source, found.origin) == ("{{ messages }}", "the tokenizer")


def test_a_saved_template_is_recognised_with_its_stops(tokenizer: Any) -> None:
    tokenizer.chat_template = build_chat_template("chatml")
    found = find_template("auto", tokenizer)
    assert (found.name, found.stop, found.origin) == ("chatml", ("<|im_end|>",), "the tokenizer")


def test_several_templates_need_a_default(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    assert find_template(None, tokenizer).source == "{{ 1 }}"
    tokenizer.chat_template = {"rag": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    with pytest.raises(UsageError, match=r"several chat templates \(rag, tool_use\) and none is called 'default'"):
        find_template(None, tokenizer)


def test_the_familys_and_then_default_with_a_notice(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert find_template(None, tokenizer, ModelFamily(name="toy", chat_template="chatml")).name == "chatml"
    assert not caplog.records
    tokenizer.name_or_path = "some/model"
    with caplog.at_level(logging.INFO):
        assert find_template(None, tokenizer).name == "default"
        find_template(None, tokenizer)
    assert [record.getMessage() for record in caplog.records] == [
        "some/model has no chat template: 'default' is used (set model.chat_template to choose another)"
    ]
