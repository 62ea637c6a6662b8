from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from msgbus import DeadLetter, SerializationError
from msgbus.encoding import (
    decode_dead_letter,
    decode_inbox_frame,
    decode_request,
    encode_again,
    encode_control,
    encode_dead_letter,
    encode_repeat,
    encode_reply,
    encode_request,
    item_encoder,
)
from msgbus.message import CONTENT_TYPES, JSON, MSGPACK, Control, Hints, Reply, Request, new_id
from msgbus.payload import decode, encode

HEX = "0123456789abcdef0123456789abcdef"

READERS: tuple[Callable[[bytes, str], object], ...] = (decode_request, decode_inbox_frame)

codecs = pytest.mark.parametrize("content_type", [JSON, MSGPACK])


def oslo(payload: dict[str, Any], version: str = "2.0") -> bytes:
    """A body as a stock oslo.messaging writes it: JSON text within JSON."""
    return json.dumps({"oslo.version": version, "oslo.message": json.dumps(payload)}).encode()


FULL = Request(
    method="echo",
    args={"value": 42, "text": "ä\u2028\0"},
    context={"user": "u", "nested": {"a": [1, None]}},
    unique_id=HEX,
    namespace="n",
    version="1.2",
    call_id="c" * 32,
    reply_to="reply_x",
    monitor=5,
    hints=Hints(ttl=1.5, at=1000.25, policy="at_least_once", window=7, window_bytes=9),
)
BARE = Request("m", {}, "u", hints=Hints())


@codecs
@pytest.mark.parametrize("request_", [FULL, BARE], ids=["full", "bare"])
def test_request_arrives_as_it_was_sent(request_: Request, content_type: str) -> None:
    """Everything in a request survives either codec."""
    assert decode_request(encode_request(request_, content_type), content_type) == request_


@codecs
@pytest.mark.parametrize(
    "reply",
    [
        Reply("c", result={"a": [1, 2.5, None, True, "ü"]}, ending=True, extended=True, server="h1"),
        Reply("c", failure="{}", ending=True),
        Reply("c"),
        Reply("c", "started", extended=True, server="h1", inbox="reply_y"),
        Reply("c", "items", extended=True, server="h1", items=[1, "b"], seq=3),
        Reply("c", "keepalive", extended=True, server="h1"),
        Reply("c", "declined", extended=True, server="h1"),
        Reply("c", "reply", extended=True, server="h1", items=[], seq=9, ending=True),
    ],
    ids=lambda reply: reply.kind,
)
def test_reply_arrives_as_it_was_sent(reply: Reply, content_type: str) -> None:
    """Every kind of frame for a client survives either codec."""
    body = encode_reply(reply, content_type)
    size = len(body) if reply.extended else 0
    assert decode_inbox_frame(body, content_type) == msgspec.structs.replace(reply, size=size)


@codecs
@pytest.mark.parametrize("control", [Control("c", "credit", 5), Control("c", "cancel"), Control("c", "keepalive", 7)])
def test_control_frame_arrives_as_it_was_sent(control: Control, content_type: str) -> None:
    """Every kind of frame for a server survives either codec."""
    assert decode_inbox_frame(encode_control(control, content_type), content_type) == control


def test_msgpack_carries_bytes() -> None:
    """Binary data goes through msgpack as it is."""
    request = Request("m", {"data": b"\0\xff"})
    assert decode_request(encode_request(request, MSGPACK), MSGPACK).args == {"data": b"\0\xff"}


def test_envelope_is_oslo_messagings() -> None:
    """A JSON body is the envelope 2.0 with JSON text in it, and has oslo.messaging's keys besides one of our own."""
    body = json.loads(encode_request(FULL, JSON))
    assert set(body) == {"oslo.version", "oslo.message"}
    assert body["oslo.version"] == "2.0"
    payload = json.loads(body["oslo.message"])
    assert payload.pop("_msgbus") == {
        "ttl": 1.5,
        "at": 1000.25,
        "policy": "at_least_once",
        "window": 7,
        "window_bytes": 9,
    }
    assert payload == {
        "method": "echo",
        "args": {"value": 42, "text": "ä\u2028\0"},
        "namespace": "n",
        "version": "1.2",
        "_msg_id": "c" * 32,
        "_reply_q": "reply_x",
        "_timeout": 5,
        "_unique_id": HEX,
        "_context_user": "u",
        "_context_nested": {"a": [1, None]},
    }


