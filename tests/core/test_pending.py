from __future__ import annotations

from typing import Any

import pytest

from msgbus import (
    CallCancelled,
    MessageDeliveryFailure,
    MessageUndeliverable,
    MessagingTimeout,
    OutcomeUnknown,
    RemoteError,
    ServerLost,
    TransportUnavailable,
)
from msgbus.drivers.base import Address
from msgbus.failures import serialize_failure
from msgbus.message import LOST_AFTER, Reply
from msgbus.pending import REPEAT_AFTER, Pending, PendingCall
from tests.core.waiting_calls import DEADLINE, GRACE, NOW, Woken, call, check, keepalive, options, started


def answer(value: object, server: str = "h1") -> Reply:
    """What ends a call."""
    return Reply("c", result=value, ending=True, extended=True, server=server)


def taken(**changes: Any) -> tuple[PendingCall, Woken]:
    """An at_least_once call whose request the message system has taken."""
    pending, woken = call(**{"repeatable": True, **changes})
    pending.on_sent(None, NOW)
    return pending, woken


DECLINED = Reply("c", "declined", extended=True, server="h2")
LOST = TransportUnavailable("cut", maybe_delivered=True)
AWAY = TransportUnavailable("away")


def repeats(pending: Pending, now: float, up_since: float | None) -> bool:
    """Whether the request is sent again now, as a `ClientCall` finds out."""
    found = pending.needs_repeat(now, up_since, REPEAT_AFTER)
    pending.on_checked(now, found)
    return found


def test_an_answer_ends_a_call() -> None:
    """The ending reply is the answer; the first one counts; later ones change nothing."""
    pending, woken = call()
    pending.on_reply(Reply("c", result=5, ending=True), NOW)
    assert woken.take()
    assert pending.answer is not None
    assert pending.answer.result == 5
    pending.on_reply(Reply("c", result=6, ending=True), NOW)
    assert pending.answer.result == 5


def test_a_reply_that_does_not_end_the_call_is_a_sign_of_life() -> None:
    """A stock server's heartbeat is no answer."""
    pending, woken = call()
    pending.on_reply(Reply("c"), NOW + 1)
    assert pending.answer is None
    assert not woken.take()
    assert pending.last_sign == NOW + 1


def test_a_call_ends_at_its_deadline() -> None:
    """Until its deadline a call waits; then it times out, with the method and the target in the text."""
    pending, _ = call()
    assert pending.next_check() == DEADLINE
    pending.on_sent(None, NOW)
    assert pending.next_check() == DEADLINE
    assert check(pending, DEADLINE - 0.001) is None
    error = check(pending, DEADLINE)
    assert type(error) is MessagingTimeout
    assert "'echo' on topic 'foo'" in str(error)


def test_a_call_that_was_not_sent_waits_a_moment_for_why() -> None:
    """The driver gives it up at the same time, and may say so a moment later. Then its error is that of the call."""
    pending, _ = call()
    assert pending.next_check() == DEADLINE
    assert check(pending, DEADLINE) is None
    assert DEADLINE < pending.next_check() < DEADLINE + 0.5
    pending.on_sent(AWAY, DEADLINE + 0.001)
    assert check(pending, DEADLINE + 0.001) is AWAY
    silent, _ = call()
    assert check(silent, DEADLINE) is None
    assert type(check(silent, silent.next_check())) is MessagingTimeout


def test_sent() -> None:
    """That the message system has the request is remembered, and nobody is woken for it."""
    pending, woken = call()
    pending.on_sent(None, NOW)
    assert pending.sent
    assert not woken.take()


@pytest.mark.parametrize(
    ("error", "repeatable"),
    [
        (MessageUndeliverable("nobody"), False),
        (TransportUnavailable("away"), False),
        (TransportUnavailable("cut", maybe_delivered=True), True),
        (CallCancelled("closed"), False),
    ],
)
def test_a_request_that_could_not_be_sent(error: Exception, repeatable: bool) -> None:
    """What kept the request from being sent is raised at once, as it is."""
    pending, woken = call(repeatable=repeatable)
    pending.on_sent(error, NOW)
    assert woken.take()
    assert check(pending, NOW) is error


def test_a_foreign_error_of_sending() -> None:
    """A foreign error becomes a MessageDeliveryFailure."""
    pending, _ = call()
    pending.on_sent(OSError("broken"), NOW)
    error = check(pending, NOW)
    assert type(error) is MessageDeliveryFailure
    assert "broken" in str(error)


