"""What becomes of a message that RabbitMQ did not take: is it known why, and is it known that nobody has it?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from msgbus.drivers.base import Address
from msgbus.drivers.kombu import frames, questions
from msgbus.drivers.kombu.link import Link
from msgbus.drivers.kombu.outgoing import Outgoing
from msgbus.drivers.kombu.questions import Answer, Question, explain
from msgbus.drivers.kombu.topology import Queue, Route
from msgbus.drivers.toolkit.futures import fail
from msgbus.exceptions import MessageUndeliverable, MessagingException, TransportBlocked, TransportUnavailable

RENEW_AFTER = 0.5
"""Seconds for which a quorum queue has to refuse a message before the channel is opened anew, and between two times."""
FULL_AFTER = 2.0
"""Seconds for which a queue that lives has to refuse a message before it counts as full."""


class Refusals:
    """Asks RabbitMQ about what it did not take, and decides. On the loop's thread, but for `unanswered` and `clear`."""

    def __init__(
        self,
        link: Link,
        routes: Callable[[Address], Route],
        name: Callable[[], str],
        hold: Callable[[Outgoing, MessagingException], None],
        renew: Callable[[], None],
    ) -> None:
        """`hold` publishes again in a moment, with an error for the case that this does not help.

        `renew` has the publishing channel opened anew.
        """
        self._link = link
        self._routes = routes
        self._name = name
        self._hold = hold
        self._renew = renew
        self._lock = threading.Lock()
        self._in_question: dict[tuple[str, Address], list[Outgoing]] = {}

    def unanswered(self) -> list[Outgoing]:
        """The messages about which something is being asked."""
        return [outgoing for waiting in list(self._in_question.values()) for outgoing in waiting]

    def clear(self) -> None:
        """Forget them."""
        with self._lock:
            self._in_question.clear()

    def _ask(
        self,
        what: str,
        outgoing: Outgoing,
        ask: Callable[[int], bytes],
        last: bytes,
        on_answer: Callable[[Outgoing, Answer], None],
    ) -> None:
        """Ask RabbitMQ about an address, once for all messages that want to know the same."""
        key = (what, outgoing.address)
        with self._lock:
            waiting = self._in_question.setdefault(key, [])
            waiting.append(outgoing)
            if len(waiting) > 1:
                return
        Question(self._link, ask, last, partial(self._on_answer, key, on_answer)).start()

    def _on_answer(
        self, key: tuple[str, Address], on_answer: Callable[[Outgoing, Answer], None], answer: Answer
    ) -> None:
        with self._lock:
            waiting = self._in_question.pop(key, [])
        for outgoing in waiting:
            if not outgoing.sent.done():
                on_answer(outgoing, answer)

    def on_returned(self, outgoing: Outgoing, reason: str) -> None:
        """No queue was bound for it. Perhaps there is one, and somebody has deleted its binding, or the exchange."""
        route = self._routes(outgoing.address)
        if outgoing.mended or route.home is None or route.home.key is None:
            self._fail_undeliverable(outgoing, reason)
        else:
            ask = partial(questions.look_and_bind, queue=route.home)
            on_answer = partial(self._on_bound, reason)
            self._ask("bind", outgoing, ask, frames.QUEUE_BIND_OK, on_answer)

    def _on_bound(self, reason: str, outgoing: Outgoing, answer: Answer) -> None:
        why = explain(answer.code, answer.text)
        if answer.code in (0, questions.GONE):
            outgoing.mended = answer.code == 0
            self._hold(outgoing, TransportUnavailable(f"nothing is bound for {outgoing.address}: {reason} {why}"))
        elif answer.node_is_down:
            self._hold(outgoing, TransportUnavailable(self._cannot_reach(outgoing.address, answer)))
        elif answer.code == questions.NOT_FOUND:
            self._fail_undeliverable(outgoing, reason)
        else:
            self._fail_undeliverable(outgoing, f"{reason}, and its queue cannot be bound again: {why}")

    def _cannot_reach(self, address: Address, answer: Answer) -> str:
        home = self._routes(address).home
        queue = f"queue {home.name!r} of " if home is not None else ""
        why = explain(answer.code, answer.text)
        if answer.code == questions.SILENT and home is not None and not home.is_quorum:
            why = f"{why}; perhaps {questions.NODE_HINT}"
        return f"{self._name()} cannot reach {queue}{address}: {why}"

    def _fail_undeliverable(self, outgoing: Outgoing, reason: str) -> None:
        text = f"nobody listens at {outgoing.address} on {self._name()}: {reason}"
        if outgoing.address.kind != "inbox":
            text += "; is its server started, and on this RabbitMQ?"
        fail(outgoing.sent, MessageUndeliverable(text))

    def on_refused(self, outgoing: Outgoing) -> None:
        """RabbitMQ says basic.nack: at least one queue did not take the message.

        Another may have: then it is not known whether it was delivered. Of one queue alone, a quorum queue that says so
        has not taken it: it is full, or has no leader that could be asked, and nothing was sent to it. The node of a
        classic queue may have failed after it had taken the message.
        """
        now = time.monotonic()
        if outgoing.refused_since is None:
            outgoing.refused_since = now
        route = self._routes(outgoing.address)
        home = route.home
        if home is not None and home.is_quorum and now - outgoing.refused_since >= RENEW_AFTER:
            self._renew()
        if home is None:
            text = f"{self._name()}: a queue of {outgoing.address} did not take the message (basic.nack)"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))
        elif not home.is_quorum or now - outgoing.refused_since >= FULL_AFTER:
            ask = partial(questions.look, queue=home.name)
            self._ask("look", outgoing, ask, frames.QUEUE_DECLARE_OK, partial(self._on_looked, home))
        elif route.pools is not None:
            ask = partial(questions.look_at_exchange, exchange=route.pools)
            self._ask("pools", outgoing, ask, frames.EXCHANGE_DECLARE_OK, partial(self._on_pools, home))
        else:
            self._hold(outgoing, self._not_taken(outgoing, home))

    def _not_taken(self, outgoing: Outgoing, home: Queue) -> MessagingException:
        text = f"{self._name()}: queue {home.name!r} does not take the message to {outgoing.address} (basic.nack)"
        return TransportUnavailable(
            f"{text}: it has no leader at present; rabbitmqctl list_queues name type leader state"
        )

    def _on_pools(self, home: Queue, outgoing: Outgoing, answer: Answer) -> None:
        """Whether there are other queues that may have taken the message."""
        error = self._not_taken(outgoing, home)
        if answer.code == questions.NOT_FOUND:
            self._hold(outgoing, error)
        else:
            text = f"{error}; a pool of the topic may have taken it"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))

    def _on_looked(self, home: Queue, outgoing: Outgoing, answer: Answer) -> None:
        """Whether the queue that did not take the message is full, as far as can be known without management."""
        if answer.depth is not None and answer.depth.depth:
            text = (
                f"{self._name()} refused a message to {outgoing.address}: its queue is full ({home.name!r} holds "
                f"{answer.depth.depth} messages and takes no more; see its length limit: rabbitmqctl list_queues name "
                "messages policy arguments)"
            )
            fail(outgoing.sent, TransportBlocked(text))
        elif home.is_quorum:
            self._hold(outgoing, self._not_taken(outgoing, home))
        else:
            why = "the queue is there" if answer.code == 0 else self._cannot_reach(outgoing.address, answer)
            text = f"{self._name()} did not take a message to {outgoing.address} (basic.nack): {why}"
            fail(outgoing.sent, TransportUnavailable(text, maybe_delivered=True))
