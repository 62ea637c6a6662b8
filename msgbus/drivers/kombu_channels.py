"""The channels on which the kombu driver consumes: one for each subscription and inbox; and one to look at a queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

from msgbus.drivers import kombu_frames as frames
from msgbus.drivers.base import Address, Delivery, Depth, Message, OnDelivery
from msgbus.drivers.kombu_link import Channel, Link
from msgbus.drivers.kombu_topology import Queue, Topology
from msgbus.exceptions import MessageUndeliverable, MessagingException, TransportUnavailable
from msgbus.foreign import get_logger
from msgbus.timer import Timer

LOG = get_logger(__name__)

NOT_FOUND = 404
"""RabbitMQ's word for a queue that does not exist."""
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
        if self._last_tag and self._alive:
            self._link.write(frames.basic_ack(self.number, self._last_tag, multiple=True))
            self._last_tag = 0

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.BASIC_CONSUME_OK:
            self._consumer.consuming()
        elif ids == frames.BASIC_CANCEL_OK:
            self._consumer.cancelled()
        elif ids == frames.BASIC_CANCEL and self._alive:
            # RabbitMQ takes the queue away: it was deleted, or its node went down.
            self.end(frames.channel_close(self.number))
            self._consumer.lost("its queue was deleted")
        elif ids == frames.CHANNEL_CLOSE:
            code, text = frames.read_close(buffer, at, end)
            self.end(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
            self._link.remove(self)
            self._consumer.refused(code, text)
        elif ids == frames.CHANNEL_CLOSE_OK:
            self._link.remove(self)
            self.end()
            self._consumer.closed(self)

    def on_down(self, error: TransportUnavailable) -> None:
        self.end()
        self._consumer.closed(self)

    def end(self, last_words: bytes = b"") -> None:
        """No delivery of this channel can be settled any more: RabbitMQ does not forgive a frame on a closed one."""
        with self._lock:
            self._alive = False
            if last_words:
                self._link.append(last_words)
        self._link.flush()


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
        reason = f"{self._name()} refuses {', '.join(map(str, self.addresses))}: {explain(code, text)}"
        if self.ready.done() and self.ready.exception() is None:
            self.lost(reason)
        else:
            fail(self.ready, TransportUnavailable(reason))
            self.closed(self._epoch)

    def lost(self, reason: str) -> None:
        """Not consuming any more, though the connection lives: come back in a moment."""
        if self._stopped is not None or self.gone.done():
            self.closed(self._epoch)
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
        if self._epoch is None or not self._link.up:
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

    def close(self) -> bool:
        """Delete what is this process's own, and close the channel: RabbitMQ takes back what was not settled.

        Returns:
            False where the connection is away for the moment: then it is to be called again when that is back.
        """
        own = [queue for queue in self._queues if queue.own]
        if not self._link.up:
            if own and self._link.generation:
                return False
            self.closed(self._epoch)
            finish(self.gone, None)
            return True
        if self._epoch is None:
            self._epoch = _Epoch(self, self._link)
            self._epoch.open(frames.channel_open)
        number = self._epoch.number
        deletions = [frames.queue_delete(number, queue.name) for queue in own]
        self._epoch.end(b"".join([*deletions, frames.channel_close(number)]))
        return True

    def closed(self, epoch: _Epoch | None) -> None:
        """A channel, or its connection, is gone."""
        if epoch is not self._epoch:
            return  # There is a younger one by now.
        self._consuming = 0
        self._epoch = None
        if self._stopped is not None:
            finish(self._stopped, None)
            finish(self.gone, None)

    # Any thread

    def refuse(self, error: MessagingException) -> None:
        """The driver is closed: nothing will ever come."""
        fail(self.ready, error)
        finish(self.gone, None)

    def hopeless(self, error: MessagingException) -> None:
        """There will be no connection: nobody has to wait for one."""
        fail(self.ready, error)

    def stopping(self) -> tuple[Future[None], bool]:
        """The future of `stop`, and whether this is the first time that it is asked for."""
        first = self._stopped is None
        if self._stopped is None:
            self._stopped = Future()
        return self._stopped, first


def explain(code: int, text: str) -> str:
    """What RabbitMQ says where it closes a channel, and what to do about it."""
    hint = {
        403: " - check the user's rights: rabbitmqctl list_permissions",
        406: " - it exists with other properties: delete it, or set the options as they were when it was made",
    }.get(code, "")
    if "delivery acknowledgement" in text:
        hint = " - a request ran for longer than RabbitMQ's consumer_timeout: raise that"
    return f"{code} {text}{hint}"


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
            known = MessageUndeliverable if code == NOT_FOUND else TransportUnavailable
            fail(self._found, known(f"{self._name}: {explain(code, text)}"))
        elif ids == frames.CHANNEL_CLOSE_OK:
            self._link.remove(self)

    def on_down(self, error: TransportUnavailable) -> None:
        fail(self._found, error)
