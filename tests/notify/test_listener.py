"""What a listener drops, what it leaves to others, and its life."""

from __future__ import annotations

import logging
import pathlib
import threading
from concurrent.futures import Future
from typing import Any

import pytest

import msgbus
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Message, Sent
from tests.notify.support import TARGET, Endpoint, listening, send_raw
from tests.support import EVENT_TIMEOUT, exit_code_of, new_transport

# What comes twice


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
        assert sorted(endpoint.events(2)) == ["e", "next"]
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
        assert sorted(endpoint.events(2)) == ["e", "end"]
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
