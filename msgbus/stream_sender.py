"""StreamSender: sends the items of a server's generator to the client of a `multicall`."""

from __future__ import annotations

import threading
import types
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Generator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from msgbus import forking
from msgbus.awaitables import refuse_awaitable
from msgbus.drivers.base import Address, Delivery
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import item_encoder
from msgbus.exceptions import MessageTooLarge, SerializationError
from msgbus.failures import serialize_failure
from msgbus.foreign import get_logger
from msgbus.message import LOST_AFTER, Control, Reply, Request, window_after
from msgbus.sending import OnOutcome

if TYPE_CHECKING:
    from msgbus.base_transport import BaseTransport

LOG = get_logger(__name__)

MAX_WINDOW = 10_000
"""The most items that a server sends ahead, whatever window a client asks for."""
MAX_BYTES = 4 << 20
"""The most bytes of items that a server sends ahead, likewise; one item more if that is larger.

For a client that gives no credit by bytes it bounds what waits to be sent."""
FRAME_BYTES = 1 << 20
"""The most bytes of items in one frame. (A single item may be larger.)"""
TURN = 100
"""Items of an asynchronous generator after which the other tasks get their turn: it may never wait for anything."""


class StreamCall(Protocol):
    """The call of a stream: a `ServerCall`."""

    request: Request
    delivery: Delivery
    address: Address
    transport: BaseTransport

    def send(self, reply: Reply, on_outcome: OnOutcome) -> None:
        """Send a frame to the client."""

    def on_answer_sent(self, error: BaseException | None) -> None:
        """The last frame was sent, or could not be."""

    def abandon(self) -> None:
        """The client takes no more: interrupt the generator, where it can be."""


class Event(Protocol):
    """What a coroutine waits with."""

    def set(self) -> None:
        """End the wait, or the next one. Any thread."""

    async def wait(self, seconds: float) -> None:
        """Wait for `set`, but not longer than so many seconds."""


@types.coroutine
def yield_to_others() -> Generator[None, None, None]:
    """Let the event loop run what else is due: what ``asyncio.sleep(0)`` does, without the import of asyncio."""
    yield


