"""The connections of a node to others: the hello at the beginning, reading, writing, and loss.

What libzmq does by itself would break promises: it keeps messages to a peer that is away, and sends them later. This is
prevented. A connection is used from the moment in which both sides have said HELLO until the moment in which a monitor
reports its loss. Then its pipe is removed with everything in it, and a new attempt to connect is a new pipe under a new
routing id.

Everything here belongs to the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import zmq
import zmq.backend

from msgbus.drivers.toolkit.loop import FOREVER, LINGER, Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.dialling import Dialler
from msgbus.drivers.zmq.endpoints import Endpoints
from msgbus.drivers.zmq.link import LinkOwner, LinkSettings, OnRecord, PeerLink
from msgbus.drivers.zmq.sockets import Sockets
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

BATCH = 256 * 1024
"""Bytes of records that are joined to one frame."""
FULL_RETRY = 0.01
"""Seconds until a frame that libzmq did not accept is tried again."""
ROUNDS = 100
"""How often in a row a node reads and writes before the loop polls again: it may be sending to itself."""
READ_AT_ONCE = 1000
"""Frames that are read from one socket before the other has its turn."""
REASON_MAX = 200
"""The most characters of a peer's reason, or of an error about it, in the log."""
MALFORMED_INTERVAL = 5.0
"""Seconds between two log lines about malformed frames."""
LEAVE_INTERVAL = 0.002
"""Seconds between two checks whether all peers have answered BYE."""

# As plain numbers: pyzmq's enums cost more than what they are passed to.
_NOBLOCK, _SNDMORE, _POLLIN = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.POLLIN)
_READABLE, _RCVMORE = int(zmq.EVENTS), int(zmq.RCVMORE)
# pyzmq's own method in C. `Socket.send` is a function in Python around it, for arguments that are not used here.
_send = zmq.backend.Socket.send


