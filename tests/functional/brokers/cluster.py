"""A RabbitMQ cluster of the tests' own: three nodes on loopback, each of which can be killed, frozen or cut off."""

from __future__ import annotations

import contextlib
import pathlib
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from tests.functional.brokers.processes import BrokerFailed, ProcessTree, free_ports, poll
from tests.functional.brokers.rabbitmq import RabbitMQ, find

__all__ = ["NODES", "Cluster"]

NODES: Final = 3
_FORM_SECONDS: Final = 120.0
_JOIN_SECONDS: Final = 60.0
_HEAL_SECONDS: Final = 20.0
# How long a node waits for another that says nothing before it counts as down; RabbitMQ's default is 60 s.
_SILENT_SECONDS: Final = 8


class Cluster:
    """Three RabbitMQ nodes that know each other; nothing runs until ``start()``.

    ``version`` is "3.10" or "4.3". ``base`` is a folder that belongs to this cluster alone. Raises ``BrokerMissing`` if
    this machine does not have that version. Nodes are numbered from 0. Ports stay the same over restarts, data until
    ``close()``.

    ``kill``, ``freeze`` and ``partition`` leave a node away until ``start``, ``thaw`` and ``heal``; ``restore`` undoes
    whatever was done. A node that a partition leaves in the minority pauses itself on 3.10 (cluster_partition_handling
    is pause_minority, which RabbitMQ recommends for quorum queues), and on 4.3 goes on without being able to change
    anything.
    """

    def __init__(self, version: str, base: pathlib.Path) -> None:
        self.version = version
        self.base = base
        base.mkdir(parents=True, exist_ok=True)
        self._root, _ = find(version)
        (self._epmd_port,) = free_ports(1)
        self._epmd: ProcessTree | None = None
        self._cookie = secrets.token_hex(16)
        config = {
            # The settings that docs/howto/deploy.md recommends: the first for RabbitMQ 3, the second for 4.3.
            "cluster_partition_handling": "pause_minority",
            **({"consumer_disconnected_timeout": "5000"} if version != "3.10" else {}),
            "cluster_name": f"msgbus-{version}",
            # No statistics for a web interface that is not there.
            "collect_statistics_interval": "60000",
        }
        self.nodes = [
            RabbitMQ(
                version,
                base / f"n{i}",
                config=config,
                node=f"n{i}",
                cookie=self._cookie,
                epmd_port=self._epmd_port,
                # The second is what RabbitMQ's own later releases set: a node that loses one stays with the others.
                erl=f"-kernel net_ticktime {_SILENT_SECONDS} -kernel prevent_overlapping_partitions false",
            )
            for i in range(NODES)
        ]

    # Where it is

    @property
    def urls(self) -> list[str]:
        """For each node, a transport URL that names that node first and the others after it."""
        ports = [node.port for node in self.nodes]
        turned = [ports[i:] + ports[:i] for i in range(NODES)]
        return ["rabbit://" + ",".join(f"guest:guest@127.0.0.1:{port}" for port in order) + "/" for order in turned]

    # Life

    def start(self, i: int | None = None) -> None:
        """Start node ``i`` again, or all of them (joined, at the first time); return when the others know it.

        Raises ``BrokerFailed``.
        """
        if i is not None:
            self.nodes[i].start()
            poll(partial(self._serves, i), _JOIN_SECONDS, f"node {i} to be back")
            return
        self._start_epmd()
        try:
            _together(node.start for node in self.nodes)
            if not self.is_whole():
                for other in range(1, NODES):
                    self._join(other)
            poll(self.is_whole, _JOIN_SECONDS, "the nodes to know each other")
        except (TimeoutError, OSError) as error:
            raise BrokerFailed(f"the cluster of RabbitMQ {self.version}: {error}") from error

    def _start_epmd(self) -> None:
        """The daemon from which nodes learn each other's ports. In a tree of its own: it outlives each of the nodes."""
        program = "epmd" if self._root is None else f"/usr/lib/erlang/{self._erts()}/bin/epmd"
        argv = [program, "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        self._epmd = ProcessTree(argv, {"PATH": "/usr/bin:/bin"}, self.base / "epmd.log", self._root)

    def _erts(self) -> str:
        assert self._root is not None
        return sorted((self._root / "usr/lib/erlang").glob("erts-*"))[-1].name

    def _join(self, i: int) -> None:
        node = self.nodes[i]
        first = self.nodes[0].node_name
        join = (
            f"rabbit_mnesia:join_cluster('{first}', disc)"
            if self.version == "3.10"
            else f"rabbit_db_cluster:join('{first}', disc)"
        )
        node.eval(f"rabbit:stop(), {join}, rabbit:start(), ok.", seconds=_FORM_SECONDS)

    def close(self) -> None:
        """Kill everything, and remove the data."""
        for node in self.nodes:
            node.close()
        if self._epmd is not None:
            self._epmd.kill()
        shutil.rmtree(self.base, ignore_errors=True)

    # What can be done to a node

    def kill(self, i: int) -> None:
        """SIGKILL node ``i``; it stays away until ``start(i)``."""
        self.nodes[i].kill()

    def freeze(self, i: int) -> None:
        """SIGSTOP node ``i``: its connections stay open, and nothing answers until ``thaw(i)``."""
        self.nodes[i].pause()

    def thaw(self, i: int) -> None:
        """Let a frozen node go on."""
        self.nodes[i].resume()

    def partition(self, i: int) -> None:
        """Cut node ``i`` off from the other nodes; clients still reach it. Lasts until ``heal()``.

        Nodes take each other's connections only with the right cookie. So each side gets a wrong one for the other, not
        the same, and what connection there is is dropped.
        """
        others = [node.node_name for at, node in enumerate(self.nodes) if at != i and node.alive()]
        cut = "".join(f"erlang:set_cookie('{other}', cut), erlang:disconnect_node('{other}'), " for other in others)
        name = self.nodes[i].node_name
        for at, node in enumerate(self.nodes):
            if at != i and node.alive():
                node.eval(f"erlang:set_cookie('{name}', cut_off), ok.")
        self.nodes[i].eval(f"{cut}ok.")

    def heal(self) -> None:
        """Let all nodes that run reach each other again, and return when they do.

        Where a node of 3.10 was frozen, or came back before it had paused, Mnesia considers it partitioned, and goes on
        without it until somebody restarts it: https://www.rabbitmq.com/docs/partitions says so. Then that is done here.
        """
        for node in self.nodes:
            if node.alive():
                others = (other.node_name for other in self.nodes if other is not node)
                mended = "".join(f"erlang:set_cookie('{other}', '{self._cookie}'), " for other in others)
                node.eval(f"{mended}ok.")
        alive = {i for i, node in enumerate(self.nodes) if node.alive()}

        def healed() -> bool:
            for i in alive:  # Nodes connect to each other when one has something to say.
                with contextlib.suppress(OSError, BrokerFailed):
                    self.nodes[i].eval("".join(f"net_adm:ping('{self.nodes[at].node_name}'), " for at in alive) + "ok.")
            return all(self.seen_by(i) >= alive for i in alive)

        try:
            poll(healed, _HEAL_SECONDS, "the nodes to reach each other again")
        except TimeoutError:
            together = max((self.seen_by(i) for i in alive), key=len)
            for i in alive - together:
                self.nodes[i].eval("rabbit:stop(), rabbit:start(), ok.", seconds=_FORM_SECONDS)
            poll(healed, _JOIN_SECONDS, "the nodes to reach each other again")

    def restore(self) -> None:
        """Undo whatever was done: all nodes run and know each other when this returns."""
        for node in self.nodes:
            if node.alive():
                with contextlib.suppress(BrokerFailed):
                    node.resume()
        for i, node in enumerate(self.nodes):
            if not node.alive():
                self.start(i)
        if not self.is_whole():
            self.heal()
        poll(self.is_whole, _JOIN_SECONDS, "the cluster to be whole again")

    # What is there

    def seen_by(self, i: int) -> set[int]:
        """The nodes that run RabbitMQ, as node ``i`` sees it; empty where that does not answer or run it itself."""
        names = {node.node_name: at for at, node in enumerate(self.nodes)}
        running = "rabbit_nodes:all_running()" if self.version == "3.10" else "rabbit_nodes:list_running()"
        try:
            found = self.nodes[i].eval(f"case rabbit:is_running() of true -> {running}; false -> [] end.", seconds=5)
        except (OSError, BrokerFailed):
            return set()
        return {names[name] for name in found if name in names}

    def _serves(self, i: int) -> bool:
        return i in self.seen_by(i)

    def is_whole(self) -> bool:
        """Whether all nodes run and know each other."""
        return all(len(self.seen_by(i)) == NODES for i in range(NODES))


def _together(steps: Iterable[Callable[[], None]]) -> None:
    """Do several things at once, and raise what the first of them raised."""
    errors: list[BaseException] = []

    def run(step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
