"""Runs one `graft` command as several processes at once, as a launcher would, forked from this one.

Importing torch and transformers takes seconds; a fork has them at once. Each line on stdin is a request, each line on
stdout its answer: the exit codes. What the processes found out about their parameters lies beside their outputs.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

LIMIT_S = 30
"""No test waits longer for a process."""


def main() -> None:
    import peft  # noqa: F401
    import torch
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama  # noqa: F401

    import graftwork.cli  # noqa: F401
    import graftwork_native.trainer  # noqa: F401

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        (Path(request["folder"]) / "rendezvous").unlink(missing_ok=True)
        children = [start(request, rank) for rank in range(request["ranks"])]
        print(json.dumps({"codes": wait(children)}), flush=True)


def start(request: dict[str, Any], rank: int) -> int:
    child = os.fork()
    if child == 0:
        os._exit(run(request, rank))
    return child


def wait(children: list[int]) -> list[int]:
    """The exit codes; a process that takes too long, or outlives one that failed by far, is killed."""
    codes: dict[int, int] = {}
    end = time.monotonic() + LIMIT_S
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child]:
                    end = min(end, time.monotonic() + 5)
            elif time.monotonic() > end:
                os.kill(child, 9)
        time.sleep(0.005)
    return [codes[child] for child in children]


def run(request: dict[str, Any], rank: int) -> int:
    """The child: its place, its output to a file, and `graft`."""
    import graftwork.cli
    from graftwork_native import trainer

    folder = Path(request["folder"])
    with (folder / f"output-{rank}.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.dump_traceback_later(LIMIT_S - 5, file=sys.__stderr__)
    if request["ranks"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["ranks"])}
        os.environ |= {"GRAFTWORK_RENDEZVOUS": (folder / "rendezvous").as_uri(), "GLOO_SOCKET_IFNAME": "lo"}
    original = trainer.set_up

    def set_up(*arguments: Any, **named: Any) -> Any:
        parts = original(*arguments, **named)
        (folder / f"parameters-{rank}.json").write_text(json.dumps(facts(parts)))
        return parts

    trainer.set_up = set_up
    fault = request.get("fault")
    if fault is not None and fault["rank"] == rank:
        break_writing(**fault)
    code = graftwork.cli.main(request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def break_writing(rank: int, after: int, kind: str) -> None:
    """From checkpoint number ``after`` on, this process's disk is full when its part is nearly written, or it is
    killed there.
    """
    from graftwork_native import shards

    original = shards.HuggingFaceStorageWriter.write_data
    written = []

    def write_data(writer: Any, *arguments: Any) -> Any:
        done = original(writer, *arguments)
        written.append(writer)
        if len(written) <= after:
            return done
        if kind == "killed":
            os.kill(os.getpid(), 9)
        raise OSError(28, "No space left on device", str(writer.path))

    shards.HuggingFaceStorageWriter.write_data = write_data  # type: ignore[method-assign]


def facts(parts: Any) -> dict[str, Any]:
    """Of each parameter: what it is, and the bytes that this process holds of it."""

    def held(tensor: Any) -> int:
        local = getattr(tensor, "_local_tensor", tensor)
        return int(local.numel() * local.element_size())

    parameters = dict(parts.model.named_parameters())
    return {
        "kinds": {name: type(parameter).__name__ for name, parameter in parameters.items()},
        "held": sum(map(held, parameters.values())),
        "whole": sum(parameter.numel() * parameter.element_size() for parameter in parameters.values()),
    }


if __name__ == "__main__":
    main()
