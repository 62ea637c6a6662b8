"""Faults of the bare driver in what the contract says at its edges. Its checks are run on each."""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any

import msgspec

from msgbus.drivers.base import Address, Message, Sent
from msgbus.drivers.fake import Bus, FakeDriver
from msgbus.drivers.fake import bus as bus_module
from msgbus.drivers.toolkit.futures import fail, finish
from msgbus.exceptions import CallCancelled, TransportUnavailable
from tests.mutants.tools import Mutants, collector, spoil

PROMISES: Mutants = {}
caught_by = collector(PROMISES)


@caught_by("a_message_fails_when_its_wait_ends")
def sends_late_what_has_failed() -> None:
    """What failed as not delivered, while the message system was away, is sent when it comes back."""

    def wait(old: Any, bus: Bus, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        if bus._up:
            old(bus, address, message, mandatory, sent)
            return

        def on_end(_: object) -> None:
            error = hidden.exception()
            if error is None:
                finish(sent, Sent())
            else:
                fail(sent, error)

        hidden: Future[Sent] = Future()
        hidden.add_done_callback(on_end)
        old(bus, address, msgspec.structs.replace(message, ttl=None, send_timeout=None), mandatory, hidden)
        if message.publish_within is not None:
            error = TransportUnavailable("a buffer has it", maybe_delivered=False)
            bus._loop.call_later(message.publish_within, lambda: fail(sent, error))

    spoil(Bus, "_wait_for_start", wait)


@caught_by("after_close_nothing_is_delivered", "reject_without_requeue_drops_it")
def delivers_once_after_close() -> None:
    """A subscription that was closed gets one message more."""

    def put(old: Any, bus: Bus, queues: Any, items: Any) -> None:
        for queue, item in zip(queues, items, strict=True):
            consumer = late.pop(id(queue), None)
            if consumer is not None:
                consumer.reader.put(bus_module.FakeDelivery(bus, consumer, item))
                consumer.reader.call()
        old(bus, queues, items)

    late: dict[int, Any] = {}

    def detach(old: Any, bus: Bus, consumer: Any, *, give_back: bool) -> None:
        old(bus, consumer, give_back=give_back)
        if give_back and consumer.at.kind == "topic":
            late[id(consumer.queue)] = consumer

    spoil(Bus, "detach", detach)
    spoil(Bus, "_put", put)


@caught_by("a_callback_keeps_nobody_waiting")
def holds_a_lock_while_it_calls() -> None:
    """While `on_delivery` runs, no other thread can send."""
    lock = threading.RLock()

    def init(old: Any, reader: Any, on_delivery: Any) -> None:
        def call(delivery: Any) -> None:
            with lock:
                on_delivery(delivery)

        old(reader, call)

    def send(old: Any, *args: Any, **kwargs: Any) -> Any:
        with lock:
            pass
        return old(*args, **kwargs)

    spoil(bus_module.Reader, "__init__", init)
    spoil(FakeDriver, "send", send)


@caught_by("a_message_fails_when_its_wait_ends")
def prefers_the_ttl_to_the_wait() -> None:
    """A message that has a ttl waits as long as that, whatever its wait says."""

    def send(old: Any, driver: Any, address: Address, message: Message, *, mandatory: bool) -> Any:
        if message.ttl is not None:
            message = msgspec.structs.replace(message, send_timeout=None)
        return old(driver, address, message, mandatory=mandatory)

    spoil(FakeDriver, "send", send)


@caught_by("a_short_wait_does_not_expire_a_stored_message")
def takes_the_wait_for_a_ttl() -> None:
    """A message is dropped when the time ends that it might have waited for the connection."""

    def init(old: Any, item: Any, message: Message) -> None:
        old(item, message)
        if message.publish_within is not None:
            item.expires = time.monotonic() + message.publish_within

    spoil(bus_module.Item, "__init__", init)


@caught_by("prefetch_holds_for_each_subscription")
def shares_prefetch_between_subscriptions() -> None:
    """What is open on one subscription counts for all others of its driver."""

    def next_consumer(_: Any, queue: Any) -> Any:
        for consumer in list(queue.consumers):
            if consumer.auto_accept or _open_of(consumer) < consumer.prefetch:
                queue.consumers.append(queue.consumers.pop(queue.consumers.index(consumer)))
                return consumer
        return None

    def _open_of(consumer: Any) -> int:
        # Of one subscription each address has its own count, as is right.
        others = [each for each in opened if each.owner is consumer.owner and each.reader is not consumer.reader]
        return len(consumer.unsettled) + sum(len(each.unsettled) for each in others)

    class Owned(bus_module.Consumer):
        owner: Any

    opened: list[Any] = []
    current: list[Any] = []

    def subscribe(old: Any, driver: Any, *args: Any, **kwargs: Any) -> Any:
        current.append(driver)
        try:
            return old(driver, *args, **kwargs)
        finally:
            current.pop()

    def make(*args: Any) -> Any:
        consumer = Owned(*args)
        consumer.owner = current[-1] if current else consumer
        opened.append(consumer)
        return consumer

    bus_module.Consumer = make  # type: ignore[assignment, misc]
    spoil(bus_module.Queue, "next_consumer", next_consumer)
    spoil(FakeDriver, "subscribe", subscribe)


@caught_by("a_message_may_be_sent_twice")
def drops_what_has_a_known_id() -> None:
    """A message with the id of an earlier one is taken and dropped."""
    seen: set[tuple[Address, str]] = set()

    def send(old: Any, bus: Bus, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        known = (address, message.id) in seen
        if bus._up and not bus._paused:  # else it waits, and is sent here again
            seen.add((address, message.id))
        if known:
            sent.set_result(Sent(1))
        else:
            old(bus, address, message, mandatory, sent)

    spoil(Bus, "send", send)


@caught_by("pools_get_what_is_for_the_topic_alone")
def gives_pools_what_is_for_a_server() -> None:
    """Pools of a topic get copies of what is sent to one of its servers."""

    def route(old: Any, bus: Bus, address: Address) -> Any:
        found = old(bus, address)
        if address.kind == "server" and found:
            found = found + [bus._queues[at] for at in bus._queues if at.kind == "pool" and at[1:3] == address[1:3]]
        return found

    spoil(Bus, "_route", route)


@caught_by("a_topic_and_its_servers_are_apart")
def gives_a_topic_to_its_servers() -> None:
    """What is sent to a topic that nobody consumes from goes to a server of it."""

    def route(old: Any, bus: Bus, address: Address) -> Any:
        found = old(bus, address)
        if not found and address.kind == "topic":
            found = [bus._queues[at] for at in bus._queues if at.kind == "server" and at[1:3] == address[1:3]][:1]
        return found

    spoil(Bus, "_route", route)


@caught_by("what_is_not_mandatory_may_reach_nobody")
def takes_all_for_mandatory() -> None:
    """What is sent to nobody fails, although it is not mandatory."""

    def send(old: Any, bus: Bus, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        old(bus, address, message, mandatory or address.kind in ("topic", "server"), sent)

    spoil(Bus, "send", send)


@caught_by(
    "up_since_begins_anew_with_each_connection",
    "sends_wait_while_it_is_away",
    "what_is_under_way_fails_in_a_forked_child",
)
def is_always_up() -> None:
    """It is said to be connected since it was made, whatever happens."""
    since = time.monotonic()
    FakeDriver.up_since = property(lambda _: since)  # type: ignore[assignment, method-assign]


@caught_by("a_message_arrives_as_it_was_sent", "close_gives_back_open_deliveries")
def hands_out_its_buffer() -> None:
    """The body of a delivery is no bytes, but a view of the driver's buffer."""

    def init(old: Any, delivery: Any, bus: Any, consumer: Any, item: Any) -> None:
        old(delivery, bus, consumer, item)
        message = delivery.message
        delivery.message = Message(bytearray(message.body), message.content_type, message.id, message.ttl)  # type: ignore[arg-type]

    spoil(bus_module.FakeDelivery, "__init__", init)


@caught_by("close_fails_waiting_messages")
def forgets_what_waits_when_it_is_closed() -> None:
    """What waits for the message system is never done when the driver is closed."""
    spoil(Bus, "fail_waiting", lambda old, bus, mine, error: None)


@caught_by("inspect_of_a_missing_address")
def makes_what_is_looked_at() -> None:
    """Inspecting an address creates it."""

    def depth(old: Any, bus: Bus, address: Address) -> Any:
        found = old(bus, address)
        if found is None:
            bus._queues[address] = bus_module.Queue()
        return found

    spoil(Bus, "depth", depth)


@caught_by("a_second_accept_returns_what_the_first_did")
def second_accept_says_that_it_is_too_late() -> None:
    """A second `accept` of a delivery returns False, although the first has counted."""
    seen: set[Any] = set()

    def settle(old: Any, bus: Bus, consumer: Any, delivery: Any, *, requeue: bool = False) -> Any:
        again = delivery in seen
        seen.add(delivery)
        return old(bus, consumer, delivery, requeue=requeue) and not again

    spoil(Bus, "_settle", settle)


@caught_by("a_second_accept_returns_what_the_first_did")
def accept_tells_of_the_present() -> None:
    """A second `accept` returns whether the connection works now, not whether the first call counted."""
    spoil(
        Bus, "_settle", lambda old, bus, consumer, *args, **more: old(bus, consumer, *args, **more) and _open(consumer)
    )


def _open(consumer: Any) -> bool:
    return consumer in consumer.queue.consumers


@caught_by("every_verb_of_a_closed_driver_says_so")
def subscribes_after_close() -> None:
    """A closed driver lets one subscribe, and open an inbox, as if it were open."""

    def open_(old: Any, driver: Any, *args: Any) -> Any:
        closed, driver._closed = driver._closed, False
        try:
            return old(driver, *args)
        finally:
            driver._closed = closed

    spoil(FakeDriver, "_open", open_)


@caught_by("every_verb_of_a_closed_driver_says_so")
def looks_after_close() -> None:
    """A closed driver inspects addresses."""

    def inspect(old: Any, driver: Any, address: Address) -> Any:
        closed, driver._closed = driver._closed, False
        try:
            return old(driver, address)
        finally:
            driver._closed = closed

    spoil(FakeDriver, "inspect", inspect)


@caught_by("every_verb_of_a_closed_driver_says_so")
def says_it_in_another_way() -> None:
    """Of a closed driver each verb says something else."""
    numbers = itertools.count()
    spoil(FakeDriver, "_was_closed", lambda _old, _driver: CallCancelled(f"closed, error {next(numbers)}"))


@caught_by("what_is_under_way_fails_in_a_forked_child")
def leaves_futures_open_in_a_child() -> None:
    """Of what waited when the process forked nobody in the child ever hears."""
    spoil(bus_module, "fail_inherited", lambda _old, _future: None)


@caught_by("what_is_under_way_fails_in_a_forked_child")
def loses_the_parents_futures_at_a_fork() -> None:
    """When the process forks, what waits in the parent fails too."""

    def forked() -> None:
        for bus in list(buses):
            for _, sent in list(bus._waiting):
                fail(sent, CallCancelled("the process forked"))

    def init(old: Any, bus: Bus) -> None:
        old(bus)
        buses.add(bus)

    buses: weakref.WeakSet[Bus] = weakref.WeakSet()
    spoil(Bus, "__init__", init)
    os.register_at_fork(after_in_parent=forked)
