"""Ten faults that a message system may well have. The whole suite is run on each."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from msgbus.drivers.base import Address, Message
from msgbus.drivers.fake import Bus
from msgbus.drivers.fake import bus as bus_module
from msgbus.drivers.fake import driver as driver_module
from msgbus.drivers.toolkit.futures import done
from tests.mutants.tools import Mutants, collector, replace

TEN: Mutants = {}
caught_by = collector(TEN)
Put = Callable[[Any, Sequence[Any], Sequence[Any]], None]


@caught_by("no_message_is_lost")
def drops_every_100th_message() -> None:
    """Takes every 100th message, and never delivers it."""
    count = itertools.count(1)

    def make(put: Put) -> Put:
        return lambda bus, queues, items: None if next(count) % 100 == 0 else put(bus, queues, items)

    replace(Bus, "_put", make)


@caught_by("no_message_comes_twice")
def delivers_twice() -> None:
    """Puts each message into its queue twice."""
    replace(
        Bus, "_put", lambda put: lambda bus, queues, items: [put(bus, queues, items), put(bus, queues, _again(items))]
    )


def _again(items: Sequence[Any]) -> list[Any]:
    return [bus_module.Item(item.message) for item in items]


@caught_by(
    "one_senders_messages_keep_their_order",
    "messages_that_wait_keep_their_order",
    "stored_messages_keep_their_order",
    "an_inbox_keeps_the_order",
)
def loses_order() -> None:
    """Swaps each two messages that follow one another to an address."""
    held: dict[Any, Any] = {}
    lock = threading.Lock()

    def make(put: Put) -> Put:
        def let_go(bus: Any, queue: Any, item: Any) -> None:
            with lock:
                alone = held.get(queue) is item and held.pop(queue) is item
            if alone:
                put(bus, [queue], [item])

        def swap(bus: Any, queues: Sequence[Any], items: Sequence[Any]) -> None:
            for queue, item in zip(queues, items, strict=True):
                with lock:
                    first = held.pop(queue, None)
                    if first is None:
                        held[queue] = item
                if first is None:
                    bus._loop.call_later(0.002, functools.partial(let_go, bus, queue, item))
                else:
                    put(bus, [queue], [item])
                    put(bus, [queue], [first])

        return swap

    replace(Bus, "_put", make)


@caught_by("prefetch_bounds_open_deliveries")
def hands_over_more_than_prefetch() -> None:
    """Hands over one more than may be open."""

    def attach(attach: Any) -> Any:
        return lambda bus, address, reader, prefetch: attach(bus, address, reader, prefetch + 1)

    replace(Bus, "attach", attach)


@caught_by("a_fanout_goes_to_all")
def forgets_fanout_for_the_second_subscriber() -> None:
    """Of a fanout's subscribers the second one gets nothing."""

    def make(route: Any) -> Any:
        def first(bus: Any, address: Address) -> Any:
            found = route(bus, address)
            return found[:1] + found[2:] if address.kind == "fanout" else found

        return first

    replace(Bus, "_route", make)


@caught_by("a_closed_inbox_is_removed", "a_driver_leaves_nothing_behind")
def leaks_inboxes() -> None:
    """An inbox that is closed stays on the message system."""

    def make(close: Any) -> Any:
        def leak(opened: Any) -> Any:
            return done() if any(each.auto_accept for each in opened._consumers) else close(opened)

        return leak

    replace(driver_module.FakeSubscription, "close", make)


@caught_by("what_has_expired_is_not_delivered", "a_ttl_counts_seconds")
def ignores_ttl() -> None:
    """Delivers what has expired."""

    def make(init: Any) -> Any:
        def for_ever(item: Any, message: Message) -> None:
            init(item, message)
            item.expires = float("inf")

        return for_ever

    replace(bus_module.Item, "__init__", make)


@caught_by("close_gives_back_open_deliveries", "accept_returns_whether_the_connection_lives")
def acknowledges_too_early() -> None:
    """A message counts as settled as soon as it is delivered."""

    def make(init: Any) -> Any:
        def accepting(consumer: Any, *args: Any) -> None:
            init(consumer, *args)
            consumer.auto_accept = True

        return accepting

    replace(bus_module.Consumer, "__init__", make)


@caught_by("an_inbox_gets_what_is_sent_to_it")
def sends_replies_to_the_wrong_inbox() -> None:
    """What is for an inbox goes to the one that was opened last."""

    def make(route: Any) -> Any:
        def last(bus: Any, address: Address) -> Any:
            inboxes = [at for at in bus._queues if at.kind == "inbox"]
            return route(bus, inboxes[-1] if address in inboxes else address)

        return last

    replace(Bus, "_route", make)


@caught_by("mandatory_to_nobody_fails_at_once", "an_unread_notification_is_kept")
def never_raises_undeliverable() -> None:
    """A message to nobody is taken."""
    replace(
        Bus,
        "send",
        lambda send: lambda bus, address, message, mandatory, sent: send(bus, address, message, False, sent),
    )
