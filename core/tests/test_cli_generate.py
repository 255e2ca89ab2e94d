"""``graft generate``: one prompt, and files that are completed in several sittings."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
CONTEXT = 64


def save_model(folder, *, template: str | None = None) -> str:
    """A Llama of random weights that reads bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1, "<pad>": 2, **{letter: at + 3 for at, letter in enumerate(letters)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.3, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("chatty"), template=TEMPLATE)


def expected(folder: str, ids: list[int], count: int) -> str:
    model = AutoModelForCausalLM.from_pretrained(folder)
    made = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=2)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)


def ids_of(folder: str, text: str) -> list[int]:
    return PreTrainedTokenizerFast.from_pretrained(folder).encode(text)


# One prompt


def test_a_prompt_given_in_three_ways_is_completed_as_transformers_does(graft, plain):
    text = expected(plain, ids_of(plain, "Once"), 8) + "\n"
    limit = ("--max-new-tokens", 8)
    assert graft("generate", plain, "Once", *limit)[:2] == (0, text)
    assert graft("generate", plain, "--prompt", "Once", *limit)[:2] == (0, text)
    assert graft("generate", plain, *limit, piped="Once\n")[:2] == (0, text)


def test_being_cut_off_is_said_beside_the_answer(graft, plain):
    _, out, err = graft("generate", plain, "Once", "--max-new-tokens", 3)
    assert "cut off after 3 tokens; --max-new-tokens" in err
    assert "cut off" not in out


def test_the_saved_template_is_used_unless_told_not_to(graft, plain, chatty):
    asked = expected(chatty, ids_of(chatty, "[user]hi"), 8) + "\n"
    bare = expected(chatty, ids_of(chatty, "hi"), 8) + "\n"
    with_system = expected(chatty, ids_of(chatty, "[system]be brief[user]hi"), 8) + "\n"
    assert asked != bare != with_system
    limit = ("--max-new-tokens", 8)
    assert graft("generate", chatty, "hi", *limit)[1] == asked
    assert graft("generate", chatty, "hi", "--no-chat", *limit)[1] == bare
    assert graft("generate", chatty, "hi", "--system", "be brief", *limit)[1] == with_system
    assert graft("generate", plain, "hi", *limit)[1] == bare


def test_a_run_folder_means_its_final_model(graft, tmp_path):
    save_model(tmp_path / "run" / "final")
    (tmp_path / "run" / "run.json").write_text("{}")
    code, out, _ = graft("generate", tmp_path / "run", "Once", "--max-new-tokens", 4)
    assert (code, out) == graft("generate", tmp_path / "run" / "final", "Once", "--max-new-tokens", 4)[:2]
    assert code == 0


def test_an_adapter_folder_brings_its_base(graft, plain, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(plain), lora).save_pretrained(tmp_path / "adapter")
    PreTrainedTokenizerFast.from_pretrained(plain).save_pretrained(tmp_path / "adapter")
    code, out, err = graft("generate", tmp_path / "adapter", "Once", "--max-new-tokens", 8)
    assert code == 0, err
    assert out != graft("generate", plain, "Once", "--max-new-tokens", 8)[1]
    assert out == graft("generate", plain, "Once", "--max-new-tokens", 8, "--adapter", tmp_path / "adapter")[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no model: give MODEL .* or --model-uid"),
        (["MODEL", "--model-uid", "u"], r"MODEL \(.*\) and --model-uid \(u\) are both given"),
        (["--model-uid", "u"], "--model-uid u: no installed plugin provides a server client"),
        (["--model-uid", "u", "--endpoint", "http://x"], "no installed plugin provides a server client"),
        (["MODEL", "--endpoint", "http://x"], "--endpoint http://x is the server of --model-uid"),
        (["MODEL"], "no prompt: give --prompt TEXT, pipe one in, or give --input FILE"),
        (["MODEL", "a", "--prompt", "b"], "the prompt is given twice"),
        (["MODEL", "a", "--input", "in.jsonl"], "a prompt and --input/--output exclude each other"),
        (["MODEL", "--input", "in.jsonl"], "--input FILE and --output FILE go together"),
        (["MODEL", "--input", "in.jsonl", "--output", "./in.jsonl"], "are the same file"),
        (["MODEL", "--input", "in.jsonl", "--output", "no/out.jsonl"], "there is no folder no; make it first"),
        (["MODEL", "a", "--system", "s", "--no-chat"], "--system goes through the chat template"),
        (["MODEL", "a", "--system", "s"], "--system: .* has no chat template saved with it"),
        (["MODEL", "a", "--chat"], "has no chat template saved with it.*--chat-template"),
        (["MODEL", "a", "--temperature", "-1"], "temperature.*-1"),
        (["MODEL", "a", "--engine", "vlm"], "vlm.*transformers"),
        (["MODEL", "a" * CONTEXT], "prompt has 65 tokens and the model's context is 64"),
    ],
)
def test_wrong_requests_say_what_to_do(graft, plain, args, message):
    code, out, err = graft("generate", *(plain if arg == "MODEL" else arg for arg in args))
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    import re

    assert re.search(message, err), err


