"""msgbus.drivers.qpid.codec: messages of AMQP 1.0, written and read."""

from __future__ import annotations

import struct

import pytest

from msgbus.drivers.qpid.codec import (
    Received,
    decode_list,
    decode_message,
    encode_binary,
    encode_list,
    encode_message,
    encode_string,
    encode_symbol,
)


def message(body: bytes = b"{}", ttl: int | None = None, durable: bool = False, id: str = "id-1") -> bytes:
    """A message as the driver writes it."""
    return encode_message(
        encode_string("msgbus/foo"), encode_string(id), encode_symbol("application/json"), body, ttl, durable
    )


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000])
@pytest.mark.parametrize("ttl", [None, 1, 0xFFFFFFFF])
@pytest.mark.parametrize("durable", [False, True])
def test_what_is_written_can_be_read(size: int, ttl: int | None, durable: bool) -> None:
    """Body, content type, id, time to live and durability come back as they were."""
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    read = decode_message(message(body, ttl, durable))
    assert read == Received(body, "application/json", "id-1", ttl, durable, 0)


@pytest.mark.parametrize("id", ["", "x" * 255, "x" * 256, "ä漢🐇"])
def test_strings_of_every_length(id: str) -> None:
    """Short strings have one byte of length, long ones four."""
    assert decode_message(message(id=id)).id == id


@pytest.mark.parametrize("ttl", [None, 1234])
@pytest.mark.parametrize("size", [3, 300])
def test_proton_reads_what_is_written(size: int, ttl: int | None) -> None:
    """Another implementation of AMQP reads the same."""
    proton = pytest.importorskip("proton", reason="the extra qpid is not installed")
    read = proton.Message()
    read.decode(message(b"x" * size, ttl, durable=True))
    assert (read.address, read.id, read.content_type) == ("msgbus/foo", "id-1", "application/json")
    assert bytes(read.body) == b"x" * size
    assert read.inferred is False or read.inferred is True
    assert (read.durable, read.ttl) == (True, (ttl or 0) / 1000)


def test_what_proton_writes_is_read() -> None:
    """All sections that a message may have, also those that the driver does not use."""
    proton = pytest.importorskip("proton", reason="the extra qpid is not installed")
    written = proton.Message(
        body=b"body",
        id="id-2",
        address="to",
        content_type="text/plain",
        reply_to="back",
        durable=True,
        ttl=12.5,
        delivery_count=3,
        priority=7,
        properties={"a": 1, "b": [1, "x", None, 2.5], "c": {"d": True}},
        annotations={"x-opt-1": "y"},
        instructions={"x-opt-2": 9},
        inferred=True,
    )
    assert decode_message(bytes(written.encode())) == Received(b"body", "text/plain", "id-2", 12500, True, 3)


@pytest.mark.parametrize("identifier", [7, "7"])
def test_other_identifiers_come_as_text(identifier: object) -> None:
    """AMQP allows numbers where msgbus writes strings."""
    proton = pytest.importorskip("proton", reason="the extra qpid is not installed")
    written = proton.Message(body=b"", id=identifier, inferred=True)
    assert decode_message(bytes(written.encode())).id == "7"


def test_a_body_in_several_sections_is_one() -> None:
    """Data may come in parts."""
    assert decode_message(message(b"one") + b"\x00Su\xa0\x03two").body == b"onetwo"


def test_a_message_without_any_section() -> None:
    """It is empty, which is for others to judge."""
    assert decode_message(b"") == Received(b"", "", "", None, False, 0)


@pytest.mark.parametrize(
    "section", [b"\x00Sw\xa1\x01x", b"\x00Sv\x45", b"\x00Sw\x40", b"\x00\x80\0\0\0\0\0\0\0\x77\x41"]
)
def test_a_body_of_another_kind_is_skipped(section: bytes) -> None:
    """Values and sequences are nothing that msgbus sends."""
    assert decode_message(section).body == b""


@pytest.mark.parametrize("end", range(1, 60))
def test_a_message_that_is_cut_short_is_an_error(end: int) -> None:
    """Wherever it ends, unless that is between two sections."""
    whole = message(b"x" * 10, 1234)
    try:
        read = decode_message(whole[:end])
    except ValueError:
        return
    assert read.body == b""


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 40,
        b"\x00" * 70_000,
        b"\x00Sp\xff",
        b"\x00Sp\xd0\xff\xff\xff\xff\x00\x00\x00\x01\x41",
        b"\x00Sp\xc0\x02\xff\x41",
        b"\x00Ss\xc0\x03\x01\xa1\x05",
        b"\x00Su\xb0\x7f\xff\xff\xff",
        b"\x00Ss\xc0\x05\x01\xa1\x02\xff\xfe",
        b"\x00Su\xa1\x01x",
        b"\x01\x02\x03",
    ],
    ids=range(10),
)
def test_garbage_is_an_error(garbage: bytes) -> None:
    """Bytes that are not a message are a ValueError, and nothing else."""
    with pytest.raises(ValueError, match="no AMQP message"):
        decode_message(garbage)


def test_lists() -> None:
    """A described list comes back with the fields that were put in, null for those that are of no known type."""
    fields = [
        encode_symbol("PLAIN"),
        encode_binary(b"\0u\0p"),
        encode_binary(b"x" * 300),
        encode_string("host"),
        b"\x40",
    ]
    assert decode_list(encode_list(0x41, fields)) == (0x41, ["PLAIN", b"\0u\0p", b"x" * 300, "host", None])


@pytest.mark.parametrize(
    ("encoded", "found"),
    [
        (b"\xe0\x0a\x02\xa3\x01A\x05PLAIN", ["A", "PLAIN"]),
        (b"\xf0\x00\x00\x00\x0f\x00\x00\x00\x02\xb3\x00\x00\x00\x01A\x00\x00\x00\x01B", ["A", "B"]),
        (b"\xe0\x04\x02\x50\x01\x02", []),
    ],
    ids=["short", "long", "of numbers"],
)
def test_arrays_of_symbols(encoded: bytes, found: list[str]) -> None:
    """The mechanisms of a log-in come so."""
    assert decode_list(encode_list(0x40, [encoded])) == (0x40, [found])


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_list_that_is_cut_short_is_an_error(cut: int) -> None:
    """It is no list then."""
    whole = encode_list(0x41, [encode_symbol("PLAIN"), struct.pack(">B", 0x40)])
    with pytest.raises(ValueError, match=r"AMQP|rror"):
        decode_list(whole[:-cut])