def test_keys_of_a_cast_are_oslo_messagings() -> None:
    """What is not given does not travel; a call has a null _timeout where no monitoring is asked for, a cast none."""
    cast = json.loads(json.loads(encode_request(BARE, JSON))["oslo.message"])
    assert set(cast) == {"method", "args", "_unique_id", "_msgbus"}
    BARE_CALL = Request("m", {}, "u", call_id="c", reply_to="r", hints=Hints())
    call = json.loads(json.loads(encode_request(BARE_CALL, JSON))["oslo.message"])
    assert set(call) == {"method", "args", "_unique_id", "_msgbus", "_msg_id", "_reply_q", "_timeout"}
    assert call["_timeout"] is None


def test_reply_for_a_stock_client_has_its_keys_and_no_others() -> None:
    """A reply to a peer that is not msgbus has all five of oslo.messaging's keys, and no extension."""
    payload = json.loads(json.loads(encode_reply(Reply("c", result=1, ending=True), JSON))["oslo.message"])
    assert len(payload.pop("_unique_id")) == 32
    assert payload == {"result": 1, "failure": None, "ending": True, "_msg_id": "c"}


@pytest.mark.parametrize(
    ("payload", "request_"),
    [
        (
            {
                "method": "echo",
                "args": {"value": 42},
                "version": "1.0",
                "_msg_id": HEX,
                "_reply_q": f"reply_{HEX}",
                "_timeout": None,
                "_unique_id": HEX,
                "_context_user": "u",
            },
            Request(
                "echo",
                {"value": 42},
                HEX,
                version="1.0",
                call_id=HEX,
                reply_to=f"reply_{HEX}",
                context={"user": "u"},
            ),
        ),
        (
            {"method": "echo", "args": {"value": 42}, "version": "1.0", "_unique_id": HEX, "_context_user": "u"},
            Request("echo", {"value": 42}, HEX, version="1.0", context={"user": "u"}),
        ),
        ({"method": "m", "args": {}}, Request("m")),
        ({"method": "m"}, Request("m")),
        ({"method": "m", "_timeout": 30, "_context_": 1}, Request("m", context={"": 1}, monitor=30)),
        ({"method": "m", "_timeout": "30"}, Request("m")),
        ({"method": "m", "unknown": 1}, Request("m")),
    ],
)
@pytest.mark.parametrize("enveloped", [True, False])
def test_requests_of_stock_clients(payload: dict[str, Any], request_: Request, enveloped: bool) -> None:
    """A request of oslo.messaging is read, in its envelope or without one."""
    body = oslo(payload) if enveloped else json.dumps(payload).encode()
    assert decode_request(body, JSON) == request_


@pytest.mark.parametrize(
    ("payload", "reply"),
    [
        (
            {"result": 42, "failure": None, "ending": True, "_msg_id": HEX, "_unique_id": HEX},
            Reply(HEX, result=42, ending=True),
        ),
        (
            {"result": None, "failure": '{"class":"ValueError"}', "ending": True, "_msg_id": HEX},
            Reply(HEX, failure='{"class":"ValueError"}', ending=True),
        ),
        ({"result": None, "failure": None, "ending": False, "_msg_id": HEX}, Reply(HEX)),
        ({"result": 1, "_msg_id": HEX}, Reply(HEX, result=1)),
        ({"result": 1, "ending": True, "_msg_id": HEX, "unknown": 5}, Reply(HEX, result=1, ending=True)),
    ],
)
@pytest.mark.parametrize("enveloped", [True, False])
def test_replies_of_stock_servers(payload: dict[str, Any], reply: Reply, enveloped: bool) -> None:
    """A reply, failure or heartbeat of oslo.messaging is read, in its envelope or without one."""
    body = oslo(payload) if enveloped else json.dumps(payload).encode()
    assert decode_inbox_frame(body, JSON) == reply


