"""StreamSender: sends the items of a server's generator to the client of a `multicall`."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from msgbus.drivers.base import Address, Delivery
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import encode_item
from msgbus.exceptions import MessageTooLarge
from msgbus.failures import serialize_failure
from msgbus.foreign import get_logger
from msgbus.message import LOST_AFTER, Control, Reply, Request
from msgbus.sending import OnOutcome

if TYPE_CHECKING:
    from msgbus.transport import Transport

LOG = get_logger(__name__)

MAX_WINDOW = 10_000
"""The most items that a server sends ahead, whatever window a client asks for."""
FRAME_BYTES = 1 << 20
"""The most bytes of items in one frame. (A single item may be larger.)"""
BUFFERED_BYTES = 4 * FRAME_BYTES
"""The most bytes of items that wait until the frame before them has been sent; then the generator waits too."""


class StreamCall(Protocol):
    """The call of a stream: a `ServerCall`."""

    request: Request
    delivery: Delivery
    address: Address
    transport: Transport

    def send(self, reply: Reply, on_outcome: OnOutcome) -> None:
        """Send a frame to the client."""

    def on_answer_sent(self, error: BaseException | None) -> None:
        """The last frame was sent, or could not be."""


class StreamSender:
    """Sends a generator's items, no more than the window ahead of what the client has taken.

    One frame is in flight at a time; what the generator yields meanwhile goes together in the next one, up to
    `FRAME_BYTES`. So the frames keep their order, and a fast generator needs few of them.
    """

    _yielded = 0  # items of the generator so far
    _taken = 0  # how many of them the client has taken, as far as is known
    _buffered = 0  # bytes
    _seq = 0
    _sending = _ended = _over = _too_large = False
    _failure: str | None = None
    _stopped: str | None = None  # why no more is sent

    def __init__(self, call: StreamCall) -> None:
        """Make one that has not begun. The call's `on_answer_sent` is called once, when the stream is over."""
        self._call = call
        self._window = min(call.request.window or 1, MAX_WINDOW)
        self._changed = threading.Condition()
        self._buffer: list[msgspec.Raw] = []
        self._heard = Loop.now()

    def on_control(self, control: Control) -> None:
        """Handle a control frame of the client."""
        with self._changed:
            self._heard = Loop.now()
            # A client cannot have taken more than was yielded.
            self._taken = max(self._taken, min(control.taken, self._yielded))
            if control.kind == "cancel":
                self._stopped = "the client closed it"
            self._changed.notify()

    def run(self, items: Generator[Any, Any, Any]) -> None:
        """Send all items and the end of the stream. The generator is closed in any case.

        Raises:
            Exception: what the generator raises, after its items are on their way; `end` sends it to the client.
        """
        content_type, lossy = self._call.delivery.message.content_type, self._call.transport.lossy
        try:
            while self._may_go_on():
                try:
                    item = next(items)
                except StopIteration:
                    self.end(None)
                    return
                self._add(encode_item(item, content_type, lossy=lossy))
            LOG.info("stream %s was ended: %s", self._call.request.call_id, self._stopped)
            if not self._too_large:
                self._finish(None)
        finally:
            items.close()

    def _may_go_on(self) -> bool:
        """Wait until the client has taken enough. False: the client wants no more, or has disappeared."""
        with self._changed:
            while self._stopped is None:
                now = Loop.now()
                up_since = self._call.transport.driver.up_since
                self._heard = now if up_since is None else max(self._heard, up_since)
                silent = now - self._heard
                if silent >= LOST_AFTER:
                    self._stopped = f"the client at {self._call.address} has been silent for {silent:.0f} s"
                elif self._yielded - self._taken < self._window and self._buffered < BUFFERED_BYTES:
                    return True
                else:
                    self._changed.wait(LOST_AFTER - silent)
            return False

    def _add(self, item: msgspec.Raw) -> None:
        with self._changed:
            self._yielded += 1
            self._buffered += memoryview(item).nbytes
            self._buffer.append(item)
            if not self._sending:
                self._flush()

    def end(self, failure: str | None) -> None:
        """Send how the stream ended, after the items that are still buffered."""
        with self._changed:
            if self._too_large:
                return  # That error is being sent to the client already.
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
        failure = self._failure if ending else None
        frame = Reply(self._call.request.call_id or "", kind, failure=failure, ending=ending, items=items, seq=seq)
        self._call.send(frame, lambda error: self._on_sent(error, seq, ending))

    def _on_sent(self, error: BaseException | None, seq: int, ending: bool) -> None:
        with self._changed:
            self._sending = False
            if isinstance(error, MessageTooLarge) and not self._too_large:
                # The sequence number is used again: the client misses nothing but the item that was too large.
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
                self._stopped = f"the client at {self._call.address} could not be reached: {error}"
                self._changed.notify()
            elif not ending and (self._buffer or self._ended):
                self._flush()
                return
        if ending or error is not None:
            self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        over, self._over = self._over, True
        if not over:
            self._call.on_answer_sent(error)
