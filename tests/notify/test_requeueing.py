"""What becomes of a notification whose endpoint raises, or wants it again: with ``allow_requeue`` and without."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

import msgbus
from msgbus import failed_casts
from msgbus.drivers.base import Capability
from msgbus.drivers.fake import FakeDriver
from tests.notify.support import TARGET, Endpoint, listening
from tests.support import EVENT_TIMEOUT, new_transport

REQUEUE = msgbus.NotificationResult.REQUEUE


def test_requeue_needs_a_message_system_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused when the listener is made, and not ignored."""
    monkeypatch.setattr(FakeDriver, "capabilities", FakeDriver.capabilities - {Capability.REQUEUE})
    transport = new_transport()
    with pytest.raises(msgbus.CapabilityMissing, match=r"allow_requeue: FakeDriver does not declare .* 'requeue'"):
        msgbus.get_notification_listener(transport, [TARGET], [Endpoint()], allow_requeue=True)
    endpoint = Endpoint(REQUEUE)
    with listening(transport, endpoint):
        msgbus.Notifier(transport, driver="messagingv2").info({}, "e", {})
        assert endpoint.events(1) == ["e"]
    transport.cleanup()


@pytest.mark.parametrize("answer", [REQUEUE, "requeue", ValueError("bad"), SystemExit(3)])
def test_what_is_to_come_again_comes_again(
    transport: msgbus.Transport, notifier: msgbus.Notifier, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where REQUEUE is returned, and where anything is raised; until it is handled. It is the same notification."""
    monkeypatch.setattr(failed_casts, "RETRY_DELAYS", (0.001,))
    endpoint = Endpoint(answer, answer)
    with listening(transport, endpoint, allow_requeue=True):
        notifier.info({}, "e", {})
        assert len({endpoint.next()[5]["message_id"] for _ in range(3)}) == 1
        notifier.info({}, "next", {})
        assert endpoint.events(1) == ["next"]


def test_without_allow_requeue_nothing_comes_again(
    transport: msgbus.Transport, notifier: msgbus.Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts as handled, and the log says so; an exception with its traceback."""
    endpoint = Endpoint(REQUEUE, ValueError("no such order"))
    with listening(transport, endpoint):
        for event_type in ("one", "two", "three"):
            notifier.info({}, event_type, {})
        assert sorted(endpoint.events(3)) == ["one", "three", "two"]
    assert caplog.text.count("the listener was made without allow_requeue") == 2
    assert "ValueError: no such order" in caplog.text
    assert endpoint.came.empty()


@pytest.mark.parametrize("answer", [REQUEUE, ValueError("first"), SystemExit(3)])
def test_without_allow_requeue_all_endpoints_get_it_whichever_fails(
    transport: msgbus.Transport, notifier: msgbus.Notifier, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    """And each error is in the log; an interceptor sees the first."""
    seen: list[Any] = []

    def look(request: msgbus.InterceptedRequest, proceed: msgbus.Proceed) -> Any:
        try:
            seen.append(proceed(request))
        except BaseException as exc:
            seen.append(exc)
            raise
        return seen[-1]

    first, second, third = Endpoint(answer), Endpoint(ValueError("second")), Endpoint()
    with listening(transport, first, second, third, interceptors=[look]):
        notifier.info({}, "e", {})
        assert third.events(1) == ["e"]
    assert (first.events(1), second.events(1)) == (["e"], ["e"])
    assert str(seen) == str([ValueError("second") if answer == REQUEUE else answer])
    assert "ValueError: second" in caplog.text
    assert caplog.text.count("does not come again") == 1


def test_with_allow_requeue_the_next_endpoint_waits_until_it_is_handled(
    transport: msgbus.Transport, notifier: msgbus.Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All endpoints would get it again, so those after one that fails do not get it yet."""
    monkeypatch.setattr(failed_casts, "RETRY_DELAYS", (0.001,))
    first, second = Endpoint(REQUEUE, ValueError("bad")), Endpoint()
    with listening(transport, first, second, allow_requeue=True):
        notifier.info({}, "e", {})
        assert (first.events(3), second.events(1)) == (["e"] * 3, ["e"])
    assert second.came.empty()


def test_the_pause_grows_and_others_are_served_meanwhile(
    transport: msgbus.Transport, notifier: msgbus.Notifier
) -> None:
    """One that always comes again pauses for a second first; a hundred others are handled in that time."""
    again = threading.Event()
    counts = {"bad": 0}

    class Picky:
        def info(self, _ctxt: Any, _publisher: Any, event_type: str, _payload: Any, _metadata: Any) -> Any:
            if event_type != "bad":
                done.put(event_type)
                return None
            counts["bad"] += 1
            again.set()
            return REQUEUE

    done: queue.Queue[str] = queue.Queue()
    with listening(transport, Picky(), allow_requeue=True):
        notifier.info({}, "bad", {})
        assert again.wait(EVENT_TIMEOUT)
        for _ in range(100):
            notifier.info({}, "good", {})
        for _ in range(100):
            done.get(timeout=EVENT_TIMEOUT)
        assert counts["bad"] < 5


def test_many_that_always_come_again_do_not_keep_others_waiting(transport: msgbus.Transport) -> None:
    """More of them than the prefetch, and before the others in the queue."""
    transport.conf.set_override("rpc_prefetch", 4)
    notifier = msgbus.Notifier(transport, driver="messagingv2")
    for _ in range(30):
        notifier.info({}, "bad", {})
    notifier.info({}, "good", {})
    good = threading.Event()

    class Picky:
        def info(self, _ctxt: Any, _publisher: Any, event_type: str, _payload: Any, _metadata: Any) -> Any:
            if event_type == "bad":
                return REQUEUE
            good.set()
            return None

    with listening(transport, Picky(), allow_requeue=True):
        assert good.wait(EVENT_TIMEOUT)
    rest = Endpoint()
    with listening(transport, rest):
        assert rest.events(30) == ["bad"] * 30


def test_another_listener_gets_what_one_has_given_back(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """A listener that stops gives back at once what it had kept for a pause."""
    refusing = Endpoint(*[REQUEUE] * 3)
    with listening(transport, refusing, allow_requeue=True):
        notifier.info({}, "e", {})
        assert refusing.events(1) == ["e"]
    other = Endpoint()
    with listening(transport, other):
        assert other.events(1) == ["e"]
