"""Connecting to other nodes: one attempt at a time for each, with a back-off, and why the last one failed."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Container, Sequence
from typing import Any

import zmq

from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.connecting import backoff
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.gate import explain_handshake
from msgbus.drivers.zmq.link import LinkOwner, LinkSettings, PeerLink
from msgbus.drivers.zmq.sockets import is_ipv6
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

TO_DIAL = 16
"""Descriptors that have to be free for another node to be dialled."""
BACKOFF_FIRST, BACKOFF_MAX = 0.1, 3.0
"""Seconds between two attempts to connect to a node, at first and at most. Each is shortened by up to a half."""
ENDPOINT_PAUSE = 0.05
"""Seconds after the loss of a connection before its endpoint is dialled again. libzmq releases the endpoint a moment
after it has reported the loss, silently, and drops whatever is connected there by then."""
NOBODY_LISTENS = "nobody listens there"


class Peer:
    """Another node: the connections with it, and the attempt to make one.

    Attributes:
        links: the connections, of either direction.
        attempt: the routing id of the attempt that is being made, or empty.
        endpoint: where it was dialled last.
        session: of that attempt.
        failures: how many attempts in a row have failed.
        not_before: when the next one may be made.
        why: why there is no connection.
    """

    __slots__ = ("attempt", "endpoint", "failures", "links", "not_before", "session", "why")

    def __init__(self) -> None:
        self.links: list[PeerLink] = []
        self.attempt = b""
        self.endpoint = ""
        self.session = 0
        self.failures = 0
        self.not_before = 0.0
        self.why = ""


class Dialler:
    """See the module's text. Everything here belongs to the loop's thread.

    Attributes:
        peers: all nodes that this one was connected to or has dialled, by id.
        socket: the one that dials; None until `open`.
    """

    def __init__(self, loop: Loop, settings: LinkSettings, owner: LinkOwner) -> None:
        """Make one that cannot dial yet; `owner` learns of attempts that fail."""
        self.peers: dict[str, Peer] = {}
        self.socket: Any = None
        self._loop = loop
        self._settings = settings
        self._owner = owner
        self._node = ""
        self._attempts: dict[bytes, str] = {}  # the node, by the routing id of the attempt
        self._used: dict[str, tuple[str, bytes]] = {}  # by endpoint: the node dialled there, and that routing id

    def open(self, node: str, socket: Any) -> None:
        """Dial for this node, with this socket."""
        self._node = node
        self.socket = socket
        self._attempts.clear()
        self._used.clear()

    def peer(self, node: str) -> Peer:
        """What is known of a node."""
        peer = self.peers.get(node)
        if peer is None:
            peer = self.peers[node] = Peer()
        return peer

    def may_dial(self, node: str) -> bool:
        """Whether there is neither a connection nor an attempt, and the last attempt is long enough ago."""
        peer = self.peer(node)
        return not (peer.links or peer.attempt) and Loop.now() >= peer.not_before

    def dial(self, node: str, endpoints: Sequence[str], key: str) -> None:
        """Begin an attempt to connect to a node that has this public key, at the endpoint whose turn it is.

        Raises:
            zmq.ZMQError: it has failed at once, and `failed` is to be called. If the peer is near and has hung up, the
                monitor may know more.
        """
        peer = self.peer(node)
        peer.endpoint = endpoint = endpoints[peer.failures % len(endpoints)]
        if (user := self._used.get(endpoint)) is not None:
            # A process that was killed has been started again, for one, and the entry of the former is still there.
            # To dial the endpoint anew would cut the connection.
            is_connected = user[1] not in self._attempts  # Then nobody else listens there.
            self._note_failure(node, peer, f"node {user[0]} was dialled there", refused=is_connected)
            return
        peer.attempt = name = b"d" + secrets.token_bytes(8)
        self._attempts[name] = node
        self._used[endpoint] = node, name
        self._disconnect(endpoint)
        if shortage := descriptors.shortage(TO_DIAL):
            self.failed(name, shortage)
            return
        if unsafe := self._settings.security.dial(self.socket, endpoint, key):
            self.failed(name, unsafe)
            return
        self.socket.setsockopt(zmq.CONNECT_ROUTING_ID, name)
        self.socket.setsockopt(zmq.IPV6, is_ipv6(endpoint))
        self.socket.connect(endpoint)
        peer.session = secrets.randbits(64)
        hello = frames.Hello(frames.PROTOCOL, self._node, node, self._settings.largest, peer.session)
        self.socket.send_multipart([name, frames.hello(hello)], zmq.NOBLOCK)
        timeout = self._settings.connect_timeout
        self._loop.call_later(timeout, self.failed, name, f"no answer within {timeout:g} s")

    def _disconnect(self, endpoint: str) -> None:
        try:
            self.socket.disconnect(endpoint)
        except zmq.ZMQError:
            pass  # libzmq has released it already.

    def failed(self, name: bytes, why: str) -> None:
        """The attempt with this routing id has failed, unless it is over already."""
        node = self._attempts.get(name)
        if node is None:
            return
        peer = self.peer(node)
        self._attempts.pop(name)
        peer.attempt = b""
        self._release(node, peer.endpoint)
        self._note_failure(node, peer, why, refused=why == NOBODY_LISTENS)

    def _note_failure(self, node: str, peer: Peer, why: str, *, refused: bool) -> None:
        level = logging.INFO if peer.failures else logging.DEBUG
        LOG.log(level, "node %s cannot be reached at %s: %s", node, peer.endpoint, why)
        peer.not_before = Loop.now() + backoff(peer.failures, BACKOFF_FIRST, BACKOFF_MAX)
        peer.failures += 1
        peer.why = why
        self._owner.forget_if_dead(node, refused=refused)

    def _release(self, node: str, endpoint: str) -> None:
        """The node is not used at this endpoint any more. Perhaps another one is."""
        if self._used.get(endpoint, (node,))[0] == node:
            self._used.pop(endpoint, None)
            self._disconnect(endpoint)

    def on_event(self, event: dict[str, Any]) -> None:
        """Handle an event of the socket's monitor that concerns no connection, and so an attempt."""
        user = self._used.get(event["endpoint"].decode(errors="replace"))
        if user is not None:
            self.failed(user[1], _explain(event))

    def connected(self, link: PeerLink) -> None:
        """There is a connection with a node, which this node or the other has dialled."""
        peer = self.peer(link.node)
        if link.socket is self.socket:
            self._attempts.pop(peer.attempt, None)
            peer.attempt = b""
        peer.failures = 0
        peer.why = ""
        peer.links.append(link)

    def disconnected(self, link: PeerLink, why: str) -> None:
        """A connection is lost, or closed."""
        peer = self.peer(link.node)
        if link in peer.links:
            peer.links.remove(link)
        peer.why = why
        if link.socket is self.socket:
            self._release(link.node, peer.endpoint)
            peer.not_before = Loop.now() + ENDPOINT_PAUSE

    def forget_unused(self, known: Container[str]) -> None:
        """Forget nodes that are not known any more. Called every now and then."""
        for node in [node for node, peer in self.peers.items() if not peer.links and not peer.attempt]:
            if node not in known:
                del self.peers[node]
        for endpoint, (node, name) in list(self._used.items()):
            if node not in known and name not in self._attempts:
                del self._used[endpoint]  # Its process may be dead, and another one wait there.

    def why_not(self, node: str) -> str:
        """Why a node is not connected, in words."""
        peer = self.peers.get(node)
        if peer is None or not (peer.why or peer.endpoint):
            return "it has not been dialled"
        return f"{peer.endpoint}: {peer.why or 'being dialled'}"


def _explain(event: dict[str, Any]) -> str:
    texts: dict[int, str] = {
        zmq.EVENT_CLOSED: NOBODY_LISTENS,
        zmq.EVENT_DISCONNECTED: "the connection was closed before a hello",
    }
    return texts.get(event["event"]) or explain_handshake(event)
