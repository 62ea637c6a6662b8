"""Contract, `Driver.subscribe`: which subscriber gets a message, in which order, and how many at a time."""

from __future__ import annotations

import threading
import time

import pytest

from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.receiver import (
    Receiver,
    address_of,
    another_driver,
    leave_behind,
    message,
    send,
    send_all,
    sent_to,
)
from msgbus.conformance.waiting import Task, gather, until
from msgbus.drivers.base import Address, Capability, Delivery
from msgbus.exceptions import TransportBlocked

KINDS = pytest.mark.parametrize("kind", ["topic", "server", "fanout", "pool"])

ALIKE = (
    *("-a.b", "-a/b", "-a_b", "-a-b", "-a!b", "-a%b", "-a%2Fb", "-a=2Fb", "-a b", "-a  b", "-a:b", "-a#b", "-a*b"),
    *("-ab", "-A.B", "-a.B", "-a.b.", "-a..b", "-.a.b", "-a.b ", "-a.b!", "-a.b/", "-a.b#", "-a.b/!fanout", "-a.>"),
    *(
        "-\u00e9",
        "-e\u0301",
        "-\u00c9",
        "-ss",
        "-\u00df",
        "-\uff41",
        "-\U0001f600",
        "-" + "x" * 40 + "1",
        "-" + "x" * 40 + "2",
    ),
)
"""Ends of names that a careless mapping to names of the message system would confuse."""


def wait_for_total(receivers: list[Receiver], count: int) -> None:
    """Wait until these have got so many messages together."""
    until(lambda: sum(len(receiver.deliveries) for receiver in receivers) >= count, f"{count} deliveries")


