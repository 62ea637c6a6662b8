"""What a connection between two nodes is, for those who use one; `msgbus.drivers.zmq.links` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from msgbus.drivers.zmq import frames
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
"""Kinds of records that are numbers alone, in the order in which they are sent."""


@dataclass(frozen=True)
class LinkSettings:
    """What `Links` need to know.

    Attributes:
        largest: bytes of the largest message body.
        connect_timeout: seconds for one attempt.
        heartbeat: seconds between two heartbeats; a peer that is silent for three times that is given up. 0: none.
        security: who may connect.
        linger: seconds that close waits for what was sent to be read.
    """

    largest: int
    connect_timeout: float
    heartbeat: float
    security: Security
    linger: float = 1.0


class Link:
    """A connection over which both sides have said HELLO, or this node's to itself.

    Attributes:
        node: who is at the other end.
        session: tells it from all others between the two.
        largest: bytes of the largest message body that it takes.
        up: it can be used.
        left: the other side has left in good order.
        in_flight: what was sent over it and is not settled, by number; the sender's.
        unconfirmed, unconfirmed_bytes: messages that were sent and have no receipt; the sender's.
        congested: so many that no further one may be sent for now; the sender's.
    """

    __slots__ = (
        "_number",
        "congested",
        "fd",
        "in_flight",
        "largest",
        "left",
        "name",
        "node",
        "out",
        "receipts",
        "session",
        "socket",
        "stuck",
        "twin",
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
        self.left = False
        self.twin: Link | None = None
        self.out: list[bytes] = []
        self.receipts: dict[int, list[int]] = {}
        self.urgent = False
        self.stuck = False
        self.in_flight: dict[int, Any] = {}
        self.unconfirmed = 0
        self.unconfirmed_bytes = 0
        self.congested = False
        self._number = 0

    def next_number(self) -> int:
        """A number for the next message."""
        self._number += 1
        return self._number


class Peer:
    """Another node: its connections, and the attempt to make one."""

    __slots__ = ("attempt", "endpoint", "failures", "links", "not_before", "session", "why")

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.attempt = b""
        self.endpoint = ""
        self.session = 0
        self.failures = 0
        self.not_before = 0.0
        self.why = ""


class LinkListener(Protocol):
    """Who is told of links."""

    def on_link_up(self, link: Link) -> None:
        """It can be used."""

    def on_link_down(self, link: Link, why: str) -> None:
        """It cannot any more."""

    def on_dial_failed(self, node: str, refused: bool) -> None:
        """It could not be connected to; `refused` says that nobody listens there."""

    def on_record(self, link: Link, kind: int, frame: bytes, at: int, end: int) -> None:
        """A record came. May raise `frames.Malformed`."""

    def on_frame_end(self) -> None:
        """All records of a frame were handed over."""


def leave_out_what_is_known(receipts: dict[int, list[int]]) -> None:
    """That a message is done with says that it was taken."""
    taken, settled = receipts.get(frames.TAKEN), receipts.get(frames.SETTLED)
    if taken and settled:
        known = set(settled)
        rest = [number for number in taken if number not in known]
        if rest:
            receipts[frames.TAKEN] = rest
        else:
            del receipts[frames.TAKEN]
