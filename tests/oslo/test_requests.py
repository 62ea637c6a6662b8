"""RPC of an unchanged oslo.messaging, in memory."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest

from msgbus.drivers.fake import get_bus
from msgbus.exceptions import MessageUndeliverable, TransportUnavailable
from msgbus.lowlevel import JSON, Address, Message, now
from msgbus.oslo.incoming import Replies
from msgbus.oslo.settings import Settings
from tests.oslo.support import Endpoint, Service, oslo_messaging
from tests.support import EVENT_TIMEOUT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class NotFound(Exception):
    """As services define them."""


def test_calls_return_values_and_carry_the_context(service: Service) -> None:
    """By topic, and to one server. The server adds to the context what oslo.messaging adds."""
    service.serve(Endpoint())
    client = service.client()
    for prepared in (client, client.prepare(server="s1")):
        answer = prepared.call({"user": "u"}, "echo", value={"a": [1, "ü", None]})
        assert answer == {"value": {"a": [1, "ü", None]}, "ctxt": {"user": "u", "client_timeout": None}}


def test_failures_are_what_services_expect(service: Service) -> None:
    """Built-in ones as they are, others as `_Remote` classes if that is allowed, else as RemoteError."""

    class Failing(Endpoint):
        def missing(self, _ctxt: dict[str, Any]) -> None:
            raise NotFound("no image")

    service.serve(Failing())
    with pytest.raises(ValueError, match="no such thing"):
        service.client().call({}, "fail")
    with pytest.raises(oslo_messaging.RemoteError) as unknown:
        service.client().call({}, "missing")
    assert unknown.value.exc_type == "NotFound"
    with pytest.raises(NotFound, match="no image") as rebuilt:
        service.client(__name__).call({}, "missing")
    assert type(rebuilt.value).__name__ == "NotFound_Remote"
    with pytest.raises(oslo_messaging.RemoteError) as no_method:
        service.client().call({}, "nothing")
    assert no_method.value.exc_type == "NoSuchMethod"


def test_a_result_that_cannot_be_written_ends_the_call(service: Service) -> None:
    """The caller learns it at once, and does not wait until its timeout."""
    service.serve(Endpoint())
    with pytest.raises(Exception, match=r"(?i)circular|recursion"):
        service.client().call({}, "unwritable")


@pytest.mark.parametrize("method", ["big", "fail_big"])
def test_an_answer_that_is_too_large_ends_the_call(service: Service, method: str) -> None:
    """The caller learns it at once, with the limit, and does not wait until its timeout."""

    class Big(Endpoint):
        def big(self, _ctxt: dict[str, Any]) -> str:
            return "x" * 5000

        def fail_big(self, _ctxt: dict[str, Any]) -> None:
            raise ValueError("x" * 5000)

    service.url += "?max_message_size=4096"
    service.serve(Big())
    with pytest.raises(oslo_messaging.RemoteError, match=r"the answer.*takes at most 4096 bytes") as caught:
        service.client().call({}, method)
    assert caught.value.exc_type == "MessageTooLarge"


def test_a_reply_that_could_not_be_sent_says_nothing_of_its_client(service: Service) -> None:
    """Only one that nobody takes does. The next reply is tried until the client is back."""
    bus = get_bus(service.url.removeprefix("msgbus+"))

    class Losing(Endpoint):
        def lose(self, _ctxt: dict[str, Any]) -> None:
            bus.fail_next(TransportUnavailable("the message system was away for too long"))

        def answer_late(self, _ctxt: dict[str, Any]) -> str:
            bus.fail_next(MessageUndeliverable("the inbox of the client is not back yet"))
            return "late"

    service.serve(Losing())
    client = service.client()
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.prepare(timeout=1.0).call({}, "lose")
    assert client.call({}, "answer_late") == "late"


def test_a_server_that_tries_no_reply_again_replies_all_the_same(service: Service) -> None:
    """`kombu_missing_consumer_retry_timeout = 0`: only a client that is away gets no reply, whatever else happens."""
    bus = get_bus(service.url.removeprefix("msgbus+"))

    class Cut(Endpoint):
        def cut(self, _ctxt: dict[str, Any]) -> str:
            bus.fail_next(TransportUnavailable("cut", maybe_delivered=True))
            return "again"

    server = service.serve(Cut())
    server.listener.replies = Replies(server.transport._driver.transport, 0.0)
    client = service.client()
    assert client.call({}, "echo", value=1)["value"] == 1
    assert client.call({}, "cut") == "again"


def test_a_call_for_nobody_times_out(service: Service) -> None:
    """As with stock oslo.messaging, where it is not known whether anybody is there."""
    with pytest.raises(oslo_messaging.MessagingTimeout, match="nobody"):
        service.client(timeout=1.0).call({}, "echo", value=1)


def test_retries_bound_the_first_call_too(service: Service) -> None:
    """Which needs a queue for replies before it can be sent."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Nobody listens there.
        service.url = f"msgbus+rabbit://127.0.0.1:{taken.getsockname()[1]}/"
        with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="refused"):
            service.client(retry=0).call({}, "echo", value=1)