@pytest.mark.parametrize("how", ["lost", "declined"])
def test_outcome_unknown_after_the_grace(how: str) -> None:
    """A request that may have run is waited for during the grace, and is then OutcomeUnknown, before the deadline."""
    pending, woken = call()
    if how == "lost":
        pending.on_sent(LOST, NOW + 1)
    else:
        pending.on_reply(DECLINED, NOW + 1)
    assert woken.take()
    assert pending.next_check() == NOW + 1 + GRACE
    assert check(pending, NOW + GRACE) is None
    error = check(pending, NOW + 1 + GRACE)
    assert type(error) is OutcomeUnknown
    assert "at_most_once" in str(error)


@pytest.mark.parametrize("sign", [started(), Reply("c", result=1, ending=True), Reply("c")])
def test_a_sign_of_life_ends_the_uncertainty(sign: Reply) -> None:
    """Whatever the server says makes it certain that the request has arrived: the grace is over."""
    pending, _ = call()
    pending.on_sent(LOST, NOW)
    pending.on_reply(sign, NOW + 1)
    assert not isinstance(check(pending, NOW + 1 + GRACE), OutcomeUnknown)
    assert pending.next_check() > NOW + 1 + GRACE


def test_the_grace_counts_from_the_first_unknown_outcome() -> None:
    """A second server that declines does not prolong the grace."""
    pending, _ = call()
    pending.on_sent(LOST, NOW)
    pending.on_reply(DECLINED, NOW + 5)
    assert pending.next_check() == NOW + GRACE


def test_declined_while_a_server_runs_it() -> None:
    """That another server declined is of no matter once a server is known to run the call."""
    pending, woken = call()
    pending.on_reply(started(), NOW)
    woken.take()
    pending.on_reply(DECLINED, NOW + 1)
    assert not woken.take()
    assert pending.next_check() == NOW + LOST_AFTER


def test_the_deadline_comes_before_the_grace_ends() -> None:
    """Where the deadline comes first it ends the call."""
    pending, _ = call(deadline=NOW + 5)
    pending.on_sent(LOST, NOW)
    assert pending.next_check() == NOW + 5
    assert type(check(pending, NOW + 5)) is MessagingTimeout


def test_an_at_most_once_call_has_one_server() -> None:
    """The first server that says that it runs the call is the call's; others are to be cancelled."""
    pending, woken = call()
    pending.on_reply(started("h1"), NOW)
    assert woken.take()
    assert pending.server_inbox == "inbox-h1"
    pending.on_reply(started("h2"), NOW)
    assert woken.take()
    pending.on_reply(started("h1"), NOW)
    assert [server.name for server in pending.servers.values()] == ["h1"]
    assert pending.orphans == ["inbox-h2"]


def test_an_at_least_once_call_may_have_several_servers() -> None:
    """None of them is cancelled, since any of them may be the one that lives to answer."""
    pending, woken = call(repeatable=True)
    pending.on_reply(started("h1"), NOW)
    pending.on_reply(started("h2"), NOW + 1)
    assert woken.take()
    assert list(pending.servers) == ["inbox-h1", "inbox-h2"]
    assert not pending.orphans


@pytest.mark.parametrize("first", ["h1", "h2"])
def test_whichever_server_answers_first_ends_the_call(first: str) -> None:
    """It makes no difference which of them began first."""
    pending, _ = call(repeatable=True)
    pending.on_reply(started("h1"), NOW)
    pending.on_reply(started("h2"), NOW)
    pending.on_reply(answer(first, first), NOW)
    assert pending.answer is not None
    assert pending.answer.result == first


def test_a_keepalive_makes_a_server_known() -> None:
    """Where a server's first sign of life was lost, the next one takes its place."""
    pending, _ = call()
    pending.on_reply(keepalive("h1"), NOW)
    assert pending.server_inbox == "inbox-h1"


def test_the_loss_of_one_server_takes_nothing_from_another() -> None:
    """The server that runs an at_least_once call in place of a dead one is heard, though it began before the loss."""
    pending, _ = taken()
    pending.on_reply(started("h1"), NOW)
    pending.on_reply(started("h2"), NOW + 10)
    assert check(pending, NOW + LOST_AFTER) is None
    assert list(pending.servers) == ["inbox-h2"]
    assert not repeats(pending, NOW + LOST_AFTER, 0.0)
    pending.on_reply(answer(5, "h2"), NOW + LOST_AFTER + 1)
    assert pending.answer is not None


