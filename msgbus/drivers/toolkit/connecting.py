"""Opening a connection to one of several hosts, and opening it again whenever it is lost.

`msgbus.drivers.toolkit.broker` uses it for every driver of a broker. A driver without one may use it alone: it
implements `Dialler`, and makes a `Connector`.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from typing import Any, Protocol

from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

BACKOFF_FIRST, BACKOFF_MAX = 0.25, 5.0
"""Seconds between two tries to connect: at first, and at most. Each is shortened at random, by up to a half."""
RECONNECT_SPREAD = 0.5
"""The most seconds before the first try after a loss. All clients of a broker lose it at the same moment, and should
not all reconnect at the same moment."""


def backoff(failures: int, first: float, longest: float) -> float:
    """Seconds until the next try after a number of failures: doubled each time, and shortened at random."""
    return min(longest, first * 2.0 ** min(failures, 30)) * random.uniform(0.5, 1.0)


class Dialler(Protocol):
    """What a `Connector` needs of a driver. All but `dial` is called on the loop's thread."""

    def dial(self, attempt: int) -> Any:
        """Open a connection to the host whose turn it is, log in, and return it. May block: it has a thread of its own.

        Args:
            attempt: the number of the try, from 0 on; modulo the number of hosts it says which host.
        """

    def discard(self, connection: Any) -> None:
        """Close a connection that is not needed any more. Any thread."""

    def explain(self, error: BaseException, attempt: int) -> tuple[str, bool]:
        """What happened at that try and what to check; and whether the next try would fail in the same way."""

    def on_connected(self, connection: Any) -> None:
        """There is a connection. `Connector.serve` is to be called when messages can go over it."""

    def on_up(self) -> None:
        """Messages can be sent and received."""

    def on_lost(self, error: TransportUnavailable) -> None:
        """The connection is lost, after `on_up`, and `let_go` was called. It is opened again automatically."""

    def let_go(self) -> None:
        """Close what is left of the connection, without notifying the peer."""

    def on_permanent(self, error: TransportUnavailable) -> None:
        """No host was ever reached, and all fail for a permanent reason: nothing need wait for a connection."""


