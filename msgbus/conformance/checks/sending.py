"""Contract, `Driver.send`: what arrives, what is refused, and when the sender knows."""

from __future__ import annotations

import time

import pytest

from msgbus import CallCancelled, CapabilityMissing, MessageTooLarge, MessageUndeliverable
from msgbus.conformance.bus import Bus
from msgbus.conformance.checks.receiver import Receiver, another_driver, leave_behind, message, send
from msgbus.conformance.waiting import Task, gather, until
from msgbus.drivers.base import Capability, Message


class SendingChecks:
    """Of `Driver.send`."""

    @pytest.mark.parametrize("body", [b"", bytes(range(256)), b"\xce" * 300_000], ids=["empty", "all bytes", "long"])
    def test_a_message_arrives_as_it_was_sent(self, bus: Bus, body: bytes) -> None:
        """Body, content type and id are those of the sender; a ttl says what is left, or nothing."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        sent = Message(body, "application/x-check", "id-1234", 20.0, durable=True)
        bus.driver.send(bus.address(), sent, mandatory=True).result(15)
        got = receiver.wait(1)[0]
        assert got.message.body == body
        assert (got.message.content_type, got.message.id) == ("application/x-check", "id-1234")
        assert got.message.ttl is None or 0 < got.message.ttl <= 20
        assert (got.address, got.redelivered, got.attempts) == (
            bus.address(),
            False,
            0 if Capability.COUNTS in bus.capabilities else None,
        )

    def test_a_message_without_ttl_arrives(self, bus: Bus) -> None:
        """A ttl of None means no limit."""
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "for ever", ttl=None)
        assert receiver.wait(1)[0].message.ttl is None

    @pytest.mark.parametrize("ttl", [1e5, 1e7, 1e10, 1e300], ids=str)
    def test_a_message_may_live_for_very_long(self, bus: Bus, ttl: float) -> None:
        """However large the ttl, it is no error, and what is under way with the message does not suffer."""
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        for seconds in (30.0, ttl, 30.0):
            send(bus.driver, bus.address(), "x", ttl=seconds)
        receiver.wait(3)

    @pytest.mark.parametrize("kind", ["topic", "server", "inbox"])
    def test_mandatory_to_nobody_fails_at_once(self, bus: Bus, kind: str) -> None:
        """Where nobody listens and nothing is stored, a mandatory message fails long before its ttl ends."""
        address = bus.address(kind, server="s1" if kind == "server" else "", name="nobody" if kind == "inbox" else "")
        with pytest.raises(MessageUndeliverable) as caught:
            bus.driver.send(address, message("x", ttl=60), mandatory=True).result(10)
        assert (address.topic if kind != "inbox" else "nobody") in str(caught.value)

    def test_the_undeliverable_one_alone_fails(self, bus: Bus) -> None:
        """Of many messages that are under way together, only those that nobody gets fail."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        nobody = bus.address("server", server="nobody")
        futures = [
            bus.driver.send(nobody if n % 3 == 0 else bus.address(), message(str(n)), mandatory=True)
            for n in range(300)
        ]
        for n, future in enumerate(futures):
            assert isinstance(future.exception(15), MessageUndeliverable if n % 3 == 0 else type(None)), n
        receiver.wait(200)
        assert sorted(map(int, receiver.bodies)) == [n for n in range(300) if n % 3]

    def test_fanout_to_nobody_is_no_error(self, bus: Bus) -> None:
        """A fanout that is not mandatory is done although nobody is there."""
        sent = bus.driver.send(bus.address("fanout"), message("x"), mandatory=False).result(15)
        assert sent.reached in (None, 0)

    def test_reached_tells_the_truth(self, bus: Bus) -> None:
        """Where the driver says how many a fanout reached, it is how many listen."""
        receivers = [Receiver() for _ in range(3)]
        for n, receiver in enumerate(receivers):
            receiver.subscribe(bus.driver, bus.address("fanout", server=f"s{n}"))
        sent = bus.driver.send(bus.address("fanout"), message("x"), mandatory=False).result(15)
        assert sent.reached in (None, 3)
        for receiver in receivers:
            receiver.wait(1)

    def test_threads_may_send_at_the_same_time(self, bus: Bus) -> None:
        """What eight threads send arrives, each message once."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())

        def send_many(thread: int) -> None:
            futures = [bus.driver.send(bus.address(), message(f"{thread}-{n}"), mandatory=True) for n in range(200)]
            for future in futures:
                future.result(30)

        gather([Task(send_many, thread) for thread in range(8)])
        receiver.wait(1600)
        assert sorted(receiver.bodies) == sorted(f"{thread}-{n}" for thread in range(8) for n in range(200))

    def test_one_may_send_from_a_callback(self, bus: Bus) -> None:
        """`on_delivery`, and what is called back from a future, may send."""
        echoed = Receiver()
        echoed.subscribe(bus.driver, bus.address("server", server="echo"))

        def echo_twice(_: object) -> None:
            first = bus.driver.send(bus.address("server", server="echo"), message("1"), mandatory=True)
            first.add_done_callback(
                lambda _: bus.driver.send(bus.address("server", server="echo"), message("2"), mandatory=True)
            )

        Receiver(then=echo_twice).subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "x")
        echoed.wait(2)
        assert sorted(echoed.bodies) == ["1", "2"]

    def test_too_large_is_refused_before_it_is_sent(self, bus: Bus) -> None:
        """A message over the limit fails with `MessageTooLarge`, and those under way with it do not notice."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        before = [bus.driver.send(bus.address(), message(str(n)), mandatory=True) for n in range(50)]
        huge = bus.driver.send(bus.address(), message(b"x" * (bus.harness.largest + 1)), mandatory=True)
        after = [bus.driver.send(bus.address(), message(str(n)), mandatory=True) for n in range(50, 100)]
        assert isinstance(huge.exception(15), MessageTooLarge)
        for future in before + after:
            future.result(15)
        receiver.wait(100)
        assert len(receiver.deliveries) == 100

    def test_the_largest_message_arrives(self, bus: Bus) -> None:
        """One that is just as large as is allowed is delivered, and its connection goes on."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        body = b"0123456789abcdef" * (bus.harness.largest // 16)
        bus.driver.send(bus.address(), message(body), mandatory=True).result(30)
        send(bus.driver, bus.address(), "next")
        receiver.wait(2, 30)
        assert {len(delivery.message.body) for delivery in receiver.deliveries} == {len(body), 4}

    def test_what_has_expired_is_not_delivered(self, bus: Bus) -> None:
        """A stored message whose ttl has run out is dropped by the message system."""
        bus.needs(Capability.EXPIRES, Capability.STORE)
        leave_behind(bus, bus.address())
        send(bus.driver, bus.address(), "stale", ttl=0.2)
        end = time.monotonic() + 0.3
        until(lambda: time.monotonic() > end, "the end of a ttl")
        send(bus.driver, bus.address(), "fresh")
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        receiver.wait_for("fresh")
        assert receiver.bodies == ["fresh"]

    def test_what_is_stored_waits_for_its_first_subscriber(self, bus: Bus) -> None:
        """A message to a stored topic at which nobody has ever listened is kept, and so is the next, in one place."""
        bus.needs(Capability.STORE)
        for body in ("first", "second"):
            send(bus.driver, bus.address("stored"), body, ttl=None)
        send(bus.driver, bus.address(), "third")
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        receiver.wait(3)
        assert receiver.bodies == ["first", "second", "third"]

    def test_nothing_is_stored_without_the_capability(self, bus: Bus) -> None:
        """A driver that keeps nothing for listeners that are away says so where it is asked to."""
        if Capability.STORE in bus.capabilities:
            pytest.skip("the driver stores")
        with pytest.raises(CapabilityMissing):
            bus.driver.send(bus.address("stored"), message("x"), mandatory=True).result(15)

    def test_a_pool_alone_is_somebody(self, bus: Bus) -> None:
        """A topic of which only pools are subscribers takes mandatory messages."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address("pool", name="p1"))
        send(bus.driver, bus.address(), "x")
        receiver.wait(1)

    def test_nothing_can_be_sent_after_close(self, bus: Bus) -> None:
        """A closed driver takes no message, and may be closed again."""
        driver = another_driver(bus)
        Receiver().subscribe(driver, bus.address())
        send(driver, bus.address(), "x")
        driver.close()
        driver.close()
        assert isinstance(driver.send(bus.address(), message("y"), mandatory=True).exception(10), CallCancelled)

    def test_close_lets_what_was_sent_arrive(self, bus: Bus) -> None:
        """Messages that were handed over right before `close` are confirmed and delivered."""
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        driver = another_driver(bus)
        futures = [driver.send(bus.address(), message(str(n)), mandatory=True) for n in range(100)]
        driver.close()
        for future in futures:
            assert future.done()
            future.result(0)
        receiver.wait(100)
