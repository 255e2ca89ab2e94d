"""Pretraining on packed rows of 1,024 tokens, and what a vocabulary of 128,256 costs: speed and memory.

    python benchmarks/pretrain.py [--rounds 2] [--steps 4]

The model is that of ``run.py``; the text is one long document, so that every row is full and a token sees the row's
earlier ones. Beside it stands a loop over the same transformers model with whole logits, under the same bfloat16
autocast. Then the same conversations are trained on with 32,000 and with 128,256 tokens in the vocabulary: what the
peak grows by beyond weights, gradients and optimizer state is the price of a large vocabulary.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from assets import MODEL, docstring_rows, load_tokenizer, prepare, read_rows, save_model
from run import Results, gemm_rate, measure, table

ROW = 1024
VOCABULARIES = (32_000, 128_256)
BYTES = {"weights": 4, "gradients": 4, "optimizer state": 8}
"""Of each parameter: float32 masters, their gradients, AdamW's two moments."""


def long_text() -> str:
    """One document that is longer than any run here."""
    shared = os.environ.get("GRAFTWORK_TEST_DATA")
    if shared:
        return (Path(shared) / "datasets" / "text" / "tinyshakespeare.train.txt").read_text(encoding="utf-8")
    return "\n".join(message["content"] for row in docstring_rows() for message in row) * 4


def pretraining(options: argparse.Namespace) -> None:
    """Tokens a second and the share of the GEMM rate."""
    shared = os.environ.get("GRAFTWORK_TEST_DATA")
    folder = options.folder / "pretrain"
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(shared) / "datasets" / "instruct" / "alpaca_en_demo.0-499.json" if shared else None
    rows = read_rows(source) if source else docstring_rows()
    save_model(folder / "model", load_tokenizer(Path(shared) / "tokenizers" / "llama2" if shared else None, rows))
    (folder / "text.txt").write_text(long_text(), encoding="utf-8")
    ours, loop, gemms = Results("graftwork native"), Results("transformers, whole logits"), []
    arguments = (folder / "model", folder / "text.txt", options.steps)
    for _ in range(options.rounds):
        gemms.append(gemm_rate())
        ours.add(measure("contender_graftwork.py", *arguments, "pretrain"), ROW)
        loop.add(measure("contender_pretrain_loop.py", *arguments), ROW)
    print(table(ours, [loop], statistics.median(gemms)))


def vocabulary(options: argparse.Namespace) -> None:
    """Peak memory by the size of the vocabulary."""
    print("| vocabulary | peak over the start | weights, gradients, optimizer state | the rest |")
    print("|---:|---:|---:|---:|")
    rest: list[float] = []
    for size in VOCABULARIES:
        assets = prepare(options.folder / f"vocabulary-{size}", None, None, 8 * (options.steps + 8), vocab_size=size)
        found = measure("contender_graftwork.py", assets.model, assets.data, options.steps)
        peak = found["peak_rss_bytes"] - found["rss_before_bytes"]
        fixed = parameters(size) * sum(BYTES.values())
        rest.append(peak - fixed)
        print(f"| {size:,} | {mib(peak)} | {mib(fixed)} | {mib(peak - fixed)} |")
    print(f"\nThe rest grows by {rest[1] / rest[0] - 1:.1%}.")


def parameters(vocab_size: int) -> int:
    """Of the model of ``assets.py``, whose head is its embedding."""
    width, ffn, layers = MODEL["hidden_size"], MODEL["intermediate_size"], MODEL["num_hidden_layers"]
    return vocab_size * width + layers * (4 * width * width + 3 * width * ffn + 2 * width) + width


def mib(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("graftwork-bench"))
    options = parser.parse_args()
    pretraining(options)
    print(flush=True)
    vocabulary(options)


if __name__ == "__main__":
    main()
