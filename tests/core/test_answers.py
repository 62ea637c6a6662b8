"""What is known of a question to many servers, without any message system: times are passed in."""

from __future__ import annotations

from typing import Any

import pytest

from msgbus import MessagingTimeout, OutcomeUnknown, ServerLost, TransportUnavailable
from msgbus.answers import PendingAnswers
from msgbus.drivers.base import Address
from msgbus.message import LOST_AFTER, Reply
from msgbus.pending import REPEAT_AFTER
from tests.core.waiting_calls import DEADLINE, GRACE, NOW, Woken, check, keepalive, options, started

LOST = TransportUnavailable("cut", maybe_delivered=True)


def question(enough: int = 3, **changes: Any) -> PendingAnswers:
    """A question to all servers of a topic that waits."""
    one_per_name = changes.pop("one_per_name", True)
    address = Address("fanout", "x", "foo")
    return PendingAnswers("c", "ask", address, enough=enough, one_per_name=one_per_name, **options(**changes))


def answer(value: object, server: str = "h1") -> Reply:
    """What a server has answered."""
    return Reply("c", result=value, ending=True, extended=True, server=server)


def contents(pending: PendingAnswers) -> list[Any]:
    """Take the answers that have come: of each the value, or the error."""
    found = []
    while (arrived := pending.take()) is not None:
        found.append(arrived.outcome if isinstance(arrived.outcome, Exception) else arrived.outcome.result)
    return found


def test_answers_of_many() -> None:
    """A request to all servers gathers every answer, errors too, and no other frame."""
    pending = question(4)
    woken = Woken(pending)
    pending.on_reply(started(), NOW)
    assert not woken.take()
    pending.on_reply(Reply("c", failure="an exception", ending=True), NOW)
    assert woken.take()
    for number in range(3):
        assert not pending.ready
        pending.on_reply(answer(number, f"h{number}"), NOW + number)
        assert woken.take()
    assert pending.ready
    assert contents(pending) == [None, 0, 1, 2]
    assert (pending.ready, pending.has_more) == (True, False)


def test_a_server_answers_once() -> None:
    """A second answer of one name is dropped, whatever it is: it was sent again, or came again."""
    pending = question()
    for value, server in ((1, "h1"), (1, "h1"), (2, "h1"), (1, "h2")):
        pending.on_reply(answer(value, server), NOW)
    assert contents(pending) == [1, 1]
    assert not pending.ready


def test_answers_without_a_name_are_those_of_different_servers() -> None:
    """Only one that says that it comes again is dropped, if it is equal to one that was there."""
    pending = question()
    for redelivered in (False, False, True, True):
        pending.on_reply(Reply("c", result={"n": 1}, ending=True, redelivered=redelivered), NOW)
    assert contents(pending) == [{"n": 1}] * 2
    assert not pending.ready
    pending.on_reply(Reply("c", result={"n": 2}, ending=True, redelivered=True), NOW)
    assert pending.ready


def test_a_ping_shows_two_servers_of_one_name() -> None:
    """Their answers differ. One that comes again counts once."""
    pending = question(one_per_name=False)
    for pid in (1, 2, 1, 2):
        pending.on_reply(answer({"server": "h1", "pid": pid}), NOW)
    assert contents(pending) == [{"server": "h1", "pid": 1}, {"server": "h1", "pid": 2}]


def test_a_question_ends_at_its_deadline_and_with_its_request_alone() -> None:
    """Neither silence nor an unknown outcome of the request ends it, nor is it ever sent again."""
    pending = question(repeatable=True, monitor=1.0)
    pending.on_sent(None, NOW)
    assert pending.next_check() == DEADLINE
    assert not pending.needs_repeat(NOW + 30, NOW + 20, REPEAT_AFTER)
    assert check(pending, DEADLINE - 1) is None
    assert type(check(pending, DEADLINE)) is MessagingTimeout
    uncertain = question()
    uncertain.on_sent(LOST, NOW)
    assert uncertain.next_check() == DEADLINE
    assert check(uncertain, NOW + GRACE) is None
    uncertain.send_error = error = TransportUnavailable("away")
    assert check(uncertain, NOW + GRACE) is error


def test_what_comes_after_the_deadline_is_dropped() -> None:
    """Also where nobody has looked at the clock yet."""
    pending = question()
    pending.on_reply(answer(1, "h1"), DEADLINE - 0.001)
    pending.on_reply(answer(2, "h2"), DEADLINE)
    assert contents(pending) == [1]


def test_a_server_that_falls_silent_while_it_runs_is_lost() -> None:
    """Its answer says so, after 15 s; the others go on. While this side is disconnected, silence says nothing."""
    pending = question()
    pending.on_reply(started("h1"), NOW)
    pending.on_reply(started("h2"), NOW)
    pending.on_reply(keepalive("h2"), NOW + 5)
    assert pending.next_check() == NOW + LOST_AFTER
    assert check(pending, NOW + LOST_AFTER - 0.1) is None
    assert not pending.has_more
    assert check(pending, NOW + LOST_AFTER) is None
    lost = pending.take()
    assert lost is not None
    assert lost.server == "h1"
    assert isinstance(lost.outcome, ServerLost)
    assert "server 'h1'" in str(lost.outcome)
    assert check(pending, NOW + LOST_AFTER + 10, up_since=None) is None
    assert not pending.has_more
    pending.on_reply(answer(1, "h1"), NOW + LOST_AFTER + 10)
    assert not pending.has_more, "it was lost, and answers once"


def test_a_server_that_has_answered_is_not_lost() -> None:
    """Nor does it have to be cancelled."""
    pending = question()
    pending.on_reply(started("h1"), NOW)
    pending.on_reply(started("h2"), NOW)
    pending.on_reply(answer(1, "h1"), NOW)
    assert [server.name for server in pending.servers.values()] == ["h2"]
    assert contents(pending) == [1]


def test_servers_of_one_process_share_an_inbox() -> None:
    """It is known, so that all can be cancelled, as long as one of them runs it; and each may be lost."""
    pending = question()
    for server in ("h1", "h2"):
        pending.on_reply(Reply("c", "started", extended=True, server=server, inbox="i1"), NOW)
    pending.on_reply(answer(2, "h2"), NOW)
    assert list(pending.servers) == ["i1"]
    pending.update(NOW + LOST_AFTER, NOW)
    assert list(pending.servers) == []
    assert [type(found) for found in contents(pending)] == [int, ServerLost]


def test_a_server_that_declines_may_have_run_it() -> None:
    """It got the request again after its connection was lost: its answer is `OutcomeUnknown`, and the only one."""
    pending = question()
    pending.on_reply(Reply("c", "declined", extended=True, server="h2"), NOW)
    pending.on_reply(answer(1, "h2"), NOW)
    (declined,) = contents(pending)
    assert isinstance(declined, OutcomeUnknown)
    assert "server 'h2'" in str(declined)


@pytest.mark.parametrize("one_per_name", [True, False])
def test_an_answer_that_cannot_be_read_is_one_of_them(one_per_name: bool) -> None:
    """Nobody knows whose it is; the others still count."""
    pending = question(one_per_name=one_per_name)
    errors = [ValueError("x"), ValueError("x")]
    for error in errors:
        pending.on_unreadable(error, NOW)
    pending.on_reply(answer(1, "h1"), NOW)
    assert contents(pending) == [*errors, 1]
    assert pending.ready
