"""A node: one process's part in the zmq driver's message system, which is made of nothing but such parts.

Everything here belongs to the loop's thread, but for what says otherwise.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import zmq

from msgbus.drivers.base import Address, Depth, OnDelivery
from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.link import Link, LinkSettings
from msgbus.drivers.zmq.links import TO_OPEN, Links
from msgbus.drivers.zmq.matchmakers.base import Directory, Entry, Matchmaker
from msgbus.drivers.zmq.queue import FOREVER, Parcel
from msgbus.drivers.zmq.receiver import LocalConsumer, Receiver
from msgbus.drivers.zmq.sender import Sender
from msgbus.exceptions import CallCancelled, MessageUndeliverable, MessagingException, TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

TICK = 0.05
"""Seconds between two looks at what waits for a server."""
SLOW_TICK = 1.0
"""Seconds between two looks at what is not urgent."""
LOOKS_APART = 0.01
"""Seconds at least between two looks at what has no receipt."""
KEEP = 2
"""Slow ticks between two looks at what the matchmaker has to keep."""
REDIAL = 10.0
"""Seconds for which a connection that broke is dialled anew, if nobody can know whether the other side lives."""
INSPECT_TIMEOUT = 0.8
"""Seconds in which nodes have to say how much waits there."""


class _Inspection:
    """A question to all who serve an address."""

    def __init__(self, address: Address, missing: dict[str, int], found: Future[Depth]) -> None:
        self.address = address
        self.missing = missing  # how many consumers each node has by the directory
        self.found = found
        self.asked: set[str] = set()
        self.consumers = 0
        self.depth = 0
        self.answered = False


class Node:
    """See the module's text.

    Attributes:
        id: of the node, once it is open.
        error: why it is not open.
    """

    def __init__(
        self,
        loop: Loop,
        matchmaker: Matchmaker,
        settings: LinkSettings,
        *,
        listen: str,
        advertise: str = "",
        backlog: int,
        server_expires: float,
    ) -> None:
        """Make a node that is not open yet.

        Args:
            loop: its thread.
            matchmaker: how it finds others.
            settings: of its connections.
            listen: an endpoint besides the ipc socket, or empty.
            advertise: the host, perhaps with a port, by which others reach that endpoint; empty if that says it itself.
            backlog: see `Receiver`.
            server_expires: see `Sender`.
        """
        self.id = ""
        self.error: MessagingException | None = None
        self._loop = loop
        loop.before_sleep = self.before_sleep
        self._matchmaker = matchmaker
        self._listen = listen
        self._advertise = advertise
        self._security = settings.security
        self._directory = Directory()
        self._links = links = Links(loop, settings, self)
        self._sender = Sender(links, self._directory, self._refresh, matchmaker, server_expires)
        self._receiver = Receiver(loop, links, matchmaker.is_alive, self._sender.adopt, backlog)
        self._endpoints: list[str] = []
        self._inboxes: list[Future[None]] = []  # those that are not ready
        self._redials: dict[str, float] = {}  # by node, until when
        self._subscriptions: list[list[LocalConsumer]] = []
        self._inspections: dict[int, _Inspection] = {}
        self._numbers = itertools.count(1)
        self._ticking = False
        self._looks_at = FOREVER
        self._slow_ticks = 0
        self._batch = -1
        self._closed: MessagingException | None = None

    # Opening and closing

    def open(self) -> None:
        """Find a place among the others, if that has not been done.

        Raises:
            TransportUnavailable: that is not possible.
            ConfigurationError: its keys cannot be used.
            CallCancelled: the node was closed.
        """
        if self._closed is not None:
            raise self._closed
        if self.id:
            return
        try:
            if why := descriptors.shortage(TO_OPEN):
                raise TransportUnavailable(f"ZeroMQ cannot be begun: {why}")  # libzmq would abort the process.
            folder = self._matchmaker.open()
            node = self._matchmaker.node
            ipc = f"ipc://{os.path.join(folder, node)}.sock" if folder else ""
            bound = self._links.open(node, ipc, self._listen)
            self._endpoints = [as_told(endpoint, self._advertise) for endpoint in bound]
            self.id = node
            self._register()
            self._refresh()
        except (MessagingException, OSError, zmq.ZMQError) as exc:
            self.id = ""
            self.error = error = _ours(exc)
            self._links.close()
            self._matchmaker.close()
            raise error from exc
        self.error = None
        self._loop.call_later(SLOW_TICK, self._slow_tick)
        LOG.debug("node %s listens at %s", node, ", ".join(self._endpoints))

    def _register(self, told: Callable[[], None] | None = None) -> None:
        services, key = self._receiver.services(), self._security.public
        entry = Entry(self.id, os.getpid(), socket.gethostname(), self._endpoints, services, key)
        self._matchmaker.register(entry, told)

    def _refresh_once(self) -> None:
        """Know what was true when the present batch began. One look at the file is enough for all that is in it."""
        if self._batch != self._loop.batch:
            self._batch = self._loop.batch
            self._refresh()

    def _refresh(self) -> None:
        """Know what others can know by now."""
        if self._matchmaker.changed():
            self._directory.update(self._matchmaker.entries())
            self._sender.unpark()

    def on_news(self) -> None:
        """The matchmaker has something new to say."""
        if self.id:
            self._refresh()
            self._sender.unpark()
            self._finish_inboxes()

    def leave(self, error: MessagingException, done: Future[None]) -> None:
        """Close: give back what is not settled, say good-bye, and fail what is unfinished."""
        self._closed = error
        if not self.id:
            self._end(error, done)
            return
        for consumers in self._subscriptions:
            self._receiver.stop(consumers)
            self._receiver.take_back(consumers)
        self._subscriptions.clear()
        try:
            self._register()
        except MessagingException as exc:
            LOG.warning("node %s cannot tell that it leaves: %s", self.id, exc)
        self._links.flush(True)
        self._links.leave(lambda: self._end(error, done))

    def _end(self, error: MessagingException, done: Future[None]) -> None:
        if lost := self._sender.lost_at_close():
            LOG.error("node %s closes with %d messages that were given back to it, and no server", self.id, lost)
        for sent in self._sender.unfinished():
            fail(sent, error)
        for inspection in self._inspections.values():
            fail(inspection.found, error)
        self._inspections.clear()
        self.id = ""
        self._links.close()
        self._matchmaker.close()
        finish(done, None)

    def abandon(self) -> tuple[list[Future[Any]], list[Any]]:
        """In a forked child: returns the futures that nobody will finish, and what may not be touched."""
        self._matchmaker.abandon()
        futures: list[Future[Any]] = list(self._sender.unfinished())
        futures += [inspection.found for inspection in self._inspections.values()]
        return futures, self._links.inherited()

    def describe(self) -> str:
        """For an operator: who is connected."""
        connected = len({link.node for link in self._links.all()} - {self.id})
        doubt = self._matchmaker.doubt()
        known = f"node {self.id}, {len(self._directory.entries)} nodes known, {connected} connected"
        return f"{known}; {doubt}" if doubt else known

    # What the driver asks for

    def send(self, parcel: Parcel) -> None:
        """See `Driver.send`."""
        try:
            if not self.id or self._closed is not None:
                self.open()
            self._refresh_once()
            self._sender.send(parcel)
        except MessagingException as exc:
            fail(parcel.sent, exc)

    def unfinished(self, found: Future[list[Future[Any]]]) -> None:
        """The futures of all that has no receipt yet."""
        finish(found, self._sender.unfinished())

    def subscribe(
        self,
        addresses: Sequence[Address],
        on_delivery: OnDelivery,
        prefetch: int,
        consumers: list[LocalConsumer],
        ready: Future[None],
    ) -> None:
        """See `Driver.subscribe`; fills `consumers`."""
        try:
            self.open()
            self._refresh()
            self._warn_of_doubles(addresses)
            consumers += self._receiver.subscribe(addresses, on_delivery, prefetch)
            self._register(lambda: finish(ready, None))
            self._refresh()
            self._subscriptions.append(consumers)
        except MessagingException as exc:
            self._receiver.stop(consumers)
            fail(ready, exc)

    def _warn_of_doubles(self, addresses: Sequence[Address], besides: str = "") -> None:
        if self._matchmaker.is_opening:  # Others are known in a moment, and this node among them.
            self._loop.call_later(TICK, lambda: self._warn_of_doubles(addresses, besides=self.id))
            return
        for address in addresses:
            if address.kind != "server":
                continue
            if nodes := [node for node in self._directory.nodes(address) if node != besides]:
                entry = self._directory.entries[nodes[0]]
                LOG.warning(
                    "%s is served by another already (node %s, process %d on %s): they will share its messages",
                    address,
                    entry.node,
                    entry.pid,
                    entry.host,
                )

    def stop(self, consumers: list[LocalConsumer], close: bool, done: Future[None]) -> None:
        """See `Subscription.stop`, and `Subscription.close`."""
        if self._closed is None and self.id:
            self._receiver.stop(consumers)
            if close:
                self._receiver.take_back(consumers)
                self._subscriptions = [held for held in self._subscriptions if held is not consumers]
            try:
                self._register()
            except MessagingException as exc:
                LOG.warning("node %s cannot tell that it serves less: %s", self.id, exc)
            self._links.flush(True)
        self._loop.call_last(finish, done, None)  # after what is still to be handed over

    def open_inbox(self, make: Callable[[str], Address], on_delivery: OnDelivery, ready: Future[None]) -> None:
        """See `Driver.open_inbox`."""
        try:
            self.open()
        except MessagingException as exc:
            fail(ready, exc)
            return
        self._receiver.open_inbox(make(self.id), on_delivery)
        self._inboxes.append(ready)
        try:
            self._register(lambda: finish(ready, None))
        except MessagingException as exc:
            fail(ready, exc)
        self._finish_inboxes()

    def _finish_inboxes(self) -> None:
        """While nobody can be told of a node, its inboxes are good for those whom it writes to, who answer there."""
        if self._matchmaker.doubt():
            for ready in self._inboxes:
                finish(ready, None)
        self._inboxes = [ready for ready in self._inboxes if not ready.done()]

    def close_inbox(self, address: Address | None, done: Future[None]) -> None:
        """See `Inbox.close`."""
        if address is not None:
            self._receiver.close_inbox(address)
        self._loop.call_last(finish, done, None)

    # Inspecting

    def inspect(self, address: Address, found: Future[Depth]) -> None:
        """See `Driver.inspect`."""
        try:
            self.open()
        except MessagingException as exc:
            fail(found, exc)
            return
        self._refresh()
        if self._matchmaker.is_opening and not found.done():
            self._loop.call_later(TICK, lambda: self.inspect(address, found))
            return
        nodes = self._directory.nodes(address)
        if not nodes:
            fail(found, MessageUndeliverable(f"there is no {address}: nobody subscribes to it"))
            return
        number = next(self._numbers)
        missing = {node: service.consumers for node, service in nodes.items()}
        inspection = self._inspections[number] = _Inspection(address, missing, found)
        for node in nodes:
            self._ask(number, inspection, node)
        self._loop.call_later(INSPECT_TIMEOUT, lambda: self._end_inspection(number))

    def _ask(self, number: int, inspection: _Inspection, node: str) -> None:
        link = self._links.link(node)
        if link is None:
            entry = self._directory.entries.get(node)
            if entry is not None:
                self._links.dial(node, entry.endpoints, entry.key)
        elif node not in inspection.asked:
            inspection.asked.add(node)
            self._links.send(link, frames.numbered(frames.INSPECT, number, frames.write_address(inspection.address)))

    def _on_depth(self, link: Link, number: int, consumers: int, waiting: int) -> None:
        inspection = self._inspections.get(number)
        if inspection is None or inspection.missing.pop(link.node, None) is None:
            return
        inspection.answered = True
        inspection.consumers += consumers
        inspection.depth += waiting
        if not inspection.missing:
            self._end_inspection(number)

    def _end_inspection(self, number: int) -> None:
        inspection = self._inspections.pop(number, None)
        if inspection is None:
            return
        if not inspection.answered:
            # Those that are known to live, and do not answer, are frozen: how many they are is known all the same.
            frozen = sum(count for node, count in inspection.missing.items() if self._matchmaker.is_alive(node))
            if frozen:
                finish(inspection.found, Depth(frozen, None))
                return
            whys = "; ".join(f"node {node} at {self._links.why_not(node)}" for node in inspection.missing)
            text = f"{inspection.address} cannot be inspected: none of its servers answers ({whys})"
            fail(inspection.found, TransportUnavailable(text))
            return
        consumers = inspection.consumers + sum(inspection.missing.values())
        finish(inspection.found, Depth(consumers, inspection.depth + self._sender.depth(inspection.address)))

    # What links say

    def on_link_up(self, link: Link) -> None:
        """See `LinkListener`."""
        self._sender.on_link_up(link)
        for number, inspection in self._inspections.items():
            if link.node in inspection.missing:
                self._ask(number, inspection, link.node)

    def on_link_down(self, link: Link, why: str) -> None:
        """See `LinkListener`."""
        if self._closed is None and not link.left:
            self._forget_if_dead(link.node, refused=False)
            if self._matchmaker.is_alive(link.node) is None and self._links.has_dialled(link):
                self._redials[link.node] = time.monotonic() + REDIAL
                self._redial()
        self._receiver.on_link_down(link)
        self._sender.on_link_down(link, why)

    def on_dial_failed(self, node: str, refused: bool) -> None:
        """See `LinkListener`."""
        self._forget_if_dead(node, refused)

    def _forget_if_dead(self, node: str, refused: bool) -> None:
        """It is dead, or it may be: then that nobody listens at its endpoint decides."""
        if node in self._directory.entries:
            alive = self._matchmaker.is_alive(node)
            if alive is False or (alive is None and refused):
                LOG.info("the process of node %s is gone", node)
                self._matchmaker.forget(node)
                # Not at once: somebody may be in the middle of what the directory says.
                self._loop.call(self._refresh)

    def _redial(self) -> None:
        """Connect again with those who cannot connect with this node, and may have something to say to it."""
        now = time.monotonic()
        for node, until in list(self._redials.items()):
            entry = self._directory.entries.get(node)
            if self._links.link(node) is not None or now > until or not self.id:
                del self._redials[node]
            elif entry is not None:
                self._links.dial(node, entry.endpoints, entry.key)
        if self._redials:
            self._loop.call_later(TICK, self._redial)

    def on_record(self, link: Link, kind: int, frame: bytes, at: int, end: int) -> None:
        """See `LinkListener`."""
        if kind == frames.DATA:
            self._receiver.on_data(link, frames.read_data(frame, at, end))
        elif kind == frames.SETTLED:
            self._sender.on_settled(link, frames.read_numbers(frame, at, end))
        elif kind in (frames.TAKEN, frames.QUEUED):
            self._sender.on_taken(link, frames.read_numbers(frame, at, end), queued=kind == frames.QUEUED)
        elif kind == frames.REACHED:
            self._sender.on_reached(link, frames.read_numbers(frame, at, end))
        elif kind in (frames.FULL, frames.NOBODY, frames.REQUEUED, frames.RELEASED):
            self._sender.on_given_back(link, kind, frames.read_numbers(frame, at, end))
        elif kind == frames.READY:
            self._sender.on_ready(link, *frames.read_numbered(frame, at, end))
        elif kind == frames.RECALL:
            self._receiver.on_recall(link, *frames.read_numbered(frame, at, end))
        elif kind == frames.RECALLED:
            self._sender.on_recalled(link, *frames.read_numbered(frame, at, end))
        elif kind == frames.RESUME:
            self._receiver.on_resume(link, frames.read_address(frame[at:end]))
        elif kind == frames.LOST:
            for session in frames.read_numbers(frame, at, end):
                self._receiver.on_lost(link, session)
        elif kind == frames.UNBEGUN:
            session, *unbegun = frames.read_numbers(frame, at, end) or (0,)
            self._sender.on_unbegun(link, session, unbegun)
        elif kind == frames.INSPECT:
            number, address = frames.read_numbered(frame, at, end)
            self._links.send(link, frames.depth(number, *self._receiver.depth(address)))
        elif kind == frames.DEPTH:
            self._on_depth(link, *frames.read_depth(frame, at, end))
        else:
            raise frames.Malformed(f"a record of the kind {kind}")

    def on_frame_end(self) -> None:
        """See `LinkListener`."""
        self._sender.work_off()

    # Time

    def before_sleep(self, over: bool) -> float:
        """What the loop does when all is done."""
        rest = self._links.flush(over)
        if not self._ticking and self._sender.waits():
            self._ticking = True
            self._loop.call_later(TICK, self._tick)
        if self._sender.next_look < self._looks_at:
            self._looks_at = self._sender.next_look
            self._loop.call_later(max(LOOKS_APART, self._looks_at - time.monotonic()), self._look)
        return rest

    def _look(self) -> None:
        self._looks_at = FOREVER
        self._sender.give_up_unconfirmed()

    def _tick(self) -> None:
        self._ticking = False
        self._sender.tick()

    def _slow_tick(self) -> None:
        if not self.id:
            return
        self._loop.call_later(SLOW_TICK, self._slow_tick)
        self._slow_ticks += 1
        if self._slow_ticks % KEEP == 0:
            self._matchmaker.keep()
            self._links.restore_sockets()
            self._refresh()
        if not self._matchmaker.is_reachable:
            self._refresh()
            self._sender.connect_all()
        self._sender.forget_unused()
        self._links.drop_unused(self._directory.entries)


def _ours(error: MessagingException | OSError | zmq.ZMQError) -> MessagingException:
    if isinstance(error, MessagingException):
        return error
    hint = f"; {descriptors.HINT}" if descriptors.is_shortage(error) else ""
    return TransportUnavailable(f"ZeroMQ cannot be begun: {error}{hint}")


def as_told(endpoint: str, advertise: str) -> str:
    """An endpoint as others are told of it: with the host of `advertise`, and its port if it has one."""
    if not advertise or not endpoint.startswith("tcp://"):
        return endpoint
    has_port = re.fullmatch(r"(\[.*\]|[^:]*):[0-9]+", advertise)
    return f"tcp://{advertise}" if has_port else f"tcp://{advertise}:{endpoint.rpartition(':')[2]}"


def after_fork() -> MessagingException:
    """What futures fail with that a forked child inherited."""
    return CallCancelled("the process forked: the message was left to the parent")
