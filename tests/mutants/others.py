"""Faults of the bare driver. Its checks are run on each."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from msgbus.drivers.base import Address, Capability, Message, QueueInfo, Sent
from msgbus.drivers.fake import Bus, FakeDriver
from msgbus.drivers.fake import bus as bus_module
from msgbus.drivers.fake import driver as driver_module
from msgbus.drivers.toolkit.futures import done
from msgbus.exceptions import TransportUnavailable
from tests.mutants.tools import Mutants, collector, spoil

OTHERS: Mutants = {}
caught_by = collector(OTHERS)


def _done(sent: Future[Sent]) -> Future[Sent]:
    """A future that is done in any case."""
    if sent.done() and sent.exception() is not None:
        sent = Future()
        sent.set_result(Sent(0))
    return sent


@caught_by(
    "mandatory_to_nobody_fails_at_once", "too_large_is_refused_before_it_is_sent", "nothing_can_be_sent_after_close"
)
def swallows_errors_of_send() -> None:
    """A message that cannot be sent is reported as sent."""
    spoil(FakeDriver, "send", lambda send, *args, **kwargs: _done(send(*args, **kwargs)))


@caught_by("send_does_not_block")
def blocks_in_send() -> None:
    """`send` takes a twentieth of a second."""

    def send(old: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return old(*args, **kwargs)

    spoil(FakeDriver, "send", send)


@caught_by("calls_of_a_subscription_never_overlap", "an_inbox_takes_without_limit")
def calls_on_delivery_concurrently() -> None:
    """Two threads may be in `on_delivery` at a time."""

    def call(_: Any, reader: Any) -> None:
        while reader._waiting:
            try:
                hand_over = reader._waiting.popleft()
            except IndexError:
                return
            hand_over()

    spoil(bus_module.Reader, "call", call)


def _change_delivery(change: Callable[[Any, Any], None]) -> None:
    """Have each delivery changed when it is made; `change` gets it and its item."""

    def init(old: Any, delivery: Any, bus: Any, consumer: Any, item: Any) -> None:
        old(delivery, bus, consumer, item)
        change(delivery, item)

    spoil(bus_module.FakeDelivery, "__init__", init)


@caught_by("what_is_given_back_is_marked_as_redelivered", "reject_with_requeue_delivers_it_again")
def loses_redelivered() -> None:
    """Redelivered messages are not marked."""
    _change_delivery(lambda delivery, item: setattr(delivery, "redelivered", False))


@caught_by("a_first_delivery_is_not_marked_as_redelivered")
def marks_all_as_redelivered() -> None:
    """Messages are marked as redelivered at their first delivery."""
    _change_delivery(lambda delivery, item: setattr(delivery, "redelivered", True))


@caught_by("what_is_given_back_is_marked_as_redelivered", "reject_with_requeue_delivers_it_again")
def counts_no_attempts() -> None:
    """Every attempt is the first."""
    _change_delivery(lambda delivery, item: setattr(delivery, "attempts", 0))


@caught_by("inspect_counts_consumers", "inspect_counts_what_waits")
def inspect_lies() -> None:
    """`inspect` always reports one consumer."""
    spoil(Bus, "depth", lambda depth, *args: depth(*args) and QueueInfo(1, 0))


@caught_by("reject_with_requeue_delivers_it_again")
def requeue_drops() -> None:
    """What is given back is dropped."""
    spoil(bus_module.FakeDelivery, "reject", lambda reject, delivery, requeue: reject(delivery, False))


@caught_by("reject_without_requeue_drops_it")
def reject_always_requeues() -> None:
    """What is dropped comes again."""
    spoil(bus_module.FakeDelivery, "reject", lambda reject, delivery, requeue: reject(delivery, True))


@caught_by("close_gives_back_open_deliveries")
def close_loses_what_is_open() -> None:
    """Unsettled messages of a closed subscription are lost."""

    def detach(old: Any, bus: Any, consumer: Any, *, give_back: bool) -> None:
        if give_back:
            consumer.unsettled.clear()
        old(bus, consumer, give_back=give_back)

    spoil(Bus, "detach", detach)


@caught_by("ready_means_that_messages_arrive")
def never_gets_ready() -> None:
    """Subscriptions work, and do not say so."""

    def subscribe(old: Any, driver: Any, *args: Any, **kwargs: Any) -> Any:
        subscription = old(driver, *args, **kwargs)
        subscription.ready = Future()
        return subscription

    spoil(FakeDriver, "subscribe", subscribe)


@caught_by("ready_means_that_messages_arrive")
def is_ready_too_early() -> None:
    """A subscription is ready a moment before it works."""

    def subscribe(old: Any, driver: Any, addresses: Any, on_delivery: Any, *, prefetch: int) -> Any:
        found = old(driver, [], on_delivery, prefetch=prefetch)

        def attach() -> None:
            found._consumers.extend(driver.bus.attach(address, found._reader, prefetch) for address in addresses)

        driver.bus._loop.call_later(0.1, attach)
        return found

    spoil(FakeDriver, "subscribe", subscribe)


@caught_by("mandatory_to_nobody_fails_at_once")
def ignores_mandatory_for_servers() -> None:
    """A message to one server that is not there is taken."""
    spoil(
        Bus,
        "send",
        lambda send, bus, address, message, mandatory, sent: send(
            bus, address, message, mandatory and address.kind != "server", sent
        ),
    )


@caught_by("exchanges_and_topics_are_apart", "names_that_differ_are_different_addresses")
def ignores_the_exchange() -> None:
    """A topic is the same in every exchange."""
    spoil(Bus, "_route", lambda route, bus, address: route(bus, address._replace(exchange="")))

    def attach(old: Any, bus: Any, address: Address, reader: Any, prefetch: float) -> Any:
        consumer = old(bus, address._replace(exchange=""), reader, prefetch)
        consumer.address = address
        return consumer

    spoil(Bus, "attach", attach)
    spoil(Bus, "depth", lambda depth, bus, address: depth(bus, address._replace(exchange="")))


@caught_by("each_pool_gets_a_copy")
def pools_share_one_copy() -> None:
    """All pools of a topic are one."""

    def attach(old: Any, bus: Any, address: Address, reader: Any, prefetch: float) -> Any:
        consumer = old(bus, address._replace(name="") if address.kind == "pool" else address, reader, prefetch)
        consumer.address = address
        return consumer

    spoil(Bus, "attach", attach)
    spoil(Bus, "depth", lambda depth, bus, at: depth(bus, at._replace(name="") if at.kind == "pool" else at))


def _change_message(**change: Any) -> None:
    def init(old: Any, item: Any, message: Message) -> None:
        old(item, msgspec.structs.replace(message, **{name: make(message) for name, make in change.items()}))

    spoil(bus_module.Item, "__init__", init)


@caught_by("a_message_arrives_as_it_was_sent")
def loses_the_content_type() -> None:
    """The content type does not travel."""
    _change_message(content_type=lambda _: "application/octet-stream")


@caught_by("a_message_arrives_as_it_was_sent", "the_largest_message_arrives")
def cuts_long_bodies_off() -> None:
    """A body ends after 64 KiB."""
    _change_message(body=lambda message: message.body[: 1 << 16])


@caught_by("a_message_arrives_as_it_was_sent")
def drops_empty_messages() -> None:
    """A message without a body is taken and dropped."""
    spoil(
        Bus,
        "_put",
        lambda put, bus, queues, items: put(bus, queues, items) if items and items[0].message.body else None,
    )


@caught_by("close_gives_back_open_deliveries")
def changes_the_id_of_what_comes_again() -> None:
    """A message that is given back comes under another id."""

    def change(delivery: Any, item: Any) -> None:
        if item.redelivered:
            delivery.message = msgspec.structs.replace(delivery.message, id=f"{time.monotonic_ns()}")

    _change_delivery(change)


@caught_by("a_ttl_counts_seconds", "a_short_wait_does_not_expire_a_stored_message")
def takes_ttl_for_milliseconds() -> None:
    """A message lives a thousandth of its time."""

    def init(old: Any, item: Any, message: Message) -> None:
        old(item, message)
        if message.ttl is not None:
            item.expires = time.monotonic() + message.ttl / 1000

    spoil(bus_module.Item, "__init__", init)


@caught_by("subscriptions_and_inboxes_come_back", "an_inbox_keeps_what_comes_during_a_cut")
def changes_inboxes_at_a_reconnect() -> None:
    """After a cut an inbox is reached by another name."""

    def cut(old: Any, bus: Any) -> None:
        old(bus)
        for address in [address for address in bus._queues if address.kind == "inbox"]:
            queue = bus._queues[address._replace(name=f"{address.name}-2")] = bus._queues.pop(address)
            for consumer in queue.consumers:
                consumer.at = address._replace(name=f"{address.name}-2")

    spoil(Bus, "cut", cut)


@caught_by("prefetch_holds_for_each_address")
def shares_prefetch_between_addresses() -> None:
    """What is open on one address counts for the others of its subscription."""

    def next_consumer(_: Any, queue: Any) -> Any:
        for consumer in queue.consumers:
            taken = sum(len(other.unsettled) for other in opened if other.reader is consumer.reader)
            if taken < consumer.prefetch:
                queue.consumers.append(queue.consumers.pop(queue.consumers.index(consumer)))
                return consumer
        return None

    opened: list[Any] = []
    spoil(bus_module.Queue, "next_consumer", next_consumer)

    def attach(old: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(old(*args, **kwargs))
        return opened[-1]

    spoil(Bus, "attach", attach)


@caught_by("after_stop_nothing_is_delivered")
def goes_on_after_stop() -> None:
    """`stop` changes nothing."""
    spoil(driver_module.FakeSubscription, "stop", lambda stop, self: done())


@caught_by(
    "a_message_fails_when_its_wait_ends",
    "sends_wait_while_it_is_away",
    "what_is_under_way_fails_in_a_forked_child",
)
def says_maybe_of_what_was_never_sent() -> None:
    """A message that waited until its end is reported as perhaps delivered."""

    def fail(old: Any, future: Future[Any], error: Exception) -> None:
        if isinstance(error, TransportUnavailable):
            error = TransportUnavailable(str(error), maybe_delivered=True)
        old(future, error)

    spoil(bus_module, "fail", fail)


@caught_by("mandatory_to_nobody_fails_at_once", "too_large_is_refused_before_it_is_sent")
def lets_foreign_exceptions_out() -> None:
    """Its errors are those of a library."""

    def send(old: Any, *args: Any, **kwargs: Any) -> Future[Sent]:
        sent: Future[Sent] = old(*args, **kwargs)
        if not sent.done() or sent.exception() is None or "closed" in str(sent.exception()):
            return sent
        foreign: Future[Sent] = Future()
        foreign.set_exception(ValueError("of a library's own"))
        return foreign

    spoil(FakeDriver, "send", send)


@caught_by("a_forked_child_starts_clean")
def shares_state_with_its_child() -> None:
    """A forked child has its parent's subscriptions."""
    spoil(Bus, "_forget", lambda _old, _bus: None)


