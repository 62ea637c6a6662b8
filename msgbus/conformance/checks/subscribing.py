"""Contract, `Driver.subscribe`: who gets a message, how many at a time, and what happens to what is given back."""

from __future__ import annotations

import threading
import time

import pytest

from msgbus import CapabilityMissing
from msgbus.conformance.bus import Bus
from msgbus.conformance.checks.receiver import Receiver, another_driver, leave_behind, message, send
from msgbus.conformance.waiting import Task, gather, until
from msgbus.drivers.base import Capability, Delivery


class SubscribingChecks:
    """Of `Driver.subscribe`, `Subscription` and `Delivery`."""

    def test_a_topic_goes_to_exactly_one(self, bus: Bus) -> None:
        """Of 300 messages to a topic each reaches one of three idle subscribers, and each of these gets at least 60."""
        receivers = [Receiver() for _ in range(3)]
        for receiver in receivers:
            receiver.subscribe(another_driver(bus), bus.address())
        for n in range(300):
            send(bus.driver, bus.address(), str(n))
        until(lambda: sum(len(receiver.deliveries) for receiver in receivers) >= 300, "300 deliveries")
        assert sorted(int(body) for receiver in receivers for body in receiver.bodies) == list(range(300))
        assert min(len(receiver.deliveries) for receiver in receivers) >= 60

    def test_a_server_address_goes_to_that_one(self, bus: Bus) -> None:
        """What is sent to one server's name reaches that one only."""
        first, second = Receiver(), Receiver()
        first.subscribe(another_driver(bus), bus.address("server", server="a"), bus.address("server", server="end"))
        second.subscribe(another_driver(bus), bus.address("server", server="b"))
        for n in range(20):
            send(bus.driver, bus.address("server", server="b"), str(n))
        send(bus.driver, bus.address("server", server="end"), "end")
        second.wait(20)
        first.wait_for("end")
        assert (len(first.deliveries), len(second.deliveries)) == (1, 20)

    def test_a_fanout_goes_to_all(self, bus: Bus) -> None:
        """Each of three subscribers gets each message once, also two of the same name."""
        receivers = [Receiver() for _ in range(3)]
        for name, receiver in zip(("a", "b", "b"), receivers, strict=True):
            receiver.subscribe(another_driver(bus), bus.address("fanout", server=name))
        for n in range(20):
            send(bus.driver, bus.address("fanout"), str(n), mandatory=False)
        for receiver in receivers:
            receiver.wait(20)
            assert sorted(map(int, receiver.bodies)) == list(range(20))

    def test_each_pool_gets_a_copy(self, bus: Bus) -> None:
        """What is sent to a topic goes to one of its subscribers and to one of each pool."""
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

    def test_exchanges_and_topics_are_apart(self, bus: Bus) -> None:
        """The same topic of another exchange, and another topic of the same, get nothing."""
        here = bus.address()
        others = [here._replace(exchange="conformance-2"), bus.address(topic=bus.topic + "/x")]
        receivers = []
        for address in (here, *others):
            receivers.append(Receiver())
            receivers[-1].subscribe(bus.driver, address)
        for address in (here, *others):
            for _ in range(10):
                send(bus.driver, address, str(address))
        for address, receiver in zip((here, *others), receivers, strict=True):
            receiver.wait(10)
            assert receiver.bodies == [str(address)] * 10

    def test_dead_letters_are_stored(self, bus: Bus) -> None:
        """What is sent to a dead address that nobody ever listened to is there for one who comes later."""
        bus.needs(Capability.STORE)
        send(bus.driver, bus.address("dead"), "letter", ttl=None, durable=True, mandatory=False)
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address("dead"))
        receiver.wait_for("letter")

    @pytest.mark.parametrize("kind", ["topic", "server", "pool"])
    def test_messages_wait_for_one_who_is_away(self, bus: Bus, kind: str) -> None:
        """What is sent while the listener is away is there when it comes back."""
        bus.needs(Capability.STORE)
        address = bus.address(kind, server="a" if kind == "server" else "", name="p" if kind == "pool" else "")
        Receiver().subscribe(bus.driver, bus.address())  # for the pool's sake: its copy is of what goes to the topic
        leave_behind(bus, address)
        send(bus.driver, bus.address() if kind == "pool" else address, "waiting")
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), address)
        if kind != "topic":
            receiver.wait_for("waiting")
            assert receiver.bodies == ["waiting"]

    def test_a_fanout_queue_goes_with_its_owner(self, bus: Bus) -> None:
        """After a clean close nothing is gathered for a subscriber of the fanout that comes back under its name."""
        address = bus.address("fanout", server="a")
        Receiver().subscribe(bus.driver, address).close().result(15)
        send(bus.driver, bus.address("fanout"), "missed", mandatory=False)
        receiver = Receiver()
        receiver.subscribe(bus.driver, address)
        send(bus.driver, bus.address("fanout"), "seen", mandatory=False)
        receiver.wait_for("seen")
        assert receiver.bodies == ["seen"]

    def test_prefetch_bounds_what_is_handed_over(self, bus: Bus) -> None:
        """Never more than `prefetch` deliveries are open, and each that is accepted makes room for another."""
        receiver = Receiver(accept=False)
        receiver.subscribe(another_driver(bus), bus.address(), prefetch=3)
        for n in range(30):
            send(bus.driver, bus.address(), str(n))
        for settled in range(30):
            receiver.wait(min(30, settled + 3))
            assert len(receiver.deliveries) <= settled + 3
            assert receiver.deliveries[settled].accept()
        assert sorted(map(int, receiver.bodies)) == list(range(30))

    def test_prefetch_holds_for_each_address(self, bus: Bus) -> None:
        """An address whose prefetch is used up does not keep another one of the subscription waiting."""
        receiver = Receiver(accept=False)
        receiver.subscribe(bus.driver, bus.address(), bus.address("server", server="a"), prefetch=1)
        for n in range(3):
            send(bus.driver, bus.address(), f"topic {n}")
        receiver.wait(1)
        send(bus.driver, bus.address("server", server="a"), "server")
        receiver.wait_for("server")
        assert len(receiver.deliveries) == 2
        assert [delivery.address.kind for delivery in receiver.deliveries] == ["topic", "server"]

    def test_one_senders_messages_keep_their_order(self, bus: Bus) -> None:
        """A thousand messages, sent without waiting, reach a consumer in the order of sending."""
        bus.needs(Capability.ORDERED)
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        futures = [bus.driver.send(bus.address(), message(str(n)), mandatory=True) for n in range(1000)]
        for future in futures:
            future.result(30)
        receiver.wait(1000)
        assert receiver.bodies == [str(n) for n in range(1000)]

    def test_calls_of_a_subscription_never_overlap(self, bus: Bus) -> None:
        """`on_delivery` is not called again before it has returned, whichever of the addresses a message comes by."""
        receiver = Receiver(then=lambda _: time.sleep(0.0005))  # long enough for another thread to come in
        addresses = [bus.address(), bus.address("server", server="a"), bus.address("fanout", server="a")]
        receiver.subscribe(bus.driver, *addresses)

        def send_many(number: int) -> None:
            driver = bus.driver if number % 2 else another_driver(bus)
            for n in range(100):
                address = addresses[(n + number) % 3]
                address = bus.address("fanout") if address.kind == "fanout" else address
                send(driver, address, "x", mandatory=False)

        gather([Task(send_many, number) for number in range(6)])
        receiver.wait(600)
        assert receiver.overlaps == 0

    def test_accept_counts_once_and_from_any_thread(self, bus: Bus) -> None:
        """Of several words on a delivery only the first counts, and any thread may say it."""
        receiver = Receiver(accept=False)
        subscription = receiver.subscribe(another_driver(bus), bus.address())
        send(bus.driver, bus.address(), "x")
        delivery = receiver.wait(1)[0]
        assert Task(delivery.accept).result() is True
        if Capability.REQUEUE in bus.capabilities:
            delivery.reject(requeue=True)
        delivery.reject(requeue=False)
        send(bus.driver, bus.address(), "y")
        receiver.wait(2)
        subscription.close().result(15)
        again = Receiver()
        again.subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "z")
        again.wait_for("z")
        assert "x" not in again.bodies

    def test_reject_with_requeue_hands_it_to_another(self, bus: Bus) -> None:
        """A message that is given back comes again, marked as redelivered, and counted where that is declared."""
        bus.needs(Capability.REQUEUE)

        def give_back_once(delivery: Delivery) -> None:
            if delivery.redelivered:
                delivery.accept()
            else:
                delivery.reject(requeue=True)

        receivers = [Receiver(accept=False, then=give_back_once) for _ in range(2)]
        for receiver in receivers:
            receiver.subscribe(another_driver(bus), bus.address())
        send(bus.driver, bus.address(), "x")
        until(lambda: sum(len(receiver.deliveries) for receiver in receivers) >= 2, "the second delivery")
        both = [delivery for receiver in receivers for delivery in receiver.deliveries]
        first, second = sorted(both, key=lambda delivery: delivery.redelivered)
        assert (first.redelivered, second.redelivered) == (False, True)
        assert first.message.id == second.message.id
        assert second.message.body == b"x"
        if Capability.COUNTS in bus.capabilities:
            assert (first.attempts, second.attempts) == (0, 1)
        else:
            assert (first.attempts, second.attempts) == (None, None)

    def test_reject_without_requeue_drops_it(self, bus: Bus) -> None:
        """A message that is dropped does not come again."""
        receiver = Receiver(accept=False, then=lambda delivery: delivery.reject(requeue=False))
        subscription = receiver.subscribe(another_driver(bus), bus.address(), prefetch=1)
        for body in ("x", "y"):
            send(bus.driver, bus.address(), body)
        receiver.wait(2)
        subscription.close().result(15)
        again = Receiver()
        again.subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "end")
        again.wait_for("end")
        assert again.bodies == ["end"]
        assert receiver.bodies == ["x", "y"]

    def test_requeue_needs_its_capability(self, bus: Bus) -> None:
        """A driver that does not declare requeue refuses to be asked for it."""
        if Capability.REQUEUE in bus.capabilities:
            pytest.skip("the driver declares requeue")
        receiver = Receiver(accept=False)
        receiver.subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "x")
        with pytest.raises(CapabilityMissing):
            receiver.wait(1)[0].reject(requeue=True)

    def test_after_stop_nothing_is_handed_over(self, bus: Bus) -> None:
        """Once `stop` is done, what comes goes to others; what was handed over before can still be accepted."""
        stopped = Receiver(accept=False)
        subscription = stopped.subscribe(another_driver(bus), bus.address())
        send(bus.driver, bus.address(), "before")
        stopped.wait(1)
        subscription.stop().result(15)
        other = Receiver()
        other.subscribe(another_driver(bus), bus.address())
        for n in range(10):
            send(bus.driver, bus.address(), str(n))
        other.wait(10)
        assert stopped.bodies == ["before"]
        assert stopped.deliveries[0].accept()
        subscription.close().result(15)
        send(bus.driver, bus.address(), "end")
        other.wait_for("end")
        assert "before" not in other.bodies

    def test_close_gives_back_what_is_open(self, bus: Bus) -> None:
        """What was handed over and neither accepted nor rejected goes to another subscriber, as redelivered."""
        bus.needs(Capability.REQUEUE)
        first = Receiver(accept=False)
        subscription = first.subscribe(another_driver(bus), bus.address())
        for n in range(5):
            send(bus.driver, bus.address(), str(n))
        first.wait(5)
        first.deliveries[0].accept()
        send_before_close = another_driver(bus)
        second = Receiver()
        second.subscribe(send_before_close, bus.address())
        subscription.close().result(15)
        subscription.close().result(15)
        second.wait(4)
        assert sorted(second.bodies) == sorted(first.bodies[1:])
        assert all(delivery.redelivered for delivery in second.deliveries)

    def test_one_may_subscribe_from_a_callback(self, bus: Bus) -> None:
        """`on_delivery` may subscribe to further addresses, without waiting for it."""
        late = Receiver()
        began = threading.Event()

        def subscribe(_: Delivery) -> None:
            bus.driver.subscribe([bus.address("server", server="late")], late.take, prefetch=1)
            began.set()

        Receiver(then=subscribe).subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "x")
        assert began.wait(15)
        address = bus.address("server", server="late")
        until(lambda: bus.driver.send(address, message("y"), mandatory=True).exception(15) is None, "the subscription")
        late.wait(1)
