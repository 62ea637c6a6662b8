"""The driver newdriver. It works as it is: messages move within one process, in memory.

Make it yours in steps, with the checks passing after each:

1. `options`, `__init__`, `state`: where your message system is, and what can be set.
2. `_System`: this stands for the message system. Put a connection to yours in its place, verb by verb: first `send`,
   then `attach` and `detach`.
3. `capabilities`: declare what it keeps, one by one; each brings its own checks.
4. Reconnecting, and what waits meanwhile: see `Driver.send` in the contract, `msgbus.drivers.base`.

What is public for drivers: `msgbus.drivers.base`, `msgbus.exceptions`, `msgbus.options` and `msgbus.url`.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from oslo_config import cfg

from msgbus.drivers.base import (
    Address,
    Capability,
    Delivery,
    Driver,
    Inbox,
    Message,
    OnDelivery,
    Sent,
    Subscription,
    raise_missing,
)
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import CallCancelled, MessageTooLarge, MessageUndeliverable
from msgbus.forking import call_in_child
from msgbus.options import read_driver_options
from msgbus.url import TransportURL


class NewdriverDriver(Driver):
    """Every method returns at once: the work is done on the one thread of `_System`."""

    contract = (2, 0)  # The version of the contract that this was written for.
    capabilities = frozenset({Capability.ORDERED, Capability.REQUEUE})

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_newdriver", [
            cfg.IntOpt("max_message_size", default=16 * 1024 * 1024, min=1, help="The largest message, in bytes."),
        ]

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, _loop: Loop) -> None:
        # No I/O and no thread here: the connection is opened when something first needs it.
        self._options = read_driver_options(conf, *self.options(), url)
        self._url = url
        self._start_clean()
        call_in_child(self.forked)

    # Connect your library in `_System`, on its thread, and with its own help switched off: no retries, no reconnect, no
    # buffer for what is sent without a connection. A library that repeats what had no answer delivers it twice, and
    # nobody can tell. When the connection breaks, fail what was given to the library (maybe_delivered=True), keep what
    # was not, set `up_since` to None, and connect anew yourself. "Write a driver" in the documentation says more.

    def _start_clean(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._system: _System | None = None
        self._opened: list[_Subscription | _Inbox] = []
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()

    @property
    def state(self) -> str:
        return f"newdriver at {self._url}"  # The str of a URL shows no password.

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        sent: Future[Sent] = self.new_future()
        size, limit = len(message.body), self._options.max_message_size
        if address.kind in ("stored", "dead") and Capability.STORE not in self.capabilities:
            raise_missing(self, Capability.STORE)
        if size > limit:
            text = f"a message of {size} bytes to {address}; {self.state} takes at most {limit} bytes"
            sent.set_exception(MessageTooLarge(text))
        elif not self.on_thread(lambda system: system.send(address, message, mandatory, sent)):
            sent.set_exception(CallCancelled(f"{self.state} was closed"))
        return sent

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        # A fanout queue belongs to its subscriber alone, even where two use the same server's name.
        consumers = [
            _Consumer(at, at._replace(name=uuid.uuid4().hex) if at.kind == "fanout" else at, on_delivery, prefetch)
            for at in addresses
        ]
        return _Subscription(self, consumers)

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        return _Inbox(self, on_delivery)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            system, self._system = self._system, None
        if system is not None:
            opened, done = list(self._opened), threading.Event()
            system.call(lambda: [each.detach(system) for each in opened])
            system.call(done.set)
            done.wait(5)
            _leave(system)

    # For the rest of this file

    def new_future(self) -> Future[Any]:
        """A future that is failed in a forked child."""
        future: Future[Any] = Future()
        self._futures.add(future)
        return future

    def add(self, opened: _Subscription | _Inbox) -> None:
        """Have it looked after: closed with the driver, and, once there are connections, restored on each."""
        self._opened.append(opened)
        if not self.on_thread(opened.attach):
            opened.ready.set_exception(CallCancelled(f"{self.state} was closed"))

    def remove(self, opened: _Subscription | _Inbox) -> None:
        """It was closed."""
        if opened in self._opened:
            self._opened.remove(opened)

    def on_thread(self, func: Callable[[_System], object]) -> bool:
        """Call a function on the I/O thread, which is started by the first that needs it. False: it was closed."""
        with self._lock:
            if self._closed:
                return False
            if self._system is None:
                self._system = _join(self._url)
            system = self._system
        system.call(lambda: func(system))
        return True

    def forked(self) -> None:
        """In a child process: everything is the parent's."""
        inherited = list(self._futures)
        self._start_clean()
        for future in inherited:
            if not future.done():
                future.set_exception(CallCancelled("the process forked: this was left to the parent"))


