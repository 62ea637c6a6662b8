"""Faults: what goes wrong on a message system in memory, when a test says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from msgbus.drivers.fake import Bus


class Faults:
    """Has the message system of a test misbehave. Any thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @contextmanager
    def away(self) -> Iterator[None]:
        """The message system is away meanwhile: what is sent waits for it, until its deadline. What it stores is kept.

        A request that has been delivered and not accepted is delivered again.
        """
        self._bus.stop()
        try:
            yield
        finally:
            self._bus.start()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """The message system takes what is sent meanwhile, and says nothing: the outcome is not known to the sender.

        After that it delivers what it has taken, if that has not expired.
        """
        self._bus.pause()
        try:
            yield
        finally:
            self._bus.resume()

    @contextmanager
    def delayed(self, seconds: float) -> Iterator[None]:
        """What is sent meanwhile is delivered so many seconds late."""
        before, self._bus.delay = self._bus.delay, seconds
        try:
            yield
        finally:
            self._bus.delay = before

    def cut(self) -> None:
        """All connections break, and are back at once. What was delivered and not accepted is delivered again."""
        self._bus.cut()

    def lose_next(self, count: int = 1) -> None:
        """The next `count` messages are confirmed, and never delivered."""
        self._bus.lose_next(count)

    def fail_next(self, error: Exception, count: int = 1) -> None:
        """The next `count` messages are refused with `error`, such as ``TransportBlocked("its disk is full")``."""
        self._bus.fail_next(error, count)
