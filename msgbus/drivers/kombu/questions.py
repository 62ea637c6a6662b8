"""Requests of the kombu driver to RabbitMQ, each on a separate channel, since a refusal closes the channel."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

from msgbus.drivers.base import QueueInfo
from msgbus.drivers.kombu import frames
from msgbus.drivers.kombu.channel import Channel, Wire
from msgbus.drivers.kombu.topology import Exchange, Queue, Route
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.exceptions import MessageUndeliverable, TransportUnavailable

NOT_FOUND = 404
"""RabbitMQ's code for a queue or exchange that does not exist, or whose node cannot be reached."""
PRECONDITION_FAILED = 406
"""RabbitMQ's code, among others, for a queue or exchange that exists with other properties."""
INTERNAL_ERROR = 541
"""RabbitMQ's code, among others, for a quorum queue that cannot be formed, or has no leader to consume from."""
DISCONNECTED = -1
"""The connection broke before the answer came."""
SILENT = -2
"""No answer came in time."""
NO_CHANNEL = -3
"""It was not asked in time: other questions had all channels that the connection has for them."""
INSPECT_TIMEOUT = 2.0
"""Seconds that inspecting a queue may take. RabbitMQ 4 takes a minute if the queue's node is down."""


NODE_HINT = (
    "it is a classic queue, which one node keeps, and that node is away: start the node (rabbitmqctl list_queues "
    "--offline), or delete the queue and what is in it; with quorum_queues = true queues outlive the loss of a node"
)


class Answer(NamedTuple):
    """The answer to a `Question`.

    Attributes:
        code: 0 if all was done; `DISCONNECTED`; `SILENT`; `NO_CHANNEL`; or the code with which RabbitMQ refuses.
        text: why not, in RabbitMQ's words.
        info: from a queue.declare, if the question had one.
    """

    code: int
    text: str = ""
    info: QueueInfo | None = None

    @property
    def node_is_down(self) -> bool:
        """Whether a queue's node cannot be reached, as far as that can be known."""
        return self.code == SILENT or (self.code == NOT_FOUND and is_node_down(self.text))


class Question(Channel):
    """Asks once. `on_answer` is called once, on the loop's thread.

    Attributes:
        asked_at: when it was asked, in seconds of `Loop.now`; None: it still waits for a channel.
        is_pending: RabbitMQ is still to answer it, or to be asked. It may answer long after `on_answer` was called.
    """

    def __init__(
        self,
        session: Wire,
        ask: Callable[[int], bytes],
        last: bytes,
        on_answer: Callable[[Answer], None],
        timeout: float | None = INSPECT_TIMEOUT,
    ) -> None:
        """Prepare a question.

        Args:
            session: the connection.
            ask: makes the frames for a channel of the number that it is given.
            last: the method that answers the last of them.
            on_answer: takes the answer.
            timeout: seconds to wait for it, or None: for as long as the connection lives.
        """
        self._session = session
        self._ask = ask
        self._last = last
        self._on_answer: Callable[[Answer], None] | None = on_answer
        self._timeout = timeout
        self._info: QueueInfo | None = None
        self.asked_at: float | None = None
        self.is_pending = False

    def start(self) -> None:
        """Ask, as soon as there is a channel. On the loop's thread."""
        if not self._session.is_open:
            self._answer(Answer(DISCONNECTED, f"{self._session.name()} is not connected"))
            return
        self.is_pending = True
        self._session.add_soon(self, self._begin)
        if self._timeout is not None:
            self._session.loop.call_later(self._timeout, self._on_timeout, self._timeout)

    def _begin(self) -> None:
        self.asked_at = self._session.loop.now()
        self._session.write(frames.channel_open(self.number) + self._ask(self.number))

    def _on_timeout(self, timeout: float) -> None:
        if self.asked_at is not None:
            # The channel stays until RabbitMQ does answer: its number cannot be used again before.
            self._answer(Answer(SILENT, f"no answer within {timeout:g} s"))
        else:
            self.is_pending = False
            self._session.remove_channel(self)
            text = f"it was not asked: there was no channel left for {timeout:g} s, as it has not answered others"
            self._answer(Answer(NO_CHANNEL, text))

    def on_method(self, ids: bytes, buffer: bytes, at: int, end: int) -> None:
        if ids == frames.QUEUE_DECLARE_OK:
            messages, consumers = frames.read_declare_ok(buffer, at)
            self._info = QueueInfo(consumers, messages)
        if ids == self._last:
            self.is_pending = False
            self._session.write(frames.channel_close(self.number))
            self._answer(Answer(0, info=self._info))
        elif ids == frames.CHANNEL_CLOSE:
            code, text = frames.read_close(buffer, at, end)
            self.is_pending = False
            self._session.write(frames.method(self.number, frames.CHANNEL_CLOSE_OK))
            self._session.remove_channel(self)
            self._answer(Answer(code, text, self._info))
        elif ids == frames.CHANNEL_CLOSE_OK:
            self._session.remove_channel(self)

    def on_down(self, error: TransportUnavailable) -> None:
        self._answer(Answer(DISCONNECTED, str(error)))

    def _answer(self, answer: Answer) -> None:
        on_answer, self._on_answer = self._on_answer, None
        if on_answer is not None:
            on_answer(answer)


