"""Stream: the iterator that `multicall` returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from msgbus.foreign import get_logger
from msgbus.message import Control, ControlKind
from msgbus.replies import KEEPALIVE, LOST_AFTER, Pending, PendingStream
from msgbus.serializer import NoOpSerializer, Serializer
from msgbus.transport import Transport

LOG = get_logger(__name__)

DROP_CHECK = 0.5
"""Seconds between two looks at whether a stream was dropped."""


class Stream(Iterator[Any]):
    """Iterates over what a remote generator yields. For one thread at a time; also a context manager.

    The remote generator is closed (its ``finally`` runs) when `close` is called, when the iterator is dropped, and when
    this process dies.
    """

    def __init__(
        self,
        transport: Transport,
        pending: PendingStream,
        wait: Callable[[Pending], None],
        look_at: Callable[[Pending], None],
        content_type: str,
        serializer: Serializer,
        ctxt: Any,
    ) -> None:
        self._pending = pending
        self._wait = wait
        self._look_at = look_at
        self._serializer = serializer
        self._ctxt = ctxt
        self._closed = False
        self._end = _StreamEnd(transport, pending, content_type)

    def __iter__(self) -> Stream:
        return self

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Stream {self._pending.describe}, {state}>"

    def __next__(self) -> Any:
        """Wait for the next item.

        What `RPCClient.call` raises is raised here too, and the stream is closed then.

        Raises:
            StopIteration: the remote generator has ended, or the stream was closed.
        """
        pending = self._pending
        if not pending.items:
            if self._closed:
                raise StopIteration
            try:
                self._await_item()
            except BaseException:
                self.close()
                raise
            if not pending.items:
                self.close()
                error = pending.error
                raise StopIteration if error is None else error
        item, tell = pending.take()
        if tell:
            self._end.tell("credit")
        if type(self._serializer) is NoOpSerializer:
            return item
        return self._serializer.deserialize_entity(self._ctxt, item)

    def _await_item(self) -> None:
        pending = self._pending
        pending.expect_item(time.monotonic())
        while not pending.items and not pending.ended:
            self._wait(pending)
            if not pending.items and not pending.ended:
                self._look_at(pending)

    def close(self) -> None:
        """Tell the server to stop, and forget what has not been taken. Idempotent."""
        if not self._closed:
            self._closed = True
            self._pending.items.clear()
            self._end.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The garbage collector may come at any moment, on a thread that holds a driver's lock: so nothing is done here
        # but to leave word.
        if hasattr(self, "_end"):
            self._end.dropped = True


class _StreamEnd:
    """The end of a stream that the server knows. It outlives a `Stream` that is dropped, to tell the server so.

    Attributes:
        dropped: nobody will read the stream any more.
    """

    def __init__(self, transport: Transport, pending: PendingStream, content_type: str) -> None:
        self.dropped = False
        self._transport = transport
        self._pending = pending
        self._content_type = content_type
        self._closed = False
        self._last_keepalive = time.monotonic()
        transport.loop.call_later(DROP_CHECK, self._tick)

    def tell(self, kind: ControlKind) -> None:
        """Send a control frame, if it is known where to."""
        inbox = self._pending.server_inbox
        if inbox is not None:
            control = Control(self._pending.id, kind, self._pending.taken)
            self._transport.send_control(inbox, control, self._content_type)

    def _tick(self) -> None:
        """Tell the server every few seconds that the reader lives, for as long as it does."""
        if self.dropped:
            self.close()
        if self._closed:
            return
        now = time.monotonic()
        if now - self._last_keepalive >= KEEPALIVE and not self._pending.ended:
            self._last_keepalive = now
            self.tell("keepalive")
        self._transport.loop.call_later(DROP_CHECK, self._tick)

    def close(self) -> None:
        """Tell the server to stop. Idempotent."""
        if self._closed:
            return
        self._closed = True
        pending, transport = self._pending, self._transport
        transport.window.release()
        if pending.ended or pending.send_error is not None:
            transport.router.discard(pending)
            return
        # The server may not have said yet where it can be told: then it is told as soon as it says so.
        pending.wake = self._cancel
        self._cancel()
        if pending.server_inbox is None:
            left = pending.deadline - time.monotonic()
            transport.loop.call_later(max(left, 0.0) + LOST_AFTER, lambda: transport.router.discard(pending))

    def _cancel(self) -> None:
        if self._pending.server_inbox is not None:
            self._pending.wake = lambda: None  # It is told once.
            self._transport.router.discard(self._pending)
            self.tell("cancel")