class _Subscription(Subscription):
    def __init__(self, driver: NewdriverDriver, consumers: list[_Consumer]) -> None:
        self.ready = driver.new_future()
        self._driver = driver
        self._consumers = consumers
        driver.add(self)

    def attach(self, system: _System) -> None:
        """On the I/O thread: consume."""
        for consumer in self._consumers:
            system.attach(consumer)
        _finish(self.ready)

    def detach(self, system: _System) -> None:
        """On the I/O thread: consume no more, and give back what is open."""
        for consumer in self._consumers:
            system.detach(consumer, give_back=True)

    def stop(self) -> Future[None]:
        def stop(system: _System) -> None:
            for consumer in self._consumers:
                system.detach(consumer, give_back=False)

        return _done_by(self._driver, stop)

    def close(self) -> Future[None]:
        self._driver.remove(self)
        return _done_by(self._driver, self.detach)


class _Inbox(Inbox):
    def __init__(self, driver: NewdriverDriver, on_delivery: OnDelivery) -> None:
        self.address = Address("inbox", name=uuid.uuid4().hex)
        self.ready = driver.new_future()
        self._driver = driver
        self._consumer = _Consumer(self.address, self.address, on_delivery, prefetch=None)
        driver.add(self)

    def attach(self, system: _System) -> None:
        """On the I/O thread: listen."""
        system.attach(self._consumer)
        _finish(self.ready)

    def detach(self, system: _System) -> None:
        """On the I/O thread: listen no more."""
        system.detach(self._consumer, give_back=False)

    def close(self) -> Future[None]:
        self._driver.remove(self)
        return _done_by(self._driver, self.detach)


def _done_by(driver: NewdriverDriver, func: Callable[[_System], object]) -> Future[None]:
    """A future for what the I/O thread does; done where the driver is closed, which has done it already."""
    done: Future[None] = driver.new_future()

    def run(system: _System) -> None:
        func(system)
        _finish(done)

    if not driver.on_thread(run):
        _finish(done)
    return done


