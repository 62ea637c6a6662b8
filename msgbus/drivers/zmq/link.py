"""What a connection between two nodes is. `msgbus.drivers.zmq.links` makes, reads and writes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from msgbus.drivers.zmq import frames

if TYPE_CHECKING:
    from msgbus.drivers.zmq.security import Security

_RECEIPTS = (
    *(frames.TAKEN, frames.REACHED, frames.QUEUED, frames.FULL),
    *(frames.NOBODY, frames.SETTLED, frames.REQUEUED, frames.RELEASED),
)
"""Kinds of records that consist of message numbers, in the order in which they are written."""

WINDOW = 32 * 1024 * 1024
"""Bytes on one connection that may be without a receipt, give or take a message; then sending waits for receipts."""
WINDOW_MESSAGES = 4000
"""The same in messages. So a peer that does not read can use only a bounded amount of memory."""


@dataclass(frozen=True)
class LinkSettings:
    """The options of connections.

    Attributes:
        largest: bytes of the largest message body.
        connect_timeout: seconds for one attempt to connect.
        heartbeat: seconds between two heartbeats; a connection is lost after twice that without an answer. 0: none.
        security: keys, and which nodes may connect.
        linger: seconds that close waits for the peers to read what was sent.
    """

    largest: int
    connect_timeout: float
    heartbeat: float
    security: Security
    linger: float = 1.0


@dataclass(eq=False, repr=False, slots=True)
class PeerLink:
    """A connection on which both sides have sent HELLO, or the node's connection to itself.

    Attributes:
        node: the id of the node at the other end.
        session: the number by which both ends know this connection.
        largest: bytes of the largest message body that the peer accepts.
        up: it can be used.
        peer_left: the peer has closed it cleanly, or is dead: it will not send its messages again.
        left: this node has closed it cleanly, and the peer has read all that was sent before.
        loopback: the other end, on the connection of a node to itself; else None.
        out: records that are not written yet.
        receipts: likewise message numbers, by the kind of record.
        urgent: they have to be written before the thread sleeps.
        blocked: libzmq's buffer is full; writing is tried again in a moment.
        numbers: those of the messages that are sent on it.
        in_flight: the sender's messages that were sent on it and are not settled, by number.
        unconfirmed, unconfirmed_bytes: how many of them have no receipt yet.
        congested: these are too many, and nothing more is sent for now.
    """

    node: str
    socket: Any
    name: bytes
    fd: int
    largest: int
    session: int
    up: bool = True
    peer_left: bool = False
    left: bool = False
    loopback: PeerLink | None = None
    out: list[bytes] = field(default_factory=list)
    receipts: dict[int, list[int]] = field(default_factory=dict)
    urgent: bool = False
    blocked: bool = False
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    in_flight: dict[int, Any] = field(default_factory=dict)
    unconfirmed: int = 0
    unconfirmed_bytes: int = 0
    congested: bool = False

    def take_receipts(self) -> list[bytes]:
        """Remove the receipts, and return them as records, without TAKEN for what is SETTLED, which implies it."""
        receipts, self.receipts = self.receipts, {}
        taken, settled = receipts.get(frames.TAKEN), receipts.get(frames.SETTLED)
        if taken and settled:
            receipts[frames.TAKEN] = sorted(set(taken).difference(settled))
        found = []
        for kind in _RECEIPTS:
            if receipts.get(kind):
                found.append(frames.numbers(kind, receipts[kind]))
        return found


OnRecord = Callable[[PeerLink, bytes, int, int], None]
"""Handles a record: its connection, its frame, and where in the frame its rest begins and ends. May raise
`frames.Malformed`."""


class LinkOwner(Protocol):
    """What the connections need of their node."""

    on_frame_end: Callable[[], None]
    """Called when all records of a frame have been handled."""

    def on_link_up(self, link: PeerLink) -> None:
        """A connection can be used."""

    def on_link_down(self, link: PeerLink, why: str) -> None:
        """A connection was lost or closed."""

    def forget_if_dead(self, node: str, refused: bool) -> None:
        """A node could not be connected to. `refused`: nobody listens at its endpoint."""
