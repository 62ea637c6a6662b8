"""Contract: inboxes, `Driver.inspect`, what a driver declares, and how it is made."""

from __future__ import annotations

import threading
import time

import pytest

from msgbus import CapabilityMissing, ConfigurationError, MessageUndeliverable, get_rpc_transport
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.forking import look_at_a_fork, look_at_futures_after_a_fork
from msgbus.conformance.checks.receiver import (
    Receiver,
    address_of,
    another_driver,
    leave_behind,
    message,
    send,
    send_all,
    sent_to,
    wait_until_disconnected,
)
from msgbus.conformance.endpoint import make_conf
from msgbus.conformance.waiting import Task, gather, until
from msgbus.drivers.base import CONTRACT, Capability, QueueInfo
from msgbus.drivers.toolkit.loop import Loop


class InboxChecks:
    """Of `Driver.open_inbox` and `Driver.inspect`."""

    @check("driver", since="0.1")
    def test_an_inbox_takes_without_limit(self, bus: Bus) -> None:
        """A thousand messages reach an inbox whose owner accepts none; calls of one inbox never overlap."""
        receiver = Receiver(
            accept=False, then=lambda _: time.sleep(0.0002)
        )  # long enough for another thread to interfere
        inbox = bus.driver.open_inbox(receiver.take)
        inbox.ready.result(30)
        senders = [another_driver(bus) for _ in range(2)]
        gather([Task(send_all, senders[n % 2], inbox.address, [f"{n} {m}" for m in range(250)]) for n in range(4)])
        receiver.wait(1000)
        assert receiver.overlaps == 0, (
            "on_delivery was called while another call of it ran: calls for one inbox may not overlap"
        )

    @check("driver", since="0.1", needs=(Capability.ORDERED,))
    def test_an_inbox_keeps_the_order(self, bus: Bus) -> None:
        """One sender's messages reach an inbox in the order of sending."""
        receiver = Receiver(accept=False)
        inbox = bus.driver.open_inbox(receiver.take)
        inbox.ready.result(30)
        sender = another_driver(bus)
        for n in range(500):
            sender.send(inbox.address, message(str(n)), mandatory=True)
        receiver.wait(500)
        assert receiver.bodies == [str(n) for n in range(500)]

    @check("driver", since="0.1", builds_on=("test_mandatory_to_nobody_fails_at_once",))
    def test_a_closed_inbox_is_removed(self, bus: Bus) -> None:
        """Messages to a closed inbox are undeliverable, and closing it again is no error."""
        inbox = bus.driver.open_inbox(Receiver(accept=False).take)
        inbox.ready.result(30)
        send(bus.driver, inbox.address, "x")
        inbox.close().result(15)
        inbox.close().result(15)
        with pytest.raises(MessageUndeliverable):
            another_driver(bus).send(inbox.address, message("y"), mandatory=True).result(15)

    @check(
        "driver",
        since="0.1",
        needs=(Capability.INSPECT,),
        builds_on=("test_closing_one_subscription_leaves_the_others",),
    )
    @pytest.mark.parametrize("kind", ["topic", "server", "pool"])
    def test_inspect_counts_consumers(self, bus: Bus, kind: str) -> None:
        """`inspect` returns the number of subscribers of an address."""
        address = address_of(bus, kind)
        subscriptions = []
        for count in (1, 2) if kind != "server" else (1,):
            subscriptions.append(Receiver().subscribe(another_driver(bus), address))
            assert bus.driver.inspect(address).result(15).consumers == count
        if len(subscriptions) == 2:
            subscriptions.pop().close().result(15)
            assert bus.driver.inspect(address).result(15).consumers == 1

    @check("driver", since="0.1", needs=(Capability.INSPECT, Capability.STORAGE))
    @pytest.mark.parametrize("kind", ["topic", "server", "pool", "dead"])
    def test_inspect_counts_what_waits(self, bus: Bus, kind: str) -> None:
        """`inspect` returns how many messages wait at an address without a subscriber."""
        address = address_of(bus, kind)
        if kind == "pool":  # Its topic needs a subscriber, or the messages would be undeliverable.
            Receiver().subscribe(bus.driver, bus.address())
        if kind != "dead":
            leave_behind(bus, address)
        send_all(bus.driver, sent_to(address), ["1", "2", "3"])
        until(lambda: bus.driver.inspect(address).result(15) == QueueInfo(0, 3), "three messages and no consumer")

    @check("driver", since="0.1", needs=(Capability.INSPECT,))
    def test_inspect_of_a_missing_address(self, bus: Bus) -> None:
        """`inspect` of a missing address fails with `MessageUndeliverable`, creates nothing, and disturbs nothing."""
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        for _ in range(2):
            for kind in ("server", "pool"):
                with pytest.raises(MessageUndeliverable):
                    bus.driver.inspect(bus.address(kind, server="nobody", name="nobody")).result(15)
        send(bus.driver, bus.address(), "x")
        receiver.wait(1)

    @check("driver", since="0.1", lacks=(Capability.INSPECT,))
    def test_inspect_is_declared_or_refused(self, bus: Bus) -> None:
        """A driver that does not declare inspect raises `CapabilityMissing`."""
        with pytest.raises(CapabilityMissing):
            bus.driver.inspect(bus.address())