class Questions:
    """Asks each question once at a time. On the loop's thread.

    Whoever has the same question meanwhile gets the same answer. Nor is it asked again, on one more channel each time,
    while RabbitMQ owes the answer to an earlier one.
    """

    def __init__(self, session: Wire) -> None:
        self._session = session
        self._waiting: dict[tuple[object, ...], list[Callable[[Answer], None]]] = {}
        self._owed: dict[tuple[object, ...], Question] = {}

    def ask(
        self,
        key: tuple[object, ...],
        ask: Callable[[int], bytes],
        last: bytes,
        on_answer: Callable[[Answer], None],
        timeout: float = INSPECT_TIMEOUT,
    ) -> None:
        """Ask, unless it has been asked: `key` says what. The rest is as for `Question`."""
        waiting = self._waiting.setdefault(key, [])
        waiting.append(on_answer)
        if len(waiting) > 1:
            return
        if key in self._owed and self._owed[key].is_pending:
            self._on_answer(key, Answer(SILENT, "no answer yet to the same question, asked before"))
            return
        question = self._owed[key] = Question(self._session, ask, last, partial(self._on_answer, key), timeout)
        question.start()

    def _on_answer(self, key: tuple[object, ...], answer: Answer) -> None:
        if answer.code != SILENT:
            self._owed = {other: question for other, question in self._owed.items() if question.is_pending}
        for on_answer in self._waiting.pop(key):
            on_answer(answer)


# What is asked


def declare(channel: int, route: Route) -> bytes:
    """Declare what a message needs."""
    ask = exchange_declare(channel, route.exchange) if route.exchange.name else b""
    return ask if route.queue is None else ask + queue_declare(channel, route.queue) + bind(channel, route.queue)


def last_of_declare(route: Route) -> bytes:
    """The method that answers the last frame of `declare`."""
    if route.queue is None:
        return frames.EXCHANGE_DECLARE_OK
    return frames.QUEUE_DECLARE_OK if route.queue.key is None else frames.QUEUE_BIND_OK


def exchange_declare(channel: int, exchange: Exchange) -> bytes:
    """Declare an exchange."""
    return frames.exchange_declare(
        channel, exchange.name, exchange.kind, durable=exchange.durable, auto_delete=exchange.auto_delete
    )


def queue_declare(channel: int, queue: Queue) -> bytes:
    """Declare a queue."""
    return frames.queue_declare(
        channel, queue.name, durable=queue.durable, auto_delete=queue.auto_delete, arguments=queue.arguments
    )


def bind(channel: int, queue: Queue) -> bytes:
    """Bind a queue to its exchange, where it has one."""
    return b"" if queue.key is None else frames.queue_bind(channel, queue.name, queue.exchange.name, queue.key)


def inspect_queue(channel: int, queue: str) -> bytes:
    """Ask how many messages and consumers a queue has, if it exists."""
    return frames.queue_declare(channel, queue, passive=True)


def inspect_and_bind(channel: int, queue: Queue) -> bytes:
    """Bind a queue again if it exists."""
    return inspect_queue(channel, queue.name) + exchange_declare(channel, queue.exchange) + bind(channel, queue)


