"""The message systems under test: how processes get to them, what can be broken, and what they keep."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from msgbus.drivers.fake import Bus, get_bus
from tests.functional.brokers.cluster import Cluster
from tests.functional.brokers.proxy import Proxy


class Node(Protocol):
    """A broker, or one node of a cluster of them."""

    def alive(self) -> bool:
        """Whether its process runs (it may be paused)."""

    def start(self) -> None:
        """Start it, and return when it serves."""

    def stop(self) -> None:
        """Stop it cleanly, and return when it has ended."""

    def kill(self) -> None:
        """SIGKILL it, and return when it has ended."""

    def pause(self) -> None:
        """Freeze it."""

    def resume(self) -> None:
        """Let it go on."""


class TcpNode(Node, Protocol):
    """One that listens on 127.0.0.1."""

    @property
    def port(self) -> int:
        """Where."""


class Line(Protocol):
    """One process's way to the message system."""

    url: str

    def cut(self, pid: int) -> None:
        """Break its connections, and let none through."""

    def stall(self) -> None:
        """Let nothing through, while connections stay open."""

    def heal(self) -> None:
        """End that."""

    def close(self) -> None:
        """Let go of what the line itself needs."""


class System(Protocol):
    """A message system.

    Attributes:
        name: the heading of its results.
        nodes: its brokers; may be empty.
        can: what can be done to it, and what it does; a scenario names what it needs: "broker", "cluster", "cut" (a
            process can be cut off), "stall" (it can be cut off without a word), "store" (keeps what nobody takes),
            "volatile" (loses that when it is killed), "processes" (several share it), "exchange" (its exchange can be
            deleted).
    """

    @property
    def name(self) -> str: ...

    @property
    def nodes(self) -> Sequence[Node]: ...

    @property
    def can(self) -> Collection[str]: ...

    def connect(self, number: int) -> Line:
        """A line for one process; number spreads the processes over the nodes."""

    def restore(self) -> None:
        """Undo whatever was done to it: all nodes run when this returns."""

    def delete_exchange(self) -> None:
        """Delete the exchange of all topics; for those that can "exchange"."""

    def partition(self, node: Node) -> None:
        """Cut a node off from the others, until `heal`; for those that can "cluster"."""

    def heal(self) -> None:
        """Let all nodes reach each other again."""


class ProxiedLine:
    """A way through proxies, one for each node.

    Args:
        make_url: makes a transport URL of the ports of the proxies.
        nodes: in the order in which the process is to try them.
    """

    def __init__(self, make_url: Callable[[Sequence[int]], str], nodes: Sequence[TcpNode]) -> None:
        self._proxies = [Proxy(node.port) for node in nodes]
        self.url = make_url([proxy.port for proxy in self._proxies])

    def cut(self, _pid: int) -> None:
        for proxy in self._proxies:
            proxy.refuse()
            proxy.cut()

    def stall(self) -> None:
        for proxy in self._proxies:
            proxy.stall()

    def heal(self) -> None:
        for proxy in self._proxies:
            proxy.resume()
            proxy.accept()

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.close()


class Brokered:
    """A broker, or a cluster, that is reached over TCP.

    Args:
        name, nodes, can: as for `System`.
        make_url: makes a transport URL of ports on 127.0.0.1, in the order in which they are to be tried.
        delete_exchange: deletes the exchange of all topics.
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[TcpNode],
        can: Collection[str],
        make_url: Callable[[Sequence[int]], str],
        delete_exchange: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.nodes: Sequence[TcpNode] = nodes
        self.can = can
        self._make_url = make_url
        self._delete_exchange = delete_exchange

    def connect(self, number: int) -> Line:
        first = number % len(self.nodes)
        return ProxiedLine(self._make_url, [*self.nodes[first:], *self.nodes[:first]])

    def restore(self) -> None:
        for node in self.nodes:
            if not node.alive():
                node.start()

    def delete_exchange(self) -> None:
        assert self._delete_exchange is not None
        self._delete_exchange()

    def partition(self, node: Node) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        raise NotImplementedError


class ClusterNode:
    """A node of a cluster; once it is started again the others know it."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._cluster = cluster
        self._node = cluster.nodes[number]
        self.number = number

    @property
    def port(self) -> int:
        return self._node.port

    def alive(self) -> bool:
        return self._node.alive()

    def start(self) -> None:
        self._cluster.start(self.number)

    def stop(self) -> None:
        self._node.stop()

    def kill(self) -> None:
        self._node.kill()

    def pause(self) -> None:
        self._node.pause()

    def resume(self) -> None:
        self._node.resume()


