"""What a driver consumes from: subscriptions and inboxes, over all their connections.

A driver subclasses `Feed`, which calls its `Source`. The rest is for `msgbus.drivers.toolkit.broker`.
"""

from __future__ import annotations

import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import Enum, auto
from functools import partial
from typing import Any, Protocol

from msgbus.drivers.base import Address, Delivery, Message, OnDelivery
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import MessagingException, TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

RETRY_FIRST, RETRY_MAX = 0.1, 5.0
"""Seconds until an address that was refused or lost is consumed from again: at first, and at most."""


class Outcome(Enum):
    """How a delivery is settled."""

    ACCEPT = auto()
    """It is acknowledged."""
    REQUEUE = auto()
    """It goes to another consumer, at once, and is marked as redelivered there."""
    DROP = auto()
    """It is discarded."""


class Incoming(Delivery):
    """A delivery. It keeps the feed that it came by, since there is another feed after a reconnect."""

    __slots__ = ("_counts", "_feed", "_tag")

    def __init__(
        self, feed: Feed, tag: Any, message: Message, redelivered: bool, attempts: int | None, address: Address
    ) -> None:
        # As `Delivery.__init__` does, without calling it: this is done for each message.
        self.address = address
        self.message = message
        self.redelivered = redelivered
        self.attempts = attempts
        self.arrived = Loop.now()
        self._feed = feed
        self._tag = tag
        self._counts: bool | None = None  # What the first call has returned.

    def accept(self) -> bool:
        if self._counts is None:
            self._counts = self._feed.settle(self._tag, Outcome.ACCEPT)
        return self._counts

    def reject(self, requeue: bool) -> None:
        if self._counts is None:
            self._counts = self._feed.settle(self._tag, Outcome.REQUEUE if requeue else Outcome.DROP)


class Feed(ABC):
    """One address of a subscription or inbox, over one connection. A driver subclasses it.

    `Session.consume` makes one whenever there is a connection, and again when the address was lost or refused. Its
    life:

    1. `start`. It declares what the address needs, asks for deliveries, and calls `Source.active` when the broker has
       confirmed that; or `Source.refused`, where the broker refuses.
    2. For each message it calls `Source.deliver`; for each of these at the most, somebody calls `settle`.
    3. `cancel`, in most cases, and it answers with `Source.cancelled`: no further message follows.
    4. `close`, and it answers with `Source.closed`. Or `end`, without an answer: the connection is lost.

    At any time it may call `Source.lost`: the broker delivers no more to this address, though the connection lives.
    That ends the feed, as does `Source.refused`: only `settle` is still called, and has to return False.

    All methods are called on the loop's thread, except `settle` and `trouble`; and a feed has to call its source there.
    """

    @abstractmethod
    def start(self) -> None:
        """Begin to declare and to consume. Called once, after `Source.feed` was set to this.

        Raises:
            MessagingException: it cannot; it is tried again in a moment, with a feed of its own.
        """

    @abstractmethod
    def settle(self, tag: Any, outcome: Outcome) -> bool:
        """Settle a delivery at the broker. Any thread; it must not block.

        Two threads may call it for the same delivery. The first one counts: decide that in one step, such as
        ``dict.pop(tag, None)``.

        Args:
            tag: what `Source.deliver` was given.
            outcome: how it is settled.

        Returns:
            whether it counts. False if the connection is known to be lost, or the feed has ended, so that the broker
            delivers it again.

        Raises:
            CapabilityMissing: ``Outcome.REQUEUE``, of a driver that does not declare `Capability.REQUEUE`.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Ask for no more deliveries; what was delivered can still be settled. `Source.cancelled` is the answer."""

    @abstractmethod
    def close(self) -> None:
        """Give back unsettled deliveries, remove private queues, and end. `Source.closed` is the answer.

        Private are the queues of an inbox and of a fanout. A feed that has not consumed yet still has to answer.
        """

    @abstractmethod
    def end(self) -> None:
        """The connection is lost, or is being closed: from now on `settle` returns False. No answer is expected."""

    def trouble(self) -> str | None:
        """Why it does not consume yet, if that takes too long, or None: for `Driver.state`. Any thread."""
        return None


