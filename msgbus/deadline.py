"""Deadlines: the one that a handler's calls inherit from its request; durations; and waiting for a driver's future."""

from __future__ import annotations

import math
import os
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from msgbus.exceptions import TransportUnavailable

if TYPE_CHECKING:
    from msgbus.drivers.base import Driver

current: ContextVar[float | None] = ContextVar("msgbus_deadline", default=None)
"""Seconds of `Loop.now`, or None outside a handler and in one whose client gave no deadline."""


LONGEST = 1e9
"""Seconds that a wait may take at most: 31 years. The clocks of threads and of message systems know no infinity."""


class Waits(Protocol):
    """Whatever can wait for a driver's future: the loop of a transport, or the transport."""

    def wait_for(self, future: Future[Any], until: float) -> bool:
        """Wait until a future is done, or `until` (seconds of `Loop.now`). Returns whether it is."""


def bounded(deadline: float) -> float:
    """`deadline`, or the inherited one where that is earlier."""
    inherited = current.get()
    return deadline if inherited is None or inherited > deadline else inherited


def checked_seconds(seconds: object, what: str = "a timeout") -> float:
    """A duration that a caller has given: at least 0, and at most `LONGEST`, which stands for infinity too.

    Raises:
        ValueError: it is not a number; `what` begins the text.
    """
    if isinstance(seconds, int | float):
        found = max(min(seconds, LONGEST), 0.0)  # In this order NaN remains.
        if not math.isnan(found):
            return found
    raise ValueError(f"{what} is a number of seconds, not {seconds!r}")


def wait_for(waits: Waits, future: Future[object] | Future[None], deadline: float, what: str, driver: Driver) -> None:
    """Wait for a driver's future by `waits`.

    Raises:
        TransportUnavailable: `deadline` (seconds of `Loop.now`) came first; `what` begins the text.
        MessagingException: what the future failed with.
    """
    if not waits.wait_for(future, deadline):
        raise TransportUnavailable(f"{what} {driver.state}: gave up at the deadline")
    future.result()


# A child that a handler forks is no part of the request, and may live for long.
os.register_at_fork(after_in_child=lambda: current.set(None))