class Clustered(Brokered):
    """A cluster of RabbitMQ nodes. Each process tries another node first."""

    def __init__(self, cluster: Cluster, can: Collection[str]) -> None:
        nodes = [ClusterNode(cluster, number) for number in range(len(cluster.nodes))]
        super().__init__(f"RabbitMQ {cluster.version}, three nodes", nodes, can, quorum_url)
        self._cluster = cluster

    def restore(self) -> None:
        self._cluster.restore()

    def partition(self, node: Node) -> None:
        assert isinstance(node, ClusterNode)
        self._cluster.partition(node.number)

    def heal(self) -> None:
        self._cluster.heal()


def rabbit_url(ports: Sequence[int], query: str = "") -> str:
    """The URL of RabbitMQ at these ports."""
    return "rabbit://" + ",".join(f"guest:guest@127.0.0.1:{port}" for port in ports) + "/" + query


def quorum_url(ports: Sequence[int]) -> str:
    """The same, with quorum queues."""
    return rabbit_url(ports, "?quorum_queues=true")


def qpid_url(ports: Sequence[int], query: str = "") -> str:
    """The URL of Qpid at these ports."""
    return "qpid://" + ",".join(f"guest:guest@127.0.0.1:{port}" for port in ports) + "/" + query


def qpid_memory_url(ports: Sequence[int]) -> str:
    """The same, for a virtual host in memory."""
    return qpid_url(ports, "?durable=false")


def nats_url(ports: Sequence[int]) -> str:
    """The URL of NATS at these ports."""
    return "nats://" + ",".join(f"127.0.0.1:{port}" for port in ports) + "/"


class FixedLine:
    """A way to where nothing is in between. Over ZeroMQ the connections that there are can be cut, for a moment."""

    def __init__(self, url: str) -> None:
        self.url = url

    def cut(self, pid: int) -> None:
        os.kill(pid, signal.SIGUSR1)

    def stall(self) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        """Nothing is left to heal."""

    def close(self) -> None:
        """Nothing is left to close."""


class FakeNode:
    """The message system in memory, whose stopping breaks all connections. It keeps what it has."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._up = True

    def alive(self) -> bool:
        return self._up

    def start(self) -> None:
        self._up = True
        self._bus.start()

    def stop(self) -> None:
        self._up = False
        self._bus.stop()

    def kill(self) -> None:
        self.stop()

    def pause(self) -> None:
        self._bus.pause()

    def resume(self) -> None:
        self._bus.resume()


class Fake:
    """The message system in memory."""

    name = "fake"
    can: Collection[str] = ("broker", "store")

    def __init__(self, url: str) -> None:
        self._url = url
        self.nodes: Sequence[Node] = [FakeNode(get_bus(url))]

    def connect(self, number: int) -> Line:
        return FixedLine(self._url)

    def restore(self) -> None:
        """Each scenario has one of its own."""

    def delete_exchange(self) -> None:
        raise NotImplementedError

    def partition(self, node: Node) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        raise NotImplementedError


class LocalZmq:
    """ZeroMQ between the processes of one host: no broker."""

    name = "ZeroMQ"
    nodes: Sequence[Node] = ()
    can: Collection[str] = ("processes", "cut")

    def __init__(self, run_dir: pathlib.Path) -> None:
        self._run_dir = run_dir

    def connect(self, number: int) -> Line:
        return FixedLine(f"zmq://{self._run_dir}")

    def restore(self) -> None:
        """Nothing runs that could be away."""

    def delete_exchange(self) -> None:
        raise NotImplementedError

    def partition(self, node: Node) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        raise NotImplementedError
