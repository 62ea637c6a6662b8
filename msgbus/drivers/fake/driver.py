"""What the driver ``fake`` does for the contract. Its message system is in `msgbus.drivers.fake.bus`."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from oslo_config import cfg

from msgbus.drivers.base import (
    Address,
    Capability,
    Driver,
    Inbox,
    Message,
    OnDelivery,
    QueueInfo,
    Sent,
    Subscription,
)
from msgbus.drivers.fake.bus import Reader, get_bus
from msgbus.drivers.toolkit.futures import LightFuture, done, failed
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.exceptions import CallCancelled, MessageTooLarge, MessageUndeliverable
from msgbus.forking import call_in_child
from msgbus.options import read_driver_options

if TYPE_CHECKING:
    from msgbus.url import TransportURL


class FakeSubscription(Subscription):
    """Consumers of the bus, for one subscription or inbox."""

    def __init__(
        self, driver: FakeDriver, addresses: Sequence[Address], on_delivery: OnDelivery, prefetch: float
    ) -> None:
        self._driver = driver
        self._reader = Reader(on_delivery)
        self._consumers = [driver.bus.attach(address, self._reader, prefetch) for address in addresses]
        self.ready = done()

    def stop(self) -> Future[None]:
        return self._end(give_back=False)

    def close(self) -> Future[None]:
        self._driver.let_go(self)
        return self._end(give_back=True)

    def _end(self, *, give_back: bool) -> Future[None]:
        for consumer in self._consumers:
            self._driver.bus.detach(consumer, give_back=give_back)
        return self._reader.end()


class FakeInbox(Inbox):
    """The same, under an address of its own."""

    def __init__(self, address: Address, subscription: FakeSubscription) -> None:
        self.address = address
        self.ready = subscription.ready
        self._subscription = subscription

    def close(self) -> Future[None]:
        return self._subscription.close()


class FakeDriver(Driver):
    """See `msgbus.drivers.fake`."""

    one_process = True
    capabilities = frozenset(
        {
            Capability.STORAGE,
            Capability.INBOX_STORAGE,
            Capability.ORDERED,
            Capability.EXPIRES,
            Capability.ATTEMPT_COUNT,
            Capability.INSPECT,
            Capability.REQUEUE,
        }
    )

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        return "msgbus_fake", [
            cfg.IntOpt("max_message_size", default=16 * 1024 * 1024, min=1, help="The largest message, in bytes."),
        ]

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, _loop: Loop) -> None:
        self._options = read_driver_options(conf, *self.options(), url)
        self.bus = get_bus(url)
        self._url = url
        self._opened: list[FakeSubscription] = []
        self._sends: weakref.WeakSet[Future[Sent]] = weakref.WeakSet()
        self._closed = False
        self.bus.join(self)
        call_in_child(self._forget)

    def _forget(self) -> None:
        """In a forked child: the subscriptions and inboxes are the parent's."""
        self._opened.clear()

    @property
    def state(self) -> str:
        return f"the in-memory message system {self._url}"

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        size, limit = len(message.body), self._options.max_message_size
        if self._closed:
            return failed(self._was_closed())
        if size > limit:
            text = f"a message of {size} bytes to {address}; {self.state} takes at most {limit} bytes"
            return failed(MessageTooLarge(text))
        sent: Future[Sent] = LightFuture()
        self._sends.add(sent)
        self.bus.send(address, message, mandatory, sent)
        return sent

    def _was_closed(self) -> CallCancelled:
        return CallCancelled(f"{self.state} was closed")

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        return self._open(addresses, on_delivery, prefetch)

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        address = Address("inbox", name=uuid.uuid4().hex)
        return FakeInbox(address, self._open([address], on_delivery, FOREVER))

    def _open(self, addresses: Sequence[Address], on_delivery: OnDelivery, prefetch: float) -> FakeSubscription:
        opened = FakeSubscription(self, () if self._closed else addresses, on_delivery, prefetch)
        self._opened.append(opened)
        if self._closed:  # Before, or meanwhile.
            opened.close()
            opened.ready = failed(self._was_closed())
        return opened

    def let_go(self, closed: FakeSubscription) -> None:
        """Let go of what it would call: that would keep its server, and the transport, from being collected."""
        if closed in self._opened:
            self._opened.remove(closed)

    def inspect(self, address: Address) -> Future[QueueInfo]:
        if self._closed:
            return failed(self._was_closed())
        found = self.bus.depth(address)
        if found is None:
            return failed(MessageUndeliverable(f"there is no {address} on {self.state}"))
        return done(found)

    def known_servers(self) -> Future[Sequence[Address]]:
        return failed(self._was_closed()) if self._closed else done(self.bus.servers())

    def close(self) -> None:
        self._closed = True
        for opened in list(self._opened):
            opened.close()
        self.bus.fail_waiting(self._sends.__contains__, self._was_closed())
        self.bus.leave(self)