class FeedMaker(Protocol):
    """A connection that can be consumed from."""

    def consume(self, source: Source) -> Feed:
        """Make the feed of a source; it begins when `Feed.start` is called."""

    def remove(self, source: Source, removed: Callable[[], None]) -> None:
        """Remove what a source that was closed has left on the broker; then call `removed`."""


class Source:
    """One address of a subscription or inbox, over all connections: a `Feed` reads and calls it.

    Calls of a feed that has been replaced are ignored. All methods are called on the loop's thread.

    Attributes:
        address: the address, as it was subscribed to.
        on_delivery: takes its deliveries; a feed calls `deliver`.
        prefetch: how many deliveries may be unsettled at a time, 1 or more; 0 for an inbox, whose deliveries count as
            accepted at once: its feed acknowledges them to the broker, and `Feed.settle` is not needed.
        unique: 16 hexadecimal digits that identify the subscription over all connections, for the name of a fanout's
            queue, which belongs to this subscription alone.
        consuming: it is consumed from at present.
        feed: of the present connection, or None.
        waits_since: since when the feed has not called `active`, in seconds of `Loop.now`; else None.
        notes: for the driver's use, for example how far it has read; kept over reconnects.
    """

    def __init__(self, consumer: Consumer, loop: Loop, address: Address) -> None:
        self.address = address
        self.on_delivery = consumer.on_delivery
        self.prefetch = consumer.prefetch
        self.unique = consumer.unique
        self.consuming = False
        self.waits_since: float | None = None
        self.notes: Any = None
        self.feed: Feed | None = None
        self._trouble: str | None = None
        self._consumer = consumer
        self._loop = loop
        self._is_left = False  # A feed of it has made what stays on the broker until somebody removes it.
        self._delay = RETRY_FIRST

    @property
    def trouble(self) -> str | None:
        """Why it is not consumed from although the connection lives, or None. Any thread."""
        feed = self.feed
        return self._trouble if self._trouble is not None or feed is None else feed.trouble()

    @property
    def is_gone(self) -> bool:
        """Whether there is nothing to end, neither here nor on the broker."""
        return self.feed is None and not self._is_left

    def _is_current(self, feed: Feed) -> bool:
        """Whether to listen to a feed: not where it was replaced, nor while its connection is being dropped."""
        return feed is self.feed and self._consumer.owner.up_session is not None

    # What the driver calls

    def deliver(
        self, feed: Feed, tag: Any, message: Message, redelivered: bool = False, attempts: int | None = None
    ) -> None:
        """Deliver a message to the subscriber.

        Args:
            feed: by which it comes.
            tag: passed to `Feed.settle` later: anything that identifies the delivery to the feed.
            message: as it was sent: body, content type and id. `ttl` is what is left, or None if that is not known.
            redelivered: it may have been delivered before, to any subscriber.
            attempts: how often it was delivered before; None without `Capability.ATTEMPT_COUNT`.
        """
        try:
            self.on_delivery(Incoming(feed, tag, message, redelivered, attempts, self.address))
        except Exception:
            # An error over one message must not cost the connection, and everything else on it.
            LOG.exception("a message to %s could not be delivered", self.address)

    def active(self, feed: Feed) -> None:
        """Messages to the address are kept or delivered from now on. This makes `ready` done."""
        if not self._is_current(feed):
            return
        if self._trouble is not None:
            LOG.warning("%s is consumed from again", self.address)
        self.consuming = True
        self.waits_since = self._trouble = None
        self._delay = RETRY_FIRST
        self._consumer.on_active(self)

    def refused(self, feed: Feed, why: str, *, permanent: bool = True) -> None:
        """The broker refuses the address.

        Args:
            feed: the feed, which ends with this.
            why: what was refused, by which broker, and what to check: it becomes the text of an error.
            permanent: it would be refused again until somebody changes the broker. Then `ready` fails with
                `TransportUnavailable`, and it is not tried again, unless the address was consumed from before.
                Otherwise it is tried again with growing pauses.
        """
        if not self._is_current(feed):
            return
        if permanent and not self._consumer.was_ready:
            self._consumer.fail_ready(TransportUnavailable(why))
            self._drop()
            self._remove_if_closed()
        else:
            self._lose(why)

    def lost(self, feed: Feed, why: str) -> None:
        """It is not consumed from any more, though the connection lives: it is tried again in a moment.

        Args:
            feed: the feed, which ends with this.
            why: for the log and for `Driver.state`.
        """
        if self._is_current(feed):
            self._lose(why)

    def _lose(self, why: str) -> None:
        self._drop()
        if self._consumer.is_ending:
            self._remove_if_closed()
            return
        level = logging.DEBUG if self._trouble == why else logging.ERROR
        LOG.log(level, "%s: %s; next try in %g s", self.address, why, self._delay)
        self._trouble = why
        self._loop.call_later(self._delay, self._try_again)
        self._delay = min(2 * self._delay, RETRY_MAX)

    def cancelled(self, feed: Feed) -> None:
        """No more deliveries will come by this feed: the answer to `Feed.cancel`."""
        if self._is_current(feed):
            self._consumer.on_cancelled(self)

    def closed(self, feed: Feed) -> None:
        """The feed has ended, and what was its own is removed: the answer to `Feed.close`."""
        if self._is_current(feed):
            self._is_left = False
            self._drop()

    # What the consumer calls

    def connected(self) -> None:
        """There is a connection: consume from it; or remove what has stayed on the broker, if it was closed."""
        self._remove_if_closed()
        self._try_again()

    def disconnected(self) -> None:
        """The connection is lost."""
        try:
            if self.feed is not None:
                self.feed.end()
        except Exception:  # An error with one address must not stop the others from coming back.
            LOG.exception("%s could not be ended", self.address)
        self._drop()

    def _try_again(self) -> None:
        maker = self._consumer.owner.up_session
        if maker is None or self.feed is not None or self._consumer.is_ending:
            return
        self.consuming = False
        self.waits_since = Loop.now()
        try:
            self.feed = feed = maker.consume(self)
            self._is_left = self._consumer.owner.leaves(self.address)
            feed.start()
        except MessagingException as exc:
            self._lose(str(exc))
        except Exception as exc:  # An error with one address must not stop the others from coming back.
            LOG.exception("%s cannot be consumed from", self.address)
            self._lose(f"it cannot be consumed from: {exc!r}")

    def cancel(self) -> bool:
        """Ask for no more deliveries. False: none will come anyway."""
        if self.feed is None:
            return False
        self.feed.cancel()
        return True

    def close(self) -> None:
        """End, and leave nothing on the broker."""
        if self.feed is not None:
            self.feed.close()
        else:
            self._remove_if_closed()

    def _remove_if_closed(self) -> None:
        """Have what is left on the broker removed. Where there is no connection the next one is used."""
        maker = self._consumer.owner.up_session
        if self._consumer.is_closing and self._is_left and maker is not None:
            maker.remove(self, partial(self._on_removed, maker))

    def _on_removed(self, maker: FeedMaker) -> None:
        if maker is self._consumer.owner.up_session:
            self._is_left = False
            self._drop()

    def _drop(self) -> None:
        self.feed = None
        self.consuming = False
        self.waits_since = None
        self._consumer.on_dropped(self)