@caught_by("sends_wait_while_it_is_away", "a_message_fails_when_its_wait_ends")
def repeats_after_an_outage() -> None:
    """What waited goes out twice."""

    def start(old: Any, bus: Any) -> None:
        waiting = list(bus._waiting)
        old(bus)
        for send, sent in waiting:
            sent.__init__()
            send()

    spoil(Bus, "start", start)


@caught_by("sends_wait_while_it_is_away")
def forgets_what_waits() -> None:
    """What is sent while the message system is away is lost."""

    def start(old: Any, bus: Any) -> None:
        for _, sent in bus._waiting:
            if not sent.done():
                sent.set_result(Sent(1))
        bus._waiting.clear()
        old(bus)

    spoil(Bus, "start", start)


@caught_by("sends_that_waited_keep_their_order")
def reverses_what_waits() -> None:
    """What waited for the message system goes out last in, first out."""
    spoil(Bus, "start", lambda start, bus: (bus._waiting.reverse(), start(bus)))


@caught_by("cut_connections_repeat_nothing", "sends_wait_while_it_is_away")
def repeats_after_a_cut() -> None:
    """After a cut the last messages go out again."""
    last: list[Any] = []

    def send(old: Any, driver: Any, address: Address, message: Message, **more: Any) -> Future[Sent]:
        last[:] = [*last[-4:], (driver, address, message, more)]
        sent: Future[Sent] = old(driver, address, message, **more)
        return sent

    def cut(old: Any, bus: Any) -> None:
        old(bus)
        for driver, address, message, _ in list(last):
            FakeDriver.send(driver, address, message, mandatory=False)

    spoil(FakeDriver, "send", send)
    spoil(Bus, "cut", cut)


