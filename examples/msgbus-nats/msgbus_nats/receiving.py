"""Subscriptions and inboxes: what comes from NATS."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Final, Protocol

import nats.aio.subscription
import nats.errors
from nats.aio.msg import Msg

from msgbus.drivers.base import Address, Delivery, Inbox, OnDelivery, Subscription
from msgbus.exceptions import CallCancelled, MessagingException
from msgbus.foreign import get_logger
from msgbus_nats.connection import FANOUT_KEPT, NOBODY, Connection, status_of
from msgbus_nats.errors import is_refusal, mapped, reason_of
from msgbus_nats.names import consumer_of, message_of, roll_call_of, subject_of

LOG = get_logger(__name__)

PULL_SECONDS: Final = 0.5
"""Seconds that one pull request lasts. A subscription that stops waits for the last one, so that nothing which is on
its way to it gets lost, and comes again elsewhere as redelivered."""
_RETRY_SECONDS: Final = 0.5
ACCEPTED, RETURNED, DROPPED, IN_PROGRESS = b"+ACK", b"-NAK", b"+TERM", b"+WPI"


class Owner(Protocol):
    """What a subscription needs of its driver."""

    ack_wait: float
    where: str

    def on_loop(self, func: Callable[..., object], *args: Any) -> bool:
        """Call a function on the loop's thread, from any. False: the driver is closed, and there is none."""

    def spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Run a coroutine, on the loop's thread."""

    def new_future(self) -> Future[Any]:
        """A future that a forked child fails."""

    def forget(self, opened: NatsSubscription | NatsInbox) -> None:
        """It is closed."""


class _Taken(Delivery):
    """A message that a JetStream consumer has handed over."""

    __slots__ = ("_feed", "reply")

    def __init__(self, feed: _Feed, msg: Msg) -> None:
        told = msg.metadata
        age = feed.connection.clock.age(told.timestamp.timestamp())
        before = told.num_delivered - 1
        super().__init__(feed.address, message_of(msg.data, msg.headers, age), before > 0, before)
        self._feed = feed
        self.reply = msg.reply

    def accept(self) -> bool:
        return self._feed.settle(self, ACCEPTED)

    def reject(self, requeue: bool) -> None:
        self._feed.settle(self, RETURNED if requeue else DROPPED)


class _Received(Delivery):
    """A message that came to an inbox: there is nothing left to accept."""

    __slots__ = ()

    def accept(self) -> bool:
        return True

    def reject(self, requeue: bool) -> None:
        pass


def hand_over(on_delivery: OnDelivery, delivery: Delivery) -> None:
    """Call the core, whose faults must not end our own work."""
    try:
        on_delivery(delivery)
    except Exception:
        LOG.exception("on_delivery failed for a message to %s", delivery.address)


