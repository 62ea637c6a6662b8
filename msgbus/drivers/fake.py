"""The driver ``fake``: a message system inside one process, for tests.

It keeps every promise of the contract that needs no second process, and tests can make it misbehave through `get_bus`:

>>> bus = get_bus("fake://somewhere/")
>>> bus.fail_next(TransportBlocked("full"))    # the next send fails
>>> bus.lose_next()                            # the next message is taken and never delivered
>>> bus.delay = 0.5                            # deliver half a second late
>>> bus.cut()                                  # break all connections; they come back at once
>>> bus.stop(); bus.start()                    # the message system is away in between
>>> bus.pause(); bus.resume()                  # it hangs in between: what is sent has no answer

Transports of one process whose URLs are equal up to the question mark share a bus; others share nothing. What a bus
stores is gone when the last of its transports is closed: a later one finds it empty.
"""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import TYPE_CHECKING, Any

from oslo_config import cfg

from msgbus.drivers.base import (
    Address,
    Capability,
    Delivery,
    Depth,
    Driver,
    Inbox,
    Message,
    OnDelivery,
    Sent,
    Subscription,
)
from msgbus.exceptions import CallCancelled, MessageTooLarge, MessageUndeliverable, TransportUnavailable
from msgbus.forking import call_in_child
from msgbus.options import read_driver_options
from msgbus.timer import Timer

if TYPE_CHECKING:
    from msgbus.url import TransportURL

_forever = float("inf")


class _Buses:
    """The buses of this process. Thread-safe."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[str, Bus] = weakref.WeakValueDictionary()
        self.renew_lock()
        call_in_child(self.renew_lock)

    def renew_lock(self) -> None:
        """In a forked child: a thread of the parent's may hold it."""
        self._lock = threading.Lock()

    def get(self, key: str) -> Bus:
        with self._lock:
            bus = self._known.get(key)
            if bus is None:
                bus = self._known[key] = Bus()
            return bus


_buses = _Buses()


def get_bus(url: str | TransportURL) -> Bus:
    """The bus of a fake URL, as long as a transport or the caller holds it."""
    return _buses.get(str(url).partition("?")[0].rstrip("/"))


class _Item:
    """A message in a queue."""

    __slots__ = ("attempts", "expires", "message", "redelivered")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.expires = _forever if message.ttl is None else time.monotonic() + message.ttl
        self.redelivered = False
        self.attempts = 0


class _Queue:
    __slots__ = ("consumers", "items", "turn")

    def __init__(self) -> None:
        self.items: deque[_Item] = deque()
        self.consumers: list[_Consumer] = []
        self.turn = 0

    def next_consumer(self) -> _Consumer | None:
        """Whose turn it is, among those that have room."""
        for step in range(len(self.consumers)):
            at = (self.turn + step) % len(self.consumers)
            consumer = self.consumers[at]
            if len(consumer.unsettled) < consumer.prefetch:
                self.turn = at + 1
                return consumer
        return None


class _Consumer:
    """One address of a subscription or inbox, and the name of its queue."""

    __slots__ = ("address", "at", "auto_accept", "prefetch", "queue", "reader", "unsettled")

    def __init__(
        self, address: Address, at: Address, queue: _Queue, reader: _Reader, prefetch: float, auto_accept: bool
    ) -> None:
        self.address = address
        self.at = at
        self.queue = queue
        self.reader = reader
        self.prefetch = prefetch
        self.auto_accept = auto_accept
        self.unsettled: dict[_FakeDelivery, _Item] = {}


