"""Templates that are encoded in parts, against mistral-common's vectors and mistral-common itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from graftwork import encode_chat, load_tokenizer
from graftwork.chat import TemplateSource, encode_conversation, token_roles
from graftwork.chat.vocabulary import vocabulary_of
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' }} {{ m.content }}"
    "{% else %}{{ '<|assistant|>' }}{% generation %} {{ m.content }}{{ '</s>' if not m.prefix else '' }}"
    "{% endgeneration %}{% endif %}{% endfor %}"
)
HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "I am fine"}]


def in_parts(source: str) -> TemplateSource:
    return TemplateSource(source=source, name=None, origin="a test", encoding="parts")


def test_each_output_is_encoded_on_its_own(tokenizer: Any) -> None:
    encoded = encode_conversation(HELLO, tokenizer=tokenizer, template=in_parts(PARTS))
    apart = ["<s>", "<|user|>", "Hello", "<|assistant|>", "I am fine", "</s>"]
    expected = [index for text in apart for index in tokenizer(text, add_special_tokens=False).input_ids]
    assert encoded.input_ids == expected
    assert tokenizer.decode([i for i, t in zip(expected, encoded.trained, strict=True) if t]) == "I am fine</s>"
    assert [expected[last] for last in encoded.ends] == [tokenizer.eos_token_id]


def test_words_are_not_joined_across_outputs(tokenizer: Any) -> None:
    template = in_parts(
        "{% for m in messages %}{{ 'Hel' }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    messages = [{"role": "assistant", "content": "lo there"}]
    ids, trained = encode_chat(messages, tokenizer=tokenizer, template=template)
    hel, rest = (tokenizer(text).input_ids for text in ("Hel", "lo there"))
    assert ids == [*hel, *rest] != tokenizer("Hello there").input_ids
    assert trained == [False] * len(hel) + [True] * len(rest)


@pytest.mark.parametrize("text", ["</s>", "<s>", "a</s>b", "<|assistant|>"])
def test_a_message_cannot_bring_a_control_token(tokenizer: Any, text: str) -> None:
    control = vocabulary_of(tokenizer).control_ids
    messages = [{"role": "user", "content": text}, HELLO[1]]
    harmless = encode_chat(HELLO, tokenizer=tokenizer, template=in_parts(PARTS))[0]
    for policy in ("error", "as_text"):
        ids, _ = encode_chat(messages, tokenizer=tokenizer, template=in_parts(PARTS), special_tokens_in_content=policy)
        assert [index for index in ids if index in control] == [index for index in harmless if index in control]
        assert text in tokenizer.decode(ids)


def test_allow_takes_a_message_that_is_one_for_it(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "</s>"}, HELLO[1]]
    ids, _ = encode_chat(messages, tokenizer=tokenizer, template=in_parts(PARTS), special_tokens_in_content="allow")
    assert ids[:4] == tokenizer.convert_tokens_to_ids(["<s>", "<|user|>", "</s>", "<|assistant|>"])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages %}USER {{ m.content }}{% endfor %}", "'USER' stands outside of {{ }}"),
        ("{% filter upper %}{{ messages[0].content }}{% endfilter %}", "holds some of its output back"),
        (
            "{% macro say() %}{{ caller() }}!{% endmacro %}{% call say() %}{{ messages[0].content }}{% endcall %}",
            "holds some",
        ),
    ],
)
def test_a_template_whose_parts_cannot_be_told(tokenizer: Any, source: str, reason: str) -> None:
    with pytest.raises(UsageError, match="is encoded in parts") as caught:
        encode_chat(HELLO[:1], tokenizer=tokenizer, template=in_parts(source))
    assert reason in str(caught.value)


def test_roles_of_parts(tokenizer: Any) -> None:
    roles = token_roles(HELLO, tokenizer=tokenizer, template=in_parts(PARTS))
    ids, trained = encode_chat(HELLO, tokenizer=tokenizer, template=in_parts(PARTS))
    assert roles[:2] == [None, (0, "user")]
    assert [role == (1, "assistant") for role in roles].index(True) == ids.index(
        tokenizer.convert_tokens_to_ids("<|assistant|>")
    )
    assert all(role == (1, "assistant") for role, learnt in zip(roles, trained, strict=True) if learnt)


V2 = "mistral_instruct_tokenizer_240216.model.v2"
FILES = {"v1": "tokenizer.model.v1", "v2": V2, "v3": "mistral_instruct_tokenizer_240323.model.v3"}


def test_ids_equal_mistral_commons_vectors(data: Path, real: Any) -> None:
    checked = 0
    for line in (data / "vectors/chat_tokens/mistral_common.jsonl").read_text().splitlines():
        row = json.loads(line)
        request = row["request"]
        system = request.get("system_prompt")
        messages = [{"role": "system", "content": system}] * bool(system) + request["messages"]
        loaded = real(f"mistral/{row['tokenizer_file']}")
        for tokenizer in (loaded, loaded.hf):
            ids, _ = encode_chat(
                messages,
                tokenizer=tokenizer,
                template=f"mistral-{row['version']}",
                tools=request.get("available_tools"),
            )
            assert ids == row["tokens"], row["test"]
        checked += 1
    assert checked == 14


def test_ids_equal_mistral_commons_samples(data: Path, real: Any) -> None:
    checked = 0
    for sample in sorted((data / "vectors/chat_tokens/mistral_samples").iterdir()):
        request = json.loads((sample / "sample.json").read_text())
        for version, file in FILES.items():
            if (expected := sample / f"tokens_{version}.json").exists():
                tokenizer = of_the_wheel(file) if version == "v2" else real(f"mistral/{file}")
                ids, _ = encode_chat(
                    request["messages"],
                    tokenizer=tokenizer,
                    template=f"mistral-{version}",
                    tools=request.get("tools"),
                )
                assert ids == json.loads(expected.read_text())["tokens"], (sample.name, version)
                text = (sample / f"text_{version}.txt").read_text("utf-8")
                assert "".join(tokenizer.hf.convert_ids_to_tokens(ids)) == text
                checked += 1
    assert checked == 7


def of_the_wheel(file: str) -> Any:
    mistral_common = pytest.importorskip("mistral_common", reason="mistral-common is not installed, and its files")
    return load_tokenizer(Path(mistral_common.__file__).parent / "data" / file)


@pytest.mark.parametrize("file", ["tekken_240718.json", "mistral_instruct_tokenizer_240323.model.v3"])
def test_no_tokenizer_of_transformers_is_built_for_parts(file: str) -> None:
    tokenizer = of_the_wheel(file)
    name = "mistral-nemo" if "tekken" in file else "mistral-v3"
    ids, trained = encode_chat(HELLO, tokenizer=tokenizer, template=name)
    assert "hf" not in vars(tokenizer)
    assert encode_chat(HELLO, tokenizer=tokenizer.hf, template=name) == (ids, trained)
    assert sum(trained) == len(tokenizer.encode_ordinary("I am fine")) + 1


TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": 'Looks "there"',
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "é </s>"}}},
    },
}
LIVE = [
    ("mistral-v1", "tokenizer.model.v1"),
    ("mistral-v2", V2),
    ("mistral-v3", "mistral_instruct_tokenizer_240323.model.v3"),
    ("mistral-nemo", "tekken_240718.json"),
]


@pytest.mark.parametrize(("template", "file"), LIVE)
def test_ids_equal_mistral_common_itself(template: str, file: str) -> None:
    mistral_common = pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct.normalize import get_normalizer
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    path = Path(mistral_common.__file__).parent / "data" / file
    theirs = MistralTokenizer.from_file(str(path)).instruct_tokenizer
    ours = load_tokenizer(path)
    draw = random.Random(5)
    for _ in range(40):
        messages = list(conversation(draw, calls=template != "mistral-v1"))
        tools = [TOOL] if template != "mistral-v1" and draw.random() < 0.5 else None
        request = ChatCompletionRequest(messages=messages, tools=tools)
        normal = get_normalizer(theirs.tokenizer.version).from_chat_completion_request(request)
        expected = theirs.encode_instruct(normal).tokens
        assert encode_chat(messages, tokenizer=ours, template=template, tools=tools)[0] == expected, messages


def conversation(draw: random.Random, *, calls: bool) -> Iterator[dict[str, Any]]:
    """A few turns of nasty texts, with calls of tools and their results."""
    for _ in range(draw.randint(0, 2)):
        yield {"role": "system", "content": nasty(draw)}
    for _ in range(draw.randint(1, 3)):
        yield {"role": "user", "content": nasty(draw)}
        if calls and draw.random() < 0.5:
            ids = ["".join(draw.choices("abcXYZ019", k=9)) for _ in range(draw.randint(1, 2))]
            yield {"role": "assistant", "content": "", "tool_calls": [call(draw, number) for number in ids]}
            for number in ids:
                result = draw.choice([nasty(draw), "22", '{"k":"v"}', "null", '"s"', "1e3"])
                yield {"role": "tool", "tool_call_id": number, "name": "look", "content": result}
        yield {"role": "assistant", "content": nasty(draw)}


def call(draw: random.Random, number: str) -> dict[str, Any]:
    arguments = draw.choice([json.dumps({"x": nasty(draw), "n": [1, 2.5, None]}), "{}", '{"a":{"c":"é"}}', "no JSON"])
    return {"id": number, "type": "function", "function": {"name": "look", "arguments": arguments}}


def nasty(draw: random.Random) -> str:
    words = [
        "hello",
        " two  spaces ",
        "\n",
        "</s>",
        "[INST]",
        "[/INST]",
        "<s>",
        "ü漢🙂",
        '"q"',
        "\\",
        '{"a": 1}',
        "▁",
        "\t",
    ]
    return "x".join(draw.choices(words, k=draw.randint(1, 5))) + draw.choice(["", " ", "."])
