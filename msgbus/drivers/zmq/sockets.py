"""The two ROUTER sockets of a node, one that listens and one that dials, with the monitors that watch them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import zmq

from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.gate import Gate
from msgbus.drivers.zmq.link import LinkSettings

HIGH_WATER = 10_000
"""Frames in one direction of a connection. The sender stops long before; see `msgbus.drivers.zmq.sender`."""

_EVENT = struct.Struct("=hi")
_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_ACCEPT_FAILED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


class Sockets:
    """See the module's text. Everything here belongs to the loop's thread.

    Attributes:
        listener, dialler: the sockets.
        gate: decides which connections are accepted.
    """

    gate: Gate
    listener: Any
    dialler: Any

    def __init__(self, loop: Loop, settings: LinkSettings, on_events: Callable[[Any], None]) -> None:
        """Make one without sockets; `on_events` is called with a socket when `events` has some for it."""
        self._loop = loop
        self._settings = settings
        self._on_events = on_events
        self._context: Any = None
        self._sockets: list[Any] = []
        self._monitors: dict[Any, Any] = {}

    def open(self, node: str) -> None:
        """Make the sockets of a node. Where that raises, `close` is to be called."""
        self._context = zmq.Context()
        self.gate = Gate(self._loop, self._context, self._settings.security, node)
        self.listener, self.dialler = self._make(), self._make()

    def _make(self) -> Any:
        settings = self._settings
        socket = self._context.socket(zmq.ROUTER)
        self._sockets.append(socket)
        options = {
            zmq.LINGER: 0,
            zmq.ROUTER_MANDATORY: 1,
            zmq.RECONNECT_IVL: -1,
            zmq.SNDHWM: HIGH_WATER,
            zmq.RCVHWM: HIGH_WATER,
            zmq.MAXMSGSIZE: settings.largest + frames.OVERHEAD,
            zmq.HANDSHAKE_IVL: int(settings.connect_timeout * 1000),
            zmq.BACKLOG: 1000,
        }
        if settings.heartbeat:
            milliseconds = int(settings.heartbeat * 1000)
            options |= {zmq.HEARTBEAT_IVL: milliseconds, zmq.HEARTBEAT_TIMEOUT: 2 * milliseconds}
            options[zmq.HEARTBEAT_TTL] = 3 * milliseconds
        for option, value in options.items():
            socket.setsockopt(option, value)
        monitor = self._monitors[socket] = socket.get_monitor_socket(_EVENTS)
        self._loop.watch(monitor.getsockopt(zmq.FD), lambda: self._on_events(socket))
        monitor.getsockopt(zmq.EVENTS)  # Until it was asked once, libzmq signals nothing.
        return socket

    def watch(self, on_readable: Callable[[Any], None]) -> None:
        """Have a function called with a socket when there is something to read from it."""
        for socket in self._sockets:
            self._loop.watch(socket.getsockopt(zmq.FD), partial(on_readable, socket))

    def events(self, socket: Any) -> Iterator[dict[str, Any]]:
        """The events of a socket's monitor, see zmq_socket_monitor(3): event, value and endpoint.

        pyzmq can read it too, in a module that imports asyncio: a third of what importing the driver would cost.
        """
        monitor = self._monitors[socket]
        while monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            parts = monitor.recv_multipart(zmq.NOBLOCK)
            event, value = _EVENT.unpack(parts[0])
            yield {"event": event, "value": value, "endpoint": parts[1]}

    def close(self) -> None:
        """Close all, and discard the messages in them."""
        if self._context is None:
            return
        for opened in (*self._sockets, *self._monitors.values()):
            self._loop.unwatch(opened.getsockopt(zmq.FD))
        for socket in self._sockets:
            socket.disable_monitor()
            socket.close(0)
        for monitor in self._monitors.values():
            monitor.close(0)
        if hasattr(self, "gate"):
            self.gate.close()
        self._context.term()
        self._context, self._sockets, self._monitors = None, [], {}


def is_ipv6(endpoint: str) -> int:
    """1 where it is an address of that kind."""
    return int(endpoint.startswith("tcp://["))
