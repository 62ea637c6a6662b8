"""Contract, `Delivery`: what happens to a message that is accepted, rejected, or neither."""

from __future__ import annotations

import pytest

from msgbus import CapabilityMissing
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.receiver import Receiver, another_driver, leave_behind, send, send_all
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Capability, Delivery


class SettlingChecks:
    """Of `Delivery.accept` and `reject`, and of deliveries on which neither was called."""

    @check("driver", since="0.1")
    def test_a_first_delivery_is_not_marked_as_redelivered(self, bus: Bus) -> None:
        """A first delivery is not marked as redelivered, and its attempts are 0 if they are counted."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address())
        send_all(bus.driver, bus.address(), map(str, range(10)))
        attempts = 0 if Capability.ATTEMPT_COUNT in bus.capabilities else None
        assert {(got.redelivered, got.attempts) for got in receiver.wait(10)} == {(False, attempts)}

    @check("driver", since="0.1", needs=(Capability.REQUEUE,))
    def test_close_gives_back_open_deliveries(self, bus: Bus) -> None:
        """Deliveries that were neither accepted nor rejected go to another subscriber, unchanged."""
        first = Receiver(accept=False)
        subscription = first.subscribe(another_driver(bus), bus.address())
        send_all(bus.driver, bus.address(), map(str, range(5)))
        first.wait(5)
        first.deliveries[0].accept()
        second = Receiver()
        second.subscribe(another_driver(bus), bus.address())
        subscription.close().result(15)
        subscription.close().result(15)
        second.wait(4)
        before = {delivery.message.body: delivery.message.id for delivery in first.deliveries[1:]}
        assert {delivery.message.body: delivery.message.id for delivery in second.deliveries} == before

    @check("driver", since="0.1", needs=(Capability.REQUEUE,), builds_on=("test_close_gives_back_open_deliveries",))
    def test_what_is_given_back_is_marked_as_redelivered(self, bus: Bus) -> None:
        """A message that is given back is marked as redelivered, and its attempts are counted, if declared."""
        bodies = list(map(str, range(3)))
        again: list[Delivery] = []
        subscription = (first := Receiver(accept=False)).subscribe(another_driver(bus), bus.address())
        send_all(bus.driver, bus.address(), bodies)
        first.wait(3)
        for _ in range(2):
            receiver = Receiver(accept=False)
            following = receiver.subscribe(another_driver(bus), bus.address())
            subscription.close().result(15)
            again = receiver.wait(3)
            assert all(delivery.redelivered for delivery in again), (
                "a message that was given back came without the mark redelivered, on which at_most_once relies"
            )
            subscription = following
        counted = 2 if Capability.ATTEMPT_COUNT in bus.capabilities else None
        assert [delivery.attempts for delivery in again] == [counted] * 3

    @check(
        "driver",
        since="0.1",
        needs=(Capability.REQUEUE, Capability.STORAGE),
        builds_on=("test_close_gives_back_open_deliveries",),
    )
    def test_closing_a_driver_gives_back_open_deliveries(self, bus: Bus) -> None:
        """If a driver is closed, the open deliveries of its subscriptions go to others, as if it had died."""
        leave_behind(bus, bus.address())
        holder = another_driver(bus)
        held = Receiver(accept=False)
        held.subscribe(holder, bus.address())
        send(bus.driver, bus.address(), "x")
        held.wait(1)
        holder.close()
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        receiver.wait_for("x")

    @check("driver", since="0.1", ground_of=("bus",))
    def test_accept_returns_whether_the_connection_lives(self, bus: Bus) -> None:
        """`accept` returns True over a live connection, and False once the driver is closed."""
        receiver = Receiver(accept=False)
        holder = another_driver(bus)
        receiver.subscribe(holder, bus.address())
        send_all(bus.driver, bus.address(), ["x", "y"])
        receiver.wait(2)
        assert Task(receiver.deliveries[0].accept).result() is True, (
            "accept() has to return True over a live connection, on any thread"
        )
        holder.close()
        assert receiver.deliveries[1].accept() is False, (
            "accept() has to return False once the driver is closed: the message was given back"
        )

    @check("driver", since="0.1", builds_on=("test_accept_returns_whether_the_connection_lives",))
    def test_a_second_accept_returns_what_the_first_did(self, bus: Bus) -> None:
        """Only the first `accept` or `reject` counts; a later `accept` returns what the first one found."""
        receiver = Receiver(accept=False)
        holder = another_driver(bus)
        receiver.subscribe(holder, bus.address())
        send_all(bus.driver, bus.address(), ["x", "y", "z"])
        accepted, dropped, late = receiver.wait(3)
        said = [accepted.accept(), accepted.accept(), Task(accepted.accept).result()]
        assert said == [True] * 3, f"three times accept() returned {said}: the second is to return what the first did"
        dropped.reject(requeue=False)
        assert dropped.accept() is True, "accept() after reject() is to return True: the connection lived at the first"
        holder.close()
        assert accepted.accept() is True, "accept() has returned True before: it is to return that again"
        said = [late.accept(), late.accept()]
        assert said == [False] * 2, f"after close() accept() returned {said}: it was called too late both times"

    @check("driver", since="0.1")
    def test_accept_is_for_good(self, bus: Bus) -> None:
        """A message that was accepted, on any thread, is not delivered again, even if it is rejected afterwards."""
        receiver = Receiver(accept=False)
        subscription = receiver.subscribe(another_driver(bus), bus.address())
        send(bus.driver, bus.address(), "x")
        delivery = receiver.wait(1)[0]
        Task(delivery.accept).join()
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
        assert "x" not in again.bodies + receiver.bodies[1:], (
            "a message that was accepted was delivered again: after accept(), reject() has to have no effect"
        )

    @check(
        "driver",
        since="0.1",
        needs=(Capability.REQUEUE,),
        builds_on=("test_close_gives_back_open_deliveries", "test_a_first_delivery_is_not_marked_as_redelivered"),
    )
    def test_reject_with_requeue_delivers_it_again(self, bus: Bus) -> None:
        """A message that is given back is delivered again, as redelivered, any number of times."""

        def settle(delivery: Delivery) -> None:
            number = sum(len(receiver.deliveries) for receiver in receivers)
            if number == 2:
                delivery.reject(requeue=True)
            elif number > 2:
                delivery.accept()

        receivers = [Receiver(accept=False, then=settle) for _ in range(2)]
        first, other = receivers
        first.subscribe(another_driver(bus), bus.address())
        send(bus.driver, bus.address(), "x")
        first.wait(1)
        other.subscribe(another_driver(bus), bus.address())
        first.deliveries[0].reject(requeue=True)
        until(lambda: sum(len(receiver.deliveries) for receiver in receivers) >= 3, "the third delivery")
        all_three = [delivery for receiver in receivers for delivery in receiver.deliveries]
        all_three.sort(key=lambda delivery: delivery.arrived)
        assert [delivery.redelivered for delivery in all_three] == [False, True, True]
        assert len({(delivery.message.id, delivery.message.body) for delivery in all_three}) == 1, (
            "id or body has changed when it was delivered again"
        )
        counted = [0, 1, 2] if Capability.ATTEMPT_COUNT in bus.capabilities else [None] * 3
        assert [delivery.attempts for delivery in all_three] == counted

    @check("driver", since="0.1")
    def test_reject_without_requeue_drops_it(self, bus: Bus) -> None:
        """A message that is dropped is not delivered again."""
        receiver = Receiver(accept=False, then=lambda delivery: delivery.reject(requeue=False))
        subscription = receiver.subscribe(another_driver(bus), bus.address(), prefetch=10)
        for body in ("x", "y"):
            send(bus.driver, bus.address(), body)
        receiver.wait(2)
        subscription.close().result(15)
        again = Receiver()
        again.subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "end")
        again.wait_for("end")
        assert again.bodies == ["end"], f"what was dropped, or accepted, came again: {again.bodies}"
        assert sorted(receiver.bodies) == ["x", "y"]

    @check("driver", since="0.1", lacks=(Capability.REQUEUE,))
    def test_requeue_is_declared_or_refused(self, bus: Bus) -> None:
        """A driver that does not declare requeue raises `CapabilityMissing`."""
        receiver = Receiver(accept=False)
        receiver.subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "x")
        with pytest.raises(CapabilityMissing):
            receiver.wait(1)[0].reject(requeue=True)
