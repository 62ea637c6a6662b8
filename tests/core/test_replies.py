from __future__ import annotations

from msgbus import CallCancelled
from msgbus.drivers.base import Address
from msgbus.message import Reply
from msgbus.pending import PendingCall
from msgbus.replies import ReplyRouter
from tests.core.waiting_calls import NOW, call, check, options


def test_router_hands_replies_to_their_calls() -> None:
    """A reply goes to the call with its id; what nobody waits for is dropped."""
    router = ReplyRouter()
    first, _ = call()
    second = PendingCall("d", "m", Address("topic"), **options())
    router.add(first)
    router.add(second)
    assert len(router) == 2
    router.route(Reply("d", result=1, ending=True), NOW)
    router.route(Reply("unknown", ending=True), NOW)
    assert first.answer is None
    assert second.answer is not None
    router.discard(first)
    router.discard(first)
    router.route(Reply("c", ending=True), NOW)
    assert first.answer is None
    assert router.waiting() == [second]


def test_router_fails_all() -> None:
    """Closing a transport ends every call that waits, at once."""
    router = ReplyRouter()
    pending, woken = call()
    router.add(pending)
    other = PendingCall("other", "echo", Address("topic", "x", "foo"), **options())
    router.add(other)
    router.fail_all("it is closed")
    assert woken.take()
    for each in (pending, other):
        error = check(each, NOW)
        assert (type(error), str(error)) == (CallCancelled, f"{each.describe}: it is closed")
