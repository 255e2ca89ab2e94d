"""Supervised fine-tuning of a 42M Llama beside TRL's ``SFTTrainer``: speed, memory, share of the GEMM rate.

    python benchmarks/run.py [--rounds 2] [--steps 4] [--settings default,padding-free] [--only-graftwork]
    python benchmarks/run.py --only preparing

Every measurement is a fresh process; the contenders take turns within a round, so that a machine that drifts
drifts for all. All have the same weights, conversations, labels (the assistant's tokens), bfloat16 autocast and
AdamW (one loop is bfloat16 throughout); the loss of the first step is printed as the proof. Tokens are input tokens
without padding; time is that of whole steps, data included, after three steps of warm-up; the figure is the median
over all steps of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets import MODEL, prepare
from contender_trl import SETTINGS

HERE = Path(__file__).parent
PARTS = {
    "fine-tuning": None,
    "what each part gives": "ablation.py",
    "pretraining": "pretrain.py",
    "preferences": "dpo.py",
    "preparing": "prepare.py",
}
"""What is measured, and the script that does it; None is this one."""


@dataclass
class Results:
    """All measurements of one contender."""

    name: str
    speeds: list[float] = field(default_factory=list)  # tokens/s, of each step
    flops: list[float] = field(default_factory=list)  # needed FLOP/s, of each step
    peaks: list[int] = field(default_factory=list)
    first_loss: float = 0.0

    def add(self, measured: dict[str, Any], mean_context: float) -> None:
        """One process's steps."""
        for seconds, tokens, labels in zip(measured["seconds"], measured["tokens"], measured["labels"], strict=True):
            self.speeds.append(tokens / seconds)
            self.flops.append(needed_flops(tokens, labels, mean_context) / seconds)
        self.peaks.append(measured["peak_rss_bytes"])
        self.first_loss = measured["first_loss"]

    @property
    def speed(self) -> float:
        return statistics.median(self.speeds)

    @property
    def peak(self) -> int:
        return max(self.peaks)


def needed_flops(tokens: int, labels: int, mean_context: float) -> float:
    """6 x parameters outside embedding and head x tokens + 6 x width x vocabulary x labelled tokens + attention.

    Attention inside a segment of S tokens, causal, is 6 x layers x width x S squared, forward and backward;
    ``mean_context`` is the S that a token sees on average, the sum of the squares over the sum.
    """
    width, ffn, layers = MODEL["hidden_size"], MODEL["intermediate_size"], MODEL["num_hidden_layers"]
    body = layers * (4 * width * width + 3 * width * ffn + 2 * width) + width
    attention = layers * width * mean_context * tokens
    return 6.0 * (body * tokens + width * MODEL["vocab_size"] * labels + attention)


def gemm_rate() -> float:
    """FLOP/s of a bfloat16 product of 2048 x 2048 matrices: the median of ten."""
    import torch

    left, right = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(12):
        begin = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begin)
    return 2 * 2048**3 / statistics.median(times[2:])


def measure(script: str, model: Path, data: Path, steps: int, *more: str) -> dict[str, Any]:
    """One fresh process; its last line is its result."""
    command = [sys.executable, str(HERE / script), str(model), str(data), str(steps), *more]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(ours: Results, peers: list[Results], gemm: float) -> str:
    """The results as Markdown."""
    lines = [
        "| trainer | tokens/s | graftwork is faster by | peak memory | share of the GEMM rate | loss of step 1 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for result in [ours, *peers]:
        ratio = "" if result is ours else f"{ours.speed / result.speed:.1f} x"
        lines.append(
            f"| {result.name} | {result.speed:,.0f} | {ratio} | {result.peak / 2**30:.2f} GiB "
            f"| {statistics.median(result.flops) / gemm:.0%} | {result.first_loss:.4f} |"
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
    parser.add_argument("--only", choices=PARTS, help="one part; default: all of them")
    options = parser.parse_args()
    for part, script in PARTS.items():
        if options.only in (None, part):
            print(f"\n{part}\n", flush=True)
            if script is None:
                fine_tuning(options)
            else:
                subprocess.run([sys.executable, HERE / script], check=True)


def fine_tuning(options: argparse.Namespace) -> None:
    """The rows of supervised fine-tuning."""
    settings = [] if options.only_graftwork else [name for name in SETTINGS if name in options.settings.split(",")]
    assets = prepare(options.folder, options.data, options.tokenizer, conversations=8 * (options.steps + 8))
    ours, peers, gemms = Results("graftwork native"), [Results(f"TRL, {name}") for name in settings], []
    loop = Results("a loop in pure bfloat16, padded")
    for number in range(options.rounds):
        gemms.append(gemm_rate())
        arguments = (assets.model, assets.data, options.steps)
        ours.add(measure("contender_graftwork.py", *arguments), assets.mean_context)
        if not options.only_graftwork:
            loop.add(measure("contender_loop.py", *arguments), assets.mean_context)
        for name, result in zip(settings, peers, strict=True):
            result.add(measure("contender_trl.py", *arguments, name), assets.mean_context)
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    print(table(ours, [loop, *peers] if loop.speeds else peers, statistics.median(gemms)))
    print(f"\nbfloat16 GEMM: {statistics.median(gemms) / 1e9:,.0f} GFLOP/s on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
