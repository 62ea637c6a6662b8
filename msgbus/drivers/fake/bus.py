"""The message system of the driver ``fake``: queues in memory. The thread that sends a message also delivers it."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from msgbus.drivers.base import Address, Delivery, Message, OnDelivery, QueueInfo, Sent
from msgbus.drivers.toolkit.futures import fail, fail_inherited, finish
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.exceptions import MessageUndeliverable, TransportUnavailable
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child

if TYPE_CHECKING:
    from msgbus.url import TransportURL

LOG = get_logger(__name__)


class _Buses:
    """The buses of this process. Thread-safe."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[str, Bus] = weakref.WeakValueDictionary()
        self.renew_lock()
        call_in_child(self.renew_lock)

    def renew_lock(self) -> None:
        """In a forked child: a thread of the parent may hold the lock."""
        self._lock = threading.Lock()

    def get(self, key: str) -> Bus:
        with self._lock:
            bus = self._known.get(key)
            if bus is None:
                bus = self._known[key] = Bus()
            return bus


_buses = _Buses()


def get_bus(url: str | TransportURL) -> Bus:
    """The bus of a fake URL. It exists as long as a transport or the caller keeps a reference to it."""
    return _buses.get(str(url).partition("?")[0].rstrip("/"))


class Item:
    """A message in a queue."""

    __slots__ = ("attempts", "expires", "message", "redelivered")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.expires = FOREVER if message.ttl is None else Loop.now() + message.ttl
        self.redelivered = False
        self.attempts = 0


class Queue:
    """Waiting messages, and their consumers."""

    __slots__ = ("consumers", "items", "turn")

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.consumers: list[Consumer] = []
        self.turn = 0

    def next_consumer(self) -> Consumer | None:
        """The consumer whose turn it is, of those below their prefetch."""
        for step in range(len(self.consumers)):
            at = (self.turn + step) % len(self.consumers)
            consumer = self.consumers[at]
            if len(consumer.unsettled) < consumer.prefetch:
                self.turn = at + 1
                return consumer
        return None


class Consumer:
    """One address of a subscription or inbox, and the name of its queue."""

    __slots__ = ("address", "at", "auto_accept", "prefetch", "queue", "reader", "unsettled")

    def __init__(self, address: Address, at: Address, queue: Queue, reader: Reader, prefetch: float) -> None:
        self.address = address
        self.at = at
        self.queue = queue
        self.reader = reader
        self.prefetch = prefetch
        self.auto_accept = address.kind == "inbox"
        self.unsettled: dict[FakeDelivery, Item] = {}


class Reader:
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
            except Exception:  # It concerns neither the sender nor the other deliveries: these go on.
                LOG.exception("a message could not be delivered")
            finally:
                self._calling.release()

    def end(self) -> Future[None]:
        """A future that is done when everything that was `put` before has been delivered."""
        ended: Future[None] = Future()
        self._waiting.append(partial(finish, ended))
        self.call()
        return ended


class FakeDelivery(Delivery):
    """A message that was delivered to a consumer."""

    __slots__ = ("_bus", "_consumer", "counts")

    def __init__(self, bus: Bus, consumer: Consumer, item: Item) -> None:
        message = item.message
        if message.ttl is not None or message.send_timeout is not None:
            left = None if message.ttl is None else item.expires - Loop.now()
            message = Message(message.body, message.content_type, message.id, left, message.durable)
        super().__init__(consumer.address, message, item.redelivered, item.attempts)
        self._bus = bus
        self._consumer = consumer
        self.counts: bool | None = None  # What the first call has returned.

    def accept(self) -> bool:
        return self._bus._settle(self._consumer, self)

    def reject(self, requeue: bool) -> None:
        self._bus._settle(self._consumer, self, requeue=requeue)


