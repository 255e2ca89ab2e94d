"""A template that cannot end a turn is refused before data are read and a model is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from graftwork.chat import find_template
from graftwork.chat.fit import missing_stop, require_stops
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

RUN = """
model: {{model_name: {model}, chat_template: {template}}}
data: {{train: {{datasets: [{{dataset_name: text_sft, dataset_path: rows.jsonl, stream: true}}]}}}}
training: {{trainer_type: NATIVE, max_steps: 1, output_dir: out}}
"""
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
ENDLESS = "{% for m in messages %}{{ m.role + ': ' }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


@pytest.fixture
def run(folder: Path, toy_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run(template)`` writes a configuration for a toy model with the small tokenizer and gives its path."""
    model = toy_model("llama", vocab_size=262)
    for file in folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    monkeypatch.chdir(tmp_path)

    def write(template: str) -> str:
        (tmp_path / "run.yaml").write_text(RUN.format(model=model, template=template))
        return "run.yaml"

    write.model = model  # type: ignore[attr-defined]
    return write


def without_end(model: Path) -> None:
    """The same tokenizer without <|im_end|>: its EOS is </s>."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (model / name).read_text("utf-8").replace("<|im_end|>", "<|end|>")
        (model / name).write_text(text, "utf-8")


def test_a_named_template_without_its_end_of_turn(graft: Any, run: Any) -> None:
    assert graft("config", "validate", run("chatml"))[0] == 0
    without_end(run.model)
    for command in (["config", "validate"], ["train", "-c"]):
        code, _, err = graft(*command, run("chatml"))
        assert code == 2
        assert "model.chat_template" in err
        assert "'chatml' ends a turn in <|im_end|>, and the tokenizer in" in err
        assert "has no such token: the model would not learn to stop. Add what it writes (model.added_tokens: " in err
        assert '["<|im_end|>"]), or use a template that ends a turn in a token that is there: ' in err
    assert graft("config", "validate", run("default"))[0] == 0


def test_a_file_that_ends_no_turn_is_refused_before_the_model_is_loaded(graft: Any, run: Any, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(ENDLESS)
    (run.model / "model.safetensors").unlink()  # would be missed if it were looked for first
    code, _, err = graft("train", "-c", run("./own.jinja"))
    assert code == 2
    assert "does not fit the tokenizer: in one question, a trained assistant turn ends in the token" in err
    assert "which is no stop token" in err
    assert "`graft templates check` shows every token" in err


def test_what_files_cannot_tell_is_left_to_the_tokenizer(tmp_path: Path) -> None:
    assert missing_stop(find_template("chatml"), tmp_path) is None
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": [["<|im_end|>", 0.0]]}}')
    assert missing_stop(find_template("chatml"), tmp_path) is None
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    assert "has no such token" in str(missing_stop(find_template("chatml"), tmp_path))
    added = {"added_tokens_decoder": {"1": {"content": "<|im_end|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added))
    assert missing_stop(find_template("chatml"), tmp_path) is None


def test_a_token_that_is_added_is_there(graft: Any, run: Any) -> None:
    without_end(run.model)
    path = run("chatml")
    assert graft("config", "validate", path, 'model.added_tokens=["<|im_end|>"]')[0] == 0
    code, _, err = graft("config", "validate", path, 'model.added_tokens=["<|tool|>"]')
    assert (code, "model.chat_template" in err) == (2, True)


def test_a_template_that_takes_other_conversations_is_left_to_the_data(tokenizer: Any) -> None:
    import copy

    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ raise_exception('three questions at least') }}"
    require_stops(own, {0}, {})
    own.chat_template = ENDLESS
    with pytest.raises(UsageError, match="does not fit the tokenizer"):
        require_stops(own, {own.eos_token_id}, {})
