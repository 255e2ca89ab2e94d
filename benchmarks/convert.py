"""How fast ``graft convert`` is beside ``cp`` and ``fsync`` of the same bytes, and what it holds in memory.

python benchmarks/convert.py [--folder DIR] [--rounds 5] [--layers 14]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

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
    """Prints a table: medians of seconds, of bytes a second and of the ratio to the copy just before, and the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write; the disk that is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=14)
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        nbytes = make_model(folder / "hf", options.layers)
        for name in ("meta", "hf-bin"):
            one_conversion(folder / "hf", folder / name, name)
        copies: list[float] = []
        results: dict[tuple[str, str], list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                copies.append(copied(folder / way[0], folder / "copy"))
                result = one_conversion(folder / way[0], folder / "out", way[1])
                results[way].append({**result, "ratio": copies[-1] / result["seconds"]})
                shutil.rmtree(folder / "out")
    print(f"{nbytes / 1e6:,.0f} MB; cp and fsync: {nbytes / median(copies) / 1e6:,.0f} MB/s")
    print(f"between {nbytes / max(copies) / 1e6:,.0f} and {nbytes / min(copies) / 1e6:,.0f} MB/s\n")
    print("| conversion | MB/s | of the copy's speed | memory over the start |")
    print("|---|---:|---:|---:|")
    for (source, target), rows in results.items():
        seconds, ratio, peak = (median(row[key] for row in rows) for key in ("seconds", "ratio", "peak_bytes"))
        print(f"| {source} to {target} | {nbytes / seconds / 1e6:,.0f} | {ratio:.0%} | {peak / 1e6:,.0f} MB |")


def make_model(folder: Path, layers: int) -> int:
    """A Llama of random bfloat16 numbers; its size in bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**MODEL, num_hidden_layers=layers)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


def copied(source: Path, target: Path) -> float:
    """Seconds of ``cp`` and ``fsync`` of each file."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for file in target.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def one_conversion(source: Path, target: Path, to: str) -> dict[str, float]:
    """Seconds and peak of one conversion in a process of its own, without the time of imports."""
    code = Path(__file__).with_name("contender_convert.py")
    done = subprocess.run(
        [sys.executable, code, source, target, to], check=True, capture_output=True, text=True, env=os.environ
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main()