def test_a_run_without_a_final_model_is_an_error(graft, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    code, _, err = graft("generate", tmp_path, "x")
    assert code == 2
    assert "there is no final model in it yet" in err


# Files


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "in.jsonl"
    data = [{"prompt": text, "id": at} for at, text in enumerate(["Once", "a longer prompt", "x", "é", "last"])]
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return path


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_row_comes_back_with_its_answer(graft, plain, rows, tmp_path):
    out = tmp_path / "out.jsonl"
    code, printed, err = graft(
        "generate", plain, "--input", rows, "--output", out, "--max-new-tokens", 6, "--batch-size", 2
    )
    assert (code, printed) == (0, ""), err
    made = read(out)
    assert [row["id"] for row in made] == [0, 1, 2, 3, 4]
    for row in made:
        ids = ids_of(plain, row["prompt"])
        assert row["completion"] == expected(plain, ids, 6)
        assert row["prompt_tokens"] == len(ids)
        assert row["completion_tokens"] == 6
        assert row["finish_reason"] == "length"
    assert "5 rows, 30 tokens" in err


def test_messages_go_through_the_template(graft, chatty, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    turns = [{"role": "user", "content": "hi"}]
    own = [{"role": "system", "content": "mine"}, *turns]
    source.write_text(json.dumps({"messages": turns}) + "\n\n" + json.dumps({"messages": own}))
    code, _, err = graft(
        "generate", chatty, "--input", source, "--output", out, "--max-new-tokens", 5, "--system", "be brief"
    )
    assert code == 0, err
    texts = ["[system]be brief[user]hi", "[system]mine[user]hi"]
    assert [row["completion"] for row in read(out)] == [expected(chatty, ids_of(chatty, text), 5) for text in texts]


@pytest.mark.parametrize("sampling", [(), ("--temperature", 1, "--seed", 3)])
@pytest.mark.parametrize("cut", ["two rows", "half a row", "inside a character"])
def test_an_interrupted_file_is_gone_on_with_and_ends_the_same(graft, plain, rows, tmp_path, cut, sampling):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    options = ("--max-new-tokens", 6, "--batch-size", 2, *sampling)
    graft("generate", plain, "--input", rows, "--output", whole, *options)
    lines = whole.read_bytes().splitlines(keepends=True)
    started = {
        "two rows": b"".join(lines[:2]),
        "half a row": b"".join(lines[:2]) + lines[2][:60],
        "inside a character": b"".join(lines[:3]) + lines[3][: lines[3].index("é".encode()) + 1],
    }[cut]
    out.write_bytes(started)
    code, _, err = graft("generate", plain, "--input", rows, "--output", out, *options)
    assert code == 0
    assert "of 5 rows are in" in err
    assert out.read_bytes() == whole.read_bytes()


def test_a_complete_file_loads_no_model(graft, plain, rows, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    command = ("generate", plain, "--input", rows, "--output", out, "--max-new-tokens", 2)
    graft(*command)
    monkeypatch.setattr("graftwork.inference.load_model", lambda *_, **__: 1 / 0)
    code, _, err = graft(*command)
    assert code == 0
    assert "all 5 rows are in" in err


def test_a_file_of_other_rows_options_or_making_is_left_alone(graft, plain, rows, tmp_path):
    out = tmp_path / "out.jsonl"
    command = ("generate", plain, "--input", rows, "--output", out)
    graft(*command, "--max-new-tokens", 2)
    before = out.read_bytes()

    code, _, err = graft(*command, "--max-new-tokens", 3)
    assert code == 2
    assert "out.jsonl:1: was written with another model or other options" in err
    rows.write_text(rows.read_text().replace('"x"', '"y"'))
    code, _, err = graft(*command, "--max-new-tokens", 2)
    assert code == 2
    assert "out.jsonl:3: is not the answer to row 3 of the input; give another --output" in err
    assert out.read_bytes() == before

    out.write_text('{"my": "notes"}\n{"more": "notes"}\n')
    code, _, err = graft(*command)
    assert code == 2
    assert "out.jsonl:1: is no completed row of graft generate" in err
    assert "notes" in out.read_text()


@pytest.mark.parametrize("notes", ['{"my": "notes"}\n', '{"my": "notes"}', "notes"])
def test_a_single_foreign_line_is_not_taken_for_a_half_written_row(graft, plain, rows, tmp_path, notes):
    out = tmp_path / "out.jsonl"
    out.write_text(notes)
    code, _, err = graft("generate", plain, "--input", rows, "--output", out)
    assert code == 2
    assert "out.jsonl:1: is no completed row" in err
    assert "notes" in out.read_text()


def test_all_bad_rows_are_named_before_the_model_loads(graft, tmp_path):
    source = tmp_path / "in.jsonl"
    bad = [
        "{not json",
        "[1]",
        '{"text": "x"}',
        '{"prompt": "x", "messages": []}',
        '{"prompt": 3}',
        '{"messages": []}',
        '{"messages": [{"role": "robot", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
        '{"prompt": "x", "completion": "y"}',
    ]
    source.write_text('{"prompt": "fine"}\n' + "\n".join(bad) + "\n")
    code, _, err = graft("generate", "/nowhere", "--input", source, "--output", tmp_path / "out.jsonl")
    assert code == 2
    told = [
        "not JSON",
        "a row is an object",
        "neither 'prompt' nor 'messages'; give one (it has: text)",
        "both 'prompt' and 'messages'",
        "'prompt' is a text, not '3'",
        "'messages' is a list of turns",
        "message 1 needs a 'role'",
        "the last message is the assistant's: there is nothing to answer",
        "has a field 'completion', where the answer would go; rename it",
    ]
    for line, text in enumerate(told, start=2):
        assert f"in.jsonl:{line}: " in err
        assert text in err
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_that_the_model_cannot_take_are_named_before_the_first_is_asked(graft, plain, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        '{"prompt": "ok"}\n{"prompt": "%s"}\n{"messages": [{"role": "user", "content": "x"}]}\n' % ("a" * 80)
    )
    code, _, err = graft("generate", plain, "--input", source, "--output", out)
    assert code == 2
    assert "in.jsonl:2: the prompt has 81 tokens and the model's context is 64" in err
    assert "in.jsonl:3: " in err
    assert "no chat template" in err
    assert not out.exists()


@pytest.mark.parametrize(("text", "message"), [("", "there are no rows in it"), (None, "cannot be read")])
def test_a_file_without_rows_is_an_error(graft, plain, tmp_path, text, message):
    source = tmp_path / "in.jsonl"
    if text is not None:
        source.write_text(text)
    code, _, err = graft("generate", plain, "--input", source, "--output", tmp_path / "out.jsonl")
    assert code == 2
    assert message in err


def test_ctrl_c_keeps_what_is_done(graft, plain, rows, tmp_path, monkeypatch):
    from graftwork.inference.transformers_engine import TransformersEngine

    generate, calls = TransformersEngine.generate, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(TransformersEngine, "generate", interrupted)
    out = tmp_path / "out.jsonl"
    command = ("generate", plain, "--input", rows, "--output", out, "--max-new-tokens", 2, "--batch-size", 2)
    code, _, err = graft(*command)
    assert code == 130
    assert f"stopped: 2 of 5 rows are in {out}; the same command goes on from there" in err
    assert len(read(out)) == 2
    assert graft(*command)[0] == 0
    assert len(read(out)) == 5
