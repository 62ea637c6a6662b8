"""Faults of the message system: it is away for a while, dies, or loses its connections."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from msgbus import CallCancelled, MessagingException, MessagingTimeout, TransportUnavailable
from msgbus.conformance.bus import Bus
from msgbus.conformance.checks.receiver import Receiver, another_driver, leave_behind, message, send
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Capability

OUTAGE = 5.0
"""Seconds that the message system is away."""
BOTH = pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])


class DriverFaultChecks:
    """What a driver does when its connection breaks."""

    def test_subscriptions_and_inboxes_come_back(self, bus: Bus) -> None:
        """After a cut they work again under the same addresses, without a word from their owners."""
        bus.needs(harness=("cut",))
        receiver, replies = Receiver(), Receiver(accept=False)
        driver = another_driver(bus)
        addresses = [bus.address(), bus.address("server", server="s1"), bus.address("fanout", server="s1")]
        receiver.subscribe(driver, *addresses)
        inbox = driver.open_inbox(replies.take)
        inbox.ready.result(30)
        name = inbox.address.name
        for n in range(3):
            bus.harness.cut()
            assert inbox.address.name == name
            for at, address in enumerate((*addresses[:2], bus.address("fanout"), inbox.address)):
                body = f"{n} {at}"
                target = replies if address is inbox.address else receiver
                self._send_until_it_comes(bus, address, body, target)

    def _send_until_it_comes(self, bus: Bus, address: Any, body: str, receiver: Receiver) -> None:
        """What is sent in the moment of a cut may be lost, or have nobody there yet: the core would repeat it."""
        end = time.monotonic() + 20
        while body not in receiver.bodies:
            assert time.monotonic() < end, f"nothing comes to {address} after a cut"
            bus.driver.send(address, message(body), mandatory=False).exception(20)
            try:
                receiver.wait_for(body, 1)
            except AssertionError:
                continue

    def test_what_is_closed_before_it_is_ready_says_so(self, bus: Bus) -> None:
        """Whoever waits for a subscription or inbox while the message system is away hears of it when it is closed."""
        bus.needs(harness=("stop", "start"))
        driver = another_driver(bus)
        bus.harness.stop()
        try:
            subscription = driver.subscribe([bus.address()], Receiver().take, prefetch=1)
            inbox = driver.open_inbox(Receiver().take)
            for opened in (subscription, inbox):
                opened.close()
                assert isinstance(opened.ready.exception(10), CallCancelled | type(None))
        finally:
            bus.harness.start()

    def test_what_was_not_accepted_comes_again(self, bus: Bus) -> None:
        """After a cut, open deliveries are redelivered, and can no more be accepted as what they were."""
        bus.needs(Capability.REQUEUE, harness=("cut",))
        receiver = Receiver(accept=False)
        receiver.subscribe(another_driver(bus), bus.address())
        send(bus.driver, bus.address(), "x")
        first = receiver.wait(1)[0]
        bus.harness.cut()
        second = receiver.wait(2)[1]
        assert (first.redelivered, second.redelivered) == (False, True)
        assert second.message.id == first.message.id
        assert first.accept() is False
        assert second.accept() is True

    def test_sends_wait_while_it_is_away(self, bus: Bus) -> None:
        """What is sent during an outage arrives after it, in order, and `send` does not block meanwhile."""
        bus.needs(Capability.STORE, Capability.ORDERED, harness=("stop", "start"))
        driver = another_driver(bus)
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        send(driver, bus.address(), "before")
        receiver.wait(1)
        bus.harness.stop()
        start = time.monotonic()
        late = [driver.send(bus.address(), message(f"{n}", ttl=60), mandatory=True) for n in range(50)]
        assert time.monotonic() - start < 1
        bus.harness.start()
        for future in late:
            # A message may have been under way in the moment in which the end was noticed.
            error = future.exception(60)
            assert error is None or (isinstance(error, TransportUnavailable) and error.maybe_delivered)
        receiver.wait(2, 60)
        arrived = [int(body) for body in receiver.bodies[1:]]
        assert arrived == sorted(arrived)
        assert sum(future.exception(0) is None for future in late) >= 45

    def test_a_wait_that_is_too_long_ends(self, bus: Bus) -> None:
        """A message whose ttl ends during an outage fails then, as surely not delivered; inspecting fails at once."""
        bus.needs(harness=("stop", "start"))
        driver = another_driver(bus)
        Receiver().subscribe(driver, bus.address())
        send(driver, bus.address(), "before")
        bus.harness.stop()
        try:
            driver.send(bus.address(), message("probe", ttl=1.0), mandatory=True).exception(15)
            start = time.monotonic()
            error = driver.send(bus.address(), message("x", ttl=1.0), mandatory=True).exception(15)
            assert isinstance(error, TransportUnavailable)
            assert not error.maybe_delivered
            assert 0.9 < time.monotonic() - start < 3
            if Capability.INSPECT in bus.capabilities:
                start = time.monotonic()
                driver.inspect(bus.address()).exception(15)
                assert time.monotonic() - start < 2
        finally:
            bus.harness.start()

    def test_durable_messages_outlive_a_restart(self, bus: Bus) -> None:
        """Messages that are marked so, in the queue of a topic, a server or the dead letters, are there afterwards."""
        bus.needs(Capability.DURABLE, Capability.STORE, harness=("stop", "start"))
        addresses = [bus.address(), bus.address("server", server="s1"), bus.address("dead")]
        for address in addresses[:2]:
            leave_behind(bus, address)
        for address in addresses:
            send(bus.driver, address, address.kind, ttl=None, durable=True, mandatory=False)
        bus.harness.stop()
        bus.harness.start()
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), *addresses)
        receiver.wait(3, 60)
        assert sorted(receiver.bodies) == ["dead", "server", "topic"]

    def test_durable_messages_outlive_a_kill(self, bus: Bus) -> None:
        """What was confirmed as durable is there after the message system's process has been killed."""
        bus.needs(Capability.DURABLE, Capability.STORE, harness=("kill", "start"))
        leave_behind(bus, bus.address())
        for n in range(100):
            send(bus.driver, bus.address(), str(n), ttl=None, durable=True)
        bus.harness.kill()
        bus.harness.start()
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        receiver.wait(100, 60)
        assert sorted(map(int, receiver.bodies)) == list(range(100))


