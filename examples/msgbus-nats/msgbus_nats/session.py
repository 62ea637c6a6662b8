"""One connection to NATS, as the toolkit uses it: what is sent, and what is asked."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

import nats.errors
from nats.aio.msg import Msg

from msgbus.drivers.base import Address, QueueInfo, Sent
from msgbus.drivers.toolkit.consuming import Feed, Source
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.drivers.toolkit.loop import FOREVER
from msgbus.drivers.toolkit.sending import Offer, OnDeclared, Outgoing
from msgbus.drivers.toolkit.session import Line, Session
from msgbus.exceptions import MessageTooLarge, MessageUndeliverable
from msgbus_nats.connection import NOBODY, Connection, status_of
from msgbus_nats.errors import CONSUMER_MISSING, STREAM_MISSING, JetStreamError, mapped
from msgbus_nats.feed import InboxFeed, JetStreamFeed, NatsFeed
from msgbus_nats.jetstream import JetStream
from msgbus_nats.names import consumer_of, headers_of, subject_of

if TYPE_CHECKING:
    from msgbus_nats.driver import NatsDriver

HEADER_ROOM: Final = 1024
"""Bytes of the server's max_payload that are kept for headers."""
RECEIPT_TIMEOUT: Final = 5.0
"""Seconds in which the owner of an inbox says that it has a message. It does so at once, unless it is gone and the
server has not noticed; the core then sends it again."""
INSPECT_TIMEOUT: Final = 0.9
MAX_IN_FLIGHT: Final = 32 * 1024 * 1024
"""Bytes that may be on their way to this client at the same time. NATS closes a connection for which more than
max_pending waits, 64 MiB by default; above half of that it slows publishers down (nats-server, server/client.go)."""
START_TIMEOUT: Final = 5.0
"""Seconds that messages which wait give the subscriptions to come back first."""


