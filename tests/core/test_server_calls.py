from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from msgbus import Transport
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Delivery, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.message import JSON, Control, Hints, Request
from msgbus.sending import send_control
from msgbus.server_call import ServerCall
from msgbus.server_calls import Seen, ServerCalls
from tests.support import new_transport


class Handed(Delivery):
    """How a request came."""

    __slots__ = ()

    def accept(self) -> bool:
        return True

    def reject(self, requeue: bool) -> None:
        raise AssertionError("nothing is given back here")


class Owner:
    """Makes calls, in the place of a `Processor`."""

    server, grace, forks = "h1", 0.0, 0

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def call(self, unique_id: str = "id", call_id: str = "c") -> ServerCall:
        request = Request("m", {}, unique_id, call_id=call_id, reply_to="nowhere", hints=Hints())
        delivery = Handed(Address("topic", "msgbus", "foo"), Message(b"", JSON, unique_id), False, None)
        owner: Any = self
        return ServerCall(owner, delivery, request, None, at_least_once=True)


@pytest.fixture
def owner() -> Iterator[Owner]:
    """Makes calls on a transport in memory."""
    transport = new_transport()
    transport.inbox(Loop.now() + 10)  # as a server does before it takes requests
    yield Owner(transport)
    transport.cleanup()


def test_a_duplicate_waits_for_the_first_and_is_settled_with_it(owner: Owner) -> None:
    """`end` of the first returns it; after that a duplicate is done, or new if the first was given back."""
    calls = ServerCalls(owner.transport)
    for done, then in ((True, Seen.DONE), (False, Seen.NEW)):
        unique_id = f"id {done}"
        first, second = owner.call(unique_id), owner.call(unique_id)
        assert calls.begin(first) is Seen.NEW
        assert calls.begin(second) is Seen.UNFINISHED
        assert list(calls) == [first]
        assert calls.end(first, done=done) == (second.delivery,)
        calls.remove(first)
        assert not list(calls)
        assert calls.begin(owner.call(unique_id)) is then
        for call in calls:
            calls.remove(call)


@pytest.mark.parametrize(("confirmed", "seen"), [(False, Seen.NEW), (True, Seen.DONE)])
def test_a_request_that_is_sent_again_is_new_unless_its_client_has_the_answer(
    owner: Owner, confirmed: bool, seen: Seen
) -> None:
    """Its client says that it has no answer; if that cannot be, a late copy has come."""
    calls, first = ServerCalls(owner.transport), owner.call()
    calls.begin(first, again=True)
    calls.end(first, done=True, confirmed=confirmed)
    assert calls.begin(owner.call()) is Seen.DONE
    assert calls.begin(owner.call(), again=True) is seen


def test_requests_without_an_id_are_never_duplicates(owner: Owner) -> None:
    """They are unfinished all the same until they are removed."""
    calls, requests = ServerCalls(owner.transport), [owner.call(""), owner.call("")]
    assert [calls.begin(call) for call in requests] == [Seen.NEW, Seen.NEW]
    assert calls.wait(0, requests[0]) == 1
    for call in requests:
        assert not calls.end(call, done=True)
        calls.remove(call)
    assert calls.wait(0, None) == 0


def test_of_two_calls_with_one_id_each_gets_the_control_frames(owner: Owner) -> None:
    """They may be those of two servers of one process. The end of one takes nothing from the other."""
    transport = owner.transport
    for ends_first in (0, 1):
        calls = [owner.call("1"), owner.call("2")]
        (inbox,) = {call.take_control() for call in calls}
        assert inbox == transport.inbox(0.0)
        ended, goes_on = calls[ends_first], calls[1 - ends_first]
        ended.end_control()
        goes_on.take_control()
        send_control(transport, inbox, Control("c", "cancel"), JSON)
        until(lambda found=goes_on: found.cancelled, "a control frame")  # type: ignore[misc]
        assert not ended.cancelled
        goes_on.end_control()
        assert not transport.server_calls
        assert not transport.further_calls
