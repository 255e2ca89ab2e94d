"""Preparing chat samples (template, mask, tokens, packing, cache) beside TRL's ``SFTTrainer``.

    python benchmarks/prepare.py [--conversations 100000] [--rounds 3] [--processes 1,2]

Every measurement is a fresh process, and the contenders take turns within a round. Time runs from the file to the
rows of the first step: reading, rendering, tokens, mask, packing, and what each writes to disk meanwhile; loading the
model and building the trainer are left out. CPU time is that of all processes, for a machine that has others to serve;
peak memory is that of the main process. The tokens and the trained tokens of all are printed as the proof that they do
the same work. The texts are varied by a seeded draw, so that no two conversations are alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from assets import docstring_rows, load_tokenizer, read_rows

HERE = Path(__file__).parent
SETS = ("alpaca_en_demo.0-499.json", "gsm8k_train.0-999.jsonl", "raschka_instruction.0-799.json")
LONGEST = 800
"""Tokens of the longest conversation that is varied; the variation must still fit into 1,024."""
REPLACED = 0.15
"""The share of its words that a variation draws anew."""

COUNTED = ("tokens", "supervised_tokens")

Conversation = list[dict[str, str]]


def source_rows() -> list[Conversation]:
    """The three instruction sets of GRAFTWORK_TEST_DATA, else docstrings of the standard library."""
    shared = os.environ.get("GRAFTWORK_TEST_DATA")
    if not shared:
        return docstring_rows()
    return [row for name in SETS for row in read_rows(Path(shared) / "datasets" / "instruct" / name)]


def write_conversations(path: Path, rows: list[Conversation], count: int) -> None:
    """``count`` conversations, each of ``rows`` first as it is and then with other words in it."""
    generator = random.Random(0)
    words = [word for row in rows for message in row for word in message["content"].split(" ") if word]

    def varied(text: str) -> str:
        return " ".join(
            generator.choice(words) if word and generator.random() < REPLACED else word for word in text.split(" ")
        )

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = rows[number % len(rows)]
            if number >= len(rows):
                row = [{**message, "content": varied(message["content"])} for message in row]
            file.write(json.dumps({"messages": row}) + "\n")


def make_assets(folder: Path, count: int) -> tuple[Path, Path]:
    """A tiny model with the tokenizer (TRL wants a model), and the file of conversations."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shared = os.environ.get("GRAFTWORK_TEST_DATA")
    rows = source_rows()
    tokenizer = load_tokenizer(Path(shared) / "tokenizers" / "llama2" if shared else None, rows)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer))).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [row for row in rows if len(tokenizer.apply_chat_template(row)["input_ids"]) <= LONGEST]
    write_conversations(folder / "conversations.jsonl", rows, count)
    return folder / "model", folder / "conversations.jsonl"


def measure(script: str, *arguments: object, home: Path) -> dict[str, Any]:
    """One fresh process; its last line is its result."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GRAFTWORK_HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_round(model: Path, data: Path, processes: list[int]) -> dict[str, dict[str, Any]]:
    """Each contender once, ours with an empty cache and then with its own."""
    results = {}
    with tempfile.TemporaryDirectory() as home:
        for name in ("graftwork", "graftwork, second start"):
            results[name] = measure("contender_prepare.py", model, data, home=Path(home))
        for count in processes:
            name = f"TRL, dataset_num_proc={count}"
            results[name] = measure("contender_prepare_trl.py", model, data, count, home=Path(home))
    return results


def table(rounds: list[dict[str, dict[str, Any]]]) -> str:
    """Medians as Markdown; ratios are those within a round."""
    lines = [
        "| contender | time | graftwork is faster by | CPU time | of graftwork's | peak memory | tokens | trained |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in rounds[0]:
        peer = name.startswith("TRL")
        peak = max(one[name]["peak_rss_bytes"] for one in rounds)
        columns = [name]
        for what in ("seconds", "cpu_seconds"):
            ratio = statistics.median(one[name][what] / one["graftwork"][what] for one in rounds)
            columns += [
                f"{statistics.median(one[name][what] for one in rounds):,.2f} s",
                f"{ratio:.1f} x" if peer else "",
            ]
        columns += [f"{peak / 2**30:.2f} GiB", *(f"{rounds[0][name][what]:,}" for what in COUNTED)]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", default="1,2", help="TRL's dataset_num_proc, with commas between; empty: no TRL")
    options = parser.parse_args()
    processes = [int(count) for count in options.processes.split(",") if count]
    with tempfile.TemporaryDirectory() as folder:
        model, data = make_assets(Path(folder), options.conversations)
        rounds = []
        for number in range(options.rounds):
            rounds.append(run_round(model, data, processes))
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    print(table(rounds))


if __name__ == "__main__":
    main()
