"""msgbus.drivers.zmq.frames: what is written can be read, and what is not ours is refused."""

from __future__ import annotations

import random
import struct
import sys

import pytest

from msgbus.drivers.base import Address, Message
from msgbus.drivers.zmq import frames

TOPIC = Address("topic", "msgbus", "foo")


def read_all(frame: bytes) -> list[tuple[int, bytes]]:
    """The kinds and contents of its records."""
    return [(kind, frame[at:end]) for kind, at, end in frames.records(frame)]


@pytest.mark.parametrize("ttl", [None, 0.0, 0.25, 1e300])
@pytest.mark.parametrize("body", [b"", b"\x00\xff" * 1000])
def test_message_is_read_as_it_was_written(ttl: float | None, body: bytes) -> None:
    """Number, address, ttl, flags, content type, id and body survive, whatever is in them."""
    message = Message(body, "application/x-ü", "id 漢字", ttl, durable=True)
    frame = frames.data(7, frames.write_address(TOPIC), message, ttl, frames.REDELIVERED | frames.LAZY_RECEIPT)
    ((kind, at, end),) = frames.records(frame)
    data = frames.read_data(frame, at, end)
    assert kind == frames.DATA
    assert (data.seq, data.address, data.redelivered) == (7, TOPIC, True)
    assert data.message == message
    assert data.flags == frames.REDELIVERED | frames.LAZY_RECEIPT | frames.DURABLE


def test_ttl_that_has_run_out_is_read_as_zero() -> None:
    """Less than nothing is left as nothing, never as no limit."""
    frame = frames.data(1, frames.write_address(TOPIC), Message(b"", "", "", 1.0), -5.0, 0)
    ((_, at, end),) = frames.records(frame)
    assert frames.read_data(frame, at, end).message.ttl == 0.0


def test_too_long_content_type_or_id_is_refused() -> None:
    """A content type or id that does not fit into its length is an error of the sender."""
    for message in (Message(b"", "x" * 70_000, "id"), Message(b"", "text", "x" * 70_000)):
        with pytest.raises(ValueError, match="65,535"):
            frames.data(1, frames.write_address(TOPIC), message, None, 0)


@pytest.mark.parametrize(
    "address",
    [
        TOPIC,
        Address("server", "ü/", "a\x00b", "s 1"),
        Address("inbox", name="x.1"),
        Address("pool", "e", "t", name="p"),
    ],
)
def test_address_is_read_as_it_was_written(address: Address) -> None:
    """An address is read as it was written."""
    assert frames.read_address(frames.write_address(address)) == address


@pytest.mark.parametrize(
    "data", [b"", b"\xc0", b"\x95\xa1x\xa0\xa0\xa0\xa0", b"\x95\xa5topic\x01\xa0\xa0\xa0", b"\x91"]
)
def test_invalid_address_is_malformed(data: bytes) -> None:
    """Other msgpack, other types, and kinds that do not exist."""
    with pytest.raises(frames.Malformed):
        frames.read_address(data)


def test_long_addresses_are_read_and_not_kept() -> None:
    """However many of them a peer sends, they take no memory."""
    long = Address("topic", "msgbus", "x" * 100_000)
    data = frames.write_address(long)
    before = sys.getrefcount(data)
    assert frames.read_address(data) == long
    assert sys.getrefcount(data) == before


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_numbers_are_read_as_they_were_written(count: int) -> None:
    """A record of numbers is read as it was written, whatever their count."""
    values = [2**64 - 1 - n for n in range(count)]
    frame = frames.numbers(frames.TAKEN, values)
    ((kind, at, end),) = frames.records(frame)
    assert kind == frames.TAKEN
    assert list(frames.read_numbers(frame, at, end)) == values


def test_incomplete_number_is_malformed() -> None:
    """A record of numbers that ends within one."""
    frame = frames.record(frames.TAKEN, b"x" * 12)
    with pytest.raises(frames.Malformed):
        frames.read_numbers(frame, 5, len(frame))
    with pytest.raises(frames.Malformed):
        frames.read_numbered(frames.record(frames.READY, b"1"), 5, 6)
    with pytest.raises(frames.Malformed):
        frames.read_depth(frames.record(frames.DEPTH, b"1"), 5, 6)


def test_several_records_in_a_frame_are_read_in_order() -> None:
    """They are read in their order, each whole."""
    frame = frames.record(frames.BYE, b"why") + frames.numbered(frames.READY, 1, b"abc") + frames.depth(1, 2, 3)
    kinds = [kind for kind, _ in read_all(frame)]
    assert kinds == [frames.BYE, frames.READY, frames.DEPTH]
    (_, at, end) = list(frames.records(frame))[2]
    assert frames.read_depth(frame, at, end) == (1, 2, 3)


def test_frame_that_does_not_begin_with_a_valid_hello_is_malformed() -> None:
    """It is read from the beginning of a frame, and nothing else passes for it."""
    hello = frames.Hello(1, "node", "other", 5, 2**64 - 1)
    assert frames.read_hello(frames.hello(hello) + frames.record(frames.BYE)) == hello
    nobody = frames.hello(frames.Hello(1, "../x", "", 5, 0))
    for frame in (
        b"",
        nobody,
        frames.record(frames.BYE),
        frames.record(frames.HELLO, b"\xc0"),
        frames.hello(frames.Hello(1, "node", "other", 5, -1)),
        frames.hello(frames.Hello(1, "node", "other", -1, 5)),
        frames.record(frames.HELLO),
        frames.record(frames.HELLO, b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"),
    ):
        with pytest.raises(frames.Malformed):
            frames.read_hello(frame)


def test_random_bytes_raise_nothing_but_malformed() -> None:
    """Random bytes, and a message with any byte changed or cut off anywhere, are read or refused."""
    dice = random.Random(1)
    valid = frames.data(1, frames.write_address(TOPIC), Message(b"body", "text/plain", "id", 5.0), 5.0, 0)
    samples = [dice.randbytes(dice.randrange(80)) for _ in range(3000)]
    samples += [valid[:at] for at in range(len(valid))]
    for at in range(len(valid)):
        broken = bytearray(valid)
        broken[at] = dice.randrange(256)
        samples.append(bytes(broken))
    refused = 0
    for sample in samples:
        try:
            for kind, at, end in frames.records(sample):
                if kind == frames.DATA:
                    frames.read_data(sample, at, end)
                elif kind == frames.HELLO:
                    frames.read_hello(sample)
        except frames.Malformed:
            refused += 1
    assert refused > 100


def test_ttl_that_is_not_a_number_means_no_limit() -> None:
    """An invalid number from a peer does not become a time limit."""
    frame = bytearray(frames.data(1, frames.write_address(TOPIC), Message(b"", "", ""), 1.0, 0))
    frame[13:21] = struct.pack("<d", float("nan"))
    assert frames.read_data(bytes(frame), 5, len(frame)).message.ttl is None


def test_batches_have_at_most_the_limit() -> None:
    """Records are joined up to the limit; a larger one goes alone; nothing is lost or changes its place."""
    pieces = [b"a" * 4, b"b" * 4, b"c" * 4, b"d" * 50, b"e"]
    assert list(frames.batches(pieces, 10)) == [b"a" * 4 + b"b" * 4, b"c" * 4, b"d" * 50, b"e"]
    assert list(frames.batches([], 10)) == []
