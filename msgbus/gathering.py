"""Gathering: the iterator that `RPCClient.gather` returns. Gather: what it has in common with that for asyncio."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from msgbus.answers import Answer, Answers, Arrived, PendingAnswers
from msgbus.base_client import BaseClient
from msgbus.base_transport import INSPECT_TIMEOUT, BaseTransport
from msgbus.client_call import ClientCall
from msgbus.deadline import bounded
from msgbus.drivers.base import Address, Capability, QueueInfo, Sent
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import MessageUndeliverable, MessagingException, MessagingTimeout, TransportUnavailable
from msgbus.pending import Wake
from msgbus.serializer import NoOpSerializer
from msgbus.transport import Transport

DROP_CHECK = 0.5
"""Seconds between two checks whether an iterator was dropped."""


class Question(ClientCall):
    """What is asked of the servers of one topic, and what they have answered. It does not wait.

    Attributes:
        topic: the name of the topic.
        counted: how many servers the message system knows there, as far as that is known; None where it cannot say.
    """

    __slots__ = ("_client", "_ctxt", "counted", "topic")

    pending: PendingAnswers

    def __init__(self, client: BaseClient, ctxt: Any, method: str, began: float, *, one_per_name: bool) -> None:
        """Ask `client`'s target; nothing is sent before `send`."""
        enough = 1 if client.target.server else math.inf
        pending = client._new_pending(PendingAnswers, method, began, enough=enough, one_per_name=one_per_name)
        super().__init__(client.transport, pending, client._content_type, None)
        self.topic: str = client.target.topic or ""
        self.counted: Future[QueueInfo] | None = None
        self._client = client
        self._ctxt = ctxt

    def _on_sent(self, sent: Future[Sent]) -> None:
        super()._on_sent(sent)
        self.pending.wake()

    def count(self, least: int) -> None:
        """Ask the message system for the number of servers: so many answers are enough, but not less than `least`."""
        transport, target = self._client.transport, self._client.target
        if Capability.INSPECT not in transport.driver.capabilities:
            return
        # Each server of a topic consumes from it.
        self.counted = transport.driver.inspect(transport.address(target(fanout=None)))
        if not target.server:
            self.counted.add_done_callback(partial(_note_count, self.pending, least))

    def close(self) -> None:
        """As `ClientCall.close`. What is remembered until the deadline, for a server that begins late, is small."""
        super().close()
        self.pending.drop()

    @property
    def expected(self) -> int | None:
        """How many answers there should be; None if that is unknown."""
        return _consumers_of(self.counted, len(self.pending.answers))

    def answer(self, found: Arrived) -> Answer:
        """An answer, as it is handed out. Not for the I/O thread: making an exception may import modules."""
        pending, outcome, value = self.pending, found.outcome, None
        error = outcome if isinstance(outcome, Exception) else pending.failure_of(outcome)
        if not isinstance(outcome, Exception) and error is None:
            try:
                value = self._value_of(outcome.result)
            except Exception as exc:  # The user's serializer has refused it. It is known whose answer that was.
                error = exc
        return Answer(self.topic, found.server, value, error, found.at - pending.began)

    def _value_of(self, result: Any) -> Any:
        serializer = self._client.serializer
        return result if type(serializer) is NoOpSerializer else serializer.deserialize_entity(self._ctxt, result)


