"""Which nodes a message goes to: the queues of an address, kept up to date with the directory."""

from __future__ import annotations

from msgbus.drivers.base import Address
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.links import Links
from msgbus.drivers.zmq.matchmakers.base import Directory
from msgbus.drivers.zmq.queue import Queue, RemoteConsumer

UNUSED = 60.0
"""Seconds after which a queue that nobody uses is forgotten."""


class Router:
    """See the module's text. Everything here belongs to the loop's thread.

    Attributes:
        links: the connections.
        directory: the nodes that are known.
        queues: by address, and by the only node that it is for (a fanout's copy, an inbox) or empty.
    """

    def __init__(self, links: Links, directory: Directory) -> None:
        self.queues: dict[tuple[Address, str], Queue] = {}
        self._routes: dict[Address, list[Queue]] = {}  # what `route` has found, as long as it stays so
        self._version = -1  # of the directory, for that
        self.links = links
        self.directory = directory

    def route(self, address: Address) -> list[Queue]:
        """The queues into which a copy of a message to this address goes; empty where nobody serves it."""
        if self._version != self.directory.version:
            self._routes.clear()
            self._version = self.directory.version
        queues = self._routes.get(address)
        if queues is None:
            queues = self._find(address)
            if queues:
                self._routes[address] = queues
        return queues

    def forget_routes(self) -> None:
        """A connection has come or has gone: an inbox is known by its directory entry or its connection."""
        self._routes.clear()

    def _find(self, address: Address) -> list[Queue]:
        if address.kind == "inbox":
            node = address.name.partition(".")[0]
            return [self.queue(address, node)] if self.is_known(node) else []
        nodes = self.directory.nodes(address)
        if address.kind == "fanout":
            return [self.queue(address, node) for node in nodes]
        queues = [self.queue(address, "")] if nodes else []
        if address.kind == "topic":
            queues += [self.queue(pool, "") for pool in self.directory.pools(address.exchange, address.topic)]
        return queues

    def queue(self, address: Address, node: str) -> Queue:
        """A queue, up to date."""
        queue = self.queues.get((address, node))
        if queue is None:
            queue = self.queues[address, node] = Queue(address, node)
        if queue.version != self.directory.version:
            self.update(queue)
        return queue

    def update(self, queue: Queue) -> None:
        """Note what the directory says of the queue's address, and connect with the nodes that are new there."""
        directory = self.directory
        queue.version = directory.version
        if queue.address.kind == "inbox":
            queue.update({queue.node: None} if self.is_known(queue.node) else {}, directory.entries)
        else:
            nodes = directory.nodes(queue.address)
            queue.update({node: nodes[node] for node in nodes if queue.node in ("", node)}, directory.entries)
        for consumer in queue.consumers:
            if consumer.link is None:
                consumer.link = self.reach(consumer.node)

    def is_known(self, node: str) -> bool:
        """Whether there is a connection to a node, or it is known where to dial it."""
        return node in self.directory.entries or self.links.link(node) is not None

    def reach(self, node: str) -> PeerLink | None:
        """The connection to a node. If there is none, it is dialled, and this returns None."""
        link = self.links.link(node)
        if link is None and (entry := self.directory.entries.get(node)) is not None:
            self.links.dial(node, entry.endpoints, entry.key)
        return link

    def connect_all(self) -> None:
        """Connect with all servers of the queues in use: one may have to answer a request that another rerouted."""
        for queue in list(self.queues.values()):
            self.update(queue)

    def at(self, link: PeerLink, address: Address) -> list[tuple[Queue, RemoteConsumer]]:
        """The queues of an address from which a node gets messages over this connection."""
        found = []
        for node in ("", link.node):
            queue = self.queues.get((address, node))
            consumer = None if queue is None else queue.by_node.get(link.node)
            if queue is not None and consumer is not None and consumer.link is link:
                found.append((queue, consumer))
        return found

    def forget_unused(self) -> None:
        """Forget queues that nobody uses. Called every now and then."""
        now = Loop.now()
        for key, queue in list(self.queues.items()):
            if queue.is_unused(now, UNUSED):
                del self.queues[key]
                self._routes.clear()
