"""The SLURM example is a script that bash can read, and its command is one that graft and torchrun understand."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from torch.distributed.run import get_args_parser

from graftwork.cli.train import train

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "slurm" / "train.sbatch"
TOOLS = {
    "srun": 'printf "%q " "$@" > "$SAID"',
    "scontrol": "printf 'first\\nsecond\\n'; seq 100000",
}
JOB = {
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "64",
    "SLURM_JOB_ID": "17",
}


def test_bash_reads_it() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert SCRIPT.read_text().startswith("#!/bin/bash\n")


def started_by(tmp_path: Path, *arguments: str) -> list[str]:
    """What the script has ``srun`` start, on a machine that has SLURM's commands in name only."""
    for name, body in TOOLS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, **JOB, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(tmp_path / "said")}
    subprocess.run(["bash", str(SCRIPT), *arguments], check=True, env=environment)
    return shlex.split((tmp_path / "said").read_text())


def test_torchrun_and_graft_understand_its_command(tmp_path: Path) -> None:
    command = started_by(tmp_path, str(ROOT / "examples/sft-chat.yaml"), "fsdp.enable_fsdp=true")
    place = command.index("torchrun")
    assert command[:place] == ["--kill-on-bad-exit=1"]
    asked = get_args_parser().parse_args(command[place + 1 :])
    assert (asked.nnodes, asked.nproc_per_node, asked.rdzv_endpoint) == ("2", "8", "first:29500")
    assert (asked.module, asked.training_script) == (True, "graftwork")
    verb, *arguments = asked.training_script_args
    assert verb == "train"
    context = train.make_context("train", list(arguments))
    assert Path(context.params["path"]).exists()
    assert context.params["nproc_per_node"] == 1

    from graftwork.config import load_config

    config = load_config(context.params["path"], context.params["overrides"])
    assert config.fsdp.shards
    assert config.training.try_resume_from_last_checkpoint


def test_it_asks_for_a_configuration(tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT)], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "say which configuration" in done.stderr
