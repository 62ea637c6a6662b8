"""The messages of AMQP 1.0 (OASIS, part 3, 3.2) in its encoding (part 1): the parts that the driver writes and reads.

A written message has a header, three properties and one data section. When reading, all other sections and fields are
skipped without a check of their content. The frames of a log-in are written and read here as well.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_TTL = 0xFFFFFFFF
"""Milliseconds; a message with a longer ttl is sent without one."""

_HEADER, _PROPERTIES, _DATA = 0x70, 0x73, 0x75

_NULL = b"\x40"

_u8 = struct.Struct(">B")
_u32 = struct.Struct(">I")
_u64 = struct.Struct(">Q")
_str8 = struct.Struct(">BB")
_var32 = struct.Struct(">BI")
_list32 = struct.Struct(">BBBBII")

_CONSTANT = {0x40: None, 0x41: True, 0x42: False, 0x43: 0, 0x44: 0}
"""Types that have only one value."""

_PLAIN = b"\x00Sp\xc0\x02\x01\x42"
_DURABLE = b"\x00Sp\xc0\x02\x01\x41"
_TTL = {
    False: b"\x00Sp\xc0\x08\x03\x42\x40\x70",
    True: b"\x00Sp\xc0\x08\x03\x41\x40\x70",
}
"""Headers up to the time to live: durable, no priority."""


class Received(NamedTuple):
    """A message that was read.

    Attributes:
        ttl: milliseconds that were left when it was sent here, or None.
        delivery_count: how often it was delivered before.
    """

    body: bytes
    content_type: str
    id: str
    ttl: int | None
    durable: bool
    delivery_count: int


def encode_string(text: str) -> bytes:
    """A string."""
    return _encode(0xA1, text.encode())


def encode_symbol(text: str) -> bytes:
    """A symbol, which is in ASCII."""
    return _encode(0xA3, text.encode("ascii", "backslashreplace"))


def encode_binary(data: bytes) -> bytes:
    """Bytes."""
    return _encode(0xA0, data)


def _encode(kind: int, data: bytes) -> bytes:
    if len(data) < 256:
        return _str8.pack(kind, len(data)) + data
    return _var32.pack(kind + 0x10, len(data)) + data


def encode_list(descriptor: int, fields: Sequence[bytes]) -> bytes:
    """A described list of fields that are encoded already."""
    data = b"".join(fields)
    return _list32.pack(0, 0x53, descriptor, 0xD0, len(data) + 4, len(fields)) + data


def decode_list(buffer: bytes) -> tuple[int, list[Any]]:
    """A described list: what it is, and its fields.

    Raises:
        ValueError: it is not one.
    """
    try:
        descriptor, at = _read_descriptor(buffer, 0)
        return descriptor, _read_list(buffer, at)[0]
    except (IndexError, struct.error, UnicodeDecodeError, RecursionError) as exc:
        raise ValueError(f"{exc!r}") from exc


def encode_message(to: bytes, id: bytes, content_type: bytes, body: bytes, ttl: int | None, durable: bool) -> bytes:
    """A message. All arguments but the body are encoded already; `ttl` is in milliseconds."""
    header = (_DURABLE if durable else _PLAIN) if ttl is None else _TTL[durable] + _u32.pack(ttl)
    properties = encode_list(_PROPERTIES, (id, _NULL, to, _NULL, _NULL, _NULL, content_type))
    size = len(body)
    data = b"\x00Su\xa0" + _u8.pack(size) if size < 256 else b"\x00Su\xb0" + _u32.pack(size)
    return b"".join((header, properties, data, body))


def decode_message(buffer: bytes | bytearray) -> Received:
    """Read a message.

    Raises:
        ValueError: it is not one.
    """
    header: list[Any] = []
    properties: list[Any] = []
    parts: list[bytes] = []
    at, end = 0, len(buffer)
    try:
        while at < end:
            section, at = _read_descriptor(buffer, at)
            if section == _DATA:
                value, at = _read(buffer, at)
                parts.append(value)
            elif section in (_HEADER, _PROPERTIES):
                fields, at = _read_list(buffer, at)
                if section == _HEADER:
                    header = fields
                else:
                    properties = fields
            else:
                at = _skip(buffer, at)
    except (IndexError, struct.error, UnicodeDecodeError, RecursionError) as exc:
        raise ValueError(f"no AMQP message: {exc!r}") from exc
    header += [None] * (5 - len(header))
    properties += [None] * (7 - len(properties))
    durable, _, ttl, _, count = header[:5]
    if at != end or not all(isinstance(part, bytes) for part in parts):
        raise ValueError("no AMQP message")
    return Received(
        parts[0] if len(parts) == 1 else b"".join(parts),
        _text(properties[6]),
        _text(properties[0]),
        ttl if isinstance(ttl, int) else None,
        durable is True,
        count if isinstance(count, int) else 0,
    )


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else str(value)


def _read_descriptor(buffer: bytes | bytearray, at: int) -> tuple[int, int]:
    if buffer[at] != 0:
        raise ValueError("no AMQP message: a section without a descriptor")
    kind = buffer[at + 1]
    if kind == 0x53:
        return buffer[at + 2], at + 3
    if kind == 0x80:
        return _u64.unpack_from(buffer, at + 2)[0], at + 10
    return -1, _skip(buffer, at + 1)


def _read_list(buffer: bytes | bytearray, at: int) -> tuple[list[Any], int]:
    kind = buffer[at]
    if kind == 0xC0:
        size, count, start = buffer[at + 1], buffer[at + 2], at + 3
        end = at + 2 + size
    elif kind == 0xD0:
        size, count = _u32.unpack_from(buffer, at + 1)[0], _u32.unpack_from(buffer, at + 5)[0]
        start, end = at + 9, at + 5 + size
    elif kind == 0x45:
        return [], at + 1
    else:
        raise ValueError("no AMQP message: a section that is no list")
    if end > len(buffer):
        raise ValueError("no AMQP message: it is cut short")
    values = []
    at = start
    for _ in range(count):
        if at >= end:
            raise ValueError("no AMQP message: a list that is too short")
        kind = buffer[at]
        if kind in _CONSTANT:  # Most fields of a message are: this saves a call.
            value, at = _CONSTANT[kind], at + 1
        else:
            value, at = _read(buffer, at)
        values.append(value)
    return values, end


def _read(buffer: bytes | bytearray, at: int) -> tuple[Any, int]:
    """A value, and where the next one begins. Values of types that do not matter here are read as None."""
    kind = buffer[at]
    if kind in (0xA1, 0xA3, 0xA0):
        start, size = at + 2, buffer[at + 1]
    elif kind in (0xB1, 0xB3, 0xB0):
        start, size = at + 5, _u32.unpack_from(buffer, at + 1)[0]
    else:
        return _read_small(buffer, at, kind)
    end = start + size
    if end > len(buffer):
        raise ValueError("no AMQP message: it is cut short")
    data = bytes(buffer[start:end])
    return (data if kind & 0xF == 0 else data.decode()), end


def _read_small(buffer: bytes | bytearray, at: int, kind: int) -> tuple[Any, int]:
    if kind in _CONSTANT:
        return _CONSTANT[kind], at + 1
    if kind == 0x56:
        return buffer[at + 1] != 0, at + 2
    if kind in (0x50, 0x52, 0x53):
        return buffer[at + 1], at + 2
    if kind == 0x70:
        return _u32.unpack_from(buffer, at + 1)[0], at + 5
    if kind == 0x80:
        return _u64.unpack_from(buffer, at + 1)[0], at + 9
    if kind in (0xE0, 0xF0):
        return _read_array(buffer, at), _skip(buffer, at)
    return None, _skip(buffer, at)


def _read_array(buffer: bytes | bytearray, at: int) -> list[str]:
    """An array of symbols; empty if it holds other types."""
    if buffer[at] == 0xE0:
        count, at = buffer[at + 2], at + 3
    else:
        count, at = _u32.unpack_from(buffer, at + 5)[0], at + 9
    kind, at = buffer[at], at + 1
    found = []
    for _ in range(count if kind in (0xA3, 0xB3) else 0):
        size, at = (buffer[at], at + 1) if kind == 0xA3 else (_u32.unpack_from(buffer, at)[0], at + 4)
        found.append(bytes(buffer[at : at + size]).decode())
        at += size
    return found


_FIXED = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}
"""How many bytes follow a constructor, by its first digit (part 1, 1.2)."""


def _skip(buffer: bytes | bytearray, at: int) -> int:
    """Where the value at `at` ends."""
    kind = buffer[at]
    if kind == 0:
        return _skip(buffer, _skip(buffer, at + 1))
    width = kind >> 4
    if width in _FIXED:
        end = at + 1 + _FIXED[width]
    elif width in (0xA, 0xC, 0xE):
        end = at + 2 + buffer[at + 1]
    elif width in (0xB, 0xD, 0xF):
        end = at + 5 + _u32.unpack_from(buffer, at + 1)[0]
    else:
        raise ValueError(f"no AMQP message: a type {kind:#x}")
    if end > len(buffer):
        raise ValueError("no AMQP message: it is cut short")
    return int(end)