class Consumer:
    """A subscription or an inbox over all its connections.

    Attributes:
        owner: over whose connections it consumes.
        addresses: what it consumes from.
        on_delivery: takes the deliveries.
        prefetch: of each address; 0 for an inbox.
        unique: identifies what belongs to this consumer alone.
        is_closing: whether it was closed.
        ready: see the contract.
        stopped: done when no further delivery will come, after `stop` or `close`.
        closed: done when it is closed.
    """

    def __init__(
        self,
        loop: Loop,
        owner: ConsumerOwner,
        addresses: Sequence[Address],
        on_delivery: OnDelivery,
        prefetch: int,
    ) -> None:
        self.owner = owner
        self.addresses = tuple(addresses)
        self.on_delivery = on_delivery
        self.prefetch = prefetch
        self.unique = uuid.uuid4().hex[:16]
        self.ready: Future[None] = Future()
        self.stopped: Future[None] = Future()
        self.closed: Future[None] = Future()
        self.sources = [Source(self, loop, address) for address in self.addresses]
        self.is_closing = False
        self._stopping = False
        self._uncancelled: set[Source] = set()

    @property
    def is_consuming(self) -> bool:
        """Whether all addresses are consumed from at present."""
        return all(source.consuming for source in self.sources)

    @property
    def is_ending(self) -> bool:
        """Whether it was stopped or closed."""
        return self._stopping or self.closed.done()

    @property
    def was_ready(self) -> bool:
        """Whether all addresses have been consumed from."""
        return self.ready.done() and self.ready.exception() is None

    @property
    def is_refused(self) -> bool:
        """Whether the message system has refused it permanently."""
        return self.ready.done() and self.ready.exception() is not None

    @property
    def trouble(self) -> str | None:
        """Why one of its addresses is not consumed from, or None."""
        if self.is_ending:
            return None
        return next((source.trouble for source in self.sources if source.trouble is not None), None)

    # Any thread

    def refuse(self, error: MessagingException) -> None:
        """The driver is closed: nothing will ever be delivered."""
        fail(self.ready, error)
        finish(self.stopped)
        finish(self.closed)

    # On the loop's thread

    def fail_ready(self, error: MessagingException) -> None:
        """It will never be ready."""
        fail(self.ready, error)
        self.owner.on_consumer_changed()

    def connected(self) -> None:
        """There is a connection."""
        for source in self.sources:
            source.connected()

    def disconnected(self) -> None:
        """The connection is lost."""
        for source in self.sources:
            source.disconnected()

    def stop(self) -> None:
        """Take no more deliveries; `stopped` is done at the end."""
        if self._stopping:
            return
        self._stopping = True
        self._uncancelled = set(self.sources)
        for source in self.sources:
            if not source.cancel():
                self._uncancelled.discard(source)
        self._check_ended()

    def close(self) -> None:
        """Stop, give back unsettled deliveries, and remove private queues; then `closed` is done."""
        self.stop()
        if self.is_closing:
            return
        self.is_closing = True
        for source in self.sources:
            source.close()
        self._check_ended()

    def on_active(self, source: Source) -> None:
        """One of the addresses is consumed from."""
        if self._stopping:
            if not source.cancel():
                self.on_cancelled(source)
        elif self.is_consuming:
            finish(self.ready)
            self.owner.on_consumer_changed()

    def on_cancelled(self, source: Source) -> None:
        """One of the addresses delivers no more."""
        self._uncancelled.discard(source)
        self._check_ended()

    def on_dropped(self, source: Source) -> None:
        """One of the addresses is not consumed from any more."""
        self._uncancelled.discard(source)
        self._check_ended()

    def _check_ended(self) -> None:
        if self._stopping and not self._uncancelled:
            finish(self.stopped)
        if self.is_closing and all(source.is_gone for source in self.sources):
            finish(self.stopped)
            finish(self.closed)
            self.owner.on_closed(self)


class ConsumerOwner(Protocol):
    """The line over whose connections a consumer consumes. On the loop's thread."""

    @property
    def up_session(self) -> FeedMaker | None:
        """The connection, if it can be consumed from."""

    def leaves(self, address: Address) -> bool:
        """Whether a feed of this address leaves something on the broker when the connection breaks."""

    def on_consumer_changed(self) -> None:
        """A consumer has begun to consume, or never will: waiting messages may be sent now."""

    def on_closed(self, consumer: Consumer) -> None:
        """A consumer is closed, and nothing is left of it."""