def inspect_exchange(channel: int, exchange: Exchange) -> bytes:
    """Ask whether an exchange exists."""
    return frames.exchange_declare(channel, exchange.name, exchange.kind, passive=True)


class Inspections:
    """Inspects queues for the driver's `inspect`."""

    def __init__(self, session: Wire) -> None:
        self._session = session
        self._questions = Questions(session)

    def start(self, queue: str, found: Future[QueueInfo]) -> None:
        """Inspect a queue. On the loop's thread."""
        ask = partial(inspect_queue, queue=queue)
        self._questions.ask((queue,), ask, frames.QUEUE_DECLARE_OK, partial(self._on_answer, queue, found))

    def _on_answer(self, queue: str, found: Future[QueueInfo], answer: Answer) -> None:
        if answer.info is not None:
            finish(found, answer.info)
        elif answer.code == NOT_FOUND and not answer.node_is_down:
            fail(found, MessageUndeliverable(f"{self._session.name()}: {explain(answer.code, answer.text)}"))
        elif answer.code == DISCONNECTED:
            fail(found, TransportUnavailable(answer.text))
        else:
            why = explain(answer.code, answer.text)
            fail(found, TransportUnavailable(f"{self._session.name()}: queue {queue!r} cannot be inspected: {why}"))


# Words


def _precondition_hint(text: str) -> str:
    """What to do where something exists with other properties."""
    if "arg 'type' for exchange" in text and re.search(r"received '?direct'? but current is '?topic'?", text):
        return (
            " - stock oslo.messaging services have made this exchange: to call them set topology = oslo of the kombu "
            "driver; to keep apart from them take another exchange (control_exchange, or the target's own)"
        )
    if "arg 'type' for exchange" in text and re.search(r"received '?topic'? but current is '?direct'?", text):
        return (
            " - a msgbus service without topology = oslo has made this exchange: set that there too, or have the "
            "service take another exchange (control_exchange, or the target's own), and delete this one"
        )
    return (
        " - it exists with other properties: delete it, or set the options as they were when it was created "
        "(with topology = oslo, as the stock peers have them)"
    )


def members_hint(queue: str) -> str:
    """What to do about a quorum queue that has lost most of its members.

    Only an operator may give up what is in it.
    """
    return (
        f"it is a quorum queue, and most of its members do not answer: see rabbitmq-queues quorum_status {queue!r}, "
        "and start the nodes that are away; where they are lost for good, an operator has to shrink the queue to the "
        "member that is left, or delete it with what is in it: see docs/howto/debug.md"
    )


def is_node_down(text: str) -> bool:
    """Whether RabbitMQ says that a queue exists, and that its node cannot be reached."""
    return "home node" in text or "due to timeout" in text or "stopped by supervisor" in text


def is_temporary(code: int, text: str) -> bool:
    """Whether the refusal may end by itself, without anybody changing rights or queues."""
    return is_node_down(text) or code in (311, 320, 405, INTERNAL_ERROR)


def differs_in_durability(answer: Answer, exchange: Exchange) -> bool:
    """Whether an exchange of stock peers was refused only because it exists, durable or not, as the others made it."""
    return (
        answer.code == PRECONDITION_FAILED
        and exchange.kind != "direct"
        and f"inequivalent arg 'durable' for exchange '{exchange.name}'" in answer.text
    )


def refuses_transient(text: str) -> bool:
    """Whether RabbitMQ says that it takes no queues that do not outlive a restart; it closes the connection then."""
    return "transient_nonexcl_queues" in text


def explain(code: int, text: str) -> str:
    """Why RabbitMQ closed a channel, and what to do about it."""
    hint = {
        403: " - check the user's rights: rabbitmqctl list_permissions",
        PRECONDITION_FAILED: _precondition_hint(text),
    }.get(code, "")
    if refuses_transient(text):
        hint = (
            " - this RabbitMQ refuses queues that do not outlive a restart, as stock oslo.messaging declares them by "
            "default: set amqp_durable_queues and rabbit_transient_quorum_queue, here and for the stock peers"
        )
    if "delivery acknowledgement" in text:
        hint = " - a request ran for longer than RabbitMQ's consumer_timeout: raise that"
    if is_node_down(text):
        hint = f" - {NODE_HINT}"
    return f"{code} {text}{hint}" if code > 0 else text
