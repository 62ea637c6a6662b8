"""One connection of the kombu driver: opened by kombu and py-amqp, then written and read here.

The transport's loop reads, and never blocks on a connection. Any thread may write: a thread that wants to write appends
to a list, and whoever holds the write lock sends all that has gathered, so that a busy connection makes few system
calls.

Opening a connection does block (names are looked up, TLS and the log-in go back and forth), so it has a short-lived
thread of its own.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from msgbus.drivers.kombu import frames
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

READ_SIZE = 1 << 16
"""Bytes; above 128 KiB the C library would map and unmap memory for every read."""
STALLED = 5.0
"""Seconds for which RabbitMQ may confirm nothing, or not declare a queue, before the next host is tried."""
MAX_CHANNELS = 2000
"""Channels of one connection at the most; RabbitMQ's own limit is 2047 by default."""
TICK = 1.0
"""Seconds between two looks at heartbeats and at messages that were never confirmed."""
BACKOFF_MAX = 5.0
"""Seconds between two tries to connect, at the most."""


class Broken(Exception):
    """The connection is of no use any more; the text says why."""


class Connection(Protocol):
    """What is used of py-amqp's connection once it is open."""

    transport: Any
    frame_max: int
    heartbeat: float


class Channel:
    """Takes the frames of one AMQP channel. Its methods are called on the loop's thread."""

    number: int

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        """A method frame: its ids, and its arguments in ``buffer[at:end]``."""

    def on_content(self, ids: bytes, method: Any, header: frames.ContentHeader, body: bytes) -> None:
        """A whole message: of basic.deliver (a `frames.Deliver`) or basic.return (its text)."""

    def on_batch_end(self) -> None:
        """All that could be read at once has been handed over."""

    def on_down(self, error: TransportUnavailable) -> None:
        """The connection is gone."""


class _Content:
    """A message whose frames are still coming in."""

    __slots__ = ("channel", "header", "ids", "method", "missing", "parts")

    def __init__(self, channel: Channel, ids: bytes, method: Any) -> None:
        self.channel = channel
        self.ids = ids
        self.method = method
        self.header: frames.ContentHeader | None = None
        self.missing = 0
        self.parts: list[bytes] = []


def _peer_of(sock: socket.socket) -> str:
    """Whom it is connected to. It may be broken again already: then that is noticed when it is read."""
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "a host that has broken it again"
    return f"{host}:{port}"


