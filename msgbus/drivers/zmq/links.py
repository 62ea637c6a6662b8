"""The connections of a node to others, over two ROUTER sockets: one listens, one dials.

What libzmq does by itself would break promises: it keeps what is sent to a peer that is away, and sends it at some
later time. So it is not let do it. A connection is used from the moment in which both sides have said HELLO until the
moment in which a monitor says that it is gone; then its pipe is gone too, with all that is in it, and a new attempt to
connect is a new pipe under a new routing id.

Everything here belongs to the loop's thread.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import secrets
import struct
import time
from collections.abc import Callable, Container
from typing import Any

import zmq

from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.loop import FOREVER, LINGER, Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.gate import Gate, why
from msgbus.drivers.zmq.link import RECEIPTS, Link, LinkListener, LinkSettings, Peer, leave_out_what_is_known
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

BATCH = 256 * 1024
"""Bytes of records that are joined to one frame."""
HIGH_WATER = 10_000
"""Frames in one direction of a connection. The windows of the sender are reached long before; see `zmq/sender.py`."""
FULL_RETRY = 0.01
"""Seconds until a frame that libzmq did not take is tried again."""
BACKOFF_MIN, BACKOFF_MAX = 0.05, 2.0
"""Seconds between two attempts to connect to a node."""
ROUNDS = 100
"""How often in a row a node serves what comes in, itself among others, before it looks at its descriptors again."""
READ_AT_ONCE = 1000
"""Frames that are read from one socket before the other has its turn."""
REASON_MAX = 200
"""Characters of what a peer says, or did, that get into the log."""
COMPLAINTS = 5.0
"""Seconds between two log lines about peers that send what makes no sense."""

TO_OPEN = 48
"""Descriptors that have to be left for a node to be opened. It takes some twenty; short of them libzmq aborts."""
TO_DIAL = 16
"""Descriptors that have to be left for another node to be dialled."""
LISTEN_AGAIN = 0.5
"""Seconds between two looks whether there are descriptors again, for those who want to connect."""
HIDDEN = ".hidden"
"""What the path of a Unix socket ends with while nobody is to find it."""
MARGIN = 8
"""Descriptors that have to be there, besides the reserve, before others are let in again."""

NOBODY_LISTENS = "nobody listens there"

# As plain numbers: pyzmq's enums cost more than what they are passed to.
_NOBLOCK, _SNDMORE, _POLLIN = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.POLLIN)
_READABLE, _RCVMORE = int(zmq.EVENTS), int(zmq.RCVMORE)
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


class Links:
    """See the module's text."""

    def __init__(self, loop: Loop, settings: LinkSettings, listener: LinkListener) -> None:
        self._loop = loop
        self._settings = settings
        self._listener = listener
        self._node = ""
        self._context: Any = None
        self._sockets: list[Any] = []
        self._monitors: list[Any] = []
        self._dialer: Any = None
        self._gate: Any = None
        self._unread: dict[Any, None] = {}  # sockets that may have something to read although their descriptor is quiet
        self._peers: dict[str, Peer] = {}
        self._links: dict[tuple[Any, bytes], Link] = {}
        self._by_fd: dict[tuple[Any, int], Link] = {}
        self._attempts: dict[str, str] = {}  # by endpoint, the node
        self._lost: list[tuple[Link, str]] = []
        self._dirty: dict[Link, None] = {}
        self._lazy_since = 0.0
        self._next_complaint = 0.0
        self._complaints = 0
        self._gone: dict[Link, None] = {}
        self._listener_socket: Any = None
        self._endpoints: list[str] = []
        self._deaf = False  # nobody finds its Unix socket, for want of descriptors

    # Opening and closing

    def open(self, node: str, ipc: str, more: str) -> list[str]:
        """Listen at the endpoint `ipc`, and at the endpoint `more` unless it is empty. Returns both as they are.

        Raises:
            TransportUnavailable: an endpoint cannot be listened at.
            ConfigurationError: keys cannot be used.
        """
        self._node = node
        security = self._settings.security
        security.open(ipc)
        self._context = zmq.Context()
        self._gate = Gate(self._loop, self._context, security, node)
        listener, self._dialer = self._socket(), self._socket()
        self._listener_socket = listener
        self._endpoints = []
        for endpoint in filter(None, (ipc, more)):
            try:
                self._bind(endpoint)
            except zmq.ZMQError as exc:
                self.close()
                raise TransportUnavailable(f"cannot listen at {endpoint}: {exc}; check the option listen") from exc
            self._endpoints.append(listener.getsockopt_string(zmq.LAST_ENDPOINT))
        for socket in (listener, self._dialer):
            self._loop.watch(socket.getsockopt(zmq.FD), lambda socket=socket: self._read(socket))  # type: ignore[misc]
        self._add_loop_link()
        return list(self._endpoints)

    def _bind(self, endpoint: str) -> None:
        self._settings.security.listen(self._listener_socket, endpoint)
        self._listener_socket.setsockopt(zmq.IPV6, _is_ipv6(endpoint))
        self._listener_socket.bind(endpoint)

    def restore_sockets(self) -> None:
        """Make the files of Unix sockets anew that somebody has removed. Called every now and then.

        Connections that there are go on. The old listener stays, with nobody who could reach it.
        """
        for path in self._paths():
            if self._deaf or os.path.lexists(path):
                continue
            try:
                self._bind(f"ipc://{path}")
                LOG.warning("node %s: the socket %s was removed, and has been made anew", self._node, path)
            except zmq.ZMQError as exc:
                LOG.error(
                    "node %s: the socket %s was removed, and cannot be made anew: %s; nobody new can connect: check "
                    "the run directory, or start this process again",
                    self._node,
                    path,
                    exc,
                )

    def _check_room(self) -> None:
        """Have nobody find the Unix socket while the process is short of descriptors.

        libzmq ends the process where it cannot accept somebody there. Connections that there are go on (they would not
        if the endpoint were unbound), and who is not let in tries again.
        """
        why = descriptors.shortage(_reserve())
        if not why or self._deaf:
            return
        self._deaf = True
        LOG.error("node %s lets nobody more in until there are some again: %s", self._node, why)
        for path in self._paths():
            _rename(path, path + HIDDEN)
        self._loop.call_later(LISTEN_AGAIN, self._listen_again)

    def _listen_again(self) -> None:
        if self._context is None or not self._deaf:
            return
        if descriptors.shortage(_reserve() + MARGIN):
            self._loop.call_later(LISTEN_AGAIN, self._listen_again)
            return
        self._deaf = False
        for path in self._paths():
            _rename(path + HIDDEN, path)
        LOG.warning("node %s lets others in again", self._node)

    def _paths(self) -> list[str]:
        """Of the Unix sockets at which this node listens."""
        return [endpoint.removeprefix("ipc://") for endpoint in self._endpoints if endpoint.startswith("ipc://")]

    def _socket(self) -> Any:
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
        monitor = socket.get_monitor_socket(_EVENTS)
        self._monitors.append(monitor)
        self._loop.watch(monitor.getsockopt(zmq.FD), lambda: self._watch(socket, monitor))
        monitor.getsockopt(zmq.EVENTS)  # Until it was asked once, libzmq signals nothing.
        return socket

    def _add_loop_link(self) -> None:
        """What this node sends to itself takes the same way as all else, but for the sockets."""
        here, there = (Link(self._node, None, b"", -1, self._settings.largest, 0) for _ in range(2))
        here.twin, there.twin = there, here
        self._peer(self._node).links.append(here)

    def close(self) -> None:
        """Close the sockets, with what is in them."""
        for socket in (*self._sockets, *self._monitors):
            self._loop.unwatch(socket.getsockopt(zmq.FD))
        for socket in self._sockets:
            socket.disable_monitor()
            socket.close(0)
        for monitor in self._monitors:
            monitor.close(0)
        if self._gate is not None:
            self._gate.close()
        if self._context is not None:
            self._context.term()
        self._sockets, self._monitors, self._context = [], [], None
        self._deaf = False
        for link in list(self._links.values()):
            link.up = False
        self._links.clear()
        self._unread.clear()
        self._peers.clear()

    def all(self) -> list[Link]:
        """All links, that of the node to itself among them."""
        return [link for peer in self._peers.values() for link in peer.links]

    def inherited(self) -> list[Any]:
        """What a forked child has to leave alone: sockets and context are the parent's."""
        return [self._context, self._gate, *self._sockets, *self._monitors, *self._peers.values()]

    def leave(self, done: Callable[[], None]) -> None:
        """Say good-bye to all, and call `done` when they have heard it, or after a while."""
        for link in self._links.values():
            self.send(link, frames.record(frames.BYE))
            self._gone[link] = None
        ended: list[bool] = []

        def look() -> None:
            if not ended and (not any(link.up for link in self._gone) or time.monotonic() > end):
                ended.append(True)
                done()
            elif not ended:
                self._loop.call_later(0.002, look)

        end = time.monotonic() + self._settings.linger
        look()

    # Dialling

    def _peer(self, node: str) -> Peer:
        peer = self._peers.get(node)
        if peer is None:
            peer = self._peers[node] = Peer()
        return peer

    def link(self, node: str) -> Link | None:
        """The connection to a node, if there is one."""
        peer = self._peers.get(node)
        return peer.links[0] if peer is not None and peer.links else None

    def has_dialled(self, link: Link) -> bool:
        """Whether this node made the connection."""
        return link.socket is not None and link.socket is self._dialer

    def dial(self, node: str, endpoints: list[str], key: str) -> None:
        """Connect to a node, which has this public key, unless that was done, is being tried, or was a moment ago."""
        peer = self._peer(node)
        now = time.monotonic()
        if peer.links or peer.attempt or now < peer.not_before or not endpoints:
            return
        endpoint = endpoints[peer.failures % len(endpoints)]
        # What is still to be said of former attempts is not said of this one.
        self._read_monitor(self._dialer, self._monitors[self._sockets.index(self._dialer)])
        peer.attempt = name = b"d" + secrets.token_bytes(8)
        peer.endpoint = endpoint
        self._attempts[endpoint] = node
        self._unread[self._dialer] = None
        self._disconnect(endpoint)
        if why := descriptors.shortage(TO_DIAL):
            self._failed(node, name, why)
            return
        try:
            if unsafe := self._settings.security.dial(self._dialer, endpoint, key):
                self._failed(node, name, unsafe)
                return
            self._dialer.setsockopt(zmq.CONNECT_ROUTING_ID, name)
            self._dialer.setsockopt(zmq.IPV6, _is_ipv6(endpoint))
            self._dialer.connect(endpoint)
            peer.session = secrets.randbits(64)
            words = frames.Hello(frames.PROTOCOL, self._node, node, self._settings.largest, peer.session)
            self._dialer.send_multipart([name, frames.hello(words)], zmq.NOBLOCK)
        except zmq.ZMQError as exc:
            # Who is near, and does not let this node in, may have hung up by now: the monitor says why.
            self._read_monitor(self._dialer, self._monitors[self._sockets.index(self._dialer)])
            self._failed(node, name, str(exc))
            return
        self._loop.call_later(
            self._settings.connect_timeout,
            lambda: self._failed(node, name, f"no answer within {self._settings.connect_timeout:g} s"),
        )

    def why_not(self, node: str) -> str:
        """Why a node is not connected, in words."""
        peer = self._peers.get(node)
        if peer is None or not (peer.why or peer.endpoint):
            return "it has not been dialled"
        return f"{peer.endpoint}: {peer.why or 'being dialled'}"

    def _disconnect(self, endpoint: str) -> None:
        try:
            self._dialer.disconnect(endpoint)
        except zmq.ZMQError:
            pass  # libzmq has let go of it by itself.

    def _failed(self, node: str, name: bytes, why: str) -> None:
        """An attempt has come to nothing."""
        peer = self._peer(node)
        if peer.attempt != name:
            return
        self._end_attempt(peer)
        self._disconnect(peer.endpoint)
        delay = min(BACKOFF_MAX, BACKOFF_MIN * 2.0 ** min(peer.failures, 10)) * random.uniform(1.0, 1.5)
        LOG.log(
            logging.INFO if peer.failures else logging.DEBUG,
            "node %s cannot be reached at %s: %s",
            node,
            peer.endpoint,
            why,
        )
        peer.failures += 1
        peer.why = why
        peer.not_before = time.monotonic() + delay
        self._listener.on_dial_failed(node, why == NOBODY_LISTENS)

    def _end_attempt(self, peer: Peer) -> None:
        peer.attempt = b""
        self._attempts.pop(peer.endpoint, None)

    def drop_unused(self, known: Container[str]) -> None:
        """Forget what there was with nodes that are not known any more. Called every now and then."""
        for node in [node for node, peer in self._peers.items() if not peer.links and not peer.attempt]:
            if node not in known:
                del self._peers[node]

    # What the monitors say

    def _watch(self, socket: Any, monitor: Any) -> None:
        """Read the events; what they say of a link is looked at after what came over it has been read."""
        self._read_monitor(socket, monitor)
        self._unread[socket] = None

    def _read_monitor(self, socket: Any, monitor: Any) -> None:
        while monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            event = _read_event(monitor.recv_multipart(zmq.NOBLOCK))
            link = None
            if event["event"] == zmq.EVENT_DISCONNECTED:
                link = self._by_fd.pop((socket, event["value"]), None)
            if link is not None:
                self._lost.append((link, "the connection was lost"))
            elif socket is self._dialer:
                endpoint = event["endpoint"].decode(errors="replace")
                node = self._attempts.get(endpoint)
                if node is not None:
                    self._failed(node, self._peer(node).attempt, _words(event))
            else:
                self._gate.on_event(event)
                if event["event"] in (zmq.EVENT_ACCEPTED, zmq.EVENT_ACCEPT_FAILED):
                    self._check_room()

    def drop(self, link: Link, why: str) -> None:
        """A link is of no use any more."""
        if not link.up:
            return
        link.up = False
        self._links.pop((link.socket, link.name), None)
        if self._by_fd.get((link.socket, link.fd)) is link:
            del self._by_fd[link.socket, link.fd]
        self._dirty.pop(link, None)
        peer = self._peer(link.node)
        if link in peer.links:
            peer.links.remove(link)
        peer.why = why
        if link.socket is self._dialer:
            self._disconnect(peer.endpoint)
            self._unread[self._dialer] = None
            # libzmq lets go of the endpoint a moment after it has said that the connection is gone: with all that is
            # at that endpoint by then, be it new, and without a further word.
            peer.not_before = time.monotonic() + BACKOFF_MIN
        LOG.debug("node %s: %s", link.node, why)
        self._listener.on_link_down(link, why)

    # Reading

    def _read(self, socket: Any) -> None:
        """Read all there is."""
        self._unread.pop(socket, None)
        receive, option = socket.recv, socket.get
        for _ in range(READ_AT_ONCE):
            # To ask is cheaper than the exception of a socket that has nothing.
            if not option(_READABLE) & _POLLIN:
                return
            name = receive(_NOBLOCK)
            frame = receive(_NOBLOCK, False)
            more = frame.more
            if more:
                while option(_RCVMORE):
                    receive(_NOBLOCK)
            link = self._links.get((socket, name))
            if link is None:
                self._read_stranger(socket, name, frame, more)
            elif more:
                self._refuse(link, "a message of several frames")
            else:
                self.take(link, frame.bytes)
        self._unread[socket] = None

    def take(self, link: Link, frame: bytes) -> None:
        """Hand over the records of a frame."""
        on_record = self._listener.on_record
        try:
            for kind, at, end in frames.records(frame):
                if kind == frames.BYE:
                    self._on_bye(link, frame[at:end])
                elif kind == frames.GONE:
                    if link in self._gone:
                        self.drop(link, "this node has left")
                elif kind != frames.HELLO:
                    on_record(link, kind, frame, at, end)
        except frames.Malformed as exc:
            self._refuse(link, str(exc))
        self._listener.on_frame_end()

    def _on_bye(self, link: Link, reason: bytes) -> None:
        why = reason.decode(errors="replace")[:REASON_MAX]
        link.left = not why
        if not why:
            self.send(link, frames.record(frames.GONE))
            self._flush_link(link)
            if link in self._gone:
                return  # Both leave at the same time: it waits for the other's answer.
        self.drop(link, f"node {link.node} has left" if not why else f"node {link.node} refuses: {why}")

    def _refuse(self, link: Link, why: str) -> None:
        """The other side sends what makes no sense: whatever it is, it is none of ours."""
        self._complain(f"node {link.node}", why)
        self._say_bye(link.socket, link.name, why)
        self.drop(link, f"what came makes no sense: {why}")

    def _read_stranger(self, socket: Any, name: bytes, frame: Any, more: bool) -> None:
        """The first frame of a connection."""
        # What the monitor says up to now is of connections whose descriptor this one may have got.
        self._read_monitor(socket, self._monitors[self._sockets.index(socket)])
        data = frame.bytes
        try:
            if more:
                raise frames.Malformed("a message of several frames")
            words = frames.read_hello(data)
            if words.protocol != frames.PROTOCOL:
                raise frames.Malformed(f"it speaks version {words.protocol}, and this is {frames.PROTOCOL}")
            if socket is self._dialer:
                peer = self._peers.get(words.node)
                if peer is None or peer.attempt != name or peer.session != words.session:
                    raise frames.Malformed(f"another node answers: {words.node}")
            elif words.to != self._node:
                raise frames.Malformed(f"it looks for node {words.to!r}, and this is {self._node}")
        except frames.Malformed as exc:
            if socket is self._dialer:
                self._fail_by_name(
                    name, str(exc) if not _is_bye(data) else data[5 : 5 + REASON_MAX].decode(errors="replace")
                )
            elif not _is_bye(data):
                self._complain("somebody", str(exc))
                self._say_bye(socket, name, str(exc))
            return
        link = Link(words.node, socket, name, frame.get(zmq.SRCFD), words.largest, words.session)
        self._add(link)
        if len(data) > 0:
            self.take(link, data)

    def _fail_by_name(self, name: bytes, why: str) -> None:
        for node, peer in list(self._peers.items()):
            if peer.attempt == name:
                self._failed(node, name, why)
                return

    def _add(self, link: Link) -> None:
        peer = self._peer(link.node)
        self._links[link.socket, link.name] = link
        self._by_fd[link.socket, link.fd] = link
        if link.socket is self._dialer:
            self._end_attempt(peer)
        else:
            words = frames.Hello(frames.PROTOCOL, self._node, "", self._settings.largest, link.session)
            self.send(link, frames.hello(words))
        peer.failures = 0
        peer.why = ""
        peer.links.append(link)
        LOG.debug("connected with node %s", link.node)
        self._listener.on_link_up(link)

    def _complain(self, who: str, why: str) -> None:
        """Log, but not more, nor more often, than somebody can read."""
        why = why[:REASON_MAX]
        self._complaints += 1
        now = time.monotonic()
        if now >= self._next_complaint:
            more = f" (and {self._complaints - 1} more like that)" if self._complaints > 1 else ""
            LOG.warning("%s sends to node %s what makes no sense, and is ignored: %s%s", who, self._node, why, more)
            self._next_complaint = now + COMPLAINTS
            self._complaints = 0

    def _say_bye(self, socket: Any, name: bytes, why: str) -> None:
        reason = why[:REASON_MAX].encode(errors="replace")
        try:
            socket.send_multipart([name, frames.record(frames.BYE, reason)], zmq.NOBLOCK)
            self._unread[socket] = None
        except zmq.ZMQError:
            pass  # It is gone, or does not read.

    # Writing

    def send(self, link: Link, data: bytes) -> None:
        """Send a record, with others that are sent before the thread sleeps."""
        link.out.append(data)
        link.urgent = not link.stuck
        self._dirty[link] = None

    def receipt(self, link: Link, kind: int, *numbers: int, lazily: bool = False) -> None:
        """Say something of a message that came over a link."""
        gathered = link.receipts.get(kind)
        if gathered is None:
            gathered = link.receipts[kind] = []
        gathered += numbers
        if not lazily:
            link.urgent = not link.stuck
        if link not in self._dirty:
            self._dirty[link] = None
        if not self._lazy_since:
            self._lazy_since = time.monotonic()

    def flush(self, over: bool) -> float:
        """Send what has gathered. What is not urgent may wait for more, until the thread has lingered (`over`)."""
        for _ in range(ROUNDS):
            for socket in list(self._unread):
                self._read(socket)
            while self._lost:
                self.drop(*self._lost.pop(0))
            over = over or (self._lazy_since > 0 and time.monotonic() - self._lazy_since >= LINGER)
            ready = [link for link in self._dirty if link.urgent or (over and not link.stuck)]
            for link in ready:
                self._flush_link(link)
            over = False
            if not ready and not self._unread and not self._lost:
                break
        else:
            return 0.0  # Others have a right to the thread too.
        if not self._dirty:
            self._lazy_since = 0.0
        return LINGER if self._lazy_since else FOREVER

    def _flush_link(self, link: Link) -> None:
        self._dirty.pop(link, None)
        out, link.out = link.out, []
        if link.receipts:
            receipts, link.receipts = link.receipts, {}
            leave_out_what_is_known(receipts)
            # Receipts go first: what is sent may refer to them.
            out = [frames.numbers(kind, receipts[kind]) for kind in RECEIPTS if kind in receipts] + out
        link.urgent = link.stuck = False
        if not link.up:
            return
        if link.twin is not None:
            for frame in frames.batches(out, BATCH):
                self.take(link.twin, frame)
            return
        batches = list(frames.batches(out, BATCH))
        self._unread[link.socket] = None
        for at, frame in enumerate(batches):
            try:
                link.socket.send(link.name, _NOBLOCK | _SNDMORE)
                link.socket.send(frame, _NOBLOCK)
            except zmq.Again:
                link.out = batches[at:] + link.out
                self._retry(link)
                return
            except zmq.ZMQError as exc:
                self._lost.append((link, f"the connection was lost: {exc}"))
                return

    def _retry(self, link: Link) -> None:
        """The pipe is full of what the other side does not read."""
        link.stuck = True
        self._dirty[link] = None

        def try_again() -> None:
            link.urgent = True

        self._loop.call_later(FULL_RETRY, try_again)