class Connector:
    """Keeps one connection open, to whichever host can be reached. On the loop's thread, but for `open`.

    Hosts are tried in turn. Between two tries it waits for 0.25 s at first, then twice as long each time, up to 5 s;
    each pause is shortened at random, by up to a half. A failed try is logged once for each host; a connection that is
    lost or comes back is always logged.

    Attributes:
        up: messages can be sent and received.
        up_since: when that began, in seconds of `Loop.now`.
        generation: how often it has been up.
        attempt: the number of the try that opened the connection; it gives the host.
        error: why it is not up, with the reason of each host that was tried; None before the first try has failed.
        closed: `close` was called.
    """

    def __init__(self, loop: Loop, dialler: Dialler, hosts: int, purpose: str = "") -> None:
        """Make one that opens nothing yet.

        Args:
            loop: the transport's.
            dialler: opens connections, and is notified of their state.
            hosts: how many there are.
            purpose: what the connection is for, in a word, where there are several.
        """
        self.up = False
        self.up_since = 0.0
        self.generation = 0
        self.attempt = 0
        self.error: TransportUnavailable | None = None
        self.closed = False
        self._loop = loop
        self._dialler = dialler
        self._hosts = hosts
        self._what = f"the {purpose} connection" if purpose else "the connection"
        self._first = 0  # the number of the first try since the last loss
        self._tries = 0  # how many since then
        self._permanent = 0  # how many tries in a row have failed permanently
        self._causes: dict[int, str] = {}  # by host: why it could not be reached, since the last connection
        self._opening = False
        self._connected_now = False

    def open(self) -> None:
        """Begin to connect, unless that has been begun. Any thread.

        Raises:
            TransportUnavailable: the loop cannot be started.
        """
        if not (self._opening or self.up or self.closed):
            self._loop.call(self._begin)

    # On the loop's thread

    def _begin(self) -> None:
        if not (self._opening or self.up or self.closed):
            self._opening = True
            self._connect()

    def _connect(self) -> None:
        if self.closed:
            return
        attempt, self._tries = self._first + self._tries, self._tries + 1
        try:
            threading.Thread(target=self._dial, args=(attempt,), name="msgbus-connect", daemon=True).start()
        except RuntimeError as exc:  # There are too many, or the interpreter is ending.
            self._failed(exc, attempt)

    def _dial(self, attempt: int) -> None:
        """On a thread of its own."""
        connection = None
        try:
            connection = self._dialler.dial(attempt)
            taken = self._loop.call(self._connected, connection, attempt)
        except BaseException as exc:  # A library may raise asyncio.CancelledError. Else there would be no further try.
            taken = connection is None and self._loop.call(self._failed, exc, attempt)
        if connection is not None and not taken:
            self._dialler.discard(connection)

    def _failed(self, exc: BaseException, attempt: int) -> None:
        if self._give_up():
            return
        text, permanent = self._explain(exc, attempt)
        self._permanent = self._permanent + 1 if permanent else 0
        self._causes[attempt % self._hosts] = text
        self.error = TransportUnavailable("; also ".join(self._causes.values()))
        if self.closed:
            return
        delay = backoff(self._tries - 1, BACKOFF_FIRST, BACKOFF_MAX)
        # Once for each host is enough in the log while the system is down.
        level = logging.WARNING if self._tries <= self._hosts else logging.DEBUG
        LOG.log(level, "%s cannot be made: %s; next try in %.1f s", self._what, text, delay)
        if self._permanent >= self._hosts and not self.generation:
            self._dialler.on_permanent(self.error)
        self._loop.call_later(delay, self._connect)

    def _explain(self, error: BaseException, attempt: int) -> tuple[str, bool]:
        try:
            return self._dialler.explain(error, attempt)
        except Exception:  # Else there would be no further try.
            LOG.exception("an error of %s cannot be explained", self._what)
            return f"{type(error).__name__}, which the driver cannot explain", False

    def _connected(self, connection: Any, attempt: int) -> None:
        if self.closed:
            self._dialler.discard(connection)
            return
        self.attempt = attempt
        self._connected_now = True
        try:
            self._dialler.on_connected(connection)
        except BaseException as exc:  # Else there would be no further try.
            LOG.exception("%s cannot be used", self._what)
            self.lose(exc)

    def serve(self, peer: str) -> None:
        """Messages can be sent and received from now on: `Dialler.on_up` is called.

        Args:
            peer: to whom the connection is, for the log.
        """
        if self._tries > 1 or self.generation:
            LOG.warning("%s is back: %s, try %d", self._what, peer, self._tries)
        self._first = self._tries = self._permanent = 0
        self._causes = {}
        self._opening = False
        self.error = None
        self.generation += 1
        self.up_since = self._loop.now()
        self.up = True
        self._dialler.on_up()

    def lose(self, reason: BaseException | str, *, move: bool = False) -> None:
        """The connection is unusable: close it, notify the dialler, and reconnect.

        Args:
            reason: why, as an error that the dialler explains, or in words.
            move: try the next host first, and not the first one.
        """
        if not self._connected_now:
            return
        self._connected_now = False
        was_up, self.up = self.up, False
        self._dialler.let_go()
        if not was_up:
            # It broke before it was up: one more try that has failed.
            self._failed(reason if isinstance(reason, BaseException) else ConnectionError(reason), self.attempt)
            return
        broken = self._loop.broken
        if broken is not None:
            reason = str(broken)
        text = reason if isinstance(reason, str) else self._explain(reason, self.attempt)[0]
        self.error = error = TransportUnavailable(text, maybe_delivered=True)
        self._first = (self.attempt + 1) % self._hosts if move else 0
        # Set before anything is notified: code that finds it down calls `open`, which must not start a second try.
        self._opening = not self.closed
        if not self.closed:
            LOG.warning("%s is lost: %s", self._what, text)
        self._dialler.on_lost(error)
        if not self.closed and not self._give_up():
            self._loop.call_later(random.uniform(0.0, RECONNECT_SPREAD), self._connect)

    def _give_up(self) -> bool:
        """If other code has closed the loop's descriptors, no connection helps: from now on `open` raises that."""
        broken = self._loop.broken
        if broken is None:
            return False
        self.error = broken
        self._opening = False
        self._dialler.on_permanent(broken)
        return True

    def close(self) -> None:
        """Open no more connections. The dialler ends one that is up, by `lose`."""
        self.closed = True


def peer_of(sock: Any) -> str:
    """To whom a socket is connected, as host and port, for `Line.serve`.

    It may be broken again already: that is not an error here, and is noticed when it is read.
    """
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "a host that has closed it again"
    return f"{host}:{port}"


def close_socket(sock: Any, loop: Loop) -> None:
    """Close a socket, for `Session.let_go`.

    If other code has closed descriptors, its number may belong to another file by now, which must not be closed.
    """
    if loop.broken is not None:
        sock.detach()
        return
    with contextlib.suppress(OSError):
        sock.close()
