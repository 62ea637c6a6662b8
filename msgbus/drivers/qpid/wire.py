"""The qpid driver's one connection: it is opened, read and written here, and comes back by itself.

Opening blocks (names are looked up, TLS and the log-in go back and forth), so it has a short-lived thread of its own.
All else is on the loop's thread: bytes go through `Engine`, and what they mean is told to the links.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import ssl
import threading
import time
from typing import Protocol

from msgbus.drivers.qpid.engine import Engine, EngineError
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

READ_SIZE = 1 << 16
"""Bytes; above 128 KiB the C library would map and unmap memory for every read."""
BACKOFF_MAX = 5.0
"""Seconds between two tries to connect, at the most."""
TICK = 1.0
"""Seconds between two looks at heartbeats."""


class Owner(Protocol):
    """Who is told what becomes of the connection, on the loop's thread."""

    def connect(self, attempt: int) -> socket.socket:
        """Open a socket to the host whose turn it is, and log in. Blocks; on a thread of its own."""

    def describe(self, error: BaseException, attempt: int) -> tuple[str, bool]:
        """In words, what happened at the n-th try, and whether the same would happen at the next."""

    def on_open(self, engine: Engine) -> None:
        """The connection is open; `Wire.serve` is to be called when messages can travel."""

    def on_up(self) -> None:
        """Messages can travel."""

    def on_down(self, error: TransportUnavailable) -> None:
        """The connection has broken."""

    def on_hopeless(self, error: TransportUnavailable) -> None:
        """No host can be reached for reasons that time does not mend, and none ever was."""

    def before_write(self) -> None:
        """What has gathered will be written next."""


