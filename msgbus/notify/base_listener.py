"""BaseNotificationListener: what the listeners for threads and for asyncio have in common: all that does not wait."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

from msgbus.base_listener import BaseListener, process_name
from msgbus.base_transport import BaseTransport
from msgbus.drivers.base import Address, Capability, Delivery, OnDelivery, Subscription
from msgbus.exceptions import CapabilityMissing, InvalidTarget
from msgbus.foreign import get_logger
from msgbus.interceptors import checked_interceptors
from msgbus.notify.batches import Gatherer
from msgbus.notify.dispatcher import NotificationDispatcher
from msgbus.notify.processing import NotificationProcessor
from msgbus.server_call import ServerCall
from msgbus.target import Target, topic_hint
from msgbus.widening import WideSubscription
from msgbus.workers import Workers

LOG = get_logger(__name__)

MAX_BATCH = 10_000
"""The most notifications of a batch: as many again may wait for the next one, which message systems limit."""


class Batches(NamedTuple):
    """When a batch is complete: by its number, or by the seconds since its first notification has come."""

    size: int | None
    timeout: float | None


def checked_batches(batch_size: Any, batch_timeout: Any) -> Batches:
    """What the user wants of batches.

    Raises:
        ValueError: there is neither a size nor a time, so that no batch would ever be complete; or one is invalid.
    """
    if batch_size is None and batch_timeout is None:
        raise ValueError(
            "a batch needs batch_size, batch_timeout, or both: with neither it would never be complete, and nothing "
            "would be handled"
        )
    if batch_size is not None and (not isinstance(batch_size, int) or not 1 <= batch_size <= MAX_BATCH):
        raise ValueError(f"batch_size is a whole number from 1 to {MAX_BATCH}, not {batch_size!r}")
    if batch_timeout is not None and not (
        isinstance(batch_timeout, int | float) and batch_timeout > 0 and math.isfinite(batch_timeout)
    ):
        raise ValueError(f"batch_timeout is a number of seconds above 0, not {batch_timeout!r}")
    return Batches(batch_size, batch_timeout)


class BaseNotificationListener(BaseListener):
    """See `msgbus.NotificationListener`."""

    _processor: NotificationProcessor

    def __init__(
        self,
        transport: BaseTransport,
        targets: Sequence[Target],
        dispatcher: NotificationDispatcher,
        *,
        allow_requeue: bool,
        pool: str | None,
        batches: Batches | None,
        interceptors: Sequence[Any],
    ) -> None:
        if allow_requeue and Capability.REQUEUE not in transport.driver.capabilities:
            raise CapabilityMissing(
                f"allow_requeue: {type(transport.driver).__name__} does not declare the capability "
                f"{Capability.REQUEUE.value!r}, so that no notification can be given back"
            )
        addresses = _addresses(transport, targets, dispatcher.priorities, pool)
        asynchronous = dispatcher.asynchronous
        self._interceptors = checked_interceptors(interceptors, asynchronous=asynchronous, owner="this listener")
        self._dispatcher = dispatcher
        self._allow_requeue = allow_requeue
        self._batches = batches
        title = f"the listener for {', '.join(dict.fromkeys(target.topic or '' for target in targets))}"
        super().__init__(
            transport, title if pool is None else f"{title}, pool {pool}", addresses, asynchronous=asynchronous
        )
        self._start_clean()

    def _start_clean(self) -> None:
        """Listen to nothing."""
        super()._start_clean()
        self._gatherer: Gatherer | None = None
        self._processor = NotificationProcessor(
            self.transport,
            process_name(),
            self._dispatcher,
            allow_requeue=self._allow_requeue,
            on_paused=self._on_paused,
            interceptors=self._interceptors,
        )

    def _make_subscription(self, take: OnDelivery) -> Subscription:
        subscribe = partial(super()._make_subscription, take)
        return WideSubscription(subscribe, self._prefetch()) if self._allow_requeue else subscribe()

    def _on_paused(self, paused: int) -> None:
        """So many notifications of one address wait to come again: others must not wait for that."""
        if isinstance(self._subscription, WideSubscription):
            self._subscription.widen_for(paused)

    def _prefetch(self) -> int:
        prefetch = super()._prefetch()
        if self._batches is None or self._batches.size is None:
            return prefetch
        return max(prefetch, 2 * self._batches.size)  # While one batch is handled the next one is gathered.

    def _receiver(self, workers: Workers) -> OnDelivery:
        if self._batches is None:
            return super()._receiver(workers)
        # With a time alone: if the whole prefetch were gathered, nothing more would come until that is over.
        size = self._batches.size or max(1, self._prefetch() // 2)
        self._gatherer = Gatherer(size, self._batches.timeout, self.transport.loop, workers.submit)
        return self._gatherer.take

    def _on_started(self) -> None:
        LOG.info("%s listens on %s", self._title, self.transport.driver.state)

    def _give_back_all(self, backlog: Sequence[Delivery | ServerCall]) -> None:
        """Let other listeners have what has not begun here."""
        # Without that capability they are given back when the subscription is closed.
        if Capability.REQUEUE in self.transport.driver.capabilities:
            for item in backlog:
                if isinstance(item, Delivery):
                    item.reject(requeue=True)
        if self._gatherer is not None:
            self._gatherer.flush()


def _addresses(transport: BaseTransport, targets: Any, priorities: Sequence[str], pool: str | None) -> list[Address]:
    """What is listened to: each level of each target.

    Raises:
        InvalidTarget: a target has no topic, or one that is too long; or the pool's name is invalid.
        TypeError: `targets` is no list of them.
    """
    if not isinstance(targets, Collection) or not all(isinstance(target, Target) for target in targets):
        raise TypeError(f"targets is a list, [Target(topic='notifications')], not {targets!r}")
    if not targets:
        raise TypeError("there is no target: nothing would be listened to")
    if pool is not None:
        Target(server=pool)  # A pool's name is checked as others are.
    found = []
    for target in targets:
        if not target.topic:
            raise InvalidTarget(f"a listener's target needs a topic{topic_hint(target)}", target)
        for priority in priorities:
            address = transport.address(Target(exchange=target.exchange, topic=f"{target.topic}.{priority}"))
            found.append(address if pool is None else address._replace(kind="pool", name=pool))
    return list(dict.fromkeys(found))
