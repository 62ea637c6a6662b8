"""Requests to the broker's management over AMQP: creating and inspecting nodes (OASIS AMQP management draft).

Each is a message to the node ``$management``; the answers come to a node that the broker creates for this connection.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from proton import Message, ProtonException

from msgbus.drivers.qpid.engine import (
    ACCEPTED,
    REJECTED,
    Condition,
    Engine,
    ReceivingLink,
    SendingLink,
    outcome_of,
    rejection_of,
    settle,
    was_settled,
)
from msgbus.drivers.toolkit.loop import Loop

NODE = "$management"
OK, CREATED, FORBIDDEN, NOT_FOUND, CONFLICT = 200, 201, 403, 404, 409
NO_ANSWER = 0
"""Status of a request to which no answer comes: the connection has broken, or the broker takes no requests."""
SILENT = -1
"""Status of a request that the broker has not answered in time."""
SILENT_HINT = "check that the broker is not stuck or overloaded, and see its log"
"""What to do about that."""
ANSWER_TIMEOUT = 10.0
"""Seconds within which the broker has to answer a request that creates something, or attach a link."""


class Answer(NamedTuple):
    """The broker's answer to a request: a status like that of HTTP, a text, and a body."""

    status: int
    text: str
    body: Any


OnAnswer = Callable[[Answer], None]
OnDeclaredNode = Callable[[Answer | None], None]
"""Gets None if a node exists now, or the answer that says why it does not."""


class Management:
    """One connection's requests. On the loop's thread."""

    def __init__(self, engine: Engine, loop: Loop) -> None:
        """Make it; its links are attached at the first request."""
        self._engine = engine
        self._loop = loop
        self._numbers = itertools.count(1)
        self._waiting: list[tuple[int, dict[str, Any], dict[str, Any]]] = []
        self._asked: dict[int, OnAnswer] = {}
        self._requests: _Requests | None = None
        self._answers: _Answers | None = None

    def ask(
        self,
        operation: str,
        kind: str,
        on_answer: OnAnswer,
        body: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        **properties: Any,
    ) -> None:
        """Request an operation on a node of that kind.

        Args:
            operation: its name.
            kind: the node's type.
            on_answer: called once, with the broker's answer, or with one whose status is `SILENT` or `NO_ANSWER`.
            body: the operation's arguments, for one that creates a node.
            timeout: seconds until the answer is given up. None: `ANSWER_TIMEOUT`.
            properties: further properties of the request.
        """
        number = next(self._numbers)
        self._asked[number] = on_answer
        timeout = ANSWER_TIMEOUT if timeout is None else timeout
        self._loop.call_later(timeout, self._give_up, number, timeout)
        self._waiting.append((number, {"operation": operation, "type": kind, **properties}, body or {}))
        if self._answers is None:
            self._answers = _Answers(self)
            self._answers.attach(self._engine, "management.answers", None, 1000, settled=True)
            self._requests = _Requests(self)
            self._requests.attach(self._engine, "management.requests", NODE)
        self.go_on()

    def go_on(self) -> None:
        """Send what waits, as far as that is possible."""
        requests, answers = self._requests, self._answers
        if requests is None or answers is None or not (requests.attached and answers.attached):
            return
        while self._waiting and requests.credit > 0:
            number, properties, body = self._waiting.pop(0)
            message = Message(body=body, properties=properties)
            message.reply_to = answers.source
            message.correlation_id = str(number)
            requests.send(number, bytes(message.encode()))

    def answered(self, number: int, answer: Answer) -> None:
        """Pass an answer to the request's callback."""
        on_answer = self._asked.pop(number, None)
        if on_answer is not None:
            on_answer(answer)

    def _give_up(self, number: int, seconds: float) -> None:
        """Wait no more for an answer; if the request has not been sent yet, it never will be."""
        if number in self._asked:
            self._waiting = [waiting for waiting in self._waiting if waiting[0] != number]
            self.answered(number, Answer(SILENT, f"no answer within {seconds:g} s", None))

    def end(self, answer: Answer) -> None:
        """Answer all open requests: the broker will not."""
        asked, self._asked = self._asked, {}
        self._waiting.clear()
        self._requests = self._answers = None
        for on_answer in asked.values():
            on_answer(answer)


class _Requests(SendingLink):
    def __init__(self, management: Management) -> None:
        self._management = management
        self._numbers: dict[Any, int] = {}

    def send(self, number: int, data: bytes) -> None:
        self._numbers[self.transfer(data)] = number

    def on_attached(self) -> None:
        self._management.go_on()

    def on_flow(self) -> None:
        self._management.go_on()

    def on_delivery(self, delivery: Any) -> None:
        outcome = outcome_of(delivery)
        if not outcome and not was_settled(delivery):
            return
        number = self._numbers.pop(delivery, None)
        refusal = rejection_of(delivery) if outcome == REJECTED else None
        settle(delivery)
        if number is not None and outcome != ACCEPTED:
            status = status_of(refusal)
            self._management.answered(number, Answer(status, str(refusal or "the request was not taken"), None))

    def on_detached(self, condition: Condition | None) -> None:
        self._management.end(Answer(status_of(condition), f"management: {condition or 'it was closed'}", None))


class _Answers(ReceivingLink):
    def __init__(self, management: Management) -> None:
        self._management = management

    def on_attached(self) -> None:
        self._management.go_on()

    def on_delivery(self, delivery: Any) -> None:
        data = self.read(delivery)
        if data is None:
            return
        settle(delivery)
        self.flow(1)
        message = Message()
        try:
            message.decode(bytes(data))
            number = int(str(message.correlation_id))
        except (ProtonException, ValueError):
            return
        found: Any = message.properties
        properties = found or {}
        text = str(properties.get("statusDescription", ""))
        try:
            status = int(properties.get("statusCode", NO_ANSWER))
        except (TypeError, ValueError, OverflowError):
            status, text = NO_ANSWER, f"the status of the broker's answer is not a number; {text}"
        self._management.answered(number, Answer(status, text, message.body))

    def on_detached(self, condition: Condition | None) -> None:
        self._management.end(Answer(status_of(condition), f"management: {condition or 'it was closed'}", None))


def status_of(condition: Condition | None) -> int:
    """The status that fits a condition."""
    if condition is None:
        return NO_ANSWER
    if condition.is_forbidden:
        return FORBIDDEN
    return NOT_FOUND if condition.name == "amqp:not-found" else NO_ANSWER
