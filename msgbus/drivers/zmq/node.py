"""A node: one process in the zmq driver's message system, which consists of such nodes only.

Everything here belongs to the loop's thread, unless a method says otherwise.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import zmq

from msgbus.drivers.base import Address, Inbox, OnDelivery, QueueInfo
from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq.endpoints import TO_OPEN
from msgbus.drivers.zmq.inspecting import Inspector
from msgbus.drivers.zmq.link import LinkSettings, PeerLink
from msgbus.drivers.zmq.links import LEAVE_INTERVAL, Links
from msgbus.drivers.zmq.matchmakers.base import Directory, Entry, Matchmaker, advertised
from msgbus.drivers.zmq.queue import Parcel
from msgbus.drivers.zmq.receiver import ZmqReceiver
from msgbus.drivers.zmq.routing import Router
from msgbus.drivers.zmq.sender import TICK, ZmqSender
from msgbus.drivers.zmq.serving import LocalConsumer
from msgbus.exceptions import MessagingException, TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

SLOW_TICK = 1.0
"""Seconds between two rounds of maintenance."""
MAINTAIN_TICKS = 2
"""Slow ticks between two calls of `Matchmaker.maintain`."""
REDIAL = 10.0
"""Seconds for which a connection that broke is dialled again, if nobody can know whether the other side lives."""


class Node:
    """See the module's text.

    Attributes:
        id: the node's id, once it is open.
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
            loop: the transport's.
            matchmaker: how it finds other nodes.
            settings: of its connections.
            listen: an endpoint besides the Unix socket, or empty.
            advertise: see `advertised`.
            backlog: see `ZmqReceiver`.
            server_expires: see `ZmqSender`.
        """
        self.id = ""
        self.error: MessagingException | None = None
        self._loop = loop
        self._matchmaker = matchmaker
        self._listen = listen
        self._advertise = advertise
        self._security = settings.security
        self._linger = settings.linger
        self._directory = Directory()
        self._links = links = Links(loop, settings, self)
        loop.before_sleep = links.flush
        self._router = router = Router(links, self._directory)
        self._sender = ZmqSender(loop, router, self._refresh, matchmaker, server_expires)
        self.on_frame_end = self._sender.on_frame_end
        self._receiver = ZmqReceiver(loop, links, matchmaker, self._sender.reroute, backlog)
        self._inspector = Inspector(loop, router, matchmaker)
        self._endpoints: list[str] = []
        self._unready_inboxes: list[Future[None]] = []
        self._inbox_numbers = itertools.count(1)
        self._redials: dict[str, float] = {}  # by node, until when
        self._subscriptions: list[list[LocalConsumer]] = []
        self._slow_ticks = 0
        self._batch = -1
        self._closed: MessagingException | None = None

    # Opening and closing

    def open(self) -> None:
        """Listen, and register with the matchmaker, if that has not been done.

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
            if shortage := descriptors.shortage(TO_OPEN):
                raise TransportUnavailable(f"ZeroMQ cannot be started: {shortage}")  # libzmq would abort the process.
            folder = self._matchmaker.open()
            node = self._matchmaker.node
            ipc = f"ipc://{os.path.join(folder, node)}.sock" if folder else ""
            bound = self._links.open(node, ipc, self._listen)
            self._endpoints = [advertised(endpoint, self._advertise) for endpoint in bound]
            self.id = node
            self._register()
            self._refresh()
        except (MessagingException, OSError, ValueError, zmq.ZMQError) as exc:  # ValueError: a path with a zero byte
            self.id = ""
            self.error = error = _as_our_error(exc)
            self._links.close()
            self._matchmaker.close()
            raise error from exc
        self.error = None
        self._loop.call_later(SLOW_TICK, self._slow_tick)
        LOG.debug("node %s listens at %s", node, ", ".join(self._endpoints))

    def _register(self, published: Callable[[], None] | None = None) -> None:
        services, key = self._receiver.services(), self._security.public
        entry = Entry(self.id, os.getpid(), socket.gethostname(), self._endpoints, services, key)
        self._matchmaker.register(entry, published)

    def _refresh(self) -> None:
        """Update the directory."""
        if self._matchmaker.changed():
            self._read_entries()

    def _read_entries(self) -> None:
        self._directory.update(self._matchmaker.entries())
        self._sender.send_unrouted()

    def on_change(self) -> None:
        """The matchmaker knows something new."""
        if self.id:
            self._refresh()
            self._sender.send_unrouted()
            self._finish_inboxes()

    def leave(self, error: MessagingException, done: Future[None]) -> None:
        """Close: give back unsettled messages, say BYE to all peers, and fail the messages without a receipt.

        Before BYE, it sends once more what was given back to it, for `LinkSettings.linger` at the most.
        """
        self._closed = error
        if not self.id:
            self._end(error, done)
            return
        self._stop(self._subscriptions, close=True)
        self._subscriptions.clear()
        self._say_bye(lambda: self._end(error, done), Loop.now() + self._linger)

    def _say_bye(self, then: Callable[[], None], deadline: float) -> None:
        if self._sender.may_leave() or Loop.now() > deadline:
            self._links.leave(then)
        else:
            self._loop.call_later(LEAVE_INTERVAL, self._say_bye, then, deadline)

    def _end(self, error: MessagingException, done: Future[None]) -> None:
        unfinished = self._sender.unfinished()
        if lost := self._sender.end():
            LOG.error("node %s closes with %d messages that were given back to it and have no server", self.id, lost)
        for sent in unfinished:
            fail(sent, error)
        self.id = ""
        self._links.close()
        self._matchmaker.close()
        finish(done)

    def wait_closed(self, until: float) -> None:
        """Wait until others have been told of the end. Not on the loop's thread."""
        self._matchmaker.wait_closed(until)

    def abandon(self) -> tuple[list[Future[Any]], list[Any]]:
        """In a forked child: returns the futures that nothing will finish, and the objects that must not be closed."""
        self._matchmaker.abandon()
        return [*self._sender.unfinished()], self._links.inherited()

    def describe(self) -> str:
        """For an operator: who is connected."""
        connected = len({link.node for link in self._links.all()} - {self.id})
        incomplete = self._matchmaker.why_incomplete()
        known = f"node {self.id}, {len(self._directory.entries)} nodes known, {connected} connected"
        return f"{known}; {incomplete}" if incomplete else known

    # Called by the driver

    def send(self, parcel: Parcel) -> None:
        """See `Driver.send`."""
        try:
            if not self.id or self._closed is not None:
                self.open()
            if self._batch != self._loop.batch and parcel.address.kind != "inbox":
                self._batch = self._loop.batch  # The matchmaker is asked once for each batch of calls.
                if self._matchmaker.changed():
                    self._read_entries()
            self._sender.send(parcel)
        except MessagingException as exc:
            fail(parcel.sent, exc)

    def unfinished(self, found: Future[list[Future[Any]]]) -> None:
        """Find the futures of all messages without a receipt."""
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
            self._warn_if_served(addresses)
            consumers += self._receiver.subscribe(addresses, on_delivery, prefetch)
            self._register(lambda: finish(ready))
            self._refresh()
            self._subscriptions.append(consumers)
        except MessagingException as exc:
            self._receiver.stop(consumers)
            fail(ready, exc)

    def _warn_if_served(self, addresses: Sequence[Address], besides: str = "") -> None:
        if self._matchmaker.is_opening:  # Others are known in a moment, and so is this node.
            self._loop.call_later(TICK, self._warn_if_served, addresses, self.id)
            return
        for address in addresses:
            if address.kind != "server":
                continue
            if nodes := [node for node in self._directory.nodes(address) if node != besides]:
                entry = self._directory.entries[nodes[0]]
                LOG.warning(
                    "%s is already served by node %s (process %d on %s): both will share its messages",
                    address,
                    entry.node,
                    entry.pid,
                    entry.host,
                )

    def stop(self, consumers: list[LocalConsumer], close: bool, done: Future[None]) -> None:
        """See `Subscription.stop`, and `Subscription.close`."""
        if self._closed is None and self.id:
            self._stop([consumers], close)
            if close:
                self._subscriptions = [held for held in self._subscriptions if held is not consumers]
        self._loop.call_last(finish, done)  # after the deliveries that are still to be made

    def _stop(self, subscriptions: Sequence[list[LocalConsumer]], close: bool) -> None:
        for consumers in subscriptions:
            self._receiver.stop(consumers)
            if close:
                self._receiver.take_back(consumers)
        try:
            self._register()
        except MessagingException as exc:
            LOG.warning("node %s could not announce that it serves fewer addresses: %s", self.id, exc)
        self._links.flush(True)

    def open_inbox(self, inbox: Inbox, on_delivery: OnDelivery, ready: Future[None]) -> None:
        """See `Driver.open_inbox`; sets the inbox's address, which has the id of the open node in it."""
        try:
            self.open()
            inbox.address = Address("inbox", name=f"{self.id}.{next(self._inbox_numbers)}")
            self._receiver.open_inbox(inbox.address, on_delivery)
            self._unready_inboxes.append(ready)
            self._register(lambda: finish(ready))
        except MessagingException as exc:
            fail(ready, exc)
        self._finish_inboxes()

    def _finish_inboxes(self) -> None:
        """Nodes that this one writes to can answer even if no other knows of it: then its inboxes are ready."""
        if self._matchmaker.why_incomplete():
            for ready in self._unready_inboxes:
                finish(ready)
        self._unready_inboxes = [ready for ready in self._unready_inboxes if not ready.done()]

    def close_inbox(self, inbox: Inbox, done: Future[None]) -> None:
        """See `Inbox.close`. It may be that the inbox could not be opened."""
        if hasattr(inbox, "address"):
            self._receiver.close_inbox(inbox.address)
        self._loop.call_last(finish, done)

    def inspect(self, address: Address, found: Future[QueueInfo]) -> None:
        """See `Driver.inspect`."""

        def look() -> None:
            self._inspector.inspect(address, self._sender.waiting_for(address), found)

        self._look(look, found)

    def known_servers(self, found: Future[Sequence[Address]]) -> None:
        """See `Driver.known_servers`."""
        self._look(lambda: finish(found, self._directory.servers()), found)

    def _look(self, look: Callable[[], None], found: Future[Any]) -> None:
        """Call a function once the directory is up to date, or fail `found`."""
        try:
            self.open()
        except MessagingException as exc:
            fail(found, exc)
            return
        self._refresh()
        if self._matchmaker.is_opening and not found.done():
            self._loop.call_later(TICK, self._look, look, found)
            return
        look()

    # Called by the links

    def on_link_up(self, link: PeerLink) -> None:
        """See `LinkOwner`."""
        self._sender.on_link_up(link)
        self._inspector.on_link_up(link)

    def on_link_down(self, link: PeerLink, why: str) -> None:
        """See `LinkOwner`."""
        if self._closed is None and not link.peer_left:
            self.forget_if_dead(link.node, refused=False)
            if self._matchmaker.is_alive(link.node) is None and self._links.has_dialled(link):
                self._redials[link.node] = Loop.now() + REDIAL
                self._redial()
        self._receiver.on_link_down(link)
        self._sender.on_link_down(link, why)

    def forget_if_dead(self, node: str, refused: bool) -> None:
        """Forget a node that is dead, or of which that is unknown and at whose endpoint nobody listens."""
        if node in self._directory.entries:
            alive = self._matchmaker.is_alive(node)
            if alive is False or (alive is None and refused):
                LOG.info("the process of node %s has ended", node)
                self._matchmaker.forget(node)
                # Not at once: a caller may be iterating over the directory.
                self._loop.call(self._refresh)

    def _redial(self) -> None:
        """Reconnect to nodes that cannot connect to this one, and may have messages for it."""
        now = Loop.now()
        for node, until in list(self._redials.items()):
            if now > until or not self.id or self._router.reach(node) is not None:
                del self._redials[node]
        if self._redials:
            self._loop.call_later(TICK, self._redial)

    # Time

    def _slow_tick(self) -> None:
        if not self.id:
            return
        self._loop.call_later(SLOW_TICK, self._slow_tick)
        self._slow_ticks += 1
        if self._slow_ticks % MAINTAIN_TICKS == 0:
            self._matchmaker.maintain()
            self._links.restore_sockets()
            self._refresh()
        if not self._matchmaker.is_reachable:
            self._refresh()
            self._router.connect_all()
        self._router.forget_unused()
        self._links.dialler.forget_unused(self._directory.entries)


def _as_our_error(error: MessagingException | OSError | ValueError | zmq.ZMQError) -> MessagingException:
    if isinstance(error, MessagingException):
        return error
    hint = f"; {descriptors.HINT}" if descriptors.is_shortage(error) else ""
    return TransportUnavailable(f"ZeroMQ cannot be started: {error}{hint}")