class StreamSender:
    """Sends a generator's items, no more than the window ahead of what the client has taken.

    One frame is in flight at a time; what the generator yields meanwhile goes together in the next one, up to
    `FRAME_BYTES`. So the frames keep their order, and a fast generator needs few of them.

    Each item is written as bytes when it is yielded, since the generator may change it afterwards. What is done for
    each item needs no lock: `run` alone changes `_yielded` and `_bytes`, and adds to the end of `_buffer`; all else
    changes under the lock.
    """

    _yielded = 0  # items of the generator so far
    _bytes = 0  # their size
    _taken = 0  # how many of them the client has taken, as far as is known
    _seq = 0  # how many of them were sent
    _sent_bytes = 0
    _taken_bytes = 0  # of the frames all of whose items the client has taken
    _sending = _ended = _over = _too_large = False
    _failure: str | None = None
    _event: Event | None = None
    _stopped: str | None = None  # why no more is sent

    def __init__(self, call: StreamCall) -> None:
        """Make one that has not begun. The call's `on_answer_sent` is called once, when the stream is over."""
        self._call = call
        self._forks = forking.forks
        hints = call.request.hints
        self._window = min(call.request.window or 1, MAX_WINDOW)
        self._window_bytes = None if hints is None or hints.window_bytes is None else min(hints.window_bytes, MAX_BYTES)
        self._encode = item_encoder(call.delivery.message.content_type, lossy=call.transport.lossy)
        self._lock = threading.RLock()  # A message system may say that a frame is sent while it is being sent.
        self._changed = threading.Condition(self._lock)
        self._buffer: list[bytes] = []
        self._untaken: deque[tuple[int, int]] = deque()  # of each frame: the number after its last item, `_sent_bytes`
        self._heard = Loop.now()
        with self._lock:
            self._allow()

    def _allow(self) -> None:
        """Compute how far the generator may go on. The lock is held."""
        counted = self._sent_bytes if self._window_bytes is None else self._taken_bytes
        self._max_yielded = 0 if self._stopped is not None else self._taken + window_after(self._taken, self._window)
        self._max_bytes = counted + (self._window_bytes or MAX_BYTES)
        self._changed.notify()
        if self._event is not None:
            self._event.set()

    def _stop(self, reason: str) -> None:
        """Send no more items. The lock is held."""
        self._stopped = reason
        self._allow()

    def on_control(self, control: Control) -> None:
        """Handle a control frame of the client."""
        with self._lock:
            self._heard = Loop.now()
            # A client cannot have taken more than was sent.
            self._taken = max(self._taken, min(control.taken, self._seq))
            while self._untaken and self._untaken[0][0] <= self._taken:
                self._taken_bytes = self._untaken.popleft()[1]
            if control.kind == "cancel":
                self._stopped = "the client closed it"
            self._allow()

    def run(self, items: Generator[Any, Any, Any]) -> None:
        """Send all items and the end of the stream. The generator is closed in any case.

        Raises:
            Exception: what the generator raises, after its items are on their way; `end` sends it to the client.
        """
        add = self._add
        try:
            if self._may_go_on():
                for item in items:
                    if add(item) and not self._may_go_on():
                        break
                else:
                    self.end(None)
                    return
            self._end_early()
        finally:
            items.close()

    async def run_async(self, items: AsyncGenerator[Any, None], event: Event) -> None:
        """As `run`, for an asynchronous generator, on its event loop; `event` is what this waits with for credit."""
        add = self._add
        self._event = event
        try:
            if await self._may_go_on_async():
                async for item in items:
                    if add(item) and not await self._may_go_on_async():
                        break
                    if self._yielded % TURN == 0:
                        await yield_to_others()
                else:
                    self.end(None)
                    return
            self._end_early()
        finally:
            await items.aclose()

    def _add(self, item: Any) -> bool:
        """Take an item of the generator. Returns whether it has to be asked if the generator may go on."""
        try:
            written = self._encode(item)
        except SerializationError:
            refuse_awaitable(f"the method {self._call.request.method!r} yielded", item)
            raise
        self._buffer.append(written)
        self._yielded += 1
        self._bytes += len(written)
        # Checked after the item is in the buffer: `_on_sent` looks there after it has changed this.
        if not self._sending:
            self._flush_if_idle()
        return (
            self._yielded >= self._max_yielded
            or self._bytes >= self._max_bytes
            or Loop.now() - self._heard >= LOST_AFTER
        )

    def _end_early(self) -> None:
        LOG.info("stream %s was ended: %s", self._call.request.call_id, self._stopped)
        if not self._ended:  # Otherwise it is finished when its last frame is sent.
            self._finish(None)

    def _may_go_on(self) -> bool:
        """Wait until the client has taken enough. False: the client wants no more, or has disappeared."""
        with self._lock:
            while seconds := self._seconds_to_wait():
                self._changed.wait(seconds)
            return self._stopped is None

    async def _may_go_on_async(self) -> bool:
        while True:
            with self._lock:
                seconds = self._seconds_to_wait()
            if not seconds:
                return self._stopped is None
            assert self._event is not None
            await self._event.wait(seconds)

    def _seconds_to_wait(self) -> float:
        """How long credit may take; 0 if the generator may go on, or nothing more is sent. The lock is held."""
        if self._stopped is not None:
            return 0.0
        silent = self._silence(Loop.now())
        if silent >= LOST_AFTER:
            self._stop_silent(silent)
            return 0.0
        if self._yielded < self._max_yielded and self._bytes < self._max_bytes:
            return 0.0
        return LOST_AFTER - silent

    def _silence(self, now: float) -> float:
        """For how long the client has been silent while this side was connected. The lock is held."""
        up_since = self._call.transport.driver.up_since
        self._heard = now if up_since is None else max(self._heard, up_since)
        return now - self._heard

    def _stop_silent(self, seconds: float) -> None:
        self._stop(f"the client at {self._call.address} has been silent for {seconds:.0f} s")

    def check(self, now: float) -> None:
        """Interrupt the generator if the client has disappeared: it may wait for something, and never yield again."""
        if now - self._heard < LOST_AFTER:
            return
        with self._lock:
            silent = self._silence(now)
            if self._stopped is not None or silent < LOST_AFTER:
                return
            self._stop_silent(silent)
        self._call.abandon()

    def _flush_if_idle(self) -> None:
        with self._lock:
            if not self._sending and self._stopped is None and self._buffer:
                self._flush()

    def end(self, failure: str | None) -> None:
        """Send how the stream ended, after the items that are still buffered."""
        with self._lock:
            if self._ended:
                return  # An item that is too large, or the end of the server, has ended it, and this is being sent.
            nobody_listens = failure is not None and self._stopped is not None
            if not nobody_listens:
                self._ended = True
                self._failure = failure
                if failure is not None:
                    self._stop("it has failed")  # Its generator may still run, on another thread.
                if not self._sending:
                    self._flush()
        if nobody_listens:
            self._finish(None)

    def _flush(self) -> None:
        """Send what there is, as one frame. The lock is held; sending does not block."""
        items: list[Any] = [] if self._too_large else self._take_frame()
        seq = self._seq
        self._seq += len(items)
        self._untaken.append((self._seq, self._sent_bytes))
        self._allow()
        ending = self._ended and (self._too_large or not self._buffer)
        self._sending = True
        kind: Any = "reply" if ending else "items"
        failure = self._failure if ending else None
        frame = Reply(self._call.request.call_id or "", kind, failure=failure, ending=ending, items=items, seq=seq)
        self._call.send(frame, lambda error: self._on_sent(error, seq, ending))

    def _take_frame(self) -> list[Any]:
        """Take the items of one frame out of the buffer, to whose end `run` may add others meanwhile."""
        sizes = list(accumulate(map(len, self._buffer)))
        if not sizes:
            return []
        count = max(1, bisect_right(sizes, FRAME_BYTES))
        items = [msgspec.Raw(item) for item in self._buffer[:count]]
        del self._buffer[:count]
        self._sent_bytes += sizes[count - 1]
        return items

    def _on_sent(self, error: BaseException | None, seq: int, ending: bool) -> None:
        if self._forks != forking.forks:
            return  # The parent goes on with the stream. One of its threads may hold the lock.
        with self._lock:
            self._sending = False
            if isinstance(error, MessageTooLarge) and not self._too_large:
                # The sequence number is used again: the client misses nothing but the item that was too large.
                self._stop(str(error))
                self._too_large = self._ended = True
                self._seq = seq
                self._buffer.clear()
                self._failure = serialize_failure(MessageTooLarge(f"an item of the stream: {error}"))
                self._flush()
                self._call.abandon()
                return
            if error is not None:
                self._stop(f"the client at {self._call.address} could not be reached: {error}")
                self._call.abandon()
            elif not ending and (self._ended or (self._buffer and self._stopped is None)):
                self._flush()
                return
        if ending or error is not None:
            self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        over, self._over = self._over, True
        if not over:
            self._call.on_answer_sent(error)