class _Feed:
    """One address of a subscription, on one connection. All but `settle` runs on the loop's thread.

    It has one pull request under way at a time, for as much as there is room: so JetStream, which serves waiting
    requests in turn, gives idle subscribers equal shares.
    """

    def __init__(
        self,
        owner: Owner,
        connection: Connection,
        address: Address,
        consumer: str,
        on_delivery: OnDelivery,
        prefetch: int,
    ) -> None:
        self.address = address
        self.consumer = consumer
        self.connection = connection
        self._owner = owner
        self._on_delivery = on_delivery
        self._prefetch = prefetch
        self._open: dict[_Taken, None] = {}
        self._inbox = f"_INBOX.{uuid.uuid4().hex}"
        self._requested = 0
        self._request = 0
        self._guard: asyncio.TimerHandle | None = None
        self._stopping = False
        self._drained = asyncio.Event()
        self._subscriptions: list[nats.aio.subscription.Subscription] = []

    async def start(self) -> None:
        """Declare, and consume. Raises errors of nats-py."""
        await self._declare()
        self._subscriptions = [await self.connection.subscribe(f"{self._inbox}.*", self._on_message)]
        if self.address.kind != "fanout":
            self._subscriptions.append(await self.connection.subscribe(roll_call_of(self.address), self._on_roll_call))
        await self._pull()

    async def _declare(self) -> None:
        await self.connection.declare(self.address, self._owner.ack_wait)
        if self.address.kind == "fanout":
            seconds = {"ack_wait": self._owner.ack_wait, "inactive_threshold": FANOUT_KEPT}
            await self.connection.add_consumer(self.address, self.consumer, seconds)

    async def stop(self) -> None:
        """Return when nothing more will come."""
        self._stopping = True
        if self._requested:
            await self._drained.wait()

    async def close(self) -> None:
        """Give back what is open. Raises errors of nats-py."""
        self._stopping = True
        for subscription in self._subscriptions:
            await self.connection.unsubscribe(subscription)
        await self.give_back([delivery.reply for delivery in self.take_open()])
        if self.address.kind == "fanout":
            await self.connection.delete_consumer(self.address, self.consumer)
        self.end()

    async def give_back(self, replies: list[str]) -> None:
        """Have deliveries of this address come again, whatever connection they came by. Raises errors of nats-py."""
        await self.connection.give_back(self.address, self.consumer, replies)

    def end(self) -> None:
        """The connection is gone."""
        if self._guard is not None:
            self._guard.cancel()
        self._requested = 0
        self._stopping = True
        self._drained.set()

    def take_open(self) -> list[_Taken]:
        """What was handed over and is not settled; from now on it cannot be."""
        taken = []
        for delivery in list(self._open):
            if self._open.pop(delivery, self) is None:
                taken.append(delivery)
        return taken

    def settle(self, delivery: _Taken, word: bytes) -> bool:
        """Say what became of a delivery. From any thread; False where its connection is gone or it was said before."""
        if self._open.pop(delivery, self) is not None:
            return False
        return self._owner.on_loop(self._settled, delivery, word)

    def _settled(self, delivery: _Taken, word: bytes) -> None:
        async def say() -> None:
            if word is RETURNED:
                await self.give_back([delivery.reply])
            else:
                await self.connection.publish(delivery.reply, word)
            await self._pull()

        self._owner.spawn(say())

    async def keep_alive(self) -> None:
        """Have JetStream go on waiting for what is open."""
        since = time.monotonic() - self._owner.ack_wait / 4
        for delivery in list(self._open):
            if delivery.arrived < since:
                await self.connection.publish(delivery.reply, IN_PROGRESS)

    async def _pull(self) -> None:
        room = self._prefetch - len(self._open)
        if self._requested or self._stopping or room <= 0 or self.connection.lost.done():
            return
        self._requested = room
        self._request += 1
        # Should the server forget it, another one follows.
        later = asyncio.get_running_loop().call_later
        self._guard = later(PULL_SECONDS + 5, self._on_end, self._request)
        await self.connection.pull(self.address, self.consumer, room, PULL_SECONDS, f"{self._inbox}.{self._request}")

    async def _on_roll_call(self, msg: Msg) -> None:
        await self.connection.publish(msg.reply, b"")

    async def _on_message(self, msg: Msg) -> None:
        status = status_of(msg)
        if status is None:
            delivery = _Taken(self, msg)
            self._open[delivery] = None
            hand_over(self._on_delivery, delivery)
            self._requested -= 1
            if self._requested <= 0:
                self._on_end(self._request)
            return
        request = int(msg.subject.rpartition(".")[2])  # what is no message comes by the subject of the request
        if status == NOBODY or (status == "409" and "Deleted" in str(msg.headers)):
            LOG.warning("%s was deleted on %s: it is declared again", self.address, self._owner.where)
            self._on_end(request, again=True)
        elif status != "100":
            self._on_end(request)

    def _on_end(self, request: int, *, again: bool = False) -> None:
        """A pull request has ended."""
        if request != self._request:
            return
        if self._guard is not None:
            self._guard.cancel()
        self._requested = 0
        if self._stopping:
            self._drained.set()
        elif again:
            self._requested = 1  # until it is declared
            self._owner.spawn(self._declare_again())
        else:
            self._owner.spawn(self._pull())

    async def _declare_again(self) -> None:
        while not self._stopping and not self.connection.lost.done():
            self.connection.declare_anew(self.address)
            try:
                await self._declare()
                break
            except (OSError, nats.errors.Error) as exc:
                LOG.warning("%s cannot be declared on %s: %s", self.address, self._owner.where, reason_of(exc))
            await asyncio.sleep(_RETRY_SECONDS)
        self._on_end(self._request)


