"""The two rewards of the package, and how a registered one is called."""

from __future__ import annotations

from typing import Any

import pytest

from graftwork.errors import RunError, UsageError
from graftwork.registry import get_registry
from graftwork.specs import RewardSpec
from graftwork_trl.grpo import reward_function, rewards_of
from graftwork_trl.params import GrpoOptions
from graftwork_trl.rewards import answer_match, length_penalty


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("So it is 72.", "48/2 = <<48/2=24>>24\n#### 72", 1.0),
        ("The answer is 1,234.0 in all", "#### 1234", 1.0),
        ("first 3, then $12", "#### 12", 1.0),
        (r"We get \boxed{7} of 9", "7", 1.0),
        (r"\boxed{x + 1}", r"\boxed{X + 1}", 1.0),
        ("-5", "#### 5", 0.0),
        ("none of it", "#### 5", 0.0),
        ("Paris", " paris ", 1.0),
        ("Rome", "Paris", 0.0),
    ],
)
def test_answer_match(completion: str, answer: str, expected: float) -> None:
    said = [{"role": "assistant", "content": completion}]
    assert answer_match([[]], [said], answer=[answer]) == [expected]
    assert answer_match(["q"], [completion], answer=[answer], other=[1]) == [expected]


def test_length_penalty() -> None:
    assert length_penalty([[], []], ["", ""], completion_ids=[[1, 2], [1] * 500]) == [-0.002, -0.5]


def test_rewards_are_found_by_name_in_any_case() -> None:
    options = GrpoOptions(reward_functions=["ANSWER_MATCH", "length_penalty"])
    functions = rewards_of(options)
    assert [function.__name__ for function in functions] == ["answer_match", "length_penalty"]
    assert functions[0](["q"], ["4"], answer=["4"], completion_ids=[[1]]) == [1.0]


def test_the_registry_has_the_table() -> None:
    table = get_registry().reward_functions
    assert {"answer_match", "length_penalty"} <= set(table)
    assert isinstance(table["answer_match"], RewardSpec)


def test_a_reward_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**columns: Any) -> list[float]:
        return [1 / 0]

    spec = RewardSpec(name="broken", load=lambda: broken)
    monkeypatch.setattr(get_registry(), "reward_functions", {"broken": spec})
    with pytest.raises(
        RunError, match=r"reward function broken failed: ZeroDivisionError: .*given: answer, completion"
    ):
        reward_function("broken")(["q"], ["a"], answer=["b"], completion_ids=[[1]])


def test_an_answer_is_needed_for_answer_match() -> None:
    with pytest.raises(RunError, match=r"answer_match failed: TypeError: .*'answer'; the columns it was given: text"):
        reward_function("answer_match")(["q"], ["a"], text=["b"])


def test_weights_go_with_functions() -> None:
    with pytest.raises(UsageError, match=r"reward_weights: 2 weights for 1 reward_functions; give one for each"):
        rewards_of(GrpoOptions(reward_functions=["answer_match"], reward_weights=[1.0, 2.0]))
