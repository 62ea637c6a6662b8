"""Keepalives: which silent peers count as lost, and which do not. All of these checks run at the same time."""

from __future__ import annotations

import functools
import itertools
import pathlib
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from msgbus import MessageUndeliverable, ServerLost
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import about, check
from msgbus.conformance.checks.receiver import message, send
from msgbus.conformance.checks.streams import SOON
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Capability

LONG = 20.0
"""Seconds: longer than the silence after which the other side counts as lost."""
KEPT = 60.0
"""Seconds that an inbox is kept for an owner that is away, where the driver declares ``inbox_storage``."""
ALLOWED = 15.0
"""Seconds within which a message system on a busy machine notices that a process has died, and cleans up."""
LONGEST = 90.0
"""Seconds after which everything that was begun together is done."""


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, f"{seconds:g} s", seconds + 10)


def _together(func: Callable[[Any, Bus], None]) -> Callable[[Any, Bus], None]:
    """Begin this check when the first such check runs, on a bus of its own, and only wait for its result here."""

    @functools.wraps(func)
    def wait(self: LastingChecks, bus: Bus) -> None:
        _run_all(self, bus)
        bus.findings.tasks[func.__name__].result()

    wait.begins_early = True  # type: ignore[attr-defined]
    return wait


def _run_all(self: LastingChecks, bus: Bus) -> None:
    """Begin all such checks, unless that is done, and return when all have ended."""
    tasks = bus.findings.tasks
    if not tasks:
        bus.findings.leftovers = bus.harness.leftovers()
        for name in (name for name in vars(LastingChecks) if name.startswith("test")):
            func = getattr(LastingChecks, name).__wrapped__
            unfit = about(getattr(LastingChecks, name)).why_not(bus.capabilities, bus.harness)
            if hasattr(func, "begins_early") and unfit is None:
                tasks[name] = Task(_run, func.__wrapped__, self, bus, name)
    bus.killed = True  # by one of them
    # All of them, so that none of their threads and processes counts as left behind by this check.
    for task in tasks.values():
        task.join(LONGEST)


def _run(func: Callable[[Any, Bus], None], self: Any, bus: Bus, name: str) -> None:
    folder = pathlib.Path(bus.journal.folder, name)
    folder.mkdir()
    with closing(Bus(bus.harness, folder, bus.findings, bus.worlds)) as own:
        func(self, own)