class NatsSubscription(Subscription):
    """See the contract."""

    def __init__(self, owner: Owner, addresses: Sequence[Address], on_delivery: OnDelivery, prefetch: int) -> None:
        self.ready = owner.new_future()
        self._owner = owner
        # A fanout's consumer belongs to this subscription alone, and is found again after a reconnect.
        self._consumers = {
            address: uuid.uuid4().hex if address.kind == "fanout" else consumer_of(address) for address in addresses
        }
        self._on_delivery = on_delivery
        self._prefetch = prefetch
        self._feeds: list[_Feed] = []
        self._to_return: dict[Address, list[str]] = {}
        self._stopped = False
        self._busy = asyncio.Lock()
        self._closing: Future[None] | None = None

    # From any thread

    def stop(self) -> Future[None]:
        self._stopped = True
        return self._run(self._stop)

    def close(self) -> Future[None]:
        if self._closing is None:
            self._stopped = True
            self._closing = self._run(self._close)
        return self._closing

    def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Future[None]:
        done: Future[None] = self._owner.new_future()

        async def run() -> None:
            try:
                async with self._busy:
                    await work()
            except (OSError, nats.errors.Error) as exc:
                LOG.debug("a subscription's end was not told to %s: %s", self._owner.where, exc)
            finish(done)

        if not self._owner.on_loop(lambda: self._owner.spawn(run())):
            finish(done)
        return done

    # On the loop's thread

    async def attach(self, connection: Connection) -> None:
        """Consume over a new connection."""
        try:
            while not self._stopped and not connection.lost.done():
                try:
                    async with self._busy:
                        await self._attach(connection)
                    return
                except (OSError, nats.errors.Error) as exc:
                    error = exc
                    LOG.warning("cannot subscribe on %s: %s", self._owner.where, reason_of(exc))
                if is_refusal(error) and not self.ready.done():
                    fail(self.ready, mapped(error, f"cannot subscribe on {self._owner.where}"))
                    return
                await asyncio.sleep(_RETRY_SECONDS)
        except asyncio.CancelledError:
            pass

    async def _attach(self, connection: Connection) -> None:
        if self._stopped:
            return
        self.detach()
        self._feeds = [
            _Feed(self._owner, connection, address, consumer, self._on_delivery, self._prefetch)
            for address, consumer in self._consumers.items()
        ]
        for feed in self._feeds:
            await feed.start()
            # Handed over on a connection that is gone, and so no more to be accepted. JetStream would wait for it.
            await feed.give_back(self._to_return.get(feed.address, []))
            self._to_return.pop(feed.address, None)
        await connection.flush()
        finish(self.ready)

    def detach(self) -> None:
        """The connection is gone."""
        for feed in self._feeds:
            feed.end()
            self._to_return.setdefault(feed.address, []).extend(delivery.reply for delivery in feed.take_open())
        self._feeds = []

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        for feed in self._feeds:
            feed.take_open()
        self._feeds, self._to_return = [], {}
        self._stopped, self._busy = True, asyncio.Lock()

    async def keep_alive(self) -> None:
        """Say that what was handed over is being worked on."""
        for feed in self._feeds:
            await feed.keep_alive()

    async def _stop(self) -> None:
        await asyncio.gather(*(feed.stop() for feed in self._feeds))

    async def _close(self) -> None:
        fail(self.ready, CallCancelled(f"the subscription on {self._owner.where} was closed"))
        self._owner.forget(self)
        feeds, self._feeds = self._feeds, []
        for feed in feeds:
            await feed.close()
        for connection in {feed.connection for feed in feeds}:
            await connection.flush()


class NatsInbox(Inbox):
    """See the contract. It is a subject of core NATS; whoever gets a message there sends the receipt."""

    def __init__(self, owner: Owner, on_delivery: OnDelivery) -> None:
        self.address = Address("inbox", name=uuid.uuid4().hex)
        self.ready = owner.new_future()
        self._owner = owner
        self._on_delivery = on_delivery
        self._connection: Connection | None = None
        self._subscription: nats.aio.subscription.Subscription | None = None
        self._closed = False
        self._closing: Future[None] | None = None

    def close(self) -> Future[None]:
        if self._closing is None:
            self._closing = self._owner.new_future()
            if not self._owner.on_loop(lambda: self._owner.spawn(self._close())):
                finish(self._closing)
        return self._closing

    async def attach(self, connection: Connection) -> None:
        """Listen over a new connection."""
        if self._closed:
            return
        try:
            self._connection = connection
            self._subscription = await connection.subscribe(subject_of(self.address), self._on_message)
            await connection.flush()
            finish(self.ready)
        except (OSError, nats.errors.Error) as exc:
            LOG.warning("no inbox on %s: %s", self._owner.where, reason_of(exc))

    def detach(self) -> None:
        """The connection is gone."""
        self._connection = self._subscription = None

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        self._closed = True
        self.detach()

    async def keep_alive(self) -> None:
        """Nothing: what came counts as accepted."""

    async def _on_message(self, msg: Msg) -> None:
        hand_over(self._on_delivery, _Received(self.address, message_of(msg.data, msg.headers, None), False, 0))
        if msg.reply and self._connection is not None:
            await self._connection.publish(msg.reply, b"")

    async def _close(self) -> None:
        self._closed = True
        fail(self.ready, CallCancelled(f"the inbox on {self._owner.where} was closed"))
        self._owner.forget(self)
        try:
            if self._subscription is not None and self._connection is not None:
                await self._connection.unsubscribe(self._subscription)
                await self._connection.flush()
        except (OSError, nats.errors.Error) as exc:
            LOG.debug("an inbox's end was not told to %s: %s", self._owner.where, exc)
        assert self._closing is not None
        finish(self._closing)


def finish(future: Future[Any], value: Any = None) -> None:
    """Finish a future, unless it is done; on the loop's thread only, so that nobody comes between."""
    if not future.done():
        future.set_result(value)


def fail(future: Future[Any], error: MessagingException) -> None:
    """Fail a future, unless it is done."""
    if not future.done():
        future.set_exception(error)
