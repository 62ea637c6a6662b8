"""ServerCalls: the table of the requests that a server has begun and not finished, and the ids of those it has done."""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from msgbus import forking
from msgbus.drivers.base import Delivery
from msgbus.drivers.toolkit.loop import Loop
from msgbus.foreign import get_logger
from msgbus.server_call import ServerCall

if TYPE_CHECKING:
    from msgbus.base_transport import BaseTransport

LOG = get_logger(__name__)

TICK = 0.1
"""Seconds between two checks of the running calls for keepalives that are due."""
REMEMBERED_IDS = 10_000
"""How many requests a server remembers, in order not to run one a second time."""


class Seen(enum.Enum):
    """Whether a server has seen the id of a request before."""

    NEW = enum.auto()
    UNFINISHED = enum.auto()
    DONE = enum.auto()


class ServerCalls:
    """The requests of one server, from their beginning until their deliveries are settled. Thread-safe.

    It is indexed by request id, for duplicates. Those calls that control frames may come for are also in a table of the
    transport's, since the frames come to the transport's inbox.

    Attributes:
        done: the ids of the last requests that are done, each with whether its client is known to have the answer.
        ticks: the active calls are checked.
    """

    def __init__(self, transport: BaseTransport) -> None:
        self.done: OrderedDict[str, bool] = OrderedDict()
        self._transport = transport
        self._unfinished: set[ServerCall] = set()  # Adding and removing are atomic.
        self._by_request_id: dict[str, ServerCall] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._waiting = False
        self.closers: set[ServerCall] = set()  # whose methods wait for the end of the server
        self.ticks = False
        self._tick_lock = threading.Lock()

    def __iter__(self) -> Iterator[ServerCall]:
        """All that are unfinished now."""
        return iter(list(self._unfinished))

    def begin(self, call: ServerCall, *, again: bool = False) -> Seen:
        """Add a new request. A duplicate of an unfinished one is attached to that one, and waits for its outcome.

        `again`: the client sends it once more because it has no answer.
        """
        unique_id = call.request.unique_id
        if unique_id:
            with self._lock:
                first = self._by_request_id.get(unique_id)
                if first is not None:
                    first.duplicates = (*first.duplicates, call.delivery)
                    return Seen.UNFINISHED
                done = self.done
                if unique_id in done:
                    if done[unique_id] or not again:
                        return Seen.DONE
                    del done[unique_id]
                self._by_request_id[unique_id] = call
        self._unfinished.add(call)
        return Seen.NEW

    def add(self, call: ServerCall) -> None:
        """Add a request that is not run here, but has to be finished before the server may end."""
        self._unfinished.add(call)

    def end(self, call: ServerCall, *, done: bool, confirmed: bool = False) -> Sequence[Delivery]:
        """A request's outcome is known; returns the duplicates that waited for it.

        Args:
            call: the request.
            done: further duplicates are to be dropped; else the next one is run.
            confirmed: the client has said that it has the answer, or does not want it.
        """
        unique_id = call.request.unique_id
        with self._lock:
            if self._by_request_id.get(unique_id) is not call:
                return ()
            del self._by_request_id[unique_id]
            if done:
                self.done[unique_id] = confirmed
                if len(self.done) > REMEMBERED_IDS:
                    self.done.popitem(last=False)
        return call.duplicates

    def finish(self, call: ServerCall, *, done: bool, remember: bool = True, confirmed: bool = False) -> None:
        """Accept a request's delivery and duplicates if it is done, else give them back.

        Args:
            call: the request. If it is finished already, nothing happens.
            done: it is not run again. One that was accepted is done in any case.
            remember: without it the request is run if it comes here again.
            confirmed: as for `end`.
        """
        if call.finished or call.owner.forks != forking.forks:  # In a forked child: the parent settles it.
            return
        call.finished = True
        done = done or call.accepted
        duplicates = self.end(call, done=done and remember, confirmed=confirmed)
        for delivery in duplicates if call.accepted else (call.delivery, *duplicates):
            try:
                if done:
                    delivery.accept()
                else:
                    delivery.reject(requeue=True)
            except Exception:  # The others have to be settled too.
                LOG.exception(
                    "a delivery of %r (%s) could not be accepted or given back",
                    call.request.method,
                    call.request.unique_id,
                )
        self.remove(call)

    def remove(self, call: ServerCall) -> None:
        """A request is finished: its delivery and its duplicates are settled."""
        self._unfinished.discard(call)
        if self.closers:
            self.closers.discard(call)
        if self._waiting:
            with self._changed:
                self._changed.notify_all()

    def wait(self, timeout: float | None, own: ServerCall | None) -> int:
        """Wait until all are finished; returns how many are not after `timeout` seconds.

        If the request `own` waits, it does not wait for itself, nor for others that do the same.
        """
        end = None if timeout is None else Loop.now() + timeout
        with self._changed:
            self._waiting = True
            # Once its transport is closed nothing can be finished any more: checked every second.
            while self._others(own) and not self._transport.closed:
                left = 1.0 if end is None else min(1.0, end - Loop.now())
                if left <= 0:
                    break
                self._changed.wait(left)
        return len(self._others(own))

    def _others(self, own: ServerCall | None) -> set[ServerCall]:
        """The unfinished requests that `wait` waits for."""
        return self._unfinished if own is None else self._unfinished - self.closers - {own}

    def _tick(self) -> None:
        """Send keepalives to the clients that wait, and unconfirmed answers. Goes on while there is any such call."""
        now = Loop.now()
        for call in self:
            try:
                call.tick(now)
            except Exception:  # The other clients need theirs, and this one is tried again.
                LOG.exception("no keepalive could be sent to a client")
        self.ticks = False
        # Checked last: a call that begins after this starts the ticking itself.
        if any(call.active or call.is_unconfirmed for call in self):
            self.start_ticking()

    def start_ticking(self) -> None:
        """Have each active call checked every `TICK` seconds, until there is none."""
        with self._tick_lock:
            if self.ticks:
                return
            self.ticks = True
        self._transport.loop.call_later(TICK, self._tick)
