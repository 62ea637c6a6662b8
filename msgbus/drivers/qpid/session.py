"""One connection to Qpid: its bytes, and the driver's requests to the broker. On the loop's thread."""

from __future__ import annotations

import os
import socket
import ssl
from concurrent.futures import Future

from msgbus.drivers.base import Address, QueueInfo
from msgbus.drivers.qpid import topology
from msgbus.drivers.qpid.connection import Owner
from msgbus.drivers.qpid.engine import Engine, EngineError
from msgbus.drivers.qpid.feed import QpidFeed
from msgbus.drivers.qpid.management import NO_ANSWER, NOT_FOUND, OK, SILENT, Answer, OnDeclaredNode
from msgbus.drivers.qpid.nodes import Nodes, explain
from msgbus.drivers.qpid.relay import Relay
from msgbus.drivers.toolkit.connecting import close_socket, peer_of
from msgbus.drivers.toolkit.consuming import Source
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.drivers.toolkit.loop import FOREVER
from msgbus.drivers.toolkit.sending import Offer, OnDeclared, Outgoing
from msgbus.drivers.toolkit.session import Line, Session
from msgbus.exceptions import MessageUndeliverable, TransportUnavailable

READ_SIZE = 1 << 16
"""Bytes; above 128 KiB the C library would map and unmap memory for every read."""
TICK = 1.0
"""Seconds between two checks of heartbeats."""


class QpidSession(Session):
    """See the module's text, and `Wire`.

    Attributes:
        nodes: declares and inspects.
    """

    def __init__(self, driver: Owner, line: Line, sock: socket.socket) -> None:
        self.driver = driver
        self.engine: Engine = Engine(*driver.identity)
        self.nodes = Nodes(self.engine, driver.loop, driver.queue_limit)
        self._line = line
        self._loop = driver.loop
        sock.setblocking(False)
        self._socket: socket.socket | None = sock
        self._fd = sock.fileno()
        self._full = False
        self._relay = Relay(self, self._on_relay, self.lose)

    def start(self) -> None:
        self._loop.before_sleep = self._before_sleep
        self._loop.watch(self._fd, self._on_io)
        self._loop.call_later(TICK, self._tick)
        self._loop.call_later(self.driver.connect_timeout, self._give_up)

    def _give_up(self) -> None:
        if self._socket is not None and not self._line.up:
            self.lose(TimeoutError("timed out"))

    def _on_relay(self, attached: bool) -> None:
        """Messages can be sent, for the first time on this connection or again; or they cannot any more."""
        if attached and not self._line.up:
            self._line.serve(peer_of(self._socket))
        self._line.sendable(attached)

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def lose(self, reason: BaseException) -> None:
        """Report that the connection is unusable."""
        if self._socket is not None:
            self._line.lose(reason)

    def move(self, reason: str) -> bool:
        if len(self.driver.hosts) == 1 or self._socket is None:
            return False
        self._line.lose(f"{reason}; the next host is tried", move=True)
        return True

    # What the driver wants

    def publish(self, outgoing: Outgoing) -> Offer:
        return self._relay.publish(outgoing)

    def declare(self, address: Address, declared: OnDeclared) -> None:
        self._relay.declare(address, declared)

    def declare_node(self, source: topology.Source, declared: OnDeclaredNode) -> None:
        if self._socket is None:
            declared(Answer(NO_ANSWER, "the connection is away", None))
            return

        def on_declared(answer: Answer | None) -> None:
            silence = answer.text if answer is not None and answer.status == SILENT else ""
            if not (silence and self.move(f"{self.driver.name()} has not declared {source.address}: {silence}")):
                declared(answer)

        self.nodes.declare(source, on_declared)

    def consume(self, source: Source) -> QpidFeed:
        return QpidFeed(self, source, self.driver.source(source.address))

    def inspect(self, address: Address, found: Future[QueueInfo]) -> None:
        queue = self.driver.source(address).queue or ""

        def answered(answer: Answer) -> None:
            name = self.driver.name()
            if answer.status == OK and isinstance(answer.body, dict):
                finish(found, QueueInfo(int(answer.body["consumerCount"]), int(answer.body["availableMessages"])))
            elif answer.status == NOT_FOUND:
                fail(found, MessageUndeliverable(f"{name} has no queue {queue}"))
            else:
                fail(found, TransportUnavailable(f"{name} cannot inspect {queue}: {explain(answer)}"))

        self.nodes.get_statistics(queue, answered)

    def why_blocked(self) -> str | None:
        if not self._relay.attached:
            return "it has closed the link on which messages are sent" if self._line.up else None
        return "it gives no credit" if self._relay.credit <= 0 else None

    # The end

    def close(self) -> None:
        self.engine.close()
        self._write()

    def let_go(self) -> None:
        sock, self._socket = self._socket, None
        if sock is None:
            return
        self._loop.unwatch(self._fd)
        close_socket(sock, self._loop)
        self.engine.leave()
        self.nodes.down(str(self._line.connector.error or "the connection is away"))
        # Not at once: this may be one of its own callbacks.
        self._loop.call_lazily(self.engine.free)

    def abandon(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            os.close(sock.detach())

    # Bytes

    def _on_io(self) -> None:
        if self._full:
            self._full = False
            self._loop.watch(self._fd, self._on_io)
        if self._socket is None:
            return
        try:
            self._read(self._socket)
        except (OSError, EngineError) as exc:
            self.lose(exc)

    def _read(self, sock: socket.socket) -> None:
        while True:
            try:
                data = sock.recv(READ_SIZE)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not data:
                raise ConnectionResetError("the broker closed the connection")
            self.engine.push(data)
            self.engine.dispatch()
            # TLS may have buffered data, which the loop's poll does not show.
            if self._socket is None or not (isinstance(sock, ssl.SSLSocket) and sock.pending()):
                return

    def _before_sleep(self, _over: bool) -> float:
        if self._socket is not None:
            try:
                self.engine.dispatch()
                self._write()
            except (OSError, EngineError) as exc:
                self.lose(exc)
        return FOREVER

    def _write(self) -> None:
        while (sock := self._socket) is not None and not self._full and (data := self.engine.pending()):
            try:
                sent = sock.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                sent = 0
            self.engine.sent(sent)
            if sent < len(data):
                self._full = True
                self._loop.watch(self._fd, self._on_io, write=True)

    def _tick(self) -> None:
        if self._socket is None:
            return
        self._loop.call_later(TICK, self._tick)
        self.engine.tick(self._loop.now())
        try:
            self.engine.dispatch()
        except EngineError as exc:
            self.lose(exc)
