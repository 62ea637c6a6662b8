"""Contract, `Driver.send`: what arrives, what is refused, and what the sender is notified of."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import CallCancelled, CapabilityMissing, InvalidTarget, MessageTooLarge, MessageUndeliverable
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.receiver import Receiver, another_driver, leave_behind, message, send, send_all
from msgbus.conformance.waiting import Task, gather, until
from msgbus.drivers.base import Capability, Message


class SendingChecks:
    """Of `Driver.send`."""

    @check("driver", since="0.1")
    @pytest.mark.parametrize("body", [b"", bytes(range(256)), b"\xce" * 300_000], ids=["empty", "all bytes", "long"])
    def test_a_message_arrives_as_it_was_sent(self, bus: Bus, body: bytes) -> None:
        """A delivery has the sender's body, content type and id, and the address by which it arrived."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        sent = Message(body, "application/x-check", "id-1234", durable=True, send_timeout=30.0)
        bus.driver.send(bus.address(), sent, mandatory=True).result(15)
        got = receiver.wait(1)[0]
        assert type(got.message.body) is bytes, f"the body is of the type {type(got.message.body).__name__}"
        # Not by assert: for long bodies, pytest would look for differences longer than a check may take.
        if got.message.body != body:
            pairs = zip(got.message.body, body, strict=False)
            at = next((byte for byte, (one, other) in enumerate(pairs) if one != other), "the end")
            pytest.fail(
                f"{len(body)} bytes were sent and {len(got.message.body)} came; the first difference is at {at}"
            )
        assert (got.message.content_type, got.message.id) == ("application/x-check", "id-1234")
        assert got.message.send_timeout is None, "wait is only for the sender: it has to be None in a received message"
        assert got.address == bus.address()

    @check("driver", since="0.1")
    def test_a_message_without_ttl_arrives(self, bus: Bus) -> None:
        """A ttl of None means no limit."""
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "forever", ttl=None)
        assert receiver.wait(1)[0].message.ttl is None, "a message that was sent without a ttl has one"

    @check("driver", since="0.1")
    @pytest.mark.parametrize("ttl", [1e5, 1e7, 1e10, 1e300], ids=str)
    def test_a_message_may_live_for_very_long(self, bus: Bus, ttl: float) -> None:
        """However large the ttl, the message is delivered, and so are others that are sent with it."""
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        for seconds in (30.0, ttl, 30.0):
            send(bus.driver, bus.address(), "x", ttl=seconds)
        receiver.wait(3)

    @check("driver", since="0.1", builds_on=("test_prefetch_bounds_open_deliveries",))
    def test_a_ttl_counts_seconds(self, bus: Bus) -> None:
        """A message that has waited has the remaining time as its ttl, or None."""
        receiver = Receiver(accept=False)
        receiver.subscribe(another_driver(bus), bus.address(), prefetch=1)
        send(bus.driver, bus.address(), "first", ttl=60)
        receiver.wait(1)
        send(bus.driver, bus.address(), "second", ttl=60)
        end = time.monotonic() + 1.0
        until(lambda: time.monotonic() > end, "a second")
        receiver.deliveries[0].accept()
        left = receiver.wait(2)[1].message.ttl
        assert left is None or 10 < left < 59.5, (
            f"of a ttl of 60 s, {left} s are left: the ttl of a received message has to be what is left, or None"
        )

    @check("driver", since="0.1")
    @pytest.mark.parametrize("kind", ["topic", "server", "inbox"])
    def test_mandatory_to_nobody_fails_at_once(self, bus: Bus, kind: str) -> None:
        """If nobody listens and nothing is stored, a mandatory message fails long before its ttl ends."""
        address = bus.address(kind, server="s1" if kind == "server" else "", name="nobody" if kind == "inbox" else "")
        with pytest.raises(MessageUndeliverable) as caught:
            bus.driver.send(address, message("x", ttl=60), mandatory=True).result(10)
        assert (address.topic if kind != "inbox" else "nobody") in str(caught.value), (
            f"the error does not name the address: {caught.value}"
        )

    @check("driver", since="0.1")
    @pytest.mark.parametrize("kind", ["topic", "server", "inbox"])
    def test_what_is_not_mandatory_may_reach_nobody(self, bus: Bus, kind: str) -> None:
        """A message that is not mandatory does not fail if nobody listens."""
        address = bus.address(kind, server="s1" if kind == "server" else "", name="nobody" if kind == "inbox" else "")
        sent = bus.driver.send(address, message("x", ttl=60), mandatory=False).result(15)
        assert sent.reached in (None, 0), f"it is said to have reached {sent.reached}"

    @check("driver", since="0.1", builds_on=("test_mandatory_to_nobody_fails_at_once",))
    def test_a_topic_and_its_servers_are_apart(self, bus: Bus) -> None:
        """A subscriber of a server's address does not get the topic's messages, nor the other way round."""
        server, topic = Receiver(), Receiver()
        server.subscribe(another_driver(bus), bus.address("server", server="s1"), bus.address("fanout", server="s1"))
        topic.subscribe(another_driver(bus), bus.address(topic=f"{bus.topic}-2"))
        for address in (bus.address(), bus.address("server", topic=f"{bus.topic}-2", server="s1")):
            error = bus.driver.send(address, message("x"), mandatory=True).exception(15)
            assert isinstance(error, MessageUndeliverable), (
                f"a message to {address}, which has no subscriber: {error!r}"
            )
        send(bus.driver, bus.address("server", server="s1"), "end")
        send(bus.driver, bus.address(topic=f"{bus.topic}-2"), "end")
        for receiver in (server, topic):
            receiver.wait_for("end")
            assert receiver.bodies == ["end"]

    @check("driver", since="0.1", builds_on=("test_a_message_arrives_as_it_was_sent",))
    def test_a_message_may_be_sent_twice(self, bus: Bus) -> None:
        """A message that is sent twice with the same id arrives twice: the core repeats, and filters."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        twice = message("x")
        for _ in range(2):
            bus.driver.send(bus.address(), twice, mandatory=True).result(15)
        receiver.wait(2)
        assert [delivery.message.id for delivery in receiver.deliveries] == [twice.id] * 2

    @check("driver", since="0.1", builds_on=("test_mandatory_to_nobody_fails_at_once",))
    def test_the_undeliverable_one_alone_fails(self, bus: Bus) -> None:
        """Of many messages that are sent together, only the undeliverable ones fail."""
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

    @check("driver", since="0.1")
    def test_fanout_to_nobody_is_no_error(self, bus: Bus) -> None:
        """A fanout that is not mandatory does not fail without a listener."""
        sent = bus.driver.send(bus.address("fanout"), message("x"), mandatory=False).result(15)
        assert sent.reached in (None, 0), f"nobody got it, and Sent.reached is {sent.reached}"

    @check("driver", since="0.1", builds_on=("test_a_fanout_goes_to_all",))
    def test_reached_counts_the_listeners(self, bus: Bus) -> None:
        """If the driver sets `Sent.reached` for a fanout, it is the number of listeners."""
        receivers = [Receiver() for _ in range(3)]
        for n, receiver in enumerate(receivers):
            receiver.subscribe(bus.driver, bus.address("fanout", server=f"s{n}"))
        sent = bus.driver.send(bus.address("fanout"), message("x"), mandatory=False).result(15)
        assert sent.reached in (None, 3), f"three subscribers got it, and Sent.reached is {sent.reached}"
        for receiver in receivers:
            receiver.wait(1)

    @check("driver", since="0.1")
    def test_threads_may_send_at_the_same_time(self, bus: Bus) -> None:
        """Messages that eight threads send over one driver arrive, each once."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())

        def send_many(thread: int) -> None:
            send_all(bus.driver, bus.address(), [f"{thread}-{n}" for n in range(200)])

        gather([Task(send_many, thread) for thread in range(8)])
        receiver.wait(1600)
        assert sorted(receiver.bodies) == sorted(f"{thread}-{n}" for thread in range(8) for n in range(200))

    @check("driver", since="0.1")
    def test_one_may_send_from_a_callback(self, bus: Bus) -> None:
        """`on_delivery`, and callbacks of a future, may send."""
        echoed = Receiver()
        echoed.subscribe(bus.driver, bus.address("server", server="echo"))

        def echo_twice(_: object) -> None:
            first = bus.driver.send(bus.address("server", server="echo"), message("1"), mandatory=True)
            first.add_done_callback(
                lambda _: bus.driver.send(bus.address("server", server="echo"), message("2"), mandatory=True)
            )

        Receiver(then=echo_twice).subscribe(bus.driver, bus.address())
        Task(send, bus.driver, bus.address(), "x").result(20)
        echoed.wait(2)
        assert sorted(echoed.bodies) == ["1", "2"]

    @check("driver", since="0.1")
    def test_a_callback_keeps_nobody_waiting(self, bus: Bus) -> None:
        """While `on_delivery`, or a callback of a future, runs, other threads can send: no lock is held."""
        returned: dict[str, bool] = {}

        def look(name: str) -> None:
            sending = Task(bus.driver.send, bus.address("fanout"), message("x"), mandatory=False)
            try:
                sending.join(5)
            except AssertionError:
                pass
            returned[name] = sending.done

        Receiver(then=lambda _: look("on_delivery")).subscribe(bus.driver, bus.address())
        sent = bus.driver.send(bus.address(), message("x"), mandatory=True)
        sent.add_done_callback(lambda _: look("a future's callback"))
        until(lambda: len(returned) == 2, "both callbacks have run", 30)
        stuck = [name for name, back in returned.items() if not back]
        assert not stuck, f"send() of another thread did not return within 5 s while {' and '.join(stuck)} ran"

    @check("driver", since="0.1")
    def test_too_large_is_refused_before_it_is_sent(self, bus: Bus) -> None:
        """A message over the limit fails with `MessageTooLarge`, and others that are sent with it are delivered."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        before = [bus.driver.send(bus.address(), message(str(n)), mandatory=True) for n in range(50)]
        huge = bus.driver.send(bus.address(), message(b"x" * (bus.harness.largest + 1)), mandatory=True)
        after = [bus.driver.send(bus.address(), message(str(n)), mandatory=True) for n in range(50, 100)]
        assert isinstance(huge.exception(15), MessageTooLarge)
        for future in before + after:
            future.result(15)
        receiver.wait(100)
        assert sorted(map(int, receiver.bodies)) == list(range(100))

    @check("driver", since="0.1")
    def test_the_largest_message_arrives(self, bus: Bus) -> None:
        """A message of exactly the allowed size is delivered, and the connection stays open."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        body = b"0123456789abcdef" * (bus.harness.largest // 16)
        bus.driver.send(bus.address(), message(body), mandatory=True).result(30)
        send(bus.driver, bus.address(), "next")
        receiver.wait(2, 30)
        assert {len(delivery.message.body) for delivery in receiver.deliveries} == {len(body), 4}

    @check("driver", since="0.1", builds_on=("test_mandatory_to_nobody_fails_at_once",))
    def test_a_name_that_is_too_long_is_refused(self, bus: Bus) -> None:
        """Long names work or fail with `InvalidTarget`, and do not disturb other messages."""
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        before = bus.driver.send(bus.address(), message("before"), mandatory=True)
        long = bus.address("topic", topic="x" * 5000)
        error = bus.driver.send(long, message("x"), mandatory=True).exception(15)
        assert isinstance(error, InvalidTarget | MessageUndeliverable), f"it ended with {error!r}"
        before.result(15)
        send(bus.driver, bus.address(), "after")
        receiver.wait_for_all(["before", "after"])

    @check(
        "driver",
        since="0.1",
        needs=(Capability.EXPIRES, Capability.STORAGE),
        builds_on=("test_messages_wait_for_one_who_is_away",),
    )
    def test_what_has_expired_is_not_delivered(self, bus: Bus) -> None:
        """A stored message whose ttl has run out is dropped by the message system."""
        assert self._after_its_ttl(bus) == ["fresh"]

    @check(
        "driver",
        since="0.1",
        needs=(Capability.STORAGE,),
        lacks=(Capability.EXPIRES,),
        builds_on=("test_messages_wait_for_one_who_is_away",),
    )
    def test_expires_is_declared_where_it_works(self, bus: Bus) -> None:
        """A driver that does not declare expires delivers a stored message whose ttl has run out."""
        assert self._after_its_ttl(bus) == ["stale", "fresh"]

    def _after_its_ttl(self, bus: Bus) -> list[str]:
        """The messages that are delivered, of one whose ttl has run out and a later one."""
        leave_behind(bus, bus.address())
        # The first send opens the connection, which may take longer than the ttl.
        send(bus.driver, bus.address("fanout"), "first", mandatory=False)
        send(bus.driver, bus.address(), "stale", ttl=0.2)
        end = time.monotonic() + 0.3
        until(lambda: time.monotonic() > end, "the end of a ttl")
        send(bus.driver, bus.address(), "fresh")
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        receiver.wait_for("fresh")
        return receiver.bodies

    @check(
        "driver",
        since="0.1",
        needs=(Capability.STORAGE,),
        builds_on=("test_messages_wait_for_one_who_is_away",),
    )
    def test_a_short_wait_does_not_expire_a_stored_message(self, bus: Bus) -> None:
        """A message with a short wait for the connection is still stored for its listener."""
        leave_behind(bus, bus.address())
        # The first send opens the connection, which may take longer than the wait.
        send(bus.driver, bus.address("fanout"), "first", mandatory=False)
        send(bus.driver, bus.address(), "no ttl", ttl=None, wait=0.5)
        send(bus.driver, bus.address(), "long ttl", ttl=60.0, wait=0.5)
        end = time.monotonic() + 0.7
        until(lambda: time.monotonic() > end, "the end of the wait")
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        receiver.wait_for_all(["no ttl", "long ttl"])

    @check("driver", since="0.1", needs=(Capability.STORAGE,))
    def test_what_is_stored_waits_for_its_first_subscriber(self, bus: Bus) -> None:
        """Messages to a stored topic at which nobody has ever listened are kept, in one queue."""
        for body in ("first", "second"):
            send(bus.driver, bus.address("stored"), body, ttl=None)
        send(bus.driver, bus.address(), "third")
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        receiver.wait(3)
        assert sorted(receiver.bodies) == ["first", "second", "third"]

    @check("driver", since="0.1", lacks=(Capability.STORAGE,))
    def test_store_is_declared_or_refused(self, bus: Bus) -> None:
        """A driver that does not declare storage refuses stored addresses, and keeps nothing for absent listeners."""
        with pytest.raises(CapabilityMissing):
            bus.driver.send(bus.address("stored"), message("x"), mandatory=True).result(15)
        leave_behind(bus, bus.address())
        send(bus.driver, bus.address(), "kept", mandatory=False)
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        send(bus.driver, bus.address(), "end")
        receiver.wait_for("end")
        assert receiver.bodies == ["end"], f"what came before the end should have expired: {receiver.bodies}"

    @check("driver", since="0.1")
    def test_a_topic_with_only_a_pool_takes_messages(self, bus: Bus) -> None:
        """A topic whose only subscribers are pools takes mandatory messages."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address("pool", name="p1"))
        send(bus.driver, bus.address(), "x")
        receiver.wait(1)

    @check("driver", since="0.1")
    def test_nothing_can_be_sent_after_close(self, bus: Bus) -> None:
        """A closed driver takes no message, and may be closed again."""
        driver = another_driver(bus)
        Receiver().subscribe(driver, bus.address())
        send(driver, bus.address(), "x")
        driver.close()
        driver.close()
        assert isinstance(driver.send(bus.address(), message("y"), mandatory=True).exception(10), CallCancelled)

    @check("driver", since="0.1", builds_on=("test_nothing_can_be_sent_after_close",))
    @pytest.mark.parametrize("used", [True, False], ids=["used before", "never used"])
    def test_every_verb_of_a_closed_driver_says_so(self, bus: Bus, used: bool) -> None:
        """Each method of a closed driver fails with `CallCancelled` and the same text; it leaves nothing open."""
        driver = another_driver(bus)
        if used:
            Receiver().subscribe(driver, bus.address())
            send(driver, bus.address(), "x")
        driver.close()
        subscription = driver.subscribe([bus.address()], Receiver().take, prefetch=1)
        inbox = driver.open_inbox(Receiver(accept=False).take)
        futures: dict[str, Future[Any]] = {
            "send": driver.send(bus.address(), message("y"), mandatory=False),
            "subscribe": subscription.ready,
            "open_inbox": inbox.ready,
        }
        if Capability.INSPECT in bus.capabilities:
            futures["inspect"] = driver.inspect(bus.address())
        errors = {verb: future.exception(10) for verb, future in futures.items()}
        others = {verb: error for verb, error in errors.items() if not isinstance(error, CallCancelled)}
        assert not others, f"of a closed driver these did not fail with CallCancelled: {others}"
        assert len({str(error) for error in errors.values()}) == 1, f"the same is said in several ways: {errors}"
        for done in (subscription.stop(), subscription.close(), inbox.close()):
            done.result(10)

    @check("driver", since="0.1")
    def test_close_lets_what_was_sent_arrive(self, bus: Bus) -> None:
        """Messages that are sent right before `close` are confirmed and delivered."""
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        driver = another_driver(bus)
        futures = [driver.send(bus.address(), message(str(n)), mandatory=True) for n in range(100)]
        driver.close()
        for future in futures:
            assert future.done(), "the future of a send is still open after close(): fail it with CallCancelled"
            future.result(0)
        receiver.wait_for_all(map(str, range(100)))