def test_at_least_once_says_that_nobody_is_there(service: Service) -> None:
    """At once, for calls and casts."""
    options = oslo_messaging.TransportOptions(at_least_once=True)
    client = service.client(transport_options=options)
    with pytest.raises(oslo_messaging.MessageUndeliverable) as caught:
        client.call({}, "echo", value=1)
    assert (caught.value.exchange, caught.value.routing_key) == ("openstack", "t")
    with pytest.raises(oslo_messaging.MessageUndeliverable):
        client.cast({}, "note", value=1)


def test_a_call_reaches_a_server_that_starts_later(service: Service) -> None:
    """A server that is being restarted costs a moment, and no call."""
    answers: list[Any] = []
    calling = threading.Thread(target=lambda: answers.append(service.client().call({}, "echo", value=1)["value"]))
    calling.start()
    service.serve(Endpoint())
    calling.join(EVENT_TIMEOUT)
    assert answers == [1]


def test_a_cast_reaches_a_server_that_starts_later(service: Service) -> None:
    """The caster does not wait for that."""
    service.client().cast({}, "note", value=1)
    endpoint = Endpoint()
    service.serve(endpoint)
    assert endpoint.taken() == 1


def test_casts_and_fanouts(service: Service) -> None:
    """One server gets a cast to the topic, the named one a cast to it, and all of them a fanout."""
    first, second = Endpoint(), Endpoint()
    service.serve(first, "s1")
    service.serve(second, "s2")
    client = service.client()
    client.prepare(server="s2").cast({}, "note", value="second")
    assert second.taken() == "second"
    client.prepare(fanout=True).cast({}, "note", value="all")
    assert (first.taken(), second.taken()) == ("all", "all")
    client.prepare(topic="nobody", fanout=True).cast({}, "note", value="all")


def test_a_topic_may_name_the_host(service: Service) -> None:
    """Services write ``topic.host``, and mean the server of that name."""
    service.serve(Endpoint(), "h1.example")
    assert service.client(topic="t.h1.example").call({}, "echo", value=1)["value"] == 1


