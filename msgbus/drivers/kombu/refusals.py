"""Decides about messages that RabbitMQ did not take: fail them, or send them again if no queue has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgbus.drivers.base import Address
from msgbus.drivers.kombu import frames, questions
from msgbus.drivers.kombu.channel import Wire
from msgbus.drivers.kombu.questions import Answer, Questions, explain
from msgbus.drivers.kombu.topology import Queue, Route
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.toolkit.sending import Outgoing
from msgbus.exceptions import MessageUndeliverable, MessagingException, TransportBlocked, TransportUnavailable

RENEW_AFTER = 0.5
"""Seconds for which a quorum queue has to refuse a message before the channel is reopened, and between two
reopenings."""
FULL_AFTER = 2.0
"""Seconds for which a working queue has to refuse a message before it counts as full."""
WHY_TIMEOUT = 10.0
"""Seconds to wait for the answer without which it stays unknown whether a message was delivered. A busy RabbitMQ may
need some; RabbitMQ 4 takes a minute if the queue's node is down."""


class _Notes:
    """What is known of a message that RabbitMQ did not take: see `Outgoing.notes`.

    Attributes:
        bound_again: its queue was bound again for it.
        refused_since: when RabbitMQ first said basic.nack, or None.
    """

    __slots__ = ("bound_again", "refused_since")

    def __init__(self) -> None:
        self.bound_again = False
        self.refused_since: float | None = None


def _notes_of(outgoing: Outgoing) -> _Notes:
    if not isinstance(outgoing.notes, _Notes):
        outgoing.notes = _Notes()
    return outgoing.notes