def test_server_lost() -> None:
    """A server that had begun and is silent for three keepalives is lost: long before the deadline, and by name."""
    pending, _ = call()
    pending.on_reply(started(), NOW + 2)
    pending.on_reply(keepalive(), NOW + 6)
    assert pending.next_check() == NOW + 6 + LOST_AFTER
    assert check(pending, NOW + 5.9 + LOST_AFTER) is None
    error = check(pending, NOW + 6 + LOST_AFTER)
    assert type(error) is ServerLost
    assert "'h1'" in str(error)
    assert "15 s" in str(error)


def test_a_keepalive_counts_that_comes_while_a_call_is_checked() -> None:
    """The thread that reads notes it in the middle of the check of the thread that waits, which must not undo that."""
    pending, _ = call()
    pending.on_reply(started(), NOW)

    class Interrupted(float):
        def __gt__(self, other: float) -> bool:
            pending.on_reply(keepalive(), pending.last_sign + 1)
            return float(self) > other

    assert check(pending, NOW + 9, Interrupted(0.0)) is None
    assert pending.last_sign > NOW
    assert pending.next_check() == pending.last_sign + LOST_AFTER


def test_a_call_whose_only_server_is_lost_is_sent_again() -> None:
    """Under at_least_once the request is sent again, and again after each time of silence, until a server begins."""
    pending, _ = taken()
    pending.on_reply(started("h1"), NOW)
    assert check(pending, NOW + LOST_AFTER) is None
    assert pending.server_inbox is None
    assert repeats(pending, NOW + LOST_AFTER, 0.0)
    assert not repeats(pending, NOW + LOST_AFTER, 0.0)
    pending.on_repeated(None, NOW + LOST_AFTER)
    assert pending.next_check() == NOW + 2 * LOST_AFTER
    assert repeats(pending, NOW + 2 * LOST_AFTER, 0.0)
    pending.on_repeated(None, NOW + 2 * LOST_AFTER)
    pending.on_reply(started("h2"), NOW + 2 * LOST_AFTER + 1)
    assert not repeats(pending, NOW + 3 * LOST_AFTER, 0.0)
    assert type(check(pending, DEADLINE)) is MessagingTimeout


def test_a_call_is_sent_again_when_the_connection_has_come_back_and_nothing_is_heard() -> None:
    """The message system may have lost the request, or its answer: once each time that the connection comes back."""
    pending, woken = taken()
    back = NOW + 20
    assert not repeats(pending, back + REPEAT_AFTER - 0.1, back)
    assert repeats(pending, back + REPEAT_AFTER, back)
    assert not repeats(pending, back + REPEAT_AFTER + 1, back)  # it is being sent
    pending.on_repeated(None, back + REPEAT_AFTER)
    assert woken.take()
    assert not repeats(pending, DEADLINE - 1, back)
    assert repeats(pending, back + 30, back + 20)


@pytest.mark.parametrize("sign", [started(), keepalive(), Reply("c")])
def test_a_sign_of_life_after_the_reconnect_needs_no_repeat(sign: Reply) -> None:
    """A server that sends a keepalive runs the call: to send it again would run it twice."""
    pending, _ = taken()
    back = NOW + 20
    pending.on_reply(sign, back + 0.5)
    assert not repeats(pending, back + REPEAT_AFTER, back)


def test_what_is_not_sent_again() -> None:
    """Nothing under at_most_once; nothing while it is being sent, or while this side is cut off."""
    careful, _ = taken(repeatable=False)
    unsent, _ = call(repeatable=True)
    for pending in (careful, unsent):
        assert not repeats(pending, NOW + 30, NOW + 20)
    cut_off, _ = taken()
    assert not repeats(cut_off, NOW + 30, None)


def test_a_repeat_that_cannot_be_sent_changes_nothing() -> None:
    """The message system has taken the request before: a server may still have it."""
    pending, _ = taken()
    assert repeats(pending, NOW + 30, NOW + 20)
    pending.on_repeated(MessageUndeliverable("nobody"), NOW + 31)
    assert check(pending, NOW + 31) is None


@pytest.mark.parametrize(
    ("error", "repeatable"), [(MessageUndeliverable("nobody"), True), (LOST, True), (LOST, False)], ids=str
)
def test_a_request_that_runs_was_delivered(error: Exception, repeatable: bool) -> None:
    """What became of sending it does not matter once a server says that it runs it, however long this side is away."""
    pending, _ = call(repeatable=repeatable)
    pending.on_reply(started(), NOW)
    pending.on_sent(error, NOW + 1)
    assert check(pending, NOW + 1) is None
    assert check(pending, NOW + 1 + GRACE, None) is None


