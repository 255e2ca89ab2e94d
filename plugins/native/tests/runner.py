"""Runs `graft` again and again, each time in a process of its own that is forked from this one.

Importing torch and transformers takes seconds; a fork has them at once. Each line on stdin is a request, each line on
stdout its answer. A request may have the process killed at a moment that does not depend on the machine's speed:
at the n-th call of anything from Python, anywhere or within one function.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PLACES = {
    "preparing": "set_up",
    "training": "NativeTrainer._loop",
    "saving": "save_checkpoint",
    "evaluating": "evaluate",
    "ending": "NativeTrainer._end",
}
"""The functions of the trainer's module that are at work at such a moment."""


def main() -> None:
    import peft  # noqa: F401
    import torch
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama  # noqa: F401

    import graftwork.cli  # noqa: F401
    import graftwork_native.trainer  # noqa: F401

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(request)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def run(request: dict[str, Any]) -> None:
    """The child: its output to a file, its moment prepared, and `graft`."""
    import graftwork.cli

    with open(request["output"], "w") as output:  # noqa: PTH123
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request.get("file_bytes"):
        # A file that would grow beyond gives an error, as a full disk does.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
    counter = Counter(**request.get("moment") or {})
    if request.get("moment") or request.get("counts"):
        counter.begin()
    code = graftwork.cli.main(request["arguments"])
    sys.setprofile(None)
    if request.get("counts"):
        with open(request["counts"], "w") as file:  # noqa: PTH123
            json.dump({**counter.counts, **counter.least}, file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Counter:
    """Counts calls, everywhere and within the places; sends this process a signal at the one that was asked for."""

    def __init__(
        self, place: str = "anywhere", call: int = 0, visit: int = 1, send: str = "SIGKILL", times: int = 1
    ) -> None:
        self.place, self.call, self.visit, self.times = place, call, visit, times
        self.signal = getattr(signal, send)
        self.counts = {"anywhere": 0, **dict.fromkeys(PLACES, 0)}
        self.least: dict[str, int] = {}
        self.visits = dict.fromkeys(PLACES, 0)
        self.inside: list[str] = []

    def begin(self) -> None:
        from graftwork_native import trainer

        for place, path in PLACES.items():
            *owners, name = path.split(".")
            owner = getattr(trainer, owners[0]) if owners else trainer
            setattr(owner, name, self.watched(getattr(owner, name), place))
        if self.place == "anywhere":
            sys.setprofile(self.count)

    def watched(self, function: Callable[..., Any], place: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.inside.append(place)
            self.visits[place] += 1
            self.counts[place] = 0
            if place == self.place:
                sys.setprofile(self.count)
            try:
                return function(*args, **kwargs)
            finally:
                if place == self.place:
                    sys.setprofile(None)
                self.inside.pop()
                self.least[place] = min(self.counts[place], self.least.get(place, self.counts[place]))

        return call

    def count(self, frame: Any, event: str, argument: Any) -> None:
        if not event.endswith("call"):
            return
        for place in ("anywhere", *self.inside):
            self.counts[place] += 1
        here = self.place == "anywhere" or (self.place in self.inside and self.visits[self.place] == self.visit)
        if here and self.call <= self.counts[self.place] < self.call + self.times:
            os.kill(os.getpid(), self.signal)


if __name__ == "__main__":
    main()
