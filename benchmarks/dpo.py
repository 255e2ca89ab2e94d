"""DPO of a 42M Llama on real pairs, 4 a step, beside TRL's ``DPOTrainer``: pairs a second and peak memory.

    python benchmarks/dpo.py [--rounds 2] [--steps 4] [--settings default,...] [--only-graftwork]

Every measurement is a fresh process; the contenders take turns within a round. All have the same weights, pairs (in
this order), bfloat16 autocast and AdamW; the log-probabilities of the first step's answers are printed as the proof.
Time is that of whole steps after three of warm-up; the figure is the median over all steps of all rounds. A reference
that is computed before the first step is stated apart, and in the last column as if there were one epoch only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets import MAX_LENGTH, Assets, load_tokenizer, save_model
from contender_dpo_trl import PAIRS, SETTINGS, WARM_UP
from run import measure

LONG, SHORT = 200, 40
"""Words of a made-up pair's answers."""


@dataclass
class Results:
    """All measurements of one contender."""

    name: str
    steps: list[float] = field(default_factory=list)  # seconds
    references: list[float] = field(default_factory=list)  # seconds for as many pairs as a step has
    peaks: list[int] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)

    def add(self, measured: dict[str, Any]) -> None:
        """One process's steps."""
        self.steps += measured["seconds"]
        self.references += measured["reference_seconds"]
        self.peaks.append(measured["peak_rss_bytes"])
        self.first = measured["first"]

    @property
    def speed(self) -> float:
        """Pairs a second within a step."""
        return PAIRS / statistics.median(self.steps)

    @property
    def reference(self) -> float:
        """Seconds for the reference of a step's pairs, where it is computed before the first one."""
        return statistics.median(self.references) if self.references else 0.0

    @property
    def whole_speed(self) -> float:
        """Pairs a second over one epoch, reference included."""
        return PAIRS / (statistics.median(self.steps) + self.reference)


def prepare(folder: Path, data: Path | None, tokenizer: Path | None, count: int) -> Assets:
    """The model of ``assets.py``, and a file with the first ``count`` pairs whose conversations fit."""
    shared = os.environ.get("GRAFTWORK_TEST_DATA")
    if shared:
        data = data or Path(shared) / "datasets" / "preference" / "dpo_en_demo.0-149.json"
        tokenizer = tokenizer or Path(shared) / "tokenizers" / "llama2"
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_pairs(data) if data else made_up()
    chat_tokenizer = load_tokenizer(tokenizer, [row["prompt"] + row[answer] for row in rows for answer in ANSWERS])
    save_model(folder / "model", chat_tokenizer)
    lengths = [
        max(len(chat_tokenizer.apply_chat_template(row["prompt"] + row[answer])["input_ids"]) for answer in ANSWERS)
        for row in rows
    ]
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= MAX_LENGTH]
    chosen = [fitting[number % len(fitting)] for number in range(count)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return Assets(folder / "model", path, 0.0)


ANSWERS = ("chosen", "rejected")


def read_pairs(path: Path) -> list[dict[str, list[dict[str, str]]]]:
    """Pairs in any shape that graftwork reads, as TRL reads them."""
    from graftwork.config import DatasetParams
    from graftwork.data.preference import to_pair
    from graftwork.data.readers import OpenRequest, open_pairs

    dataset = DatasetParams(dataset_name="preference_pairs_jsonl", dataset_path=str(path))
    pairs = (to_pair(row) for row in open_pairs(OpenRequest(dataset=dataset, params=None)).rows())
    return [
        {
            name: [{"role": message.role.value, "content": message.text} for message in getattr(pair, name)]
            for name in ("prompt", *ANSWERS)
        }
        for pair in pairs
    ]


def made_up() -> list[dict[str, list[dict[str, str]]]]:
    """Where there are no real pairs: a long and a short answer to each question."""
    words = ["graft", "scion", "stock", "bark", "knife", "waxes", "roots", "leafs", "cutting", "binding"]
    return [
        {
            "prompt": [{"role": "user", "content": f"Question {number}: {' '.join(words)}"}],
            "chosen": [{"role": "assistant", "content": " ".join(words[number * i % 10] for i in range(LONG))}],
            "rejected": [{"role": "assistant", "content": " ".join(words[number * i % 10] for i in range(SHORT))}],
        }
        for number in range(1, 100)
    ]


def table(ours: Results, peers: list[Results]) -> str:
    """The results as Markdown."""
    lines = [
        "| trainer | pairs/s | graftwork is faster by | peak memory | of graftwork's | reference of 4 pairs, once "
        "| pairs/s with it | log p of step 1's answers |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in [ours, *peers]:
        peak, own = max(result.peaks), result is ours
        first = ", ".join(f"{value:.1f}" for value in result.first.values())
        lines.append(
            f"| {result.name} | {result.speed:.2f} | {'' if own else f'{ours.speed / result.speed:.1f} x'} "
            f"| {peak / 2**30:.2f} GiB | {'' if own else f'{peak / max(ours.peaks):.1f} x'} "
            f"| {result.reference:.2f} s | {result.whole_speed:.2f} | {first} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--settings", default=",".join(SETTINGS), help="TRL's settings, with commas between")
    parser.add_argument("--only-graftwork", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("graftwork-bench"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    options = parser.parse_args()
    settings = [] if options.only_graftwork else [name for name in SETTINGS if name in options.settings.split(",")]
    assets = prepare(options.folder / "dpo", options.data, options.tokenizer, PAIRS * (options.steps + WARM_UP))
    ours, peers = Results("graftwork native"), [Results(f"TRL, {name}") for name in settings]
    for number in range(options.rounds):
        ours.add(measure("contender_dpo_graftwork.py", assets.model, assets.data, options.steps))
        for name, result in zip(settings, peers, strict=True):
            result.add(measure("contender_dpo_trl.py", assets.model, assets.data, options.steps, name))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    print(table(ours, peers))


if __name__ == "__main__":
    main()