class DriverChecks:
    """Of what a driver declares, and of its constructor."""

    @check("driver", since="0.1")
    def test_it_declares_only_known_capabilities(self, bus: Bus) -> None:
        """Capabilities are a frozen set of the contract's names, and the contract's major version fits."""
        assert type(bus.driver.capabilities) is frozenset, (
            f"capabilities is a frozenset, and here a {type(bus.driver.capabilities).__name__}"
        )
        assert set(bus.driver.capabilities) <= set(Capability)
        assert bus.driver.contract[0] == CONTRACT[0]

    @check("driver", since="0.1")
    def test_options_have_a_group_of_their_own(self, bus: Bus) -> None:
        """The driver's options are oslo.config options with a help text, in a named group."""
        group, opts = type(bus.driver).options()
        assert group, "options() names no group"
        assert group != "DEFAULT", (
            "options() names the group DEFAULT, which belongs to the service: take one of your own"
        )
        assert all(opt.help for opt in opts), f"options without help: {[opt.name for opt in opts if not opt.help]}"

    @check("driver", since="0.1")
    def test_a_wrong_option_in_the_url_is_an_error(self, bus: Bus) -> None:
        """A misspelt option in the URL is refused, and the text names the nearest valid one."""
        _, opts = type(bus.driver).options()
        if not opts:
            pytest.skip("the driver has no options")
        name = opts[0].dest
        url = bus.harness.url + ("&" if "?" in bus.harness.url else "?") + f"{name}x=1"
        with pytest.raises(ConfigurationError, match=name):
            get_rpc_transport(make_conf({}), url)

    @check("driver", since="0.1")
    def test_the_constructor_starts_nothing(self, bus: Bus) -> None:
        """The constructor starts no thread; closing a driver that was never used is no error."""
        threads = threading.active_count()
        driver = another_driver(bus)
        assert threading.active_count() == threads, (
            "the constructor has started a thread: connections open when first needed"
        )
        driver.close()
        driver.close()

    @check("driver", since="0.1")
    def test_state_is_one_line(self, bus: Bus) -> None:
        """`state` is one line for an operator: before the first connection, with it, and after it."""
        driver = another_driver(bus)
        states = [driver.state]
        leave = driver.open_inbox(Receiver(accept=False).take)
        leave.ready.result(30)
        states.append(driver.state)
        driver.close()
        states.append(driver.state)
        for state in states:
            assert state, "state is empty: it has to say where the driver is connected to, or why it is not"
            assert "\n" not in state, f"state has to be one line: {state!r}"

    @check("driver", since="0.1")
    def test_up_since_is_set_while_connected(self, bus: Bus) -> None:
        """With a connection, `up_since` is a time in the past."""
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        send(bus.driver, bus.address(), "x")
        receiver.wait(1)
        assert bus.driver.up_since is not None, "up_since is None although messages are sent and received"
        assert bus.driver.up_since <= Loop.now(), "up_since lies in the future: it is in seconds of Loop.now()"

    @check("driver", since="0.1", builds_on=("test_what_is_not_mandatory_may_reach_nobody",))
    def test_a_forked_child_starts_clean(self, bus: Bus) -> None:
        """A forked child can use the driver, gets none of its parent's messages, and does not disturb the parent."""
        if bus.worlds.clients == "asyncio":
            pytest.skip("an event loop is its parent's: in a forked child nothing runs on it")
        look_at_a_fork(another_driver(bus), bus.address("server", server="parent"))

    @check("driver", since="0.1", harness=("stop", "start"), builds_on=("test_a_forked_child_starts_clean",))
    def test_what_is_under_way_fails_in_a_forked_child(self, bus: Bus) -> None:
        """Sends that are unfinished at a fork fail in the child with `CallCancelled`, and go on in the parent."""
        driver = another_driver(bus)
        receiver = Receiver()
        receiver.subscribe(bus.driver, bus.address())
        send(driver, bus.address(), "before")
        bus.harness.stop()
        try:
            wait_until_disconnected(driver, bus.address())
            sent = driver.send(bus.address(), message("x", wait=90.0), mandatory=False)
            opened = [driver.open_inbox(Receiver(accept=False).take).ready]
            opened.append(driver.subscribe([bus.address("server", server="s1")], Receiver().take, prefetch=1).ready)
            look_at_futures_after_a_fork([sent, *opened])
        finally:
            bus.harness.start()
        assert sent.exception(60) is None, f"what the parent had sent before it forked ended with {sent.exception()!r}"
        for ready in opened:
            ready.result(60)
