"""One address of a subscription or inbox over one connection to Qpid: a link, with as much credit as its prefetch."""

from __future__ import annotations

import itertools
from typing import Any

from msgbus.drivers.base import Message
from msgbus.drivers.qpid import management, topology
from msgbus.drivers.qpid.codec import decode_message
from msgbus.drivers.qpid.connection import Wire
from msgbus.drivers.qpid.engine import ACCEPTED, MODIFIED, RELEASED, Condition, ReceivingLink, settle, was_aborted
from msgbus.drivers.qpid.management import SILENT, SILENT_HINT, Answer
from msgbus.drivers.qpid.nodes import not_declared
from msgbus.drivers.qpid.relay import NOT_FOUND
from msgbus.drivers.toolkit.consuming import Feed, Outcome, Source
from msgbus.drivers.toolkit.loop import Loop
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

INBOX_CREDIT = 1000
"""How many messages may be on their way to an inbox; credit is renewed as they arrive."""


class QpidFeed(ReceivingLink, Feed):
    """See the module's text, and `Feed`."""

    def __init__(self, session: Wire, source: Source, where: topology.Source) -> None:
        """Make it; `start` begins."""
        self._session = session
        self._source = source
        self._where = where
        self._is_inbox = not source.prefetch
        self._numbers = itertools.count()
        self._open: dict[int, Any] = {}
        self._to_grant = 0
        self._declared = False
        self._draining = False
        self._closing = False
        self._alive = True

    def start(self) -> None:
        """Declare what is needed, and attach the link."""
        # If the broker creates a queue for the link, only an exchange is needed, which nearly always exists.
        if self._session.driver.declares and self._where.queue is not None:
            self._declare()
        else:
            self._attach()

    def _declare(self) -> None:
        self._declared = True
        self._session.declare_node(self._where, self._on_declared)

    def _on_declared(self, answer: Answer | None) -> None:
        if not self._alive:
            return
        if answer is None:
            self._attach()
        else:
            self.end()
            why = not_declared(self._session.driver.name(), self._source.address, answer)
            self._source.refused(self, why, permanent=answer.status != SILENT)

    def _attach(self) -> None:
        if self._alive and self._session.is_open:
            credit = self._source.prefetch or INBOX_CREDIT
            # A unique name that stays the same over all connections: see `QpidDriver.identity`.
            name = f"{self._source.unique}.{self._source.address}"
            self.attach(self._session.engine, name, self._where.address, credit, settled=self._is_inbox)
            self._session.driver.loop.call_later(management.ANSWER_TIMEOUT, self._check_attached)

    def _check_attached(self) -> None:
        """Try the next host if this one does not answer. With one host, `trouble` says so, and it is waited for."""
        if self._alive and not self._draining and (trouble := self.trouble()) is not None:
            self._session.move(trouble)

    def _refused(self, reason: object) -> None:
        self._source.refused(self, f"{self._session.driver.name()} refuses {self._source.address}: {reason}")

    # Any thread

    def settle(self, tag: int, outcome: Outcome) -> bool:
        if not self._alive:
            return False
        self._session.driver.loop.call(self._settle, tag, outcome)
        return True

    def trouble(self) -> str | None:
        since = self._source.waits_since
        if since is None or (waits := Loop.now() - since) < management.ANSWER_TIMEOUT:
            return None
        name = self._session.driver.name()
        return f"{name} has not answered for {waits:.0f} s: {self._source.address} is not consumed from; {SILENT_HINT}"

    # On the loop's thread

    def _settle(self, tag: int, outcome: Outcome) -> None:
        if not self._alive or (delivery := self._open.pop(tag, None)) is None:
            return
        if outcome is Outcome.REQUEUE:
            settle(delivery, MODIFIED, failed=True)
        else:  # Also what is dropped: Qpid would move what is rejected to a queue for dead letters, if it has one.
            settle(delivery, ACCEPTED)
        if not self._draining:
            self.flow(1)

    def on_attached(self) -> None:
        self._source.active(self)

    def on_delivery(self, delivery: Any) -> None:
        if was_aborted(delivery):
            settle(delivery)
            self.flow(1)
            return
        data = self.read(delivery)
        if data is None:
            return
        if self._draining:
            settle(delivery, RELEASED)  # As if it had never been delivered: it is not counted as a delivery either.
            return
        number = next(self._numbers)
        if self._is_inbox:
            settle(delivery)
            self._to_grant += 1
            if self._to_grant >= INBOX_CREDIT // 2:
                self.flow(self._to_grant)
                self._to_grant = 0
        else:
            self._open[number] = delivery
        try:
            got = decode_message(data)
        except ValueError as exc:
            LOG.error("%s: a message that cannot be decoded is dropped: %s", self._source.address, exc)
            self._settle(number, Outcome.DROP)
            return
        # The ttl is that at sending: time spent in many frames, or waiting here, is not subtracted.
        ttl = None if got.ttl is None else got.ttl / 1000
        message = Message(got.body, got.content_type, got.id, ttl, got.durable)
        self._source.deliver(self, number, message, got.delivery_count > 0, got.delivery_count)

    def cancel(self) -> None:
        """Give back the messages that are on their way."""
        self._draining = True
        if self.attached and self.credit > 0:
            self.drain()
        else:
            self._source.cancelled(self)

    def on_flow(self) -> None:
        if self._draining and self.credit == 0:
            self._source.cancelled(self)
            if self._closing:
                self._leave()

    def close(self) -> None:
        self._closing = True
        # No message may be on its way when the link is detached: it would count as delivered.
        if self._is_inbox or not self.attached or self.credit == 0:
            self._leave()

    def _leave(self) -> None:
        if not self._alive:
            return
        was_begun = self._link is not None
        self.end()
        if was_begun:
            self.detach()
        else:
            self._source.closed(self)

    def on_detached(self, condition: Condition | None) -> None:
        if self._closing:
            self.end()
            self._source.closed(self)
            return
        self._open.clear()
        missing = condition is not None and condition.name == NOT_FOUND
        if missing and self._session.driver.declares and not self._declared:
            self._declare()
            return
        self.end()
        hint = ""
        if missing:
            hint = "; create it beforehand (option declare)"
        elif condition is not None and condition.is_forbidden:
            hint = "; check the user's rights to consume, and to create the queue that the broker makes for it"
        self._refused(f"{condition or 'the link was closed'}{hint}")

    def end(self) -> None:
        self._alive = False
        self._open.clear()