def test_a_monitored_call_outlives_its_monitor(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server shows life while it runs, and only if it was asked to."""
    endpoint = Endpoint()
    service.serve(endpoint)
    frames: list[Any] = []
    client = service.client(call_monitor_timeout=2)
    transport = client.transport._driver.transport
    route = transport.router.route

    def keep(reply: Any, at: float) -> None:
        frames.append(reply)
        route(reply, at)
        if len(frames) == 2:  # So long that the monitor would have ended it.
            endpoint.go_on.set()

    monkeypatch.setattr(transport.router, "route", keep)
    assert client.call({}, "wait") == "done"
    assert [reply.ending for reply in frames][:3] == [False, False, True]
    frames.clear()
    assert client.prepare(call_monitor_timeout=None).call({}, "wait") == "done"
    assert [reply.ending for reply in frames] == [True]


def test_a_monitored_call_of_no_method_leaves_no_thread_behind(service: Service) -> None:
    """oslo.messaging goes on showing life after that answer, until it is told that it cannot."""
    service.serve(Endpoint())
    before = set(threading.enumerate())
    with pytest.raises(oslo_messaging.RemoteError, match="NoSuchMethod"):
        service.client(call_monitor_timeout=2).call({}, "nothing")
    showing_life = [thread for thread in threading.enumerate() if "_watchdog" in thread.name and thread not in before]
    for thread in showing_life:
        thread.join(EVENT_TIMEOUT)
    assert showing_life
    assert not any(thread.is_alive() for thread in showing_life)


def test_a_silent_server_ends_a_monitored_call(service: Service) -> None:
    """Long before the call's own timeout."""
    transport = service.transport()._driver.transport
    transport.subscribe([Address("topic", "openstack", "t")], lambda _: None, prefetch=1, deadline=now() + 5)
    with pytest.raises(oslo_messaging.MessagingTimeout, match="no sign of life"):
        service.client(call_monitor_timeout=1, timeout=1000).call({}, "echo", value=1)


def test_the_ping_endpoint_answers(service: Service) -> None:
    """If the service has it."""
    from oslo_config import cfg  # oslo.messaging reads that option from the global configuration.

    oslo_messaging.RPCDispatcher([], None)
    cfg.CONF.set_override("rpc_ping_enabled", True)
    try:
        service.serve(Endpoint())
        assert service.client().call({}, "oslo_rpc_server_ping") == "pong"
    finally:
        cfg.CONF.clear_override("rpc_ping_enabled")


def test_what_may_have_been_lost_is_sent_again(service: Service) -> None:
    """Under the same id, so that a server runs it once."""
    endpoint = Endpoint()
    service.serve(endpoint)
    client = service.client()
    bus = get_bus(service.url.removeprefix("msgbus+"))
    assert client.call({}, "echo", value=0)["value"] == 0
    bus.fail_next(TransportUnavailable("cut", maybe_delivered=True))
    client.cast({}, "note", value=1)
    assert endpoint.taken() == 1
    bus.fail_next(TransportUnavailable("cut", maybe_delivered=True))
    assert client.call({}, "echo", value=2)["value"] == 2


def send_raw(service: Service, payload: object, address: Address | None = None) -> None:
    """Send what a peer may send."""
    transport = service.transport()._driver.transport
    message = Message(json.dumps(payload).encode() if not isinstance(payload, bytes) else payload, JSON, "id", 10.0)
    transport.send_and_wait(
        address or Address("topic", "openstack", "t"), message, now() + 5, what="it", mandatory=True, repeat=False
    )


def test_the_same_message_runs_once(service: Service) -> None:
    """As far back as a thousand messages; one without an id is always run."""
    endpoint = Endpoint()
    service.serve(endpoint)
    for value, unique_id in (1, "a"), (2, "a"), (3, None), (4, None), (5, "b"):
        send_raw(service, {"method": "note", "args": {"value": value}, "_unique_id": unique_id})
    assert sorted(endpoint.taken() for _ in range(4)) == [1, 3, 4, 5]


def test_what_was_not_acknowledged_in_time_runs_when_it_comes_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose connection is lost before it began is given out again, and is no duplicate then."""
    endpoint = Endpoint()
    server = service.serve(endpoint)
    bus = get_bus(service.url.removeprefix("msgbus+"))
    process = server._process_incoming
    cut = threading.Event()

    def cut_first(incoming: Any) -> None:
        if not cut.is_set():
            cut.set()
            bus.cut()
        process(incoming)

    monkeypatch.setattr(server, "_process_incoming", cut_first)
    send_raw(service, {"method": "note", "args": {"value": 1}, "_unique_id": "a"})
    assert endpoint.taken() == 1
    assert endpoint.notes.empty()


@pytest.mark.parametrize("verb", ["acknowledge", "requeue"])
def test_what_comes_again_while_its_connection_is_lost_runs(
    service: Service, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A copy that comes before the message system has said that the first one is lost is not taken for settled."""
    endpoint = Endpoint()
    server = service.serve(endpoint)
    bus = get_bus(service.url.removeprefix("msgbus+"))
    process = server._process_incoming
    cut, came_again = threading.Event(), threading.Event()

    class Lost:
        """Its connection is lost when it is settled, and the copy comes before that is known."""

        def __init__(self, incoming: Any) -> None:
            (self._delivery,) = incoming._deliveries
            self._join = incoming.join

        def join(self, delivery: Any) -> bool:
            joined = self._join(delivery)
            came_again.set()
            return bool(joined)

        def accept(self) -> bool:
            bus.cut()
            assert came_again.wait(EVENT_TIMEOUT)
            return bool(self._delivery.accept())

        def reject(self, requeue: bool) -> None:
            self._delivery.reject(requeue)

    def lose_first(batch: list[Any]) -> None:
        if cut.is_set():
            process(batch)
            return
        cut.set()
        (incoming,) = batch
        lost = Lost(incoming)
        incoming._deliveries[:] = [lost]
        monkeypatch.setattr(incoming, "join", lost.join)
        if verb == "requeue":
            give_back = incoming._listener.give_back

            def give_back_late(*arguments: Any) -> None:
                bus.cut()
                assert came_again.wait(EVENT_TIMEOUT)
                give_back(*arguments)

            monkeypatch.setattr(incoming._listener, "give_back", give_back_late)
            incoming.requeue()
        else:
            process(batch)

    monkeypatch.setattr(server, "_process_incoming", lose_first)
    send_raw(service, {"method": "note", "args": {"value": 1}, "_unique_id": "a"})
    assert endpoint.taken() == 1
    send_raw(service, {"method": "note", "args": {"value": 2}, "_unique_id": "b"})
    assert endpoint.taken() == 2


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'"x"', b"{}", b'{"oslo.version": "3.0", "oslo.message": "{}"}'])
def test_what_cannot_be_read_is_dropped_with_a_line_in_the_log(
    service: Service, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """And the server goes on."""
    endpoint = Endpoint()
    service.serve(endpoint)
    send_raw(service, body)
    send_raw(service, {"method": "note", "args": {"value": 1}})
    assert endpoint.taken() == 1
    end = now() + EVENT_TIMEOUT  # Another thread of the server may still be about to write it.
    while not any(record.levelname == "ERROR" for record in caplog.records) and now() < end:
        threading.Event().wait(0.01)
    assert any(record.levelname == "ERROR" for record in caplog.records)


@pytest.mark.parametrize(
    ("body", "kind"),
    [([], "list"), ("x", "str"), (None, "NoneType"), ({"oslo.version": "2.0", "oslo.message": "5"}, "int")],
)
def test_a_message_that_is_no_object_is_called_that(
    service: Service, body: object, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With its envelope or without."""
    endpoint = Endpoint()
    service.serve(endpoint)
    send_raw(service, body)
    send_raw(service, {"method": "note", "args": {"value": 1}})
    assert endpoint.taken() == 1
    assert f"cannot be read, and is dropped: it is no JSON object but {kind}" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("_unique_id", [1]), ("_msg_id", {}), ("_reply_q", 1)])
def test_an_id_that_is_no_string_is_dropped_with_a_line_in_the_log(
    service: Service, name: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    """As many as a queue may have unsettled: it goes on delivering, and the server goes on."""
    endpoint = Endpoint()
    service.serve(endpoint)
    for _ in range(Settings.prefetch):
        send_raw(service, {"method": "note", "args": {"value": "bad"}, name: value})
    send_raw(service, {"method": "note", "args": {"value": 1}})
    assert endpoint.taken() == 1
    assert f"cannot be read, and is dropped: {name} is not a string" in caplog.text


@pytest.mark.parametrize("name", ["_unique_id", "_msg_id", "_reply_q"])
def test_an_id_that_is_too_long_is_dropped_with_a_line_in_the_log(
    service: Service, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be remembered, or logged, whatever its size."""
    endpoint = Endpoint()
    service.serve(endpoint)
    send_raw(service, {"method": "note", "args": {"value": "too long"}, name: "x" * 256})
    send_raw(service, {"method": "note", "args": {"value": 1}, name: "x" * 255})
    assert endpoint.taken() == 1
    assert f"cannot be read, and is dropped: {name} has 256 characters, and may have 255" in caplog.text


def test_what_no_thread_can_be_had_for_is_given_back(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To this server or another one. It is not kept, and no duplicate of what never ran."""
    endpoint = Endpoint()
    server = service.serve(endpoint)
    submit, failures = server._work_executor.submit, 3

    def fail_first(*arguments: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise RuntimeError("can't start new thread")
        return submit(*arguments)

    monkeypatch.setattr(server._work_executor, "submit", fail_first)
    send_raw(service, {"method": "note", "args": {"value": 1}, "_unique_id": "a"})
    assert endpoint.taken() == 1
    assert caplog.text.count("messages could not be passed on, and are given back (1): can't start new thread") == 3


def test_a_stopped_server_runs_what_it_has_taken(service: Service) -> None:
    """Stopping waits for the calls that run, which are answered."""
    begun = threading.Event()

    class Slow(Endpoint):
        def wait(self, ctxt: dict[str, Any]) -> str:
            begun.set()
            return super().wait(ctxt)

    endpoint = Slow()
    server = service.serve(endpoint)
    answers: list[Any] = []
    calling = threading.Thread(target=lambda: answers.append(service.client().call({}, "wait")))
    calling.start()
    assert begun.wait(EVENT_TIMEOUT)
    server.stop()
    endpoint.go_on.set()
    server.wait()
    calling.join(EVENT_TIMEOUT)
    assert answers == ["done"]


def test_a_server_ends_when_its_replies_are_sent(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the message system is away for a moment: its process may end at once after that."""
    bus = get_bus(service.url.removeprefix("msgbus+"))

    class Last(Endpoint):
        def last(self, _ctxt: dict[str, Any]) -> str:
            bus.stop()
            self.notes.put("runs")
            return "answered"

    endpoint = Last()
    server = service.serve(endpoint)
    answers: list[Any] = []
    calling = threading.Thread(target=lambda: answers.append(service.client().call({}, "last")))
    calling.start()
    assert endpoint.taken() == "runs"
    coming_back = threading.Timer(0.5, bus.start)
    cleanup = server.listener.cleanup

    def begin_to_clean_up() -> None:  # All methods have ended.
        coming_back.start()
        cleanup()

    monkeypatch.setattr(server.listener, "cleanup", begin_to_clean_up)
    server.stop()
    server.wait()
    server.transport.cleanup()
    calling.join(EVENT_TIMEOUT)
    coming_back.join(EVENT_TIMEOUT)
    assert answers == ["answered"]


def test_many_callers_share_a_transport(service: Service) -> None:
    """Each gets its own answer."""
    service.serve(Endpoint())
    client = service.client()
    answers: dict[int, Any] = {}

    def call(number: int) -> None:
        answers[number] = client.call({}, "echo", value=number)["value"]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(EVENT_TIMEOUT)
    assert answers == {number: number for number in range(40)}


def test_after_cleanup_every_verb_raises(service: Service) -> None:
    """With errors of oslo.messaging."""
    client = service.client()
    client.transport.cleanup()
    with pytest.raises(oslo_messaging.MessagingException, match="closed"):
        client.call({}, "echo", value=1)
    with pytest.raises(oslo_messaging.MessagingException, match="closed"):
        client.cast({}, "note", value=1)