class _Reader:
    """Calls `on_delivery` for one subscription or inbox. The thread that calls it also delivers what others `put`."""

    __slots__ = ("_calling", "_on_delivery", "_waiting")

    def __init__(self, on_delivery: OnDelivery) -> None:
        self._on_delivery = on_delivery
        self._waiting: deque[Callable[[], None]] = deque()
        self._calling = threading.Lock()

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery for the next `call`."""
        self._waiting.append(partial(self._on_delivery, delivery))

    def call(self) -> None:
        """Deliver what is queued, unless another thread does."""
        while self._waiting and self._calling.acquire(blocking=False):
            try:
                while self._waiting:
                    self._waiting.popleft()()
            finally:
                self._calling.release()

    def end(self) -> Future[None]:
        """A future that is done when everything that was `put` before has been delivered."""
        ended: Future[None] = Future()
        self._waiting.append(partial(ended.set_result, None))
        self.call()
        return ended


class _FakeDelivery(Delivery):
    __slots__ = ("_bus", "_consumer")

    def __init__(self, bus: Bus, consumer: _Consumer, item: _Item) -> None:
        message = item.message
        if message.ttl is not None or message.wait is not None:
            left = None if message.ttl is None else item.expires - time.monotonic()
            message = Message(message.body, message.content_type, message.id, left, message.durable)
        super().__init__(consumer.address, message, item.redelivered, item.attempts)
        self._bus = bus
        self._consumer = consumer

    def accept(self) -> bool:
        return self._bus._settle(self._consumer, self) is not None

    def reject(self, requeue: bool) -> None:
        self._bus._settle(self._consumer, self, requeue=requeue)


class Bus:
    """A message system in memory. Thread-safe.

    Attributes:
        delay: seconds by which each message is delivered late.
    """

    def __init__(self) -> None:
        self._start_clean()
        call_in_child(self._forget)

    def _start_clean(self) -> None:
        self.delay = 0.0
        self._lock = threading.Lock()
        self._queues: dict[Address, _Queue] = {}
        self._errors: deque[Exception] = deque()
        self._to_lose = 0
        self._up = True
        self._paused = False
        self._waiting: deque[tuple[Callable[[], None], Future[Sent]]] = deque()
        self._timer = Timer("msgbus-fake")
        self._users: weakref.WeakSet[object] = weakref.WeakSet()

    # The knobs of tests

    def fail_next(self, error: Exception, count: int = 1) -> None:
        """Have the next `count` sends fail with `error`."""
        self._errors.extend([error] * count)

    def lose_next(self, count: int = 1) -> None:
        """Take the next `count` messages, and never deliver them."""
        self._to_lose += count

    def cut(self) -> None:
        """Break every connection. What was handed over and not accepted comes again, as redelivered."""
        with self._lock:
            queues = list(self._queues.values())
            for queue in queues:
                for consumer in queue.consumers:
                    self._take_back(consumer)
        for queue in queues:
            self._pump(queue)

    def stop(self) -> None:
        """Be away: connections break, and sends wait until `start` or the end of their ttl."""
        with self._lock:
            self._up = False
        self.cut()

    def start(self) -> None:
        """Come back."""
        self._go_on(up=True)

    def pause(self) -> None:
        """Hang: nothing is delivered, and what is sent has no answer until `resume`, or until its patience ends.

        Then it fails, as maybe delivered: `resume` delivers it all the same, unless it has expired.
        """
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        self._go_on(paused=False)

    def _go_on(self, *, up: bool | None = None, paused: bool | None = None) -> None:
        with self._lock:
            self._up = self._up if up is None else up
            self._paused = self._paused if paused is None else paused
            waiting, self._waiting = self._waiting, deque()
            queues = list(self._queues.values())
        for send, _ in waiting:
            send()
        for queue in queues:
            self._pump(queue)

    # What the driver does

    def join(self, user: object) -> None:
        """Keep what is stored until `leave`, or until `user` is collected."""
        with self._lock:
            self._users.add(user)

    def leave(self, user: object) -> None:
        """A driver is closed. With the last user goes all that is stored, whenever Python collects it."""
        with self._lock:
            self._users.discard(user)
            if self._users:
                return
            self._queues.clear()
            timer, self._timer = self._timer, Timer("msgbus-fake")
        timer.close()

    def send(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        if self._errors:
            sent.set_exception(self._errors.popleft())
            return
        if not self._up or self._paused:
            self._wait_for_start(address, message, mandatory, sent)
            return
        queues = self._route(address)
        if not queues and mandatory:
            sent.set_exception(MessageUndeliverable(f"nobody listens at {address} on the fake message system"))
            return
        if self._to_lose > 0:
            self._to_lose -= 1
        else:
            items = [_Item(message) for _ in queues]
            if self.delay:
                self._timer.call_later(self.delay, lambda: self._put(queues, items))
            else:
                self._put(queues, items)
        sent.set_result(Sent(len(queues)))

    def _wait_for_start(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        began = time.monotonic()

        def send() -> None:
            if hangs or not sent.done():
                left = None if message.ttl is None else message.ttl - (time.monotonic() - began)
                again = Message(message.body, message.content_type, message.id, left, message.durable)
                self.send(address, again, mandatory, Future() if sent.done() else sent)

        with self._lock:
            hangs = self._up and self._paused  # Then it has the message, and only does not say so.
            back = self._up and not self._paused  # It may have come back since it was looked at.
            if not back:
                self._waiting.append((send, sent))
        if back:
            send()
        elif (patience := message.patience) is not None:
            what = "said nothing" if hangs else "was away"
            text = f"the fake message system {what} for {patience:g} s: {address}"
            error = TransportUnavailable(text, maybe_delivered=hangs)
            self._timer.call_later(patience, lambda: fail(sent, error))

    def _route(self, address: Address) -> list[_Queue]:
        with self._lock:
            if address.kind == "fanout":
                return [queue for at, queue in self._queues.items() if at.kind == "fanout" and at[1:3] == address[1:3]]
            made = address.kind in ("dead", "stored")
            if address.kind == "stored":
                address = address._replace(kind="topic")
            queue = self._queues.get(address)
            if queue is None and made:
                queue = self._queues[address] = _Queue()
            found = [] if queue is None else [queue]
            if address.kind == "topic":
                found += (self._queues[at] for at in self._queues if at.kind == "pool" and at[1:3] == address[1:3])
            return found

    def _put(self, queues: Sequence[_Queue], items: Sequence[_Item]) -> None:
        with self._lock:
            for queue, item in zip(queues, items, strict=True):
                queue.items.append(item)
        for queue in queues:
            self._pump(queue)

    def _pump(self, queue: _Queue) -> None:
        """Hand over what can be handed over."""
        readers: dict[_Reader, None] = {}
        with self._lock:
            while queue.items and self._up and not self._paused:
                if queue.items[0].expires <= time.monotonic():
                    queue.items.popleft()
                    continue
                consumer = queue.next_consumer()
                if consumer is None:
                    break
                item = queue.items.popleft()
                delivery = _FakeDelivery(self, consumer, item)
                item.attempts += 1
                if not consumer.auto_accept:
                    consumer.unsettled[delivery] = item
                consumer.reader.put(delivery)
                readers[consumer.reader] = None
        for reader in readers:
            reader.call()

    def _settle(self, consumer: _Consumer, delivery: _FakeDelivery, *, requeue: bool = False) -> _Item | None:
        with self._lock:
            item = consumer.unsettled.pop(delivery, None)
            if item is not None and requeue:
                item.redelivered = True
                consumer.queue.items.appendleft(item)
        self._pump(consumer.queue)
        return item

    def _take_back(self, consumer: _Consumer) -> None:
        for item in reversed(list(consumer.unsettled.values())):
            item.redelivered = True
            consumer.queue.items.appendleft(item)
        consumer.unsettled.clear()

    def attach(self, address: Address, reader: _Reader, prefetch: float, auto_accept: bool = False) -> _Consumer:
        # A fanout queue belongs to one subscription, even where two use the same server's name.
        at = address._replace(name=uuid.uuid4().hex) if address.kind == "fanout" else address
        with self._lock:
            queue = self._queues.setdefault(at, _Queue())
            consumer = _Consumer(address, at, queue, reader, prefetch, auto_accept)
            queue.consumers.append(consumer)
        self._pump(queue)
        return consumer

    def detach(self, consumer: _Consumer, *, give_back: bool) -> None:
        with self._lock:
            queue = consumer.queue
            if consumer in queue.consumers:
                queue.consumers.remove(consumer)
            if give_back:
                self._take_back(consumer)
            # A fanout queue and an inbox are their owner's alone; the others keep what comes for the next one.
            if not queue.consumers and give_back and consumer.address.kind in ("fanout", "inbox"):
                self._queues.pop(consumer.at, None)
        self._pump(queue)

    def depth(self, address: Address) -> Depth | None:
        with self._lock:
            queue = self._queues.get(address)
            if queue is None:
                return None
            now = time.monotonic()
            return Depth(len(queue.consumers), sum(item.expires > now for item in queue.items))

    def fail_waiting(self, mine: Callable[[Future[Sent]], bool], error: Exception) -> None:
        with self._lock:
            waiting = [entry[1] for entry in self._waiting if mine(entry[1])]
        for sent in waiting:
            fail(sent, error)

    def _forget(self) -> None:
        """In a forked child: its parent's connections are not there any more."""
        waiting, users = list(self._waiting), list(self._users)
        self._start_clean()
        self._users.update(users)
        for _, sent in waiting:
            fail(sent, CallCancelled("the process forked: the message was left to the parent"))


