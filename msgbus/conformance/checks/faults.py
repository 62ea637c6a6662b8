"""How callers and servers see faults of the message system: an outage, or broken connections."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import Any

import pytest

from msgbus import MessagingException, MessagingTimeout, OutcomeUnknown, TransportUnavailable
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.deadlines import SLACK
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Capability

OUTAGE = 2.0
"""Seconds that the message system is away."""
BOTH = pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])


def _why_not(tasks: list[Task]) -> list[str]:
    """A few of the errors of those that failed."""
    return [repr(error) for task in tasks if task.done and (error := task.error()) is not None][:3]


class BusFaultChecks:
    """Of calls, casts and servers during faults."""

    @check("bus", since="0.1", harness=("stop", "start"))
    @BOTH
    def test_calls_over_an_outage(self, bus: Bus, delivery: Any) -> None:
        """Each of 200 concurrent calls ends in time, with its own value or an error of msgbus.

        Under at_least_once all return their value; under at_most_once no handler runs twice.
        """
        bus.serve("s1", "s2", "s3", executor_thread_pool_size=8, rpc_reply_grace=20.0)
        timeout = 60.0
        # Reconnecting may take long on a slow machine. An unanswered at_most_once call is given up after the grace.
        grace = 5.0 if delivery == "at_least_once" else 2.0
        client = bus.client(timeout=timeout, delivery=delivery, transport=bus.new_transport(rpc_reply_grace=grace))
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
            assert answered == 200, f"{answered} of 200 at_least_once calls were answered: {_why_not(calls)}"
        else:
            assert max(runs.values()) == 1, (
                f"at_most_once, and these ran more than once: {[key for key, count in runs.items() if count > 1][:9]}"
            )
            assert answered >= 20, f"only {answered} of 200 calls were answered: {_why_not(calls)}"
        assert client.call({}, "echo", value=1) == 1

    @check("bus", since="0.1", harness=("cut",))
    @BOTH
    def test_calls_over_cut_connections(self, bus: Bus, delivery: Any) -> None:
        """Each of 200 concurrent calls ends in time while all connections are broken three times."""
        bus.serve("s1", "s2", "s3", executor_thread_pool_size=8, rpc_prefetch=4, rpc_reply_grace=20.0)
        grace = 5.0 if delivery == "at_least_once" else 2.0
        client = bus.client(timeout=30, delivery=delivery, transport=bus.new_transport(rpc_reply_grace=grace))
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
            assert answered == 200, f"{answered} of 200 at_least_once calls were answered: {_why_not(calls)}"
        else:
            assert max(runs.values()) == 1, (
                f"at_most_once, and these ran more than once: {[key for key, count in runs.items() if count > 1][:9]}"
            )
            assert answered >= 60, f"only {answered} of 200 calls were answered: {_why_not(calls)}"
        self._wait_for_servers(client, 3)

    @staticmethod
    def _wait_for_servers(client: Any, count: int) -> None:
        """Wait until servers are back: one that is closed before that cannot remove what it had in the message system.

        Whether they answer pings is for other checks to say.
        """
        with contextlib.suppress(MessagingException, AssertionError):
            until(lambda: len(client.ping(2.0)) >= count, "the servers are back", 10)

    @check("bus", since="0.1", needs=(Capability.DURABLE,), harness=("stop", "start"))
    def test_casts_over_an_outage(self, bus: Bus) -> None:
        """Every at_least_once cast that returned is run, although the message system was restarted meanwhile."""
        bus.serve("s1", "s2", executor_thread_pool_size=2)
        client = bus.client(timeout=60, delivery="at_least_once")
        casts = [Task(client.cast, {}, "work", key=f"k{n}", seconds=0.05) for n in range(200)]
        until(lambda: len(bus.journal.entries("done")) >= 10, "10 casts are done")
        bus.harness.stop()
        bus.harness.start()
        returned = {f"k{n}" for n, cast in enumerate(casts) if cast.error(70) is None}
        assert len(returned) >= 190, f"only {len(returned)} of 200 casts were taken: {_why_not(casts)}"
        until(lambda: {entry.key for entry in bus.journal.entries("done")} >= returned, "all casts are done", 60)

    @check("bus", since="0.1", harness=("stop", "start"))
    def test_a_call_during_an_outage_ends_in_time(self, bus: Bus) -> None:
        """While the message system is away, each verb raises an error of msgbus at its deadline, with the reason."""
        bus.serve()
        client = bus.client(timeout=1.5)
        assert client.call({}, "echo", value=1) == 1
        bus.harness.stop()
        try:
            for verb in (client.call, client.cast, client.prepare(delivery="at_least_once").call):
                task = Task(verb, {}, "note", key="k")
                error = task.error(15)
                assert isinstance(error, MessagingException), error
                assert task.seconds < 1.5 + 1.5, f"a verb with a deadline of 1.5 s ended after {task.seconds:.1f} s"
        finally:
            bus.harness.start()
        assert bus.client(timeout=60, delivery="at_least_once").call({}, "echo", value=1) == 1

    @check(
        "bus",
        since="0.1",
        harness=("pause", "resume"),
        builds_on=(
            "test_a_message_without_an_answer_may_be_delivered",
            "test_a_short_wait_ends_in_time_while_it_hangs",
        ),
    )
    @BOTH
    def test_a_cast_while_it_hangs_may_be_delivered(self, bus: Bus, delivery: Any) -> None:
        """A cast that the message system does not answer says at its deadline that it may have been delivered.

        It raises `OutcomeUnknown` under at_most_once, and `TransportUnavailable` under at_least_once.
        """
        bus.serve()
        assert bus.client().call({}, "echo", value=1) == 1
        bus.harness.pause()
        try:
            for timeout in (0.05, 0.2, 0.35, 0.7):
                cast = Task(bus.client(timeout=timeout, delivery=delivery).cast, {}, "note", key="k")
                error = cast.error(20)
                if delivery == "at_most_once":
                    assert isinstance(error, OutcomeUnknown), error
                else:
                    assert isinstance(error, TransportUnavailable), error
                    assert error.maybe_delivered, "it was sent and got no answer, so maybe_delivered has to be True"
                assert cast.seconds < timeout + SLACK, (
                    f"a cast with a deadline of {timeout:g} s ended after {cast.seconds:.1f} s"
                )
        finally:
            bus.harness.resume()

    @check("bus", since="0.1", harness=("stop", "start"))
    def test_a_server_may_start_before_the_message_system(self, bus: Bus) -> None:
        """A server that starts first waits for the message system, and serves then; or raises after its timeout."""
        bus.harness.stop()
        try:
            starting = Task(bus.serve, "s1")
            call = Task(bus.client(timeout=1.0).call, {}, "echo", value=1)
            assert isinstance(call.error(15), TransportUnavailable | MessagingTimeout)
            assert not starting.done or not bus.harness.processes, (
                "the server says that it has started, and the message system is away"
            )
        finally:
            bus.harness.start()
        starting.join(60)
        starting.result()
        assert bus.client(timeout=60).call({}, "echo", value=1) == 1

    @check(
        "bus",
        since="0.1",
        harness=("stop", "start"),
        builds_on=(
            "test_a_fanout_goes_to_all",
            "test_subscriptions_and_inboxes_come_back",
            "test_an_inbox_keeps_the_order",
        ),
    )
    def test_an_idle_bus_comes_back(self, bus: Bus) -> None:
        """After a restart of the message system while clients and servers are idle, all patterns and verbs work."""
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
