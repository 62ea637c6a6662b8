"""BaseListener: what servers of requests and listeners for notifications have in common: all that does not wait."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence

from msgbus.base_processor import BaseProcessor
from msgbus.base_transport import BaseTransport
from msgbus.deadline import checked_seconds
from msgbus.drivers.base import Address, Delivery, OnDelivery, Subscription
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import CallCancelled, MessagingException
from msgbus.health import Health, why_it_stands
from msgbus.server_call import ServerCall
from msgbus.workers import Workers

STOP_TIMEOUT = 5.0
"""Seconds for the message system to confirm that it has stopped delivering."""


def process_name() -> str:
    """The name of what listens and was given none."""
    return f"{socket.gethostname()[:60]}-{os.getpid()}"


class BaseListener(ABC):
    """Addresses, the subscription to them, and the processor of what comes."""

    _processor: BaseProcessor

    def __init__(
        self, transport: BaseTransport, title: str, addresses: Sequence[Address], *, asynchronous: bool
    ) -> None:
        """Make one that does not listen yet.

        Args:
            transport: where it listens.
            title: what it is called in logs and errors.
            addresses: what it listens to.
            asynchronous: what it runs may be ``async``.
        """
        self.transport = transport
        self._title = title
        self._addresses = addresses
        self._asynchronous = asynchronous
        self._thread_name = f"msgbus-{addresses[0].topic}"

    def _start_clean(self) -> None:
        """Listen to nothing."""
        self._subscription: Subscription | None = None
        self._workers: Workers | None = None
        self._stopping = False
        self._stops = 0  # how often it was to be stopped: `start` may be under way, and not have subscribed yet

    def _check_not_stopped(self, stops: int) -> None:
        """Check that it was not to be stopped since `_stops` had a value.

        Raises:
            CallCancelled: it was.
        """
        if self._stops != stops:
            raise CallCancelled(f"{self._title} was stopped before it was started")

    def _prefetch(self) -> int:
        """How many deliveries of each address may be unfinished."""
        prefetch: int = self.transport.option("rpc_prefetch")
        return prefetch

    def _receiver(self, workers: Workers) -> OnDelivery:
        """What takes the deliveries; it must not block."""
        # Each delivery that runs holds a thread or a task; the workers queue those for which there is none.
        return workers.submit

    def _is_serving(self) -> bool:
        """Whether there is nothing to start.

        Raises:
            MessagingException: it was stopped, and `wait` has still to end it.
        """
        subscription = self._subscription  # Read once: `wait` may remove it.
        if subscription is None:
            return False
        if self._stopping:
            raise MessagingException(f"{self._title} was stopped: call wait() before start()")
        return subscription.ready.done() and subscription.ready.exception() is None

    @abstractmethod
    def _on_started(self) -> None:
        """Deliveries come from now on."""

    @abstractmethod
    def _give_back_all(self, backlog: Sequence[Delivery | ServerCall]) -> None:
        """Let others run what has not begun here."""

    def __repr__(self) -> str:
        if self._subscription is None:
            state = "not serving"
        elif self._stopping:
            state = "stopping"
        else:
            state = "serving" if self._subscription.ready.done() else "starting"
        return f"<{type(self).__name__} {self._title}, {state}, over {self.transport}>"

    def healthy(self, timeout: float = 1.0) -> Health:
        """Whether the server takes requests, and whether it works at all; see `Health`. Any thread.

        It sends nothing. A server whose threads or tasks are all busy is healthy: it has much to do.

        Args:
            timeout: seconds for which it may wait for the server's I/O, and for its event loop, to react. On the thread
                of that it does not wait: they are at work.

        Raises:
            ValueError: `timeout` is not a number.
        """
        timeout = checked_seconds(timeout)
        wrong = self._why_not_live(timeout)
        why = [wrong] if wrong is not None else []
        not_ready = self._why_not_ready()
        if not_ready is not None:
            why.append(not_ready)
        return Health(wrong is None, not why, tuple(why))

    def _why_not_live(self, timeout: float) -> str | None:
        if self.transport.closed:
            return "its transport was closed"
        if self._subscription is None:  # Nothing of it works yet that could stand still.
            return None
        end = Loop.now() + timeout
        wrong = why_it_stands(self.transport.loop, timeout)
        workers = self._workers
        if wrong is None and workers is not None and not workers.reacts(max(0.0, end - Loop.now())):
            return f"its event loop has not reacted for {timeout:g} s: an async method blocks it, or it was closed"
        return wrong

    def _why_not_ready(self) -> str | None:
        subscription, driver = self._subscription, self.transport.driver
        if subscription is None:
            return "it was not started, or it was stopped"
        if self._stopping:
            return "it is being stopped"
        if not subscription.ready.done():
            return f"it is being started, over {driver.state}"
        error = subscription.ready.exception()
        if error is not None:
            return f"it could not be started: {error}"
        return None if driver.up_since is not None else f"it has no connection: {driver.state}"

    def _subscribe(self, workers: Workers) -> Subscription:
        """Have requests run on `workers`, which the processor knows."""
        self._stopping = False
        self._workers = workers
        subscription = self._subscription = self._make_subscription(self._receiver(workers))
        return subscription

    def _make_subscription(self, take: OnDelivery) -> Subscription:
        return self.transport.driver.subscribe(self._addresses, take, prefetch=self._prefetch())