class NatsSession(Session):
    """See the module's text.

    Attributes:
        connection: to the server.
        jetstream: what it keeps.
        loop: the transport's.
        ack_wait: the driver's option.
    """

    def __init__(self, driver: NatsDriver, line: Line, connection: Connection) -> None:
        self.connection = connection
        self.jetstream = JetStream(connection, driver.ack_wait)
        self.loop = driver.loop
        self.ack_wait = driver.ack_wait
        self._driver = driver
        self._line = line
        self._in_flight: dict[str, Outgoing] = {}
        self._feeds: list[NatsFeed] = []

    def start(self) -> None:
        connection = self.connection
        connection.start()
        connection.on_room = self._driver.sender.go_on
        connection.lost.add_done_callback(self._on_lost)
        self._line.serve(self.name)
        connection.aio.spawn(self._begin_to_send([feed.starting for feed in self._feeds]))
        connection.aio.spawn(self._keep_alive())

    def _on_lost(self, lost: asyncio.Future[str]) -> None:
        if self._line.session is self:
            self._line.lose(ConnectionError(lost.result()))

    @property
    def name(self) -> str:
        """The server, for errors."""
        return self._driver.name()

    async def _begin_to_send(self, starting: list[asyncio.Task[None]]) -> None:
        if starting:
            await asyncio.wait(starting, timeout=START_TIMEOUT)
        if not self.connection.lost.done():
            self._line.sendable()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self.ack_wait / 4)
            for feed in list(self._feeds):
                feed.keep_alive()
            for reply, outgoing in list(self._in_flight.items()):
                if outgoing.sent.done():  # Its time is over.
                    self._forget(reply)

    def _forget(self, reply: str) -> None:
        self.connection.forget(reply)
        del self._in_flight[reply]

    # Sending

    def publish(self, outgoing: Outgoing) -> Offer:
        connection, address = self.connection, outgoing.address
        if connection.lost.done() or not connection.has_room:
            return Offer.FULL
        if address.kind in ("stored", "dead") and not self.jetstream.is_declared(address):
            return Offer.UNDECLARED
        ttl = None if outgoing.expires == FOREVER else outgoing.expires - self.loop.now()
        body, headers = outgoing.message.body, headers_of(outgoing.message, ttl)
        length = sum(len(name) + len(value) + 4 for name, value in headers.items()) + 12
        limit = connection.max_payload
        if len(body) > limit - HEADER_ROOM or len(body) + length > limit:
            text = f"a message of {len(body)} bytes to {address}; {self.name} takes {limit - HEADER_ROOM} (max_payload)"
            raise MessageTooLarge(text)
        if address.kind == "inbox":
            outgoing.expect_word_within(RECEIPT_TIMEOUT)
        reply = connection.expect(self._on_answer)
        self._in_flight[reply] = outgoing
        connection.publish(subject_of(address), body, reply, headers)
        return Offer.SENT

    def why_blocked(self) -> str | None:
        return "it does not read what is sent" if self.connection.is_stuck else None

    def _on_answer(self, msg: Msg) -> None:
        """The server's, or the inbox's, word on a message."""
        outgoing = self._in_flight.get(msg.subject)
        if outgoing is None:
            return
        self._forget(msg.subject)
        address = outgoing.address
        if status_of(msg) == NOBODY:
            self.jetstream.forget(address)  # Somebody has deleted what was declared.
            self._on_nobody(outgoing)
        elif address.kind == "inbox":
            outgoing.confirmed(Sent(1))
        elif (error := json.loads(msg.data).get("error")) is not None:
            outgoing.failed(mapped(JetStreamError(error), f"{address} on {self.name}"))
        else:
            outgoing.confirmed()

    def _on_nobody(self, outgoing: Outgoing) -> None:
        """The server has given a message to nobody."""
        refusal = MessageUndeliverable(f"nobody listens at {outgoing.address} on {self.name}")
        if outgoing.address.kind == "inbox":
            _end_without_listener(outgoing, refusal)
        else:
            outgoing.set_aside(refusal)
            self.connection.aio.spawn(self._look_for_stream(outgoing, refusal))

    async def _look_for_stream(self, outgoing: Outgoing, refusal: MessageUndeliverable) -> None:
        """Have a message sent again if there is a stream for it, or may be: that keeps it, in a moment.

        A server that shuts down stops its streams before it closes its connections. What is published in between is
        given to nobody, though the stream will be there again.
        """
        try:
            await self.jetstream.stream_info(outgoing.address)
        except JetStreamError as exc:
            if exc.code == STREAM_MISSING and outgoing.address.kind not in ("stored", "dead"):
                _end_without_listener(outgoing, refusal)
                return
        except (OSError, nats.errors.Error):
            pass  # Its connection is lost, or about to be.
        outgoing.hold(refusal)

    def declare(self, address: Address, declared: OnDeclared) -> None:
        self.connection.aio.spawn(self._declare(address, declared))

    async def _declare(self, address: Address, declared: OnDeclared) -> None:
        try:
            await self.jetstream.declare(address)
        except (OSError, nats.errors.Error) as exc:
            if not self.connection.lost.done():
                refusal = mapped(exc, f"{address} cannot be declared on {self.name}")
                declared(refusal, hold=isinstance(exc, TimeoutError))  # JetStream may be slow, or stand still.
        else:
            declared()

    # Receiving

    def consume(self, source: Source) -> Feed:
        feed: NatsFeed = JetStreamFeed(self, source) if source.prefetch else InboxFeed(self, source)
        self._feeds.append(feed)
        return feed

    @property
    def pull_size(self) -> int:
        """Bytes that one pull request may ask for. Each feed has one at a time."""
        return MAX_IN_FLIGHT // len(self._feeds)

    def remove_feed(self, feed: NatsFeed) -> None:
        """It has ended."""
        if feed in self._feeds:
            self._feeds.remove(feed)

    # Inspecting

    def inspect(self, address: Address, found: Future[QueueInfo]) -> None:
        self.connection.aio.spawn(self._inspect(address, found))

    async def _inspect(self, address: Address, found: Future[QueueInfo]) -> None:
        end = self.loop.now() + INSPECT_TIMEOUT
        try:
            info = await self.jetstream.consumer_info(address, consumer_of(address))
        except (OSError, nats.errors.Error) as exc:
            if isinstance(exc, JetStreamError) and exc.code in (CONSUMER_MISSING, STREAM_MISSING):
                fail(found, MessageUndeliverable(f"there is no {address} on {self.name}"))
            else:
                fail(found, mapped(exc, f"{address} on {self.name}"))
            return
        consumers = await self.jetstream.count(address, info["num_waiting"], end)
        # What was handed over may be given back; where nobody is left who could have it, it waits already.
        finish(found, QueueInfo(consumers, info["num_pending"] + (0 if consumers else info["num_ack_pending"])))

    # The end

    def let_go(self) -> None:
        self.connection.close()

    def abandon(self) -> None:
        for feed in list(self._feeds):
            feed.end()


def _end_without_listener(outgoing: Outgoing, refusal: MessageUndeliverable) -> None:
    if outgoing.mandatory:
        outgoing.failed(refusal)
    else:
        outgoing.confirmed(Sent(0))