class Gather:
    """One question to many servers. It does not wait, and it outlives an iterator that is dropped, in order to end it.

    Attributes:
        transport: where the question goes.
        questions: one for each topic, from `begin` on.
        deadline: of the whole, in seconds of `Loop.now`, from `begin` on.
        slot: its place in the send window, which is given back at the end.
        dropped: nobody will read the answers any more.
    """

    def __init__(
        self, transport: BaseTransport, clients: Sequence[BaseClient], ctxt: Any, method: str, *, is_ping: bool = False
    ) -> None:
        """Ask the targets of `clients`; nothing is sent before `send`, which follows `begin`.

        `is_ping`: servers that have one name by mistake are all shown, and a topic for which the message system knows
        no server is waited for all the same.
        """
        self.transport = transport
        self.slot = ExitStack()
        self.dropped = False
        self.questions: list[Question] = []
        self.deadline = math.inf
        self._clients = clients
        self._ctxt = ctxt
        self._method = method
        self._is_ping = is_ping
        self._begun = False
        self._open: list[Question] = []
        self._sent: list[Question] = []
        self._failed: list[tuple[Question, Exception]] = []
        self._closed = False

    def begin(self) -> bool:
        """From now on the time runs. Returns whether there is anybody to ask."""
        now, by_name = Loop.now(), not self._is_ping
        self.questions = [
            Question(client, self._ctxt, self._method, now, one_per_name=by_name) for client in self._clients
        ]
        self.deadline = min([question.pending.deadline for question in self.questions], default=bounded(now))
        self._open = list(self.questions)
        self._begun = True
        return bool(self.questions)

    @property
    def asked(self) -> tuple[str, Address]:
        """The method, and the first address that is asked for it: for errors, once it has begun."""
        pending = self.questions[0].pending
        return pending.method, pending.address

    def send(self, inbox: str, kwargs: dict[str, Any], wake: Wake) -> None:
        """Send the question to each topic. `wake` is called when there is something new.

        Raises:
            SerializationError, RPCVersionCapError, TypeError: it is not allowed as it is; nothing was sent.
            CallCancelled: the transport is closed.
        """
        messages = []
        for client, question in zip(self._clients, self.questions, strict=True):
            pending = question.pending
            pending.wake = wake
            request = client._request_of(self._ctxt, self._method, kwargs, pending)
            request.reply_to = inbox
            messages.append(client._message_of(request, pending))
        for question, message in zip(self.questions, messages, strict=True):
            self._sent.append(question)
            question.send(message)
            question.count(1 if self._is_ping else 0)
        self.transport.loop.call_later(DROP_CHECK, self._tick)

    def _tick(self) -> None:
        """End what was dropped. The garbage collector may come at any moment, and only leaves a note."""
        if self.dropped:
            self.close()
        if not self._closed:
            self.transport.loop.call_later(DROP_CHECK, self._tick)

    def next_answer(self) -> Answer | None:
        """The next answer that has come, or None."""
        for question in self.questions:
            found = question.pending.take()
            if found is not None:
                return question.answer(found)
        return None

    @property
    def has_more(self) -> bool:
        """Whether an answer is there that was not taken."""
        return any(question.pending.has_more for question in self.questions)

    def is_over(self) -> bool:
        """Whether no further answer will come. Answers may have come meanwhile: see `has_more`."""
        self._open = [question for question in self._open if not self._is_done(question)]
        return not self._open

    def _is_done(self, question: Question) -> bool:
        pending = question.pending
        if pending.ready:
            return True
        error = question.check()
        if error is None:
            return pending.ready
        if type(error) is not MessagingTimeout:
            self._failed.append((question, error))
        elif not pending.sent and not pending.answers:
            self._failed.append((question, self._not_taken(pending)))
        return True

    def _not_taken(self, pending: PendingAnswers) -> TransportUnavailable:
        """The time was over before the message system took the question. The driver may say why a moment later."""
        state = f"not taken in {pending.deadline - pending.began:g} s: {self.transport.driver.state}"
        return self.transport.about(pending.describe, TransportUnavailable(state, maybe_delivered=True))

    def next_check(self) -> float:
        """When `is_over` has to be asked again even if nothing arrives."""
        return min([question.pending.next_check() for question in self._open], default=self.deadline)

    def uncounted(self) -> list[Future[QueueInfo]]:
        """The numbers of servers that are not known yet. They are waited for a moment at the end."""
        counts = [question.counted for question in self.questions]
        return [counted for counted in counts if counted is not None and not counted.done()]

    def error(self) -> Exception | None:
        """Why a topic could not be asked, once it is over.

        If its servers cannot be reached although the message system knows them, they are frozen: that is no error,
        they count as those that have not answered.
        """
        for question, error in self._failed:
            if not isinstance(error, TransportUnavailable) or not question.expected:
                return error
        return None

    @property
    def answered(self) -> int:
        """How many servers have answered."""
        return sum(len(question.pending.answers) for question in self.questions)

    @property
    def expected(self) -> int | None:
        """How many should have; None if that is unknown."""
        counts = [question.expected for question in self.questions] if self._begun else [None]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def close(self) -> None:
        """Expect no more answers, and cancel what servers still run for it. Idempotent; any thread."""
        self._closed = True
        sent, self._sent = self._sent, []
        slot = self.slot.pop_all()
        try:
            for question in sent:
                question.close()
        finally:
            slot.close()


