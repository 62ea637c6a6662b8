"""PendingStream: a multicall that waits: the order of its items, and the credit that its server is sent for them.

As in `msgbus.pending`, nothing here does I/O, starts a thread or looks at a clock.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from msgbus.exceptions import MessageDeliveryFailure
from msgbus.message import Reply, window_after
from msgbus.pending import Pending


class PendingStream(Pending, kw_only=True):
    """Waits for one item after another.

    Attributes:
        window: how many items the server may send ahead of `taken`.
        window_bytes: how many bytes of items likewise.
        idle_timeout: seconds to wait for each item.
        end: the deadline of the whole stream.
        items: those that have arrived and were not taken yet.
        taken: how many were taken.
        ended: the last frame has come; `error` says how it ended.
    """

    window: int
    window_bytes: int
    idle_timeout: float
    end: float
    items: deque[Any] = msgspec.field(default_factory=deque)
    taken: int = 0
    ended: bool = False
    _expected_since: float = 0.0  # when the wait for the next item began
    _last: Reply | None = None
    _gap: Exception | None = None
    _credited: int = 0  # how many were taken when credit was sent last
    _half_taken: int = 0  # the number of items taken at which half of the window is taken since the last credit
    _uncredited_bytes: int = 0  # of the frames that were taken since the last credit
    _look_at: int = 1  # the number of items taken at which credit may be due
    # Of those not yet taken: the last item of each, and its bytes.
    _frames: deque[tuple[int, int]] = msgspec.field(default_factory=deque)
    _next_seq: int = 0

    def __post_init__(self) -> None:
        self._half_taken = (window_after(0, self.window) + 1) // 2

    @property
    def ready(self) -> bool:
        """Whether an item or the end is there."""
        return bool(self.items) or self.ended

    def on_reply(self, reply: Reply, now: float) -> None:
        """Handle a frame from a server."""
        if reply.inbox is None and reply.server is not None:
            bound = list(self.servers.values())
            if bound and bound[0].name != reply.server:
                return  # A repeated request made another server begin too: the items of two are never mixed.
        super().on_reply(reply, now)
        if self.servers:
            self.repeatable = False  # It has begun: a stream is never started again elsewhere.

    def _take(self, reply: Reply) -> None:
        if self.ended:
            return
        if reply.items is not None:
            # A frame whose sending had an unknown outcome is sent again: skip the items that have arrived already.
            known = self._next_seq - reply.seq
            if known >= 0:
                items = reply.items[known:]
                if items:
                    self._next_seq += len(items)
                    self._frames.append((self._next_seq, reply.size))  # Before its items, which may be taken at once.
                    self.items.extend(items)
            else:
                self.ended = True
                self._gap = MessageDeliveryFailure(
                    f"{self.describe}: items {self._next_seq} to {reply.seq - 1} of the stream were lost on the way"
                )
        if reply.ending and not self.ended:
            self._last = reply
            if not reply.extended and reply.failure is None:  # a stock peer's plain answer: one item
                self.items.append(reply.result)
            self.ended = True
        self.wake()

    def abandon(self, error: BaseException) -> None:
        """Fail with `error` in place of what has come."""
        self.items.clear()
        self.ended = False
        super().abandon(error)

    @property
    def error(self) -> Exception | None:
        """The exception that ended the remote generator. Not for the I/O thread: making it may import modules."""
        return self._gap or (None if self._last is None else self.failure_of(self._last))

    def expect_item(self, now: float) -> None:
        """Begin to wait for the next item: its timeout counts from now, within the deadline of the whole."""
        self.deadline = min(now + self.idle_timeout, self.end)
        self._expected_since = now

    @property
    def missing(self) -> str:
        """As `Pending.missing`: each item has a time of its own."""
        plural = "" if self.taken == 1 else "s"
        seconds = self.deadline - self._expected_since
        return f"no item within {seconds:.4g} s, after {self.taken} item{plural}"

    def take(self) -> tuple[Any, bool]:
        """The next of `items`, and whether to send credit now: the server may be waiting for that."""
        item = self.items.popleft()
        taken = self.taken = self.taken + 1
        return item, taken >= self._look_at and self._credit_is_due()

    def _credit_is_due(self) -> bool:
        """Whether half of the window, by items or by bytes, was taken since the last credit. If so, that is noted.

        The bytes of a frame count once its last item has been taken. So this is asked at the end of each frame and of
        each half of the window, and not for each item.
        """
        taken, frames = self.taken, self._frames
        while frames and frames[0][0] <= taken:
            self._uncredited_bytes += frames.popleft()[1]
        due = taken >= self._half_taken or self._uncredited_bytes * 2 >= self.window_bytes
        if due:
            # By the window that the server has without this credit: even if that is lost, the next one is sent before
            # the server has to stop.
            self._half_taken = taken + (window_after(self._credited, self.window) + 1) // 2
            self._credited = taken
            self._uncredited_bytes = 0
        self._look_at = min(self._half_taken, frames[0][0] if frames else taken + 1)
        return due and not self.ended
