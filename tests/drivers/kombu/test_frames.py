"""Against py-amqp as the reference: what we write it reads, and what it writes we read."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

amqp = pytest.importorskip("amqp")

from amqp import method_framing, spec  # noqa: E402 - only where it is installed
from amqp.basic_message import Message  # noqa: E402
from amqp.serialization import dumps, loads  # noqa: E402

from msgbus.drivers.kombu import frames  # noqa: E402

CHANNEL = 0x0102
FRAME_MAX = 4096
MAX_SHORT = "ä" * 127


class Reference:
    """A channel of py-amqp that writes into memory."""

    def __init__(self) -> None:
        self._written = bytearray()
        connection = amqp.Connection("localhost", frame_max=FRAME_MAX)
        connection.frame_max = FRAME_MAX
        connection._frame_writer = method_framing.frame_writer(connection, self)
        self.channel = amqp.Channel(connection, CHANNEL)
        self.channel.is_open = True
        self.channel.wait = lambda *_args, **_kwargs: ("name", 1, 2)
        self.connection = connection
        self.take()

    def write(self, data: bytes) -> None:
        """What py-amqp calls its transport with."""
        self._written += data

    def take(self) -> bytes:
        written = bytes(self._written)
        self._written.clear()
        return written


@pytest.fixture
def reference() -> Reference:
    """What py-amqp would write."""
    return Reference()


def split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The frames in some bytes: type, channel, payload."""
    at = 0
    while at < len(data):
        kind, channel, size = struct.unpack_from("!BHI", data, at)
        assert (kind, channel, size) == frames.frame_head(data, at)
        assert data[at + 7 + size] == frames.END
        yield kind, channel, data[at + 7 : at + 7 + size]
        at += 8 + size