def fail(future: Future[Any], error: Exception) -> None:
    """Fail a future that may be done already."""
    try:
        future.set_exception(error)
    except InvalidStateError:
        pass


class _FakeSubscription(Subscription):
    def __init__(
        self,
        bus: Bus,
        addresses: Sequence[Address],
        on_delivery: OnDelivery,
        prefetch: int,
        on_close: Callable[[_FakeSubscription], None],
    ) -> None:
        self._bus = bus
        self._on_close = on_close
        self.ready = _done()
        self._reader = reader = _Reader(on_delivery)
        self._consumers = [bus.attach(address, reader, prefetch) for address in addresses]

    def stop(self) -> Future[None]:
        for consumer in self._consumers:
            self._bus.detach(consumer, give_back=False)
        return self._reader.end()

    def close(self) -> Future[None]:
        for consumer in self._consumers:
            self._bus.detach(consumer, give_back=True)
        self._on_close(self)
        return self._reader.end()


class _FakeInbox(Inbox):
    def __init__(self, bus: Bus, on_delivery: OnDelivery) -> None:
        self._bus = bus
        self.address = Address("inbox", name=uuid.uuid4().hex)
        self._consumer = bus.attach(self.address, _Reader(on_delivery), _forever, auto_accept=True)
        self.ready = _done()

    def close(self) -> Future[None]:
        self._bus.detach(self._consumer, give_back=True)
        return _done()


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


