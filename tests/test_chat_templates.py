"""Every named chat template against the original it is named after, and every vector of rendered text.

The originals lie in the test data and in TRL; what neither has is compared with upstream's expected texts.
"""

from __future__ import annotations

import json
import os
import random
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from graftwork import load_tokenizer, render_chat
from graftwork.chat import sandbox
from graftwork.chat.check import check_template
from graftwork.errors import DataError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BOS_EOS = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>"}
PHI3 = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
QWEN = {"eos_token": "<|im_end|>"}
ZEPHYR = "hfjs/custom/HuggingFaceH4/zephyr-7b-beta (add_generation_prompt=true)"
MISTRAL_V1 = "llamacpp/mistralai/Mistral-7B-Instruct-v0.2 (NOTE: Old pre-v1 without a system prompt)"
# Qwen2-72B-Instruct's tokenizer_config.json has the one of these templates with this text, as quoted in
# https://github.com/instructkr/LogicKor/pull/27
QWEN2 = "!= 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>'"
NEMO = "mistralai-Mistral-Nemo-Instruct-2407.jinja"


class Original(NamedTuple):
    """Where the text of an original lies, and which conversations it can show."""

    file: str
    variables: Mapping[str, Any]
    features: frozenset[str] = frozenset({"system"})


ORIGINALS = {
    "alpaca": Original("templates/chujiezheng/alpaca.jinja", BOS_EOS),
    "vicuna": Original("templates/chujiezheng/vicuna.jinja", BOS_EOS),
    "chatml": Original("templates/chujiezheng/chatml.jinja", BOS_EOS),
    "zephyr": Original(f"upstream:{ZEPHYR}", BOS_EOS),
    "gpt2": Original("upstream:hfjs/default/gpt2", BOS_EOS),
    "llava": Original("templates/trl/llava_next.jinja", BOS_EOS, frozenset({"system", "parts"})),
    "llama2": Original("templates/chujiezheng/llama-2-chat.jinja", BOS_EOS),
    "llama3-instruct": Original("templates/trl/llama3.jinja", LLAMA3),
    "llama3.1": Original("templates/trl/llama3_1.jinja", LLAMA3, frozenset({"system", "tools", "one call"})),
    "llama3.2": Original(
        "trl:llama3_2.jinja", {**LLAMA3, "date_string": "1 Jan 2020"}, frozenset({"system", "tools", "one call"})
    ),
    "gemma-it": Original("templates/trl/gemma.jinja", GEMMA),
    "gemma3-it": Original("trl:gemma3.jinja", GEMMA, frozenset({"system", "images"})),
    "phi3-instruct": Original("templates/trl/phi3.jinja", PHI3),
    "phi3.5-instruct": Original("templates/trl/phi3_5.jinja", PHI3),
    "qwen2": Original(f"families:{QWEN2}", QWEN),
    "qwen2.5": Original("templates/trl/qwen2_5.jinja", QWEN, frozenset({"system", "tools"})),
    "qwen2-vl-instruct": Original("templates/trl/qwen2_5_vl.jinja", QWEN, frozenset({"system", "images"})),
    "qwen3": Original("trl:qwen3.jinja", QWEN, frozenset({"system", "tools", "reasoning"})),
    "qwen3-instruct": Original("trl:qwen3_instruct_2507.jinja", QWEN, frozenset({"system", "tools"})),
    "mistral-v1": Original(f"upstream:{MISTRAL_V1}", BOS_EOS, frozenset()),
    # Where this original and mistral-common differ (tool descriptions with quotes, a system message before an
    # answer), ours is mistral-common's: the plugin's own tests compare with that.
    "mistral-nemo": Original(f"templates/llama.cpp/{NEMO}", BOS_EOS, frozenset({"tools", "plain results"})),
}
# These formats have no file to compare with: the first is our own, the others have expected texts below or in
# their plugins' tests.
WITHOUT_ORIGINAL = {"default", "phi4", "mistral-v2", "mistral-v3"}
TEXTS = (
    *("Hello", "  two  ", "\n", "naïve café", "日本語", "🙂", "{{ x }}", "{% if %}", "", "a\tb", " lead", "trail "),
    *("<b>&amp;</b>", '"q"', "'s", "line\nline", "\u2028", "<tool_response>x</tool_response>", "</think>"),
    "<think>\nhm\n</think>\n\nyes",
)
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "g", "description": "", "parameters": {"a": [1, None, "b"]}}},
]


