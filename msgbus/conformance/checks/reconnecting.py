"""Contract: what a driver does when its connection breaks, or the message system is away, hangs or is killed."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future

import pytest

from msgbus import CallCancelled, MessagingException, TransportUnavailable
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.receiver import (
    Receiver,
    another_driver,
    leave_behind,
    message,
    send,
    send_all,
    sent_to,
    wait_until_disconnected,
)
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Address, Capability, Sent

SLACK = 2.0
"""The most seconds after its ttl or wait that a message may take to fail, on a slow machine too."""


def _repeated(counts: Counter[str]) -> list[str]:
    """The messages that were counted more than once: how many there are, and a few of them."""
    found = [name for name, count in counts.items() if count > 1]
    return [f"{len(found)} messages", *found[:3]]


class ReconnectingChecks:
    """Of drivers during faults."""

    @check("driver", since="0.1", harness=("cut",), builds_on=("test_kinds_of_addresses_are_apart",))
    def test_subscriptions_and_inboxes_come_back(self, bus: Bus) -> None:
        """After a cut, subscriptions and inboxes work again at the same addresses, without any action."""
        receiver, replies = Receiver(), Receiver(accept=False)
        driver = another_driver(bus)
        addresses = [bus.address(), bus.address("server", server="s1"), bus.address("fanout", server="s1")]
        receiver.subscribe(driver, *addresses)
        inbox = driver.open_inbox(replies.take)
        inbox.ready.result(30)
        before = inbox.address
        for n in range(3):
            bus.harness.cut()
            assert inbox.address == before, (
                "the inbox has another address after the reconnect: keep the name, so that answers under way find it"
            )
            for address in addresses:
                self._send_until_it_comes(bus, sent_to(address), f"{n} {address.kind}", receiver)
            self._send_until_it_comes(bus, before, f"{n}", replies)

    def _send_until_it_comes(self, bus: Bus, address: Address, body: str, receiver: Receiver) -> None:
        """A message that is sent during a cut may be lost or undeliverable: here it is repeated, as the core would."""
        end = time.monotonic() + 20
        while body not in receiver.bodies:
            assert time.monotonic() < end, f"nothing comes to {address} after a cut"
            error = bus.driver.send(address, message(body), mandatory=False).exception(20)
            assert isinstance(error, MessagingException | type(None)), error
            try:
                receiver.wait_for(body, 1)
            except AssertionError:
                continue

    @check("driver", since="0.1", harness=("cut",), builds_on=("test_subscriptions_and_inboxes_come_back",))
    def test_cut_connections_repeat_nothing(self, bus: Bus) -> None:
        """A driver never repeats a message: after a cut each arrives once, except those marked as redelivered.

        And what it says of each is true: one whose send is done has come; one whose send failed is undelivered, unless
        the error says that it may be delivered.
        """
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        sender = another_driver(bus)
        send(sender, bus.address(), "first")
        sent = {}
        for n in range(200):
            sent[str(n)] = sender.send(bus.address(), message(str(n)), mandatory=False)
            if n == 100:
                bus.harness.cut()
        errors = {body: future.exception(40) for body, future in sent.items()}
        assert all(isinstance(error, MessagingException | type(None)) for error in errors.values())
        self._send_until_it_comes(bus, bus.address(), "last", receiver)
        once = Counter(delivery.message.id for delivery in receiver.deliveries if not delivery.redelivered)
        assert not [count for count in once.values() if count > 1], (
            f"{_repeated(once)} arrived more than once without the mark redelivered: switch off what the library "
            "repeats by itself (offline buffer, retries, reconnect)"
        )
        surely_not = {
            body
            for body, error in errors.items()
            if error is not None and not (isinstance(error, TransportUnavailable) and error.maybe_delivered)
        }
        assert not surely_not & set(receiver.bodies), (
            f"{sorted(surely_not & set(receiver.bodies))} arrived, but their sends failed as surely not delivered: "
            "set maybe_delivered as soon as a byte may have been sent"
        )

    @check(
        "driver",
        since="0.1",
        needs=(Capability.REQUEUE,),
        harness=("cut",),
        builds_on=(
            "test_a_first_delivery_is_not_marked_as_redelivered",
            "test_close_gives_back_open_deliveries",
            "test_what_is_given_back_is_marked_as_redelivered",
        ),
    )
    def test_unaccepted_deliveries_are_redelivered_after_a_cut(self, bus: Bus) -> None:
        """After a cut, open deliveries are delivered again, and the old ones can no longer be accepted."""
        receiver = Receiver(accept=False)
        receiver.subscribe(another_driver(bus), bus.address())
        send(bus.driver, bus.address(), "x")
        first = receiver.wait(1)[0]
        bus.harness.cut()
        second = receiver.wait(2)[1]
        assert (first.redelivered, second.redelivered) == (False, True), (
            "after the cut the message was delivered again, and only the second delivery may have redelivered set"
        )
        assert second.message.id == first.message.id, "the id of a message has changed when it was delivered again"
        assert first.accept() is False, (
            "accept() of a delivery whose connection has ended has to return False: it no longer has an effect"
        )
        assert second.accept() is True, "accept() is to return True over a connection that lives"

    @check("driver", since="0.1", needs=(Capability.INBOX_STORAGE,), harness=("cut",))
    def test_an_inbox_keeps_what_comes_during_a_cut(self, bus: Bus) -> None:
        """Messages to an inbox that are accepted while its owner reconnects are delivered afterwards."""
        replies = Receiver(accept=False)
        inbox = another_driver(bus).open_inbox(replies.take)
        inbox.ready.result(30)
        taken = []
        for n in range(3):
            bus.harness.cut()
            for m in range(20):
                sent = bus.driver.send(inbox.address, message(f"{n} {m}"), mandatory=True)
                if sent.exception(30) is None:
                    taken.append(f"{n} {m}")
        assert taken, (
            "none of 60 messages to the inbox was taken while its owner reconnected: send() has to wait for the "
            "connection"
        )
        until(lambda: set(replies.bodies) >= set(taken), "all messages that were taken", 30)

    @check("driver", since="0.1", harness=("stop", "start"))
    def test_closing_what_is_not_ready_ends_the_wait(self, bus: Bus) -> None:
        """If a subscription or inbox is closed while the message system is away, waiting for it ends with an error."""
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

    @check("driver", since="0.1", harness=("stop", "start"), builds_on=("test_subscriptions_and_inboxes_come_back",))
    def test_sends_wait_while_it_is_away(self, bus: Bus) -> None:
        """Messages that are sent during a known outage arrive once after it; `send` does not block.

        What is sent before it has noticed may be given to a connection that has ended already: so it arrives, or fails
        as maybe delivered.
        """
        driver = another_driver(bus)
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        send(driver, bus.address(), "before")
        receiver.wait(1)

        def send_50(name: str) -> dict[str, Future[Sent]]:
            bodies = [f"{name} {n}" for n in range(50)]
            return {body: driver.send(bus.address(), message(body), mandatory=False) for body in bodies}

        bus.harness.stop()
        try:
            sending = Task(send_50, "early")
            sent = sending.result(10)
            wait_until_disconnected(driver, bus.address())
            late = send_50("late")
            sent |= late
            assert sending.seconds < 2, (
                f"50 calls of send() took {sending.seconds:.1f} s while the message system was away: send() must not "
                "wait for it"
            )
        finally:
            bus.harness.start()
        errors = {body: future.exception(60) for body, future in sent.items()}
        for body, error in errors.items():
            assert error is None or (isinstance(error, TransportUnavailable) and error.maybe_delivered), (
                f"the message {body!r} was sent while the message system was away, and ended with {error!r}: it has to "
                "wait, or to fail with maybe_delivered=True if the library may have sent a byte of it"
            )
        failed = [error for body, error in errors.items() if error is not None and body in late]
        assert not failed, (
            f"of 50 sent after the driver had noticed that the message system was away {len(failed)} count as maybe "
            f"delivered, the first with {failed[0]!r}: let them wait in a queue of the driver's own until there "
            "is a new connection"
        )
        if Capability.STORAGE in bus.capabilities:
            receiver.wait_for_all(body for body, error in errors.items() if error is None)
        once = Counter(delivery.message.id for delivery in receiver.deliveries if not delivery.redelivered)
        assert not [count for count in once.values() if count > 1], (
            f"{_repeated(once)} arrived more than once without the mark redelivered: switch off what the library "
            "repeats by itself (offline buffer, retries, reconnect)"
        )

    @check(
        "driver",
        since="0.1",
        needs=(Capability.STORAGE, Capability.ORDERED),
        harness=("stop", "start"),
        builds_on=("test_sends_wait_while_it_is_away", "test_one_senders_messages_keep_their_order"),
    )
    def test_sends_that_waited_keep_their_order(self, bus: Bus) -> None:
        """Messages that waited for a connection are sent in the order of the calls of `send`."""
        driver = another_driver(bus)
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        send(driver, bus.address(), "0")
        bus.harness.stop()
        late = [driver.send(bus.address(), message(str(n), ttl=60), mandatory=False) for n in range(1, 50)]
        bus.harness.start()
        taken = [n for n, future in enumerate(late, 1) if future.exception(60) is None]
        receiver.wait_for_all(map(str, taken))
        arrived = [int(delivery.message.body) for delivery in receiver.deliveries if not delivery.redelivered]
        assert arrived == sorted(arrived), f"what waited came out of order: {arrived}"

    @check("driver", since="0.1", harness=("stop", "start"))
    @pytest.mark.parametrize(
        ("ttl", "wait"), [(1.0, None), (None, 1.0), (60.0, 1.0)], ids=["ttl", "wait", "wait within the ttl"]
    )
    def test_a_message_fails_when_its_wait_ends(self, bus: Bus, ttl: float | None, wait: float | None) -> None:
        """A message whose ttl or wait ends during an outage fails as surely not delivered, and never arrives."""
        driver = another_driver(bus)
        receiver = Receiver()
        receiver.subscribe(driver, bus.address())
        send(driver, bus.address(), "before")
        bus.harness.stop()
        try:
            driver.send(bus.address(), message("probe", ttl=1.0), mandatory=True).exception(15)
            start = time.monotonic()
            error = driver.send(bus.address(), message("x", ttl=ttl, wait=wait), mandatory=True).exception(15)
            assert isinstance(error, TransportUnavailable), f"it ended with {error!r}"
            assert not error.maybe_delivered, "it waited all the time, so maybe_delivered is to be False"
            assert 0.9 < time.monotonic() - start < 4, (
                f"it failed after {time.monotonic() - start:.1f} s instead of 1.0"
            )
        finally:
            bus.harness.start()
        for number in range(
            2
        ):  # If the library had kept a message and sent it first on the new connection, it has arrived by now.
            self._send_until_it_comes(bus, bus.address(), f"after {number}", receiver)
        assert "x" not in receiver.bodies, (
            "a message whose send had failed as not delivered arrived after the outage: switch off the "
            "buffer in which the library keeps what is sent while it has no connection"
        )

    @check(
        "driver",
        since="0.1",
        harness=("stop", "start"),
        builds_on=("test_sends_wait_while_it_is_away", "test_a_message_fails_when_its_wait_ends"),
    )
    def test_close_fails_waiting_messages(self, bus: Bus) -> None:
        """If a driver is closed while the message system is away, waiting messages fail with `CallCancelled`."""
        driver = another_driver(bus)
        Receiver().subscribe(driver, bus.address())
        send(driver, bus.address(), "before")
        bus.harness.stop()
        try:
            wait_until_disconnected(driver, bus.address())
            waiting = driver.send(bus.address(), message("x", wait=90.0), mandatory=True)
            Task(driver.close).join(20)
            assert waiting.done(), "the driver is closed, and a message that waited to be sent is still not done"
            error = waiting.exception(0)
            assert isinstance(error, CallCancelled), f"it ended with {error!r}"
        finally:
            bus.harness.start()

    @check("driver", since="0.1", harness=("cut",), builds_on=("test_subscriptions_and_inboxes_come_back",))
    def test_up_since_begins_anew_with_each_connection(self, bus: Bus) -> None:
        """After a cut, `up_since`, if the driver sets it, is later than the cut."""
        driver, receiver = bus.driver, Receiver()
        receiver.subscribe(driver, bus.address())
        self._send_until_it_comes(bus, bus.address(), "before", receiver)
        if driver.up_since == 0.0:
            pytest.skip("the driver does not say since when it is up")
        cut = time.monotonic()
        bus.harness.cut()
        until(lambda: (driver.up_since or 0.0) > cut, "up_since is later than the cut of the connection", 30)
        self._send_until_it_comes(bus, bus.address(), "after", receiver)

    @check("driver", since="0.1", needs=(Capability.INSPECT,), harness=("stop", "start"))
    def test_inspect_does_not_wait_for_an_outage(self, bus: Bus) -> None:
        """While the message system is away, `inspect` soon returns or fails."""
        driver = another_driver(bus)
        Receiver().subscribe(driver, bus.address())
        send(driver, bus.address(), "before")
        bus.harness.stop()
        try:
            driver.send(bus.address(), message("probe", ttl=0.5), mandatory=True).exception(15)
            start = time.monotonic()
            error = driver.inspect(bus.address()).exception(15)
            assert isinstance(error, MessagingException | type(None)), f"it ended with {error!r}"
            assert time.monotonic() - start < 2.5, (
                f"inspect() took {time.monotonic() - start:.1f} s while the message system was away: fail within a "
                "second"
            )
        finally:
            bus.harness.start()

    @check("driver", since="0.1", harness=("pause", "resume"))
    def test_a_message_without_an_answer_may_be_delivered(self, bus: Bus) -> None:
        """A message that was sent to a hanging message system fails at the end of its time, as maybe delivered."""
        driver = another_driver(bus)
        Receiver().subscribe(bus.driver, bus.address())
        send(driver, bus.address(), "before")
        bus.harness.pause()
        try:
            start = time.monotonic()
            sending = Task(driver.send, bus.address(), message("x", ttl=1.5), mandatory=True)
            error = sending.result(5).exception(20)
            assert isinstance(error, TransportUnavailable), f"it ended with {error!r}"
            assert error.maybe_delivered, "it was sent and has no answer, so maybe_delivered is to be True"
            assert 1.4 < time.monotonic() - start < 6, (
                f"it failed after {time.monotonic() - start:.1f} s instead of 1.5"
            )
        finally:
            bus.harness.resume()
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address("server", server="s2"))
        self._send_until_it_comes(bus, bus.address("server", server="s2"), "after", receiver)

    @check("driver", since="0.1", harness=("pause", "resume"))
    def test_a_short_wait_ends_in_time_while_it_hangs(self, bus: Bus) -> None:
        """However short a message's wait, the message fails at its end, as maybe delivered."""
        driver = another_driver(bus)
        Receiver().subscribe(bus.driver, bus.address())
        send(driver, bus.address(), "before")
        bus.harness.pause()
        try:
            for wait in (0.05, 0.2, 0.35, 0.7):
                late = driver.send(bus.address(), message("x", ttl=None, wait=wait), mandatory=True)
                long_wait = driver.send(bus.address(), message("y", ttl=None, wait=60.0), mandatory=True)
                start = time.monotonic()
                error = late.exception(20)
                assert isinstance(error, TransportUnavailable), error
                assert error.maybe_delivered, "it was sent and has no answer, so maybe_delivered is to be True"
                assert time.monotonic() - start < wait + SLACK, (
                    f"a message that may wait for {wait:g} s failed after {time.monotonic() - start:.1f} s"
                )
                assert not long_wait.done(), "that one message is given up says nothing of the next"
        finally:
            bus.harness.resume()

    @check("driver", since="0.1", harness=("partition", "heal"))
    def test_all_comes_back_after_a_partition(self, bus: Bus) -> None:
        """During a partition messages wait; afterwards subscriptions and inboxes work as before."""
        receiver, replies = Receiver(), Receiver(accept=False)
        driver = another_driver(bus)
        receiver.subscribe(driver, bus.address())
        inbox = driver.open_inbox(replies.take)
        inbox.ready.result(30)
        send(bus.driver, bus.address(), "before")
        bus.harness.partition()
        try:
            late = message("x", ttl=1.0)
            error = bus.driver.send(bus.address(), late, mandatory=True).exception(15)
            assert isinstance(error, TransportUnavailable), f"it ended with {error!r}"
        finally:
            bus.harness.heal()
        self._send_until_it_comes(bus, bus.address(), "after", receiver)
        self._send_until_it_comes(bus, inbox.address, "after", replies)

    @check("driver", since="0.1", needs=(Capability.DURABLE, Capability.STORAGE), harness=("stop", "start"))
    def test_durable_messages_outlive_a_restart(self, bus: Bus) -> None:
        """Durable messages for a topic, a server or the dead letters still exist after a restart."""
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

    @check("driver", since="0.1", needs=(Capability.DURABLE, Capability.STORAGE), harness=("kill", "start"))
    def test_durable_messages_outlive_a_kill(self, bus: Bus) -> None:
        """Confirmed durable messages still exist after the message system's process was killed."""
        leave_behind(bus, bus.address())
        bodies = [str(n) for n in range(100)]
        for future in [
            bus.driver.send(bus.address(), message(body, ttl=None, durable=True), mandatory=True) for body in bodies
        ]:
            future.result(30)
        bus.harness.kill()
        bus.harness.start()
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        receiver.wait(100, 60)
        assert sorted(map(int, receiver.bodies)) == list(range(100)), "each of 100 messages is to arrive once"

    @check(
        "driver",
        since="0.1",
        needs=(Capability.STORAGE,),
        lacks=(Capability.DURABLE,),
        harness=("kill", "start"),
    )
    def test_durable_is_declared_where_it_works(self, bus: Bus) -> None:
        """If the driver does not declare durable, a kill loses durable messages."""
        leave_behind(bus, bus.address())
        send(bus.driver, bus.address(), "kept", ttl=None, durable=True)
        bus.harness.kill()
        bus.harness.start()
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        send_all(another_driver(bus), bus.address(), ["end"])
        receiver.wait_for("end")
        assert receiver.bodies == ["end"], f"what came before the end should have expired: {receiver.bodies}"
