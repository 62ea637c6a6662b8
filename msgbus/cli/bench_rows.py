"""What ``msgbus bench`` measures, and how."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from msgbus.cli.bench_clients import CALL, CAST, FANOUT, TICK, TIMEOUT, BenchClient, Load, Threads
from msgbus.cli.bench_service import Usage, usage_of_this_process
from msgbus.client import RPCClient
from msgbus.exceptions import (
    MessageDeliveryFailure,
    MessageTooLarge,
    MessagingTimeout,
    OutcomeUnknown,
    ServerLost,
    TransportBlocked,
    TransportUnavailable,
)

NAMES = ("one", "two", "three")
"""The servers."""
CALLERS = 32
"""How many threads, or tasks, call at the same time."""
WARM_UP = 0.3
"""Seconds of calls before anything is measured, so that all connections and threads are there."""
PROBE = 2.0
"""Seconds that the message system has to take a message after something has failed; if not, it counts as away."""


class Stage:
    """What the rows use.

    Attributes:
        client: of the bench's topic.
        callers: does what is measured.
        threads: that run the rest, while this one looks after the servers.
        seconds: for which each row repeats its operation.
        one_process: the servers are in this process.
    """

    def __init__(
        self, client: RPCClient, callers: BenchClient, threads: Threads, seconds: float, *, one_process: bool
    ) -> None:
        self.client = client
        self.callers = callers
        self.threads = threads
        self.seconds = seconds
        self.one_process = one_process

    def usages(self) -> list[Usage]:
        """Ask each server what it has used."""

        def ask() -> list[Usage]:
            return [self.client.prepare(server=name).call({}, "usage") for name in NAMES]

        (found,) = self.threads.run(ask)
        return found

    def connect(self) -> None:
        """Reach the message system, before servers are started that would all fail for the same reason."""
        self.callers.reach()

    def warm_up(self) -> None:
        """Make all connections and threads."""
        self.callers.repeat(CALL, CALLERS, WARM_UP)

    def wait_until_noted(self, count: int) -> None:
        """Return when the servers have run so many casts since they began.

        Raises:
            MessagingTimeout: none was run for `TIMEOUT`.
        """
        before, end = -1, 0.0
        while (noted := sum(usage["noted"] for usage in self.usages())) < count:
            now = time.monotonic()
            if noted > before:
                before, end = noted, now + TIMEOUT
            elif now > end:
                raise MessagingTimeout(
                    f"the servers have run {noted} of {count} casts, and no further one for {TIMEOUT:g} s"
                )
            time.sleep(TICK)

    def explain(self, exc: Exception) -> Exception:
        """Why it failed: if a server or the message system is gone, that is the error, whatever came of it first."""
        try:
            self.threads.check_servers()
        except ServerLost as lost:
            return lost
        if isinstance(exc, MessageTooLarge) or not isinstance(exc, MessageDeliveryFailure | MessagingTimeout):
            return exc
        try:
            self.threads.run(lambda: self.client.prepare(timeout=PROBE).cast({}, "note", payload=""))
        except (TransportUnavailable, TransportBlocked) as away:
            # Made anew, since it does not matter whether this last message was taken.
            return type(away)(str(away))
        except OutcomeUnknown as away:
            return TransportUnavailable(str(away))
        except Exception:
            return exc
        return exc


class Figures(NamedTuple):
    """What came out.

    Attributes:
        operations: how many were done.
        seconds: that it took.
        per_second: operations in a second.
        p50: seconds; half of the operations took less. None where they are not waited for one by one.
        p95: likewise 95 %.
        p99: likewise 99 %.
        client_cpu: seconds of CPU of this process for each operation. With `Stage.one_process`, of all.
        servers_cpu: seconds of CPU of all servers together for each operation. None with `Stage.one_process`.
        client_memory: bytes that this process has in memory.
        server_memory: bytes of the server that has most. None with `Stage.one_process`.
    """

    operations: int
    seconds: float
    per_second: float
    p50: float | None
    p95: float | None
    p99: float | None
    client_cpu: float
    servers_cpu: float | None
    client_memory: int
    server_memory: int | None


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        name: for programs.
        title: for people.
        unit: what is counted.
        run: does it. Raises what msgbus raises.
    """

    name: str
    title: str
    unit: str
    run: Callable[[Stage], Load]


def measure(row: Row, stage: Stage) -> Figures:
    """Run a row. Raises what msgbus raises."""
    try:
        before, own_before = stage.usages(), usage_of_this_process()
        load = row.run(stage)
        own, after = usage_of_this_process(), stage.usages()
    except Exception as exc:
        reason = stage.explain(exc)
        if reason is exc:
            raise
        raise reason from exc
    times = sorted(load.times)
    client_cpu = (own["cpu"] - own_before["cpu"]) / load.operations
    servers_cpu = sum(usage["cpu"] for usage in after) - sum(usage["cpu"] for usage in before)
    return Figures(
        operations=load.operations,
        seconds=load.seconds,
        per_second=load.operations / load.seconds,
        p50=_percentile(times, 0.50),
        p95=_percentile(times, 0.95),
        p99=_percentile(times, 0.99),
        client_cpu=client_cpu,
        servers_cpu=None if stage.one_process else servers_cpu / load.operations,
        client_memory=own["memory"],
        server_memory=None if stage.one_process else max(usage["memory"] for usage in after),
    )


def _percentile(times: list[float], share: float) -> float | None:
    """The time within which this share of the operations was done."""
    return times[math.ceil(share * len(times)) - 1] if times else None


def _calls(stage: Stage, callers: int) -> Load:
    return stage.callers.repeat(CALL, callers, stage.seconds)


def _casts(stage: Stage, verb: str, servers: int) -> Load:
    """Casts, each of which is run by so many servers; ends when all have run."""
    before = sum(usage["noted"] for usage in stage.usages())
    load = stage.callers.repeat(verb, 1, stage.seconds)
    stage.wait_until_noted(before + load.operations * servers)
    return load


ROWS = (
    Row("call", "calls, one caller", "calls", lambda stage: _calls(stage, 1)),
    Row("call_concurrent", f"calls, {CALLERS} callers", "calls", lambda stage: _calls(stage, CALLERS)),
    Row("cast", "casts, one caller", "casts", lambda stage: _casts(stage, CAST, 1)),
    Row("fanout", f"fanouts to {len(NAMES)} servers", "fanouts", lambda stage: _casts(stage, FANOUT, len(NAMES))),
    Row("stream", "items of a stream", "items", lambda stage: stage.callers.stream(stage.seconds)),
)
