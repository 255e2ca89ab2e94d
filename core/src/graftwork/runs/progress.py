"""The progress of a run on a terminal: one line that is rewritten, or a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from graftwork.runs.run import Run

Item = TypeVar("Item")
logger = logging.getLogger(__name__)

INTERVAL_S = 5.0
"""Seconds between lines where the output is no terminal."""


class Progress:
    """A listener of :func:`graftwork.train`. Evaluations always get a line of their own, and each line an indent."""

    def __init__(self, stream: TextIO | None = None, indent: str = "") -> None:
        self.stream = stream or sys.stderr
        self.indent = indent
        self.live = self.stream.isatty()
        self.began: tuple[int, float] | None = None
        self.written_at = 0.0
        self.width = 0

    def __call__(self, run: Run, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a step or an evaluation."""
        total = int(run.record.get("total_steps", 0))
        if "eval_loss" in metrics:
            self._write(f"step {step:,}/{total:,}  held-out loss {metrics['eval_loss']:.4f}", lasting=True)
            return
        now = time.monotonic()
        self.began = self.began or (step - 1, now - metrics["step_time_s"])
        if self.live or step == total or now - self.written_at >= INTERVAL_S:
            self.written_at = now
            self._write(self._line(step, total, metrics, now), lasting=not self.live or step == total)

    def _line(self, step: int, total: int, metrics: Mapping[str, float], now: float) -> str:
        first, begin = self.began or (0, now)
        remaining_s = (now - begin) / max(1, step - first) * (total - step)
        # A trainer that draws its samples itself measures no speed of the data's tokens.
        speed = f"{metrics['tokens_per_s']:,.0f} tokens/s  " if "tokens_per_s" in metrics else ""
        return (
            f"step {step:,}/{total:,}  loss {metrics['loss']:.4f}  lr {metrics['learning_rate']:.2e}  "
            f"{speed}{clock(remaining_s)} left"
        )

    def _write(self, text: str, *, lasting: bool) -> None:
        text = self.indent + text
        begin = "\r" if self.live else ""
        end = "\n" if lasting else ""
        with suppress(OSError):  # a terminal that was closed: the run is still to be saved
            self.stream.write(f"{begin}{text.ljust(self.width)}{end}")
            self.stream.flush()
        self.width = 0 if lasting else len(text)


def evaluating(items: Iterable[tuple[Item, int]], samples: int) -> Iterator[Item]:
    """The batches of an evaluation of ``samples`` samples, each given with how many it has. One that is long says
    after some seconds how far it is, and then less and less often.
    """
    began, pause, done = time.monotonic(), INTERVAL_S, 0
    for item, size in items:
        passed = time.monotonic() - began
        if done and passed >= pause:
            pause = passed * 3
            left = clock(passed / done * max(0, samples - done))
            logger.info("held-out loss of %s samples: %s done, %s left", f"{samples:,}", f"{done:,}", left)
        yield item
        done += size


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
