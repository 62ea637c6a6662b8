"""Answer: what one of many servers has answered. PendingAnswers: what has come for a question to all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import msgspec

from msgbus.exceptions import MessagingTimeout, OutcomeUnknown
from msgbus.foreign import get_logger
from msgbus.message import Reply
from msgbus.pending import Pending, RunningServer

LOG = get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The answer of one server to a `RPCClient.gather`.

    Attributes:
        topic: the server's topic.
        server: its name. None if it does not send its name (a stock oslo.messaging server), or the answer cannot be
            read.
        value: the result of the method (of a generator: the last value); None if there is an error.
        error: None, or why there is no value. An exception of the method is rebuilt as for `RPCClient.call`. If the
            server does not have the method, it is a `NoSuchMethod` or another `RPCDispatcherError`. If the server said
            that it runs the method and then fell silent, it is `ServerLost`. If the method may or may not have run, it
            is `OutcomeUnknown`.
        seconds: the time from the start of the gather to the answer.
    """

    topic: str
    server: str | None
    value: Any
    error: Exception | None
    seconds: float

    def result(self) -> Any:
        """The value.

        Raises:
            Exception: `error`, if there is one.
        """
        if self.error is not None:
            raise self.error
        return self.value


class Answers(list[dict[str, Any]]):
    """The answers to `RPCClient.ping`: a list with one dict for each server that has answered.

    Attributes:
        expected: how many servers the message system knows, or None if it does not say. Those that have not answered
            are frozen, are too busy to answer, or have just ended.
    """

    expected: int | None = None


class Arrived(NamedTuple):
    """An answer, as it has come.

    Attributes:
        server: the server's name, or None.
        outcome: the reply, or the error.
        at: when it came, in seconds of `Loop.now`.
    """

    server: str | None
    outcome: Reply | Exception
    at: float


class PendingAnswers(Pending, kw_only=True):
    """Waits for many answers: one from each server that the request reaches.

    A server answers once: its name is enough to know that an answer has come before. An answer may come twice where a
    connection was lost.

    Attributes:
        enough: the number of answers at which the wait ends.
        one_per_name: a second answer of one name is dropped, whatever it is. Otherwise it is dropped if it is the same:
            two servers by mistake have the same name, and a ping is to show both.
        answers: those that have arrived, in order; None in place of those that were taken.
        running: the servers that run it, by inbox and name: servers of one process have one inbox.
    """

    for_many: ClassVar[bool] = True

    enough: float
    one_per_name: bool = True
    answers: list[Arrived | None] = msgspec.field(default_factory=list)
    running: dict[tuple[str, str | None], RunningServer] = msgspec.field(default_factory=dict)
    _taken: int = 0
    _known: dict[Any, object] = msgspec.field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether all answers are there. That there are none to come counts once the request was sent."""
        return len(self.answers) >= self.enough and (bool(self.answers) or self.sent)

    @property
    def server_inbox(self) -> None:
        """None: many servers run it, and none of them alone is meant."""

    @property
    def has_more(self) -> bool:
        """Whether an answer is there that was not taken."""
        return self._taken < len(self.answers)

    def take(self) -> Arrived | None:
        """The next answer, once; None if there is none yet. For whoever waits."""
        if not self.has_more:
            return None
        found, self.answers[self._taken] = self.answers[self._taken], None
        self._taken += 1
        return found

    def drop(self) -> None:
        """Free the answers that were not taken. How many have come stays known."""
        self._taken = len(self.answers)
        self.answers[:] = [None] * self._taken
        self._known.clear()

    def on_reply(self, reply: Reply, now: float) -> None:
        """Handle a frame from one of the servers. What comes after the deadline is dropped."""
        if now >= self.deadline:
            return
        if reply.kind == "declined":
            text = (
                f"{self.describe}: server {reply.server!r} may or may not have run it. It got the request a second "
                "time, since a connection was lost, and under at_most_once it does not run that"
            )
            self._add(reply.server, OutcomeUnknown(text), now)
        elif reply.ending:
            for inbox, name in list(self.running):
                if name == reply.server:
                    self._note_end(inbox, name)
            self._add(reply.server, reply, now)
        elif reply.inbox is not None:
            server = RunningServer(reply.server, now)
            self.running[reply.inbox, reply.server] = self.servers[reply.inbox] = server

    def _note_end(self, inbox: str, name: str | None) -> None:
        """A server does not run it any more. Its inbox is kept while another one of its process does."""
        self.running.pop((inbox, name), None)
        if not any(inbox == other for other, _ in list(self.running)):
            self.servers.pop(inbox, None)

    def on_unreadable(self, error: Exception, now: float) -> None:
        """Handle an answer that cannot be read: it is one server's, and the others' may still come."""
        self._add(None, error, now)

    def _add(self, server: str | None, outcome: Reply | Exception, now: float) -> None:
        if self._is_new(server, outcome):
            self.answers.append(Arrived(server, outcome, now))
            self.wake()
        else:
            LOG.info("%s: a second answer of server %r was dropped", self.describe, server)

    def _is_new(self, server: str | None, outcome: Reply | Exception) -> bool:
        """Note an answer. Returns False if it has come before. In single steps: two threads may do this."""
        mark = object()
        if self.one_per_name and server is not None:
            return self._known.setdefault(server, mark) is mark
        if isinstance(outcome, Exception):
            return True
        # Without a name, two answers that are equal are those of two servers, unless one says that it comes again.
        key = server, repr(outcome.result), outcome.failure
        is_first = self._known.setdefault(key, mark) is mark
        return is_first or (server is None and not outcome.redelivered)

    def update(self, now: float, up_since: float | None) -> None:
        """Note how long servers have been silent. The answer of one that is lost says so."""
        self._unheard_since = max(self._unheard_since, now if up_since is None else up_since)
        for (inbox, name), server in list(self.running.items()):
            if now >= self._lost_at(server):
                self._note_end(inbox, name)
                self._add(server.name, self._server_lost(server, now), now)

    def next_check(self) -> float:
        """The deadline, or when a server that runs it would be lost."""
        return min([self.deadline, *(self._lost_at(server) for server in list(self.running.values()))])

    def check(self, now: float) -> Exception | None:
        """Why no further answer will come, or None."""
        if self.send_error is not None:
            return super().check(now)
        return MessagingTimeout(self.describe) if now >= self.deadline else None

    def needs_repeat(self, now: float, up_since: float | None, repeat_after: float) -> bool:
        """False: a server that has answered would answer again."""
        return False
