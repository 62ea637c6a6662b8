"""Requeueing: gives notifications back that are to come again, after a pause that grows with each time."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable

from msgbus import failed_casts
from msgbus.base_transport import BaseTransport
from msgbus.drivers.base import Address
from msgbus.foreign import get_logger
from msgbus.server_call import ServerCall
from msgbus.server_calls import ServerCalls

LOG = get_logger(__name__)

REMEMBERED = 10_000
"""How many notifications are remembered that were given back, in order to know how often that was."""


class Requeueing:
    """The notifications of one listener that wait to be given back. Thread-safe.

    The message system would deliver one that is given back at once, often to the same listener, thousands of times a
    second. So it is kept here for a moment; others are run meanwhile.
    """

    def __init__(self, transport: BaseTransport, calls: ServerCalls, on_paused: Callable[[int], None]) -> None:
        """Make one.

        Args:
            transport: runs the timers.
            calls: the table that they are in.
            on_paused: called with how many of one address wait, each time that there is one more. Any thread.
        """
        self._transport = transport
        self._calls = calls
        self._on_paused = on_paused
        self._lock = threading.Lock()
        self._paused: Counter[Address] = Counter()
        self._held: set[ServerCall] = set()
        self._times: OrderedDict[str, int] = OrderedDict()  # by id
        self._stopped = True

    def start(self) -> None:
        """The listener starts."""
        self._stopped = False

    def stop(self) -> None:
        """The listener stops: others get them, now and from now on."""
        self._stopped = True
        with self._lock:
            held = list(self._held)
        for call in held:
            self._give_back(call)

    def add(self, call: ServerCall) -> None:
        """Give a notification back in a while, or at once where the listener stops."""
        call.waits = True
        delays = failed_casts.RETRY_DELAYS
        delay = delays[min(self._count(call), len(delays)) - 1]
        LOG.info("notification %s comes again in %g s or later", call.request.unique_id, delay)
        with self._lock:
            self._held.add(call)
            self._paused[call.delivery.address] += 1
            paused = self._paused[call.delivery.address]
        self._on_paused(paused)
        if self._stopped:  # Checked last: `stop` has found what was added before it.
            self._give_back(call)
        else:
            self._transport.loop.call_later(delay, self._give_back, call)

    def _count(self, call: ServerCall) -> int:
        """How often it was run; at least 1. Not all message systems count that."""
        unique_id, times = call.request.unique_id, self._times
        known = times.pop(unique_id, 0) + 1
        if unique_id:
            times[unique_id] = known
            if len(times) > REMEMBERED:
                times.popitem(last=False)
        return max(known, call.attempts + 1)

    def _give_back(self, call: ServerCall) -> None:
        with self._lock:
            if call not in self._held:
                return  # It was given back when the listener stopped.
            self._held.remove(call)
            self._paused[call.delivery.address] -= 1
        self._calls.finish(call, done=False)
