from __future__ import annotations

from typing import Any

import msgspec
import pytest

from msgbus import MessageDeliveryFailure, MessagingTimeout, ServerLost
from msgbus.drivers.base import Address
from msgbus.failures import serialize_failure
from msgbus.message import LOST_AFTER, Reply, window_after
from msgbus.pending_stream import PendingStream
from tests.core.waiting_calls import NOW, check, options, started


def stream(
    window: int = 4,
    window_bytes: int = 10**6,
    idle_timeout: float = 60.0,
    end: float = float("inf"),
    **changes: Any,
) -> PendingStream:
    """A stream that waits."""
    return PendingStream(
        "c",
        "count",
        Address("topic", "x", "foo"),
        window=window,
        window_bytes=window_bytes,
        idle_timeout=idle_timeout,
        end=end,
        **options(**changes),
    )


def items(*values: Any, seq: int = 0, server: str = "h1", ending: bool = False, failure: str | None = None) -> Reply:
    """A frame of items."""
    kind: Any = "reply" if ending else "items"
    return Reply("c", kind, extended=True, server=server, items=list(values), seq=seq, ending=ending, failure=failure)


def test_stream_items_in_order() -> None:
    """Items come out in their order, and the frame that ends the stream may hold the last of them."""
    pending = stream()
    pending.on_reply(started(), NOW)
    pending.on_reply(items("a", "b"), NOW)
    pending.on_reply(items("c", seq=2, ending=True), NOW)
    assert pending.ended
    assert pending.error is None
    assert [pending.take()[0] for _ in range(3)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "again",
    [items("a", "b"), items("a"), items("b", "c", seq=1), items("a", "b", "c"), items(seq=1)],
    ids=["same", "shorter", "overlapping", "longer", "empty"],
)
def test_stream_frames_that_come_twice(again: Reply) -> None:
    """A frame that was sent again after an unknown outcome adds only what had not come yet."""
    pending = stream()
    pending.on_reply(started(), NOW)
    pending.on_reply(items("a", "b"), NOW)
    pending.on_reply(again, NOW)
    pending.on_reply(items("c", seq=2), NOW)
    pending.on_reply(items("d", seq=3, ending=True), NOW)
    assert list(pending.items) == ["a", "b", "c", "d"]
    assert pending.ended
    assert pending.error is None


def test_stream_ending_that_comes_twice() -> None:
    """The last frame counts once."""
    pending = stream()
    for _ in range(2):
        pending.on_reply(items("a", ending=True), NOW)
    assert list(pending.items) == ["a"]


@pytest.mark.parametrize("ending", [False, True])
def test_stream_with_a_gap(ending: bool) -> None:
    """Items that got lost end the stream with an error that says which, after the items before them."""
    pending = stream()
    pending.on_reply(started(), NOW)
    pending.on_reply(items("a"), NOW)
    pending.on_reply(items("x", seq=3, ending=ending), NOW)
    assert list(pending.items) == ["a"]
    assert pending.ended
    assert type(pending.error) is MessageDeliveryFailure
    assert "items 1 to 2" in str(pending.error)


def test_stream_that_fails_midway() -> None:
    """An exception of the remote generator comes after the items before it."""
    pending = stream()
    pending.on_reply(started(), NOW)
    pending.on_reply(items("a", ending=True, failure=serialize_failure(KeyError("x"))), NOW)
    assert list(pending.items) == ["a"]
    assert type(pending.error) is KeyError


def test_stream_of_a_stock_server() -> None:
    """A stock server's plain answer is a stream of one item; its failure ends the stream."""
    pending = stream()
    pending.on_reply(Reply("c", result=5, ending=True), NOW)
    assert list(pending.items) == [5]
    assert pending.ended
    failed = stream()
    failed.on_reply(Reply("c", failure=serialize_failure(ValueError("x")), ending=True), NOW)
    assert not failed.items
    assert type(failed.error) is ValueError


