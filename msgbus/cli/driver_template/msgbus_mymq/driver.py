"""The driver ``mymq``: moves bytes between addresses; all else is msgbus's core.

It works as it stands, in the memory of one process (`msgbus_mymq.hub`). To make it a driver for your message system,
change one method after the other to use your client library, and run the conformance suite after each step. The
contract that every method fulfils, with the rules for threads, is in the docstrings of `msgbus.drivers.base`.

One thread, the I/O thread, talks to the message system. Whoever calls `send` only leaves word for it: so nothing
blocks, the messages of one sender keep their order, and no two calls of `on_delivery` overlap.
"""

from __future__ import annotations

import os
import queue
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING
from urllib.parse import quote

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
from msgbus.exceptions import CallCancelled, MessageTooLarge, MessageUndeliverable
from msgbus.options import read_driver_options

from .hub import Consumer, Hub, Item, connect

if TYPE_CHECKING:
    from msgbus.url import TransportURL

GROUP = "msgbus_mymq"
OPTIONS = [
    cfg.IntOpt("max_message_size", default=16 * 1024 * 1024, min=1, help="The largest message, in bytes."),
]
CLOSE_TIMEOUT = 5.0
"""Seconds that `close` waits for what was to be sent before."""


def queue_name(address: Address, own: str = "") -> str:
    """The one place that says what an address is called on the message system.

    Each part is quoted, so that no two addresses ever share a name. `own` makes the name one subscriber's.
    """
    kind = "topic" if address.kind == "stored" else address.kind
    parts = (address.exchange, address.topic, address.server or address.name, own)
    return "/".join((kind, *(quote(part, safe="") for part in parts)))