class Links:
    """See the module's text.

    Attributes:
        dialler: connects to other nodes.
        on_record: what handles the records of a connection that is in use, by kind.
    """

    def __init__(self, loop: Loop, settings: LinkSettings, owner: LinkOwner) -> None:
        self._loop = loop
        self._settings = settings
        self._owner = owner
        self.on_record: dict[int, OnRecord] = {
            frames.HELLO: lambda *_: None,
            frames.BYE: self._on_bye,
            frames.BYE_ACK: self._on_bye_ack,
        }
        self._node = ""
        self._sockets: Sockets | None = None
        self._endpoints: Endpoints | None = None
        self.dialler = Dialler(loop, settings, owner)
        self._peers = self.dialler.peers
        self._unread: dict[Any, None] = {}  # sockets that may have something to read although their descriptor is quiet
        self._links: dict[tuple[Any, bytes], PeerLink] = {}
        self._by_fd: dict[tuple[Any, int], PeerLink] = {}
        self._lost: list[tuple[PeerLink, str]] = []
        self._dirty: dict[PeerLink, None] = {}
        self._is_urgent = False  # one of these is
        self._lazy_since = 0.0
        self._malformed = 0
        self._next_malformed_line = 0.0
        self._leaving: dict[PeerLink, None] = {}

    # Opening and closing

    def open(self, node: str, ipc: str, more: str) -> list[str]:
        """Listen at the endpoint `ipc`, and at the endpoint `more`, where they are not empty. Returns both as bound.

        Raises:
            TransportUnavailable: an endpoint cannot be listened at.
            ConfigurationError: keys cannot be used.
        """
        security = self._settings.security
        security.open(ipc)
        self._node = node
        self._sockets = sockets = Sockets(self._loop, self._settings, self._on_events)
        sockets.open(node)
        self._endpoints = Endpoints(self._loop, security, node, sockets.listener)
        self.dialler.open(node, sockets.dialler)
        bound = [self._endpoints.listen(endpoint) for endpoint in (ipc, more) if endpoint]
        sockets.watch(partial(self._read, readable=True))
        self._add_loopback()
        return bound

    def _add_loopback(self) -> None:
        """Connect the node to itself: such messages take the same path as all others, except for the sockets."""
        here, there = (PeerLink(self._node, None, b"", -1, self._settings.largest, 0) for _ in range(2))
        here.loopback, there.loopback = there, here
        self.dialler.connected(here)

    def close(self) -> None:
        """Close the sockets, and discard the messages in them."""
        if self._endpoints is not None:
            self._endpoints.close()
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None
        for link in list(self._links.values()):
            link.up = False
        self._links.clear()
        self._unread.clear()
        self._peers.clear()

    def all(self) -> list[PeerLink]:
        """All connections, that of the node to itself among them."""
        return [link for peer in self._peers.values() for link in peer.links]

    def inherited(self) -> list[Any]:
        """What a forked child has to leave alone: sockets and context are the parent's."""
        return [self._sockets, *self._peers.values()]

    def leave(self, done: Callable[[], None]) -> None:
        """Say BYE to all peers, and call `done` when they have answered, or after `LinkSettings.linger`."""
        for link in self._links.values():
            self.send(link, frames.record(frames.BYE))
            self._leaving[link] = None
        self._check_left(done, Loop.now() + self._settings.linger)

    def _check_left(self, done: Callable[[], None], deadline: float) -> None:
        if not any(link.up for link in self._leaving) or Loop.now() > deadline:
            done()
        else:
            self._loop.call_later(LEAVE_INTERVAL, self._check_left, done, deadline)

    def restore_sockets(self) -> None:
        """Create Unix sockets again whose files somebody has removed. Called every now and then."""
        if self._endpoints is not None:
            self._endpoints.restore()

    # Connecting

    def link(self, node: str) -> PeerLink | None:
        """The connection to a node, if there is one."""
        peer = self._peers.get(node)
        return peer.links[0] if peer is not None and peer.links else None

    def has_dialled(self, link: PeerLink) -> bool:
        """Whether this node made the connection, and not its peer."""
        return link.socket is not None and link.socket is self.dialler.socket

    def dial(self, node: str, endpoints: Sequence[str], key: str) -> None:
        """Connect to a node, which has this public key, unless that was done, is being tried, or was a moment ago."""
        dialler = self.dialler
        if not endpoints or not dialler.may_dial(node):
            return
        self._on_events(dialler.socket)  # Unread events are about former attempts.
        try:
            dialler.dial(node, endpoints, key)
        except zmq.ZMQError as exc:
            self._on_events(dialler.socket)
            dialler.failed(dialler.peer(node).attempt, str(exc))

    # Losing

    def _on_events(self, socket: Any) -> None:
        """Read the events of a monitor. A lost connection is dropped after all frames from it have been read."""
        sockets, endpoints = self._sockets, self._endpoints
        assert sockets is not None
        assert endpoints is not None
        self._unread[socket] = None
        for event in sockets.events(socket):
            link = None
            if event["event"] == zmq.EVENT_DISCONNECTED:
                link = self._by_fd.pop((socket, event["value"]), None)
            if link is not None:
                self._lost.append((link, "the connection was lost"))
            elif socket is sockets.dialler:
                self.dialler.on_event(event)
            else:
                sockets.gate.on_event(event)
                if event["event"] in (zmq.EVENT_ACCEPTED, zmq.EVENT_ACCEPT_FAILED):
                    endpoints.check_descriptors()

    def drop(self, link: PeerLink, why: str) -> None:
        """Stop using a connection."""
        if not link.up:
            return
        link.up = False
        self._links.pop((link.socket, link.name), None)
        if self._by_fd.get((link.socket, link.fd)) is link:
            del self._by_fd[link.socket, link.fd]
        self._dirty.pop(link, None)
        self.dialler.disconnected(link, why)
        if self.has_dialled(link):
            self._unread[link.socket] = None
        LOG.debug("node %s: %s", link.node, why)
        self._owner.on_link_down(link, why)

    # Reading

    def _read(self, socket: Any, readable: bool = False) -> None:
        """Read all there is. `readable`: the socket's descriptor says that there is something."""
        self._unread.pop(socket, None)
        receive, option = socket.recv, socket.get
        for _ in range(READ_AT_ONCE):
            # Asking is cheaper than the exception of an empty socket.
            if not readable and not option(_READABLE) & _POLLIN:
                return
            try:
                name = receive(_NOBLOCK)
            except zmq.Again:  # It was readable for something else than a frame.
                return
            readable = False
            frame = receive(_NOBLOCK, False)
            more = frame.more
            if more:
                while option(_RCVMORE):
                    receive(_NOBLOCK)
            link = self._links.get((socket, name))
            if link is None:
                self._read_hello(socket, name, frame, more)
            elif more:
                self._reject(link, "a message of several frames")
            else:
                self.read_frame(link, frame.bytes)
        self._unread[socket] = None

    def read_frame(self, link: PeerLink, frame: bytes) -> None:
        """Handle the records of a frame."""
        on_record = self.on_record
        try:
            for kind, at, end in frames.records(frame):
                if kind not in on_record:
                    raise frames.Malformed(f"a record of the unknown kind {kind}")
                on_record[kind](link, frame, at, end)
        except frames.Malformed as exc:
            self._reject(link, str(exc))
        self._owner.on_frame_end()

    def _on_bye(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        why = frame[at:end].decode(errors="replace")[:REASON_MAX]
        link.peer_left = not why
        if not why:
            self.send(link, frames.record(frames.BYE_ACK))
            self._flush_link(link)
            if link in self._leaving:
                return  # Both leave at the same time: this side waits for the answer to its own BYE.
        self.drop(link, f"node {link.node} refuses: {why}" if why else f"node {link.node} has left")

    def _on_bye_ack(self, link: PeerLink, _frame: bytes, _at: int, _end: int) -> None:
        if link in self._leaving:
            link.left = True
            self.drop(link, "this node has left")

    def _reject(self, link: PeerLink, why: str) -> None:
        """Close a connection on which a malformed frame came."""
        self._log_malformed(f"node {link.node}", why)
        self._say_bye(link.socket, link.name, why)
        self.drop(link, f"malformed frame: {why}")

    def _read_hello(self, socket: Any, name: bytes, frame: Any, more: bool) -> None:
        """Read the first frame of a connection."""
        # The new connection may have got the descriptor of one whose loss is still to be read.
        self._on_events(socket)
        data = frame.bytes
        try:
            hello = self._check_hello(socket, name, data, more)
        except frames.Malformed as exc:
            refusal = frames.read_refusal(data)
            if socket is self.dialler.socket:
                self.dialler.failed(name, str(exc) if refusal is None else refusal[:REASON_MAX])
            elif refusal is None:
                self._log_malformed("an unknown peer", str(exc))
                self._say_bye(socket, name, str(exc))
            return
        link = PeerLink(hello.node, socket, name, frame.get(zmq.SRCFD), hello.largest, hello.session)
        self._add(link)
        if data:
            self.read_frame(link, data)

    def _check_hello(self, socket: Any, name: bytes, data: bytes, more: bool) -> frames.Hello:
        """Read a hello, and check that it is from the expected node, and for this one."""
        if more:
            raise frames.Malformed("a message of several frames")
        hello = frames.read_hello(data)
        if hello.protocol != frames.PROTOCOL:
            raise frames.Malformed(f"it has protocol version {hello.protocol}, and this node has {frames.PROTOCOL}")
        if socket is self.dialler.socket:
            peer = self._peers.get(hello.node)
            if peer is None or peer.attempt != name or peer.session != hello.session:
                raise frames.Malformed(f"another node answers: {hello.node}")
        elif hello.to != self._node:
            raise frames.Malformed(f"it looks for node {hello.to!r}, but this is {self._node}")
        return hello

    def _add(self, link: PeerLink) -> None:
        self._links[link.socket, link.name] = link
        self._by_fd[link.socket, link.fd] = link
        self.dialler.connected(link)
        if not self.has_dialled(link):
            hello = frames.Hello(frames.PROTOCOL, self._node, "", self._settings.largest, link.session)
            self.send(link, frames.hello(hello))
        LOG.debug("connected with node %s", link.node)
        self._owner.on_link_up(link)

    def _log_malformed(self, who: str, why: str) -> None:
        """Log a malformed frame, with bounded length and rate."""
        self._malformed += 1
        now = Loop.now()
        if now >= self._next_malformed_line:
            more = f" (and {self._malformed - 1} more like that)" if self._malformed > 1 else ""
            LOG.warning("malformed frame from %s to node %s, ignored: %s%s", who, self._node, why[:REASON_MAX], more)
            self._next_malformed_line = now + MALFORMED_INTERVAL
            self._malformed = 0

    def _say_bye(self, socket: Any, name: bytes, why: str) -> None:
        reason = why[:REASON_MAX].encode(errors="replace")
        try:
            socket.send_multipart([name, frames.record(frames.BYE, reason)], zmq.NOBLOCK)
            self._unread[socket] = None
        except zmq.ZMQError:
            pass  # The peer has disconnected, or does not read.

    # Writing

    def send(self, link: PeerLink, data: bytes) -> None:
        """Send a record, together with others that are sent before the thread sleeps."""
        link.out.append(data)
        self._dirty[link] = None
        if not link.blocked:
            link.urgent = self._is_urgent = True

    def receipt(self, link: PeerLink, kind: int, *numbers: int, lazily: bool = False) -> None:
        """Send a receipt for messages of a connection. `lazily`: it may wait for a millisecond."""
        if kind in link.receipts:
            link.receipts[kind] += numbers
        else:
            link.receipts[kind] = [*numbers]
        self._dirty[link] = None
        if lazily:
            self._lazy_since = self._lazy_since or Loop.now()
        elif not link.blocked:
            link.urgent = self._is_urgent = True

    def flush(self, over: bool) -> float:
        """Write what has gathered. What is not urgent may wait for more, until the loop has lingered (`over`).

        Returns:
            what `Loop.before_sleep` returns.
        """
        if not (self._dirty or self._unread or self._lost):
            return FOREVER
        for _ in range(ROUNDS):
            for socket in list(self._unread):
                self._read(socket)
            while self._lost:
                self.drop(*self._lost.pop(0))
            over = over or (self._lazy_since > 0.0 and Loop.now() - self._lazy_since >= LINGER)
            if self._is_urgent or (over and self._dirty):
                self._is_urgent = False
                for link in list(self._dirty):
                    if link.urgent or (over and not link.blocked):
                        self._flush_link(link)
            if not self._dirty:
                self._lazy_since = 0.0
            over = False
            if not self._unread and not self._lost and not self._is_urgent:
                return LINGER if self._lazy_since else FOREVER
        return 0.0  # Let other work on the thread run too.

    def _flush_link(self, link: PeerLink) -> None:
        self._dirty.pop(link, None)
        out, link.out = link.out, []
        if link.receipts:
            out = link.take_receipts() + out  # They go first: what is sent may refer to them.
        link.urgent = link.blocked = False
        if not link.up:
            return
        batches = frames.batches(out, BATCH)
        if link.loopback is not None:
            for frame in batches:
                self.read_frame(link.loopback, frame)
            return
        self._unread[link.socket] = None
        for at, frame in enumerate(batches):
            try:
                _send(link.socket, link.name, _NOBLOCK | _SNDMORE)
                _send(link.socket, frame, _NOBLOCK)
            except zmq.Again:
                link.out = batches[at:] + link.out
                self._retry(link)
                return
            except zmq.ZMQError as exc:
                self._lost.append((link, f"the connection was lost: {exc}"))
                return

    def _retry(self, link: PeerLink) -> None:
        """The pipe is full of what the peer does not read."""
        link.blocked = True
        self._dirty[link] = None
        self._loop.call_later(FULL_RETRY, self._unblock, link)

    def _unblock(self, link: PeerLink) -> None:
        link.urgent = self._is_urgent = True