@pytest.mark.parametrize("version", ["1.0", "1.9", "2.1", "2.10", "3.0", "10.0", "20.0", "0.0", "", "x", "2"])
def test_refuses_other_versions_of_the_envelope(version: str) -> None:
    """An envelope of another version than 2.0, older or newer, is refused by naming both."""
    for reader in READERS:
        with pytest.raises(SerializationError, match=r"this side reads 2\.0"):
            reader(oslo({"method": "m", "result": 1, "_msg_id": "c"}, version), JSON)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"1",
        b"[]",
        b'"text"',
        b"{",
        b"\xff",
        b'{"a":\xff}',
        b'{"oslo.version":"2.0","oslo.message":{"method":"m"}}',
        b'{"oslo.version":2.0,"oslo.message":"{}"}',
        b'{"oslo.version":"2.0","oslo.message":"[]"}',
        b'{"oslo.version":"2.0","oslo.message":"{"}',
        b'{"oslo.version":"2.0","oslo.message":"\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(body[:40]),
)
@codecs
def test_refuses_malformed_bodies(body: bytes, content_type: str) -> None:
    """A body that is no mapping, or not what its content type says, is a SerializationError and nothing else."""
    for reader in READERS:
        with pytest.raises(SerializationError):
            reader(body, content_type)


@pytest.mark.parametrize("body", [b"\x91" * 100_000, b"\x81\xa1a\xa1\xff", b"\xc1", b"\x81\x81\x01\x01\x01"])
def test_refuses_broken_msgpack(body: bytes) -> None:
    """Deep nesting, text that is no UTF-8, reserved bytes and unhashable keys are a SerializationError."""
    for reader in READERS:
        with pytest.raises(SerializationError):
            reader(body, MSGPACK)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-python-serialize", "APPLICATION/JSON"])
def test_refuses_other_content_types(content_type: str) -> None:
    """A body is never guessed at: of another content type it is refused, and the text names those that are known."""
    for reader in READERS:
        with pytest.raises(SerializationError, match="known are application/json and application/msgpack"):
            reader(b"{}", content_type)


@codecs
@pytest.mark.parametrize("kind", ["request", "reply", "control"])
def test_broken_at_any_byte_raises_serialization_errors_only(kind: str, content_type: str) -> None:
    """Whatever becomes of any one byte of a body, it is read or it is a SerializationError: nothing else comes out."""
    body = {
        "request": encode_request(FULL, content_type),
        "reply": encode_reply(Reply("c", "items", extended=True, server="h", items=[1], seq=2), content_type),
        "control": encode_control(Control("c", "credit", 5), content_type),
    }[kind]
    for at in range(len(body)):
        broken = [body[:at], body[:at] + body[at + 1 :]]
        broken += [body[:at] + bytes((byte,)) + body[at + 1 :] for byte in b'\x00\x01"0{}[\\\x7f\x80\xc0\xd9\xff']
        for attempt in broken:
            for reader in READERS:
                try:
                    reader(attempt, content_type)
                except SerializationError:
                    pass


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", None),
        ("method", 1),
        ("args", [1]),
        ("args", "text"),
        ("_unique_id", 5),
        ("namespace", 5),
        ("version", 1.0),
        ("_msg_id", 5),
        ("_reply_q", ["q"]),
        ("_msgbus", 5),
        ("_msgbus", {"ttl": "soon"}),
        ("_msgbus", {"at": []}),
        ("_msgbus", {"window": 1.5}),
        ("_msgbus", {"policy": 1}),
    ],
)
@codecs
def test_refuses_requests_with_values_of_a_wrong_type(key: str, value: Any, content_type: str) -> None:
    """A key of a wrong type in a request is named in the error."""
    body = encode({"method": "m", "args": {}, key: value}, content_type)
    with pytest.raises(SerializationError, match=key):
        decode_request(body, content_type)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300, True, "5", [], {}])