@caught_by("dead_letters_are_stored", "inspect_counts_what_waits")
def loses_dead_letters() -> None:
    """A dead letter is kept only where somebody listens."""

    def route(old: Any, bus: Any, address: Address) -> Any:
        return old(bus, address) if address.kind != "dead" or address in bus._queues else []

    spoil(Bus, "_route", route)


@caught_by("accept_returns_whether_the_connection_lives", "unaccepted_deliveries_are_redelivered_after_a_cut")
def accept_always_says_true() -> None:
    """`accept` does not report that it came too late."""
    spoil(bus_module.FakeDelivery, "accept", lambda accept, delivery: accept(delivery) or True)


@caught_by(
    "store_is_declared_or_refused",
    "requeue_is_declared_or_refused",
    "inspect_is_declared_or_refused",
    "a_first_delivery_is_not_marked_as_redelivered",
)
def declares_nothing() -> None:
    """It keeps what it does not declare."""
    FakeDriver.capabilities = frozenset()


@caught_by("expires_is_declared_where_it_works")
def does_not_declare_that_messages_expire() -> None:
    """It drops what has expired, and does not declare it."""
    FakeDriver.capabilities -= {Capability.EXPIRES}


@caught_by("a_first_delivery_is_not_marked_as_redelivered", "what_is_given_back_is_marked_as_redelivered")
def declares_counts_and_does_not_count() -> None:
    """The capability ATTEMPT_COUNT is declared, and attempts are None."""
    _change_delivery(lambda delivery, item: setattr(delivery, "attempts", None))