METHODS: dict[str, tuple[Callable[[], bytes], Callable[[Any], object]]] = {
    "channel.close": (
        lambda: frames.channel_close(CHANNEL),
        lambda channel: channel.send_method(spec.Channel.Close, "BsBB", (200, "done", 0, 0)),
    ),
    "exchange.declare": (
        lambda: frames.exchange_declare(CHANNEL, MAX_SHORT, "topic", durable=True, auto_delete=False),
        lambda channel: channel.exchange_declare(MAX_SHORT, "topic", durable=True, auto_delete=False),
    ),
    "exchange.declare transient": (
        lambda: frames.exchange_declare(CHANNEL, "x", "fanout", durable=False, auto_delete=True),
        lambda channel: channel.exchange_declare("x", "fanout", durable=False, auto_delete=True),
    ),
    "queue.declare": (
        lambda: frames.queue_declare(CHANNEL, "q"),
        lambda channel: channel.queue_declare("q", auto_delete=False),
    ),
    "queue.declare passive": (
        lambda: frames.queue_declare(CHANNEL, MAX_SHORT, passive=True),
        lambda channel: channel.queue_declare(MAX_SHORT, passive=True, auto_delete=False),
    ),
    "queue.declare durable": (
        lambda: frames.queue_declare(
            CHANNEL, "q", durable=True, arguments={"x-queue-type": "quorum", "x-expires": 1800000}
        ),
        lambda channel: channel.queue_declare(
            "q", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum", "x-expires": 1800000}
        ),
    ),
    "queue.declare auto_delete": (
        lambda: frames.queue_declare(CHANNEL, "q", auto_delete=True),
        lambda channel: channel.queue_declare("q", auto_delete=True),
    ),
    "queue.bind": (
        lambda: frames.queue_bind(CHANNEL, "q", "x", "k"),
        lambda channel: channel.queue_bind("q", "x", "k", arguments={}),
    ),
    "queue.delete": (lambda: frames.queue_delete(CHANNEL, "q"), lambda channel: channel.queue_delete("q")),
    "basic.qos": (lambda: frames.basic_qos(CHANNEL, 65535), lambda channel: channel.basic_qos(0, 65535, False)),
    "basic.consume": (
        lambda: frames.basic_consume(CHANNEL, "q", "tag", {}),
        lambda channel: channel.basic_consume("q", "tag", arguments={}),
    ),
    "basic.consume with priority": (
        lambda: frames.basic_consume(CHANNEL, "q", "tag", {"x-priority": 5}),
        lambda channel: channel.basic_consume("q", "tag", arguments={"x-priority": 5}),
    ),
    "basic.cancel": (lambda: frames.basic_cancel(CHANNEL, "tag"), lambda channel: channel.basic_cancel("tag")),
    "confirm.select": (lambda: frames.confirm_select(CHANNEL), lambda channel: channel.confirm_select()),
    "basic.ack": (lambda: frames.basic_ack(CHANNEL, 1), lambda channel: channel.basic_ack(1)),
    "basic.ack multiple": (
        lambda: frames.basic_ack(CHANNEL, 2**63, multiple=True),
        lambda channel: channel.basic_ack(2**63, multiple=True),
    ),
    "basic.reject": (
        lambda: frames.basic_reject(CHANNEL, 2**64 - 1, False),
        lambda channel: channel.basic_reject(2**64 - 1, False),
    ),
    "basic.reject requeue": (
        lambda: frames.basic_reject(CHANNEL, 5, True),
        lambda channel: channel.basic_reject(5, True),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_written_as_py_amqp_writes_them(name: str, reference: Reference) -> None:
    """Each method frame is the same, byte for byte, as that of py-amqp."""
    ours, theirs = METHODS[name]
    theirs(reference.channel)
    assert ours() == reference.take()


def test_channel_open() -> None:
    """channel.open is a method frame with one empty reserved string."""
    assert list(split(frames.channel_open(CHANNEL))) == [(1, CHANNEL, struct.pack("!HH", *spec.Channel.Open) + b"\0")]


def test_connection_close() -> None:
    """connection.close goes out on channel 0, with a code and no method to blame."""
    ((kind, channel, payload),) = split(frames.connection_close())
    assert (kind, channel, payload[:4]) == (1, 0, struct.pack("!HH", *spec.Connection.Close))
    assert frames.read_close(payload, 4, len(payload)) == (200, "done")


def test_heartbeat() -> None:
    """A heartbeat is the eight bytes of the specification."""
    assert frames.heartbeat == b"\x08\0\0\0\0\0\0\xce"


@pytest.mark.parametrize(
    "name",
    [name for name, value in vars(frames).items() if name.isupper() and isinstance(value, bytes) and len(value) == 4],
)
def test_numbers_of_methods(name: str) -> None:
    """The class and method numbers are those that py-amqp knows."""
    group, _, method = name.partition("_")
    known = getattr(getattr(spec, group.title()), method.title().replace("_", ""))
    assert struct.unpack("!HH", getattr(frames, name)) == tuple(known)


def read_by_py_amqp(data: bytes) -> tuple[str, str, bool, Any]:
    """What py-amqp makes of a published message: exchange, key, mandatory, message."""
    kinds = [kind for kind, _, _ in split(data)]
    assert kinds == [1, 2, *[3] * (len(kinds) - 2)]
    message = Message()
    exchange = key = ""
    mandatory = False
    for kind, channel, payload in split(data):
        assert channel == CHANNEL
        if kind == 1:
            assert payload[:4] == struct.pack("!HH", *spec.Basic.Publish)
            (_, exchange, key, mandatory, _), _ = loads("Bssbb", payload, 4)
        elif kind == 2:
            message.inbound_header(payload)
        else:
            message.inbound_body(payload)
    return exchange, key, mandatory, message


@pytest.mark.parametrize("size", [0, 1, FRAME_MAX - 8, FRAME_MAX - 7, 3 * (FRAME_MAX - 8), 3 * (FRAME_MAX - 8) + 1])
@pytest.mark.parametrize("ttl", [None, 0, 1, 60000, 2**32])
@pytest.mark.parametrize("durable", [True, False])
def test_publish_is_read_by_py_amqp(size: int, ttl: int | None, durable: bool) -> None:
    """A message that we publish, of whatever size, has for py-amqp the body and properties that it was given."""
    body = bytes(itertools.islice(itertools.cycle(range(256)), size))
    prefix = frames.publish_prefix(CHANNEL, "exchange", MAX_SHORT, True)
    data = frames.publish(prefix, CHANNEL, body, "application/json", "id" * 16, ttl, durable, FRAME_MAX)
    exchange, key, mandatory, message = read_by_py_amqp(data)
    assert (exchange, key, mandatory) == ("exchange", MAX_SHORT, True)
    assert message.ready
    assert (message.body if size else b"") == body
    expected: dict[str, object] = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 2 if durable else 1,
        "message_id": "id" * 16,
    }
    if ttl is not None:
        expected["expiration"] = str(ttl)
    assert message.properties == expected


@pytest.mark.parametrize("size", [0, 1, FRAME_MAX - 8, FRAME_MAX - 7, 5 * FRAME_MAX])
def test_no_frame_is_larger_than_was_agreed(size: int) -> None:
    """Bodies are split so that no frame, with its head and end, is larger than frame_max; none is empty."""
    data = frames.publish(b"", CHANNEL, bytes(size), "application/json", "id", 5, True, FRAME_MAX)
    for kind, _, payload in split(data):
        assert 0 < len(payload) <= FRAME_MAX - frames.OVERHEAD
        assert kind in (frames.HEADER, frames.BODY)


@pytest.mark.parametrize("size", [1, 100, 5 * FRAME_MAX])
def test_publish_is_written_as_py_amqp_writes_it(size: int, reference: Reference) -> None:
    """The frames of a published message are the same, byte for byte, as those of py-amqp."""
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "expiration": "60000",
        "message_id": "id",
    }
    message = Message(bytes(size), **properties)
    reference.channel.send_method(spec.Basic.Publish, "Bssbb", (0, "x", "k", True, False), message)
    prefix = frames.publish_prefix(CHANNEL, "x", "k", True)
    ours = frames.publish(prefix, CHANNEL, bytes(size), "application/json", "id", 60000, True, FRAME_MAX)
    assert ours == reference.take()


