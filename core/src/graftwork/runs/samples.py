"""How the answers to the same prompts changed over a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LONGEST_TEXT = 4000
MOST_MOMENTS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A completion and the place of its moment in the run's moments."""

    moment: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt and its answers in order; ``reference`` is what was expected, if anything was."""

    prompt: str
    reference: str
    answers: list[Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """All of a run's: ``moments`` are the labels of when answers were taken."""

    moments: list[str]
    samples: list[Sample]

    @property
    def columns(self) -> int:
        """How many answers stand beside each other at most: the first, a later one, the expected one."""
        return min(2, max((len(sample.answers) for sample in self.samples), default=0)) + any(
            sample.reference for sample in self.samples
        )


def collect(rows: list[dict[str, Any]]) -> Samples:
    """Groups the rows of samples.jsonl by prompt and orders them by step."""
    moments = _thinned(sorted({_moment(row) for row in rows}, key=lambda moment: moment[0]))
    places = {moment: at for at, moment in enumerate(moments)}
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if _moment(row) in places:
            grouped.setdefault(_text(row["prompt"]), []).append(row)
    samples = [_sample(prompt, group, places) for prompt, group in grouped.items()]
    return Samples(moments=[_label(moment) for moment in moments], samples=samples)


def _sample(prompt: str, rows: list[dict[str, Any]], places: dict[tuple[int, str], int]) -> Sample:
    answers = {places[_moment(row)]: _text(row.get("completion")) for row in rows}
    reference = next((_text(row["reference"]) for row in rows if row.get("reference")), "")
    ordered = [Answer(moment=place, text=answers[place]) for place in sorted(answers)]
    return Sample(prompt=prompt, reference=reference, answers=ordered)


def _moment(row: dict[str, Any]) -> tuple[int, str]:
    step = row.get("step")
    return step if isinstance(step, int) else 0, str(row.get("stage") or "")


def _label(moment: tuple[int, str]) -> str:
    step, stage = moment
    return f"{stage} · step {step:,}" if stage else f"step {step:,}"


def _thinned(moments: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The first, the last, and evenly spaced ones between."""
    if len(moments) <= MOST_MOMENTS:
        return moments
    last = len(moments) - 1
    return [moments[round(at * last / (MOST_MOMENTS - 1))] for at in range(MOST_MOMENTS)]


def _text(value: Any) -> str:
    """A prompt may be a conversation: one line a turn."""
    if isinstance(value, list):
        turns = (f"{turn.get('role', '?')}: {turn.get('content', '')}" for turn in value if isinstance(turn, dict))
        value = "\n".join(turns)
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"