@caught_by("a_driver_leaves_nothing_behind")
def keeps_fanout_queues() -> None:
    """The queue of a fanout stays when its owner has closed it."""

    def detach(old: Any, bus: Any, consumer: Any, *, give_back: bool) -> None:
        kept = bus._queues.get(consumer.at)
        old(bus, consumer, give_back=give_back)
        if consumer.at.kind == "fanout" and kept is not None:
            bus._queues[consumer.at] = kept

    spoil(Bus, "detach", detach)


@caught_by(
    "closing_a_driver_gives_back_open_deliveries",
    "accept_returns_whether_the_connection_lives",
    "a_driver_leaves_nothing_behind",
)
def leaves_subscriptions_open() -> None:
    """A closed driver goes on consuming."""
    spoil(FakeDriver, "close", lambda close, driver: (driver._opened.clear(), close(driver)))


@caught_by("nothing_can_be_sent_after_close")
def sends_after_close() -> None:
    """A closed driver goes on sending."""

    def close(old: Any, driver: Any) -> None:
        old(driver)
        driver._closed = False

    spoil(FakeDriver, "close", close)


@caught_by("idle_subscribers_share_a_topic")
def prefers_one_subscriber() -> None:
    """The first subscriber gets all for which it has room."""

    def from_the_first(old: Any, queue: Any) -> Any:
        queue.turn = 0
        return old(queue)

    spoil(bus_module.Queue, "next_consumer", from_the_first)