def test_an_invalid_monitor_time_counts_as_absent(value: Any) -> None:
    """The _timeout of a stock peer may be anything: what is no number of seconds is as good as none."""
    assert decode_request(encode({"method": "m", "_timeout": value}, MSGPACK), MSGPACK).monitor is None
    assert decode_request(encode({"method": "m", "_timeout": 10**400}, JSON), JSON).monitor is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_unusable_times_count_as_absent(value: float) -> None:
    """An infinite deadline counts as absent, and so does what is not a number."""
    body = encode_request(Request("m", hints=Hints(value, value, "at_least_once", 5, value)), MSGPACK)
    assert decode_request(body, MSGPACK).hints == Hints(None, None, "at_least_once", 5)


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"_msg_id": "c"},
        {"_msg_id": 5, "result": 1},
        {"result": 1, "failure": None},
        {"_msg_id": "c", "failure": 5},
        {"_msg_id": "c", "_msgbus": {"kind": "started"}},
        {"_msg_id": "c", "_msgbus": {"kind": "credit", "taken": "many"}},
        {"_msg_id": "c", "result": None, "_msgbus": {"items": 5}},
        {"_msg_id": "c", "result": None, "_msgbus": []},
        {"_msg_id": "c", "result": None, "_msgbus": {"kind": "credit"}},
        {"_msg_id": "c", "result": None, "_msgbus": {"kind": "cancel"}},
        {"_msg_id": "c", "result": None, "_msgbus": {"kind": "unheard of"}},
        {"_msg_id": "c", "result": 1, "ending": "yes"},
    ],
)
@codecs
def test_refuses_malformed_inbox_frames(payload: dict[str, Any], content_type: str) -> None:
    """A message to an inbox that is neither a reply nor a control frame is refused."""
    with pytest.raises(SerializationError):
        decode_inbox_frame(encode(payload, content_type), content_type)


LOOP: list[Any] = []
LOOP.append(LOOP)


@codecs
@pytest.mark.parametrize("value", [object(), "\ud800", LOOP, {1: object()}], ids=["object", "surrogate", "loop", "in"])
@pytest.mark.parametrize(
    ("where", "says"), [("args", "argument 'bad'"), ("context", "context key 'bad'")], ids=["args", "context"]
)
def test_names_what_cannot_travel(value: Any, where: str, says: str, content_type: str) -> None:
    """The error for a value that cannot be written names the argument or context key that it is in."""
    request = Request("m", {"good": 1}, context={"good": 1})
    getattr(request, where)["bad"] = value
    with pytest.raises(SerializationError, match=f"{says} cannot be written as {content_type}"):
        encode_request(request, content_type)


@codecs
@pytest.mark.parametrize("value", [object(), "\ud800", LOOP], ids=["object", "surrogate", "loop"])
def test_results_and_items_that_cannot_travel(value: Any, content_type: str) -> None:
    """A result or an item that cannot be written is a SerializationError."""
    with pytest.raises(SerializationError):
        encode_reply(Reply("c", result=value), content_type)
    with pytest.raises(SerializationError):
        item_encoder(content_type)(value)


@codecs
def test_method_name_that_cannot_travel(content_type: str) -> None:
    """Where neither an argument nor the context is to blame, the error is raised as it is."""
    with pytest.raises(SerializationError, match="cannot be written"):
        encode_request(Request("\ud800", {"a": 1}, context={"b": 2}), content_type)


@codecs
def test_items_are_written_once(content_type: str) -> None:
    """An item that is written beforehand is put into its frame as it is."""
    items: list[Any] = [msgspec.Raw(item_encoder(content_type)(item)) for item in (1, {"a": "b"}, None)]
    assert all(isinstance(item, msgspec.Raw) for item in items)
    frame = decode_inbox_frame(
        encode_reply(Reply("c", "items", extended=True, items=items), content_type), content_type
    )
    assert isinstance(frame, Reply)
    assert frame.items == [1, {"a": "b"}, None]


