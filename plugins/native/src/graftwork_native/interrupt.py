"""Ctrl-C, SIGTERM and SIGHUP as a question: finish the step, save, and stop. A second one stops at once."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, TypeVar

from graftwork.runs.signals import STOPPING, handled, stop

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from graftwork_native.world import World

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


class Left(Exception):  # noqa: N818 - not an error
    """What follows a step (an evaluation, samples) was broken off; it is done when the run is gone on with."""


class Interrupt:
    """``asked`` is the number of the first signal that came while it listened."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._heard: int | None = None
        self._agreed: int | None = None

    @property
    def asked(self) -> int | None:
        """Of several processes, what one of them has heard; all of them have to ask."""
        if self._agreed is None:
            self._agreed = self.world.largest(self._heard or 0) or None
        return self._agreed

    def listening(self) -> AbstractContextManager[None]:
        """Within the block signals are questions."""
        return handled(STOPPING, self._ask)

    def until_asked(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; raises :class:`Left` where the signal came before one of them."""
        for item in items:
            if self.asked is not None:
                raise Left
            yield item

    def _ask(self, number: int) -> None:
        if self._heard is not None:
            stop(number)
        self._heard = number
        again = "press Ctrl-C again" if number == signal.SIGINT else f"a second {signal.Signals(number).name} is"
        logger.warning("stopping after this step and saving; %s to stop at once without saving", again)
