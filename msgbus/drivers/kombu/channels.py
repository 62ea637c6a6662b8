"""What the kombu driver consumes from: subscriptions and inboxes, each address of them on a channel of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from msgbus.drivers.base import Address, Delivery, Message, OnDelivery
from msgbus.drivers.kombu import frames, questions
from msgbus.drivers.kombu.link import Channel, Link
from msgbus.drivers.kombu.questions import Answer, Question, explain, may_heal
from msgbus.drivers.kombu.topology import Queue, Topology
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.exceptions import MessagingException, TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

RETRY_FIRST, RETRY_MAX = 0.1, 5.0
"""Seconds before an address is consumed from again that was refused or taken away: at first, and at the most."""
BIND_INTERVAL = 10.0
"""Seconds after which queues are bound again: somebody may have deleted a binding or an exchange."""
BIND_TIMEOUT = 5.0
"""Seconds that this may take: a node of a cluster that is cut off from the others cannot do it."""


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
    """The channel of one address on one connection. After a reconnect there is another: deliveries know theirs."""

    def __init__(self, source: _Source, link: Link) -> None:
        self._source = source
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

    def on_content(self, ids: bytes, method: frames.Deliver, header: frames.ContentHeader, body: bytes) -> None:
        source = self._source
        message = Message(body, header.content_type, header.message_id)
        if source.auto_accept:
            self._last_tag = method.tag
        else:
            self._unsettled.add(method.tag)
        # RabbitMQ leaves the count out at the first delivery.
        attempts = (header.delivery_count or 0) if source.counts else None
        source.on_delivery(_Incoming(source.address, message, method.redelivered, attempts, self, method.tag))

    def on_batch_end(self) -> None:
        if self._last_tag and self._alive:
            self._link.write(frames.basic_ack(self.number, self._last_tag, multiple=True))
            self._last_tag = 0

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.BASIC_CONSUME_OK:
            self._source.on_consuming()
        elif ids == frames.BASIC_CANCEL_OK:
            self._source.on_cancelled()
        elif ids == frames.BASIC_CANCEL and self._alive:
            # RabbitMQ takes the queue away: it was deleted, or its node went down.
            self.end(frames.channel_close(self.number))
            self._source.lost("RabbitMQ has ended it: the queue was deleted, or its consumer_timeout has passed")
        elif ids == frames.CHANNEL_CLOSE:
            code, text = frames.read_close(buffer, at, end)
            self.end(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
            self._link.remove(self)
            self._source.refused(code, text)
        elif ids == frames.CHANNEL_CLOSE_OK:
            self._link.remove(self)
            self.end()
            self._source.closed(self)

    def on_down(self, error: TransportUnavailable) -> None:
        self.end()
        self._source.closed(self)

    def end(self, last_words: bytes = b"") -> None:
        """No delivery of this channel can be settled any more: RabbitMQ does not forgive a frame on a closed one."""
        with self._lock:
            self._alive = False
            if last_words:
                self._link.append(last_words)
        self._link.flush()


class _Source:
    """One address of a consumer: how it is declared and consumed from, and how it comes back. On the loop's thread.

    It has a channel of its own, so that what RabbitMQ refuses for this address takes no other along.

    Attributes:
        address: the address.
        queue: its queue.
        consuming: it is consumed from at present.
        waits_since: when its declaration was sent, in seconds of `time.monotonic`, while that is not answered; or None.
        gone: done when it is closed.
    """

    def __init__(self, consumer: Consumer, link: Link, address: Address, queue: Queue) -> None:
        self.address = address
        self.queue = queue
        self.counts = queue.is_quorum
        self.auto_accept = consumer.auto_accept
        self.on_delivery = consumer.on_delivery
        self.consuming = False
        self.waits_since: float | None = None
        self.gone: Future[None] = Future()
        self._consumer = consumer
        self._link = link
        self._epoch: _Epoch | None = None
        self._delay = RETRY_FIRST
        self._refusal: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why it is not consumed from though the connection lives, or None."""
        since = self.waits_since
        if self._refusal is None and since is not None and (waits := time.monotonic() - since) > questions.LOOK_TIMEOUT:
            text = (
                f"{self._consumer.name()} has not declared queue {self.queue.name!r} of {self.address} in {waits:.0f} s"
            )
            return text if self.queue.is_quorum else f"{text}; perhaps {questions.NODE_HINT}"
        return self._refusal

    def start(self) -> None:
        """The connection is open: declare and consume."""
        if self._consumer.is_ending or not self._link.up or self._epoch is not None:
            return
        self.consuming = False
        self.waits_since = time.monotonic()
        self._epoch = _Epoch(self, self._link)
        self._epoch.open(self._declarations)

    def _declarations(self, channel: int) -> bytes:
        parts = [frames.channel_open(channel)]
        if self._consumer.prefetch:
            parts.append(frames.basic_qos(channel, self._consumer.prefetch))
        queue = self.queue
        if queue.exchange.name:
            parts.append(questions.exchange_declare(channel, queue.exchange))
        parts += [questions.queue_declare(channel, queue), questions.bind(channel, queue)]
        if queue.pools is not None:
            parts.append(questions.exchange_declare(channel, queue.pools))
        # A connection that broke unnoticed at the other end goes on consuming there, and would take from this one
        # what is meant for it alone. RabbitMQ serves the higher priority first: the younger connection's.
        priority = int(time.time()) - 1_700_000_000 if queue.own or self.address.kind == "server" else 0
        parts.append(frames.basic_consume(channel, queue.name, "0", priority))
        return b"".join(parts)

    def on_consuming(self) -> None:
        if self._refusal is not None:
            LOG.warning("%s is consumed from again", self.address)
        self.consuming = True
        self.waits_since = self._refusal = None
        self._delay = RETRY_FIRST
        self._consumer.on_consuming()

    def refused(self, code: int, text: str) -> None:
        """RabbitMQ closed the channel."""
        name = self._consumer.name()
        reason = f"{name} refuses {self.address}, queue {self.queue.name!r}: {explain(code, text)}"
        if may_heal(code, text) or self._consumer.ready.done():
            self.lost(reason)
        else:
            self._consumer.hopeless(TransportUnavailable(reason))
            self.closed(self._epoch)

    def lost(self, reason: str) -> None:
        """Not consuming any more, though the connection lives: come back in a moment."""
        epoch = self._epoch
        if self._consumer.is_ending:
            self.closed(epoch)
            return
        level = logging.DEBUG if self._refusal == reason else logging.ERROR
        LOG.log(level, "%s: %s; next try in %g s", self.address, reason, self._delay)
        self.closed(epoch)
        self._refusal = reason
        self._link.loop.call_later(self._delay, self.start)
        self._delay = min(2 * self._delay, RETRY_MAX)

    def bind_again(self) -> None:
        """Mend what somebody may have deleted while we consume: the exchange or the binding."""
        queue = self.queue
        if self.consuming and queue.key is not None:
            ask = partial(questions.look_and_bind, queue=queue)
            on_answer = partial(self._on_bound, self._epoch)
            Question(self._link, ask, frames.QUEUE_BIND_OK, on_answer, BIND_TIMEOUT).start()

    def _on_bound(self, epoch: _Epoch | None, answer: Answer) -> None:
        if answer.code == questions.SILENT and self._epoch is epoch and self.queue.is_quorum:
            self._link.move(f"{self._consumer.name()} has not answered for {BIND_TIMEOUT:g} s")
        elif answer.code > 0 and answer.code != questions.NOT_FOUND:
            why = explain(answer.code, answer.text)
            LOG.warning("%s: whether its queue is bound cannot be known: %s", self.address, why)

    def cancel(self) -> bool:
        """Ask for no more deliveries. False: there is nobody to ask, and none will come."""
        if self._epoch is None or not self._link.up:
            return False
        self._link.write(frames.basic_cancel(self._epoch.number, "0"))
        return True

    def on_cancelled(self) -> None:
        self._consumer.on_cancelled(self)

    def close(self) -> None:
        """Delete what is this process's own, and close the channel: RabbitMQ takes back what was not settled."""
        if not self._link.up or (self._epoch is None and not self.queue.own):
            self.closed(self._epoch)
            return
        if self._epoch is None:
            self._epoch = _Epoch(self, self._link)
            self._epoch.open(frames.channel_open)
        number = self._epoch.number
        deletion = frames.queue_delete(number, self.queue.name) if self.queue.own else b""
        self._epoch.end(deletion + frames.channel_close(number))

    def closed(self, epoch: _Epoch | None) -> None:
        """A channel, or its connection, is gone."""
        if epoch is not self._epoch:
            return  # There is a younger one by now.
        self.consuming = False
        self.waits_since = None
        self._epoch = None
        if self._consumer.is_ending:
            self._consumer.on_cancelled(self)
            finish(self.gone, None)
            self._consumer.on_closed()