class Wire:
    """A connection that comes back by itself.

    Attributes:
        up: messages can travel.
        up_since: when that began, in seconds of `time.monotonic`.
        generation: how often it has been so.
        error: why it is not.
        attempt: the number of the try that opened it, which tells the host.
        engine: the protocol engine of the present connection, or None.
    """

    def __init__(
        self, loop: Loop, owner: Owner, hosts: int, identity: tuple[str, str, float], connect_timeout: float
    ) -> None:
        """Make one that is not opened yet.

        Args:
            loop: whose thread reads and writes.
            owner: who is told.
            hosts: how many there are: so many tries have to fail for good before hope is given up.
            identity: this side's name, the virtual host, and the seconds of silence after which the connection is
                given up (0: never).
            connect_timeout: seconds from an open socket until messages can travel.
        """
        self.up = False
        self.up_since = 0.0
        self.generation = 0
        self.attempt = 0
        self.error: TransportUnavailable | None = None
        self.engine: Engine | None = None
        self._loop = loop
        self._owner = owner
        self._hosts = hosts
        self._hopeless = 0
        self._causes: dict[int, str] = {}  # by host: why it could not be reached since the last one that was
        self._identity = identity
        self._connect_timeout = connect_timeout
        self._tries = 0
        self._opening = False
        self._closed = False
        self._socket: socket.socket | None = None
        self._fd = -1
        self._full = False
        loop.before_sleep = self._before_sleep

    # Opening

    def open(self) -> None:
        """Begin to connect, unless that has been begun. On the loop's thread."""
        if not (self._opening or self.engine or self._closed):
            self._opening = True
            self._connect()

    def _connect(self) -> None:
        if self._closed:
            return
        attempt, self._tries = self._tries, self._tries + 1
        try:
            threading.Thread(target=self._open, args=(attempt,), name="msgbus-connect", daemon=True).start()
        except RuntimeError as exc:  # There are too many, or the interpreter is ending.
            self._failed(exc, attempt)

    def _open(self, attempt: int) -> None:
        try:
            sock = self._owner.connect(attempt)
        except Exception as exc:
            self._loop.call(self._failed, exc, attempt)
            return
        if not self._loop.call(self._connected, sock, attempt):
            sock.close()  # It came too late.

    def _failed(self, exc: Exception, attempt: int) -> None:
        text, hopeless = self._owner.describe(exc, attempt)
        self._hopeless = self._hopeless + 1 if hopeless else 0
        self._causes[attempt % self._hosts] = text
        self.error = TransportUnavailable("; also ".join(self._causes.values()))
        if self._closed:
            return
        delay = min(BACKOFF_MAX, 0.25 * 2 ** min(attempt, 8)) * random.uniform(0.5, 1.0)
        # Once for each host is enough for a log that somebody reads while the system is down.
        level = logging.WARNING if attempt < self._hosts else logging.DEBUG
        LOG.log(level, "the connection cannot be made: %s; next try in %.1f s", text, delay)
        if self._hopeless >= self._hosts and not self.generation:
            self._owner.on_hopeless(self.error)
        self._loop.call_later(delay, self._connect)

    def _connected(self, sock: socket.socket, attempt: int) -> None:
        if self._closed:
            sock.close()
            return
        sock.setblocking(False)
        self._socket = sock
        self._fd = sock.fileno()
        self._full = False
        self.attempt = attempt
        self.engine = engine = Engine(*self._identity)
        self._loop.watch(self._fd, self._on_io)
        self._loop.call_later(TICK, lambda: self._tick(engine))
        self._loop.call_later(self._connect_timeout, lambda: self._give_up(engine))
        self._owner.on_open(engine)

    def _give_up(self, engine: Engine) -> None:
        if self.engine is engine and not self.up:
            self.fall(TimeoutError("timed out"))

    def serve(self) -> None:
        """Messages can travel from now on."""
        if self._tries > 1 or self.generation:
            LOG.warning("the connection is back: %s, try %d", self._peer(), self._tries)
        self._tries = 0
        self._hopeless = 0
        self._causes = {}
        self._opening = False
        self.error = None
        self.generation += 1
        self.up_since = time.monotonic()
        self.up = True
        self._owner.on_up()

    def _peer(self) -> str:
        try:
            assert self._socket is not None
            host, port = self._socket.getpeername()[:2]
        except OSError:
            return "gone again"
        return f"{host}:{port}"

    # Ending

    def fall(self, reason: Exception) -> None:
        """The connection is of no use any more: tell everybody, and come back."""
        if self.engine is None:
            return
        was_up, self.up = self.up, False
        self._let_go()
        if not was_up:
            self._failed(reason, self.attempt)
            return
        text = self._owner.describe(reason, self.attempt)[0]
        self.error = error = TransportUnavailable(text, maybe_delivered=True)
        self._opening = not self._closed
        if not self._closed:
            LOG.warning("the connection is lost: %s", text)
        self._owner.on_down(error)
        if not self._closed:
            # All clients of a broker lose it at the same moment; they need not all come back at the same one.
            self._loop.call_later(random.uniform(0.0, 0.5), self._connect)

    def _let_go(self) -> None:
        self._loop.unwatch(self._fd)
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.leave()
            # Not at once: this may be one of its own callbacks.
            self._loop.call(engine.free)

    def close(self) -> None:
        """Say good-bye and close. On the loop's thread."""
        self._closed = True
        if self.engine is not None:
            if self.up:
                self.engine.close()
                self._write()
            self.fall(ConnectionAbortedError("the connection was closed"))

    def abandon(self) -> None:
        """In a forked child: let go of the parent's socket without a word on it."""
        self._closed = True
        self.up = False
        self.engine = None
        if self._socket is not None:
            os.close(self._socket.detach())

    # Bytes

    def _on_io(self) -> None:
        if self._full:
            self._full = False
            self._loop.watch(self._fd, self._on_io)
        engine, sock = self.engine, self._socket
        if engine is None or sock is None:
            return
        try:
            self._read(engine, sock)
        except (OSError, EngineError) as exc:
            self.fall(exc)

    def _read(self, engine: Engine, sock: socket.socket) -> None:
        while True:
            try:
                data = sock.recv(READ_SIZE)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not data:
                raise ConnectionResetError("the broker closed the connection")
            engine.push(data)
            engine.dispatch()
            # TLS may hold back what it has read already, of which the loop would not hear.
            if self.engine is not engine or not (isinstance(sock, ssl.SSLSocket) and sock.pending()):
                return

    def _before_sleep(self, _over: bool) -> float:
        engine = self.engine
        if engine is None:
            return FOREVER
        self._owner.before_write()
        try:
            engine.dispatch()
            self._write()
        except (OSError, EngineError) as exc:
            self.fall(exc)
        return FOREVER

    def _write(self) -> None:
        engine, sock = self.engine, self._socket
        while engine is not None and sock is not None and not self._full and (data := engine.pending()):
            try:
                sent = sock.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                sent = 0
            engine.sent(sent)
            if sent < len(data):
                self._full = True
                self._loop.watch(self._fd, self._on_io, write=True)

    def _tick(self, engine: Engine) -> None:
        if self.engine is not engine:
            return
        engine.tick(time.monotonic())
        try:
            engine.dispatch()
        except EngineError as exc:
            self.fall(exc)
            return
        self._loop.call_later(TICK, lambda: self._tick(engine))
