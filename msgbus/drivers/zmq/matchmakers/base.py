"""Who is there: what a matchmaker of the zmq driver has to do, and the directory that a node makes of what it says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import msgspec

from msgbus.drivers.base import Address


class Service(msgspec.Struct, frozen=True, array_like=True):
    """Subscribers of one node to one address.

    Attributes:
        address: kind, exchange, topic, server, name, as in `Address`.
        consumers: how many subscribe.
        prefetch: how many messages they hold at most, all together.
    """

    address: tuple[str, str, str, str, str]
    consumers: int
    prefetch: int


class Entry(msgspec.Struct, frozen=True):
    """What a node tells of itself.

    Attributes:
        node: its id.
        pid, host: its process, for log lines.
        endpoints: where it listens, the one to be tried first in front.
        services: what it serves.
        key: its public key, empty where it has none.
    """

    node: str
    pid: int
    host: str
    endpoints: list[str]
    services: list[Service]
    key: str = ""


class Matchmaker(ABC):
    """Where nodes find each other.

    All methods but `is_alive` are called on the driver's I/O thread, and must return soon: what takes longer has a
    thread of its own.
    """

    @abstractmethod
    def open(self) -> str:
        """Begin, and return the directory in which the node makes its own ipc socket, named after its id.

        Empty means that it makes none.

        Raises:
            TransportUnavailable: nodes cannot meet here; the text says what to check.
            ConfigurationError: its options do not let them.
        """

    @property
    @abstractmethod
    def node(self) -> str:
        """The id of this node, once `open` has returned: 1 to 64 letters and digits, of no other node."""

    @abstractmethod
    def register(self, entry: Entry, told: Callable[[], None] | None = None) -> None:
        """Tell all others of this node, in place of what they were told before.

        Args:
            entry: what they are told.
            told: called on the I/O thread, perhaps before this returns, when all others can know.

        Raises:
            TransportUnavailable: they cannot be told.
            ConfigurationError: they cannot be told of such a thing here.
        """

    @abstractmethod
    def changed(self) -> bool:
        """Whether `entries` may say something else by now. Called before every batch of messages: it has to be cheap.

        Raises nothing: while nothing can be learnt, what was known holds.
        """

    @abstractmethod
    def entries(self) -> Mapping[str, Entry]:
        """The nodes there are, this one among them, by id."""

    @abstractmethod
    def is_alive(self, node: str) -> bool | None:
        """Whether the node's process lives; None where that cannot be known. Any thread."""

    @abstractmethod
    def forget(self, node: str) -> None:
        """The node's process is gone by `is_alive`: take it out for everybody.

        Or that does not know, and nobody listens at the node's endpoints: leave it out here, for a moment.
        """

    @property
    def is_reachable(self) -> bool:
        """Whether nodes that this one is not connected with can connect with it, to answer what others handed on."""
        return True

    def doubt(self) -> str:
        """Why nodes may be missing among `entries` that are there; empty where there is no reason to think so."""
        return ""

    def ask(self) -> int:
        """Nobody is known for something: look again, if there is somebody to be asked. Returns the question's number.

        When it is `answered`, what was given at the beginning is called.
        """
        return 0

    @property
    def answered(self) -> int:
        """The number of the last question that `entries` takes account of."""
        return 0

    @property
    def is_opening(self) -> bool:
        """Whether `entries` says nothing yet, and soon will. It has called what it was given when that ends."""
        return False

    @abstractmethod
    def keep(self) -> None:
        """Called every few seconds: put right what others have tampered with."""

    @abstractmethod
    def close(self) -> None:
        """Take this node out. Idempotent."""

    @abstractmethod
    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's."""


class Directory:
    """What is known of other nodes, by address.

    Attributes:
        version: grows with each change.
        entries: by node.
    """

    def __init__(self) -> None:
        self.version = 0
        self.entries: dict[str, Entry] = {}
        self._nodes: dict[Address, dict[str, Service]] = {}
        self._pools: dict[tuple[str, str], dict[Address, int]] = {}

    def update(self, entries: Mapping[str, Entry]) -> None:
        """Take in what a matchmaker says now."""
        gone = [node for node, entry in self.entries.items() if entries.get(node) is not entry]
        new = [entry for node, entry in entries.items() if self.entries.get(node) is not entry]
        for node in gone:
            self._remove(self.entries.pop(node))
        for entry in new:
            self._add(entry)
        if gone or new:
            self.version += 1

    def nodes(self, address: Address) -> dict[str, Service]:
        """The nodes that serve an address. A fanout's is without server."""
        return self._nodes.get(address, {})

    def pools(self, exchange: str, topic: str) -> list[Address]:
        """The pools of a topic."""
        return list(self._pools.get((exchange, topic), ()))

    def _add(self, entry: Entry) -> None:
        self.entries[entry.node] = entry
        for service in entry.services:
            address = Address(*service.address)  # type: ignore[arg-type]  # an unknown kind is never asked for
            self._nodes.setdefault(address, {})[entry.node] = service
            if address.kind == "pool":
                pools = self._pools.setdefault(address[1:3], {})
                pools[address] = pools.get(address, 0) + 1

    def _remove(self, entry: Entry) -> None:
        for service in entry.services:
            address = Address(*service.address)  # type: ignore[arg-type]
            nodes = self._nodes.get(address, {})
            if nodes.pop(entry.node, None) is None:
                continue
            if not nodes:
                del self._nodes[address]
            if address.kind == "pool":
                pools = self._pools[address[1:3]]
                pools[address] -= 1
                if not pools[address]:
                    del pools[address]
                if not pools:
                    del self._pools[address[1:3]]
