"""What stock peers write with Python's own JSON is read, and what cannot be read ends the call that it belongs to."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from msgbus import RPCClient, SerializationError, Target, Transport, get_rpc_client, get_rpc_server, rpc
from msgbus.drivers.base import Address, Delivery, Message
from msgbus.encoding import decode_inbox_frame, decode_request, encode_request, with_attempts
from msgbus.failures import rebuild_failure
from msgbus.message import JSON, MSGPACK, Request
from tests.support import EVENT_TIMEOUT, new_conf, new_transport, new_url

TOPIC = Address("topic", "msgbus", "foo")

# What is written, and what it is read as.
PYTHONS = [
    ("NaN", math.nan),
    ("Infinity", math.inf),
    ("[-Infinity]", [-math.inf]),
    ("1e999", math.inf),
    (r'"\ud800"', "\ud800"),
    (r'{"\udcff": "x\ud800y"}', {"\udcff": "x\ud800y"}),
    ('{"a": 1, "a": 2}', {"a": 2}),
    ("9" * 400, int("9" * 400)),
    ("-0.0", -0.0),
]
written = pytest.mark.parametrize(("text", "value"), PYTHONS, ids=[text[:20] for text, _ in PYTHONS])


def envelope(payload: str) -> bytes:
    """A stock peer's envelope."""
    return json.dumps({"oslo.version": "2.0", "oslo.message": payload}).encode()


def bare(payload: str) -> bytes:
    """A payload without an envelope, which stock peers read and write too."""
    return payload.encode()


wrapped = pytest.mark.parametrize("wrap", [envelope, bare])


@wrapped
@written
def test_a_stock_clients_request(text: str, value: Any, wrap: Callable[[str], bytes]) -> None:
    """A method gets what a stock client wrote into its arguments and its context."""
    transport = new_transport()
    got: list[Any] = []
    came = threading.Event()

    class Endpoint:
        def take(self, ctxt: Any, value: Any) -> None:
            got.append((ctxt["c"], value))
            came.set()

    server = get_rpc_server(transport, Target(topic="foo", server="s"), [Endpoint()])
    server.start()
    body = wrap(f'{{"method": "take", "args": {{"value": {text}}}, "_context_c": {text}, "_unique_id": "u"}}')
    transport.send(TOPIC, Message(body, JSON, "u"), mandatory=True).result(EVENT_TIMEOUT)
    assert came.wait(EVENT_TIMEOUT)
    assert repr(got) == repr([(value, value)])
    server.stop()
    server.wait(EVENT_TIMEOUT)
    transport.cleanup()


Answer = Callable[[str], bytes]


@pytest.fixture
def stock() -> Iterator[tuple[RPCClient, list[Answer]]]:
    """A client of a server that answers each call with what the functions in the list make of its id."""
    transport = new_transport()
    answers: list[Answer] = []

    def on_delivery(delivery: Delivery) -> None:
        request = decode_request(delivery.message.body, delivery.message.content_type)
        delivery.accept()
        if request.call_id is not None and request.reply_to is not None:
            for answer in answers:
                message = Message(answer(request.call_id), delivery.message.content_type, "id")
                transport.send(Address("inbox", name=request.reply_to), message, mandatory=True)

    transport.driver.subscribe([TOPIC], on_delivery, prefetch=10).ready.result(EVENT_TIMEOUT)
    yield get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT), answers
    transport.cleanup()


Stock = tuple[RPCClient, list[Answer]]


@wrapped
@written
def test_a_stock_servers_reply(stock: Stock, text: str, value: Any, wrap: Callable[[str], bytes]) -> None:
    """A caller gets what a stock server wrote as its result."""
    client, answers = stock
    answers.append(lambda call: wrap(f'{{"result": {text}, "failure": null, "ending": true, "_msg_id": "{call}"}}'))
    assert repr(client.call({}, "m")) == repr(value)
    with client.multicall({}, "m") as items:
        assert repr(list(items)) == repr([value])


def test_a_stock_servers_failure(stock: Stock) -> None:
    """A caller gets the exception of a stock server whose arguments only Python's own JSON can hold."""
    client, answers = stock
    failure = json.dumps(
        {"class": "ValueError", "module": "builtins", "message": "('x', nan)", "args": ["x", math.nan], "tb": ["t"]}
    )
    answers.append(
        lambda call: envelope(json.dumps({"result": None, "failure": failure, "ending": True, "_msg_id": call}))
    )
    with pytest.raises(ValueError, match=r"\('x', nan\)"):
        client.call({}, "m")


