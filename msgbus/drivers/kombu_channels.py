"""The channels of the kombu driver: one that publishes, one for each subscription and inbox, one to look at a queue."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any

from msgbus.drivers import kombu_frames as frames
from msgbus.drivers.base import Address, Delivery, Depth, Message, OnDelivery, Sent
from msgbus.drivers.kombu_link import Channel, Link
from msgbus.drivers.kombu_topology import Exchange, Queue, Route, Topology
from msgbus.exceptions import (
    InvalidTarget,
    MessageUndeliverable,
    MessagingException,
    TransportBlocked,
    TransportUnavailable,
)
from msgbus.timer import Timer

LOG = logging.getLogger(__name__)

MAX_TTL = 4_000_000.0
"""Seconds; RabbitMQ closes the channel over an expiration above 2**32 ms. What may live for so long does not expire."""
RESUBSCRIBE_DELAY = 1.0
"""Seconds before a subscription comes back whose queue was deleted, or whose channel was closed, under it."""


def fail(future: Future[Any], error: Exception) -> None:
    """Fail a future that may be done already."""
    try:
        future.set_exception(error)
    except InvalidStateError:
        pass


def finish(future: Future[Any], value: Any) -> None:
    """Finish a future that may be done already."""
    try:
        future.set_result(value)
    except InvalidStateError:
        pass


_FOREVER = float("inf")


class _Outgoing:
    """A message on its way, and the future of its sender."""

    __slots__ = ("address", "expires", "gives_up", "mandatory", "message", "sent")

    def __init__(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        self.address = address
        self.message = message
        self.mandatory = mandatory
        self.sent = sent
        now = time.monotonic()
        self.expires = _FOREVER if message.ttl is None else now + message.ttl
        self.gives_up = self.expires if message.wait is None else now + message.wait


class Publisher(Channel):
    """Publishes with confirms, any number in flight.

    What is handed over while the connection is away, or RabbitMQ takes no messages, waits here until its ttl ends.
    """

    def __init__(
        self,
        link: Link,
        timer: Timer,
        routes: Callable[[Address], Route],
        name: Callable[[], str],
        on_open: Callable[[], None],
    ) -> None:
        """`on_open` is called when the channel has been opened: it is to call `release` when that is right."""
        self._on_open = on_open
        self._link = link
        self._timer = timer
        self._routes = routes
        self._name = name
        self._lock = threading.Lock()
        self._ready = False  # The channel confirms, and RabbitMQ takes messages.
        self._open = False
        self._waiting: deque[_Outgoing] = deque()
        self._start_clean()

    def _start_clean(self) -> None:
        self._next_tag = 1
        self._lowest = 1
        self._in_flight: dict[int, _Outgoing] = {}
        self._returned: dict[str, str] = {}
        self._prefixes: dict[tuple[Address, bool], bytes] = {}
        self._declared: set[Exchange] = set()

    # Sending: any thread

    def send(self, address: Address, message: Message, mandatory: bool) -> Future[Sent]:
        sent: Future[Sent] = Future()
        outgoing = _Outgoing(address, message, mandatory, sent)
        try:
            with self._lock:
                if not self._ready:
                    self._wait(outgoing)
                    return sent
                self._publish(outgoing)
        except InvalidTarget as exc:
            sent.set_exception(exc)
            return sent
        self._link.flush()
        return sent

    def _wait(self, outgoing: _Outgoing) -> None:
        self._routes(outgoing.address)  # A name that RabbitMQ cannot have is refused now.
        self._waiting.append(outgoing)
        patience = outgoing.message.patience
        if patience is not None:
            self._timer.call_later(patience, lambda: self._expire(outgoing))

    def _expire(self, outgoing: _Outgoing) -> None:
        if outgoing.sent.done():
            return
        with self._lock:
            try:
                self._waiting.remove(outgoing)
            except ValueError:
                return  # It is on its way by now; `on_tick` sees to it.
        patience = outgoing.message.patience
        if self._link.blocked is not None:
            text = f"{self._name()} takes no messages ({self._link.blocked}), and did not for {patience:.3g} s"
            fail(outgoing.sent, TransportBlocked(f"{text}: to {outgoing.address}"))
        else:
            cause = self._link.error or f"{self._name()} is not connected yet"
            fail(outgoing.sent, TransportUnavailable(f"gave up after {patience:.3g} s: {cause}"))

    def _publish(self, outgoing: _Outgoing) -> None:
        """The lock is held; the caller flushes."""
        message = outgoing.message
        key = (outgoing.address, outgoing.mandatory)
        prefix = self._prefixes.get(key)
        if prefix is None:
            prefix = self._prepare(*key)
        ttl = outgoing.expires - time.monotonic()
        data = prefix + frames.content(
            self.number,
            message.body,
            message.content_type.encode(),
            message.id.encode(),
            None if not ttl < MAX_TTL else max(1, int(ttl * 1000)),
            message.durable,
            self._link.frame_max,
        )
        self._in_flight[self._next_tag] = outgoing
        self._next_tag += 1
        self._link.append(data)

    def _prepare(self, address: Address, mandatory: bool) -> bytes:
        exchange, key, queue = self._routes(address)
        prefix = frames.publish_prefix(self.number, exchange.name, key, mandatory)
        if queue is not None:
            # Somebody may have deleted it when it was empty. What goes there is rare: it is declared each time.
            arguments = queue.arguments
            return frames.queue_declare(self.number, queue.name, durable=queue.durable, arguments=arguments) + prefix
        if not exchange.name:
            pass
        elif exchange.auto_delete:
            # It may go at any moment, with its last queue, and publishing to none would close the channel.
            return self._declare(exchange) + prefix
        elif exchange not in self._declared:
            self._declared.add(exchange)
            self._link.append(self._declare(exchange))
        if len(self._prefixes) >= 10_000:  # As many as there are clients to answer: bounded, for it is only a cache.
            self._prefixes.clear()
        self._prefixes[address, mandatory] = prefix
        return prefix

    def _declare(self, exchange: Exchange) -> bytes:
        return frames.exchange_declare(
            self.number, exchange.name, exchange.kind, durable=exchange.durable, auto_delete=exchange.auto_delete
        )

    def unfinished(self) -> list[Future[Sent]]:
        """The futures of all that is waiting or in flight."""
        with self._lock:
            return [outgoing.sent for outgoing in (*self._in_flight.values(), *self._waiting)]

    def inherited(self) -> list[Future[Sent]]:
        """The same in a forked child, where a thread that does not exist may hold the lock."""
        return [outgoing.sent for outgoing in (*self._in_flight.values(), *self._waiting)]

    # What the link says: the loop's thread

    def connected(self) -> None:
        """The connection is open: make it a confirming channel."""
        with self._lock:
            self._start_clean()
            self._link.add(self)
            self._link.append(frames.channel_open(self.number) + frames.confirm_select(self.number))
        self._link.flush()

    def release(self) -> None:
        """Let go what waits, if it can go: RabbitMQ takes messages, and replies to them will arrive."""
        with self._lock:
            if not self._open or self._link.blocked is not None:
                return
            self._ready = True
            now = time.monotonic()
            while self._waiting:
                outgoing = self._waiting.popleft()
                if outgoing.gives_up <= now:
                    self._waiting.appendleft(outgoing)
                    break  # Its own timer is about to fail it, and those behind it wait a moment longer.
                self._publish(outgoing)
        self._link.flush()

    def hold(self) -> None:
        """RabbitMQ takes no messages: keep what comes, and give up what is on its way when its time ends."""
        now = time.monotonic()
        with self._lock:
            self._ready = False
            in_flight = list(self._in_flight.items())
        for tag, outgoing in in_flight:
            if outgoing.gives_up < _FOREVER:
                left = max(0.0, outgoing.gives_up - now)
                self._timer.call_later(left, partial(self._give_up, tag, outgoing))

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.BASIC_ACK:
            self._on_confirm(frames.read_u64(buffer, at)[0], buffer[at + 8] & 1, taken=True)
        elif ids == frames.BASIC_NACK:
            self._on_confirm(frames.read_u64(buffer, at)[0], buffer[at + 8] & 1, taken=False)
        elif ids == frames.CONFIRM_SELECT_OK:
            self._open = True
            self._on_open()
        elif ids == frames.CHANNEL_CLOSE:
            code, text = frames.read_close(buffer, at, end)
            self._link.write(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
            self._on_channel_closed(f"{self._name()} closed the publishing channel: {code} {text}")

    def _on_confirm(self, tag: int, multiple: int, *, taken: bool) -> None:
        pop = self._in_flight.pop
        if multiple:
            confirmed = [found for t in range(self._lowest, tag + 1) if (found := pop(t, None)) is not None]
            self._lowest = max(self._lowest, tag + 1)
        else:
            found = pop(tag, None)
            confirmed = [] if found is None else [found]
        for outgoing in confirmed:
            if self._returned and (reason := self._returned.pop(outgoing.message.id, None)) is not None:
                where = f"nobody listens at {outgoing.address} on {self._name()}: {reason}"
                fail(outgoing.sent, MessageUndeliverable(where))
            elif taken:
                finish(outgoing.sent, _SENT)
            else:
                fail(
                    outgoing.sent,
                    TransportBlocked(f"{self._name()} refused a message to {outgoing.address}: its queue is full"),
                )

    def on_content(self, ids: bytes, method: Any, header: frames.ContentHeader, body: bytes) -> None:
        # RabbitMQ returns a message right before it confirms it.
        code, text = method
        self._returned[header.message_id] = f"{code} {text}"

    def _on_channel_closed(self, reason: str) -> None:
        """Only this channel is lost: with what was in flight on it, whose fate is unknown."""
        LOG.error("%s", reason)
        self._link.remove(self)
        self.on_down(TransportUnavailable(reason, maybe_delivered=True))
        self.connected()

    def on_down(self, error: TransportUnavailable) -> None:
        with self._lock:
            self._ready = self._open = False
            lost = list(self._in_flight.values())
            self._start_clean()
        for outgoing in lost:
            text = f"the connection broke while a message to {outgoing.address} was being sent: {error}"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))

    def on_tick(self) -> None:
        """Give up what RabbitMQ has not confirmed by the end of its ttl: it may be frozen."""
        now = time.monotonic()
        with self._lock:
            late = [(tag, outgoing) for tag, outgoing in self._in_flight.items() if outgoing.gives_up <= now]
        for tag, outgoing in late:
            self._give_up(tag, outgoing)

    def _give_up(self, tag: int, outgoing: _Outgoing) -> None:
        with self._lock:
            if self._in_flight.get(tag) is not outgoing:
                return
            del self._in_flight[tag]
        if self._link.blocked is not None:
            text = f"{self._name()} takes no messages ({self._link.blocked}): to {outgoing.address}"
            fail(outgoing.sent, TransportBlocked(text, maybe_delivered=True))
        else:
            text = f"{self._name()} did not confirm a message to {outgoing.address} in time"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))

    def fail_all(self, error: MessagingException) -> None:
        """Fail what waits and what is in flight."""
        with self._lock:
            self._ready = False
            left = [*self._in_flight.values(), *self._waiting]
            self._in_flight.clear()
            self._waiting.clear()
        for outgoing in left:
            fail(outgoing.sent, error)

    def fail_waiting(self, error: MessagingException) -> None:
        """Fail what waits: there is no hope of a connection."""
        with self._lock:
            left = list(self._waiting)
            self._waiting.clear()
        for outgoing in left:
            fail(outgoing.sent, error)


_SENT = Sent()


class _Incoming(Delivery):
    __slots__ = ("_channel", "_tag")

    def __init__(
        self, address: Address, message: Message, redelivered: bool, attempts: int | None, channel: _Epoch, tag: int
    ) -> None:
        super().__init__(address, message, redelivered, attempts)
        self._channel = channel
        self._tag = tag

    def accept(self) -> bool:
        return self._channel.settle(self._tag, frames.basic_ack)

    def reject(self, requeue: bool) -> None:
        self._channel.settle(self._tag, lambda channel, tag: frames.basic_reject(channel, tag, requeue))


class _Epoch(Channel):
    """A consumer's channel on one connection. After a reconnect there is another: deliveries know theirs."""

    def __init__(self, consumer: Consumer, link: Link) -> None:
        self._consumer = consumer
        self._link = link
        self._lock = threading.Lock()
        self._alive = True
        self._unsettled: set[int] = set()
        self._last_tag = 0

    def open(self, declarations: Callable[[int], bytes]) -> None:
        self._link.add(self)
        self._link.write(declarations(self.number))

    def settle(self, tag: int, frame: Callable[[int, int], bytes]) -> bool:
        """Accept or reject a delivery. False: its connection is gone. A second word on it changes nothing."""
        with self._lock:
            if not self._alive:
                return False
            if tag not in self._unsettled:
                return True
            self._unsettled.discard(tag)
            # Under the lock: on the next connection this tag would mean another message.
            self._link.append(frame(self.number, tag))
        self._link.flush()
        return True

    def on_content(self, ids: bytes, method: Any, header: frames.ContentHeader, body: bytes) -> None:
        consumer = self._consumer
        address = consumer.addresses[int(method.consumer)]
        message = Message(body, header.content_type, header.message_id)
        if consumer.auto_accept:
            self._last_tag = method.tag
        else:
            self._unsettled.add(method.tag)
        attempts = (header.delivery_count or 0) if consumer.counts[int(method.consumer)] else None
        consumer.on_delivery(_Incoming(address, message, method.redelivered, attempts, self, method.tag))

    def on_batch_end(self) -> None:
        if self._last_tag:
            self._link.write(frames.basic_ack(self.number, self._last_tag, multiple=True))
            self._last_tag = 0

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.BASIC_CONSUME_OK:
            self._consumer.consuming()
        elif ids == frames.BASIC_CANCEL_OK:
            self._consumer.cancelled()
        elif ids == frames.BASIC_CANCEL:
            # RabbitMQ takes the queue away: it was deleted, or its node went down.
            self.end()
            self._link.write(frames.channel_close(self.number))
            self._consumer.lost("its queue was deleted")
        elif ids == frames.CHANNEL_CLOSE:
            code, text = frames.read_close(buffer, at, end)
            self._link.write(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
            self._link.remove(self)
            self.end()
            self._consumer.refused(code, text)
        elif ids == frames.CHANNEL_CLOSE_OK:
            self._link.remove(self)
            self.end()
            self._consumer.closed()

    def on_down(self, error: TransportUnavailable) -> None:
        self.end()
        self._consumer.closed()

    def end(self) -> None:
        """No delivery of this connection can be settled any more."""
        with self._lock:
            self._alive = False


class Consumer:
    """A subscription or an inbox over all its connections.

    Attributes:
        addresses: what it consumes from; the consumer tag of each is its place here.
        ready: see the contract.
        gone: done when it is closed.
    """

    def __init__(
        self,
        link: Link,
        timer: Timer,
        topology: Topology,
        name: Callable[[], str],
        addresses: Sequence[Address],
        on_delivery: OnDelivery,
        prefetch: int,
        unique: str,
        on_ready: Callable[[], None],
    ) -> None:
        """Prefetch 0 makes it an inbox: what was handed over is accepted.

        Raises:
            InvalidTarget: an address has no name in RabbitMQ.
        """
        self.addresses = tuple(addresses)
        self.on_delivery = on_delivery
        self.auto_accept = prefetch == 0
        self.ready: Future[None] = Future()
        self.gone: Future[None] = Future()
        self._stopped: Future[None] | None = None
        self._link = link
        self._timer = timer
        self._name = name
        self._prefetch = prefetch
        self._queues: list[Queue] = [topology.queue(address, unique) for address in addresses]
        # RabbitMQ leaves the count out at the first delivery.
        self.counts = [queue.arguments.get("x-queue-type") == "quorum" for queue in self._queues]
        self._on_ready = on_ready
        self._epoch: _Epoch | None = None
        self._consuming = 0
        self._to_cancel = 0

    # On the loop's thread

    @property
    def is_consuming(self) -> bool:
        """Whether all addresses are consumed from at present."""
        return self._consuming == len(self.addresses)

    def start(self) -> None:
        """The connection is open: declare and consume."""
        if self._stopped is not None or self.gone.done():
            return
        self._consuming = 0
        self._epoch = _Epoch(self, self._link)
        self._epoch.open(self._declarations)

    def _declarations(self, channel: int) -> bytes:
        parts = [frames.channel_open(channel)]
        if self._prefetch:
            parts.append(frames.basic_qos(channel, self._prefetch))
        for queue in self._queues:
            exchange = queue.exchange
            if exchange.name:
                parts.append(
                    frames.exchange_declare(
                        channel,
                        exchange.name,
                        exchange.kind,
                        durable=exchange.durable,
                        auto_delete=exchange.auto_delete,
                    )
                )
            parts.append(frames.queue_declare(channel, queue.name, durable=queue.durable, arguments=queue.arguments))
            if queue.key is not None:
                parts.append(frames.queue_bind(channel, queue.name, exchange.name, queue.key))
        for at, (address, queue) in enumerate(zip(self.addresses, self._queues, strict=True)):
            # A connection that broke unnoticed at the other end goes on consuming there, and would take from this one
            # what is meant for it alone. RabbitMQ serves the higher priority first: the younger connection's.
            priority = int(time.time()) - 1_700_000_000 if queue.own or address.kind == "server" else 0
            parts.append(frames.basic_consume(channel, queue.name, str(at), priority))
        return b"".join(parts)

    def consuming(self) -> None:
        """One of the addresses is being consumed from."""
        self._consuming += 1
        if self.is_consuming:
            finish(self.ready, None)
            self._on_ready()

    def refused(self, code: int, text: str) -> None:
        """RabbitMQ closed the channel."""
        reason = f"{self._name()} refuses {', '.join(map(str, self.addresses))}: {code} {text}{_HINTS.get(code, '')}"
        if self.ready.done() and self.ready.exception() is None:
            self.lost(reason)
        else:
            fail(self.ready, TransportUnavailable(reason))
            self.closed()

    def lost(self, reason: str) -> None:
        """Not consuming any more, though the connection lives: come back in a moment."""
        if self._stopped is not None or self.gone.done():
            self.closed()
            return
        LOG.error(
            "%s: %s; it is declared again in %g s", ", ".join(map(str, self.addresses)), reason, RESUBSCRIBE_DELAY
        )
        self._consuming = 0
        self._epoch = None
        self._timer.call_later(RESUBSCRIBE_DELAY, self._link.on_loop(self._start_again))

    def _start_again(self) -> None:
        if self._link.up and self._epoch is None:
            self.start()

    def stop(self) -> None:
        """Begin to cancel; `stopped` is done at the end."""
        assert self._stopped is not None
        if self._epoch is None or not self._link.up or self._consuming == 0:
            finish(self._stopped, None)
            return
        self._to_cancel = len(self.addresses)
        for at in range(len(self.addresses)):
            self._link.write(frames.basic_cancel(self._epoch.number, str(at)))

    def cancelled(self) -> None:
        """RabbitMQ delivers no more from one of the addresses."""
        self._to_cancel -= 1
        if self._to_cancel <= 0 and self._stopped is not None:
            finish(self._stopped, None)

    def close(self) -> None:
        """Delete what is this process's own, and close the channel: RabbitMQ takes back what was not settled."""
        epoch = self._epoch
        if epoch is None or not self._link.up:
            self.closed()
            finish(self.gone, None)
            return
        for queue in self._queues:
            if queue.own:
                self._link.append(frames.queue_delete(epoch.number, queue.name))
        self._link.write(frames.channel_close(epoch.number))

    def closed(self) -> None:
        """The channel, or its connection, is gone."""
        self._consuming = 0
        self._epoch = None
        if self._stopped is not None:
            finish(self._stopped, None)
            finish(self.gone, None)

    # Any thread

    def stopping(self) -> tuple[Future[None], bool]:
        """The future of `stop`, and whether this is the first time that it is asked for."""
        first = self._stopped is None
        if self._stopped is None:
            self._stopped = Future()
        return self._stopped, first


_HINTS = {
    403: " - check the user's rights: rabbitmqctl list_permissions",
    406: " - it exists with other properties: delete it, or set the options as they were when it was made",
}


class Inspection(Channel):
    """A look at one queue, on a channel of its own: that a queue does not exist closes the channel."""

    def __init__(self, link: Link, queue: str, found: Future[Depth], name: str) -> None:
        self._link = link
        self._queue = queue
        self._found = found
        self._name = name

    def start(self) -> None:
        """Ask. On the loop's thread."""
        if not self._link.up:
            fail(self._found, self._link.error or TransportUnavailable(f"{self._name} is not connected"))
            return
        self._link.add(self)
        ask = frames.queue_declare(self.number, self._queue, passive=True)
        self._link.write(frames.channel_open(self.number) + ask)

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.QUEUE_DECLARE_OK:
            messages, consumers = frames.read_declare_ok(buffer, at)
            self._link.write(frames.channel_close(self.number))
            finish(self._found, Depth(consumers, messages))
        elif ids == frames.CHANNEL_CLOSE:
            code, text = frames.read_close(buffer, at, end)
            self._link.write(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
            self._link.remove(self)
            fail(self._found, MessageUndeliverable(f"{self._name}: {code} {text}"))
        elif ids == frames.CHANNEL_CLOSE_OK:
            self._link.remove(self)

    def on_down(self, error: TransportUnavailable) -> None:
        fail(self._found, error)
