"""Stream: the iterator that `RPCClient.multicall` returns. StreamEnd: what it has in common with that for asyncio."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from msgbus.client_call import ClientCall, ThreadCall
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import MessagingTimeout
from msgbus.message import KEEPALIVE, LOST_AFTER, Control, ControlKind
from msgbus.pending_stream import PendingStream
from msgbus.serializer import NoOpSerializer, Serializer

DROP_CHECK = 0.5
"""Seconds between two checks whether a stream was dropped."""


class Stream(Iterator[Any]):
    """Iterates over the items of a remote generator. For one thread at a time; also a context manager.

    The remote generator is closed (its ``finally`` runs) when `close` is called, when the iterator is dropped, and when
    this process dies.
    """

    def __init__(self, call: ThreadCall, slot: ExitStack, serializer: Serializer, ctxt: Any) -> None:
        """Read what `call` has asked for; `slot`, its place in the send window, is given back at the end."""
        assert isinstance(call.pending, PendingStream)
        self._call = call
        self._pending = call.pending
        self._serializer = serializer
        self._ctxt = ctxt
        self._is_plain = type(serializer) is NoOpSerializer
        self._has_deadline = call.pending.end != math.inf
        self._closed = False
        self._end = StreamEnd(call, call.pending, slot)

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
        if self._closed:  # Checked first: items may arrive while it is being closed.
            raise StopIteration
        pending = self._pending
        if not pending.items or (self._has_deadline and Loop.now() >= pending.end):
            self._wait_for_item()
        item, credit_due = pending.take()
        if credit_due:
            self._give_credit()
        if self._is_plain:
            return item
        return self._serializer.deserialize_entity(self._ctxt, item)

    def _wait_for_item(self) -> None:
        pending = self._pending
        try:
            self._end.expect_item()
            self._call.wait()
        except BaseException:
            self.close()
            raise
        if not pending.items:
            self.close()
            error = pending.error
            raise StopIteration if error is None else error

    def _give_credit(self) -> None:
        """Let the server send more.

        The credit is written by this thread, if no other drives the loop: one that would have to be woken for it could
        write it only when this one lets go of the interpreter, which may be when it has run out of items.
        """
        loop = self._call.transport.loop
        drives = loop.take_turn()
        try:
            self._end.send_control("credit")
        finally:
            if drives:
                loop.give_turn()

    def close(self) -> None:
        """Cancel the stream on the server, and drop the items that were not read. Idempotent."""
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
        # The garbage collector may come at any moment, on a thread that holds a driver's lock. So this only leaves a
        # note; the loop does the rest.
        if hasattr(self, "_end"):
            self._end.dropped = True


class InterceptedStream(Stream):
    """A stream of what a client's interceptors have made of the streams with which they proceeded."""

    def __init__(self, items: Any, begun: Sequence[Stream], client: object, method: str) -> None:
        """Iterate over `items`, or yield it alone if it is no iterator. `begun` are closed at the end."""
        self._items: Iterator[Any] = items if isinstance(items, Iterator) else iter([items])
        self._begun = begun
        self._name = f"{method!r} of {client!r}"
        self._closed = False

    def __repr__(self) -> str:
        return f"<Stream {self._name}, {'closed' if self._closed else 'open'}>"

    def __next__(self) -> Any:
        """Get the next item from the interceptors; whatever they raise ends the stream."""
        if self._closed:
            raise StopIteration
        try:
            return next(self._items)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close what the interceptors iterate with, and then each stream that was begun. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
        finally:
            for stream in self._begun:
                stream.close()


class StreamEnd:
    """This end of a stream, as the server knows it. It outlives a `Stream` that is dropped, in order to cancel it.

    Attributes:
        dropped: nobody will read the stream any more.
    """

    def __init__(self, call: ClientCall, pending: PendingStream, slot: ExitStack) -> None:
        """The end of `call`, which has been sent; `slot`, its place in the send window, is given back at the end."""
        self.dropped = False
        self._call = call
        self._pending = pending
        self._slot = slot
        self._closed = False
        self._last_keepalive = Loop.now()
        self._call.transport.loop.call_later(DROP_CHECK, self._tick)

    def send_control(self, kind: ControlKind) -> None:
        """Send a control frame, if the server's inbox is known."""
        inbox = self._pending.server_inbox
        if inbox is not None:
            self._call.send_control(inbox, Control(self._pending.id, kind, self._pending.taken))

    def expect_item(self) -> None:
        """The wait for the next item begins.

        Raises:
            MessagingTimeout: the time of the whole stream is over.
        """
        pending, now = self._pending, Loop.now()
        if now >= pending.end and pending.items and not pending.ended:
            raise MessagingTimeout(f"{pending.describe}: its deadline has passed after {pending.taken} items")
        pending.expect_item(now)

    def _tick(self) -> None:
        """Send the server a keepalive every few seconds, for as long as the stream is open."""
        if self.dropped:
            self.close()
        if self._closed:
            return
        now = Loop.now()
        if now - self._last_keepalive >= KEEPALIVE and not self._pending.ended:
            self._last_keepalive = now
            self.send_control("keepalive")
        self._call.transport.loop.call_later(DROP_CHECK, self._tick)

    def close(self) -> None:
        """Cancel the stream on the server, unless it has ended. Idempotent."""
        if self._closed:
            return
        self._closed = True
        pending = self._pending
        self._slot.close()
        if pending.ended or pending.send_error is not None:
            self._call.forget()
            return
        # The server may not have sent its inbox yet: then it is cancelled as soon as it does.
        pending.wake = self._cancel
        self._cancel()
        if pending.server_inbox is None:
            left = pending.deadline - Loop.now()
            self._call.transport.loop.call_later(max(left, 0.0) + LOST_AFTER, self._call.forget)

    def _cancel(self) -> None:
        if self._pending.server_inbox is not None:
            self._call.forget()
            self.send_control("cancel")