def test_dead_letter_arrives_as_it_was_sent() -> None:
    """A dead letter keeps the body of its message, whatever bytes it has."""
    letter = DeadLetter("why", "topic 'x'", "h1", 4, 1000.5, ["line"], MSGPACK, b"\0\xff{")
    body = encode_dead_letter(letter)
    assert decode_dead_letter(body) == letter
    assert json.loads(body)["reason"] == "why"


def test_ids_are_unique_and_of_oslo_messagings_form() -> None:
    """Ids are 32 hexadecimal digits, and none is given twice."""
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in ids)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # it is what this is about
def test_ids_differ_in_a_forked_child() -> None:
    """A forked child does not give the ids that its parent will give."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    assert len(theirs) == 32
    assert theirs[:16] != new_id()[:16]


@pytest.mark.parametrize("content_type", CONTENT_TYPES.values())
def test_contexts_of_every_name(content_type: str) -> None:
    """A context key may have any name, those of the envelope and of the request included."""
    context = {"": 1, "method": "x", "_context_": {"_context_a": 1}, "ä": None, "oslo.version": "1.0"}
    body = encode_request(Request("m", {"_context_b": 1}, context=context), content_type)
    assert decode_request(body, content_type).context == context
    assert decode_request(body, content_type).args == {"_context_b": 1}


@pytest.mark.parametrize("content_type", CONTENT_TYPES.values())
def test_a_context_whose_prefix_is_only_in_a_value(content_type: str) -> None:
    """Text that looks like a context key, within an argument, makes no context."""
    body = encode_request(Request("m", {"text": '"_context_user": 5'}), content_type)
    assert decode_request(body, content_type).context == {}


def test_a_window_is_a_streams() -> None:
    """A request has a window where a msgbus client asks for a stream, and only there."""
    assert FULL.window == 7
    assert BARE.window is None
    assert Request("m").window is None


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
def test_request_that_is_sent_again_has_another_id_and_no_deadline(content_type: str) -> None:
    """Everything else is as it was: arguments to the last digit, context, policy."""
    args = {"id": "an-id", "n": 12345678901234567, "f": 0.1, "text": "\u00e9\U0001f600"}
    hints = Hints(5.0, 1000.5, "at_least_once")
    request = Request("m", args, "an-id", "ns", "1.2", hints=hints, context={"user": "ada"})
    again = decode_request(encode_again(encode_request(request, content_type), content_type, "other"), content_type)
    assert (again.unique_id, again.hints) == ("other", Hints(policy="at_least_once"))
    again.unique_id, again.hints = "an-id", hints
    assert again == request


def test_request_of_a_stock_peer_can_be_sent_again() -> None:
    """It has no hints, and what it has besides stays."""
    body = json.dumps({"method": "m", "args": {}, "_unique_id": "an-id", "extra": [1.50]}).encode()
    again = decode(encode_again(body, JSON, "other"), JSON)
    assert again == {"method": "m", "args": {}, "_unique_id": "other", "extra": [1.5]}
    with pytest.raises(SerializationError):
        encode_again(b"{garbage", JSON, "other")


def test_a_malformed_dead_letter_is_a_serialization_error() -> None:
    """Whatever it is."""
    for body in (b"", b"{}", b"\xff", b"[1]"):
        with pytest.raises(SerializationError, match="cannot be read as a dead letter"):
            decode_dead_letter(body)


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
@pytest.mark.parametrize("end", [None, 70.0])
def test_a_request_that_is_sent_again_has_less_time(content_type: str, end: float | None) -> None:
    """Both to its first item and to its end, by what has passed since; and it says that it comes again."""
    request = Request("m", {"a": 1}, "id", hints=Hints(ttl=50.0, at=1.0, policy="at_least_once", window=5, end=end))
    again = decode_request(encode_repeat(encode_request(request, content_type), content_type, 20.0), content_type)
    assert (again.method, again.args, again.unique_id) == ("m", {"a": 1}, "id")
    assert again.hints is not None
    assert (again.hints.ttl, again.hints.end, again.hints.again) == (20.0, end and 40.0, True)
    assert again.hints.at != 1.0
