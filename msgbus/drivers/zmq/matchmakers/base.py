"""What a matchmaker of the zmq driver has to do, and the directory of nodes that is made of its entries."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

import msgspec

from msgbus.drivers.base import Address


class Service(msgspec.Struct, frozen=True, array_like=True):
    """Subscribers of one node to one address.

    Attributes:
        address: kind, exchange, topic, server, name, as in `Address`.
        consumers: how many subscribe.
        prefetch: how many messages they hold at most, all of them together.
    """

    address: tuple[str, str, str, str, str]
    consumers: int
    prefetch: int


class Entry(msgspec.Struct, frozen=True):
    """What other nodes know of a node.

    Attributes:
        node: its id.
        pid, host: its process, for log lines.
        endpoints: where it listens, in the order in which they are to be tried.
        services: the addresses that it serves.
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

    All methods but `is_alive` and `wait_closed` are called on the loop's thread, which may be that of a program's event
    loop, and must return soon: what takes longer, or waits for another process, needs a thread of its own.

    Attributes:
        is_opening: `entries` is not complete yet, and soon will be. When that ends the node's `on_change` is called.
    """

    is_opening = False

    @abstractmethod
    def open(self) -> str:
        """Begin.

        Returns:
            the directory in which the node creates its Unix socket, named after its id. Empty: it has none.

        Raises:
            TransportUnavailable: nodes cannot meet here; the text says what to check.
            ConfigurationError: an option is wrong.
        """

    @property
    @abstractmethod
    def node(self) -> str:
        """The id of this node, once `open` has returned: 1 to 64 letters and digits, of no other node."""

    @abstractmethod
    def register(self, entry: Entry, published: Callable[[], None] | None = None) -> None:
        """Publish this node's entry, in place of its former one.

        Args:
            entry: the entry.
            published: called on the loop's thread, perhaps before this returns, when all others can know the entry.

        Raises:
            TransportUnavailable: it cannot be published.
            ConfigurationError: such an entry cannot be published here.
        """

    @abstractmethod
    def changed(self) -> bool:
        """Whether `entries` may have changed. Called before every batch of messages: it has to be cheap.

        Never raises: while nothing can be read, the known entries stay in use.
        """

    @abstractmethod
    def entries(self) -> Mapping[str, Entry]:
        """The existing nodes, this one included, by id."""

    @abstractmethod
    def is_alive(self, node: str) -> bool | None:
        """Whether the node's process lives; None if that cannot be known. Any thread."""

    @abstractmethod
    def forget(self, node: str) -> None:
        """Remove a node for everybody, if `is_alive` says that its process has ended.

        If that is unknown, nobody listens at the node's endpoints: leave it out of `entries` here, for a moment.
        """

    @property
    def is_reachable(self) -> bool:
        """Whether nodes without a connection to this one can connect with it, to answer a rerouted request."""
        return True

    def why_incomplete(self) -> str:
        """Why nodes that exist may be missing in `entries`; empty if there is no reason to think so."""
        return ""

    def recheck(self) -> int:
        """Look for new nodes again, if that is useful: no node is known for a message.

        Returns:
            the number of the check. Once `rechecked` has reached it the node's `on_change` is called.
        """
        return 0

    @property
    def rechecked(self) -> int:
        """The number of the last check whose result is in `entries`."""
        return 0

    @abstractmethod
    def maintain(self) -> None:
        """Called every few seconds: restore files that others have removed."""

    @abstractmethod
    def close(self) -> None:
        """Remove this node, or begin to. Idempotent."""

    def wait_closed(self, until: float) -> None:  # noqa: B027 - most are closed at once
        """Wait for the end of what `close` has begun, up to a time of `Loop.now`. Not on the loop's thread."""

    @abstractmethod
    def abandon(self) -> None:
        """In a forked child: close the parent's files, without removing its node."""


class Directory:
    """The nodes that are known, by address.

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
        """Replace what is known by these entries."""
        old = [entry for node, entry in self.entries.items() if entries.get(node) is not entry]
        new = [entry for node, entry in entries.items() if self.entries.get(node) is not entry]
        for entry in old:
            if entry.node not in entries:
                del self.entries[entry.node]
                self._remove(entry.node, entry.services)
        for entry in new:
            former = self.entries.get(entry.node)
            self.entries[entry.node] = entry
            gone, come = changed_part([] if former is None else former.services, entry.services)
            self._remove(entry.node, gone)
            self._add(entry.node, come)
        if old or new:
            self.version += 1

    def nodes(self, address: Address) -> dict[str, Service]:
        """The nodes that serve an address. That of a fanout is without server."""
        return self._nodes.get(address, {})

    def servers(self) -> list[Address]:
        """The addresses of all servers."""
        return [address for address in self._nodes if address.kind == "server"]

    def pools(self, exchange: str, topic: str) -> list[Address]:
        """The pools of a topic."""
        return list(self._pools.get((exchange, topic), ()))

    def _add(self, node: str, services: Iterable[Service]) -> None:
        for service in services:
            address = Address(*service.address)  # type: ignore[arg-type]  # nobody looks for an unknown kind
            self._nodes.setdefault(address, {})[node] = service
            if address.kind == "pool":
                pools = self._pools.setdefault(address[1:3], {})
                pools[address] = pools.get(address, 0) + 1

    def _remove(self, node: str, services: Iterable[Service]) -> None:
        for service in services:
            address = Address(*service.address)  # type: ignore[arg-type]
            nodes = self._nodes.get(address, {})
            if nodes.pop(node, None) is None:
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


def changed_part(former: list[Service], services: list[Service]) -> tuple[list[Service], list[Service]]:
    """What two lists of services have instead of each other, between a beginning and an end that they share.

    A node that serves thousands of addresses changes a few at a time: all others are compared, and left as they are.
    """
    begin = _shared(former, services)
    end = _shared(reversed(former[begin:]), reversed(services[begin:]))
    return former[begin : len(former) - end], services[begin : len(services) - end]


def _shared(first: Iterable[Service], second: Iterable[Service]) -> int:
    """How many are the same at the beginning."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one is not other and one != other:
            break
        count += 1
    return count


def advertised(endpoint: str, advertise: str) -> str:
    """An endpoint as others are to use it: with the host of `advertise`, and its port if it has one."""
    if not advertise or not endpoint.startswith("tcp://"):
        return endpoint
    has_port = re.fullmatch(r"(\[.*\]|[^:]*):[0-9]+", advertise)
    return f"tcp://{advertise}" if has_port else f"tcp://{advertise}:{endpoint.rpartition(':')[2]}"
