"""The protocol between two nodes of the zmq driver: frames of one or more records.

A record is a byte that says its kind, four bytes that say how long the rest is, and that rest. All numbers are little
endian. Several records travel in one frame, so that a busy connection makes few frames.

========  =============================  ====================================================================
kind      the rest                       meaning
========  =============================  ====================================================================
HELLO     `Hello` as msgpack             the first record on a connection, from either side
BYE       text                           this side leaves cleanly (no text), or refuses the other (why)
BYE_ACK                                  the answer to BYE: all that came before it has been read
DATA      see `data`                     a message
TAKEN     numbers                        receipt: a subscriber gets it
QUEUED    numbers                        receipt: it waits at the receiver until a subscriber has room
FULL      numbers                        not accepted: too many wait; READY follows
NOBODY    numbers                        not accepted: nobody subscribes to that address here
REACHED   pairs of numbers               receipt of a fanout: message, number of subscribers
SETTLED   numbers                        a subscriber acknowledged or dropped it
REQUEUED  numbers                        given back by a subscriber that had it
RELEASED  numbers                        given back by the receiver, before a subscriber had it
RECALL    how many, address              give back messages that wait for a subscriber
RECALLED  how many, address              that has been done; so many fewer than asked for were there
READY     0 or 1, address                the backlog has room (0), or a subscriber has (1)
RESUME    address                        what follows was sent after READY
INSPECT   number, address                how many subscribers are there, how many messages wait?
DEPTH     number, subscribers, waiting   the answer
LOST      session of a connection        that connection broke; which of its messages had not reached a subscriber?
UNBEGUN   session, numbers               the answer: these had not, and have been dropped here
========  =============================  ====================================================================
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, get_args

import msgspec

from msgbus.drivers.base import Address, Kind, Message
from msgbus.drivers.toolkit.loop import Loop

PROTOCOL = 1
"""The version of this protocol. Nodes of another version are refused."""

HELLO, BYE, BYE_ACK, DATA, TAKEN, QUEUED, FULL, NOBODY, REACHED, SETTLED, REQUEUED, RELEASED = range(1, 13)
RECALL, RECALLED, READY, RESUME, INSPECT, DEPTH, LOST, UNBEGUN = range(13, 21)

REDELIVERED = 1
DURABLE = 2
LAZY_RECEIPT = 4
"""Flag of DATA: the sender waits for an answer rather than for the receipt, which may travel with the answer."""

NO_TTL = -1.0
OVERHEAD = 1024 * 1024
"""Bytes that a frame may have besides the body of one largest message: names, and other records."""

KNOWN_MAX = 1000
"""Bytes of the longest address that is kept, so that it need not be read again. A peer may send many on purpose."""

_HEAD = struct.Struct("<BI")
_DATA = struct.Struct("<BIQdBHHH")
_DATA_REST = struct.Struct("<QdBHHH")
_NUMBERED = struct.Struct("<BIQ")
_NUMBER = struct.Struct("<Q")
_DEPTH = struct.Struct("<BIQQQ")
_DEPTH_REST = struct.Struct("<QQQ")
_NODE = re.compile("[0-9A-Za-z]{1,64}")
_KINDS = frozenset(get_args(Kind))


_Unsigned = Annotated[int, msgspec.Meta(ge=0)]


class Malformed(ValueError):
    """A frame that no node would send; the text says what is wrong with it."""


class Hello(msgspec.Struct):
    """The node at one end of a connection.

    Attributes:
        protocol: `PROTOCOL`.
        node: its id.
        to: the id of the node that it has dialled; empty in the answer.
        largest: bytes of the largest message body that it accepts.
        session: the number of the connection, chosen by the side that dials and repeated in the answer.
    """

    protocol: int
    node: str
    to: str
    largest: _Unsigned
    session: _Unsigned


class Data(msgspec.Struct, eq=False):
    """A DATA record that was read.

    Attributes:
        seq: the message's number on its connection.
        flags: `REDELIVERED`, `DURABLE` and `LAZY_RECEIPT`.
        address: where it goes to.
        message: with the time that was left when it was read.
        link: the connection, which the receiver notes.
        redelivered: a subscriber may have had it before.
        arrived: when it was read, in seconds of `Loop.now`.
    """

    seq: int
    flags: int
    address: Address
    message: Message
    redelivered: bool
    arrived: float
    link: Any = None

    def aged(self) -> Data:
        """The same, with the time that is left now."""
        ttl, now = self.message.ttl, Loop.now()
        if ttl is not None:
            self.message = msgspec.structs.replace(self.message, ttl=ttl - (now - self.arrived))
        self.arrived = now
        return self


_decode_hello = msgspec.msgpack.Decoder(Hello).decode
_decode_names = msgspec.msgpack.Decoder(tuple[str, str, str, str, str]).decode


@lru_cache(10_000)
def write_address(address: Address) -> bytes:
    """An address as it is sent."""
    return msgspec.msgpack.encode(tuple(address))


def read_address(data: bytes) -> Address:
    """Read an address. Raises `Malformed`."""
    return _read_known(data) if len(data) <= KNOWN_MAX else _read(data)


def _read(data: bytes) -> Address:
    try:
        names = _decode_names(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Malformed(f"an invalid address: {exc}") from None
    if names[0] not in _KINDS:
        raise Malformed(f"an address of the unknown kind {names[0]!r}")
    return Address(*names)  # type: ignore[arg-type]  # checked above


_read_known = lru_cache(10_000)(_read)


def hello(content: Hello) -> bytes:
    """A HELLO record."""
    return record(HELLO, msgspec.msgpack.encode(content))


def read_hello(frame: bytes) -> Hello:
    """Read the HELLO with which a frame has to begin. Raises `Malformed`."""
    for kind, at, end in records(frame):
        if kind != HELLO:
            break
        try:
            found = _decode_hello(frame[at:end])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise Malformed(f"an invalid hello: {exc}") from None
        if not _NODE.fullmatch(found.node):
            raise Malformed("a hello with an invalid node id")
        return found
    raise Malformed("it does not begin with a hello")


def read_refusal(frame: bytes) -> str | None:
    """Why the other side refuses the connection, if the frame is a BYE that says so; else None."""
    is_refusal = frame[:1] == bytes([BYE]) and len(frame) > _HEAD.size
    return frame[_HEAD.size :].decode(errors="replace") if is_refusal else None


def record(kind: int, rest: bytes = b"") -> bytes:
    """A record of any kind."""
    return _HEAD.pack(kind, len(rest)) + rest


def numbers(kind: int, values: list[int]) -> bytes:
    """A record whose rest is numbers."""
    if len(values) == 1:
        return _NUMBERED.pack(kind, 8, values[0])
    return struct.pack(f"<BI{len(values)}Q", kind, 8 * len(values), *values)


def read_numbers(frame: bytes, at: int, end: int) -> tuple[int, ...]:
    """The numbers of such a record."""
    if end - at == 8:
        return _NUMBER.unpack_from(frame, at)
    if (end - at) % 8:
        raise Malformed("an incomplete number")
    return struct.unpack_from(f"<{(end - at) // 8}Q", frame, at)


def numbered(kind: int, number: int, address: bytes) -> bytes:
    """A record of a number and an address."""
    return _NUMBERED.pack(kind, 8 + len(address), number) + address


def read_numbered(frame: bytes, at: int, end: int) -> tuple[int, Address]:
    """The number and the address."""
    if end - at < 8:
        raise Malformed("a number is missing")
    return _NUMBER.unpack_from(frame, at)[0], read_address(frame[at + 8 : end])


def depth(number: int, consumers: int, waiting: int) -> bytes:
    """A DEPTH record."""
    return _DEPTH.pack(DEPTH, 24, number, consumers, waiting)


def read_depth(frame: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Its three numbers."""
    if end - at != 24:
        raise Malformed("a DEPTH record of the wrong size")
    return _DEPTH_REST.unpack_from(frame, at)


