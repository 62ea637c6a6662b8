"""Stopping a server: running requests finish, others go to other servers, none is lost or run twice."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.waiting import Task, gather, until
from msgbus.drivers.base import Capability

BOTH = pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])


class StoppingChecks:
    """Of `RPCServer.stop` and `wait`."""

    @check("bus", since="0.1")
    @BOTH
    def test_what_runs_is_finished_and_answered(self, bus: Bus, delivery: Any) -> None:
        """After `stop` a running handler continues, and its caller gets the answer before `wait` returns 0."""
        (server,) = bus.serve("s1")
        gate = bus.gate()
        client = bus.client(delivery=delivery)
        calls = [Task(client.call, {}, "hold", key=f"k{n}", gate=gate) for n in range(5)]
        client.cast({}, "hold", key="cast", gate=gate)
        for key in ("k0", "k1", "k2", "k3", "k4", "cast"):
            bus.ran(key)
        server.stop()
        server.stop()
        assert not any(call.done for call in calls), "calls have ended before a server could run them"
        waiting = Task(server.wait, 20)
        bus.journal.open_gate(gate)
        assert [call.result() for call in calls] == ["s1"] * 5
        assert waiting.result() == 0
        bus.saw("done", "cast", seconds=1)
        assert len(bus.journal.entries("run")) == 6

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_a_running_stream_is_finished(self, bus: Bus) -> None:
        """After `stop` a running stream continues to its end."""
        (server,) = bus.serve("s1")
        gate = bus.gate()
        stream = bus.client().multicall({}, "gated", key="k", n=3, gate=gate)
        assert list(itertools.islice(stream, 3)) == [0, 1, 2]
        server.stop()
        bus.journal.open_gate(gate)
        assert list(stream) == [3]
        assert server.wait(20) == 0

    @check(
        "bus",
        since="0.1",
        needs=(Capability.REQUEUE,),
        builds_on=(
            "test_close_gives_back_open_deliveries",
            "test_reject_with_requeue_delivers_it_again",
        ),
    )
    @BOTH
    def test_what_has_not_begun_goes_to_another(self, bus: Bus, delivery: Any) -> None:
        """A stopping server gives back the requests that it has not begun; another server runs them, once."""
        (first,) = bus.serve("s1", executor_thread_pool_size=1)
        gate = bus.gate()
        client = bus.client(delivery=delivery)
        held = Task(client.call, {}, "hold", key="held", gate=gate)
        bus.ran("held")
        calls = [Task(client.call, {}, "note", key=f"call {n}") for n in range(10)]
        for n in range(10):
            client.cast({}, "note", key=f"cast {n}")
        if Capability.INSPECT in bus.capabilities:
            until(
                lambda: bus.driver.inspect(bus.address()).result(15).messages in (0, None),
                "all requests are at the first server",
            )
        bus.serve("s2")
        first.stop()
        assert gather(calls) == ["s2"] * 10
        for n in range(10):
            assert bus.ran(f"cast {n}") == ["s2"]
        assert not held.done, "the call that the stopping server runs has ended before its method"
        bus.journal.open_gate(gate)
        assert held.result() == "s1"
        assert first.wait(20) == 0
        assert Counter(entry.key for entry in bus.journal.entries("run")).most_common(1)[0][1] == 1
        assert bus.journal.entries("dead") == []

    @check(
        "bus",
        since="0.1",
        needs=(Capability.REQUEUE, Capability.STORAGE),
        builds_on=(
            "test_close_gives_back_open_deliveries",
            "test_reject_with_requeue_delivers_it_again",
        ),
    )
    @BOTH
    def test_what_has_not_begun_waits_for_a_server(self, bus: Bus, delivery: Any) -> None:
        """If there is no other server, requests that are given back are stored for the next one."""
        (first,) = bus.serve("s1", executor_thread_pool_size=1)
        gate = bus.gate()
        client = bus.client(delivery=delivery)
        held = Task(client.call, {}, "hold", key="held", gate=gate)
        bus.ran("held")
        calls = [Task(client.call, {}, "note", key=f"call {n}") for n in range(10)]
        if Capability.INSPECT in bus.capabilities:
            until(
                lambda: bus.driver.inspect(bus.address()).result(15).messages in (0, None),
                "all requests are at the first server",
            )
        first.stop()
        bus.journal.open_gate(gate)
        assert held.result() == "s1"
        assert first.wait(20) == 0
        assert not any(call.done for call in calls), "calls have ended before a server could run them"
        bus.serve("s2")
        assert gather(calls) == ["s2"] * 10
        assert len(bus.journal.entries("run")) == 11

    @check(
        "bus",
        since="0.1",
        needs=(Capability.REQUEUE,),
        builds_on=(
            "test_close_gives_back_open_deliveries",
            "test_reject_with_requeue_delivers_it_again",
        ),
    )
    @BOTH
    def test_servers_may_come_and_go_under_load(self, bus: Bus, delivery: Any) -> None:
        """While eight callers make calls, servers are stopped and started: every call is run once and answered."""
        (first,) = bus.serve("s1", executor_thread_pool_size=2)
        client = bus.client(delivery=delivery)

        def caller(thread: int) -> None:
            for n in range(60):
                key = f"{thread}-{n}"
                assert client.call({}, "work", key=key, seconds=0.005) == key

        callers = [Task(caller, thread) for thread in range(8)]
        for number in range(2, 5):
            until(lambda: len(bus.journal.entries("run")) >= 60 * (number - 1), "some calls")  # noqa: B023  # at once
            (second,) = bus.serve(f"s{number}", executor_thread_pool_size=2)
            first.stop()
            assert first.wait(20) == 0
            first.close()
            first = second
        gather(callers)
        runs = Counter(entry.key for entry in bus.journal.entries("run"))
        assert len(runs) == 480, f"{len(runs)} of 480 requests were run"
        assert set(runs.values()) == {1}, (
            f"these ran more than once: {[key for key, count in runs.items() if count > 1][:9]}"
        )

    @check("bus", since="0.1")
    def test_wait_reports_what_it_abandons(self, bus: Bus) -> None:
        """A handler that does not end in time is counted by `wait`, which returns in time.

        It is cancelled if it is a task; on a thread, it goes on.
        """
        (server,) = bus.serve("s1")
        gate = bus.gate()
        bus.client().cast({}, "hold", key="k", gate=gate)
        bus.ran("k")
        server.stop()
        waiting = Task(server.wait, 0.5)
        assert waiting.result(15) == 1
        assert waiting.seconds < 8, f"wait() was to end soon after its timeout, and took {waiting.seconds:.1f} s"
        if bus.worlds.servers == "asyncio":
            bus.saw("cancelled", "k")
        else:
            bus.journal.open_gate(gate)
            bus.saw("done", "k")

    @check(
        "bus",
        since="0.1",
        builds_on=(
            "test_a_fanout_goes_to_all",
            "test_after_stop_nothing_is_delivered",
        ),
    )
    def test_a_stopped_server_takes_nothing_new(self, bus: Bus) -> None:
        """Once `stop` has returned, no further request begins on that server, in any pattern."""
        first, _ = bus.serve("s1", "s2")
        first.stop()
        client = bus.client()
        assert {client.call({}, "note", key="k") for _ in range(20)} == {"s2"}
        client.fanout_cast({}, "note", key="all")
        assert bus.ran("all") == ["s2"]
        assert first.wait(20) == 0
        assert {entry.server for entry in bus.journal.entries("run")} == {"s2"}

    @check("bus", since="0.1")
    def test_an_idle_server_stops_at_once(self, bus: Bus) -> None:
        """A server without running requests stops at once."""
        (server,) = bus.serve("s1")
        assert bus.client().call({}, "echo", value=1) == 1
        closing = Task(server.close)
        closing.join()
        assert closing.seconds < 5, f"closing took {closing.seconds:.1f} s"