def _read_event(parts: list[bytes]) -> dict[str, Any]:
    """What a monitor says, by zmq_socket_monitor(3): event and value in native byte order, then the endpoint.

    pyzmq can read it too, in a module that imports asyncio: a third of what importing the driver would cost.
    """
    event, value = _EVENT.unpack(parts[0])
    return {"event": event, "value": value, "endpoint": parts[1]}


def _reserve() -> int:
    """How many descriptors others may not take by connecting: as many as may come before this node can look."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return TO_OPEN if limit == resource.RLIM_INFINITY else min(256, max(TO_OPEN, limit // 8))


def _rename(path: str, to: str) -> None:
    try:
        os.rename(path, to)
    except OSError as exc:
        LOG.debug("%s cannot be renamed: %s", path, exc)  # Somebody has removed it, which is seen and mended elsewhere.


def _is_ipv6(endpoint: str) -> int:
    """1 where it is an address of that kind."""
    return int(endpoint.startswith("tcp://["))


def _is_bye(data: bytes) -> bool:
    return data[:1] == bytes([frames.BYE]) and len(data) > 5


def _words(event: Any) -> str:
    texts: dict[int, str] = {
        zmq.EVENT_CLOSED: NOBODY_LISTENS,
        zmq.EVENT_DISCONNECTED: "the connection was closed before a hello",
    }
    return texts.get(event["event"]) or why(event)