class IOThread:
    """Runs what it is given, in that order, on a thread of its own, which starts with the first."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._starting = threading.Lock()

    def call(self, func: Callable[[], object]) -> None:
        """Have it run. Any thread."""
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()
        self._calls.put(func)

    def close(self) -> None:
        """Run what was given before, and what that gives in turn, and end. The thread itself does not wait for that."""
        if self._thread.ident is not None:
            self._calls.put(lambda: self._calls.put(None))
            if threading.current_thread() is not self._thread:
                self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        while (func := self._calls.get()) is not None:
            func()


class MymqDelivery(Delivery):
    """A message that was handed over."""

    __slots__ = ("_consumer", "_hub", "_item")

    def __init__(self, address: Address, hub: Hub, consumer: Consumer, item: Item) -> None:
        message = item.message
        left = Message(message.body, message.content_type, message.id, item.left, message.durable)
        super().__init__(address, left, item.redelivered, item.attempts)
        self._hub = hub
        self._consumer = consumer
        self._item = item

    def accept(self) -> bool:
        return self._hub.settle(self._consumer, self._item)

    def reject(self, requeue: bool) -> None:
        self._hub.settle(self._consumer, self._item, requeue=requeue)


class MymqDriver(Driver):
    """See the module's text."""

    contract = (1, 0)
    # What your message system keeps, and nothing else: the suite fails what is declared and not kept.
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
        return GROUP, OPTIONS

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL) -> None:
        self._options = read_driver_options(conf, GROUP, OPTIONS, url)
        self._url = url  # its str() shows no password
        self.closed = False
        self._start_clean()
        os.register_at_fork(after_in_child=_after_fork(weakref.ref(self)))

    def _start_clean(self) -> None:
        self._io = IOThread("msgbus-mymq")
        self.hub = connect(str(self._url).partition("?")[0])
        self._opened: list[MymqSubscription | MymqInbox] = []
        self._sends: weakref.WeakSet[Future[Sent]] = weakref.WeakSet()

    @property
    def state(self) -> str:
        return f"mymq at {self._url}"

    # Sending

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        sent: Future[Sent] = Future()
        size, limit = len(message.body), self._options.max_message_size
        if self.closed:
            sent.set_exception(CallCancelled(f"{self.state} was closed"))
        elif size > limit:
            error = f"a message of {size} bytes to {address}; {self.state} takes at most {limit} bytes"
            sent.set_exception(MessageTooLarge(error))
        else:
            self._sends.add(sent)
            self._io.call(lambda: self._send(address, message, mandatory, sent))
        return sent

    def _send(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        """On the I/O thread. A real one returns before the message system has answered, and completes `sent` then."""
        if address.kind in ("stored", "dead"):
            self.hub.declare(queue_name(address))
        if address.kind == "fanout":
            names = self.hub.names(queue_name(address).rstrip("/") + "/")
        else:
            names = [queue_name(address)]
        if address.kind in ("topic", "stored"):
            pools = queue_name(address._replace(kind="pool")).rstrip("/") + "/"
            names += self.hub.names(pools)
        reached = sum(self.hub.put(name, message) for name in names)
        if mandatory and not reached:
            sent.set_exception(MessageUndeliverable(f"nobody listens at {address} on {self.state}"))
        else:
            sent.set_result(Sent(reached))

    # Receiving

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        subscription = MymqSubscription(self, addresses, on_delivery, prefetch)
        self._opened.append(subscription)
        return subscription

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        inbox = MymqInbox(self, on_delivery)
        self._opened.append(inbox)
        return inbox

    def consume(self, address: Address, name: str, on_delivery: OnDelivery, prefetch: float) -> Consumer:
        """Have what comes to a queue handed over on the I/O thread. The I/O thread."""

        def hand_over(consumer: Consumer, item: Item) -> None:
            delivery = MymqDelivery(address, self.hub, consumer, item)
            self._io.call(lambda: on_delivery(delivery))

        return self.hub.consume(name, prefetch, hand_over)

    def on_io_thread(self, func: Callable[[], object]) -> Future[None]:
        """Have a function run there; the future is done when it has, and what was handed over before has been taken."""
        done: Future[None] = Future()

        def run() -> None:
            func()
            self._io.call(lambda: done.set_result(None))

        if self.closed:
            done.set_exception(CallCancelled(f"{self.state} was closed"))
        else:
            self._io.call(run)
        return done

    def inspect(self, address: Address) -> Future[Depth]:
        found: Future[Depth] = Future()
        depth = self.hub.depth(queue_name(address))
        if depth is None:
            found.set_exception(MessageUndeliverable(f"there is no {address} on {self.state}"))
        else:
            found.set_result(depth)
        return found

    def close(self) -> None:
        for opened in list(self._opened):
            opened.close()
        self.closed = True
        self._io.close()

    def forget(self, error: Exception) -> None:
        """Fail what the parent process was sending, and start clean, in a forked child."""
        inherited = list(self._sends)
        self._start_clean()
        for sent in inherited:
            if not sent.done():
                sent.set_exception(error)


def _after_fork(ref: weakref.ref[MymqDriver]) -> Callable[[], None]:
    def in_child() -> None:
        if (driver := ref()) is not None:
            driver.forget(CallCancelled("the process forked: the message was left to the parent"))

    return in_child


class MymqSubscription(Subscription):
    """Consumes from some addresses."""

    def __init__(
        self, driver: MymqDriver, addresses: Sequence[Address], on_delivery: OnDelivery, prefetch: int
    ) -> None:
        self._driver = driver
        self._consumers: list[Consumer] = []
        # Each subscriber of a fanout has a queue of its own, which goes with it.
        self._own = [queue_name(at, uuid.uuid4().hex) for at in addresses if at.kind == "fanout"]
        own = iter(self._own)
        names = [next(own) if at.kind == "fanout" else queue_name(at) for at in addresses]

        def consume() -> None:
            for address, name in zip(addresses, names, strict=True):
                self._consumers.append(driver.consume(address, name, on_delivery, prefetch))

        self.ready = driver.on_io_thread(consume)

    def stop(self) -> Future[None]:
        return _done() if self._driver.closed else self._driver.on_io_thread(lambda: self._cancel(give_back=False))

    def close(self) -> Future[None]:
        return _done() if self._driver.closed else self._driver.on_io_thread(lambda: self._cancel(give_back=True))

    def _cancel(self, *, give_back: bool) -> None:
        for consumer in self._consumers:
            self._driver.hub.cancel(consumer, give_back=give_back)
        if give_back:
            for name in self._own:
                self._driver.hub.delete(name)


class MymqInbox(Inbox):
    """This process's own address. What it hands over counts as accepted."""

    def __init__(self, driver: MymqDriver, on_delivery: OnDelivery) -> None:
        self._driver = driver
        self.address = Address("inbox", name=uuid.uuid4().hex)
        name = queue_name(self.address)

        def take(delivery: Delivery) -> None:
            delivery.accept()
            on_delivery(delivery)

        self.ready = driver.on_io_thread(lambda: driver.consume(self.address, name, take, float("inf")))

    def close(self) -> Future[None]:
        driver, name = self._driver, queue_name(self.address)
        return _done() if driver.closed else driver.on_io_thread(lambda: driver.hub.delete(name))


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future