class Link:
    """A connection that comes back by itself, and its channels.

    Attributes:
        up: it can be written to.
        up_since: when that began, in seconds of `time.monotonic`.
        generation: how often it has been opened.
        blocked: why RabbitMQ takes no messages at present (its own words), or None.
        error: why it is not up.
        frame_max: the largest frame, in bytes.
        attempt: the number of the try that opened it, which tells the host.
    """

    def __init__(
        self,
        loop: Loop,
        hosts: int,
        purpose: str,
        connect: Callable[[int, str], Connection],
        describe: Callable[[BaseException, int], tuple[str, bool]],
        on_up: Callable[[], None],
        on_down: Callable[[TransportUnavailable], None],
        on_blocked: Callable[[str | None], None],
        on_tick: Callable[[float], None],
    ) -> None:
        """Make a link that is not opened yet.

        Args:
            loop: whose thread reads, and writes what no other thread does.
            hosts: how many there are: so many tries have to fail for good before hope is given up.
            purpose: what it is for, in a word.
            connect: opens a connection for that, at the n-th try; it may block.
            describe: says of an error, of the n-th try, in words what happened, and whether trying again is of no use.
            on_up: called on the loop's thread when the connection is open.
            on_down: called there when it breaks, and when it cannot be opened for good.
            on_blocked: called there when `blocked` changes.
            on_tick: called there once a second while it is up, with the time of `time.monotonic`.
        """
        self.up = False
        self.up_since = 0.0
        self.generation = 0
        self.blocked: str | None = None
        self.error: TransportUnavailable | None = None
        self.frame_max = 131072
        self.loop = loop
        self._hosts = hosts
        self._hopeless = 0
        self._causes: dict[int, str] = {}  # by host: why it could not be reached since the last one that was
        self._purpose = purpose
        self._connect = connect
        self._describe = describe
        self._on_up = on_up
        self._on_down = on_down
        self._on_blocked = on_blocked
        self._on_tick = on_tick
        self._tries = 0
        self.attempt = 0
        self._opening = False
        self._closed = False
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None
        self._tls = False
        self._fd = -1
        self._out: list[bytes] = []
        self._rest = b""
        self._writing = threading.Lock()
        self._start_reading()

    def _start_reading(self) -> None:
        self._buffer = b""
        self._channels: dict[int, Channel] = {}
        self._contents: dict[int, _Content] = {}
        self._touched: dict[Channel, None] = {}
        self._next_channel = 1
        self._last_read = self._last_write = time.monotonic()
        self._heartbeat = 0.0

    # Opening and closing

    def open(self) -> None:
        """Begin to connect, unless that has been begun.

        Raises:
            TransportUnavailable: the I/O thread cannot be started.
        """
        with self._writing:
            if self._opening or self.up or self._closed:
                return
            self._opening = True
        try:
            self.loop.call(self._start_connecting)
        except TransportUnavailable:
            self._opening = False
            raise

    def _start_connecting(self) -> None:
        if not self._closed:
            try:
                threading.Thread(target=self._open, name="msgbus-connect", daemon=True).start()
            except RuntimeError as exc:  # There are too many, or the interpreter is ending.
                attempt, self._tries = self._tries, self._tries + 1
                self._failed(exc, attempt)

    def _open(self) -> None:
        attempt, self._tries = self._tries, self._tries + 1
        try:
            connection = self._connect(attempt, self._purpose)
        except Exception as exc:
            self._failed(exc, attempt)
            return
        if self._closed or not self.loop.call(self._opened, connection):
            connection.transport.close()  # It came too late.

    def _failed(self, exc: Exception, attempt: int) -> None:
        text, hopeless = self._describe(exc, attempt)
        self._hopeless = self._hopeless + 1 if hopeless else 0
        self._causes[attempt % self._hosts] = text
        self.error = TransportUnavailable("; also ".join(self._causes.values()))
        delay = min(BACKOFF_MAX, 0.25 * 2 ** min(attempt, 8)) * random.uniform(0.5, 1.0)
        # Once for each host is enough for a log that somebody reads while the system is down.
        level = logging.WARNING if attempt < self._hosts else logging.DEBUG
        LOG.log(level, "the %s connection cannot be made: %s; next try in %.1f s", self._purpose, text, delay)
        if self._hopeless >= self._hosts and not self.generation:
            self.loop.call(self._give_up)
        self.loop.call_later(delay, self._start_connecting)

    def _why(self, error: BaseException) -> str:
        """In words, what happened to the connection that is or was up."""
        return self._describe(error, self.attempt)[0]

    def _give_up(self) -> None:
        """The first try failed in a way that a second cannot mend: nobody has to wait to hear of it."""
        assert self.error is not None
        self._on_down(self.error)

    def _opened(self, connection: Connection) -> None:
        if self._closed or self.up:
            connection.transport.close()
            return
        self._start_reading()
        self._connection = connection  # py-amqp's object owns the socket: it has to live as long
        sock: socket.socket = connection.transport.sock
        sock.setblocking(False)
        self._socket = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._fd = sock.fileno()
        self._out = []
        self._rest = b""
        self.frame_max = connection.frame_max or 131072
        self._heartbeat = float(connection.heartbeat or 0)
        self.blocked = None
        self.error = None
        self.attempt = self._tries - 1
        if self._tries > 1 or self.generation:
            LOG.warning("the %s connection is back: %s, try %d", self._purpose, _peer_of(sock), self._tries)
        self._tries = 0
        self._causes = {}
        self._opening = False
        self.generation += 1
        self.up_since = time.monotonic()
        self.up = True
        self.loop.watch(self._fd, self._on_event)
        self.loop.call_later(TICK, self._tick, self.generation)
        self._on_up()

    def _fall(self, reason: str, next_try: int = 0) -> None:
        """The connection is gone: tell everybody, and come back, first to the host of the try `next_try`."""
        if not self.up:
            return
        self._tries = next_try
        # Before it is down: who finds it down begins to connect unless that has been begun.
        self._opening = not self._closed
        error = TransportUnavailable(reason, maybe_delivered=True)
        self.error = error
        if not self._closed:
            LOG.warning("the %s connection is lost: %s", self._purpose, reason)
        self._let_go()
        channels = list(self._channels.values())
        self._start_reading()
        for channel in channels:
            channel.on_down(error)
        self._on_down(error)
        # All clients of a broker lose it at the same moment; they need not all come back at the same one.
        self.loop.call_later(random.uniform(0.0, 0.5), self._start_connecting)

    def move(self, reason: str) -> None:
        """Give up a connection that lives but does not do what it should, for that to the next host.

        A node of a cluster that is cut off from the others keeps its connections, and can do nothing for them. Where
        there is only one host, nothing changes. On the loop's thread.
        """
        if self._hosts > 1 and self.up:
            self._fall(f"{reason}; the next host is tried", self.attempt + 1)

    def _let_go(self) -> None:
        self.up = False
        self.loop.unwatch(self._fd)
        with self._writing:
            if self._socket is not None:
                self._socket.close()
            self._socket = None
            self._connection = None

    def close(self) -> None:
        """Say good-bye and close. On the loop's thread, or when that has ended."""
        self._closed = True
        if self.up:
            self.append(frames.connection_close())
            self.send_all()
            self._fall("the connection was closed")

    def abandon(self) -> None:
        """In a forked child: let go of the parent's socket without a word on it."""
        self._closed = True
        self.up = False
        if self._socket is not None:
            os.close(self._socket.detach())

    # Writing

    def write(self, data: bytes) -> None:
        """Write, now or together with what others write. Any thread."""
        self._out.append(data)
        self.flush()

    def append(self, data: bytes) -> None:
        """Have `data` written by the next `flush`. The caller may hold a lock that orders it."""
        self._out.append(data)

    def flush(self) -> None:
        """Have what has gathered written: by the loop if it is awake, else by this thread."""
        if not self.loop.awake:
            self.send_all()

    def send_all(self) -> None:
        """Write what has gathered: the first thread in writes for all that come meanwhile."""
        out = self._out
        while out:
            if not self._writing.acquire(blocking=False):
                return
            try:
                if self._rest or self._socket is None:
                    return  # The socket takes no more at present; the loop goes on when it does.
                count = len(out)
                data = out[0] if count == 1 else b"".join(out[:count])
                del out[:count]
                self._send(data)
            finally:
                self._writing.release()

    def _send(self, data: bytes) -> None:
        """The write lock is held."""
        assert self._socket is not None
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except OSError as exc:
            self.loop.call(self._on_send_failed, exc, self.generation)
            self._rest = data
            return
        if sent < len(data):
            self._rest = data[sent:]
            self.loop.call(self._watch, self.generation)
        self._last_write = time.monotonic()

    def _on_send_failed(self, exc: OSError, generation: int) -> None:
        if generation == self.generation:
            self._fall(self._why(exc))

    def _watch(self, generation: int) -> None:
        """Go on writing when the socket takes more."""
        if generation == self.generation and self.up:
            self.loop.watch(self._fd, self._on_event, write=True)

    @property
    def has_more(self) -> bool:
        """Whether something was appended that nobody writes, and that the socket would take."""
        return bool(self._out) and not self._rest and self.up

    def _go_on_writing(self) -> None:
        with self._writing:
            data, self._rest = self._rest, b""
            if data and self._socket is not None:
                self._send(data)
            if self._rest:
                return
        self.loop.watch(self._fd, self._on_event)
        self.send_all()

    # Reading

    def _on_event(self) -> None:
        """The socket can be read or written."""
        if self._rest:
            self._go_on_writing()
        try:
            self._read()
        except Broken as exc:
            self._fall(str(exc))

    def _read(self) -> None:
        sock = self._socket
        if sock is None:
            return
        try:
            if self._tls:
                # OpenSSL's state is not for two threads at once. Both calls return at once: nobody waits here.
                with self._writing:
                    data = sock.recv(READ_SIZE)
                    while (more := sock.pending()) > 0:  # type: ignore[attr-defined]
                        data += sock.recv(more)
            else:
                data = sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as exc:
            raise Broken(self._why(exc)) from exc
        if not data:
            raise Broken(self._why(ConnectionResetError("RabbitMQ closed the connection")))
        self._last_read = time.monotonic()
        if self._tls:
            self.send_all()  # Who found the lock taken meanwhile has left it to us.
        try:
            self._feed(data)
        except (struct.error, IndexError, ValueError, TypeError) as exc:
            raise Broken(self._why(ConnectionError(f"a malformed frame: {exc!r}"))) from exc
        for channel in self._touched:
            channel.on_batch_end()
        self._touched.clear()

    def _feed(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at, available = 0, len(buffer)
        while available - at >= frames.OVERHEAD:
            kind, number, size = frames.frame_head(buffer, at)
            end = at + 7 + size
            if end >= available:
                if size > self.frame_max:
                    raise ValueError(f"a frame of {size} bytes")
                break
            if buffer[end] != frames.END:
                raise ValueError("no frame end")
            self._on_frame(kind, number, buffer, at + 7, end)
            if not self.up:
                return
            at = end + 1
        self._buffer = buffer[at:]

    def _on_frame(self, kind: int, number: int, buffer: bytes, at: int, end: int) -> None:
        if kind == frames.METHOD:
            ids = buffer[at : at + 4]
            if number == 0:
                self._on_connection_method(ids, buffer, at + 4, end)
                return
            channel = self._channels.get(number)
            if channel is None:
                return  # A frame that was under way when the channel was closed.
            if ids == frames.BASIC_DELIVER:
                self._contents[number] = _Content(channel, ids, frames.read_deliver(buffer, at + 4))
            elif ids == frames.BASIC_RETURN:
                self._contents[number] = _Content(channel, ids, frames.read_close(buffer, at + 4, end))
            else:
                channel.on_method(ids, buffer, at + 4, end)
        elif kind in (frames.HEADER, frames.BODY):
            content = self._contents.get(number)
            if content is not None:
                self._on_content_frame(content, number, kind, buffer, at, end)
        elif kind != frames.HEARTBEAT:
            raise ValueError(f"a frame of type {kind}")

    def _on_content_frame(self, content: _Content, number: int, kind: int, buffer: bytes, at: int, end: int) -> None:
        if kind == frames.HEADER:
            content.header = frames.read_content_header(buffer, at, end)
            content.missing = content.header.size
        else:
            content.parts.append(buffer[at:end])
            content.missing -= end - at
        if content.missing <= 0 and content.header is not None:
            del self._contents[number]
            parts = content.parts
            self._touched[content.channel] = None
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            try:
                content.channel.on_content(content.ids, content.method, content.header, body)
            except Exception:
                # What one message does to its reader may not cost the connection, and all else that is on it.
                LOG.exception("a message could not be handed over")

    def _on_connection_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.CONNECTION_CLOSE:
            code, text = frames.read_close(buffer, at, end)
            self.append(frames.method(0, frames.CONNECTION_CLOSE_OK))
            self.send_all()
            raise Broken(self._why(ConnectionResetError(f"RabbitMQ closed the connection: {code} {text}")))
        if ids == frames.CONNECTION_BLOCKED:
            self.blocked = frames.read_short_string(buffer, at) or "unknown reason"
            LOG.warning("RabbitMQ takes no messages: %s", self.blocked)
            self._on_blocked(self.blocked)
        elif ids == frames.CONNECTION_UNBLOCKED:
            self.blocked = None
            LOG.warning("RabbitMQ takes messages again")
            self._on_blocked(None)

    def _tick(self, generation: int) -> None:
        """Send and check heartbeats."""
        if generation != self.generation or not self.up:
            return
        self.loop.call_later(TICK, self._tick, generation)
        now = time.monotonic()
        if self._heartbeat:
            if now - self._last_write >= self._heartbeat / 2:
                self.write(frames.heartbeat)
            silent = now - self._last_read
            if silent >= 2 * self._heartbeat:
                self._fall(self._why(TimeoutError(f"no heartbeat of RabbitMQ for {silent:.0f} s")))
                return
        self._on_tick(now)

    # Channels

    def add(self, channel: Channel) -> None:
        """Give a channel its number. It opens the channel itself. On the loop's thread.

        Raises:
            TransportUnavailable: there are too many channels already.
        """
        if len(self._channels) >= MAX_CHANNELS:
            raise TransportUnavailable(f"{MAX_CHANNELS} channels are open on the {self._purpose} connection")
        while self._next_channel in self._channels:
            self._next_channel = self._next_channel % MAX_CHANNELS + 1
        channel.number = self._next_channel
        self._next_channel = self._next_channel % MAX_CHANNELS + 1
        self._channels[channel.number] = channel

    def remove(self, channel: Channel) -> None:
        """The channel is closed. On the loop's thread."""
        if self._channels.get(channel.number) is channel:
            del self._channels[channel.number]
            self._contents.pop(channel.number, None)
