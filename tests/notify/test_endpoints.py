"""Which endpoints get a notification, and which endpoints, filters and targets are refused."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

import msgbus
from msgbus.conformance.waiting import until
from tests.notify.support import TARGET, Endpoint, listening
from tests.support import EVENT_TIMEOUT


class OnlyErrors:
    """Has one level, and keeps the types that came."""

    def __init__(self) -> None:
        self.came: queue.Queue[str] = queue.Queue()

    def error(self, _ctxt: Any, _publisher: Any, event_type: str, _payload: Any, _metadata: Any) -> None:
        self.came.put(event_type)


def test_a_level_without_a_method_is_not_listened_to(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """Its notifications stay for other listeners."""
    errors = OnlyErrors()
    with listening(transport, errors):
        notifier.info({}, "info", {})
        notifier.error({}, "error", {})
        assert errors.came.get(timeout=EVENT_TIMEOUT) == "error"
        later = Endpoint()
        with listening(transport, later):
            assert later.events(1) == ["info"]


def test_all_endpoints_of_a_level_are_called_in_order(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """Each gets it."""
    first, second = Endpoint(), Endpoint()
    with listening(transport, first, second):
        notifier.info({}, "e", {})
        assert (first.events(1), second.events(1)) == (["e"], ["e"])


def filtered(**rules: Any) -> Endpoint:
    """An endpoint with a filter."""
    endpoint = Endpoint()
    endpoint.filter_rule = msgbus.NotificationFilter(**rules)  # type: ignore[attr-defined]
    return endpoint


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({"event_type": r"^order\."}, ["order.created", "order.paid"]),
        ({"event_type": r"der"}, []),
        ({"publisher_id": r".*\.host2$"}, ["order.paid"]),
        ({"payload": {"state": "^paid$"}}, ["order.paid"]),
        ({"payload": {"id": "7"}}, []),
        ({"payload": {"missing": ".*"}}, []),
        ({"context": {"user": "ada|bob"}}, ["order.created", "cart.filled"]),
        ({"metadata": {"message_id": ".{36}$"}}, ["order.created", "order.paid", "cart.filled"]),
        ({"event_type": "order", "publisher_id": "host1"}, ["order.created"]),
        ({}, ["order.created", "order.paid", "cart.filled"]),
    ],
)
def test_a_filter_says_which_notifications_an_endpoint_gets(
    transport: msgbus.Transport, rules: Any, wanted: list[str]
) -> None:
    """All expressions have to match, from the beginning; what is no string, or is missing, does not match."""
    endpoint, all_of_them = filtered(**rules), Endpoint()
    notifier = msgbus.Notifier(transport, driver="messagingv2")
    with listening(transport, endpoint, all_of_them):
        notifier.prepare(publisher_id="host1").info({"user": "ada"}, "order.created", {"state": "new", "id": 7})
        notifier.prepare(publisher_id="shop.host2").info({}, "order.paid", {"state": "paid"})
        notifier.info({"user": "bob"}, "cart.filled", "text")
        assert sorted(all_of_them.events(3)) == ["cart.filled", "order.created", "order.paid"]
    assert sorted(came[3] for came in endpoint.came.queue) == sorted(wanted)


@pytest.mark.parametrize(
    ("rules", "error", "text"),
    [
        ({"event_type": "("}, ValueError, r"event_type .* '\(' is not a regular expression"),
        ({"payload": {"a": "["}}, ValueError, r"payload\['a'\]"),
        ({"payload": "x"}, TypeError, "dict of regular expressions"),
        ({"event_type": 7}, TypeError, "not 7"),
    ],
)
def test_a_wrong_filter_is_refused(rules: Any, error: type[Exception], text: str) -> None:
    """When it is made, and not when the first notification comes."""
    with pytest.raises(error, match=text):
        msgbus.NotificationFilter(**rules)


class Misspelt:
    def inform(self, *_args: Any) -> None: ...


class TooFew:
    def info(self, _ctxt: Any, _payload: Any) -> None: ...


class Filtered:
    filter_rule = "order.*"

    def info(self, *_args: Any) -> None: ...


class Async:
    async def info(self, *_args: Any) -> None: ...


@pytest.mark.parametrize(
    ("endpoints", "options", "text"),
    [
        ([Misspelt()], {}, "did you mean info by inform"),
        ([TooFew()], {}, r"TooFew.info is called as \(ctxt, publisher_id, event_type, payload, metadata\)"),
        ([Filtered()], {}, "filter_rule of Filtered has to be a NotificationFilter"),
        ([Async()], {"executor": "threading"}, "Async.info is async"),
        ([Endpoint], {}, r"Endpoint is a class: Endpoint\(\)"),
        ([], {}, "no endpoint"),
        (Endpoint(), {}, "is a list of objects"),
        (["text"], {}, "is an object whose methods are called"),
    ],
)
def test_wrong_endpoints_are_refused(transport: msgbus.Transport, endpoints: Any, options: Any, text: str) -> None:
    """When the listener is made, and the text says what is wrong."""
    with pytest.raises(TypeError, match=text):
        msgbus.get_notification_listener(transport, [TARGET], endpoints, **options)


@pytest.mark.parametrize(
    ("targets", "options", "error", "text"),
    [
        (TARGET, {}, TypeError, r"targets is a list, \[Target"),
        (iter([TARGET]), {}, TypeError, r"targets is a list, \[Target"),
        (None, {}, TypeError, r"targets is a list, \[Target.* not None"),
        ([], {}, TypeError, "no target"),
        ([msgbus.Target(exchange="x")], {}, msgbus.InvalidTarget, "needs a topic"),
        ([msgbus.Target(topic="t" * 73)], {}, msgbus.InvalidTarget, "longer than 75 bytes"),
        ([TARGET], {"pool": ""}, msgbus.InvalidTarget, "must not be empty"),
        ([TARGET], {"executor": "eventlet"}, ValueError, "'threading' and 'asyncio'"),
    ],
)
def test_wrong_targets_are_refused(
    transport: msgbus.Transport, targets: Any, options: Any, error: type[Exception], text: str
) -> None:
    """When the listener is made, and the text says what is wrong."""
    with pytest.raises(error, match=text):
        msgbus.get_notification_listener(transport, targets, [Endpoint()], **options)


def test_an_async_method_runs_on_an_event_loop(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """Of its own, as for a server; a plain one beside it runs on a thread."""
    import asyncio

    came: queue.Queue[tuple[str, str]] = queue.Queue()

    class Both:
        async def info(self, _ctxt: Any, _publisher: Any, event_type: str, _payload: Any, _metadata: Any) -> None:
            await asyncio.sleep(0)
            came.put(("async", event_type))

        def error(self, _ctxt: Any, _publisher: Any, event_type: str, _payload: Any, _metadata: Any) -> None:
            came.put((threading.current_thread().name.partition("-")[0], event_type))

    with listening(transport, Both()):
        notifier.info({}, "a", {})
        assert came.get(timeout=EVENT_TIMEOUT) == ("async", "a")
        notifier.error({}, "b", {})
        assert came.get(timeout=EVENT_TIMEOUT) == ("msgbus", "b")


def test_a_coroutine_that_a_plain_method_returns_is_an_error(
    transport: msgbus.Transport, notifier: msgbus.Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    """It would never run."""

    async def never() -> None: ...

    class Returning:
        def info(self, *_args: Any) -> Any:
            return never()

    with listening(transport, Returning()):
        notifier.info({}, "e", {})
        until(lambda: "which msgbus does not await" in caplog.text, "it is logged")