class Gathering(Iterator[Answer]):
    """Iterates over the answers of many servers, as they arrive. For one thread at a time; also a context manager.

    The iteration ends when all servers known to the message system have answered, or at the deadline. Then, and when it
    is closed or dropped, methods that still run for it are cancelled, and its place in the send window is free again.
    """

    def __init__(
        self, transport: Transport, gather: Gather, kwargs: dict[str, Any], *, takes_place: bool = True
    ) -> None:
        """Send the question. Without `takes_place` it does not count in the send window."""
        self._transport = transport
        self._gather = gather
        self._lock = threading.Lock()
        self._lock.acquire()
        self._closed = not gather.begin()
        if self._closed:
            return
        try:
            if takes_place:  # Without the loop's turn: the places are those of others, who wait for what it brings.
                gather.slot.enter_context(transport.slot(gather.deadline, *gather.asked))
            self._send(kwargs)
        except BaseException:
            self.close()
            raise

    def _send(self, kwargs: dict[str, Any]) -> None:
        loop, gather = self._transport.loop, self._gather
        drives = loop.take_turn()
        try:
            inbox = self._transport.inbox(gather.deadline, gather.questions[0].pending)
            gather.send(inbox, kwargs, partial(loop.wake, self._lock))
        finally:
            if drives:
                loop.give_turn()

    def __iter__(self) -> Gathering:
        return self

    def __repr__(self) -> str:
        return f"<Gathering, {self.answered} of {self.expected} answered, {'closed' if self._closed else 'open'}>"

    @property
    def answered(self) -> int:
        """How many servers have answered so far, those with an error among them."""
        return self._gather.answered

    @property
    def expected(self) -> int | None:
        """How many servers there are by what the message system knows.

        It is None if the message system does not say, or has not said so yet. Those that have not answered at the end
        are frozen, are too busy to answer, or have just ended.
        """
        return self._gather.expected

    def __next__(self) -> Answer:
        """Wait for the next answer.

        Raises:
            StopIteration: all have answered, the deadline has passed, or it was closed.
            MessageUndeliverable, TransportUnavailable, TransportBlocked, MessageTooLarge, InvalidTarget: a topic could
                not be asked. It is raised after the answers of the others.
            CallCancelled: the transport was closed.
        """
        gather = self._gather
        while not self._closed:
            answer = gather.next_answer()
            if answer is not None:
                return answer
            try:
                if not gather.is_over():
                    self._transport.loop.wait(self._lock, gather.next_check())
                elif not gather.has_more:
                    self._end()
            except BaseException:
                self.close()
                raise
        raise StopIteration

    def _end(self) -> None:
        end = Loop.now() + INSPECT_TIMEOUT
        for counted in self._gather.uncounted():
            self._transport.loop.wait_for(counted, end)
        self.close()
        error = self._gather.error()
        if error is not None:
            try:
                raise error.with_traceback(None)  # Others may get the same error, without our frames.
            finally:
                del error  # Its traceback refers to this frame.

    def close(self) -> None:
        """Cancel methods that still run for it, and drop the answers that were not read. Idempotent.

        Any thread may call it. A thread that waits for an answer then gets `StopIteration`.
        """
        self._closed = True
        self._gather.close()
        self._transport.loop.wake(self._lock)

    def __enter__(self) -> Gathering:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_gather"):
            self._gather.dropped = True


class Counted(Protocol):
    """A gathering, for threads or for asyncio."""

    @property
    def expected(self) -> int | None:
        """See `Gathering.expected`."""


def pings_of(answers: Sequence[Answer], gathering: Counted) -> Answers:
    """What `RPCClient.ping` returns: of the servers that answer pings, what they have said."""
    pongs = [answer for answer in answers if answer.error is None and isinstance(answer.value, dict)]
    found = Answers({**answer.value, "seconds": round(answer.seconds, 6)} for answer in pongs)
    found.expected = gathering.expected
    return found


def _note_count(pending: PendingAnswers, least: int, counted: Future[QueueInfo]) -> None:
    consumers = _consumers_of(counted, least)
    if consumers is not None:
        pending.enough = consumers
        pending.wake()


def _consumers_of(counted: Future[QueueInfo] | None, answered: int) -> int | None:
    """The number of consumers, or of answers if that is higher; None if it is unknown."""
    if counted is None:
        return None
    try:
        return max(answered, counted.result(0).consumers)
    except MessageUndeliverable:
        return answered
    except (MessagingException, TimeoutError):
        return None