class Bus:
    """A message system in memory. Thread-safe.

    Attributes:
        delay: seconds by which each message is delivered late.
    """

    def __init__(self) -> None:
        self._loop = Loop("msgbus-fake")  # Not a transport's: it belongs to the message system.
        self._start_clean()
        call_in_child(self._forget)

    def _start_clean(self) -> None:
        self.delay = 0.0
        self._lock = threading.Lock()
        self._queues: dict[Address, Queue] = {}
        self._errors: deque[Exception] = deque()
        self._to_lose = 0
        self._up = True
        self._paused = False
        self._waiting: deque[tuple[Callable[[], None], Future[Sent]]] = deque()
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._watchers: list[Callable[[Address, Message], None]] = []

    # For tests

    def watch(self, watcher: Callable[[Address, Message], None]) -> None:
        """Call `watcher` with each message before it is taken or refused, on the sender's thread. It must not raise."""
        self._watchers.append(watcher)

    def fail_next(self, error: Exception, count: int = 1) -> None:
        """Make the next `count` sends fail with `error`."""
        with self._lock:
            self._errors.extend([error] * count)

    def lose_next(self, count: int = 1) -> None:
        """Accept the next `count` messages, but never deliver them."""
        with self._lock:
            self._to_lose += count

    def cut(self) -> None:
        """Break every connection. Messages that were delivered and not accepted are delivered again, as redelivered."""
        with self._lock:
            queues = list(self._queues.values())
            for queue in queues:
                for consumer in queue.consumers:
                    self._take_back(consumer)
        for queue in queues:
            self._pump(queue)

    def stop(self) -> None:
        """Shut down: connections break, and sends wait until `start` or the end of their time to be published."""
        with self._lock:
            self._up = False
        self.cut()

    def start(self) -> None:
        """Start again after `stop`."""
        self._go_on(up=True)

    def pause(self) -> None:
        """Hang: nothing is delivered, and sends get no answer until `resume`, or until their time ends.

        Then they fail, as maybe delivered: `resume` still delivers the messages, unless they have expired.
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

    # For the driver

    def join(self, user: object) -> None:
        """Keep the queues until `leave`, or until `user` is garbage collected."""
        with self._lock:
            self._users.add(user)

    def leave(self, user: object) -> None:
        """A driver is closed. When the last one leaves, all queues are removed, even if the bus is still referenced."""
        with self._lock:
            self._users.discard(user)
            if self._users:
                return
            self._queues.clear()
            loop, self._loop = self._loop, Loop("msgbus-fake")
        loop.close()

    def send(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        """Put a message into the queues of an address, and finish `sent`."""
        for watcher in self._watchers:
            watcher(address, message)
        with self._lock:
            error = self._errors.popleft() if self._errors else None
            is_away = not self._up or self._paused
        if error is not None:
            fail(sent, error)
        elif is_away:
            self._wait_for_start(address, message, mandatory, sent)
        else:
            queues = self._route(address)
            if queues or not mandatory:
                self._take(queues, message)
                finish(sent, Sent(len(queues)))
            else:
                fail(sent, MessageUndeliverable(f"nobody listens at {address} on the fake message system"))

    def _take(self, queues: Sequence[Queue], message: Message) -> None:
        with self._lock:
            is_lost = self._to_lose > 0
            self._to_lose -= is_lost
        items = [Item(message) for _ in queues]
        if is_lost:
            return
        if self.delay:
            self._loop.call_later(self.delay, self._put, queues, items)
        else:
            self._put(queues, items)

    def _wait_for_start(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        began = Loop.now()

        def send() -> None:
            if hangs or not sent.done():
                left = None if message.ttl is None else message.ttl - (Loop.now() - began)
                again = Message(message.body, message.content_type, message.id, left, message.durable)
                self.send(address, again, mandatory, Future() if sent.done() else sent)

        with self._lock:
            hangs = self._up and self._paused  # Then it has the message, but does not confirm it.
            back = self._up and not self._paused  # It may have been started since `send` checked.
            if not back:
                self._waiting.append((send, sent))
        if back:
            send()
        elif (seconds := message.publish_within) is not None:
            what = "said nothing" if hangs else "was away"
            text = f"the fake message system {what} for {seconds:g} s: {address}"
            error = TransportUnavailable(text, maybe_delivered=hangs)
            self._loop.call_later(seconds, lambda: fail(sent, error))

    def _route(self, address: Address) -> list[Queue]:
        with self._lock:
            if address.kind == "fanout":
                return [queue for at, queue in self._queues.items() if at.kind == "fanout" and at[1:3] == address[1:3]]
            made = address.kind in ("dead", "stored")
            if address.kind == "stored":
                address = address._replace(kind="topic")
            queue = self._queues.get(address)
            if queue is None and made:
                queue = self._queues[address] = Queue()
            found = [] if queue is None else [queue]
            if address.kind == "topic":
                found += (self._queues[at] for at in self._queues if at.kind == "pool" and at[1:3] == address[1:3])
            return found

    def _put(self, queues: Sequence[Queue], items: Sequence[Item]) -> None:
        with self._lock:
            for queue, item in zip(queues, items, strict=True):
                queue.items.append(item)
        for queue in queues:
            self._pump(queue)

    def _pump(self, queue: Queue) -> None:
        """Deliver what can be delivered."""
        readers: dict[Reader, None] = {}
        with self._lock:
            while queue.items and self._up and not self._paused:
                if queue.items[0].expires <= Loop.now():
                    queue.items.popleft()
                    continue
                consumer = queue.next_consumer()
                if consumer is None:
                    break
                item = queue.items.popleft()
                delivery = FakeDelivery(self, consumer, item)
                item.attempts += 1
                if not consumer.auto_accept:
                    consumer.unsettled[delivery] = item
                consumer.reader.put(delivery)
                readers[consumer.reader] = None
        for reader in readers:
            reader.call()

    def _settle(self, consumer: Consumer, delivery: FakeDelivery, *, requeue: bool = False) -> bool:
        with self._lock:
            item = consumer.unsettled.pop(delivery, None)
            if delivery.counts is None:
                delivery.counts = item is not None
            if item is not None and requeue:
                item.redelivered = True
                consumer.queue.items.appendleft(item)
        self._pump(consumer.queue)
        return delivery.counts

    def _take_back(self, consumer: Consumer) -> None:
        for item in reversed(list(consumer.unsettled.values())):
            item.redelivered = True
            consumer.queue.items.appendleft(item)
        consumer.unsettled.clear()

    def attach(self, address: Address, reader: Reader, prefetch: float) -> Consumer:
        """Consume from an address."""
        # A fanout queue belongs to one subscription, even if two use the same server's name.
        at = address._replace(name=uuid.uuid4().hex) if address.kind == "fanout" else address
        with self._lock:
            queue = self._queues.setdefault(at, Queue())
            consumer = Consumer(address, at, queue, reader, prefetch)
            queue.consumers.append(consumer)
        self._pump(queue)
        return consumer

    def detach(self, consumer: Consumer, *, give_back: bool) -> None:
        """Stop consuming. With `give_back`, requeue unsettled messages, and remove a private queue."""
        with self._lock:
            queue = consumer.queue
            if consumer in queue.consumers:
                queue.consumers.remove(consumer)
            if give_back:
                self._take_back(consumer)
            # Fanout queues and inboxes are private; the others keep their messages for the next consumer.
            if not queue.consumers and give_back and consumer.address.kind in ("fanout", "inbox"):
                self._queues.pop(consumer.at, None)
        self._pump(queue)

    def depth(self, address: Address) -> QueueInfo | None:
        """How many consumers and messages an address has; None if there is no such queue."""
        with self._lock:
            queue = self._queues.get(address)
            if queue is None:
                return None
            now = Loop.now()
            return QueueInfo(len(queue.consumers), sum(item.expires > now for item in queue.items))

    def servers(self) -> list[Address]:
        """The addresses of the servers that consume."""
        with self._lock:
            return [address for address, queue in self._queues.items() if address.kind == "server" and queue.consumers]

    def fail_waiting(self, mine: Callable[[Future[Sent]], bool], error: Exception) -> None:
        """Fail the waiting sends for which `mine` returns True."""
        with self._lock:
            waiting = [entry[1] for entry in self._waiting if mine(entry[1])]
        for sent in waiting:
            fail(sent, error)

    def _forget(self) -> None:
        """In a forked child: start clean, without the parent's queues and connections."""
        waiting, users = list(self._waiting), list(self._users)
        self._start_clean()
        self._users.update(users)
        for _, sent in waiting:
            fail_inherited(sent)