PROPERTIES: dict[str, Any] = {
    "content_type": "application/msgpack",
    "content_encoding": "utf-8",
    "application_headers": {"x-delivery-count": 3, "x-first-death-queue": "q", "nested": {"a": [1, "b"]}},
    "delivery_mode": 2,
    "priority": 5,
    "correlation_id": "correlation",
    "reply_to": "reply",
    "expiration": "60000",
    "message_id": "the id",
    "timestamp": 1767312000,
    "type": "type",
    "user_id": "user",
    "app_id": "app",
    "cluster_id": "cluster",
}


def header(properties: dict[str, Any], size: int = 70000) -> bytes:
    """The payload of a content header, as py-amqp writes it."""
    head: bytes = struct.pack("!HHQ", 60, 0, size) + Message(**properties)._serialize_properties()
    return head


def assert_read(properties: dict[str, Any]) -> None:
    """A header with these properties is read right, out of the middle of a buffer."""
    payload = header(properties)
    before, after = b"what came before", b"\xceand after"
    buffer = before + payload + after
    read = frames.read_content_header(buffer, len(before), len(before) + len(payload))
    assert read == frames.ContentHeader(
        70000,
        properties.get("content_type", ""),
        properties.get("message_id", ""),
        properties.get("application_headers", {}),
    )


@pytest.mark.parametrize("name", PROPERTIES)
def test_delivery_headers_with_and_without_each_property(name: str) -> None:
    """A delivery's header is read whichever properties it has: each alone, and all but one."""
    assert_read({name: PROPERTIES[name]})
    assert_read({key: value for key, value in PROPERTIES.items() if key != name})


def test_delivery_headers_with_every_set_of_properties() -> None:
    """Any set of the first nine properties, and none at all, is read right."""
    names = list(PROPERTIES)[:9]
    for count in range(len(names) + 1):
        for chosen in itertools.combinations(names, count):
            assert_read({name: PROPERTIES[name] for name in chosen})


@pytest.mark.parametrize(
    "headers",
    [
        {"x-delivery-count": 2**40},
        {"x-stream-offset": 0},
        {"compression": "application/x-gzip"},
        {"a": {"x-delivery-count": 5}},
        {"x-delivery-count": 1, "a": "b" * 1000, "n": None},
    ],
)
def test_headers_are_read_where_one_matters(headers: dict[str, Any]) -> None:
    """The headers of RabbitMQ's own, and that of compression, are read out of whatever headers there are."""
    payload = header({**PROPERTIES, "application_headers": headers})
    assert frames.read_content_header(payload, 0, len(payload)).headers == headers


@pytest.mark.parametrize("headers", [{}, {"other": 1}])
def test_other_headers_are_left_alone(headers: dict[str, Any]) -> None:
    """A peer may send anything in headers: those that do not matter are not even read."""
    payload = header({**PROPERTIES, "application_headers": headers})
    assert frames.read_content_header(payload, 0, len(payload)).headers == {}


@pytest.mark.parametrize("ttl", [None, 5])
def test_a_compressed_message_says_so(ttl: int | None) -> None:
    """The header of a compressed body is the one that kombu writes."""
    data = frames.publish(b"", CHANNEL, b"body", "application/json", "id", ttl, True, FRAME_MAX, "application/x-bz2")
    _, _, size = struct.unpack_from("!BHI", data)
    read = frames.read_content_header(data, 7, 7 + size)
    assert read == frames.ContentHeader(4, "application/json", "id", {"compression": "application/x-bz2"})


def test_a_header_that_is_cut_off_is_an_error() -> None:
    """A content header that is malformed raises what its docstring says, wherever it is cut off or broken."""
    payload = header({key: PROPERTIES[key] for key in list(PROPERTIES)[:9]})
    for at in range(len(payload)):
        try:
            frames.read_content_header(payload[:at], 0, at)
        except (IndexError, ValueError, struct.error):
            pass


