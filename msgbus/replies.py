"""ReplyRouter: finds the waiting call that a reply belongs to.

As in `msgbus.pending`, nothing here does I/O, starts a thread or looks at a clock.
"""

from __future__ import annotations

from collections.abc import Callable

from msgbus.exceptions import CallCancelled
from msgbus.foreign import get_logger
from msgbus.message import Reply
from msgbus.pending import Pending

LOG = get_logger(__name__)


class ReplyRouter:
    """Passes each reply that arrives at the inbox to the call that it belongs to. Thread-safe."""

    def __init__(self) -> None:
        # Every operation on the dict is a single one, which the interpreter makes atomic: the hot path needs no lock.
        self._pending: dict[str, Pending] = {}
        self._abandoned: dict[str, Callable[[str], object]] = {}  # by call id

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, pending: Pending) -> bool:
        return pending.id in self._pending

    def add(self, pending: Pending) -> None:
        """Expect replies for a call."""
        self._pending[pending.id] = pending

    def discard(self, pending: Pending) -> None:
        """Expect no more replies. Late ones are logged and dropped."""
        self._pending.pop(pending.id, None)

    def abandon_later(self, call_id: str, cancel: Callable[[str], object]) -> None:
        """Have a call cancelled that nobody waits for any more, should a server say that it runs it.

        Args:
            call_id: of the call; it must have been discarded.
            cancel: called with the server's inbox. `forget` has to follow some time.
        """
        self._abandoned[call_id] = cancel

    def forget(self, call_id: str) -> None:
        """Undo `abandon_later`: no server will begin the call any more."""
        self._abandoned.pop(call_id, None)

    def route(self, reply: Reply, now: float) -> None:
        """Pass a reply to its call."""
        pending = self._pending.get(reply.call_id)
        if pending is not None:
            pending.on_reply(reply, now)
            return
        # Late answers of calls that timed out, and the second answers of repeated ones, end here.
        LOG.debug("no call waits for reply %s (%s): dropped", reply.call_id, reply.kind)
        cancel = self._abandoned.get(reply.call_id)
        if cancel is not None and reply.inbox is not None:
            cancel(reply.inbox)

    def waiting(self) -> list[Pending]:
        """The calls that wait now."""
        return list(self._pending.values())

    def wake_all(self) -> None:
        """Have every waiting call checked."""
        for pending in self.waiting():
            pending.wake()

    def abandon(self, reason: str) -> None:
        """In a forked child: the calls are the parent's. A thread that still waits for one gets `CallCancelled`."""
        for pending in self.waiting():
            pending.abandon(CallCancelled(f"{pending.describe}: {reason}"))

    def fail_all(self, reason: str) -> None:
        """End every waiting call with `CallCancelled`."""
        for pending in self.waiting():
            pending.send_error = CallCancelled(f"{pending.describe}: {reason}")
            pending.wake()
