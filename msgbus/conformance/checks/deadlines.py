"""Deadlines: verbs end in time and say what is known; expired requests are not run; nested calls inherit."""

from __future__ import annotations

import time
from typing import Any

import pytest

from msgbus import CallCancelled, MessageUndeliverable, MessagingException, MessagingTimeout, ServerLost
from msgbus.conformance.bus import Bus
from msgbus.conformance.check import check
from msgbus.conformance.checks.receiver import leave_behind
from msgbus.conformance.checks.streams import SOON
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Capability

SLACK = 2.0
"""The most seconds after its deadline that a verb may take, on a slow machine too."""


class DeadlineChecks:
    """Of time limits, and of targets without servers."""

    @check("bus", since="0.1")
    def test_a_call_ends_at_its_deadline(self, bus: Bus) -> None:
        """A call raises `MessagingTimeout`; the text names method, topic, and the server that still runs it."""
        bus.serve()
        error: BaseException | None = None
        for timeout in (1.0, 8.0):  # On a slow machine the client may not know the server after a second.
            call = Task(bus.client(timeout=timeout).call, {}, "hold", key="k", gate=bus.gate())
            error = call.error()
            assert isinstance(error, MessagingTimeout), f"it ended with {error!r}"
            assert not isinstance(error, ServerLost)
            assert timeout - 0.1 < call.seconds < timeout + SLACK, (
                f"a call with {timeout:g} s ended after {call.seconds:.2f}"
            )
            for known in ("hold", bus.topic):
                assert known in str(error)
            if "s1" in str(error):
                return
        pytest.fail(f"it does not name the server: {error}")

    @check("bus", since="0.1", needs=(Capability.STORAGE, Capability.INSPECT))
    def test_a_timeout_says_how_many_servers_listen(self, bus: Bus) -> None:
        """If no server has begun the call, the text of the timeout says how many servers listen."""
        leave_behind(bus, bus.address())
        call = Task(bus.client(timeout=1.0).call, {}, "echo")
        error = call.error()
        assert isinstance(error, MessagingTimeout), f"it ended with {error!r}"
        assert 0.9 < call.seconds < 1.0 + SLACK, f"a call with 1 s ended after {call.seconds:.2f}"
        assert "consumers there: 0" in str(error)

    @check("bus", since="0.1", builds_on=("test_a_ttl_counts_seconds",))
    @pytest.mark.parametrize("prefetch", [1, 64])
    @pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
    def test_expired_work_is_not_run(self, bus: Bus, prefetch: int, delivery: Any) -> None:
        """A call that its caller has given up is not run, whether it waited in the message system or at the server."""
        bus.serve(executor_thread_pool_size=1, rpc_prefetch=prefetch)
        gate = bus.gate()
        client = bus.client(delivery=delivery)
        held = Task(client.call, {}, "hold", key="held", gate=gate)
        bus.ran("held")
        late = [Task(client.prepare(timeout=1.0).call, {}, "note", key=f"late {n}") for n in range(5)]
        for call in late:
            assert isinstance(call.error(), MessagingTimeout)
        end = time.monotonic() + 0.5
        until(lambda: time.monotonic() > end, "the end of the allowance for differing clocks")
        bus.journal.open_gate(gate)
        assert held.result() == "s1"
        assert client.call({}, "note", key="last") == "s1"
        assert [entry.key for entry in bus.journal.entries("run")] == ["held", "last"]

    @check("bus", since="0.1")
    def test_a_nested_call_inherits_the_deadline(self, bus: Bus) -> None:
        """A call from a handler, with a default of 60 s, ends when the handler's own caller has given up."""
        bus.serve()
        arguments = {"topic": bus.topic, "key": "k", "gate": bus.gate()}
        call = Task(bus.client(timeout=2.0).call, {}, "nested_hold", **arguments)
        bus.ran("k")
        assert isinstance(call.error(), MessagingTimeout)
        bus.saw("timed out", "k", seconds=2 * SLACK)

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_a_streams_nested_calls_have_time(self, bus: Bus) -> None:
        """A generator that runs for longer than the timeout for an item may still make calls."""
        bus.serve()
        stream = bus.client(timeout=3.0).multicall({}, "nested_late", topic=bus.topic, n=12, pause=0.3)
        assert list(stream) == [*range(12), "nested"]

    @check("bus", since="0.1")
    def test_a_call_on_a_generator_is_ended_at_its_deadline(self, bus: Bus) -> None:
        """The generator is closed when the caller gives up."""
        bus.serve()
        with pytest.raises(MessagingTimeout):
            bus.client(timeout=1.0).call({}, "endless", key="k")
        bus.saw("closed", "k", seconds=SOON)

    @check("bus", since="0.1", builds_on=("test_mandatory_to_nobody_fails_at_once", "test_an_inbox_keeps_the_order"))
    @pytest.mark.parametrize("verb", ["call", "cast", "multicall"])
    def test_a_target_without_servers_fails_at_once(self, bus: Bus, verb: str) -> None:
        """If no server listens at the target, verbs raise `MessageUndeliverable`, long before the deadline."""
        bus.serve()
        for target in ({"topic": f"{bus.topic}-nobody"}, {"server": "nobody"}, {"exchange": "conformance-nobody"}):
            client = bus.client(timeout=60).prepare(**target)  # type: ignore[arg-type]
            use = getattr(client, verb)
            task = Task(lambda use=use: list(use({}, "echo") or ()))
            error = task.error(20)
            assert isinstance(error, MessageUndeliverable), error
            assert next(iter(target.values())) in str(error)
            assert task.seconds < 10, (
                f"that nobody is there was known only after {task.seconds:.1f} s: send(mandatory=True) is to fail at "
                "once"
            )
        bus.client(f"{bus.topic}-nobody").fanout_cast({}, "echo")

    @check("bus", since="0.1", needs=(Capability.STORAGE,))
    def test_calls_wait_for_a_server_that_is_away(self, bus: Bus) -> None:
        """While all servers of a topic are away, its calls are stored, and the next server answers them."""
        (first,) = bus.serve("s1")
        first.close()
        calls = [Task(bus.client().call, {}, "note", key=f"k{n}") for n in range(10)]
        bus.client().cast({}, "note", key="cast")
        assert not any(call.done for call in calls), (
            "calls have ended, though nobody serves them: they are to wait for the next server"
        )
        bus.serve("s2")
        assert [call.result() for call in calls] == ["s2"] * 10
        bus.ran("cast")
        assert len(bus.journal.entries("run")) == 11

    @check("bus", since="0.1", needs=(Capability.STORAGE,))
    def test_a_named_server_finds_its_work_when_it_is_back(self, bus: Bus) -> None:
        """Requests to a named server that is away are run by the next server with that name."""
        (first,) = bus.serve("s1")
        first.close()
        call = Task(bus.client().prepare(server="s1").call, {}, "note", key="k")
        bus.serve("s2")
        bus.serve("s1")
        assert call.result() == "s1"

    @check("bus", since="0.1", builds_on=("test_an_inbox_keeps_the_order",))
    def test_the_send_window_bounds_what_is_unfinished(self, bus: Bus) -> None:
        """Above the send window, a verb waits within its deadline and sends nothing; afterwards it works again."""
        bus.serve()
        gate = bus.gate()
        client = bus.client(transport=bus.new_transport(rpc_send_window=2))
        held = [Task(client.call, {}, "hold", key=f"held {n}", gate=gate) for n in range(2)]
        for n in range(2):
            bus.ran(f"held {n}")
        for verb in (client.prepare(timeout=0.5).call, client.prepare(timeout=0.5).cast):
            third = Task(verb, {}, "note", key="third")
            error = third.error()
            assert isinstance(error, MessagingTimeout), f"it ended with {error!r}"
            assert "rpc_send_window" in str(error)
            assert third.seconds < 0.5 + SLACK, f"a call with 0.5 s ended after {third.seconds:.2f}"
        waiting = Task(client.call, {}, "note", key="fourth")
        bus.journal.open_gate(gate)
        assert waiting.result() == "s1"
        assert [task.result() for task in held] == ["s1"] * 2
        for _ in range(5):
            stream = client.multicall({}, "count", n=300)
            next(stream)
            stream.close()
            assert client.call({}, "echo", value=1) == 1
        assert bus.journal.entries("run", "third") == []

    @check("bus", since="0.1")
    def test_closing_the_transport_ends_its_calls(self, bus: Bus) -> None:
        """When the transport is closed, waiting calls raise `CallCancelled`, and so do later ones."""
        bus.serve(rpc_reply_grace=0.5)
        transport = bus.new_transport()
        client = bus.client(transport=transport)
        call = Task(client.call, {}, "hold", key="k", gate=bus.gate())
        bus.ran("k")
        transport.cleanup()
        assert isinstance(call.error(10), CallCancelled)
        assert isinstance(Task(client.call, {}, "echo").error(10), CallCancelled)
        assert isinstance(Task(client.cast, {}, "echo").error(10), CallCancelled)

    @check("bus", since="0.1")
    @pytest.mark.parametrize("timeout", [0.0, 0.001, 0.02])
    def test_a_very_short_deadline_is_kept(self, bus: Bus, timeout: float) -> None:
        """However short its deadline, a call ends with an error of msgbus."""
        bus.serve()
        bus.client().call({}, "echo")
        call = Task(bus.client(timeout=timeout).call, {}, "hold", key="k", gate=bus.gate())
        assert isinstance(call.error(10), MessagingException)
        assert call.seconds < timeout + SLACK, f"a call with {timeout:g} s ended after {call.seconds:.2f}"
        assert bus.client().call({}, "echo", value=1) == 1
