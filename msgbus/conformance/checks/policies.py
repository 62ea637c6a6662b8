"""Delivery policies: which requests are run again, and which become dead letters."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest

from msgbus import OutcomeUnknown
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.receiver import Receiver, another_driver
from msgbus.conformance.checks.wire import envelope, payload, policy, raw
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Capability
from msgbus.encoding import decode_dead_letter
from msgbus.message import DeadLetter

BOTH = pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])


class PolicyChecks:
    """Of ``delivery="at_most_once"`` and ``"at_least_once"``."""

    def _take_and_give_back(self, bus: Bus, send: Any) -> None:
        """Have a subscriber take the request that `send` sends, and close without accepting it."""
        holder = another_driver(bus)
        held = Receiver(accept=False)
        subscription = held.subscribe(holder, bus.address(), bus.address("server", server="s1"))
        send()
        held.wait(1)
        subscription.close().result(15)

    def _letters(self, bus: Bus, count: int) -> list[DeadLetter]:
        """The dead letters of this topic."""
        receiver = Receiver()
        receiver.subscribe(another_driver(bus), bus.address("dead"))
        receiver.wait(count)
        return [decode_dead_letter(delivery.message.body) for delivery in receiver.deliveries]

    @check(
        "bus",
        since="0.1",
        needs=(Capability.REQUEUE, Capability.STORAGE),
        builds_on=(
            "test_close_gives_back_open_deliveries",
            "test_what_is_given_back_is_marked_as_redelivered",
        ),
    )
    def test_at_least_once_runs_what_was_redelivered(self, bus: Bus) -> None:
        """A call and a cast that a server had received and not finished are run by the next server."""
        client = bus.client(delivery="at_least_once")
        calls: list[Task] = []
        self._take_and_give_back(bus, lambda: calls.append(Task(client.call, {}, "note", key="call")))
        self._take_and_give_back(bus, lambda: Task(client.cast, {}, "note", key="cast"))
        bus.serve("s1")
        assert calls[0].result() == "s1"
        assert bus.ran("cast") == ["s1"]
        assert len(bus.journal.entries("run")) == 2

    @check(
        "bus",
        since="0.1",
        needs=(Capability.REQUEUE, Capability.STORAGE),
        builds_on=(
            "test_close_gives_back_open_deliveries",
            "test_what_is_given_back_is_marked_as_redelivered",
        ),
    )
    def test_at_most_once_does_not_run_what_was_redelivered(self, bus: Bus) -> None:
        """A call that may have run is not run; it raises `OutcomeUnknown` after the grace, long before its deadline."""
        client = bus.client(transport=bus.new_transport(rpc_reply_grace=0.7))
        calls: list[Task] = []
        self._take_and_give_back(bus, lambda: calls.append(Task(client.call, {}, "note", key="call")))
        start = time.monotonic()
        bus.serve("s1")
        error = calls[0].error(20)
        assert isinstance(error, OutcomeUnknown), error
        assert time.monotonic() - start < 15, f"it took {time.monotonic() - start:.1f} s"
        assert client.call({}, "note", key="next") == "s1"
        assert bus.journal.entries("run", "call") == []

    @check(
        "bus",
        since="0.1",
        needs=(Capability.REQUEUE, Capability.STORAGE),
        builds_on=(
            "test_close_gives_back_open_deliveries",
            "test_what_is_given_back_is_marked_as_redelivered",
        ),
    )
    def test_at_most_once_dead_letters_a_redelivered_cast(self, bus: Bus) -> None:
        """A cast that may have run goes to the dead letters, unchanged."""
        client = bus.client()
        self._take_and_give_back(bus, lambda: Task(client.cast, {}, "note", key="cast"))
        bus.serve("s1")
        bus.saw("dead", "cast")
        (letter,) = self._letters(bus, 1)
        assert "at_most_once" in letter.reason
        assert letter.server == "s1"
        assert json.loads(json.loads(letter.body)["oslo.message"])["args"] == {"key": "cast"}
        assert bus.journal.entries("run") == []

    @check("bus", since="0.1")
    @BOTH
    def test_a_repeated_request_is_run_once(self, bus: Bus, delivery: str) -> None:
        """Copies of a request that arrive while it runs, or afterwards, are not run by the same server."""
        bus.serve()
        gate = bus.gate()
        server = bus.address("server", server="s1")
        first = payload("hold", "k", **policy(delivery))
        first["args"]["gate"] = gate
        for _ in range(3):
            bus.driver.send(server, raw(envelope(first)), mandatory=True).result(15)
        bus.ran("k")
        bus.journal.open_gate(gate)
        bus.saw("done", "k")
        for _ in range(3):
            bus.driver.send(server, raw(envelope(first)), mandatory=True).result(15)
        assert bus.client().prepare(server="s1").call({}, "note", key="last") == "s1"
        bus.client().prepare(server="s1").cast({}, "note", key="very last")
        bus.ran("very last")
        assert len(bus.journal.entries("run", "k")) == 1

    @check("bus", since="0.1")
    def test_a_cast_that_raises_is_retried_and_then_dead_lettered(self, bus: Bus) -> None:
        """A cast that raises is retried as often as the option says, then given up, which calls the hook."""
        bus.serve(rpc_cast_retries=1)
        bus.client(delivery="at_least_once").cast({}, "fail", kind="trouble", key="k")
        bus.saw("dead", "k")
        assert len(bus.journal.entries("run", "k")) == 2

    @check("bus", since="0.1", needs=(Capability.STORAGE,), builds_on=("test_dead_letters_are_stored",))
    def test_a_dead_letter_has_reason_traceback_and_request(self, bus: Bus) -> None:
        """A dead letter has the reason, the number of attempts, the server, the traceback and the request."""
        bus.serve(rpc_cast_retries=0)
        bus.client(delivery="at_least_once").cast({}, "fail", kind="trouble", key="k")
        bus.saw("dead", "k")
        (letter,) = self._letters(bus, 1)
        assert "Trouble" in letter.reason
        assert "deep" in letter.reason
        assert (letter.attempts, letter.server) == (1, "s1")
        assert bus.topic in letter.address
        assert "endpoint.py" in "".join(letter.traceback)
        assert abs(time.time() - letter.at) < 60
        assert json.loads(json.loads(letter.body)["oslo.message"])["args"] == {"kind": "trouble", "key": "k"}

    @check("bus", since="0.1")
    def test_retries_end_with_success(self, bus: Bus) -> None:
        """A cast that raises once and then succeeds has run twice. An expected exception is not retried."""
        bus.serve(rpc_cast_retries=2)
        client = bus.client()
        client.cast({}, "fail", kind="trouble", key="at most once")
        patient = client.prepare(delivery="at_least_once")
        patient.cast({}, "fail_as_expected", key="expected")
        patient.cast({}, "flaky", key="flaky", failures=1)
        bus.ran("flaky", 2)
        # If the others were retried, they would have been before this one.
        assert len(bus.journal.entries("run", "at most once")) == 1
        assert len(bus.journal.entries("run", "expected")) == 1
        assert patient.call({}, "echo", value=1) == 1
        assert bus.journal.entries("dead") == [], "there is a dead letter, and none should be"
        assert len(bus.journal.entries("run", "flaky")) == 2

    @check("bus", since="0.1")
    def test_a_call_that_raises_is_not_retried(self, bus: Bus) -> None:
        """An exception is a call's answer, under both policies."""
        bus.serve()
        for delivery in ("at_most_once", "at_least_once"):
            client = bus.client().prepare(delivery=delivery)
            with pytest.raises(ValueError, match="bad"):
                client.call({}, "fail", kind="value", key=delivery)
        bus.client().prepare(delivery="at_least_once").cast({}, "flaky", key="flaky", failures=1)
        bus.ran("flaky", 2)
        assert len(bus.journal.entries("run", "at_least_once")) == 1
        assert len(bus.journal.entries("run", "at_most_once")) == 1

    @check("bus", since="0.1")
    def test_a_cast_without_a_method_is_dead_lettered_at_once(self, bus: Bus) -> None:
        """A cast for a missing method is not retried, since it would fail again."""
        bus.serve()
        client = bus.client(delivery="at_least_once")
        client.cast({}, "nowhere", key="a")
        client.cast({}, "note", key="b", more="arguments")
        for key in "ab":
            bus.saw("dead", key, seconds=5)
        if Capability.STORAGE in bus.capabilities:
            assert sorted(letter.attempts for letter in self._letters(bus, 2)) == [1, 1]

    @check("bus", since="0.1")
    def test_a_cast_waits_for_its_retry_without_a_thread(self, bus: Bus) -> None:
        """Casts that wait for their retry do not occupy threads."""
        bus.serve(executor_thread_pool_size=1)
        client = bus.client(delivery="at_least_once")
        for n in range(5):
            client.cast({}, "flaky", key=f"k{n}", failures=1)
        for n in range(5):
            bus.ran(f"k{n}", 1)
        assert bus.client().call({}, "echo", value=1) == 1
        for n in range(5):
            bus.ran(f"k{n}", 2)

    @check("bus", since="0.1", harness=("cut",))
    @BOTH
    def test_a_cut_connection_runs_nothing_twice(self, bus: Bus, delivery: Any) -> None:
        """If all connections break while a handler runs, it runs once, and its caller gets the answer."""
        bus.serve()
        client = bus.client(delivery=delivery)
        gate = bus.gate()
        calls = [Task(client.call, {}, "hold", key=f"k{n}", gate=gate) for n in range(10)]
        for n in range(10):
            bus.ran(f"k{n}")
        bus.harness.cut()
        assert bus.client().prepare(delivery="at_least_once").call({}, "echo", value=1) == 1
        bus.journal.open_gate(gate)
        assert [call.result() for call in calls] == ["s1"] * 10
        assert len(bus.journal.entries("run")) == 10

    @check(
        "bus",
        since="0.1",
        needs=(Capability.INBOX_STORAGE,),
        harness=("cut",),
        builds_on=("test_an_inbox_keeps_the_order",),
    )
    @BOTH
    def test_a_cut_connection_does_not_end_a_stream(self, bus: Bus, delivery: Any) -> None:
        """A stream continues over a reconnect, without gaps and duplicates, if inboxes keep messages meanwhile."""
        bus.serve()
        client = bus.client(delivery=delivery)
        stream = client.multicall({}, "count", n=2000)
        got = [next(stream) for _ in range(10)]
        for _ in range(2):
            bus.harness.cut()
            got += [next(stream) for _ in range(300)]
        got += list(stream)
        assert got == list(range(2000))

    @check(
        "bus",
        since="0.1",
        needs=(Capability.REQUEUE,),
        processes=True,
        builds_on=(
            "test_close_gives_back_open_deliveries",
            "test_what_is_given_back_is_marked_as_redelivered",
        ),
    )
    def test_a_killed_servers_call_is_run_by_another(self, bus: Bus) -> None:
        """Under at_least_once, if the server that runs it is killed, another one runs it and answers.

        Both run for long enough to say so: the call must not go on waiting for the first, nor cancel the second.
        """
        (first,) = bus.serve("s1")
        gate = bus.gate()
        client = bus.client(timeout=60, delivery="at_least_once")
        call = Task(client.call, {}, "hold", key="call", gate=gate)
        client.cast({}, "hold", key="cast", gate=gate)
        bus.ran("cast")
        bus.knows_that_it_runs("s1")
        bus.serve("s2")
        bus.kill(first)
        bus.knows_that_it_runs("s2")
        bus.journal.open_gate(gate)
        assert call.result() == "s2"
        assert bus.ran("cast", 2) == ["s1", "s2"]
        assert bus.ran("call", 2) == ["s1", "s2"]

    @check(
        "bus",
        since="0.1",
        needs=(Capability.REQUEUE,),
        processes=True,
        builds_on=(
            "test_close_gives_back_open_deliveries",
            "test_what_is_given_back_is_marked_as_redelivered",
        ),
    )
    def test_no_cast_is_lost_with_a_killed_server(self, bus: Bus) -> None:
        """All of 300 at_least_once casts are done, although one of three servers is killed meanwhile."""
        servers = bus.serve("s1", "s2", "s3", executor_thread_pool_size=4)
        client = bus.client(delivery="at_least_once")
        for n in range(300):
            client.cast({}, "work", key=f"k{n}", seconds=0.02)
        until(lambda: len([e for e in bus.journal.entries("done") if e.server == "s1"]) >= 5, "five casts at s1")
        bus.kill(servers[0])
        wanted = {f"k{n}" for n in range(300)}
        until(lambda: {entry.key for entry in bus.journal.entries("done")} >= wanted, "all casts are done", 30)
        runs = Counter(entry.key for entry in bus.journal.entries("run"))
        assert {entry.server for entry in bus.journal.entries("run")} == {"s1", "s2", "s3"}
        assert max(runs.values()) <= 2, "only what the dead server had not finished is run again"
