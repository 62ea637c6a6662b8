"""What a connection between two nodes is. `msgbus.drivers.zmq.links` makes, reads and writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from msgbus.drivers.zmq import frames

if TYPE_CHECKING:
    from msgbus.drivers.zmq.security import Security

RECEIPTS = (
    frames.TAKEN,
    frames.REACHED,
    frames.QUEUED,
    frames.FULL,
    frames.NOBODY,
    frames.SETTLED,
    frames.REQUEUED,
    frames.RELEASED,
)
"""Kinds of records that consist of message numbers, in the order in which they are written."""


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


class PeerLink:
    """A connection on which both sides have sent HELLO, or the node's connection to itself.

    Attributes:
        node: the id of the node at the other end.
        session: the number by which both ends know this connection.
        largest: bytes of the largest message body that the peer accepts.
        up: it can be used.
        peer_left: the peer has closed it cleanly, or is dead: it will not send its messages again.
        loopback: the other end, on the connection of a node to itself; else None.
        out: records that are not written yet.
        receipts: likewise message numbers, by the kind of record.
        urgent: they have to be written before the thread sleeps.
        blocked: libzmq's buffer is full; writing is tried again in a moment.
        in_flight: the sender's messages that were sent on it and are not settled, by number.
        unconfirmed, unconfirmed_bytes: how many of them have no receipt yet.
        congested: these are too many, and nothing more is sent for now.
    """

    __slots__ = (
        "_number",
        "blocked",
        "congested",
        "fd",
        "in_flight",
        "largest",
        "loopback",
        "name",
        "node",
        "out",
        "peer_left",
        "receipts",
        "session",
        "socket",
        "unconfirmed",
        "unconfirmed_bytes",
        "up",
        "urgent",
    )

    def __init__(self, node: str, socket: Any, name: bytes, fd: int, largest: int, session: int) -> None:
        self.node = node
        self.socket = socket
        self.name = name
        self.fd = fd
        self.largest = largest
        self.session = session
        self.up = True
        self.peer_left = False
        self.loopback: PeerLink | None = None
        self.out: list[bytes] = []
        self.receipts: dict[int, list[int]] = {}
        self.urgent = False
        self.blocked = False
        self.in_flight: dict[int, Any] = {}
        self.unconfirmed = 0
        self.unconfirmed_bytes = 0
        self.congested = False
        self._number = 0

    def next_number(self) -> int:
        """The number of the next message."""
        self._number += 1
        return self._number


def drop_redundant(receipts: dict[int, list[int]]) -> None:
    """Leave out TAKEN for messages that are SETTLED too, which implies it."""
    taken, settled = receipts.get(frames.TAKEN), receipts.get(frames.SETTLED)
    if taken and settled:
        known = set(settled)
        rest = [number for number in taken if number not in known]
        if rest:
            receipts[frames.TAKEN] = rest
        else:
            del receipts[frames.TAKEN]


class LinkListener(Protocol):
    """What `Links` calls."""

    def on_link_up(self, link: PeerLink) -> None:
        """A connection can be used."""

    def on_link_down(self, link: PeerLink, why: str) -> None:
        """A connection was lost or closed."""

    def on_dial_failed(self, node: str, refused: bool) -> None:
        """A node could not be connected to; `refused`: nobody listens there."""

    def on_record(self, link: PeerLink, kind: int, frame: bytes, at: int, end: int) -> None:
        """A record came. May raise `frames.Malformed`."""

    def on_frame_end(self) -> None:
        """All records of a frame were passed to `on_record`."""
