"""One connection to RabbitMQ: opened by kombu and py-amqp, then read and written by msgbus.

The transport's loop reads, and never blocks on a connection. Any thread may write: a thread that wants to write appends
to a list, and the thread that holds the write lock sends everything that has gathered, so a busy connection makes few
system calls.
"""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
import struct
import termios
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from msgbus.drivers.base import Address, QueueInfo
from msgbus.drivers.kombu import frames
from msgbus.drivers.kombu.channel import Channel, Settling
from msgbus.drivers.kombu.feed import KombuFeed
from msgbus.drivers.kombu.publisher import Publisher
from msgbus.drivers.kombu.questions import Inspections, Question, explain, refuses_transient
from msgbus.drivers.kombu.reading import Reader
from msgbus.drivers.kombu.topology import Route, Topology
from msgbus.drivers.toolkit.connecting import close_socket, peer_of
from msgbus.drivers.toolkit.consuming import Source
from msgbus.drivers.toolkit.loop import LINGER, Loop
from msgbus.drivers.toolkit.sending import Offer, OnDeclared, Outgoing, Sender
from msgbus.drivers.toolkit.session import Line, Session
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

READ_SIZE = 1 << 16
"""Bytes; above 128 KiB the C library would map and unmap memory for every read."""
MAX_CHANNELS = 2000
"""The most channels of one connection. RabbitMQ's own limit, channel_max, is 2047 by default; the lower one counts."""
QUESTIONS = 4
"""One channel of so many is for questions, which wait for each other if there are more. So a question never takes the
channel of a lasting subscription, nor the other way round."""
TICK = 1.0
"""Seconds between two checks of heartbeats, and of missing answers."""
CHECK_INTERVAL = 5.0
"""Seconds after which queues are checked: one, its binding or its exchange may have been deleted."""


class Connection(Protocol):
    """The part of py-amqp's open connection that is used here."""

    transport: Any
    channel_max: int
    frame_max: int
    heartbeat: float


class Owner(Protocol):
    """The part of `KombuDriver` that a session uses; the attributes are described there."""

    loop: Loop
    sender: Sender
    sending: Line
    sessions: tuple[KombuSession, ...]
    topology: Topology
    route: Callable[[Address], Route]
    compression: str
    decompressed_max: int | None
    has_more_hosts: bool
    moved_at: float

    def on_move(self, line: Line) -> None:
        """A connection is given up for one to the next host."""


