"""Receiver: a subscriber that keeps what it gets."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

from msgbus.conformance.bus import Bus
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Capability, Delivery, Driver, Message, Subscription

TEXT = "text/plain"


def message(body: bytes | str = b"", ttl: float | None = 30.0, durable: bool = False) -> Message:
    """A message with an id of its own."""
    data = body.encode() if isinstance(body, str) else body
    return Message(data, TEXT, uuid.uuid4().hex, ttl, durable)


def send(driver: Driver, address: Address, body: bytes | str, *, mandatory: bool = True, **more: Any) -> None:
    """Send, and return when the message system is responsible for it."""
    driver.send(address, message(body, **more), mandatory=mandatory).result(15)


class Receiver:
    """Subscribes, and keeps what comes in the order in which it comes. Accepts it, unless told otherwise.

    Attributes:
        deliveries: what came.
        overlaps: how often the driver called while a call was going on.
    """

    def __init__(self, accept: bool = True, then: Callable[[Delivery], None] | None = None) -> None:
        self.deliveries: list[Delivery] = []
        self.overlaps = 0
        self._accept = accept
        self._then = then
        self._calling = threading.Lock()

    def take(self, delivery: Delivery) -> None:
        """Take a delivery: for `Driver.subscribe`."""
        if not self._calling.acquire(blocking=False):
            self.overlaps += 1
            self._calling.acquire()
        try:
            self.deliveries.append(delivery)
            if self._accept:
                delivery.accept()
            if self._then is not None:
                self._then(delivery)
        finally:
            self._calling.release()

    def subscribe(self, driver: Driver, *addresses: Address, prefetch: int = 100) -> Subscription:
        """Subscribe, and return when that is ready."""
        subscription = driver.subscribe(addresses, self.take, prefetch=prefetch)
        subscription.ready.result(30)
        return subscription

    @property
    def bodies(self) -> list[str]:
        """What came, as texts."""
        return [delivery.message.body.decode() for delivery in self.deliveries]

    def wait(self, count: int, seconds: float = 15.0) -> list[Delivery]:
        """Wait for `count` deliveries."""
        until(lambda: len(self.deliveries) >= count, f"{count} deliveries; there are {len(self.deliveries)}", seconds)
        return self.deliveries

    def wait_for(self, body: str, seconds: float = 15.0) -> None:
        """Wait for a message with this text."""
        until(lambda: body in self.bodies, f"the message {body!r}", seconds)


def another_driver(bus: Bus) -> Driver:
    """A driver with connections of its own, as another process has."""
    return bus.new_transport().driver


def leave_behind(bus: Bus, address: Address) -> None:
    """Have an address exist to which nobody listens now."""
    bus.needs(Capability.STORE)
    driver = another_driver(bus)
    Receiver().subscribe(driver, address).close().result(15)