def test_stream_is_never_mixed_from_two_servers() -> None:
    """Where a repeated request made two servers begin, only the items of the one that the stream is bound to count."""
    pending = stream(repeatable=True)
    pending.on_reply(started("h1"), NOW)
    pending.on_reply(items("a1"), NOW)
    pending.on_reply(started("h2"), NOW)
    pending.on_reply(items("a2", "b2", server="h2"), NOW)
    pending.on_reply(items("c2", seq=2, server="h2", ending=True), NOW)
    pending.on_reply(items("b1", seq=1, ending=True), NOW)
    assert list(pending.items) == ["a1", "b1"]
    assert pending.ended
    assert pending.error is None
    assert pending.orphans == ["inbox-h2"]


def test_items_are_a_sign_of_life() -> None:
    """A server that sends items has no need of keepalives: it is lost only once nothing comes any more."""
    pending = stream()
    pending.on_reply(started("h1"), NOW)
    for number in range(3):
        assert check(pending, NOW + number * (LOST_AFTER - 1)) is None
        pending.on_reply(items("a", seq=number), NOW + number * (LOST_AFTER - 1))
    last = NOW + 2 * (LOST_AFTER - 1)
    assert check(pending, last + LOST_AFTER - 0.1) is None
    assert type(check(pending, last + LOST_AFTER)) is ServerLost


def test_credit_is_due_for_each_half_of_the_window() -> None:
    """Credit is sent whenever half of the window has been taken: not every item costs a frame."""
    pending = stream(window=4)
    pending.on_reply(started(), NOW)
    pending.on_reply(items(*range(4)), NOW)
    assert [pending.take() for _ in range(4)] == [(0, False), (1, True), (2, False), (3, True)]
    assert pending.taken == 4


def test_credit_is_due_for_half_of_the_bytes() -> None:
    """Large items are credited before many were taken: at the end of the frame that completes half of the bytes."""
    pending = stream(window=100, window_bytes=1000)
    pending.on_reply(started(), NOW)
    for seq, size in ((0, 300), (2, 200), (4, 499), (6, 5000)):
        pending.on_reply(msgspec.structs.replace(items("a", "b", seq=seq), size=size), NOW)
    assert [pending.take()[1] for _ in range(8)] == [False, False, False, True, False, False, False, True]


def test_frames_without_new_items_are_not_kept() -> None:
    """A frame that comes again, or is empty, takes no memory, however often it comes."""
    pending = stream()
    pending.on_reply(started(), NOW)
    for _ in range(100):
        pending.on_reply(items("a"), NOW)
        pending.on_reply(items(seq=1), NOW)
    assert list(pending.items) == ["a"]
    assert len(pending._frames) == 1


@pytest.mark.parametrize("window", [2, 4, 100, 2000])
def test_one_lost_credit_does_not_stop_a_stream(window: int) -> None:
    """Whichever credit is lost on its way, the next one is sent before the server has nothing more to send."""
    for lost in range(20):
        pending = stream(window=window, window_bytes=10**9)
        pending.on_reply(started(), NOW)
        sent = known = credits = 0
        while credits < 30:
            while sent < known + window_after(known, window):
                pending.on_reply(items(sent, seq=sent), NOW)
                sent += 1
            assert pending.items, f"the server waits, after {sent} items and the loss of credit {lost}"
            if pending.take()[1]:
                credits += 1
                if credits != lost:
                    known = pending.taken


def test_no_credit_is_due_after_the_end() -> None:
    """A stream that has ended waits for nothing."""
    pending = stream(window=2)
    pending.on_reply(items(*range(4), ending=True), NOW)
    assert [pending.take()[1] for _ in range(4)] == [False] * 4


def test_timeout_of_each_item() -> None:
    """The timeout of a stream counts from the moment at which an item is waited for, within the end of the whole."""
    pending = stream(idle_timeout=5, end=NOW + 12)
    pending.on_sent(None, NOW)
    pending.expect_item(NOW + 1)
    assert pending.next_check() == NOW + 6
    pending.expect_item(NOW + 8)
    assert pending.next_check() == NOW + 12
    assert type(check(pending, NOW + 12)) is MessagingTimeout


def test_a_stream_that_has_begun_is_never_started_again() -> None:
    """Even under at_least_once, the loss of a server that had begun a stream is ServerLost."""
    pending = stream(repeatable=True)
    pending.on_reply(started(), NOW)
    assert type(check(pending, NOW + LOST_AFTER)) is ServerLost
