"""Streams: the iterator of `multicall` on the client, and the sending of a generator's items on the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any

import msgspec

from msgbus.exceptions import MessageTooLarge
from msgbus.failures import serialize_failure
from msgbus.foreign import get_logger
from msgbus.message import Control, ControlKind, Reply, encode_item
from msgbus.replies import KEEPALIVE, LOST_AFTER, Pending, PendingStream
from msgbus.serializer import NoOpSerializer, Serializer
from msgbus.transport import Transport

LOG = get_logger(__name__)


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


DROP_CHECK = 0.5
"""Seconds between two looks at whether a stream was dropped."""
MAX_WINDOW = 10_000
"""Items that a server sends ahead at the most, whatever a client asks for."""
FRAME_BYTES = 1 << 20
"""Bytes of items that go together in one frame at the most. (A single item may be larger.)"""
BUFFERED_BYTES = 4 * FRAME_BYTES
"""Bytes of items that wait for the frame before them to be handed over; then the generator waits too."""

OnOutcome = Callable[[BaseException | None], None]
SendFrame = Callable[[Reply, OnOutcome], None]


class StreamSender:
    """Sends a generator's items, no more than the window ahead of what the client has taken.

    One frame is under way at a time; what the generator yields meanwhile goes together in the next one, up to
    `FRAME_BYTES`. So the frames keep their order, and a fast generator needs few of them.
    """

    def __init__(
        self,
        send: SendFrame,
        on_end: OnOutcome,
        call_id: str,
        content_type: str,
        window: int,
        client: str,
        up_since: Callable[[], float | None] = lambda: 0.0,
        *,
        lossy: bool = False,
    ) -> None:
        """Make one that has not begun.

        `on_end` is called once: when the last frame has been handed over, or could not be. `up_since` says since when
        this side can hear its client.
        """
        self._up_since = up_since
        self._lossy = lossy
        self._send = send
        self._call_id = call_id
        self._content_type = content_type
        self._client = client
        self._changed = threading.Condition()
        self._window = min(window, MAX_WINDOW)
        self._put_in = 0  # items that the generator has yielded
        self._taken = 0  # how many of them the client has taken, as far as is known
        self._buffer: list[msgspec.Raw] = []
        self._buffered = 0  # bytes
        self._seq = 0
        self._sending = False
        self._ended = False
        self._failure: str | None = None
        self._too_large = False
        self._stopped: str | None = None
        self._heard = time.monotonic()
        self._on_end: OnOutcome | None = on_end

    def on_control(self, control: Control) -> None:
        """Take in a frame of the client's."""
        with self._changed:
            self._heard = time.monotonic()
            # A client cannot have taken more than there was.
            self._taken = max(self._taken, min(control.taken, self._put_in))
            if control.kind == "cancel":
                self._stopped = "the client closed it"
            self._changed.notify()

    def run(self, items: Generator[Any, Any, Any]) -> None:
        """Send all items and the end of the stream. The generator is closed in any case.

        Raises:
            Exception: what the generator raises, after its items are on their way; `end` tells the client of it.
        """
        try:
            while self._may_go_on():
                try:
                    item = next(items)
                except StopIteration:
                    self.end(None)
                    return
                self._put(encode_item(item, self._content_type, lossy=self._lossy))
            LOG.info("stream %s was ended: %s", self._call_id, self._stopped)
            if not self._too_large:
                self._finish(None)
        finally:
            items.close()

    def _may_go_on(self) -> bool:
        """Wait until the client has taken enough. False: the client wants no more, or is gone."""
        with self._changed:
            while self._stopped is None:
                now = time.monotonic()
                up_since = self._up_since()
                self._heard = now if up_since is None else max(self._heard, up_since)
                silent = now - self._heard
                if silent >= LOST_AFTER:
                    self._stopped = f"the client at {self._client} has been silent for {silent:.0f} s"
                elif self._put_in - self._taken < self._window and self._buffered < BUFFERED_BYTES:
                    return True
                else:
                    self._changed.wait(LOST_AFTER - silent)
            return False

    def _put(self, item: msgspec.Raw) -> None:
        with self._changed:
            self._put_in += 1
            self._buffered += memoryview(item).nbytes
            self._buffer.append(item)
            if not self._sending:
                self._flush()

    def end(self, failure: str | None) -> None:
        """Say how the stream ended, after the items before."""
        with self._changed:
            if self._too_large:
                return  # The client is being told of that.
            self._ended = True
            self._failure = failure
            if not self._sending:
                self._flush()

    def _flush(self) -> None:
        """Send what there is, as one frame. The lock is held; sending does not block."""
        count = size = 0
        for item in self._buffer:
            if count and size + memoryview(item).nbytes > FRAME_BYTES:
                break
            size += memoryview(item).nbytes
            count += 1
        items, self._buffer = self._buffer[:count], self._buffer[count:]
        self._buffered -= size
        self._changed.notify()
        seq, self._seq = self._seq, self._seq + len(items)
        ending = self._ended and not self._buffer
        self._sending = True
        kind: Any = "reply" if ending else "items"
        frame = Reply(
            self._call_id, kind, failure=self._failure if ending else None, ending=ending, items=items, seq=seq
        )
        self._send(frame, lambda error: self._on_sent(error, seq, ending))

    def _on_sent(self, error: BaseException | None, seq: int, ending: bool) -> None:
        with self._changed:
            self._sending = False
            if isinstance(error, MessageTooLarge) and not self._too_large:
                # The number is used again: to the client nothing is missing but what the error tells of.
                self._too_large = self._ended = True
                self._seq = seq
                self._buffer.clear()
                self._buffered = 0
                self._failure = serialize_failure(MessageTooLarge(f"an item of the stream: {error}"))
                self._stopped = str(error)
                self._changed.notify()
                self._flush()
                return
            if error is not None:
                self._stopped = f"the client at {self._client} could not be reached: {error}"
                self._changed.notify()
            elif not ending and (self._buffer or self._ended):
                self._flush()
                return
        if ending or error is not None:
            self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(error)
