"""Streams: order, ends, errors, credit, and how each side notices the end of the other."""

from __future__ import annotations

import gc
import itertools
import time

import pytest

from msgbus import MessagingTimeout, RemoteError, SerializationError
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.waiting import until
from msgbus.message import FIRST_WINDOW

SOON = 8.0
"""Seconds within which a cancelled generator is closed: long before its server would miss the client."""


class StreamChecks:
    """Of `multicall`."""

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    @pytest.mark.parametrize("n", [0, 1, 99, 100, 101, 9000])
    def test_items_come_in_order(self, bus: Bus, n: int) -> None:
        """Each item arrives once, in the order of the generator, also beyond the credit window."""
        bus.serve()
        assert list(bus.client().multicall({}, "count", n=n)) == list(range(n))

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_none_is_an_item(self, bus: Bus) -> None:
        """A generator may yield None."""
        bus.serve()
        assert list(bus.client().multicall({}, "nothings", n=250)) == [None] * 250

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_items_come_as_they_are_yielded(self, bus: Bus) -> None:
        """The first items arrive while the generator still runs."""
        bus.serve()
        gate = bus.gate()
        stream = bus.client().multicall({}, "gated", key="k", n=3, gate=gate)
        assert list(itertools.islice(stream, 3)) == [0, 1, 2]
        assert bus.journal.entries("closed") == []
        bus.journal.open_gate(gate)
        assert list(stream) == [3]

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_an_exception_comes_after_the_values_before_it(self, bus: Bus) -> None:
        """An exception of a generator arrives after the items before it, and ends the stream."""
        bus.serve()
        for n in (0, 1, 250):
            stream = bus.client().multicall({}, "count_and_fail", n=n)
            assert list(itertools.islice(stream, n)) == list(range(n))
            with pytest.raises(ValueError, match="bad"):
                next(stream)
            assert list(stream) == []
        stream = bus.client().multicall({}, "count_and_fail", n=2, kind="trouble")
        with pytest.raises(RemoteError) as caught:
            list(stream)
        assert caught.value.exc_type == "Trouble"

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_an_item_that_cannot_be_encoded_ends_the_stream(self, bus: Bus) -> None:
        """Before an item that cannot be encoded, all items arrive; then comes an error, and the generator is closed."""
        bus.serve()
        stream = bus.client().multicall({}, "count_and_yield_object", n=5)
        assert list(itertools.islice(stream, 5)) == list(range(5))
        with pytest.raises(SerializationError):
            next(stream)

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_closing_the_iterator_closes_the_generator(self, bus: Bus) -> None:
        """Closing the iterator runs the ``finally`` of the generator; closing it again is no error."""
        bus.serve()
        stream = bus.client().multicall({}, "endless", key="k")
        assert list(itertools.islice(stream, 5)) == list(range(5))
        stream.close()
        stream.close()
        bus.saw("closed", "k", seconds=SOON)
        assert list(stream) == []

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_closing_at_once_closes_the_generator(self, bus: Bus) -> None:
        """The generator is closed even if the iterator is closed before the server has begun."""
        bus.serve()
        for n in range(10):
            with bus.client().multicall({}, "endless", key=f"k{n}"):
                pass
        for n in range(10):
            # A stream that was cancelled before it began may never run.
            if bus.journal.entries("yield", f"k{n}"):
                bus.saw("closed", f"k{n}", seconds=SOON)
        assert bus.client().call({}, "echo", value=1) == 1
        started = {entry.key for entry in bus.journal.entries("yield")}
        until(lambda: {entry.key for entry in bus.journal.entries("closed")} >= started, "the end of all", SOON)

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_dropping_the_iterator_closes_the_generator(self, bus: Bus) -> None:
        """If a ``for`` is left by ``break``, the generator is closed without ``close``."""
        bus.serve()
        for item in bus.client().multicall({}, "endless", key="k"):
            if item == 5:
                break
        gc.collect()
        bus.saw("closed", "k", seconds=SOON)

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_a_generator_waits_for_its_reader(self, bus: Bus) -> None:
        """A generator is ahead by at most the credit window, and then waits until items are read."""
        bus.serve()
        client = bus.client()
        with client.multicall({}, "endless", key="k") as stream:
            next(stream)
            until(lambda: len(bus.journal.entries("yield", "k")) >= FIRST_WINDOW, "a full window")
            for n in range(200):  # A generator that does not wait would be far ahead after these.
                assert client.call({}, "echo", value=n) == n
            assert len(bus.journal.entries("yield", "k")) <= FIRST_WINDOW + 1
            assert list(itertools.islice(stream, 250)) == list(range(1, 251))
        bus.saw("closed", "k", seconds=SOON)

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_large_items_travel(self, bus: Bus) -> None:
        """Items arrive even if only a few of them fit into a message, however far the generator is ahead."""
        bus.serve()
        size = bus.harness.largest // 8
        assert [len(item) for item in bus.client().multicall({}, "big_items", n=30, size=size)] == [size] * 30

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_two_streams_do_not_mix(self, bus: Bus) -> None:
        """Two streams of one client that are read in turn each yield their own items."""
        bus.serve("s1", "s2")
        streams = [bus.client().multicall({}, "count", n=300) for _ in range(4)]
        for n in range(300):
            assert [next(stream) for stream in streams] == [n] * 4
        assert [list(stream) for stream in streams] == [[]] * 4

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_the_timeout_is_for_each_item(self, bus: Bus) -> None:
        """If an item does not arrive in time, the stream ends, and the generator is closed."""
        bus.serve()
        gate = bus.gate()
        stream = bus.client(timeout=1.0).multicall({}, "gated", key="k", n=3, gate=gate)
        assert list(itertools.islice(stream, 3)) == [0, 1, 2]
        start = time.monotonic()
        with pytest.raises(MessagingTimeout):
            next(stream)
        assert 0.8 < time.monotonic() - start < 3, (
            f"the wait for the next item had to end after 1 s, and took {time.monotonic() - start:.1f}"
        )
        bus.journal.open_gate(gate)
        bus.saw("closed", "k", seconds=SOON)
        assert list(stream) == []

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_the_deadline_is_for_the_whole(self, bus: Bus) -> None:
        """At the deadline the stream ends, however fast the items arrive."""
        bus.serve()
        start = time.monotonic()
        stream = bus.client().prepare(deadline=1.5).multicall({}, "endless", key="k")
        with pytest.raises(MessagingTimeout):
            for _ in stream:
                pass
        assert 1.3 < time.monotonic() - start < 4, (
            f"the stream had to end after 1.5 s, and took {time.monotonic() - start:.1f}"
        )
        bus.saw("closed", "k", seconds=SOON)

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_a_stream_outlives_its_timeout(self, bus: Bus) -> None:
        """The timeout bounds the wait for each item, not the whole stream, which can last longer."""
        bus.serve()
        start = time.monotonic()
        with bus.client(timeout=0.5).multicall({}, "endless", key="k") as stream:
            count = 0
            while time.monotonic() - start < 1.5:
                assert next(stream) == count
                count += 1
        assert count > FIRST_WINDOW, f"only {count} items came: the client is to give the server credit for more"
        bus.saw("closed", "k", seconds=SOON)