class BusFaultChecks:
    """What callers and servers see of it."""

    @BOTH
    def test_calls_over_an_outage(self, bus: Bus, delivery: Any) -> None:
        """Of 200 concurrent calls each ends in time, with its own value or one of our errors.

        Under at_least_once nearly all return their value; under at_most_once no handler runs twice.
        """
        bus.needs(harness=("stop", "start"))
        bus.serve("s1", "s2", "s3", executor_thread_pool_size=8, rpc_reply_grace=5.0)
        timeout = 60.0
        client = bus.client(timeout=timeout, delivery=delivery, transport=bus.new_transport(rpc_reply_grace=5.0))
        calls = [Task(client.call, {}, "work", key=f"k{n}", seconds=0.2) for n in range(200)]
        until(lambda: len(bus.journal.entries("done")) >= 20, "20 calls are done")
        bus.harness.stop()
        gone = time.monotonic()
        until(lambda: time.monotonic() - gone > OUTAGE, "the end of the outage", OUTAGE + 1)
        bus.harness.start()
        answered = 0
        for n, call in enumerate(calls):
            error = call.error(timeout + 5)
            assert call.seconds < timeout + 1, f"call {n} was late"
            assert error is None or isinstance(error, MessagingException), error
            if error is None:
                assert call.result() == f"k{n}"
                answered += 1
        runs = Counter(entry.key for entry in bus.journal.entries("run"))
        if delivery == "at_least_once":
            assert answered >= 190
        else:
            assert max(runs.values()) == 1
            assert answered >= 20
        assert client.call({}, "echo", value=1) == 1

    @BOTH
    def test_calls_over_cut_connections(self, bus: Bus, delivery: Any) -> None:
        """As over an outage, but all that happens is that every connection breaks, three times."""
        bus.needs(harness=("cut",))
        bus.serve("s1", "s2", "s3", executor_thread_pool_size=8, rpc_prefetch=4, rpc_reply_grace=5.0)
        client = bus.client(timeout=30, delivery=delivery, transport=bus.new_transport(rpc_reply_grace=5.0))
        calls = [Task(client.call, {}, "work", key=f"k{n}", seconds=0.1) for n in range(200)]
        for cut in range(1, 4):
            until(lambda: len(bus.journal.entries("done")) >= 20 * cut, f"{20 * cut} calls are done")  # noqa: B023
            bus.harness.cut()
        answered = 0
        for n, call in enumerate(calls):
            error = call.error(40)
            assert call.seconds < 31, f"call {n} was late"
            assert error is None or isinstance(error, MessagingException), error
            if error is None:
                assert call.result() == f"k{n}"
                answered += 1
        runs = Counter(entry.key for entry in bus.journal.entries("run"))
        if delivery == "at_least_once":
            assert answered == 200
        else:
            assert max(runs.values()) == 1
            assert answered >= 60

    def test_casts_over_an_outage(self, bus: Bus) -> None:
        """Every at_least_once cast that returned is run, though the message system was restarted under it."""
        bus.needs(Capability.DURABLE, harness=("stop", "start"))
        bus.serve("s1", "s2", executor_thread_pool_size=2)
        client = bus.client(timeout=60, delivery="at_least_once")
        casts = [Task(client.cast, {}, "work", key=f"k{n}", seconds=0.05) for n in range(200)]
        until(lambda: len(bus.journal.entries("done")) >= 10, "10 casts are done")
        bus.harness.stop()
        bus.harness.start()
        returned = {f"k{n}" for n, cast in enumerate(casts) if cast.error(70) is None}
        assert len(returned) >= 190
        until(lambda: {entry.key for entry in bus.journal.entries("done")} >= returned, "all casts are done", 60)

    def test_a_call_during_an_outage_ends_in_time(self, bus: Bus) -> None:
        """While the message system is away, each verb raises one of our errors at its deadline, which says so."""
        bus.needs(harness=("stop", "start"))
        bus.serve()
        client = bus.client(timeout=1.5)
        assert client.call({}, "echo", value=1) == 1
        bus.harness.stop()
        try:
            for verb in (client.call, client.cast, client.prepare(delivery="at_least_once").call):
                task = Task(verb, {}, "note", key="k")
                error = task.error(15)
                assert isinstance(error, MessagingException), error
                assert task.seconds < 1.5 + 1.5
        finally:
            bus.harness.start()
        assert bus.client(timeout=60, delivery="at_least_once").call({}, "echo", value=1) == 1

    def test_a_server_may_start_before_the_message_system(self, bus: Bus) -> None:
        """It waits for it, and serves when it comes; one that was given less time raises."""
        bus.needs(harness=("stop", "start"))
        bus.harness.stop()
        try:
            starting = Task(bus.serve, "s1")
            call = Task(bus.client(timeout=1.0).call, {}, "echo", value=1)
            assert isinstance(call.error(15), TransportUnavailable | MessagingTimeout)
            assert not starting.done or not bus.harness.processes
        finally:
            bus.harness.start()
        starting.join(60)
        starting.result()
        assert bus.client(timeout=60).call({}, "echo", value=1) == 1

    def test_an_idle_bus_comes_back(self, bus: Bus) -> None:
        """After a restart of the message system under idle clients and servers, all patterns and verbs work again."""
        bus.needs(harness=("stop", "start"))
        bus.serve("s1", "s2")
        client = bus.client(timeout=60, delivery="at_least_once")
        assert client.call({}, "echo", value=1) == 1
        bus.harness.stop()
        bus.harness.start()
        for name in ("s1", "s2"):
            assert client.prepare(server=name).call({}, "note", key="k") == name
        assert client.call({}, "echo", value=2) == 2
        assert list(client.multicall({}, "count", n=300)) == list(range(300))
        client.fanout_cast({}, "note", key="all")
        assert sorted(bus.ran("all", 2)) == ["s1", "s2"]
