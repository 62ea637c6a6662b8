"""Batch: several deliveries as one. Gatherer: makes batches of deliveries, by their number or after a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from msgbus.drivers.base import Delivery
from msgbus.drivers.toolkit.loop import Loop


class Batch(Delivery):
    """Deliveries that are run together. As a whole it has the address and the message of the first.

    Attributes:
        deliveries: in the order in which they came.
    """

    __slots__ = ("deliveries",)

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        first = deliveries[0]
        super().__init__(first.address, first.message, first.redelivered, first.attempts)
        self.deliveries = deliveries

    def accept(self) -> bool:
        """Accept all. False if any will come again."""
        outcomes = [delivery.accept() for delivery in self.deliveries]
        return all(outcomes)

    def reject(self, requeue: bool) -> None:
        """Give all back, or drop them."""
        for delivery in self.deliveries:
            delivery.reject(requeue)


class Gatherer:
    """Gathers deliveries until there are enough, or until the first has waited long enough. Thread-safe."""

    def __init__(self, size: int, timeout: float | None, loop: Loop, submit: Callable[[Delivery], None]) -> None:
        """Make one.

        Args:
            size: how many are enough.
            timeout: how many seconds the first may wait; None means that only the number counts.
            loop: runs the timers.
            submit: takes each batch; it must not block.
        """
        self._size = size
        self._timeout = timeout
        self._loop = loop
        self._submit = submit
        self._lock = threading.Lock()
        self._open: list[Delivery] = []
        self._due = 0.0  # when the open batch is complete, in seconds of `Loop.now`
        self._has_timer = False

    def take(self, delivery: Delivery) -> None:
        """Take a delivery."""
        sets_timer = False
        with self._lock:
            gathered = self._open
            gathered.append(delivery)
            is_full = len(gathered) == self._size
            if is_full:
                self._open = []
            elif len(gathered) == 1 and self._timeout is not None:
                self._due = Loop.now() + self._timeout
                sets_timer, self._has_timer = not self._has_timer, True
        if is_full:
            self._submit(Batch(gathered))
        elif sets_timer:
            assert self._timeout is not None
            self._loop.call_later(self._timeout, self._ring)

    def _ring(self) -> None:
        """The time of a batch is over: of the open one, or of one that was full before."""
        # One timer for all: if each full batch left one behind, they would become many.
        with self._lock:
            left = self._due - Loop.now() if self._open else 0.0
            self._has_timer = left > 0
            gathered: list[Delivery] = []
            if left <= 0:
                gathered, self._open = self._open, gathered
        if left > 0:
            self._loop.call_later(left, self._ring)
        elif gathered:
            self._submit(Batch(gathered))

    def flush(self) -> None:
        """No more will come: what is gathered is a batch."""
        with self._lock:
            gathered, self._open = self._open, []
        if gathered:
            self._submit(Batch(gathered))
