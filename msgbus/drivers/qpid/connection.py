"""What the links of one connection use of it, and what the connection uses of its driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgbus.drivers.base import Address
from msgbus.drivers.qpid import topology
from msgbus.drivers.qpid.engine import Engine
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.sending import Sender


class Owner(Protocol):
    """The `QpidDriver`, which says what each of it is."""

    loop: Loop
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
    """A `QpidSession`.

    Attributes:
        driver: whose connection it is.
        engine: makes bytes of what is wanted, and calls the links for what has come.
    """

    driver: Owner
    engine: Engine

    @property
    def is_open(self) -> bool:
        """Whether the connection is there."""

    def declare_node(self, source: topology.Source, declared: Callable[[str | None], None]) -> None:
        """Make a node, and then say why it could not be made, or None."""