@pytest.mark.parametrize("redelivered", [True, False])
@pytest.mark.parametrize("consumer", ["", "tag", "t" * 255])
@pytest.mark.parametrize("tag", [1, 2**64 - 1])
def test_deliver(consumer: str, tag: int, redelivered: bool) -> None:
    """basic.deliver is read as py-amqp writes it."""
    arguments = dumps("sLbss", (consumer, tag, redelivered, "exchange", "key"))
    assert frames.read_deliver(b"head" + arguments, 4) == frames.Deliver(consumer.encode(), tag, redelivered)


def delivery(properties: dict[str, Any], body: bytes, *, redelivered: bool = False) -> bytes:
    """The frames of a delivery to a consumer of ours, as RabbitMQ writes them."""
    arguments = dumps("sLbss", (frames.CONSUMER_TAG, 2**40, redelivered, "exchange", "key"))
    parts = [(frames.METHOD, frames.BASIC_DELIVER + arguments), (frames.HEADER, header(properties, len(body)))]
    parts += [(frames.BODY, body)] if body else []
    return b"".join(struct.pack("!BHI", kind, CHANNEL, len(part)) + part + b"\xce" for kind, part in parts)


def read_whole(buffer: bytes, start: int) -> Any:
    """What `read_delivery` makes of a delivery in a buffer."""
    (size,) = struct.unpack_from("!I", buffer, start + 3)
    assert buffer[start + 7 : start + 13] == frames.DELIVERY
    return frames.read_delivery(buffer, CHANNEL, start, start + 7 + size)


def test_whole_deliveries_with_every_set_of_properties() -> None:
    """One is read at once if it has the properties of our messages; others are left to be read frame by frame."""
    names = list(PROPERTIES)
    ours = {"content_type", "content_encoding", "delivery_mode", "message_id"}
    for count in range(len(names) + 1):
        for chosen in itertools.combinations(names[:9], min(count, 9)):
            for more in ((), tuple(names[9:])):
                has = {*chosen, *more}
                data = b"before" + delivery({name: PROPERTIES[name] for name in has}, b"body", redelivered=True)
                found = read_whole(data + b"\x08", 6)
                if has - {"expiration", *names[9:]} == ours:
                    assert found == (2**40, True, b"body", "application/msgpack", "the id", len(data))
                else:
                    assert found is None


def test_a_delivery_that_is_not_all_there_is_not_read_at_once() -> None:
    """Wherever it is cut off; nor is one without a body, or in two parts."""
    properties = {
        name: PROPERTIES[name] for name in ("content_type", "content_encoding", "delivery_mode", "message_id")
    }
    data = delivery(properties, b"body")
    (size,) = struct.unpack_from("!I", data, 3)
    assert read_whole(data, 0) == (2**40, False, b"body", "application/msgpack", "the id", len(data))
    for end in range(size + 8, len(data)):
        assert read_whole(data[:end], 0) is None
    assert read_whole(delivery(properties, b"") + bytes(100), 0) is None
    body_at = data.index(b"body")
    first = data[: body_at - 4] + b"\0\0\0\x02bo\xce"
    assert read_whole(first + b"\x03\0\x07\0\0\0\x02dy\xce", 0) is None
    with pytest.raises(ValueError, match="no frame end"):
        read_whole(data[:-1] + b"x", 0)


@pytest.mark.parametrize(("messages", "consumers"), [(0, 0), (2**32 - 1, 1), (5, 2**32 - 1)])
def test_declare_ok(messages: int, consumers: int) -> None:
    """queue.declare-ok says how many messages and consumers there are."""
    arguments = dumps("sll", ("queue", messages, consumers))
    assert frames.read_declare_ok(b"head" + arguments, 4) == (messages, consumers)


@pytest.mark.parametrize("text", ["", "NOT_FOUND - no queue 'ä'", "x" * 255])
def test_close(text: str) -> None:
    """The reason for which a channel or connection was closed is read as py-amqp writes it."""
    arguments = dumps("BsBB", (404, text, 50, 10))
    buffer = b"head" + arguments + b"tail"
    assert frames.read_close(buffer, 4, 4 + len(arguments)) == (404, text)


@pytest.mark.parametrize(("raw", "text"), [(b"", ""), ("tag-ä".encode(), "tag-ä"), (b"\xff", "\ufffd")])
def test_short_string(raw: bytes, text: str) -> None:
    """A short string is read even where it is no UTF-8."""
    assert frames.read_short_string(b"head" + bytes((len(raw),)) + raw + b"tail", 4) == text
