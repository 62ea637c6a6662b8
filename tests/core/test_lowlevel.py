"""`msgbus.lowlevel`, on the message system in memory: bytes in and out, in the way of another RPC."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from oslo_config import cfg

import msgbus
from msgbus import lowlevel
from msgbus.drivers.fake import get_bus
from msgbus.drivers.toolkit.loop import Loop
from msgbus.lowlevel import JSON, Address, Delivery, Message, MessageTransport, new_id, now, open_transport
from tests.support import EVENT_TIMEOUT, new_url

TOPIC = Address("topic", "x", "foo")


@pytest.fixture
def url() -> str:
    """Of a bus that no other test uses."""
    return new_url()


@pytest.fixture
def transport(url: str) -> Iterator[MessageTransport]:
    """Open, for the time of a test."""
    opened = open_transport(url)
    yield opened
    opened.cleanup()


def request(transport: MessageTransport, call_id: str, value: object = None) -> Message:
    """A request in JSON, without anything of msgbus's in it."""
    inbox = transport.inbox(now() + EVENT_TIMEOUT)
    body = json.dumps({"_msg_id": call_id, "_reply_q": inbox, "value": value}).encode()
    return Message(body, JSON, call_id, EVENT_TIMEOUT)


def call(transport: MessageTransport, value: object = None, **options: Any) -> lowlevel.Reply:
    """Call the topic with a value."""
    call_id = new_id()
    options.setdefault("deadline", now() + EVENT_TIMEOUT)
    return transport.call(TOPIC, request(transport, call_id, value), call_id=call_id, **options)


class Server:
    """Answers with what it was sent, and keeps the ids of what it got."""

    def __init__(self, transport: MessageTransport, frames: tuple[dict[str, Any], ...] = ({"ending": True},)) -> None:
        self.ids: list[str] = []
        self._transport = transport
        self._frames = frames
        self.subscription = transport.subscribe([TOPIC], self.on_delivery, prefetch=1, deadline=now() + EVENT_TIMEOUT)

    def on_delivery(self, delivery: Delivery) -> None:
        self.ids.append(delivery.message.id)
        delivery.accept()
        payload = json.loads(delivery.message.body)
        for frame in self._frames:
            reply = {"_msg_id": payload["_msg_id"], "result": payload["value"], "failure": None, **frame}
            message = Message(json.dumps(reply).encode(), JSON, new_id(), EVENT_TIMEOUT)
            self._transport.send(Address("inbox", name=payload["_reply_q"]), message, mandatory=True)


def test_a_call_of_given_bytes_returns_the_reply(transport: MessageTransport) -> None:
    """The body arrives as it is, and the frame that ends the call is returned."""
    server = Server(transport, ({"ending": False, "result": None}, {"ending": True}))
    reply = call(transport, {"a": [1, "ü", None]})
    assert (reply.result, reply.failure, reply.ending) == ({"a": [1, "ü", None]}, None, True)
    assert len(server.ids) == 1


def test_a_failure_is_handed_over_as_it_came(transport: MessageTransport) -> None:
    """No exception is rebuilt: that is the caller's business."""
    Server(transport, ({"ending": True, "result": None, "failure": '{"class": "X"}'},))
    assert call(transport).failure == '{"class": "X"}'


def test_nobody_there_is_an_error_at_once_or_a_wait_until_the_deadline(transport: MessageTransport) -> None:
    """`wait_for_server` says which of the two."""
    with pytest.raises(msgbus.MessageUndeliverable):
        call(transport)
    with pytest.raises(msgbus.MessageUndeliverable, match="foo"):
        call(transport, deadline=now() + 1.0, wait_for_server=True)


def test_a_call_waits_for_a_server_that_comes_later(transport: MessageTransport) -> None:
    """A request that is undeliverable now reaches a server that subscribes before the deadline."""
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(call(transport, 5, wait_for_server=True).result))
    waiting.start()
    Server(transport)
    waiting.join(EVENT_TIMEOUT)
    assert found == [5]


