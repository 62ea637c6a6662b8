"""Which endpoints get a notification, what comes again, and the life of a listener."""

from __future__ import annotations

import logging
import pathlib
import queue
import threading
from concurrent.futures import Future
from typing import Any

import pytest

import msgbus
from msgbus import failed_casts
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Capability, Message, Sent
from msgbus.drivers.fake import FakeDriver
from tests.notify.support import TARGET, Endpoint, listening, send_raw
from tests.support import EVENT_TIMEOUT, exit_code_of, new_transport

REQUEUE = msgbus.NotificationResult.REQUEUE

# Endpoints


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


# What comes again


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


def test_a_second_copy_is_not_run_again(
    transport: msgbus.Transport,
    notifier: msgbus.Notifier,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A notifier that does not know whether the first copy was taken sends another one with the same id."""
    caplog.set_level(logging.INFO, "msgbus")
    endpoint, sent_ids = Endpoint(), list[str]()
    send = transport.driver.send

    def send_without_answer(address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        sent = send(address, message, mandatory=mandatory)
        sent_ids.append(message.id)
        if len(sent_ids) > 1:
            return sent
        unknown: Future[Sent] = Future()
        unknown.set_exception(msgbus.TransportUnavailable("cut off", maybe_delivered=True))
        return unknown

    with listening(transport, endpoint):
        monkeypatch.setattr(transport.driver, "send", send_without_answer)
        notifier.info({}, "e", {})
        assert len(sent_ids) == 2
        assert len(set(sent_ids)) == 1
        notifier.info({}, "next", {})
        assert endpoint.events(2) == ["e", "next"]
        until(lambda: "has come a second time and was not run again" in caplog.text, "the copy has come")
    assert endpoint.came.empty()


def test_the_same_id_is_handled_once(transport: msgbus.Transport) -> None:
    """Whoever has sent it twice."""
    message = (
        b'{"_unique_id": "u1", "priority": "INFO", "event_type": "e", "publisher_id": "p", "payload": 1, '
        b'"timestamp": "t", "message_id": "m"}'
    )
    endpoint = Endpoint()
    with listening(transport, endpoint):
        send_raw(transport, message)
        send_raw(transport, message)
        send_raw(transport, message.replace(b"u1", b"u2").replace(b'"e"', b'"end"'))
        assert endpoint.events(2) == ["e", "end"]
    assert endpoint.came.empty()


# What is no notification


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\xff", "cannot be read"),
        (b"7", "cannot be read"),
        (b"{}", "its priority is None"),
        (b'{"priority": "LOUD", "event_type": "e"}', "its priority is 'LOUD'"),
        (b'{"priority": "INFO"}', "its event_type is None"),
        (b'{"priority": "INFO", "event_type": "e", "publisher_id": 7}', "its publisher_id is 7"),
        (b'{"method": "greet", "args": {}}', "its priority is None"),
    ],
)
def test_what_is_no_notification_is_logged_and_dropped(
    transport: msgbus.Transport, caplog: pytest.LogCaptureFixture, body: bytes, why: str
) -> None:
    """The listener goes on."""
    endpoint = Endpoint()
    with listening(transport, endpoint):
        send_raw(transport, body)
        msgbus.Notifier(transport, driver="messaging").info({}, "e", {})
        assert endpoint.events(1) == ["e"]
    (logged,) = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert "is no notification, and was dropped" in logged
    assert why in logged


def test_hostile_texts_forge_no_line_of_the_log(transport: msgbus.Transport, caplog: pytest.LogCaptureFixture) -> None:
    """They are escaped."""
    with listening(transport, Endpoint()):
        send_raw(transport, b'{"priority": "a\\nERROR forged", "event_type": "e"}')
        until(lambda: caplog.records, "it is logged")
    assert "\nERROR forged" not in caplog.text


# Pools


def test_each_pool_gets_a_copy(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """One listener of each pool has it, and one of those that are in none."""
    free, one, two, other = Endpoint(), Endpoint(), Endpoint(), Endpoint()
    with (
        listening(transport, free),
        listening(transport, one, pool="a"),
        listening(transport, two, pool="a"),
        listening(transport, other, pool="b"),
    ):
        for n in range(10):
            notifier.info({}, f"e{n}", {})
        assert sorted(free.events(10)) == sorted(other.events(10))
        until(lambda: one.came.qsize() + two.came.qsize() == 10, "the pool has all")
    assert sorted(came[3] for came in (*one.came.queue, *two.came.queue)) == [f"e{n}" for n in range(10)]


# Its life


def test_a_stopped_listener_leaves_what_it_has_not_begun(transport: msgbus.Transport) -> None:
    """What runs is finished; another listener gets the rest."""
    transport.conf.set_override("executor_thread_pool_size", 1)
    began, release = threading.Event(), threading.Event()

    class Slow:
        def info(self, _ctxt: Any, _publisher: Any, event_type: str, _payload: Any, _metadata: Any) -> None:
            began.set()
            assert release.wait(EVENT_TIMEOUT)
            done.append(event_type)

    done: list[str] = []
    notifier = msgbus.Notifier(transport, driver="messagingv2")
    other = Endpoint()
    slow = msgbus.get_notification_listener(transport, [TARGET], [Slow()])
    slow.start()
    for n in range(5):
        notifier.info({}, f"e{n}", {})
    assert began.wait(EVENT_TIMEOUT)
    slow.stop()
    with listening(transport, other):
        assert sorted(other.events(4)) == ["e1", "e2", "e3", "e4"]
        release.set()
        assert slow.wait(EVENT_TIMEOUT) == 0
    assert done == ["e0"]
    assert other.came.empty()


def test_a_listener_may_be_started_again(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """After it was stopped and waited for."""
    endpoint = Endpoint()
    listener = msgbus.get_notification_listener(transport, [TARGET], [endpoint])
    for _ in range(2):
        listener.start()
        notifier.info({}, "e", {})
        assert endpoint.events(1) == ["e"]
        listener.stop()
        assert listener.wait(EVENT_TIMEOUT) == 0


def test_a_listener_says_whether_it_listens(transport: msgbus.Transport) -> None:
    """As a server does."""
    listener = msgbus.get_notification_listener(transport, [TARGET], [Endpoint()])
    assert not listener.healthy().ready
    listener.start()
    assert listener.healthy().ready
    assert listener.wait(EVENT_TIMEOUT) == 0
    assert not listener.healthy().ready


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


def test_requests_and_notifications_share_a_transport(transport: msgbus.Transport, notifier: msgbus.Notifier) -> None:
    """A server and a listener of one program."""

    class Hello:
        def greet(self, _ctxt: Any, name: str) -> str:
            notifier.info({}, "greeted", {"name": name})
            return f"Hello, {name}"

    server = msgbus.get_rpc_server(transport, msgbus.Target(topic="hello", server="one"), [Hello()])
    server.start()
    endpoint = Endpoint()
    with listening(transport, endpoint):
        client = msgbus.get_rpc_client(transport, msgbus.Target(topic="hello"), timeout=EVENT_TIMEOUT)
        assert client.call({}, "greet", name="Ada") == "Hello, Ada"
        assert endpoint.next()[4] == {"name": "Ada"}
    server.stop()
    assert server.wait(EVENT_TIMEOUT) == 0


def test_a_forked_child_has_a_listener_that_was_not_started(tmp_path: pathlib.Path) -> None:
    """The parent's goes on."""
    transport = new_transport(f"zmq://{tmp_path}")
    endpoint = Endpoint()
    notifier = msgbus.Notifier(transport, driver="messagingv2")
    with listening(transport, endpoint) as listener:

        def in_child() -> None:
            assert "not serving" in repr(listener)

        assert exit_code_of(in_child) == 0
        notifier.info({}, "e", {})
        assert endpoint.events(1) == ["e"]
    transport.cleanup()