class Refusals:
    """Asks RabbitMQ about messages that it did not take, and decides. On the loop's thread."""

    def __init__(self, session: Wire, route: Callable[[Address], Route], renew: Callable[[], None]) -> None:
        """`route` says where a message is published; `renew` reopens the publishing channel."""
        self._routes = route
        self._name = session.name
        self._renew = renew
        self._questions = Questions(session)

    def _ask(
        self,
        what: str,
        outgoing: Outgoing,
        refusal: MessagingException,
        ask: Callable[[int], bytes],
        last: bytes,
        on_answer: Callable[[Outgoing, Answer], None],
        timeout: float = questions.INSPECT_TIMEOUT,
    ) -> None:
        """Ask RabbitMQ about the address of a message that is set aside until then, or for `timeout` seconds.

        `refusal` is the error for a message whose time ends before the answer.
        """
        outgoing.set_aside(refusal)

        def on_question_answered(answer: Answer) -> None:
            if not outgoing.sent.done():
                on_answer(outgoing, answer)

        self._questions.ask((what, outgoing.address), ask, last, on_question_answered, timeout)

    def on_returned(self, outgoing: Outgoing, reason: str) -> None:
        """No queue was bound for it. The queue may exist, and its binding or the exchange may have been deleted."""
        route = self._routes(outgoing.address)
        if _notes_of(outgoing).bound_again or route.home is None or route.home.key is None:
            self._fail_undeliverable(outgoing, reason)
        else:
            unbound = TransportUnavailable(f"nothing is bound for {outgoing.address}: {reason}")
            ask = partial(questions.inspect_and_bind, queue=route.home)
            on_answer = partial(self._on_bound, reason)
            self._ask("bind", outgoing, unbound, ask, frames.QUEUE_BIND_OK, on_answer)

    def _on_bound(self, reason: str, outgoing: Outgoing, answer: Answer) -> None:
        why = explain(answer.code, answer.text)
        if answer.code in (0, questions.DISCONNECTED, questions.NO_CHANNEL):
            _notes_of(outgoing).bound_again = answer.code == 0
            outgoing.hold(TransportUnavailable(f"nothing is bound for {outgoing.address}: {reason} {why}"))
        elif answer.node_is_down:
            outgoing.hold(TransportUnavailable(self._cannot_reach(outgoing.address, answer)))
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
        outgoing.failed(MessageUndeliverable(text))

    def on_refused(self, outgoing: Outgoing) -> None:
        """RabbitMQ says basic.nack: at least one queue did not take the message.

        Another queue may have: then it is not known whether it was delivered. If there is only one queue, and it is a
        quorum queue, it has not taken the message: it is full, or has no leader, and nothing was sent to it. A classic
        queue has not either if it is full; its node may have failed after it had taken the message.
        """
        now, notes = Loop.now(), _notes_of(outgoing)
        if notes.refused_since is None:
            notes.refused_since = now
        route = self._routes(outgoing.address)
        home = route.home
        if home is not None and home.is_quorum and now - notes.refused_since >= RENEW_AFTER:
            self._renew()
        if home is None:
            text = f"{self._name()}: a queue of {outgoing.address} did not take the message (basic.nack)"
            outgoing.failed(TransportUnavailable(text, maybe_delivered=True))
        elif route.pools is not None:
            ask = partial(questions.inspect_exchange, exchange=route.pools)
            refusal = self._perhaps_in_a_pool(outgoing, home)
            on_answer = partial(self._on_pools, home)
            self._ask("pools", outgoing, refusal, ask, frames.EXCHANGE_DECLARE_OK, on_answer, WHY_TIMEOUT)
        else:
            self._on_refused_by_one(home, outgoing)

    def _not_taken(self, outgoing: Outgoing, home: Queue) -> MessagingException:
        text = f"{self._name()}: queue {home.name!r} does not take the message to {outgoing.address} (basic.nack)"
        return TransportUnavailable(
            f"{text}: it has no leader at present; rabbitmqctl list_queues name type leader state"
        )

    def _not_taken_by_classic(self, outgoing: Outgoing, why: str) -> MessagingException:
        text = f"{self._name()} did not take a message to {outgoing.address} (basic.nack): {why}"
        return TransportUnavailable(text, maybe_delivered=True)

    def _perhaps_in_a_pool(self, outgoing: Outgoing, home: Queue) -> MessagingException:
        text = f"{self._name()}: queue {home.name!r} or that of a pool did not take the message to {outgoing.address}"
        return TransportUnavailable(
            f"{text} (basic.nack), and the others may have it; rabbitmqctl list_queues name messages state",
            maybe_delivered=True,
        )

    def _on_pools(self, home: Queue, outgoing: Outgoing, answer: Answer) -> None:
        """Fail a message that other queues may have taken."""
        if answer.code == questions.NOT_FOUND:
            self._on_refused_by_one(home, outgoing)
        else:
            outgoing.failed(self._perhaps_in_a_pool(outgoing, home))

    def _on_refused_by_one(self, home: Queue, outgoing: Outgoing) -> None:
        """The only queue did not take it: find out whether it is full, a quorum queue not before `FULL_AFTER`."""
        since = _notes_of(outgoing).refused_since
        if home.is_quorum and since is not None and Loop.now() - since < FULL_AFTER:
            outgoing.hold(self._not_taken(outgoing, home))
            return
        refusal, timeout = self._not_taken(outgoing, home), questions.INSPECT_TIMEOUT
        if not home.is_quorum:
            refusal = self._not_taken_by_classic(outgoing, f"perhaps RabbitMQ is busy, or {questions.NODE_HINT}")
            timeout = WHY_TIMEOUT
        ask = partial(questions.inspect_queue, queue=home.name)
        on_answer = partial(self._on_inspected, home)
        self._ask("inspect", outgoing, refusal, ask, frames.QUEUE_DECLARE_OK, on_answer, timeout)

    def _on_inspected(self, home: Queue, outgoing: Outgoing, answer: Answer) -> None:
        """Fail or hold a message, by whether its queue is full, as far as can be known without management."""
        if answer.info is not None and answer.info.messages:
            text = (
                f"{self._name()} refused a message to {outgoing.address}: its queue is full ({home.name!r} holds "
                f"{answer.info.messages} messages and takes no more; see its length limit: rabbitmqctl list_queues "
                "name messages policy arguments)"
            )
            outgoing.failed(TransportBlocked(text))
        elif home.is_quorum:
            outgoing.hold(self._not_taken(outgoing, home))
        else:
            why = "the queue is there" if answer.code == 0 else self._cannot_reach(outgoing.address, answer)
            outgoing.failed(self._not_taken_by_classic(outgoing, why))