def test_the_silence_of_a_server_that_never_began_is_no_loss() -> None:
    """As long as no server said that it runs the call, nothing but the deadline ends it."""
    pending, _ = call()
    pending.on_sent(None, NOW)
    assert check(pending, DEADLINE - 1) is None


def test_monitor_of_a_stock_server() -> None:
    """With call_monitor_timeout, a stock server's silence for that long ends the call; its heartbeats prolong it."""
    pending, _ = call(monitor=5.0)
    assert pending.next_check() == NOW + 5
    pending.on_reply(Reply("c"), NOW + 4)
    assert pending.next_check() == NOW + 9
    assert check(pending, NOW + 8.9) is None
    error = check(pending, NOW + 9)
    assert type(error) is MessagingTimeout
    assert "no sign of life" in str(error)


def test_monitor_while_this_side_is_not_connected() -> None:
    """Silence says nothing of a server then: the request may not even be sent. It counts from the connection on."""
    pending, _ = call(monitor=5.0)
    assert check(pending, NOW + 6, None) is None
    assert pending.next_check() == NOW + 11
    assert check(pending, NOW + 11, NOW + 8) is None
    assert check(pending, NOW + 12.9, NOW + 8) is None
    assert type(check(pending, NOW + 13, NOW + 8)) is MessagingTimeout


def test_a_monitor_of_0_is_none() -> None:
    """As in oslo.messaging."""
    pending, _ = call(monitor=0)
    assert pending.next_check() == DEADLINE
    assert check(pending, DEADLINE - 1) is None


def test_monitor_of_a_msgbus_server() -> None:
    """A server of msgbus sends keepalives by itself: once it has begun, the monitor time does not matter."""
    pending, _ = call(monitor=5.0)
    pending.on_reply(started(), NOW)
    assert check(pending, NOW + 6) is None
    assert pending.next_check() == NOW + LOST_AFTER


def test_a_call_that_nobody_waits_for_yet_can_be_woken() -> None:
    """News that comes before the caller waits is no error."""
    pending = PendingCall("c", "m", Address("topic"), **options())
    pending.on_reply(Reply("c", ending=True), NOW)
    assert pending.answer is not None


def test_failure_of_a_reply() -> None:
    """A reply's failure is made an exception by the call's list of allowed modules."""
    pending, _ = call()
    assert pending.failure_of(Reply("c")) is None
    assert type(pending.failure_of(Reply("c", failure=serialize_failure(ValueError("x"))))) is ValueError
    other = Reply("c", failure='{"class": "Thing", "module": "somewhere"}')
    assert type(pending.failure_of(other)) is RemoteError


def test_check_and_needs_repeat_change_nothing() -> None:
    """`check` and `needs_repeat` say the same however often they are asked; only what follows changes a call."""
    pending, _ = call(repeatable=True)
    pending.on_sent(None, NOW)
    pending.on_reply(started(), NOW)
    lost = NOW + LOST_AFTER
    assert [pending.check(lost) for _ in range(2)] == [None, None]
    assert len(pending.servers) == 1
    pending.update(lost, 0.0)
    assert not pending.servers
    assert [pending.needs_repeat(lost, 0.0, REPEAT_AFTER) for _ in range(2)] == [True, True]
    pending.on_checked(lost, True)
    assert not pending.needs_repeat(lost, 0.0, REPEAT_AFTER)


def test_pending_is_abstract() -> None:
    """What a reply means is up to the kind of call."""
    with pytest.raises(NotImplementedError):
        Pending("c", "m", Address("topic"), **options()).on_reply(Reply("c"), NOW)


def test_silence_counts_only_while_one_can_hear() -> None:
    """A server is not taken for dead for what it could not say: silence is counted from this side's reconnect on."""
    pending, _ = call()
    pending.on_reply(Reply("c", "started", inbox="s", server="s1"), NOW)
    assert check(pending, NOW + LOST_AFTER + 5, None) is None
    assert pending.next_check() > NOW + LOST_AFTER + 5
    back = NOW + LOST_AFTER + 10
    assert check(pending, back, back - 1) is None
    assert check(pending, back - 1 + LOST_AFTER - 0.1, back - 1) is None
    assert isinstance(check(pending, back - 1 + LOST_AFTER, back - 1), ServerLost)
    assert pending.last_sign == NOW
