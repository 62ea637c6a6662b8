"""Contract: what is sent arrives, once, at its address. All other checks build on these."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future

from msgbus.conformance.bus import Bus
from msgbus.conformance.check import Level, check
from msgbus.conformance.checks.receiver import Receiver, address_of, another_driver, message, send, send_all, sent_to
from msgbus.conformance.waiting import Task
from msgbus.drivers.base import Address, Capability, Sent

ALL: tuple[Level, ...] = ("driver", "bus")
MANY = 250
"""Messages to one address: enough to see what goes wrong only now and then."""


class BasicChecks:
    """If one of these fails, all other checks are skipped."""

    @check("driver", since="0.1", ground_of=ALL)
    def test_send_does_not_block(self, bus: Bus) -> None:
        """`Driver.send` returns at once, each of 200 times, and its future is done soon after."""

        def send_many() -> float:
            start = time.monotonic()
            sent: list[Future[Sent]] = []
            while len(sent) < 200 and time.monotonic() - start < 8:
                sent.append(bus.driver.send(bus.address("fanout"), message(str(len(sent))), mandatory=False))
            seconds = time.monotonic() - start
            for future in sent:
                future.result(15)
            assert len(sent) == 200, (
                f"send() was called {len(sent)} times in 8 s: it may not wait for the message system"
            )
            return seconds

        assert Task(send_many).result(30) < 4, (
            "200 calls of send() took longer than 4 s: it may not wait for the message system"
        )

    @check("driver", since="0.1", ground_of=ALL, builds_on=("test_send_does_not_block",))
    def test_ready_means_that_messages_arrive(self, bus: Bus) -> None:
        """Once a subscription or an inbox is ready, messages that are sent to it arrive."""
        for n in range(10):
            receiver, replies = Receiver(), Receiver(accept=False)
            address = bus.address("server", server="s")._replace(topic=f"{bus.topic}-{n}")
            subscription = bus.driver.subscribe([address], receiver.take, prefetch=10)
            inbox = bus.driver.open_inbox(replies.take)
            subscription.ready.result(15)
            inbox.ready.result(15)
            sender = another_driver(bus) if n % 2 else bus.driver
            send(sender, address, "x")
            send(sender, inbox.address, "y")
            receiver.wait_for("x", 5)
            replies.wait_for("y", 5)

    def _listen_everywhere(self, bus: Bus) -> list[tuple[Address, Receiver]]:
        """Subscribe to an address of each kind, on a topic of its own. Returns where to send to for each."""
        found = []
        for kind in ("topic", "server", "fanout", "pool", "dead"):
            if kind != "dead" or Capability.STORAGE in bus.capabilities:
                receiver = Receiver()
                address = address_of(bus, kind)._replace(topic=f"{bus.topic}-{kind}")
                receiver.subscribe(another_driver(bus), address)
                found.append((sent_to(address), receiver))
        replies = Receiver(accept=False)
        inbox = another_driver(bus).open_inbox(replies.take)
        inbox.ready.result(15)
        return [*found, (inbox.address, replies)]

    @check("driver", since="0.1", ground_of=ALL, builds_on=("test_ready_means_that_messages_arrive",))
    def test_no_message_is_lost(self, bus: Bus) -> None:
        """Of 250 messages to an address of each kind, each that the message system has taken arrives."""
        listening = self._listen_everywhere(bus)
        for address, _ in listening:
            send_all(bus.driver, address, map(str, range(MANY)))
        lost = []
        for address, receiver in listening:
            try:
                receiver.wait_for_all(map(str, range(MANY)))
            except AssertionError as exc:
                lost.append(f"{address}: {exc}")
        assert not lost, "messages that were taken have not arrived: " + "; ".join(lost)

    @check("driver", since="0.1", ground_of=ALL, builds_on=("test_no_message_is_lost",))
    def test_no_message_comes_twice(self, bus: Bus) -> None:
        """Of 250 messages to an address of each kind, each arrives once."""
        listening = self._listen_everywhere(bus)
        for address, _ in listening:
            send_all(bus.driver, address, [*map(str, range(MANY)), "end"])
        for address, receiver in listening:
            receiver.wait_for_all([*map(str, range(MANY)), "end"])
            twice = [body for body, count in Counter(receiver.bodies).items() if count > 1]
            assert not twice, f"{len(twice)} of {MANY} messages to {address} came more than once: {twice[:9]}"

    @check("driver", since="0.1", ground_of=ALL, builds_on=("test_no_message_comes_twice",))
    def test_an_inbox_gets_what_is_sent_to_it(self, bus: Bus) -> None:
        """Several inboxes, of one driver or two, have different addresses, and each gets only its own messages."""
        drivers = [bus.driver, bus.driver, another_driver(bus)]
        receivers = [Receiver(accept=False) for _ in drivers]
        inboxes = [driver.open_inbox(receiver.take) for driver, receiver in zip(drivers, receivers, strict=True)]
        for inbox in inboxes:
            inbox.ready.result(15)
        assert len({inbox.address for inbox in inboxes}) == len(inboxes), "two inboxes have the same address"
        assert all(inbox.address.kind == "inbox" for inbox in inboxes), (
            f"an inbox's address is of the kind inbox: {[inbox.address for inbox in inboxes]}"
        )
        assert all(len(inbox.address.name.encode()) <= 100 for inbox in inboxes), (
            "the name of an inbox travels in each request, and has at most 100 bytes: "
            f"{[inbox.address.name for inbox in inboxes]}"
        )
        for sender in (bus.driver, another_driver(bus)):
            for n, inbox in enumerate(inboxes):
                send_all(sender, inbox.address, [f"{n}"] * 10)
        for n, receiver in enumerate(receivers):
            receiver.wait(20, 5)
            assert receiver.bodies == [f"{n}"] * 20, (
                f"inbox {n} got what was sent to another, or not all: {receiver.bodies}"
            )