class Consumer:
    """A subscription or an inbox over all its connections.

    Attributes:
        addresses: what it consumes from.
        ready: see the contract.
        gone: done when it is closed.
        prefetch: of the subscription; 0 for an inbox: what was handed over is accepted.
        auto_accept: it is an inbox.
        name: names the message system.
    """

    def __init__(
        self,
        link: Link,
        topology: Topology,
        name: Callable[[], str],
        addresses: Sequence[Address],
        on_delivery: OnDelivery,
        prefetch: int,
        unique: str,
        on_ready: Callable[[], None],
    ) -> None:
        """Make one; `start` begins to consume.

        Raises:
            InvalidTarget: an address has no name in RabbitMQ.
        """
        self.addresses = tuple(addresses)
        self.on_delivery = on_delivery
        self.prefetch = prefetch
        self.auto_accept = prefetch == 0
        self.name = name
        self.ready: Future[None] = Future()
        self.gone: Future[None] = Future()
        self._stopped: Future[None] | None = None
        self._link = link
        self._on_ready = on_ready
        self._uncancelled: set[_Source] | None = None
        self._bound_at = time.monotonic()
        self._sources = [_Source(self, link, at, topology.queue(at, unique)) for at in self.addresses]

    # On the loop's thread

    @property
    def is_consuming(self) -> bool:
        """Whether all addresses are consumed from at present."""
        return all(source.consuming for source in self._sources)

    @property
    def is_ending(self) -> bool:
        """Whether it was stopped or closed."""
        return self._stopped is not None or self.gone.done()

    @property
    def trouble(self) -> str | None:
        """Why one of its addresses is not consumed from, or None."""
        return next((source.trouble for source in self._sources if source.trouble is not None), None)

    @property
    def waits_since(self) -> float | None:
        """When the oldest declaration of a queue of several nodes was sent that is not answered yet, or None."""
        return min((s.waits_since for s in self._sources if s.waits_since and s.queue.is_quorum), default=None)

    def start(self) -> None:
        """The connection is open: declare and consume."""
        self._bound_at = time.monotonic()
        for source in self._sources:
            source.start()

    def on_tick(self, now: float) -> None:
        """Another second has passed."""
        if now - self._bound_at >= BIND_INTERVAL and not self.is_ending:
            self._bound_at = now
            for source in self._sources:
                source.bind_again()

    def on_consuming(self) -> None:
        """One of the addresses is being consumed from."""
        if self.is_consuming:
            finish(self.ready, None)
            self._on_ready()

    def stop(self) -> None:
        """Begin to cancel; the future of `stopping` is done at the end."""
        assert self._stopped is not None
        self._uncancelled = {source for source in self._sources if source.cancel()}
        if not self._uncancelled:
            finish(self._stopped, None)

    def on_cancelled(self, source: _Source) -> None:
        """RabbitMQ delivers no more from one of the addresses."""
        if self._uncancelled is not None and self._stopped is not None:
            self._uncancelled.discard(source)
            if not self._uncancelled:
                finish(self._stopped, None)

    def close(self) -> bool:
        """Delete what is this process's own, and close the channels: RabbitMQ takes back what was not settled.

        Returns:
            False where the connection is away for the moment: then it is to be called again when that is back.
        """
        if not self._link.up and self._link.generation and any(source.queue.own for source in self._sources):
            return False
        for source in self._sources:
            source.close()
        return True

    def on_closed(self) -> None:
        """One of the addresses is closed."""
        if self._stopped is not None and all(source.gone.done() for source in self._sources):
            finish(self._stopped, None)
            finish(self.gone, None)

    # Any thread

    def refuse(self, error: MessagingException) -> None:
        """The driver is closed: nothing will ever come."""
        fail(self.ready, error)
        finish(self.gone, None)

    def hopeless(self, error: MessagingException) -> None:
        """There will be no connection, or RabbitMQ refuses for good: nobody has to wait."""
        fail(self.ready, error)

    def stopping(self) -> tuple[Future[None], bool]:
        """The future of `stop`, and whether this is the first time that it is asked for."""
        first = self._stopped is None
        if self._stopped is None:
            self._stopped = Future()
        return self._stopped, first