class KombuSession(Session):
    """See the module's text, and `Wire`.

    Attributes:
        unwritten: appended data that is still to be written.
        settling: whose settled deliveries are still to be written.
        is_urgent: some of all that may not wait for more.
        hindered_at: see `Wire`.
    """

    def __init__(self, driver: Owner, line: Line, connection: Connection) -> None:
        """Begin to use what py-amqp has opened."""
        self._driver = driver
        self.loop = driver.loop
        self.line = line
        self.frame_max = connection.frame_max or 131072
        self._connection: Connection | None = connection  # It owns the socket, so it has to live as long.
        sock: socket.socket = connection.transport.sock
        sock.setblocking(False)
        self._socket: socket.socket | None = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._fd = sock.fileno()
        self._heartbeat = float(connection.heartbeat or 0)
        self.unwritten: list[bytes] = []
        self.settling: dict[Settling, None] = {}
        self.is_urgent = False
        self._linger_until = 0.0
        self._acknowledged: dict[int, int] = {}  # by channel, the last tag to acknowledge with the next write
        self._unsent = memoryview(b"")  # A part of what may be large: a copy for each write would take very long.
        self._writing = threading.Lock()
        self._channels: dict[int, Channel] = {}
        self._channel_max = min(connection.channel_max or MAX_CHANNELS, MAX_CHANNELS)
        self._next_channel = 1
        self._asking: set[Channel] = set()  # those of `_channels` that belong to questions
        self._waiting: dict[Channel, Callable[[], None]] = {}  # questions that have no channel yet, in order
        self._reader = Reader(self._channels, self.frame_max, driver.decompressed_max, self._on_connection_method)
        self._last_read = self._last_write = self._checked_at = self.hindered_at = self.loop.now()
        self._written = 0  # bytes that the socket has taken
        self._taken = 0  # bytes of these that the other end's machine had taken at the last tick
        self._was_waiting = False  # then there were others
        self._inspections = Inspections(self)
        is_sending = line is driver.sending
        self._publisher = Publisher(self, driver.route, driver.sender, driver.compression) if is_sending else None

    def start(self) -> None:
        self._driver.sessions += (self,)
        self.loop.watch(self._fd, self._on_event)
        self.loop.call_later(TICK, self._tick)
        self.line.serve(peer_of(self._socket))
        if self._publisher is not None:
            self._publisher.open()

    def name(self) -> str:
        return self.line.name()

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def lose(self, reason: BaseException | str) -> None:
        """Report that the connection is unusable."""
        if self._socket is not None:
            self.line.lose(reason)

    def move(self, reason: str, *, pause: float = 0.0) -> None:
        may_move = self._driver.has_more_hosts and self.loop.now() - self._driver.moved_at >= pause
        if may_move and self._socket is not None:
            self._driver.on_move(self.line)
            self.line.lose(f"{reason}; the next host is tried", move=True)

    # What the driver wants

    def publish(self, outgoing: Outgoing) -> Offer:
        assert self._publisher is not None
        return self._publisher.publish(outgoing)

    def declare(self, address: Address, declared: OnDeclared) -> None:
        assert self._publisher is not None
        self._publisher.declare(address, declared)

    def consume(self, source: Source) -> KombuFeed:
        return KombuFeed(self, source, self._driver.topology.queue(source.address, source.unique))

    def remove(self, source: Source, removed: Callable[[], None]) -> None:
        queue = self._driver.topology.queue(source.address, source.unique)
        if not queue.own:
            removed()
            return
        delete = partial(frames.queue_delete, queue=queue.name)
        Question(self, delete, frames.QUEUE_DELETE_OK, lambda _answer: removed()).start()

    def inspect(self, address: Address, found: Future[QueueInfo]) -> None:
        self._inspections.start(self._driver.topology.queue(address, "").name, found)

    # The end

    def close(self) -> None:
        self.append(frames.connection_close())
        self.send_all()

    def let_go(self) -> None:
        self._driver.sessions = tuple(session for session in self._driver.sessions if session is not self)
        self.loop.unwatch(self._fd)
        with self._writing:
            sock, self._socket = self._socket, None
            self._connection = None
            if sock is not None:
                close_socket(sock, self.loop)
        self._reader.close()
        channels = [*self._channels.values(), *self._waiting]
        self._channels.clear()
        self._waiting.clear()
        for channel in channels:
            channel.on_down(TransportUnavailable(f"{self.name()} is not connected"))

    def abandon(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            os.close(sock.detach())

    # Writing

    def write(self, data: bytes) -> None:
        self.append(data)
        self.flush()

    def append(self, data: bytes) -> None:
        self.unwritten.append(data)
        self.is_urgent = True  # Set after that: whoever writes in between takes the data along, and all is written.

    def settle_soon(self, settling: Settling, *, is_urgent: bool) -> None:
        self.settling[settling] = None
        if is_urgent:
            self.is_urgent = True  # As in `append`.

    def holds_back(self, is_over: bool) -> bool:
        """Whether the acknowledgements that have gathered, if that is all, may wait for more, up to ``LINGER``.

        On the loop's thread, before it sleeps. With `is_over` it has lingered already.
        """
        if not is_over and not self._unsent:
            now = self.loop.now()
            if not self._linger_until:
                self._linger_until = now + LINGER
            if now < self._linger_until:
                return True
        self.is_urgent = True
        return False

    def acknowledge_later(self, channel: int, tag: int) -> None:
        """Acknowledge all up to `tag` with what is written next, or within ``TICK``. On the loop's thread."""
        self._acknowledged[channel] = tag

    def _add_settlements(self) -> None:
        """Put them before what is written: it may end with the close of their channel. The write lock is held.

        Others go on settling meanwhile, so a channel may come twice. What it has settled first is written first:
        RabbitMQ closes a channel over a tag that an acknowledgement of several has covered.
        """
        parts: list[bytes] = []
        while self._acknowledged:
            try:
                channel, tag = self._acknowledged.popitem()
            except KeyError:
                break  # The channel has been closed.
            parts.append(frames.basic_ack(channel, tag, multiple=True))
        while self.settling:
            settling, _ = self.settling.popitem()
            if data := settling.take_settlements():
                parts.append(data)
        self.unwritten[:0] = parts

    def acknowledge_no_more(self, channel: int) -> None:
        """The channel is being closed. Any thread."""
        self._acknowledged.pop(channel, None)

    def flush(self) -> None:
        if not self.loop.will_step():
            self.send_all()

    def send_all(self) -> None:
        """Write what has gathered: the first thread also writes what others append meanwhile."""
        out = self.unwritten
        while out or self.settling:
            if not self._writing.acquire(blocking=False):
                return
            try:
                if self._unsent or self._socket is None:
                    return  # The socket takes no more at present; the loop goes on when it does.
                self.is_urgent = False
                self._linger_until = 0.0
                if self._acknowledged or self.settling:
                    self._add_settlements()
                count = len(out)
                data = out[0] if count == 1 else b"".join(out[:count])
                del out[:count]
                if data:  # Otherwise the channels of what was to be settled have been closed.
                    self._send(memoryview(data))
            finally:
                self._writing.release()

    def _send(self, data: memoryview) -> None:
        """The write lock is held."""
        assert self._socket is not None
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except OSError as exc:
            self._unsent = data
            self.loop.call_lazily(self.lose, exc)  # Also if other code has closed the loop's descriptors with this one.
            return
        self._written += sent
        if sent < len(data):
            self._unsent = data[sent:]
            self.loop.call(self._watch)
        self._last_write = self.loop.now()

    def _watch(self) -> None:
        """Go on writing when the socket takes more, unless it has meanwhile: an event has come just before."""
        if self._socket is not None and self._unsent:
            self.loop.watch(self._fd, self._on_event, write=True)

    def _go_on_writing(self) -> None:
        with self._writing:
            data, self._unsent = self._unsent, memoryview(b"")
            if data and self._socket is not None:
                self._send(data)
            if self._unsent:
                return
        self.loop.watch(self._fd, self._on_event)
        self.send_all()

    # Reading

    def _on_event(self) -> None:
        """The socket can be read or written."""
        if self._unsent:
            self._go_on_writing()
        try:
            self._read()
        except OSError as exc:
            self.lose(exc)

    def _read(self) -> None:
        sock = self._socket
        if sock is None:
            return
        try:
            if self._tls:
                # OpenSSL's state must not be used by two threads at once. Both calls return at once, so the lock is
                # held briefly.
                with self._writing:
                    data = sock.recv(READ_SIZE)
                    while (more := sock.pending()) > 0:  # type: ignore[attr-defined]
                        data += sock.recv(more)
            else:
                data = sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        if not data:
            raise ConnectionResetError("RabbitMQ closed the connection")
        self._last_read = self.loop.now()
        if self._tls:
            self.send_all()  # Threads that found the lock taken meanwhile have left their data to this one.
        try:
            self._reader.feed(data)
        except OSError:
            raise
        except Exception as exc:  # The rest of what was read is lost, so the connection is given up.
            if not isinstance(exc, (struct.error, IndexError, ValueError, TypeError)):
                LOG.exception("what RabbitMQ has sent could not be handled")
            raise ConnectionError(f"a malformed frame, or one that could not be handled: {exc!r}") from exc

    def _on_connection_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.CONNECTION_CLOSE:
            code, text = frames.read_close(buffer, at, end)
            self.append(frames.method(0, frames.CONNECTION_CLOSE_OK))
            self.send_all()
            if refuses_transient(text):
                for channel in list(self._channels.values()):
                    if isinstance(channel, KombuFeed):
                        channel.on_transient_refused(code, text)
            raise ConnectionResetError(f"RabbitMQ closed the connection: {explain(code, text)}")
        if ids == frames.CONNECTION_BLOCKED:
            self.line.block(frames.read_short_string(buffer, at) or "unknown reason")
        elif ids == frames.CONNECTION_UNBLOCKED:
            self.line.block(None)

    def _tick(self) -> None:
        """Send and check heartbeats, and check for missing answers."""
        if self._socket is None:
            return
        self.loop.call_later(TICK, self._tick)
        now = self.loop.now()
        if self._acknowledged:
            self.write(b"")
        if self._heartbeat:
            if now - self._last_write >= self._heartbeat / 2:
                self.write(frames.heartbeat)
            silent = now - self._last_read
            if silent >= 2 * self._heartbeat:
                self.lose(TimeoutError(f"no heartbeat of RabbitMQ for {silent:.0f} s"))
                return
        self._look_for_hindrances(now)
        if self._publisher is not None:
            self._publisher.on_tick(now)
        self._check_feeds(now)

    def _look_for_hindrances(self, now: float) -> None:
        """Note whether an alarm, or a network that is slower than this program, keeps RabbitMQ from answering."""
        in_socket = _unacknowledged(self._fd)
        taken, is_waiting = self._written - in_socket, bool(in_socket or self._unsent)
        if self.line.blocked is not None or (is_waiting and self._was_waiting and taken > self._taken):
            self.hindered_at = now
        self._taken, self._was_waiting = taken, is_waiting

    def _check_feeds(self, now: float) -> None:
        """Check queues every `CHECK_INTERVAL`; and leave a node that does not answer declarations."""
        feeds = [channel for channel in self._channels.values() if isinstance(channel, KombuFeed)]
        if now - self._checked_at >= CHECK_INTERVAL:
            self._checked_at = now
            for feed in feeds:
                feed.check_queue()
        for feed in feeds:
            if feed.check_declared(now):
                return

    # Channels

    @property
    def _most_questions(self) -> int:
        return max(1, self._channel_max // QUESTIONS)

    def add(self, channel: Channel) -> None:
        if len(self._channels) - len(self._asking) >= self._channel_max - self._most_questions:
            raise TransportUnavailable(
                f"{self.name()}: there is no channel left for it. A connection has {self._channel_max} of them, and "
                "needs one for each address that the process listens at, and some to ask RabbitMQ: set channel_max in "
                f"rabbitmq.conf higher (up to {MAX_CHANNELS} are used), or serve fewer topics in one process"
            )
        self._give_number(channel)

    def add_soon(self, channel: Channel, begin: Callable[[], None]) -> None:
        self._waiting[channel] = begin
        self._begin_questions()

    def _begin_questions(self) -> None:
        while self._waiting and len(self._asking) < self._most_questions:
            channel = next(iter(self._waiting))
            begin = self._waiting.pop(channel)
            self._asking.add(channel)
            self._give_number(channel)
            begin()

    def _give_number(self, channel: Channel) -> None:
        while self._next_channel in self._channels:
            self._next_channel = self._next_channel % self._channel_max + 1
        channel.number = self._next_channel
        self._next_channel = self._next_channel % self._channel_max + 1
        self._channels[channel.number] = channel

    def remove_channel(self, channel: Channel) -> None:
        self._waiting.pop(channel, None)
        if self._channels.get(channel.number) is channel:
            del self._channels[channel.number]
            self._reader.forget(channel.number)
            self._asking.discard(channel)
            self._begin_questions()


def _unacknowledged(fd: int) -> int:
    """How many bytes of a socket the other end's machine has not confirmed; 0 if that cannot be told. See tcp(7)."""
    count = array("i", [0])
    try:
        fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    except OSError:
        return 0
    return count[0]
