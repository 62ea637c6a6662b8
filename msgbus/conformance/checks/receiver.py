"""Receiver, a subscriber that keeps its deliveries, and other helpers of the checks of drivers."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from msgbus import TransportUnavailable
from msgbus.conformance.bus import Bus
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Delivery, Driver, Message, Subscription

TEXT = "text/plain"
QUIET = 5.0
"""Seconds without a delivery after which no further one is expected."""


def message(
    body: bytes | str = b"", ttl: float | None = None, durable: bool = False, wait: float | None = None
) -> Message:
    """A message with an id of its own. Checks that are not about ttl set none, so that they do not depend on it."""
    data = body.encode() if isinstance(body, str) else body
    return Message(data, TEXT, uuid.uuid4().hex, ttl, durable, wait)


def send(driver: Driver, address: Address, body: bytes | str, *, mandatory: bool = True, **more: Any) -> None:
    """Send, and return when the message system has taken the message."""
    driver.send(address, message(body, **more), mandatory=mandatory).result(15)


def send_all(driver: Driver, address: Address, bodies: Iterable[str]) -> None:
    """Send without waiting in between, and return when the message system has taken all messages."""
    mandatory = address.kind != "fanout"
    for sent in [driver.send(address, message(body), mandatory=mandatory) for body in bodies]:
        sent.result(30)


class Receiver:
    """Subscribes, and keeps the deliveries in their order. Accepts each of them, unless `accept` is False.

    Attributes:
        deliveries: what has arrived.
        overlaps: how often the driver called while another call had not returned.
    """

    def __init__(self, accept: bool = True, then: Callable[[Delivery], None] | None = None) -> None:
        self.deliveries: list[Delivery] = []
        self.overlaps = 0
        self._accept = accept
        self._then = then
        self._calling = threading.Lock()

    def take(self, delivery: Delivery) -> None:
        """Take a delivery. This is the callback for `Driver.subscribe`."""
        alone = self._calling.acquire(blocking=False)
        self.overlaps += not alone
        try:
            self.deliveries.append(delivery)
            if self._accept:
                delivery.accept()
            if self._then is not None:
                self._then(delivery)
        finally:
            if alone:
                self._calling.release()

    def subscribe(self, driver: Driver, *addresses: Address, prefetch: int = 100) -> Subscription:
        """Subscribe, and return when the subscription is ready."""
        subscription = driver.subscribe(addresses, self.take, prefetch=prefetch)
        subscription.ready.result(30)
        return subscription

    @property
    def bodies(self) -> list[str]:
        """The bodies of the deliveries, as texts."""
        return [delivery.message.body.decode() for delivery in self.deliveries]

    def wait(self, count: int, seconds: float = 15.0) -> list[Delivery]:
        """Wait for `count` deliveries."""
        until(lambda: len(self.deliveries) >= count, f"{count} deliveries; there are {len(self.deliveries)}", seconds)
        return self.deliveries

    def wait_for(self, body: str, seconds: float = 15.0) -> None:
        """Wait for a message with this text."""
        until(lambda: body in self.bodies, f"the message {body!r}", seconds)

    def wait_for_all(self, bodies: Iterable[str]) -> None:
        """Wait for these messages, as long as any messages arrive.

        Raises:
            AssertionError: nothing has arrived for some seconds; the text names the missing messages.
        """
        wanted = set(bodies)
        count, since = -1, 0.0
        while missing := wanted - set(self.bodies):
            if len(self.deliveries) != count:
                count, since = len(self.deliveries), time.monotonic()
            assert time.monotonic() - since < QUIET, f"{len(missing)} are missing: {sorted(missing)[:10]}"
            time.sleep(0.005)


def another_driver(bus: Bus) -> Driver:
    """A driver with connections of its own, as another process has."""
    return bus.new_transport().driver


def address_of(bus: Bus, kind: str) -> Address:
    """An address to subscribe to."""
    named = {"server": "s1", "fanout": "s1"}.get(kind, "")
    return bus.address(kind, server=named, name="p1" if kind == "pool" else "")


def sent_to(address: Address) -> Address:
    """The address to send to, so that a subscriber of `address` gets the message."""
    if address.kind == "pool":
        return Address("topic", address.exchange, address.topic)
    return address._replace(server="") if address.kind == "fanout" else address


def leave_behind(bus: Bus, address: Address) -> None:
    """Make an address exist to which nobody listens any more. Needs `Capability.STORAGE`."""
    driver = another_driver(bus)
    Receiver().subscribe(driver, address).close().result(15)


def wait_until_disconnected(driver: Driver, address: Address) -> None:
    """Return when a driver knows that it is disconnected: messages sent from now on have to wait for a connection.

    Before that, a driver may write a message to a connection that has already ended, and cannot know whether it
    arrived. `Driver.up_since` says what the driver knows. Without that, a message is sent as a probe: if it fails as
    surely not delivered, it has waited.

    Raises:
        AssertionError: it did not notice within 30 s.
    """
    if driver.up_since != 0.0:
        until(
            lambda: driver.up_since is None,
            "up_since is None while the message system is away: an idle connection that has ended has to be noticed",
            30,
        )
        return

    def a_message_waits() -> bool:
        error = driver.send(address, message("probe", ttl=0.3), mandatory=False).exception(30)
        return isinstance(error, TransportUnavailable) and not error.maybe_delivered

    until(a_message_waits, "a message waits while the message system is away, and then fails as not delivered", 30)