def data(seq: int, address: bytes, message: Message, ttl: float | None, flags: int) -> bytes:
    """A DATA record: number, seconds left, flags, three lengths; address, content type, id, body.

    Raises:
        ValueError: content type or id is longer than 65,535 bytes, or not valid text.
    """
    content_type, message_id, body = message.content_type.encode(), message.id.encode(), message.body
    if len(content_type) > 0xFFFF or len(message_id) > 0xFFFF or len(address) > 0xFFFF:
        raise ValueError("names, content type and id of a message have at most 65,535 bytes each")
    if message.durable:
        flags |= DURABLE
    lengths = (len(address), len(content_type), len(message_id))
    size = _DATA_REST.size + sum(lengths) + len(body)
    head = _DATA.pack(DATA, size, seq, NO_TTL if ttl is None else max(0.0, ttl), flags, *lengths)
    return b"".join((head, address, content_type, message_id, body))


def read_data(frame: bytes, at: int, end: int) -> Data:
    """Read a DATA record. Raises `Malformed`."""
    try:
        seq, ttl, flags, address_size, type_size, id_size = _DATA_REST.unpack_from(frame, at)
        at += _DATA_REST.size
        type_at = at + address_size
        id_at = type_at + type_size
        body_at = id_at + id_size
        if body_at > end:
            raise Malformed("fields that are longer than their record")
        message = Message(
            frame[body_at:end],
            frame[type_at:id_at].decode(),
            frame[id_at:body_at].decode(),
            # An invalid number means no limit; the core has a deadline of its own in the body.
            ttl if ttl >= 0.0 else None,
            bool(flags & DURABLE),
        )
        address = read_address(frame[at:type_at])
        return Data(seq, flags, address, message, bool(flags & REDELIVERED), Loop.now())
    except (struct.error, UnicodeDecodeError) as exc:
        raise Malformed(f"a message that cannot be read: {exc}") from None


def records(frame: bytes) -> Iterator[tuple[int, int, int]]:
    """The records of a frame: kind, start and end of the rest. Raises `Malformed` at the first that is wrong."""
    at, available = 0, len(frame)
    while at < available:
        if available - at < _HEAD.size:
            raise Malformed("it ends within a record")
        kind, size = _HEAD.unpack_from(frame, at)
        at += _HEAD.size
        end = at + size
        if end > available:
            raise Malformed("it ends within a record")
        yield kind, at, end
        at = end


def batches(pieces: list[bytes], limit: int) -> list[bytes]:
    """Join records to frames of at most `limit` bytes; a larger record is a frame of its own."""
    if len(pieces) < 2:
        return pieces
    if sum(map(len, pieces)) <= limit:
        return [b"".join(pieces)]
    found: list[list[bytes]] = []
    size = limit
    for piece in pieces:
        size += len(piece)
        if size > limit or not found:
            found.append([])
            size = len(piece)
        found[-1].append(piece)
    return [b"".join(batch) for batch in found]