class FakeDriver(Driver):
    """See the module's text."""

    capabilities = frozenset(
        {
            Capability.STORE,
            Capability.INBOX_KEEPS,
            Capability.ORDERED,
            Capability.EXPIRES,
            Capability.COUNTS,
            Capability.INSPECT,
            Capability.REQUEUE,
        }
    )

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_fake", [
            cfg.IntOpt("max_message_size", default=16 * 1024 * 1024, min=1, help="The largest message, in bytes."),
        ]

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL) -> None:
        self._options = read_driver_options(conf, *self.options(), url)
        self._bus = get_bus(url)
        self._url = url
        self._opened: list[Subscription | Inbox] = []
        self._sends: weakref.WeakSet[Future[Sent]] = weakref.WeakSet()
        self._closed = False
        self._bus.join(self)
        call_in_child(self._forget)

    def _forget(self) -> None:
        """In a forked child: the subscriptions and inboxes are the parent's."""
        self._opened.clear()

    @property
    def state(self) -> str:
        return f"the in-memory message system {self._url}"

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        sent: Future[Sent] = Future()
        size = len(message.body)
        if self._closed:
            sent.set_exception(CallCancelled(f"{self.state} was closed"))
        elif size > self._options.max_message_size:
            limit = self._options.max_message_size
            sent.set_exception(
                MessageTooLarge(f"a message of {size} bytes to {address}; {self.state} takes at most {limit} bytes")
            )
        else:
            self._bus.send(address, message, mandatory, sent)
            if not sent.done():
                self._sends.add(sent)
        return sent

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        subscription = _FakeSubscription(self._bus, addresses, on_delivery, prefetch, self._let_go)
        self._opened.append(subscription)
        return subscription

    def _let_go(self, closed: Subscription) -> None:
        """Let go of what it would call: that would keep its server, and the transport, from being collected."""
        if closed in self._opened:
            self._opened.remove(closed)

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        inbox = _FakeInbox(self._bus, on_delivery)
        self._opened.append(inbox)
        return inbox

    def inspect(self, address: Address) -> Future[Depth]:
        found: Future[Depth] = Future()
        depth = self._bus.depth(address)
        if depth is None:
            found.set_exception(MessageUndeliverable(f"there is no {address} on {self.state}"))
        else:
            found.set_result(depth)
        return found

    def close(self) -> None:
        self._closed = True
        for opened in list(self._opened):
            opened.close()
        self._opened.clear()
        self._bus.fail_waiting(self._sends.__contains__, CallCancelled(f"{self.state} was closed"))
        self._bus.leave(self)
