"""A TCP proxy in front of a broker, for the faults that the broker itself cannot make."""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.functional.brokers.processes import free_ports

_CHUNK: Final = 1 << 16
# No more than this waits in the proxy for a side that does not read: it pushes back, as the network would.
_MOST_PENDING: Final = 1 << 18
_SECONDS: Final = 10.0


class _Side:
    """One end of a connection through the proxy; ``pending`` is what is still to be written to it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.pending = bytearray()
        self.ended = False  # it will send no more
        self.other: _Side = self

    def wanted(self) -> int:
        """The events to wait for on this side."""
        events = 0
        if not self.ended and len(self.other.pending) < _MOST_PENDING:
            events |= selectors.EVENT_READ
        if self.pending:
            events |= selectors.EVENT_WRITE
        return events

    def close(self, reset: bool) -> None:
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Proxy:
    """Passes what comes in on 127.0.0.1, ``port``, to 127.0.0.1, ``target_port``, until a test changes that.

    Each verb has taken effect when it returns. They may be called from any thread; one thread of its own does the
    work, and all of it. Raises ``TimeoutError`` if that thread does not answer within 10 s.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = free_ports(1)[0]
        self._selector = selectors.DefaultSelector()
        self._sides: set[_Side] = set()
        self._listener: socket.socket | None = None
        self._stalled = False
        self._seconds_for_a_byte = 0.0
        self._closed = False
        self._orders: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._listen()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        """How many connections are open through the proxy now."""
        return len(self._sides) // 2

    def cut(self) -> None:
        """Drop every connection at once, with a reset on both ends; new ones are accepted as before."""
        self._order(self._drop_all)

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        self._order(self._stop_listening)

    def accept(self) -> None:
        """Accept connections again, on the same port."""
        self._order(self._listen)

    def stall(self) -> None:
        """Let no byte through either way: open connections stay open, new ones open too, and nothing answers."""
        self._order(lambda: self._set_stalled(True))

    def resume(self) -> None:
        """Let the bytes through again, those that waited included."""
        self._order(lambda: self._set_stalled(False))

    def slow_down(self, bytes_per_second: float) -> None:
        """Let no more through than this, over all connections that are open now, and keep little that is under way."""
        self._order(lambda: self._set_pace(bytes_per_second))

    def close(self) -> None:
        """Drop every connection and end; harmless when done already."""
        if self._thread.is_alive():
            self._order(self._end)
            self._thread.join(_SECONDS)

    # What follows runs in the proxy's thread, but for _order().

    def _order(self, do: Callable[[], None]) -> None:
        done = threading.Event()
        self._orders.put((do, done))
        self._bell.send(b"!")
        if not done.wait(_SECONDS):
            raise TimeoutError("the proxy's thread does not answer")

    def _run(self) -> None:
        while not self._closed:
            for key, events in self._selector.select():
                if key.fileobj is self._ear:
                    self._obey()
                    break  # the rest of this round may be out of date
                if key.fileobj is self._listener:
                    self._connect(self._listener)
                elif key.data in self._sides:
                    self._move(key.data, events)
        self._selector.close()
        self._bell.close()
        self._ear.close()

    def _obey(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(_CHUNK)
        while not self._orders.empty():
            do, done = self._orders.get()
            do()
            done.set()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            self._listener.setblocking(False)
            self._watch(self._listener, 0 if self._stalled else selectors.EVENT_READ)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._watch(self._listener, 0)
            self._listener.close()
            self._listener = None

    def _set_stalled(self, stalled: bool) -> None:
        self._stalled = stalled
        for side in self._sides:
            self._watch_side(side)
        if self._listener is not None:
            self._watch(self._listener, 0 if stalled else selectors.EVENT_READ)

    def _set_pace(self, bytes_per_second: float) -> None:
        self._seconds_for_a_byte = 1 / bytes_per_second
        for side in self._sides:
            side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK)

    def _end(self) -> None:
        self._drop_all()
        self._stop_listening()
        self._closed = True

    def _drop_all(self) -> None:
        while self._sides:
            self._drop(next(iter(self._sides)), reset=True)

    def _connect(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except OSError:
            return  # the client has disconnected already
        near = _Side(accepted)
        try:
            far = _Side(socket.create_connection(("127.0.0.1", self.target_port), _SECONDS))
        except OSError:
            near.close(reset=True)
            return
        near.other, far.other = far, near
        self._sides |= {near, far}
        self._watch_side(near)
        self._watch_side(far)

    def _move(self, side: _Side, events: int) -> None:
        """Read what ``side`` has and write what waits for it, then wait for what is possible next."""
        try:
            if events & selectors.EVENT_READ:
                data = side.sock.recv(_CHUNK)
                side.ended = not data
                time.sleep(len(data) * self._seconds_for_a_byte)
                side.other.pending += data
                self._pass_end(side.other)
            if events & selectors.EVENT_WRITE:
                del side.pending[: side.sock.send(side.pending)]
                self._pass_end(side)
        except BlockingIOError:
            return
        except OSError:
            self._drop(side, reset=True)
            return
        if side.ended and side.other.ended and not side.pending and not side.other.pending:
            self._drop(side, reset=False)
            return
        self._watch_side(side)
        self._watch_side(side.other)

    def _pass_end(self, side: _Side) -> None:
        """Tell ``side`` that no more comes, once all that did come is written."""
        if side.other.ended and not side.pending:
            side.sock.shutdown(socket.SHUT_WR)

    def _drop(self, side: _Side, *, reset: bool) -> None:
        for one in (side, side.other):
            self._watch(one.sock, 0)
            self._sides.discard(one)
            one.close(reset)

    def _watch_side(self, side: _Side) -> None:
        self._watch(side.sock, 0 if self._stalled else side.wanted(), side)

    def _watch(self, sock: socket.socket, events: int, side: _Side | None = None) -> None:
        known = sock in self._selector.get_map()
        if known and events:
            self._selector.modify(sock, events, side)
        elif known:
            self._selector.unregister(sock)
        elif events:
            self._selector.register(sock, events, side)