@caught_by("reached_counts_the_listeners", "fanout_to_nobody_is_no_error")
def lies_about_whom_it_reached() -> None:
    """A fanout is said to have reached one more than it has."""

    def send(old: Any, driver: Any, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        sent: Future[Sent] = old(driver, address, message, mandatory=mandatory)
        if sent.done() and sent.exception() is None and address.kind == "fanout":
            more: Future[Sent] = Future()
            more.set_result(Sent((sent.result().reached or 0) + 1))
            return more
        return sent

    spoil(FakeDriver, "send", send)


@caught_by(
    "messages_wait_for_one_who_is_away",
    "what_is_stored_waits_for_its_first_subscriber",
    "dead_letters_are_stored",
    "inspect_counts_what_waits",
)
def stores_for_nobody() -> None:
    """Messages are dropped while nobody listens, although STORAGE is declared."""

    def put(old: Any, bus: Any, queues: Sequence[Any], items: Sequence[Any]) -> None:
        pairs = [(queue, item) for queue, item in zip(queues, items, strict=True) if queue.consumers]
        old(bus, [queue for queue, _ in pairs], [item for _, item in pairs])

    spoil(Bus, "_put", put)


@caught_by("a_topic_goes_to_exactly_one")
def gives_a_topic_to_all() -> None:
    """Each subscriber of a topic gets each message."""

    def put(old: Any, bus: Any, queues: Sequence[Any], items: Sequence[Any]) -> None:
        old(bus, queues, items)
        for queue, item in zip(queues, items, strict=True):
            for consumer in queue.consumers[1:]:
                if consumer.address.kind == "topic":
                    consumer.reader.put(bus_module.FakeDelivery(bus, consumer, item))
                    consumer.reader.call()

    spoil(Bus, "_put", put)


@caught_by("a_driver_leaves_nothing_behind")
def leaks_threads() -> None:
    """Each inbox has a thread that does not end with it."""

    def init(old: Any, inbox: Any, *args: Any) -> None:
        old(inbox, *args)
        threading.Thread(target=time.sleep, args=(3600,), name="leaked", daemon=True).start()

    spoil(driver_module.FakeInbox, "__init__", init)


@caught_by("subscriptions_and_inboxes_come_back", "a_message_fails_when_its_wait_ends")
def forgets_subscriptions_after_a_cut() -> None:
    """After a cut nobody consumes any more, and nobody says so."""

    def cut(old: Any, bus: Any) -> None:
        old(bus)
        for queue in bus._queues.values():
            queue.consumers[:] = [consumer for consumer in queue.consumers if consumer.address.kind == "inbox"]

    spoil(Bus, "cut", cut)


@caught_by("unaccepted_deliveries_are_redelivered_after_a_cut")
def loses_what_was_open_at_a_cut() -> None:
    """Messages that were delivered and not accepted when the connection broke are never delivered again."""
    spoil(Bus, "cut", lambda cut, bus: [c.unsettled.clear() for q in bus._queues.values() for c in q.consumers])


@caught_by("send_does_not_block")
def never_confirms() -> None:
    """The future of every 50th message is never done, though it arrives."""
    count = itertools.count(1)

    def send(old: Any, driver: Any, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        sent: Future[Sent] = old(driver, address, message, mandatory=mandatory)
        return Future() if next(count) % 50 == 0 else sent

    spoil(FakeDriver, "send", send)


@caught_by("kinds_of_addresses_are_apart")
def names_the_topic_for_all() -> None:
    """A delivery for one server is said to be for the topic."""
    _change_delivery(
        lambda delivery, item: (
            setattr(delivery, "address", delivery.address._replace(kind="topic", server=""))
            if delivery.address.kind == "server"
            else None
        )
    )


@caught_by("a_message_arrives_as_it_was_sent")
def takes_bodies_for_text() -> None:
    """A body that is no UTF-8 comes with replacement characters."""
    _change_message(body=lambda message: message.body.decode(errors="replace").encode())


@caught_by("a_message_arrives_as_it_was_sent")
def makes_up_ids() -> None:
    """A message comes under an id of the message system's."""
    _change_message(id=lambda message: "x" + message.id)


@caught_by("too_large_is_refused_before_it_is_sent")
def takes_what_is_too_large() -> None:
    """The largest message is a thousand times as large as the option says."""

    def send(old: Any, driver: Any, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        if len(message.body) > 16 * 1024 * 1024:
            message = Message(message.body[:10], message.content_type, message.id, message.ttl, message.durable)
        return old(driver, address, message, mandatory=mandatory)  # type: ignore[no-any-return]

    spoil(FakeDriver, "send", send)


@caught_by("many_messages_wait_for_their_turn")
def keeps_a_hundred_messages() -> None:
    """Of what waits in a queue only the last hundred are kept."""

    def put(old: Any, bus: Any, queues: Sequence[Any], items: Sequence[Any]) -> None:
        old(bus, queues, items)
        for queue in queues:
            while len(queue.items) > 100:
                queue.items.popleft()

    spoil(Bus, "_put", put)


@caught_by("after_stop_nothing_is_delivered", "every_verb_of_a_closed_driver_says_so")
def never_stops() -> None:
    """`stop` works, and does not say so."""

    def stop(old: Any, subscription: Any) -> Future[None]:
        old(subscription)
        return Future()

    spoil(driver_module.FakeSubscription, "stop", stop)


@caught_by("closing_one_subscription_leaves_the_others")
def closes_all_of_an_address() -> None:
    """When one of a topic's subscribers closes, all are closed."""

    def detach(old: Any, bus: Any, consumer: Any, *, give_back: bool) -> None:
        others = [other for other in consumer.queue.consumers if other is not consumer]
        old(bus, consumer, give_back=give_back)
        if give_back and consumer.address.kind == "topic":
            for other in others:
                old(bus, other, give_back=True)

    spoil(Bus, "detach", detach)


@caught_by("a_server_address_goes_to_that_one", "names_that_differ_are_different_addresses")
def gives_what_is_for_a_server_to_any() -> None:
    """A message for one server goes to any server of the topic with room."""

    def route(old: Any, bus: Any, address: Address) -> Any:
        if address.kind == "server":
            found = [queue for at, queue in bus._queues.items() if at.kind == "server" and at[1:3] == address[1:3]]
            if found and old(bus, address):
                return [found[-1]]
        return old(bus, address)

    spoil(Bus, "_route", route)


@caught_by("kinds_of_addresses_are_apart")
def ignores_further_addresses() -> None:
    """Of the addresses of a subscription only the first is consumed from."""
    spoil(
        driver_module.FakeSubscription,
        "__init__",
        lambda init, self, driver, addresses, *args: init(self, driver, addresses[:1], *args),
    )


@caught_by("a_ttl_counts_seconds")
def tells_the_whole_time() -> None:
    """A delivery is said to have all of its message's time left."""

    def change(delivery: Any, item: Any) -> None:
        message = delivery.message
        delivery.message = Message(message.body, message.content_type, message.id, item.message.ttl, message.durable)

    _change_delivery(change)


def _wait_longer(seconds: float | None) -> None:
    """While it hangs, what is sent waits for so long at the least, or for ever."""

    def wait(old: Any, bus: Bus, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        if bus._paused:
            longer = None if seconds is None else max(seconds, message.publish_within or 0.0)
            message = msgspec.structs.replace(message, ttl=None, send_timeout=longer)
        old(bus, address, message, mandatory, sent)

    spoil(Bus, "_wait_for_start", wait)


@caught_by("a_message_without_an_answer_may_be_delivered", "a_short_wait_ends_in_time_while_it_hangs")
def waits_for_ever_while_it_hangs() -> None:
    """A message that has no answer is never given up."""
    _wait_longer(None)


@caught_by("a_short_wait_ends_in_time_while_it_hangs")
def looks_every_few_seconds() -> None:
    """A message that has no answer is given up when somebody looks for such, which is not often."""
    _wait_longer(3.5)


@caught_by("names_that_differ_are_different_addresses")
def folds_names() -> None:
    """Capitals, and dots and underscores, are taken for each other."""

    def fold(address: Address) -> Address:
        if address.kind == "inbox":
            return address
        return address._replace(topic=address.topic.lower().replace("_", "."))

    spoil(Bus, "_route", lambda old, bus, address: old(bus, fold(address)))
    spoil(
        Bus, "attach", lambda old, bus, address, *args, **kwargs: _as_subscribed(old, bus, address, fold, args, kwargs)
    )


def _as_subscribed(
    old: Any, bus: Bus, address: Address, fold: Callable[[Address], Address], args: Any, kwargs: Any
) -> Any:
    consumer = old(bus, fold(address), *args, **kwargs)
    consumer.address = address
    return consumer


@caught_by("slow_a_pause_repeats_nothing")
def retries_by_itself() -> None:
    """What has had no answer for five seconds is sent again, as libraries do that retry."""

    def wait(old: Any, bus: Bus, address: Address, message: Message, mandatory: bool, sent: Future[Sent]) -> None:
        def again() -> None:
            if bus._paused:
                old(bus, address, message, mandatory, Future())

        if bus._paused:
            bus._loop.call_later(5.0, again)
        old(bus, address, message, mandatory, sent)

    spoil(Bus, "_wait_for_start", wait)
