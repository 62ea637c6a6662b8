"""WideSubscription: several subscriptions to the same addresses, as one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from msgbus.drivers.base import Subscription

WIDEST = 16
"""How many subscriptions it may become."""


class WideSubscription(Subscription):
    """Grows by further subscriptions while many deliveries pause. Thread-safe.

    The prefetch of a subscription bounds what pauses as well as what runs. If so many pause that nothing more would
    come, a further subscription takes what the message system has behind them.
    """

    def __init__(self, subscribe: Callable[[], Subscription], prefetch: int) -> None:
        """Make the first one by `subscribe`; `prefetch` is that of each."""
        self._subscribe = subscribe
        self._prefetch = prefetch
        self._lock = threading.Lock()
        self._ended = False
        first = subscribe()
        self._all = [first]
        self.ready = first.ready

    def widen_for(self, paused: int) -> None:
        """Grow, if with so many of one address paused there is less than half a prefetch left for others.

        Args:
            paused: how many deliveries of one address are held for a while, before they are settled.
        """
        with self._lock:
            count = len(self._all)
            if paused >= count * self._prefetch - self._prefetch // 2 and count < WIDEST and not self._ended:
                self._all.append(self._subscribe())

    def stop(self) -> Future[None]:
        """See `Subscription.stop`."""
        return _joined([subscription.stop() for subscription in self._end()])

    def close(self) -> Future[None]:
        """See `Subscription.close`."""
        return _joined([subscription.close() for subscription in self._end()])

    def _end(self) -> Sequence[Subscription]:
        """All of them; from now on there will be no more."""
        with self._lock:
            self._ended = True
            return list(self._all)


def _joined(futures: Sequence[Future[None]]) -> Future[None]:
    """A future that is done when all are, and fails with the first error of any."""
    outcome: Future[None] = Future()
    lock = threading.Lock()
    waiting = len(futures)

    def on_done(_: Future[None]) -> None:
        nonlocal waiting
        with lock:
            waiting -= 1
            is_last = waiting == 0
        if is_last:
            error = next((error for future in futures if (error := future.exception()) is not None), None)
            if error is None:
                outcome.set_result(None)
            else:
                outcome.set_exception(error)

    for future in futures:
        future.add_done_callback(on_done)
    return outcome
