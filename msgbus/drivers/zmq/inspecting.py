"""Inspecting an address: its servers are asked how many subscribe there, and how many messages wait."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from dataclasses import dataclass

from msgbus.drivers.base import Address, QueueInfo
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.matchmakers.base import Matchmaker
from msgbus.drivers.zmq.routing import Router
from msgbus.exceptions import MessageUndeliverable, TransportUnavailable

INSPECT_TIMEOUT = 0.8
"""Seconds for which answers are waited for."""


@dataclass
class _Inspection:
    """A question to all nodes that serve an address.

    Attributes:
        missing: by node that has not answered, how many subscribers it has by the directory.
    """

    address: Address
    missing: dict[str, int]
    waiting: int
    found: Future[QueueInfo]
    consumers: int = 0
    answered: bool = False


class Inspector:
    """See the module's text. Everything here belongs to the loop's thread."""

    def __init__(self, loop: Loop, router: Router, matchmaker: Matchmaker) -> None:
        self._loop = loop
        self._links = router.links
        self._router = router
        self._matchmaker = matchmaker
        self._inspections: dict[int, _Inspection] = {}
        self._numbers = itertools.count(1)
        router.links.on_record[frames.DEPTH] = self._on_depth

    def inspect(self, address: Address, waiting: int, found: Future[QueueInfo]) -> None:
        """Ask the servers of an address; `waiting` of this node's own messages wait for them."""
        nodes = self._router.directory.nodes(address)
        if not nodes:
            fail(found, MessageUndeliverable(f"there is no {address}: nobody subscribes to it"))
            return
        number = next(self._numbers)
        missing = {node: service.consumers for node, service in nodes.items()}
        inspection = self._inspections[number] = _Inspection(address, missing, waiting, found)
        for node in nodes:
            self._ask(number, inspection, node)
        self._loop.call_later(INSPECT_TIMEOUT, self._end, number)

    def _ask(self, number: int, inspection: _Inspection, node: str) -> None:
        if (link := self._router.reach(node)) is not None:
            self._links.send(link, frames.numbered(frames.INSPECT, number, frames.write_address(inspection.address)))

    def on_link_up(self, link: PeerLink) -> None:
        """Ask over the new connection. A second answer of the same node does not count."""
        for number, inspection in self._inspections.items():
            if link.node in inspection.missing:
                self._ask(number, inspection, link.node)

    def _on_depth(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        number, consumers, waiting = frames.read_depth(frame, at, end)
        inspection = self._inspections.get(number)
        if inspection is None or inspection.missing.pop(link.node, None) is None:
            return
        inspection.answered = True
        inspection.consumers += consumers
        inspection.waiting += waiting
        if not inspection.missing:
            self._end(number)

    def _end(self, number: int) -> None:
        inspection = self._inspections.pop(number, None)
        if inspection is None:
            return
        if inspection.answered:
            consumers = inspection.consumers + sum(inspection.missing.values())
            finish(inspection.found, QueueInfo(consumers, inspection.waiting))
            return
        # Nodes that live and do not answer are frozen. How many subscribers they have is known all the same.
        frozen = sum(count for node, count in inspection.missing.items() if self._matchmaker.is_alive(node))
        if frozen:
            finish(inspection.found, QueueInfo(frozen, None))
            return
        whys = "; ".join(f"node {node} at {self._links.dialler.why_not(node)}" for node in inspection.missing)
        text = f"{inspection.address} cannot be inspected: none of its servers answers ({whys})"
        fail(inspection.found, TransportUnavailable(text))