@pytest.fixture(scope="module")
def data() -> Path:
    root = os.environ.get("GRAFTWORK_TEST_DATA")
    if not root:
        pytest.skip("GRAFTWORK_TEST_DATA is not set: the originals and the vectors are not here")
    return Path(root)


def vectors(data: Path, name: str) -> list[dict[str, Any]]:
    text = (data / "vectors" / "chat_template" / f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def source_of(data: Path, original: str) -> str:
    place, _, name = original.rpartition(":") if original.startswith("trl:") else original.partition(":")
    if original.startswith("upstream:"):
        return str(next(row["template"] for row in vectors(data, "upstream_expected") if row["id"] == name))
    if place == "families":
        rows = vectors(data, "ollama_template_families")
        return str(next(source for row in rows for source in row.values() if name in source))
    if place == "trl":
        spec = find_spec("trl")
        if spec is None or spec.origin is None:
            pytest.skip("trl is not installed: its chat templates are not here")
        return (Path(spec.origin).parent / "chat_templates" / name).read_text("utf-8")
    text = (data / original).read_text("utf-8")
    # These are formatted for reading; their authors take the layout out before use.
    return text.replace("    ", "").replace("\n", "") if "chujiezheng" in original else text


# Vectors


def test_texts_that_upstream_expects_of_its_own_templates(data: Path) -> None:
    rows = vectors(data, "upstream_expected")
    wrong = [row["id"] for row in rows if sandbox.render(row["template"], upstream_data(row))[0] != row["expected"]]
    assert wrong == []
    assert len(rows) == 44
    print(f"upstream_expected: {len(rows)} of {len(rows)} byte-equal")


def upstream_data(row: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(row["data"])
    if row.get("needs_system_merged_into_first_user_turn"):
        system, first, *rest = values["messages"]
        values["messages"] = [{**first, "content": f"{system['content']}\n{first['content']}"}, *rest]
    return values


def test_templates_of_many_families_render_as_in_transformers(data: Path) -> None:
    rows = vectors(data, "ollama_template_families")
    compared = 0
    for source in (source for row in rows for source in row.values()):
        for seed in range(20):
            messages, _ = conversation(random.Random(seed), frozenset())
            expected = outcome(reference, messages, source, None, seed % 2 == 0, BOS_EOS)
            got = outcome(rendered_raw, messages, source, None, seed % 2 == 0, BOS_EOS)
            assert got == expected, source
            compared += expected is not None
    assert len(rows) == 18
    assert compared >= 18 * 15
    print(f"ollama_template_families: {len(rows)} of {len(rows)} templates, {compared} texts byte-equal")


def test_reference_texts(data: Path) -> None:
    rows = vectors(data, "reference_rendered")
    own = 0
    for row in rows:
        values = dict(row["data"])
        messages = values.pop("messages")
        source = (data / row["template_file"]).read_text("utf-8")
        name = next((name for name, original in ORIGINALS.items() if source_of_file(data, original) == source), None)
        assert name is not None, row["template_file"]
        if "expected_error" in row:
            for template in (source, name):
                with pytest.raises(DataError):
                    render_chat(messages, template=template, **values)
            continue
        assert sandbox.render(source, {"messages": messages, **values})[0] == row["expected"], row["id"]
        text = render_chat(messages, template=name, **values)
        # That original leaves out a system message that is not followed by a question last.
        assert text == row["expected"] or row["id"] == f"{NEMO}/system-full", row["id"]
        own += text == row["expected"]
    assert (len(rows), own) == (29, 27)
    print(f"reference_rendered: {len(rows)} of {len(rows)}, {own} also by the named template, 1 refused by both")


def source_of_file(data: Path, original: Original) -> str | None:
    return source_of(data, original.file) if original.file.startswith("templates/") else None


OLLAMA = {
    "gemma-instruct": GEMMA,
    "llama3-instruct": LLAMA3,
    "phi-3": PHI3,
    "alpaca": {"eos_token": ""},
}


def test_texts_that_ollama_expects(data: Path) -> None:
    """Without BOS, and with the one space at the end that ollama strips."""
    rows = vectors(data, "ollama_expected")
    equal, others = 0, []
    for row in rows:
        if get_registry().chat_templates.get_or_none(row["template"]) is None:
            others.append(row["template"])
            continue
        variables: dict[str, Any] = {**BOS_EOS, **OLLAMA.get(row["template"], {})}
        text = render_chat(row["messages"], template=row["template"], add_generation_prompt=True, **variables)
        text = text.removeprefix(str(variables.get("bos_token", "")))
        if row["template"] == "llama2-chat":
            # ollama writes an empty system message into every question; Llama 2's own format has it in the first
            # only, and where there is one.
            empty = "<<SYS>><</SYS>>\n\n"
            assert empty in row["expected"]
            row["expected"] = row["expected"].replace(empty, "")
            text = text.replace(" </s>", "</s>")
            others.append("llama2-chat")
        assert text == row["expected"], row["source"]
        equal += row["template"] != "llama2-chat"
    assert len(rows) == 25
    assert (equal, sorted(set(others))) == (20, ["command-r", "llama2-chat"])
    print(f"ollama_expected: {equal} of {len(rows)} byte-equal; {len(others)} are ollama's own formats")


# Random conversations, by the original and by ours


@pytest.mark.parametrize("name", ORIGINALS)
def test_random_conversations_are_as_in_the_original(data: Path, name: str) -> None:
    original = ORIGINALS[name]
    source = source_of(data, original.file)
    generator = random.Random(name)
    compared = 0
    for _ in range(120):
        messages, tools = conversation(generator, original.features)
        variables = {**original.variables, **flags(generator, name, messages)}
        prompt = generator.random() < 0.5
        expected = outcome(reference, messages, source, tools, prompt, variables)
        got = outcome(rendered, messages, name, tools, prompt, variables)
        assert got == expected, (messages, tools, prompt, variables)
        compared += expected is not None
    assert compared > 60


# mistral-common joins the messages that Mistral's templates on the Hub refuse, and so do we (the plugin's tests).
JOINING = ("mistral-v1", "mistral-nemo")


@pytest.mark.parametrize("name", [name for name in ORIGINALS if name not in ("zephyr", "gpt2", "llava", *JOINING)])
def test_what_the_original_refuses_is_refused(data: Path, name: str) -> None:
    source = source_of(data, ORIGINALS[name].file)
    for roles in ("uu", "uaa", "a", "us", "uas", "suu", "ss"):
        messages = [{"role": {"u": "user", "a": "assistant", "s": "system"}[role], "content": "x"} for role in roles]
        if outcome(reference, messages, source, None, False, ORIGINALS[name].variables) is None:
            with pytest.raises(DataError, match=r"join|put|must|role"):
                render_chat(messages, template=name, **ORIGINALS[name].variables)


def test_every_template_has_an_original_or_a_reason() -> None:
    assert set(get_registry().chat_templates) == {*ORIGINALS, *WITHOUT_ORIGINAL}


def conversation(random_: random.Random, features: frozenset[str]) -> tuple[list[dict[str, Any]], Any]:
    """A conversation of one to three questions with what ``features`` name, and the tools offered in it."""
    messages: list[dict[str, Any]] = []
    if "system" in features and random_.random() < 0.4:
        messages.append({"role": "system", "content": text(random_)})
    for number in range(random_.randint(1, 3)):
        messages.append({"role": "user", "content": text(random_)})
        if "plain results" in features:  # that original takes a question for the last one if it is equal to it
            messages[-1]["content"] += str(number)
        if features & {"images", "parts"} and random_.random() < 0.6:
            messages[-1]["content"] = parts(random_)
        if "tools" in features and random_.random() < 0.5:
            messages += called(random_, features)
        messages.append({"role": "assistant", "content": text(random_) or "yes"})
        if "plain results" in features:
            messages[-1]["content"] = messages[-1]["content"].strip() or "yes"
        if "reasoning" in features and random_.random() < 0.3:
            messages[-1]["reasoning_content"] = text(random_)
    if random_.random() < 0.4:
        messages.pop()
    if "parts" in features:
        messages = [as_parts(message) for message in messages]
    offered = TOOLS[: random_.randint(1, 2)] if "tools" in features and random_.random() < 0.5 else None
    return messages, offered


def text(random_: random.Random) -> str:
    return "".join(random_.choice(TEXTS) for _ in range(random_.randint(0, 3)))


def parts(random_: random.Random) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"type": "text", "text": text(random_)} for _ in range(random_.randint(1, 2))]
    found += [{"type": "image"}] * random_.randint(0, 2)
    random_.shuffle(found)
    return found


