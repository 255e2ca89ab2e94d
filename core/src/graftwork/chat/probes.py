"""The conversations on which a chat template is proven: each asks it for one more thing than a question."""

from __future__ import annotations

from typing import Any, NamedTuple


class Probe(NamedTuple):
    """A conversation and its tools; ``image`` says that the template must be able to show one."""

    name: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    image: bool = False


SYSTEM = {"role": "system", "content": "Be brief and kind."}
ASK = {"role": "user", "content": "Hello, how far is the sea?"}
ANSWER = {"role": "assistant", "content": "An hour by train."}
ASK_AGAIN = {"role": "user", "content": "Naïve question: warm enough?"}
ANSWER_AGAIN = {"role": "assistant", "content": "In June."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "a1b2c3d4e", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Split"}}}
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "content": "26 degrees", "tool_call_id": "a1b2c3d4e"}
PICTURE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is this beach?"}]}

PROBES = (
    Probe("one question", [ASK, ANSWER]),
    Probe("two questions", [ASK, ANSWER, ASK_AGAIN, ANSWER_AGAIN]),
    Probe("a system message", [SYSTEM, ASK, ANSWER, ASK_AGAIN, ANSWER_AGAIN]),
    Probe("tools", [ASK, CALL, RESULT, ANSWER], [WEATHER]),
    Probe("an image", [PICTURE, ANSWER], image=True),
)