def _finish(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Taken(Delivery):
    """What was handed over. `accept` and `reject` come from any thread, and only the first of them counts."""

    __slots__ = ("_consumer", "_system")

    def __init__(self, system: _System, consumer: _Consumer, item: _Item) -> None:
        super().__init__(consumer.address, item.as_it_is_now(), item.redelivered, None)
        self._system = system
        self._consumer = consumer

    def accept(self) -> bool:
        if self._consumer.open.pop(self, None) is None:  # One step, so that threads do not come between.
            return False
        self._system.call(lambda: self._system.hand_over(self._consumer.queue))
        return True

    def reject(self, requeue: bool) -> None:
        item = self._consumer.open.pop(self, None)
        if item is not None:
            self._system.call(lambda: self._system.settle(self._consumer, item if requeue else None))


# STEP 2: from here on it stands for the message system.


@dataclass(slots=True)
class _Item:
    """A message that waits, or was handed over."""

    message: Message
    redelivered: bool = False
    came: float = field(default_factory=time.monotonic)

    def as_it_is_now(self) -> Message:
        """With the ttl that is left."""
        sent = self.message
        ttl = None if sent.ttl is None else sent.ttl - (time.monotonic() - self.came)
        return Message(sent.body, sent.content_type, sent.id, ttl, sent.durable)


@dataclass(slots=True, eq=False)
class _Consumer:
    """One subscribed address. `prefetch` is None for an inbox, whose messages count as accepted."""

    address: Address
    queue: Address
    on_delivery: OnDelivery
    prefetch: int | None
    open: dict[_Taken, _Item] = field(default_factory=dict)


@dataclass(slots=True)
class _Queue:
    consumers: deque[_Consumer] = field(default_factory=deque)
    waiting: deque[_Item] = field(default_factory=deque)


class _System:
    """A message system in memory. What it does it does on its thread, so that nothing needs a lock."""

    def __init__(self) -> None:
        # Here a library would be connected: with no retries, no reconnect and no offline buffer of its own.
        self.users = 0  # drivers
        self._queues: dict[Address, _Queue] = {}
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="msgbus-newdriver", daemon=True)
        self.thread.start()

    def call(self, func: Callable[[], object] | None) -> None:
        """Run a function on the thread; None ends it. From any thread."""
        self._calls.put(func)

    def _run(self) -> None:
        while (func := self._calls.get()) is not None:
            func()

    def send(self, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        """Put a message into the queues that an address stands for."""
        if address.kind == "fanout":
            found = [at for at in self._queues if at.kind == "fanout" and at[1:3] == address[1:3]]
        else:
            found = [address] if address in self._queues else []
            if address.kind == "topic":
                found += [at for at in self._queues if at.kind == "pool" and at[1:3] == address[1:3]]
        if mandatory and not found:
            sent.set_exception(MessageUndeliverable(f"nobody listens at {address}"))
            return
        for at in found:
            self._queues[at].waiting.append(_Item(message))
        sent.set_result(Sent(len(found)))
        for at in found:
            self.hand_over(at)

    def attach(self, consumer: _Consumer) -> None:
        """Have a consumer get messages."""
        self._queues.setdefault(consumer.queue, _Queue()).consumers.append(consumer)
        self.hand_over(consumer.queue)

    def detach(self, consumer: _Consumer, *, give_back: bool) -> None:
        """End it. Without the capability `store`, a queue goes with its last consumer."""
        found = self._queues.get(consumer.queue)
        if found is not None and consumer in found.consumers:
            found.consumers.remove(consumer)
        if give_back:
            for delivery in reversed(list(consumer.open)):
                if (item := consumer.open.pop(delivery, None)) is not None:
                    self.settle(consumer, item)
        if found is not None and not found.consumers:
            self._queues.pop(consumer.queue, None)

    def settle(self, consumer: _Consumer, item: _Item | None) -> None:
        """There is room for another, and perhaps a message that was given back."""
        found = self._queues.get(consumer.queue)
        if found is not None and item is not None:
            item.redelivered = True
            found.waiting.appendleft(item)
        self.hand_over(consumer.queue)

    def hand_over(self, at: Address) -> None:
        """Give what waits to those who have room, in turn."""
        found = self._queues.get(at)
        while found is not None and found.waiting:
            for _ in range(len(found.consumers)):
                consumer = found.consumers[0]
                found.consumers.rotate(-1)
                if consumer.prefetch is None or len(consumer.open) < consumer.prefetch:
                    break
            else:
                return
            item = found.waiting.popleft()
            delivery = _Taken(self, consumer, item)
            if consumer.prefetch is not None:
                consumer.open[delivery] = item
            consumer.on_delivery(delivery)


_systems: dict[str, _System] = {}
_joining = threading.Lock()


def _forget_systems() -> None:
    """In a child process: their threads are the parent's."""
    global _joining
    _joining = threading.Lock()
    _systems.clear()


os.register_at_fork(after_in_child=_forget_systems)


def _join(url: TransportURL) -> _System:
    """The message system of a URL, which all drivers of this process share."""
    name = str(url.hosts)
    with _joining:
        if name not in _systems:
            _systems[name] = _System()
        _systems[name].users += 1
        return _systems[name]


def _leave(system: _System) -> None:
    """End it with its last user."""
    with _joining:
        system.users -= 1
        if system.users:
            return
        for name in [name for name, each in _systems.items() if each is system]:
            del _systems[name]
    system.call(None)
    if system.thread is not threading.current_thread():
        system.thread.join(5)
