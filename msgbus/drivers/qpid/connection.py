"""What the links of one connection use of it, and what the connection uses of its driver."""

from __future__ import annotations

from typing import Protocol

from msgbus.drivers.base import Address
from msgbus.drivers.qpid import topology
from msgbus.drivers.qpid.engine import Engine
from msgbus.drivers.qpid.management import OnDeclaredNode
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.sending import Sender
from msgbus.url import TransportHost


class Owner(Protocol):
    """A connection's driver: the part of `QpidDriver` that is used here, and described there."""

    loop: Loop
    hosts: list[TransportHost]
    sender: Sender
    declares: bool
    durable: bool
    queue_limit: int
    connect_timeout: float
    identity: tuple[str, str, float]

    def name(self) -> str:
        """The broker, for errors."""

    def source(self, address: Address) -> topology.Source:
        """Where an address is received from."""


class Wire(Protocol):
    """The connection: the part of `QpidSession` that links use.

    Attributes:
        driver: whose connection it is.
        engine: writes and reads AMQP, and calls the links.
    """

    driver: Owner
    engine: Engine

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""

    def declare_node(self, source: topology.Source, declared: OnDeclaredNode) -> None:
        """Create a node; then call `declared`, unless the connection is given up meanwhile."""

    def move(self, reason: str) -> bool:
        """Give up the connection for one to the next host, if there are several. Returns whether it is given up."""