def test_a_call_without_an_answer_times_out_and_says_what_is_known(transport: MessageTransport) -> None:
    """The text names the method, the target and whether the message system took the request."""
    Server(transport, ())
    with pytest.raises(msgbus.MessagingTimeout, match=r"'resize' on topic 'foo'.*has taken the request"):
        call(transport, deadline=now() + 0.5, method="resize")


def test_a_call_whose_time_is_over_when_it_is_sent_says_so(transport: MessageTransport) -> None:
    """And not that it had a negative time."""
    Server(transport, ())
    with pytest.raises(msgbus.MessagingTimeout, match="no answer within 0 s"):
        call(transport, deadline=now() - 0.001)


def test_silence_ends_a_monitored_call(transport: MessageTransport) -> None:
    """So it does not wait until its deadline for a server that is dead."""
    Server(transport, ({"ending": False},))
    with pytest.raises(msgbus.MessagingTimeout, match="no sign of life"):
        call(transport, monitor=0.2)


def test_what_may_have_been_lost_is_sent_again_as_the_same_message(transport: MessageTransport, url: str) -> None:
    """After an unknown outcome, of calls and of casts, with the id that it had."""
    server = Server(transport)
    bus = get_bus(url)
    bus.fail_next(msgbus.TransportUnavailable("cut", maybe_delivered=True))
    call_id = new_id()
    message = request(transport, call_id, 1)
    bus.fail_next(msgbus.TransportUnavailable("cut", maybe_delivered=True))
    reply = transport.call(TOPIC, message, call_id=call_id, deadline=now() + EVENT_TIMEOUT)
    assert reply.result == 1
    assert set(server.ids) == {call_id}


def cast(transport: MessageTransport, lost: list[BaseException], keep_trying: float) -> None:
    """Cast to the topic."""
    message = request(transport, new_id())
    transport.cast(TOPIC, message, now() + EVENT_TIMEOUT, keep_trying=keep_trying, on_lost=lost.append)


def test_a_cast_for_which_nobody_listens_is_tried_on(transport: MessageTransport) -> None:
    """The caller goes on at once, and a server that comes a moment later gets the message."""
    lost: list[BaseException] = []
    cast(transport, lost, EVENT_TIMEOUT)
    came = threading.Event()
    transport.subscribe([TOPIC], lambda _delivery: came.set(), prefetch=1, deadline=now() + EVENT_TIMEOUT)
    assert came.wait(EVENT_TIMEOUT)
    assert lost == []


def test_a_cast_that_stays_undeliverable_is_reported(transport: MessageTransport) -> None:
    """Whoever sent it learns that it was lost."""
    reported = threading.Event()
    lost: list[BaseException] = []

    def on_lost(error: BaseException) -> None:
        lost.append(error)
        reported.set()

    transport.cast(TOPIC, request(transport, new_id()), now() + EVENT_TIMEOUT, keep_trying=0.2, on_lost=on_lost)
    assert reported.wait(EVENT_TIMEOUT)
    assert isinstance(lost[0], msgbus.MessageUndeliverable)


def test_a_deadline_that_never_comes(transport: MessageTransport, url: str) -> None:
    """FOREVER is a deadline like any other, also for what is sent again."""
    server = Server(transport)
    inbox = transport.inbox(lowlevel.FOREVER)
    call_id = new_id()
    body = json.dumps({"_msg_id": call_id, "_reply_q": inbox, "value": 3}).encode()
    get_bus(url).fail_next(msgbus.TransportUnavailable("cut", maybe_delivered=True))
    reply = transport.call(TOPIC, Message(body, JSON, call_id), call_id=call_id, deadline=lowlevel.FOREVER)
    assert reply.result == 3
    assert set(server.ids) == {call_id}


