"""Contract: inboxes, `Driver.inspect`, what a driver declares, and how it is made."""

from __future__ import annotations

import threading

import pytest

from msgbus import CapabilityMissing, ConfigurationError, MessageUndeliverable, get_rpc_transport
from msgbus.conformance.bus import Bus
from msgbus.conformance.checks.receiver import Receiver, another_driver, leave_behind, message, send
from msgbus.conformance.endpoint import make_conf
from msgbus.conformance.waiting import until
from msgbus.drivers.base import CONTRACT, Capability, Depth


class InboxChecks:
    """Of `Driver.open_inbox` and `Driver.inspect`."""

    def test_an_inbox_gets_what_is_sent_to_it(self, bus: Bus) -> None:
        """Each inbox has an address of its own, to which others can send without limit; nothing has to be accepted."""
        receivers = [Receiver(accept=False) for _ in range(2)]
        inboxes = [bus.driver.open_inbox(receiver.take) for receiver in receivers]
        for inbox in inboxes:
            inbox.ready.result(30)
        assert inboxes[0].address != inboxes[1].address
        assert all(len(inbox.address.name.encode()) <= 100 for inbox in inboxes)
        sender = another_driver(bus)
        futures = [sender.send(inboxes[n % 2].address, message(str(n)), mandatory=True) for n in range(1000)]
        for future in futures:
            future.result(30)
        for n, receiver in enumerate(receivers):
            receiver.wait(500)
            assert sorted(map(int, receiver.bodies)) == list(range(n, 1000, 2))
            assert receiver.overlaps == 0

    def test_an_inbox_keeps_the_order(self, bus: Bus) -> None:
        """One sender's messages reach an inbox in the order of sending."""
        bus.needs(Capability.ORDERED)
        receiver = Receiver(accept=False)
        inbox = bus.driver.open_inbox(receiver.take)
        inbox.ready.result(30)
        sender = another_driver(bus)
        for n in range(500):
            sender.send(inbox.address, message(str(n)), mandatory=True)
        receiver.wait(500)
        assert receiver.bodies == [str(n) for n in range(500)]

    def test_a_closed_inbox_is_gone(self, bus: Bus) -> None:
        """What is sent to it is undeliverable, and closing it again is no error."""
        inbox = bus.driver.open_inbox(Receiver(accept=False).take)
        inbox.ready.result(30)
        send(bus.driver, inbox.address, "x")
        inbox.close().result(15)
        inbox.close().result(15)
        with pytest.raises(MessageUndeliverable):
            another_driver(bus).send(inbox.address, message("y"), mandatory=True).result(15)

    def test_inspect_counts(self, bus: Bus) -> None:
        """Consumers and waiting messages are told as they are."""
        bus.needs(Capability.INSPECT)
        first = Receiver().subscribe(another_driver(bus), bus.address())
        second = Receiver().subscribe(another_driver(bus), bus.address())
        assert bus.driver.inspect(bus.address()).result(15).consumers == 2
        first.close().result(15)
        assert bus.driver.inspect(bus.address()).result(15).consumers == 1
        second.close().result(15)
        if Capability.STORE in bus.capabilities:
            for _ in range(3):
                send(bus.driver, bus.address(), "x")
            until(lambda: bus.driver.inspect(bus.address()).result(15) == Depth(0, 3), "three messages and no consumer")

    def test_inspect_of_nothing(self, bus: Bus) -> None:
        """An address that does not exist is undeliverable; asking does not create it, nor disturb others."""
        bus.needs(Capability.INSPECT)
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        for _ in range(2):
            for kind in ("server", "pool"):
                with pytest.raises(MessageUndeliverable):
                    bus.driver.inspect(bus.address(kind, server="nobody", name="nobody")).result(15)
        send(bus.driver, bus.address(), "x")
        receiver.wait(1)

    def test_inspect_needs_its_capability(self, bus: Bus) -> None:
        """A driver that does not declare inspect refuses to be asked for it."""
        if Capability.INSPECT in bus.capabilities:
            pytest.skip("the driver declares inspect")
        with pytest.raises(CapabilityMissing):
            bus.driver.inspect(bus.address())


class DriverChecks:
    """Of what a driver declares, and of how it is made."""

    def test_it_declares_what_the_contract_knows(self, bus: Bus) -> None:
        """Capabilities are a frozen set of the contract's names, and the contract's major version is ours."""
        assert type(bus.driver.capabilities) is frozenset
        assert set(bus.driver.capabilities) <= set(Capability)
        assert bus.driver.contract[0] == CONTRACT[0]

    def test_options_have_a_group_of_their_own(self, bus: Bus) -> None:
        """Its options are oslo.config options with a help text, in a named group."""
        group, opts = type(bus.driver).options()
        assert group
        assert group != "DEFAULT"
        assert all(opt.help for opt in opts)

    def test_a_wrong_option_in_the_url_is_an_error(self, bus: Bus) -> None:
        """A misspelt option is refused, and the text names the one that was meant."""
        _, opts = type(bus.driver).options()
        if not opts:
            pytest.skip("the driver has no options")
        name = opts[0].dest
        url = bus.harness.url + ("&" if "?" in bus.harness.url else "?") + f"{name}x=1"
        with pytest.raises(ConfigurationError, match=name):
            get_rpc_transport(make_conf({}), url)

    def test_making_it_does_nothing_yet(self, bus: Bus) -> None:
        """The constructor starts no thread; closing what was never used is no error."""
        threads = threading.active_count()
        driver = another_driver(bus)
        assert threading.active_count() == threads
        driver.close()
        driver.close()

    def test_state_is_one_line(self, bus: Bus) -> None:
        """The state is a line for an operator, before the first connection, with it, and after it."""
        driver = another_driver(bus)
        states = [driver.state]
        leave = driver.open_inbox(Receiver(accept=False).take)
        leave.ready.result(30)
        states.append(driver.state)
        driver.close()
        states.append(driver.state)
        for state in states:
            assert state
            assert "\n" not in state

    def test_closing_a_driver_gives_back_what_is_open(self, bus: Bus) -> None:
        """What a driver's subscriptions held goes to others when it is closed, as if it had died."""
        bus.needs(Capability.REQUEUE, Capability.STORE)
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
        assert receiver.deliveries[0].redelivered
        assert held.deliveries[0].accept() is False