class LastingChecks:
    """Of keepalives."""

    @check("bus", since="0.1", processes=True, builds_on=("test_items_come_in_order",))
    @_together
    def test_slow_a_killed_server_is_missed(self, bus: Bus) -> None:
        """When the server's process is killed in the middle of a stream, the client raises `ServerLost` within 20 s."""
        (server,) = bus.serve()
        gate = bus.gate()
        stream = bus.client(timeout=60).multicall({}, "gated", key="k", n=3, gate=gate)
        assert list(itertools.islice(stream, 3)) == [0, 1, 2]
        bus.kill(server)
        start = time.monotonic()
        with pytest.raises(ServerLost) as caught:
            next(stream)
        assert time.monotonic() - start < LONG, (
            f"the loss was noticed after {time.monotonic() - start:.0f} s; 15 s of silence are enough"
        )
        assert "s1" in str(caught.value)

    @check("bus", since="0.1", processes=True)
    @_together
    def test_slow_a_killed_servers_call_is_lost(self, bus: Bus) -> None:
        """Under at_most_once, a killed server's call is not run again; the caller gets `ServerLost` within 20 s."""
        (first,) = bus.serve("s1")
        client = bus.client(timeout=60)
        gate = bus.gate()
        call = Task(client.call, {}, "hold", key="k", gate=gate)
        bus.ran("k")
        _wait(1)  # The caller knows the server once that has said that it began: after a fifth of a second.
        bus.serve("s2")
        bus.kill(first)
        start = time.monotonic()
        assert isinstance(call.error(), ServerLost)
        assert time.monotonic() - start < LONG, (
            f"the loss was noticed after {time.monotonic() - start:.0f} s; 15 s of silence are enough"
        )
        assert client.call({}, "note", key="next") == "s2"
        assert len(bus.journal.entries("run", "k")) == 1

    @check("bus", since="0.1", processes=True, needs=(Capability.REQUEUE,))
    @_together
    def test_slow_a_frozen_servers_call_is_run_by_another(self, bus: Bus) -> None:
        """Under at_least_once, a call whose server hangs is run by another server, and is answered once."""
        (first,) = bus.serve("s1")
        client = bus.client(timeout=75, delivery="at_least_once")
        gate = bus.gate()
        call = Task(client.call, {}, "hold", key="k", gate=gate)
        bus.knows_that_it_runs("s1")
        first.freeze()
        try:
            bus.serve("s2")
            bus.journal.open_gate(gate)
            assert call.result(80) == "s2"
        finally:
            first.thaw()
        assert client.call({}, "echo", value=1) == 1

    @check("bus", since="0.1", processes=True, builds_on=("test_items_come_in_order",))
    @_together
    def test_slow_a_killed_client_is_missed(self, bus: Bus) -> None:
        """When the reader's process is killed, the generator is closed within 30 s."""
        bus.serve()
        reader = bus.run_streamer("k")
        assert bus.journal.entries("closed") == []
        bus.kill(reader)
        bus.saw("closed", "k", seconds=30)
        assert bus.client().call({}, "echo", value=1) == 1

    @check("bus", since="0.1", builds_on=("test_items_come_in_order",))
    @_together
    def test_slow_a_stream_that_waits_for_its_reader_lives(self, bus: Bus) -> None:
        """A reader that takes no item for 20 s, and a generator that waits as long, do not count as lost."""
        bus.serve()
        stream = bus.client().multicall({}, "endless", key="k")
        next(stream)
        _wait(LONG)
        assert list(itertools.islice(stream, 500)) == list(range(1, 501))
        assert bus.journal.entries("closed") == []
        stream.close()
        bus.saw("closed", "k", seconds=SOON)

    @check("bus", since="0.1", builds_on=("test_items_come_in_order",))
    @_together
    def test_slow_a_call_that_runs_for_long_lives(self, bus: Bus) -> None:
        """A handler that takes 20 s before it answers does not count as lost, for a call or a stream."""
        bus.serve()
        client = bus.client(timeout=60)
        gate = bus.gate()
        call = Task(client.call, {}, "hold", key="k", gate=gate)
        stream = client.multicall({}, "gated", key="s", n=1, gate=gate)
        assert next(stream) == 0
        bus.ran("k")
        _wait(LONG)
        bus.journal.open_gate(gate)
        assert call.result() == "s1"
        assert list(stream) == [1]

    @check(
        "bus",
        since="0.1",
        processes=True,
        builds_on=("test_mandatory_to_nobody_fails_at_once", "test_a_closed_inbox_is_removed"),
    )
    @_together
    def test_slow_the_inbox_of_a_killed_process_is_removed(self, bus: Bus) -> None:
        """Messages to a killed process's inbox become undeliverable: with inbox_storage after 60 s, else at once."""
        holder, inbox = bus.run_holder()
        send(bus.driver, inbox, "x")
        bus.kill(holder)
        kept = KEPT if Capability.INBOX_STORAGE in bus.capabilities else 0.0
        end = time.monotonic() + kept + ALLOWED
        error = None
        while not isinstance(error, MessageUndeliverable):
            assert time.monotonic() < end, (
                f"{kept + ALLOWED:g} s after its owner was killed the inbox still takes messages (the last send ended "
                f"with {error!r}): let the message system remove an inbox whose owner does not come back"
            )
            _wait(0.5)
            error = bus.driver.send(inbox, message("y", ttl=5.0), mandatory=True).exception(20)

    @check("bus", since="0.1", processes=True, builds_on=("test_slow_the_inbox_of_a_killed_process_is_removed",))
    def test_slow_nothing_of_killed_processes_is_left(self, bus: Bus) -> None:
        """Inboxes, queues of fanouts and connections of processes that were killed are removed, within 60 s."""
        _run_all(self, bus)

        def left() -> set[str]:
            return bus.harness.leftovers() - bus.findings.leftovers

        end = time.monotonic() + KEPT + ALLOWED
        while found := left():
            assert time.monotonic() < end, (
                f"left of processes that were killed more than {KEPT:g} s ago: {', '.join(sorted(found))}"
            )
            _wait(0.2)