@written
def test_a_notification_for_a_pool(text: str, value: Any) -> None:
    """A pool's callback gets what a stock peer wrote."""
    conf = new_conf(transport_url=new_url(), rpc_response_timeout=EVENT_TIMEOUT)
    rpc.init(conf)
    connection = rpc.create_connection()
    got: list[Any] = []
    came = threading.Event()

    def callback(message: dict[str, Any]) -> None:
        got.append(message["value"])
        came.set()

    try:
        connection.join_consumer_pool(callback, "pool", "foo")
        connection.consume_in_thread()
        transport = new_transport(str(conf.transport_url))
        pool = Address("pool", "msgbus", "foo", name="pool")
        body = envelope(f'{{"value": {text}}}')
        transport.send(pool, Message(body, JSON, "u"), mandatory=False).result(EVENT_TIMEOUT)
        assert came.wait(EVENT_TIMEOUT)
        assert repr(got) == repr([value])
        transport.cleanup()
    finally:
        connection.close()
        rpc.cleanup()


UNREADABLE: dict[str, Answer] = {
    "broken": lambda call: envelope(f'{{"_msg_id": "{call}", "result": {{'),
    "broken without an envelope": lambda call: f'{{"_msg_id":"{call}","result":'.encode(),
    "another envelope": lambda call: json.dumps(
        {"oslo.version": "3.0", "oslo.message": json.dumps({"_msg_id": call, "result": 1})}
    ).encode(),
    "a wrong type": lambda call: envelope(json.dumps({"_msg_id": call, "result": 1, "ending": "yes"})),
    "an unknown kind": lambda call: envelope(json.dumps({"_msg_id": call, "result": 1, "_msgbus": {"kind": "x"}})),
    "a name that is no text": lambda call: envelope(
        json.dumps({"_msg_id": call, "result": 1, "_msgbus": {"kind": "started", "inbox": "\ud800"}})
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_answer_that_cannot_be_read_ends_its_call(stock: Stock, kind: str) -> None:
    """A call whose answer cannot be read fails at once, and does not wait for its deadline."""
    client, answers = stock
    answers.append(UNREADABLE[kind])
    with pytest.raises(SerializationError, match=r"'m' on topic .* its reply"):
        client.call({}, "m")
    with client.multicall({}, "m") as items, pytest.raises(SerializationError, match="its reply"):
        next(items)
    assert len(client.transport.router) == 0


def test_an_answer_in_msgpack_that_cannot_be_read_ends_its_call() -> None:
    """Likewise where the codec is msgpack."""
    transport = new_transport(rpc_codec="msgpack")

    def on_delivery(delivery: Delivery) -> None:
        request = decode_request(delivery.message.body, MSGPACK)
        assert request.reply_to is not None
        body = msgspec.msgpack.encode({"_msg_id": request.call_id, "result": msgspec.msgpack.Ext(99, b"x")})
        transport.send(Address("inbox", name=request.reply_to), Message(body, MSGPACK, "id"), mandatory=True)

    transport.driver.subscribe([TOPIC], on_delivery, prefetch=10).ready.result(EVENT_TIMEOUT)
    with pytest.raises(SerializationError, match="unknown extension type 99"):
        get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT).call({}, "m")
    transport.cleanup()


def test_an_unreadable_item_comes_after_those_before_it(stock: Stock) -> None:
    """A stream with a frame that cannot be read yields the items before it, and then raises; its generator is ended."""
    client, answers = stock
    cancelled = threading.Event()

    def on_control(delivery: Delivery) -> None:
        frame = decode_inbox_frame(delivery.message.body, JSON)
        if getattr(frame, "kind", "") == "cancel":
            cancelled.set()

    server = client.transport.driver.open_inbox(on_control)
    server.ready.result(EVENT_TIMEOUT)
    name = server.address.name
    answers += [
        lambda call: envelope(
            json.dumps({"_msg_id": call, "result": None, "_msgbus": {"kind": "started", "inbox": name, "server": "s"}})
        ),
        lambda call: envelope(
            json.dumps({"_msg_id": call, "result": None, "_msgbus": {"kind": "items", "items": [1, 2]}})
        ),
        lambda call: envelope(f'{{"_msg_id": "{call}", "result": null, "_msgbus": {{"kind": "items", "items": ['),
    ]
    with client.multicall({}, "m") as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(SerializationError):
            next(items)
    assert cancelled.wait(EVENT_TIMEOUT)


def test_what_waits_for_another_call_goes_on(stock: Stock, caplog: pytest.LogCaptureFixture) -> None:
    """A frame that cannot be read and is of no call that waits ends none."""
    client, answers = stock
    answers += [lambda _call: envelope(f'{{"_msg_id": "{"0" * 32}", "result": '), lambda _call: b"garbage"]
    answers.append(lambda call: envelope(json.dumps({"_msg_id": call, "result": 5, "ending": True})))
    assert client.call({}, "m") == 5
    assert len([record for record in caplog.records if "was dropped" in record.message]) == 2


@pytest.mark.parametrize("name", ["_msg_id", "_reply_q", "method", "_unique_id", "namespace", "version"])
def test_names_that_are_no_text_are_refused(name: str) -> None:
    """Half a character in a name or an id is refused when it is read: no message system could carry it on."""
    payload = {"method": "m", "args": {}, "_msg_id": "c", "_reply_q": "q", name: "\ud800"}
    with pytest.raises(SerializationError):
        decode_request(json.dumps(payload).encode(), JSON)


def test_an_extension_of_msgpack_that_is_not_ours_is_refused() -> None:
    """A msgpack extension type that nobody here writes is refused, and not given to a method."""
    for extension in (msgspec.msgpack.Ext(99, b"x"), msgspec.msgpack.Ext(1, b"x")):
        body = msgspec.msgpack.encode({"method": "m", "args": {"a": extension}})
        with pytest.raises(SerializationError):
            decode_request(body, MSGPACK)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("verb", ["call", "cast", "fanout_cast", "multicall"])
def test_what_cannot_travel_is_not_sent(codec: str, verb: str) -> None:
    """The error names the argument and the place in it, and nothing has left this process."""
    transport = new_transport(rpc_codec=codec)
    came: list[Delivery] = []
    transport.driver.subscribe([TOPIC, Address("fanout", "msgbus", "foo", "s")], came.append, prefetch=9)
    client = get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
    with pytest.raises(SerializationError, match=r"argument 'bad' .* at \['a'\]\[1\]: complex is not plain data"):
        getattr(client, verb)({}, "m", good=1, bad={"a": [0, 1j]})
    with pytest.raises(SerializationError, match=r"context key 'bad' .* the keys of a dict are strings, and 5"):
        getattr(client, verb)({"bad": {5: 1}}, "m", good=1)
    with pytest.raises(SerializationError, match="context key 7"):
        getattr(client, verb)({7: 1}, "m")
    assert not came
    assert transport.window.acquire(0.0)  # It keeps no place in the send window either.
    transport.cleanup()


def test_the_error_names_the_result() -> None:
    """A result that cannot travel is the caller's error, which names the method and the place."""
    transport: Transport = new_transport()

    class Endpoint:
        def give(self, ctxt: Any) -> Any:
            return {"values": [1.0, math.nan]}

    server = get_rpc_server(transport, Target(topic="foo", server="s"), [Endpoint()])
    server.start()
    client = get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
    with pytest.raises(SerializationError, match=r"result of 'give' .* at \['values'\]\[1\]: JSON has no number nan"):
        client.call({}, "give")
    server.stop()
    server.wait(EVENT_TIMEOUT)
    transport.cleanup()


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
@pytest.mark.parametrize("change", [{"args": [1]}, {"version": 1.0}, {"method": None}, {"_msgbus": {"ttl": "soon"}}])
def test_an_unreadable_request_is_answered_with_an_error(codec: str, change: dict[str, Any]) -> None:
    """A request that is not one and says who waits for an answer is answered with a SerializationError."""
    transport = new_transport()
    server = get_rpc_server(transport, Target(topic="foo", server="s"), [object()])
    server.start()
    answers: list[Any] = []
    came = threading.Event()

    def on_delivery(delivery: Delivery) -> None:
        answers.append(decode_inbox_frame(delivery.message.body, delivery.message.content_type))
        came.set()

    inbox = transport.driver.open_inbox(on_delivery)
    inbox.ready.result(EVENT_TIMEOUT)
    payload = {"method": "m", "args": {}, "_msg_id": "c", "_reply_q": inbox.address.name, **change}
    body = envelope(json.dumps(payload)) if codec == JSON else msgspec.msgpack.encode(payload)
    transport.send(TOPIC, Message(body, codec, "u"), mandatory=True).result(EVENT_TIMEOUT)
    assert came.wait(EVENT_TIMEOUT)
    assert (answers[0].call_id, answers[0].ending) == ("c", True)
    error = rebuild_failure(answers[0].failure, ())
    assert type(error) is SerializationError
    assert "the request cannot be read as" in str(error)
    server.stop()
    server.wait(EVENT_TIMEOUT)
    transport.cleanup()


@written
def test_a_cast_that_is_passed_on_keeps_what_it_holds(text: str, value: Any) -> None:
    """A request that a server sends to others with a count of its tries still has what its sender wrote."""
    body = envelope(f'{{"method": "m", "args": {{"value": {text}}}}}')
    assert repr(decode_request(with_attempts(body, JSON, 2), JSON).args["value"]) == repr(value)
    packed = encode_request(Request("m", {"value": [10**30, b"x"]}), MSGPACK)
    assert decode_request(with_attempts(packed, MSGPACK, 2), MSGPACK).args["value"] == [10**30, b"x"]


def test_plain_values_are_written_without_being_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is plain data already takes the quick way."""
    monkeypatch.setattr("msgbus.payload.simplified", None)
    for content_type in (JSON, MSGPACK):
        args = {"a": [1, 2.5, None, {"b": (True, "x")}]}
        assert decode_request(encode_request(Request("m", args), content_type), content_type).method == "m"
