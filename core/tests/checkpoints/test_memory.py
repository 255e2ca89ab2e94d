"""What a conversion holds in memory: at most the largest group of tensors, one file and 200 MB, whatever the size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from pathlib import Path

SHARD_MB = 50
LIMIT_BYTES = (SHARD_MB + 200) * 1_000_000  # and the largest tensor, which the child says
CODE = """
import json, pathlib, sys
from graftwork.checkpoints import convert, open_checkpoint
from graftwork.checkpoints.expected import expected_headers

def memory(key):
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith(key))

folder, shard = pathlib.Path(sys.argv[1]), sys.argv[2]
checkpoint = open_checkpoint(folder / "hf")
expected_headers(checkpoint.values)  # what this imports is not the conversion's
measured = {"largest": max(header.nbytes for header in checkpoint.headers.values())}
for source, target, to in (("hf", "meta", "meta"), ("meta", "back", "hf")):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    convert(folder / source, folder / target, to, max_shard_size=shard)
    measured[to] = memory("VmHWM") - before
print(json.dumps(measured))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc to measure a peak")
def test_a_conversion_holds_one_tensor_not_the_file(tmp_path: Path) -> None:
    source = random_model(tmp_path / "hf")
    size = (source / "model.safetensors").stat().st_size
    arguments = [sys.executable, "-c", CODE, tmp_path, f"{SHARD_MB}MB"]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    measured = json.loads(done.stdout)
    limit = LIMIT_BYTES + measured["largest"]
    assert size > limit, "the file must be larger than what is allowed"
    assert measured["meta"] < limit
    assert measured["hf"] < limit


def random_model(folder: Path) -> Path:
    """About 400 MB of random bits."""
    shape = {"vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, **heads, dtype="bfloat16")).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data = torch.randint(0, 2**14, parameter.shape, dtype=torch.int16).view(torch.bfloat16)
    model.save_pretrained(folder)
    return folder
