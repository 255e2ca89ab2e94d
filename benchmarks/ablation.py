"""What each optimisation gives: the fine-tuning step of ``run.py`` with one of them taken away at a time.

    python benchmarks/ablation.py [--rounds 2] [--steps 4] [--names "one row of segments,..."]
    python benchmarks/ablation.py --profile [--steps 4]

Every measurement is a fresh process; the contenders take turns within a round, so that a machine that drifts drifts
for all. Loss and gradient norm of the first step are the proof that all do the same work. ``--profile`` measures
nothing of this: it says where the time of the full trainer's step goes. Both tables belong into docs/performance.md,
from which ``docs/chart.py`` draws.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets import Assets, prepare
from contender_ablation import ADDED, FULL, NOTHING_LEFT, PROFILE, TAKEN
from run import Results, measure

CONTENDER = "contender_ablation.py"
SAME_WORK = 0.01
"""So far apart may losses and gradient norms of step 1 be, as a share: bfloat16 and float32 products differ by less."""


@dataclass
class Contender(Results):
    """The norm of the first step's gradient proves the backward pass, as its loss does the forward pass."""

    first_norm: float = 0.0

    def add(self, measured: dict[str, Any], mean_context: float) -> None:
        super().add(measured, mean_context)
        self.first_norm = measured["first_norm"]

    def does_as(self, other: Contender) -> bool:
        """Whether both do the same work."""
        pairs = ((self.first_loss, other.first_loss), (self.first_norm, other.first_norm))
        return all(math.isclose(mine, theirs, rel_tol=SAME_WORK) for mine, theirs in pairs)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--names", default=",".join([*TAKEN, NOTHING_LEFT]), help=f"also: {', '.join(ADDED)}")
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes")
    parser.add_argument("--folder", type=Path, default=Path("graftwork-bench"))
    options = parser.parse_args()
    assets = prepare(options.folder / "ablation", None, None, conversations=8 * (options.steps + 8))
    if options.profile:
        print(shares(assets, options.steps))
    else:
        print(ablation(assets, options))


def ablation(assets: Assets, options: argparse.Namespace) -> str:
    """The full trainer and those with something taken away, as Markdown."""
    names = [name for name in (*TAKEN, NOTHING_LEFT, *ADDED) if name in options.names.split(",")]
    results = [Contender(name) for name in (FULL, *names)]
    for number in range(options.rounds):
        for result in results:
            found = measure(CONTENDER, assets.model, assets.data, options.steps, result.name)
            result.add(found, assets.mean_context)
            line = table([results[0], result]).splitlines()[-1]
            print(f"round {number + 1} of {options.rounds}: {line}", file=sys.stderr)
    other = [result.name for result in results if not result.does_as(results[0])]
    if other:
        raise SystemExit(f"{table(results)}\nnot the same work, by loss or gradient of step 1: {', '.join(other)}")
    return table(results)


def table(results: list[Contender]) -> str:
    """The first one is the full trainer, of which the others' shares are."""
    full = results[0]
    lines = [
        "| without | tokens/s | share | peak memory | share | loss of step 1 | norm of its gradient |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        lines.append(
            f"| {result.name} | {result.speed:,.0f} | {result.speed / full.speed:.0%} "
            f"| {result.peak / 2**30:.2f} GiB | {result.peak / full.peak:.0%} "
            f"| {result.first_loss:.4f} | {result.first_norm:.4f} |"
        )
    return "\n".join(lines)


def shares(assets: Assets, steps: int) -> str:
    """Where the time goes, as Markdown; what the operations call is not counted twice."""
    found = measure(CONTENDER, assets.model, assets.data, steps, PROFILE)
    lines = ["| part of a step | time | share |", "|---|---:|---:|"]
    for group, seconds in sorted(found["groups"].items(), key=lambda item: -item[1]):
        lines.append(f"| {group} | {seconds / steps:.3f} s | {seconds / found['seconds']:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