def as_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return message if isinstance(content, list) else {**message, "content": [{"type": "text", "text": content}]}


def called(random_: random.Random, features: frozenset[str]) -> list[dict[str, Any]]:
    """An assistant's calls, and their results."""
    count = 1 if "one call" in features else random_.randint(1, 2)
    calls = [
        {
            "id": f"abcdefgh{number}",
            "type": "function",
            "function": {"name": "f", "arguments": {"x": text(random_), "n": 1.5, "deep": {"é": [True, None]}}},
        }
        for number in range(count)
    ]
    beside = "" if features & {"one call", "plain results"} else text(random_)
    results = [random_.choice(("22", '{"a": 1}')) if "plain results" in features else text(random_) for _ in calls]
    answers = [
        {"role": "tool", "name": "f", "content": result, "tool_call_id": call["id"]}
        for call, result in zip(calls, results, strict=True)
    ]
    return [{"role": "assistant", "content": beside, "tool_calls": calls}, *answers]


def flags(random_: random.Random, name: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Variables that only some formats know."""
    chosen: dict[str, Any] = {}
    if name.startswith("llama3.") and random_.random() < 0.3:
        chosen["tools_in_user_message"] = False
    if name == "llama3.1" and random_.random() < 0.3:
        chosen["builtin_tools"] = ["code_interpreter", "brave_search"]
        chosen["date_string"] = "3 Mar 2021"
    if name == "llama3.1" and random_.random() < 0.3:
        chosen["builtin_tools"] = ["f"]
        for message in messages:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = {"query": text(random_), "other": "x"}
    if name == "qwen2-vl-instruct":
        chosen["add_vision_id"] = random_.random() < 0.5
    if name == "qwen3" and random_.random() < 0.5:
        chosen["enable_thinking"] = random_.random() < 0.5
    return chosen


def outcome(render: Any, messages: Any, template: str, tools: Any, prompt: bool, variables: Any) -> str | None:
    """The text, or None where the conversation is refused."""
    import jinja2

    try:
        text = render(messages, template, tools, prompt, variables)
    except (DataError, jinja2.TemplateError, TypeError):
        return None
    assert isinstance(text, str)
    return text


def reference(messages: Any, source: str, tools: Any, prompt: bool, variables: Any) -> Any:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        [messages], tools=tools, chat_template=source, add_generation_prompt=prompt, **variables
    )
    return texts[0]


def rendered(messages: Any, template: str, tools: Any, prompt: bool, variables: Any) -> str:
    return render_chat(messages, template=template, tools=tools, add_generation_prompt=prompt, **variables)


def rendered_raw(messages: Any, source: str, tools: Any, prompt: bool, variables: Any) -> str:
    given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
    return sandbox.render(source, {**given, **variables})[0]


# With the tokenizers that they belong to

REAL = [
    ("llama2", "llama2"),
    ("llama3-instruct", "llama3"),
    ("llama3.1", "llama3"),
    ("llama3.2", "llama3"),
    ("gemma-it", "gemma, instruction-tuned"),
    ("gemma3-it", "gemma, instruction-tuned"),
    ("phi3-instruct", "phi3"),
    ("phi3.5-instruct", "phi3"),
    ("phi4", "phi4"),
    ("qwen2", "qwen2.5"),
    ("qwen2.5", "qwen2.5"),
    ("qwen2-vl-instruct", "qwen2.5"),
    ("qwen3", "qwen2.5"),
    ("qwen3-instruct", "qwen2.5"),
    ("mistral-v1", "mistral/tokenizer.model.v1"),
    ("mistral-v2", "mistral v2"),
    ("mistral-v3", "mistral/mistral_instruct_tokenizer_240323.model.v3"),
    ("mistral-nemo", "tekken"),
    ("default", "llama2"),
    ("alpaca", "llama2"),
    ("vicuna", "llama2"),
    ("gpt2", "llama2"),
    ("chatml", "qwen2.5"),
    ("zephyr", "mistral/tokenizer.model.v1"),
    ("llava", "mistral/tokenizer.model.v1"),
]
EXCUSED = {"qwen3", "mistral-v2", "mistral-v3", "mistral-nemo"}


@pytest.fixture(scope="module")
def real(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """``real(name)``: a tokenizer, loaded once."""
    return cache(lambda name: load_tokenizer(tokenizer_of(data, tmp_path_factory.mktemp("tokenizer"), name)))


@pytest.mark.parametrize(("name", "tokenizer"), REAL, ids=[name for name, _ in REAL])
def test_every_template_passes_the_check_with_its_real_tokenizer(
    real: Callable[[str], Any], name: str, tokenizer: str
) -> None:
    report = check_template(name, real(tokenizer))
    assert report.violations == ()
    assert report.excused == (("prefix",) if name in EXCUSED else ())
    supports = get_registry().chat_templates[name].supports
    refused = " ".join(note for note in report.notes if note.startswith("not tried"))
    assert ("tools" in refused) == ("tools" not in supports)
    assert ("a system message" in refused) == ("system" not in supports)
    assert any(token.trained for token in report.tokens)


def test_all_of_them_are_tried() -> None:
    assert sorted(name for name, _ in REAL) == sorted(get_registry().chat_templates)


@pytest.mark.parametrize(
    ("name", "tokenizer", "rules"),
    [
        ("chatml", "llama2", {"vocabulary", "stop"}),
        ("mistral-v3", "mistral/tokenizer.model.v1", {"vocabulary"}),
        # This one is the base model's, which has the two tokens of a turn only as vocabulary that no text leads to.
        ("gemma-it", "gemma", {"vocabulary", "stop"}),
    ],
)
def test_a_template_on_a_tokenizer_of_another_model(
    real: Callable[[str], Any], name: str, tokenizer: str, rules: set[str]
) -> None:
    assert {found.rule for found in check_template(name, real(tokenizer)).violations} == rules


WHEEL = {"tekken": "tekken_240718.json", "mistral v2": "mistral_instruct_tokenizer_240216.model.v2"}


def tokenizer_of(data: Path, folder: Path, name: str) -> Path:
    if name in WHEEL:
        pytest.importorskip("mistral_common", reason=f"mistral-common is not installed, and {name} with it")
        spec = find_spec("mistral_common")
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent / "data" / WHEEL[name]
    if name == "gemma, instruction-tuned":
        tokens = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
        return with_tokens(data / "tokenizers/gemma", folder, tokens)
    if name == "phi4":  # its vocabulary is not here; what matters are the control tokens
        return with_tokens(data / "tokenizers/phi3", folder, ["<|im_start|>", "<|im_sep|>", "<|im_end|>"])
    return data / "tokenizers" / name


def with_tokens(source: Path, folder: Path, tokens: list[str]) -> Path:
    """A copy with further control tokens, as the instruction-tuned model's tokenizer has them."""
    document = json.loads((source / "tokenizer.json").read_text("utf-8"))
    known = document["model"]["vocab"]
    after = max([*known.values(), *(token["id"] for token in document["added_tokens"])]) + 1
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document["added_tokens"] += [
        {"id": known.get(text, after + number), "content": text, **plain} for number, text in enumerate(tokens)
    ]
    document["added_tokens"].sort(key=lambda token: int(token["id"]))
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    config = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    for key in ("chat_template", "added_tokens_decoder"):
        config.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder
