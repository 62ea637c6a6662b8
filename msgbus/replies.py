"""ReplyRouter: which waiting call a reply belongs to, and what each call knows of its server.

Nothing here does I/O, starts a thread or looks at a clock: times are passed in (seconds of `time.monotonic`), and a
waiting caller is woken through a function of its own. So threads and event loops use the same code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from msgbus.drivers.base import Address
from msgbus.exceptions import (
    MessageDeliveryFailure,
    MessagingException,
    MessagingTimeout,
    OutcomeUnknown,
    ServerLost,
    TransportUnavailable,
)
from msgbus.failures import rebuild_failure
from msgbus.foreign import get_logger
from msgbus.message import Reply

LOG = get_logger(__name__)

KEEPALIVE = 5.0
"""Seconds of silence after which both ends of a running call or stream show that they live."""
LOST_AFTER = 3 * KEEPALIVE
"""Seconds without a sign of life after which the other side is taken for dead."""

Wake = Callable[[], None]


def _nobody() -> None:
    """Nobody waits yet."""


class Pending:
    """A call that waits: what came of it so far, and when it has to be looked at again.

    Attributes:
        id: of the call.
        method: the method's name.
        address: where the request goes.
        began: when.
        wake: called, on any thread, when there is something new.
        server_inbox: where the server that runs the call takes control frames, once it is known.
        sent: whether the message system has taken responsibility for the request.
        send_error: why the request could not be handed over.
    """

    __slots__ = (
        "_allowed_modules",
        "_grace",
        "_last_sign",
        "_monitor",
        "_repeatable",
        "_silent_since",
        "_uncertain_since",
        "address",
        "began",
        "deadline",
        "id",
        "method",
        "orphans",
        "send_error",
        "sent",
        "server_inbox",
        "server_name",
        "wake",
    )

    def __init__(
        self,
        call_id: str,
        method: str,
        address: Address,
        *,
        now: float,
        deadline: float,
        grace: float,
        repeatable: bool,
        monitor: float | None,
        allowed_modules: Collection[str],
    ) -> None:
        self.id = call_id
        self.method = method
        self.address = address
        self.wake: Wake = _nobody
        self.began = now
        self.deadline = deadline
        self.server_inbox: str | None = None
        self.server_name: str | None = None
        self.orphans: list[str] = []  # inboxes of further servers that began the same call: they are to be cancelled
        self.sent = False
        self.send_error: BaseException | None = None
        self._grace = grace
        self._repeatable = repeatable
        self._monitor = monitor
        self._last_sign = now
        self._silent_since = now  # as far as this side could have heard anything
        self._uncertain_since: float | None = None
        self._allowed_modules = allowed_modules

    @property
    def describe(self) -> str:
        """Which method of which target, and the id that is in the logs: the beginning of every error's text."""
        return f"{self.method!r} on {self.address}, call {self.id}"

    def on_sent(self, error: BaseException | None, now: float) -> None:
        """Take in how the sending of the request ended."""
        if error is None:
            self.sent = True
        elif isinstance(error, TransportUnavailable) and error.maybe_delivered and not self._repeatable:
            self._uncertain_since = now
            self.wake()
        else:
            self.send_error = error
            self.wake()

    def on_reply(self, reply: Reply, now: float) -> None:
        """Take in a reply or another frame of the server's."""
        if reply.kind == "declined":
            if self.server_inbox is None and self._uncertain_since is None:
                self._uncertain_since = now
                self.wake()
            return
        self._last_sign = self._silent_since = now
        if reply.inbox is not None and reply.inbox != self.server_inbox:
            if self.server_inbox is None:
                self.server_inbox = reply.inbox
                self.server_name = reply.server
                self.wake()
            else:
                self.orphans.append(reply.inbox)
                self.wake()
                return
        self._uncertain_since = None
        self._take(reply)

    def _take(self, reply: Reply) -> None:
        raise NotImplementedError

    def failure_of(self, reply: Reply) -> Exception | None:
        """The exception that a reply tells of."""
        return None if reply.failure is None else rebuild_failure(reply.failure, self._allowed_modules)

    def look_again_at(self) -> float:
        """The time at which `verdict` may change without anything having come."""
        times = [self.deadline]
        if self.server_inbox is not None:
            times.append(self._silent_since + LOST_AFTER)
        elif self._monitor is not None:
            times.append(self._last_sign + self._monitor)
        if self._uncertain_since is not None:
            times.append(self._uncertain_since + self._grace)
        return min(times)

    def verdict(self, now: float, up_since: float | None = 0.0) -> Exception | None:
        """Why there is nothing more to wait for, or None.

        `up_since` is since when this side can hear anything; None while it cannot.
        """
        self._silent_since = now if up_since is None else max(self._silent_since, up_since)
        if self.send_error is not None:
            if isinstance(self.send_error, MessagingException):
                return self.send_error
            return MessageDeliveryFailure(f"{self.describe}: {self.send_error}")
        if self.server_inbox is not None and now >= self._silent_since + LOST_AFTER:
            if not self._repeatable:
                return self._server_lost(now)
            # The message system gives the request to another server, to which the call will be bound.
            self.server_inbox = None
            self._last_sign = self._silent_since = now
        if self._uncertain_since is not None and now >= self._uncertain_since + self._grace:
            return OutcomeUnknown(
                f"{self.describe}: it may or may not have run. A server or connection was lost at a moment when the "
                f"request could have begun, nothing was heard for {self._grace:g} s, and under at_most_once it is not "
                "sent again. Where it may run twice, use delivery='at_least_once'"
            )
        if now >= self.deadline:
            return MessagingTimeout(self.describe)
        if self.server_inbox is None and self._monitor is not None and now >= self._last_sign + self._monitor:
            return MessagingTimeout(f"{self.describe}: no sign of life of the server for {self._monitor:g} s")
        return None

    def _server_lost(self, now: float) -> ServerLost:
        silent = now - self._last_sign
        return ServerLost(
            f"{self.describe}: server {self.server_name!r} had begun to run it and has been silent for {silent:.0f} s; "
            "it has died, or is cut off. The request may have run in part, and is not sent again under at_most_once"
        )

    @property
    def last_sign(self) -> float:
        """When the server was last heard of; before that, when the call began."""
        return self._last_sign


class PendingCall(Pending):
    """Waits for one value.

    Attributes:
        answer: the reply that ended the call, once it is there.
    """

    __slots__ = ("answer",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.answer: Reply | None = None

    def _take(self, reply: Reply) -> None:
        if reply.ending and self.answer is None:
            self.answer = reply
            self.wake()


class PendingAnswers(Pending):
    """Waits for many answers: one from each server that a fanout request reaches.

    Attributes:
        answers: those that came.
    """

    __slots__ = ("answers",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.answers: list[Reply] = []

    def on_reply(self, reply: Reply, now: float) -> None:
        """Take in an answer of one of the servers."""
        if reply.ending:
            self.answers.append(reply)
            self.wake()


class PendingStream(Pending):
    """Waits for one item after another.

    Attributes:
        items: those that came and were not taken yet.
        taken: how many were taken.
        ended: the last frame has come; `error` says how it ended.
    """

    __slots__ = ("_end", "_gap", "_idle_timeout", "_last", "_next_seq", "_told", "_window", "ended", "items", "taken")

    def __init__(self, *args: Any, window: int, idle_timeout: float, end: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.items: deque[Any] = deque()
        self.ended = False
        self._last: Reply | None = None
        self._gap: Exception | None = None
        self._idle_timeout = idle_timeout
        self._end = end
        self._window = window
        self.taken = 0
        self._told = 0  # of those taken, how many the server has been told of
        self._next_seq = 0

    def on_reply(self, reply: Reply, now: float) -> None:
        """Take in a frame of the server's."""
        if reply.inbox is None and self.server_name is not None and reply.server not in (None, self.server_name):
            return  # A repeated request made another server begin too: the items of two are never mixed.
        super().on_reply(reply, now)
        if self.server_inbox is not None:
            self._repeatable = False  # It has begun: a stream is never started again elsewhere.

    def _take(self, reply: Reply) -> None:
        if self.ended:
            return
        if reply.items is not None:
            # A frame whose sending had an unknown outcome is sent again: what came already is left out.
            known = self._next_seq - reply.seq
            if known >= 0:
                self.items.extend(reply.items[known:])
                self._next_seq = max(self._next_seq, reply.seq + len(reply.items))
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

    @property
    def error(self) -> Exception | None:
        """The exception that ended the remote generator. For the reader's thread: making it may import modules."""
        return self._gap or (None if self._last is None else self.failure_of(self._last))

    def expect_item(self, now: float) -> None:
        """Begin to wait for the next item: its timeout counts from now, within the deadline of the whole."""
        self.deadline = min(now + self._idle_timeout, self._end)

    def take(self) -> tuple[Any, bool]:
        """The next of `items`, and whether to tell the server now how many were taken: it may be waiting for that."""
        item = self.items.popleft()
        self.taken += 1
        if (self.taken - self._told) * 2 < self._window or self.ended:
            return item, False
        self._told = self.taken
        return item, True


class ReplyRouter:
    """Hands each frame that comes to the inbox to the call that it belongs to. Thread-safe."""

    def __init__(self) -> None:
        # Every operation on the dict is a single one, which the interpreter makes atomic: the hot path needs no lock.
        self._pending: dict[str, Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, pending: Pending) -> None:
        """Expect replies for a call."""
        self._pending[pending.id] = pending

    def discard(self, pending: Pending) -> None:
        """Expect none any more. What comes late is logged and dropped."""
        self._pending.pop(pending.id, None)

    def route(self, reply: Reply, now: float) -> None:
        """Hand a reply to its call."""
        pending = self._pending.get(reply.call_id)
        if pending is None:
            # Late answers of calls that timed out, and the second answers of repeated ones, end here.
            LOG.debug("no call waits for reply %s (%s): dropped", reply.call_id, reply.kind)
        else:
            pending.on_reply(reply, now)

    def waiting(self) -> list[Pending]:
        """The calls that wait now."""
        return list(self._pending.values())

    def fail_all(self, error: BaseException) -> None:
        """End every waiting call with `error`."""
        for pending in self.waiting():
            pending.send_error = error
            pending.wake()
