"""AMQP 0-9-1 frames of the kombu driver, written and read by hand: pure functions, no I/O.

py-amqp builds and parses a dozen objects for each message. Here a publish is a prepared prefix and three lengths, and a
delivery is read where it lies in the buffer. The frame layout and the method numbers are those of the AMQP 0-9-1
specification (sections 2.3 and 4.2) and of RabbitMQ's extensions (confirm.select, basic.nack, connection.blocked).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from amqp.serialization import dumps, loads

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = 0xCE
OVERHEAD = 8
"""Bytes of a frame besides its payload."""

frame_head = struct.Struct("!BHI").unpack_from
_pack_head = struct.Struct("!BHI").pack
_pack_content = struct.Struct("!BHIHHQ").pack
_pack_tag = struct.Struct("!BHI4sQBB").pack
_read_tag = struct.Struct("!QB").unpack_from
_read_content = struct.Struct("!BHI4xQHB").unpack_from
_CONTENT_SIZE = 22
"""Bytes of a header frame up to the length of the first property."""
read_u64 = struct.Struct("!Q").unpack_from
_read_u16 = struct.Struct("!H").unpack_from

# Class and method ids, as the first four bytes of a method frame's payload.
_ids = struct.Struct("!HH").pack
CONNECTION_CLOSE, CONNECTION_CLOSE_OK = _ids(10, 50), _ids(10, 51)
CONNECTION_BLOCKED, CONNECTION_UNBLOCKED = _ids(10, 60), _ids(10, 61)
CHANNEL_OPEN, CHANNEL_OPEN_OK = _ids(20, 10), _ids(20, 11)
CHANNEL_CLOSE, CHANNEL_CLOSE_OK = _ids(20, 40), _ids(20, 41)
EXCHANGE_DECLARE, EXCHANGE_DECLARE_OK = _ids(40, 10), _ids(40, 11)
QUEUE_DECLARE, QUEUE_DECLARE_OK = _ids(50, 10), _ids(50, 11)
QUEUE_BIND, QUEUE_BIND_OK = _ids(50, 20), _ids(50, 21)
QUEUE_DELETE, QUEUE_DELETE_OK = _ids(50, 40), _ids(50, 41)
BASIC_QOS, BASIC_QOS_OK = _ids(60, 10), _ids(60, 11)
BASIC_CONSUME, BASIC_CONSUME_OK = _ids(60, 20), _ids(60, 21)
BASIC_CANCEL, BASIC_CANCEL_OK = _ids(60, 30), _ids(60, 31)
BASIC_PUBLISH, BASIC_RETURN, BASIC_DELIVER = _ids(60, 40), _ids(60, 50), _ids(60, 60)
BASIC_ACK, BASIC_REJECT, BASIC_NACK = _ids(60, 80), _ids(60, 90), _ids(60, 120)
CONFIRM_SELECT, CONFIRM_SELECT_OK = _ids(85, 10), _ids(85, 11)

CONSUMER_TAG = "0"
"""Each consumer has a channel of its own, so all can have the same tag."""
DELIVERY = BASIC_DELIVER + b"\x010"
"""How the payload of a delivery to a consumer of ours begins."""

_FRAME_END = bytes((END,))
heartbeat = _pack_head(HEARTBEAT, 0, 0) + _FRAME_END


def method(channel: int, ids: bytes, arguments: bytes = b"") -> bytes:
    """A method frame."""
    return _pack_head(METHOD, channel, 4 + len(arguments)) + ids + arguments + _FRAME_END


def channel_open(channel: int) -> bytes:
    return method(channel, CHANNEL_OPEN, b"\0")


def channel_close(channel: int) -> bytes:
    return method(channel, CHANNEL_CLOSE, dumps("BsBB", (200, "done", 0, 0)))


def connection_close() -> bytes:
    return method(0, CONNECTION_CLOSE, dumps("BsBB", (200, "done", 0, 0)))


def exchange_declare(
    channel: int, name: str, kind: str, *, passive: bool = False, durable: bool = False, auto_delete: bool = False
) -> bytes:
    values: tuple[Any, ...] = (0, name, kind, passive, durable, auto_delete, False, False, {})
    return method(channel, EXCHANGE_DECLARE, dumps("BssbbbbbF", values))


def queue_declare(
    channel: int,
    name: str,
    *,
    passive: bool = False,
    durable: bool = False,
    auto_delete: bool = False,
    arguments: dict[str, Any] | None = None,
) -> bytes:
    values = (0, name, passive, durable, False, auto_delete, False, arguments or {})
    return method(channel, QUEUE_DECLARE, dumps("BsbbbbbF", values))


def queue_bind(channel: int, queue: str, exchange: str, key: str) -> bytes:
    return method(channel, QUEUE_BIND, dumps("BsssbF", (0, queue, exchange, key, False, {})))


def queue_delete(channel: int, queue: str) -> bytes:
    return method(channel, QUEUE_DELETE, dumps("Bsbbb", (0, queue, False, False, False)))


def basic_qos(channel: int, prefetch: int) -> bytes:
    """Not global: in RabbitMQ that bounds each consumer of the channel by itself."""
    return method(channel, BASIC_QOS, dumps("lBb", (0, prefetch, False)))


def basic_consume(channel: int, queue: str, tag: str, arguments: dict[str, Any]) -> bytes:
    return method(channel, BASIC_CONSUME, dumps("BssbbbbF", (0, queue, tag, False, False, False, False, arguments)))


def basic_cancel(channel: int, tag: str) -> bytes:
    return method(channel, BASIC_CANCEL, dumps("sb", (tag, False)))


def confirm_select(channel: int) -> bytes:
    return method(channel, CONFIRM_SELECT, b"\0")


def basic_ack(channel: int, tag: int, multiple: bool = False) -> bytes:
    return _pack_tag(METHOD, channel, 13, BASIC_ACK, tag, multiple, END)


def basic_reject(channel: int, tag: int, requeue: bool) -> bytes:
    return _pack_tag(METHOD, channel, 13, BASIC_REJECT, tag, requeue, END)


def publish_prefix(channel: int, exchange: str, key: str, mandatory: bool) -> bytes:
    """The basic.publish frame, which is the same for all messages with one exchange and routing key."""
    return method(channel, BASIC_PUBLISH, dumps("Bssbb", (0, exchange, key, mandatory, False)))


# Bits of the flags that say which properties a content header has, in the order of the properties.
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _EXPIRATION, _MESSAGE_ID = 1 << 11, 1 << 10, 1 << 9, 1 << 8, 1 << 7
_OURS = _CONTENT_TYPE | _CONTENT_ENCODING | _DELIVERY_MODE | _MESSAGE_ID
"""The properties that each message of ours has; it may have `_EXPIRATION` too."""
_BEFORE_ID = _OURS | _HEADERS | _PRIORITY | _CORRELATION_ID | _REPLY_TO | 1
"""All flags on which it depends where those of our properties are, but for `_EXPIRATION`. (1: there are more flags.)"""


@lru_cache(1000)
def _first_properties(content_type: str, compression: str, durable: bool, expires: bool) -> bytes:
    """The flags and the properties before the expiration: the same for nearly all messages."""
    flags = _OURS | (_EXPIRATION if expires else 0) | (_HEADERS if compression else 0)
    kind = content_type.encode()
    headers = dumps("F", ({"compression": compression},)) if compression else b""
    return b"%b%c%b\x05utf-8%b%c" % (flags.to_bytes(2, "big"), len(kind), kind, headers, 2 if durable else 1)


def publish(
    prefix: bytes,
    channel: int,
    body: bytes,
    content_type: str,
    message_id: str,
    ttl_ms: int | None,
    durable: bool,
    frame_max: int,
    compression: str = "",
) -> bytes:
    """All frames of a message; `prefix` is the first of them, of `publish_prefix`.

    `compression` is how the body is compressed, empty if it is not; see `msgbus.drivers.kombu.compression`.
    """
    name = message_id.encode()
    if ttl_ms is None:
        properties = b"%b%c%b" % (_first_properties(content_type, compression, durable, False), len(name), name)
    else:
        digits = b"%d" % ttl_ms
        first = _first_properties(content_type, compression, durable, True)
        properties = b"%b%c%b%c%b" % (first, len(digits), digits, len(name), name)
    size = len(body)
    head = _pack_content(HEADER, channel, 12 + len(properties), 60, 0, size)
    if 0 < size <= frame_max - OVERHEAD:
        return b"%b%b%b\xce%b%b\xce" % (prefix, head, properties, _pack_head(BODY, channel, size), body)
    # An empty body has no frame: RabbitMQ closes the connection over one.
    parts = [prefix, head, properties, _FRAME_END]
    step = frame_max - OVERHEAD
    for start in range(0, size, step):
        part = body[start : start + step]
        parts += (_pack_head(BODY, channel, len(part)), part, _FRAME_END)
    return b"".join(parts)


def read_delivery(buffer: bytes, channel: int, start: int, end: int) -> tuple[int, bool, bytes, str, str, int] | None:
    """Read a whole delivery at once, if all its frames are in the buffer and it has the properties of our messages.

    So it is for nearly all messages, and this costs a third of what reading frame by frame does.

    Args:
        buffer: has a basic.deliver to a consumer of ours, see `DELIVERY`.
        channel: its channel.
        start: where the frame of the basic.deliver begins.
        end: where its end byte is.

    Returns:
        delivery tag, whether it is redelivered, body, content type, message id, and where the next frame begins; or
        None, where it has to be read frame by frame.

    Raises:
        IndexError, ValueError, struct.error: it is malformed.
    """
    at, available = end + 1, len(buffer)
    if available - at < _CONTENT_SIZE:
        return None
    kind, number, length, size, flags, of_type = _read_content(buffer, at)
    header_end = at + 7 + length
    body_at = header_end + OVERHEAD
    body_end = body_at + size
    if kind != HEADER or number != channel or flags & _BEFORE_ID != _OURS or not size or body_end >= available:
        return None
    if frame_head(buffer, header_end + 1) != (BODY, channel, size):
        return None
    if buffer[header_end] != END or buffer[body_end] != END:
        raise ValueError("no frame end")
    tag, redelivered = _read_tag(buffer, start + 13)
    at += _CONTENT_SIZE
    kind_end = at + of_type
    at_id = kind_end + 2 + buffer[kind_end]  # after the encoding and the delivery mode
    if flags & _EXPIRATION:
        at_id += 1 + buffer[at_id]
    content_type = buffer[at:kind_end].decode("utf-8", "replace")
    message_id = buffer[at_id + 1 : at_id + 1 + buffer[at_id]].decode("utf-8", "replace")
    return tag, redelivered != 0, buffer[body_at:body_end], content_type, message_id, body_end + 1


class Deliver(NamedTuple):
    """What basic.deliver says."""

    consumer: bytes
    tag: int
    redelivered: bool


def read_deliver(buffer: bytes, at: int) -> Deliver:
    """Read basic.deliver, whose arguments begin at `at`."""
    end = at + 1 + buffer[at]
    return Deliver(buffer[at + 1 : end], read_u64(buffer, end)[0], buffer[end + 8] != 0)


Headers = Mapping[str, Any]
"""The headers of a message, of which RabbitMQ writes some itself."""
NO_HEADERS: Headers = MappingProxyType({})


class ContentHeader(NamedTuple):
    """What a content header says, as far as it matters here. Absent texts are empty."""

    size: int
    content_type: str
    message_id: str
    headers: Headers


def read_content_header(buffer: bytes, at: int, end: int) -> ContentHeader:
    """Read a content header, whose payload is ``buffer[at:end]``.

    Raises:
        IndexError, ValueError, struct.error: it is malformed.
    """
    size = read_u64(buffer, at + 4)[0]
    flags = _read_u16(buffer, at + 12)[0]
    at += 14
    content_type = message_id = b""
    headers = NO_HEADERS
    if flags & _CONTENT_TYPE:
        stop = at + 1 + buffer[at]
        content_type = buffer[at + 1 : stop]
        at = stop
    if flags & _CONTENT_ENCODING:
        at += 1 + buffer[at]
    if flags & _HEADERS:
        length = int.from_bytes(buffer[at : at + 4], "big")
        if length:
            headers = _read_headers(buffer[at : at + 4 + length])
        at += 4 + length
    if flags & _DELIVERY_MODE:
        at += 1
    if flags & _PRIORITY:
        at += 1
    for flag in (_CORRELATION_ID, _REPLY_TO, _EXPIRATION):
        if flags & flag:
            at += 1 + buffer[at]
    if flags & _MESSAGE_ID:
        message_id = buffer[at + 1 : at + 1 + buffer[at]]
    # RabbitMQ does not check that these are UTF-8.
    return ContentHeader(size, content_type.decode("utf-8", "replace"), message_id.decode("utf-8", "replace"), headers)


def _read_headers(table: bytes) -> Headers:
    """The headers, if one of them matters here: quorum queues count deliveries, and streams messages, in them."""
    if not any(name in table for name in (b"x-delivery-count", b"x-stream-offset", b"compression")):
        return NO_HEADERS
    try:
        (headers,), _ = loads("F", table, 0)
    except Exception:  # A peer may send anything here, and py-amqp may raise anything.
        return NO_HEADERS
    return cast("Headers", headers)


def read_close(buffer: bytes, at: int, end: int) -> tuple[int, str]:
    """Read why a channel or connection was closed: code and text."""
    (code, text), _ = loads("Bs", buffer[at:end], 0)
    return code, text


def read_short_string(buffer: bytes, at: int) -> str:
    return buffer[at + 1 : at + 1 + buffer[at]].decode("utf-8", "replace")


def read_declare_ok(buffer: bytes, at: int) -> tuple[int, int]:
    """Read queue.declare-ok: how many messages are ready, how many consumers there are."""
    at += 1 + buffer[at]
    messages, consumers = struct.unpack_from("!II", buffer, at)
    return messages, consumers