class SubscribingChecks:
    """Of `Driver.subscribe` and `Subscription`."""

    @check("driver", since="0.1")
    def test_a_topic_goes_to_exactly_one(self, bus: Bus) -> None:
        """Each message to a topic reaches one of three subscribers, and no other."""
        receivers = [Receiver() for _ in range(3)]
        for receiver in receivers:
            receiver.subscribe(another_driver(bus), bus.address())
        send_all(bus.driver, bus.address(), map(str, range(60)))
        until(lambda: sum(len(receiver.deliveries) for receiver in receivers) >= 60, "60 deliveries")
        assert sorted(int(body) for receiver in receivers for body in receiver.bodies) == list(range(60))

    @check("driver", since="0.1", builds_on=("test_a_topic_goes_to_exactly_one",))
    def test_idle_subscribers_share_a_topic(self, bus: Bus) -> None:
        """Of 300 messages to a topic, each of three idle subscribers gets at least 60, in one of twenty attempts."""
        receivers = [Receiver() for _ in range(3)]
        for receiver in receivers:
            receiver.subscribe(another_driver(bus), bus.address())
        shares: list[list[int]] = []
        # A sender may still be connecting to one of them, and a busy machine may keep one of them waiting. One of NATS
        # whose request for messages got lost notices that after three seconds.
        while len(shares) < 20 and not (shares and min(shares[-1]) >= 60):
            before = [len(receiver.deliveries) for receiver in receivers]
            for n in range(300):
                send(bus.driver, bus.address(), str(n))
            wait_for_total(receivers, sum(before) + 300)
            shares.append([len(receiver.deliveries) - had for receiver, had in zip(receivers, before, strict=True)])
        assert min(shares[-1]) >= 60, f"idle servers have to share the work about equally; these got {shares} messages"

    @check("driver", since="0.1")
    def test_a_server_address_goes_to_that_one(self, bus: Bus) -> None:
        """A message to a server's address reaches that server only."""
        first, second = Receiver(), Receiver()
        first.subscribe(another_driver(bus), bus.address("server", server="a"))
        second.subscribe(another_driver(bus), bus.address("server", server="b"))
        for n in range(20):
            send(bus.driver, bus.address("server", server="b"), str(n))
        send(bus.driver, bus.address("server", server="a"), "end")
        second.wait(20)
        first.wait_for("end")
        assert (len(first.deliveries), len(second.deliveries)) == (1, 20), (
            "one holds its only message (prefetch 1), and the other has to get all 20 others; they got "
            f"{len(first.deliveries)} and {len(second.deliveries)}"
        )

    @check("driver", since="0.1")
    def test_a_fanout_goes_to_all(self, bus: Bus) -> None:
        """Each of three subscribers to a fanout gets each message once, even if two have the same name."""
        receivers = [Receiver() for _ in range(3)]
        for name, receiver in zip(("a", "b", "b"), receivers, strict=True):
            receiver.subscribe(another_driver(bus), bus.address("fanout", server=name))
        for n in range(20):
            send(bus.driver, bus.address("fanout"), str(n), mandatory=False)
        for receiver in receivers:
            receiver.wait(20)
            assert sorted(map(int, receiver.bodies)) == list(range(20))

    @check("driver", since="0.1")
    def test_each_pool_gets_a_copy(self, bus: Bus) -> None:
        """A message to a topic goes to one of its subscribers and to one member of each pool."""
        plain, first, second = Receiver(), Receiver(), Receiver()
        plain.subscribe(bus.driver, bus.address())
        first.subscribe(another_driver(bus), bus.address("pool", name="p1"))
        first.subscribe(another_driver(bus), bus.address("pool", name="p1"))
        second.subscribe(another_driver(bus), bus.address("pool", name="p2"))
        for n in range(20):
            send(bus.driver, bus.address(), str(n))
        for receiver in (plain, first, second):
            receiver.wait(20)
            assert sorted(map(int, receiver.bodies)) == list(range(20))

    @check("driver", since="0.1", builds_on=("test_each_pool_gets_a_copy", "test_a_fanout_goes_to_all"))
    def test_pools_get_what_is_for_the_topic_alone(self, bus: Bus) -> None:
        """Messages to one server of the topic, or to all, are not copied to its pools."""
        pool, server = Receiver(), Receiver()
        pool.subscribe(another_driver(bus), bus.address("pool", name="p1"))
        for address in (bus.address("server", server="s1"), bus.address("fanout", server="s1")):
            server.subscribe(another_driver(bus), address)
        send(bus.driver, bus.address("server", server="s1"), "server")
        send(bus.driver, bus.address("fanout"), "fanout", mandatory=False)
        server.wait_for_all(["server", "fanout"])
        send(bus.driver, bus.address(), "topic")
        pool.wait_for("topic")
        assert pool.bodies == ["topic"]

    @check("driver", since="0.1")
    @pytest.mark.parametrize("kind", ["topic", "server", "fanout", "pool", "dead"])
    def test_exchanges_and_topics_are_apart(self, bus: Bus, kind: str) -> None:
        """A message does not reach the same address in another exchange, or with another topic."""
        if kind == "dead" and Capability.STORAGE not in bus.capabilities:
            pytest.skip("the driver does not declare storage")
        here = address_of(bus, kind)
        addresses = [here, here._replace(exchange="conformance-2"), here._replace(topic=bus.topic + "/x")]
        receivers = [Receiver() for _ in addresses]
        for address, receiver in zip(addresses, receivers, strict=True):
            receiver.subscribe(bus.driver, address)
        for address in addresses:
            send_all(bus.driver, sent_to(address), [str(address)] * 10)
        for address, receiver in zip(addresses, receivers, strict=True):
            receiver.wait(10)
            assert receiver.bodies == [str(address)] * 10

    @check("driver", since="0.1")
    def test_kinds_of_addresses_are_apart(self, bus: Bus) -> None:
        """A subscription to several kinds of addresses gets each message with the address that it was sent to."""
        receiver = Receiver()
        addresses = [address_of(bus, kind) for kind in ("topic", "server", "fanout")]
        receiver.subscribe(another_driver(bus), *addresses)
        for address in addresses:
            send_all(bus.driver, sent_to(address), [address.kind] * 5)
        receiver.wait(15)
        assert {(delivery.address.kind, delivery.message.body.decode()) for delivery in receiver.deliveries} == {
            (kind, kind) for kind in ("topic", "server", "fanout")
        }
        assert {delivery.address for delivery in receiver.deliveries} == set(addresses)

    @check("driver", since="0.1", builds_on=("test_kinds_of_addresses_are_apart",))
    def test_names_that_differ_are_different_addresses(self, bus: Bus) -> None:
        """Whatever characters the names of topics, servers and exchanges have, each address gets only its own messages.

        Names differ that have different characters: capitals, other separators, another normal form of Unicode.
        """
        names = [f"{bus.topic}{end}" for end in ALIKE]
        addresses = [bus.address(topic=name) for name in names]
        addresses += [bus.address("server", server=end) for end in ALIKE]
        # Names of which one ends as the next begins.
        for mark in (".", "/", ":", "!", "%2F"):
            addresses.append(bus.address("server", topic=f"{bus.topic}{mark}x", server="y"))
            addresses.append(bus.address("server", server=f"x{mark}y"))
        addresses += [Address("topic", exchange, bus.topic) for exchange in ("msgbus-A.b", "msgbus-a.b", "msgbus-a_b")]
        driver = another_driver(bus)
        receivers = {address: Receiver() for address in addresses}
        for subscription in [driver.subscribe([at], got.take, prefetch=5) for at, got in receivers.items()]:
            subscription.ready.result(60)
        numbered = list(enumerate(receivers))
        # Once in the order of subscribing and once in another: otherwise two that share by turns would go unnoticed.
        for round_number, those in enumerate((numbered, numbered[::-1])):
            for number, address in those:
                send(bus.driver, address, f"{round_number} {number}")
        for number, receiver in enumerate(receivers.values()):
            receiver.wait(2)
            assert sorted(receiver.bodies) == [f"0 {number}", f"1 {number}"]

    @check("driver", since="0.1", needs=(Capability.STORAGE,))
    def test_dead_letters_are_stored(self, bus: Bus) -> None:
        """Messages to a dead address at which nobody has ever listened are kept for a later subscriber."""
        send(bus.driver, bus.address("dead"), "letter", ttl=None, durable=True, mandatory=False)
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address("dead"))
        receiver.wait_for("letter")

    @check("driver", since="0.1", needs=(Capability.STORAGE,))
    @pytest.mark.parametrize("kind", ["topic", "server", "pool"])
    def test_messages_wait_for_one_who_is_away(self, bus: Bus, kind: str) -> None:
        """Messages that are sent while the listener is away are delivered when it is back."""
        address = address_of(bus, kind)
        if kind == "pool":  # It gets copies of the messages to the topic.
            Receiver().subscribe(bus.driver, bus.address())
        leave_behind(bus, address)
        send(bus.driver, sent_to(address), "waiting")
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), address)
        receiver.wait_for("waiting")
        assert receiver.bodies == ["waiting"]

    @check("driver", since="0.1", builds_on=("test_a_fanout_goes_to_all",))
    def test_a_fanout_queue_goes_with_its_owner(self, bus: Bus) -> None:
        """After a clean close, nothing is stored for a subscriber of the fanout that returns with the same name."""
        address = bus.address("fanout", server="a")
        Receiver().subscribe(bus.driver, address).close().result(15)
        send(bus.driver, bus.address("fanout"), "missed", mandatory=False)
        receiver = Receiver()
        receiver.subscribe(bus.driver, address)
        send(bus.driver, bus.address("fanout"), "seen", mandatory=False)
        receiver.wait_for("seen")
        assert receiver.bodies == ["seen"]

    @check("driver", since="0.1", builds_on=("test_close_gives_back_open_deliveries",))
    @KINDS
    def test_prefetch_bounds_open_deliveries(self, bus: Bus, kind: str) -> None:
        """At most `prefetch` deliveries are open, and accepting one makes room for another."""
        receiver = Receiver(accept=False)
        address = address_of(bus, kind)
        receiver.subscribe(another_driver(bus), address, prefetch=3)
        send_all(bus.driver, sent_to(address), map(str, range(30)))
        for settled in range(30):
            receiver.wait(min(30, settled + 3))
            assert len(receiver.deliveries) <= settled + 3, (
                f"prefetch is 3, {settled} were accepted or rejected, and {len(receiver.deliveries)} were delivered"
            )
            receiver.deliveries[settled].accept()
        assert sorted(map(int, receiver.bodies)) == list(range(30))

    @check("driver", since="0.1", builds_on=("test_close_gives_back_open_deliveries",))
    def test_a_rejected_delivery_makes_room(self, bus: Bus) -> None:
        """A rejected delivery no longer counts for the prefetch."""
        receiver = Receiver(accept=False)
        receiver.subscribe(another_driver(bus), bus.address(), prefetch=2)
        send_all(bus.driver, bus.address(), map(str, range(10)))
        for settled in range(8):
            receiver.wait(settled + 2)[settled].reject(requeue=False)
        receiver.wait(10)

    @check("driver", since="0.1", builds_on=("test_kinds_of_addresses_are_apart",))
    def test_prefetch_holds_for_each_address(self, bus: Bus) -> None:
        """An address whose prefetch is used up does not delay another address of the subscription."""
        receiver = Receiver(accept=False)
        receiver.subscribe(bus.driver, bus.address(), bus.address("server", server="a"), prefetch=1)
        for n in range(3):
            send(bus.driver, bus.address(), f"topic {n}")
        receiver.wait(1)
        send(bus.driver, bus.address("server", server="a"), "server")
        receiver.wait_for("server")

    @check("driver", since="0.1", builds_on=("test_prefetch_bounds_open_deliveries",))
    def test_prefetch_holds_for_each_subscription(self, bus: Bus) -> None:
        """A subscription whose prefetch is used up does not delay another one of the same driver."""
        busy, idle = Receiver(accept=False), Receiver(accept=False)
        busy.subscribe(bus.driver, bus.address(), prefetch=1)
        idle.subscribe(bus.driver, bus.address(topic=f"{bus.topic}-2"), prefetch=1)
        for n in range(3):
            send(bus.driver, bus.address(), str(n))
        busy.wait(1)
        send(bus.driver, bus.address(topic=f"{bus.topic}-2"), "x")
        idle.wait_for("x")
        assert len(busy.deliveries) == 1

    @check("driver", since="0.1", needs=(Capability.ORDERED,))
    def test_one_senders_messages_keep_their_order(self, bus: Bus) -> None:
        """A thousand messages, sent without waiting, reach a consumer in the order of sending."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        send_all(bus.driver, bus.address(), map(str, range(1000)))
        receiver.wait(1000)
        assert receiver.bodies == [str(n) for n in range(1000)]

    @check("driver", since="0.1", needs=(Capability.ORDERED,))
    @KINDS
    def test_messages_that_wait_keep_their_order(self, bus: Bus, kind: str) -> None:
        """Messages that wait because of the prefetch arrive in the order of sending, too."""
        receiver = Receiver(accept=False)
        address = address_of(bus, kind)
        receiver.subscribe(another_driver(bus), address, prefetch=2)
        send_all(bus.driver, sent_to(address), map(str, range(50)))
        for settled in range(50):
            receiver.wait(settled + 1)[settled].accept()
        assert receiver.bodies == [str(n) for n in range(50)]

    @check(
        "driver",
        since="0.1",
        needs=(Capability.ORDERED, Capability.STORAGE),
        builds_on=("test_messages_wait_for_one_who_is_away",),
    )
    def test_stored_messages_keep_their_order(self, bus: Bus) -> None:
        """Messages that were stored for a subscriber arrive in the order of sending."""
        leave_behind(bus, bus.address())
        send_all(bus.driver, bus.address(), map(str, range(50)))
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        receiver.wait(50)
        assert receiver.bodies == [str(n) for n in range(50)]

    @check("driver", since="0.1", builds_on=("test_kinds_of_addresses_are_apart",))
    def test_calls_of_a_subscription_never_overlap(self, bus: Bus) -> None:
        """`on_delivery` is not called again before it has returned, whatever the address of the message."""
        receiver = Receiver(then=lambda _: time.sleep(0.0005))  # long enough for another thread to interfere
        addresses = [bus.address(), bus.address("server", server="a"), bus.address("fanout", server="a")]
        receiver.subscribe(bus.driver, *addresses)

        def send_many(number: int) -> None:
            driver = bus.driver if number % 2 else another_driver(bus)
            for n in range(100):
                send(driver, sent_to(addresses[(n + number) % 3]), "x", mandatory=False)

        gather([Task(send_many, number) for number in range(6)])
        receiver.wait(600)
        assert receiver.overlaps == 0, (
            "on_delivery was called while another call of it ran: calls for one subscription must not overlap"
        )

    @check("driver", since="0.1", builds_on=("test_close_gives_back_open_deliveries",))
    def test_many_messages_wait_for_their_turn(self, bus: Bus) -> None:
        """Of 2,000 messages for a busy subscriber, all are delivered except those refused with `TransportBlocked`."""
        receiver = Receiver(accept=False)
        receiver.subscribe(another_driver(bus), bus.address(), prefetch=20)
        sent = {str(n): bus.driver.send(bus.address(), message(str(n), wait=10.0), mandatory=True) for n in range(2000)}
        errors = {body: future.exception(60) for body, future in sent.items()}
        assert all(error is None or type(error) is TransportBlocked for error in errors.values()), (
            f"a full queue has to be TransportBlocked: {[e for e in errors.values() if e is not None][:3]}"
        )
        taken = [body for body, error in errors.items() if error is None]
        accepted = 0
        while accepted < len(taken):
            for delivery in receiver.wait(accepted + 1)[accepted:]:
                delivery.accept()
                accepted += 1
        assert sorted(receiver.bodies) == sorted(taken)

    @check("driver", since="0.1", builds_on=("test_a_fanout_goes_to_all",))
    @KINDS
    def test_closing_one_subscription_leaves_the_others(self, bus: Bus, kind: str) -> None:
        """After one subscription is closed, others to the same address continue, of this or another driver."""
        closed, same, other = Receiver(), Receiver(), Receiver()
        address = address_of(bus, kind)
        subscription = closed.subscribe(bus.driver, address)
        same.subscribe(bus.driver, address)
        subscription.close().result(15)
        send(bus.driver, sent_to(address), "same")
        same.wait_for("same")
        subscription = closed.subscribe(bus.driver, address)
        other.subscribe(another_driver(bus), address)
        subscription.close().result(15)
        for n in range(10):  # The two share them, unless it is a fanout.
            send(bus.driver, sent_to(address), str(n))
        until(lambda: {*same.bodies, *other.bodies} >= set(map(str, range(10))), "all messages have reached the two")

    @check(
        "driver",
        since="0.1",
        builds_on=("test_a_fanout_goes_to_all", "test_closing_one_subscription_leaves_the_others"),
    )
    @KINDS
    def test_after_stop_nothing_is_delivered(self, bus: Bus, kind: str) -> None:
        """When `stop` is done, new messages go to others; earlier deliveries can still be accepted."""
        stopped, other = Receiver(accept=False), Receiver()
        address = address_of(bus, kind)
        subscription = stopped.subscribe(another_driver(bus), address)
        send_all(bus.driver, sent_to(address), ["before"])
        stopped.wait(1)
        subscription.stop().result(15)
        other.subscribe(another_driver(bus), address)
        send_all(bus.driver, sent_to(address), map(str, range(10)))
        other.wait_for_all(map(str, range(10)))
        assert stopped.bodies == ["before"], f"after stop() was done more came: {stopped.bodies}"
        stopped.deliveries[0].accept()
        subscription.close().result(15)
        send_all(bus.driver, sent_to(address), ["end"])
        other.wait_for("end")
        assert "before" not in other.bodies, (
            "a delivery that was open before stop() was given to another: stop() must not give it back, "
            "only close() does"
        )

    @check(
        "driver",
        since="0.1",
        builds_on=("test_a_fanout_goes_to_all", "test_closing_one_subscription_leaves_the_others"),
    )
    @KINDS
    def test_after_close_nothing_is_delivered(self, bus: Bus, kind: str) -> None:
        """When `close` is done, all messages go to others."""
        closed, other = Receiver(), Receiver()
        address = address_of(bus, kind)
        subscription = closed.subscribe(bus.driver, address)
        send_all(bus.driver, sent_to(address), ["before"])
        closed.wait_for("before")
        other.subscribe(another_driver(bus), address)
        subscription.close().result(15)
        bodies = [str(n) for n in range(10)]
        send_all(bus.driver, sent_to(address), bodies)
        other.wait_for_all(bodies)
        assert closed.bodies == ["before"]

    @check("driver", since="0.1")
    def test_one_may_subscribe_from_a_callback(self, bus: Bus) -> None:
        """`on_delivery` may subscribe to further addresses, without waiting until they are ready."""
        late = Receiver()
        began = threading.Event()

        def subscribe(_: Delivery) -> None:
            bus.driver.subscribe([bus.address("server", server="late")], late.take, prefetch=1)
            began.set()

        Receiver(then=subscribe).subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "x")
        assert began.wait(15), "on_delivery was not called within 15 s"
        address = bus.address("server", server="late")
        until(lambda: bus.driver.send(address, message("y"), mandatory=True).exception(15) is None, "the subscription")
        late.wait(1)