class EventWaiter(lowlevel.Waiter):
    """Waits by an Event, and counts."""

    waits = 0

    def __init__(self, _loop: Loop) -> None:
        self._event = threading.Event()

    def wait(self, until: float) -> None:
        EventWaiter.waits += 1
        self._event.wait(min(until - now(), EVENT_TIMEOUT))
        self._event.clear()

    def wake(self) -> None:
        self._event.set()


def test_a_waiter_of_ones_own_does_all_the_waiting(url: str) -> None:
    """Then the loop has a thread of its own: the caller's thread never does its work."""
    transport = open_transport(url, make_waiter=EventWaiter)
    try:
        EventWaiter.waits = 0
        server = Server(transport, ())
        with pytest.raises(msgbus.MessagingTimeout):
            call(transport, deadline=now() + 0.5)
        assert EventWaiter.waits > 0
        assert not transport.loop.take_turn()
        assert transport.wait_for(server.subscription.close(), now() + EVENT_TIMEOUT)
    finally:
        transport.cleanup()


def test_a_closed_transport_refuses(transport: MessageTransport) -> None:
    """Every verb says that it was closed."""
    message = request(transport, new_id())
    transport.cleanup()
    with pytest.raises(msgbus.CallCancelled, match="closed"):
        transport.call(TOPIC, message, call_id=new_id(), deadline=now() + 1)
    with pytest.raises(msgbus.CallCancelled, match="closed"):
        transport.cast(TOPIC, message, now() + 1, keep_trying=1, on_lost=lambda _error: None)
    with pytest.raises(msgbus.CallCancelled, match="closed"):
        transport.subscribe([TOPIC], lambda _delivery: None, prefetch=1, deadline=now() + 1)


def test_a_subscription_needs_an_address_and_room(transport: MessageTransport) -> None:
    """A prefetch of 0 does not mean that there is no limit: message systems took each delivery for accepted."""
    for prefetch in (0, -1):
        with pytest.raises(ValueError, match=f"prefetch is 1 or more, not {prefetch}"):
            transport.subscribe([TOPIC], lambda _delivery: None, prefetch=prefetch, deadline=now() + 1)
    with pytest.raises(ValueError, match="no address"):
        transport.subscribe([], lambda _delivery: None, prefetch=1, deadline=now() + 1)


def test_settings_are_plain_values(url: str) -> None:
    """A wrong name or value is an error, which says what was meant."""
    transport = open_transport(url, {"rpc_reply_grace": 3})
    assert transport.option("rpc_reply_grace") == 3
    transport.cleanup()
    with pytest.raises(msgbus.ConfigurationError, match="did you mean rpc_reply_grace"):
        open_transport(url, {"rpc_reply_grase": 3})
    with pytest.raises(msgbus.ConfigurationError, match=r"unknown setting 'zzz'; there are .*, rpc_reply_grace, "):
        open_transport(url, {"zzz": 3})
    with pytest.raises(msgbus.ConfigurationError, match="setting rpc_reply_grace"):
        open_transport(url, {"rpc_reply_grace": "x"})
    with pytest.raises(msgbus.ConfigurationError, match="setting rpc_reply_grace: it has no value"):
        open_transport(url, {"rpc_reply_grace": None})


def test_a_services_configuration_gets_only_the_drivers_group(url: str) -> None:
    """Other code may register options of the same names as the core's there, in definitions of its own."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    open_transport(url, driver_conf=conf).cleanup()
    conf.register_opt(cfg.StrOpt("transport_url", default="rabbit://", help="another one"))
    conf.register_opt(cfg.StrOpt("control_exchange", default="openstack"))
    assert "rpc_response_timeout" not in conf
    assert "msgbus_fake" in conf


@pytest.mark.parametrize("name", lowlevel.__all__)
def test_every_name_is_there(name: str) -> None:
    """What the module lists as public."""
    assert hasattr(lowlevel, name)
