"""The broker's nodes: creating what an address needs, and inspecting a queue. On the loop's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgbus.drivers.base import Address
from msgbus.drivers.qpid.engine import Engine
from msgbus.drivers.qpid.management import (
    CONFLICT,
    CREATED,
    FORBIDDEN,
    NO_ANSWER,
    NOT_FOUND,
    OK,
    SILENT,
    SILENT_HINT,
    Answer,
    Management,
    OnAnswer,
    OnDeclaredNode,
)
from msgbus.drivers.qpid.topology import Source
from msgbus.drivers.toolkit.loop import Loop

EXCHANGE = "org.apache.qpid.DirectExchange"
QUEUE = "org.apache.qpid.Queue"
INSPECT_TIMEOUT = 5.0
"""Seconds within which the broker has to answer when a queue is inspected."""


class Nodes:
    """See the module's text."""

    def __init__(self, engine: Engine, loop: Loop, queue_limit: int) -> None:
        """`queue_limit`: see `QpidDriver`."""
        self._management = Management(engine, loop)
        self._queue_limit = queue_limit
        self._exchanges: set[str] = set()

    def declare(self, source: Source, on_declared: OnDeclaredNode) -> None:
        """Create what does not exist yet; then call `on_declared`."""
        steps: list[Callable[[OnAnswer], None]] = []
        exchange, queue = source.exchange, source.queue
        if exchange is not None and exchange not in self._exchanges:
            steps.append(lambda then: self._create_exchange(exchange, then))
        if queue is not None:
            steps.append(lambda then: self._create_queue(queue, source.kept, then))
            if exchange is not None:
                steps.append(lambda then: self._bind(exchange, queue, source.key, then))
        self._go_on(steps, source, on_declared)

    def _go_on(self, steps: list[Callable[[OnAnswer], None]], source: Source, on_declared: OnDeclaredNode) -> None:
        if not steps:
            if source.exchange is not None:
                self._exchanges.add(source.exchange)
            on_declared(None)
            return

        def answered(answer: Answer) -> None:
            if answer.status in (OK, CREATED, CONFLICT):
                self._go_on(steps[1:], source, on_declared)
            elif answer.status == NOT_FOUND and source.exchange in self._exchanges:
                self._exchanges.discard(source.exchange)  # It has been deleted since.
                self.declare(source, on_declared)
            else:
                self._exchanges.discard(source.exchange or "")
                on_declared(answer)

        steps[0](answered)

    def _create_exchange(self, name: str, then: OnAnswer) -> None:
        # So the exchange rejects a message for which nothing is bound; by default it would drop it.
        body = {"name": name, "durable": True, "unroutableMessageBehaviour": "REJECT"}
        self._management.ask("CREATE", EXCHANGE, then, body)

    def _create_queue(self, name: str, kept: bool, then: OnAnswer) -> None:
        body: dict[str, Any] = {"name": name, "qpid-type": "standard", "durable": True}
        if not kept:
            body["lifetimePolicy"] = "DELETE_ON_NO_OUTBOUND_LINKS"
        if self._queue_limit:
            body |= {"maximumQueueDepthMessages": self._queue_limit, "overflowPolicy": "REJECT"}
        self._management.ask("CREATE", QUEUE, then, body)

    def _bind(self, exchange: str, queue: str, key: str, then: OnAnswer) -> None:
        self._management.ask(
            "bind",
            EXCHANGE,
            then,
            index="object-path",
            key=exchange,
            destination=queue,
            bindingKey=key,
            replaceExistingArguments=True,
        )

    def get_statistics(self, queue: str, on_answer: OnAnswer) -> None:
        """Ask for a queue's statistics."""
        timeout = INSPECT_TIMEOUT
        self._management.ask("getStatistics", QUEUE, on_answer, timeout=timeout, index="object-path", key=queue)

    def down(self, reason: str) -> None:
        """The connection has broken."""
        self._management.end(Answer(NO_ANSWER, reason, None))


def explain(answer: Answer) -> str:
    """The management's answer in words, and what to do about it."""
    if answer.status == SILENT:
        return f"{answer.text}; {SILENT_HINT}"
    hint = ""
    if answer.status == FORBIDDEN:
        hint = "; check the user's rights to create queues and exchanges, or create them beforehand (option declare)"
    return f"{answer.status or 'no answer'}: {answer.text}{hint}"


def not_declared(broker: str, address: Address, answer: Answer) -> str:
    """Why an address could not be declared, and what to do about it."""
    verb = "has not declared" if answer.status == SILENT else "refuses"
    return f"{broker} {verb} {address}: {explain(answer)}"
