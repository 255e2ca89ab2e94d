"""How fast ``graft convert`` is beside ``cp`` and ``fsync`` of the same bytes, and what it holds in memory.

python benchmarks/convert.py [--folder DIR] [--rounds 5] [--layers 14]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

MODEL = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
WAYS = (("hf", "hf"), ("hf", "hf-bin"), ("hf", "meta"), ("hf", "mistral"), ("meta", "hf"), ("hf-bin", "hf"))


def main() -> None:
    """Prints a table: medians of bytes a second and of the ratio to the copy just before, and the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write; the disk that is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=14)
    options = parser.parse_args()
    from graftwork.checkpoints import convert

    with TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        nbytes = make_model(folder / "hf", options.layers)
        for name in ("meta", "hf-bin"):
            convert(folder / "hf", folder / name, name)
        results = {way: measured(folder / way[0], folder / "out", way[1], options.rounds) for way in WAYS}
    copies = [copy for result in results.values() for copy, _ in result["pairs"]]
    print(f"{nbytes / 1e6:,.0f} MB; cp and fsync: {nbytes / median(copies) / 1e6:,.0f} MB/s")
    print(f"between {nbytes / max(copies) / 1e6:,.0f} and {nbytes / min(copies) / 1e6:,.0f} MB/s\n")
    print("| conversion | MB/s | of the copy's speed | memory over the start |")
    print("|---|---:|---:|---:|")
    for (source, target), result in results.items():
        speed = nbytes / median(seconds for _, seconds in result["pairs"]) / 1e6
        ratio = median(copy / seconds for copy, seconds in result["pairs"])
        print(f"| {source} to {target} | {speed:,.0f} | {ratio:.0%} | {result['peak_bytes'] / 1e6:,.0f} MB |")


def make_model(folder: Path, layers: int) -> int:
    """A Llama of random bfloat16 numbers; its size in bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**MODEL, num_hidden_layers=layers)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


def measured(source: Path, target: Path, to: str, rounds: int) -> dict[str, Any]:
    """Copies and conversions in turn, in a process of their own."""
    code = Path(__file__).with_name("contender_convert.py")
    command = [sys.executable, code, source, target, to, str(rounds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main()
