"""What ``msgbus bench`` measures, and how."""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from msgbus.cli.bench_service import Usage, usage_of_this_process
from msgbus.cli.own_servers import Running
from msgbus.client import RPCClient
from msgbus.exceptions import (
    MessageDeliveryFailure,
    MessageTooLarge,
    MessageUndeliverable,
    MessagingTimeout,
    OutcomeUnknown,
    RemoteError,
    ServerLost,
    TransportBlocked,
    TransportUnavailable,
)

R = TypeVar("R")

NAMES = ("one", "two", "three")
"""The servers."""
CALLERS = 32
"""How many threads call at the same time."""
TIMEOUT = 10.0
"""Seconds for each call, cast and item; and after which servers that run no more casts are an error."""
WARM_UP = 0.3
"""Seconds of calls before anything is measured, so that all connections and threads are there."""
TICK = 0.1
"""Seconds between two looks whether a server has ended, or all casts have run."""
PROBE = 2.0
"""Seconds that the message system has to take a message after something has failed; if not, it counts as away."""


class Threads:
    """Runs what is measured on threads, while the caller waits for it and looks after the servers.

    Attributes:
        stopped: set when the threads are to end.
    """

    def __init__(self, servers: Mapping[str, Running]) -> None:
        self.stopped = threading.Event()
        self._servers = servers
        self._running: list[threading.Thread] = []

    def run(self, work: Callable[[], R], count: int = 1) -> list[R]:
        """Run `work` on so many threads, and return their results.

        Raises:
            ServerLost: the process of a server has ended.
            MessagingException: the first error of any thread. It is raised at once; the other threads end when they
                have done what they do at that moment.
        """
        results: list[R] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(work())
            except Exception as exc:
                errors.append(exc)

        self._running = [thread for thread in self._running if thread.is_alive()]
        threads = [threading.Thread(target=run, name=f"msgbus-bench-{n}", daemon=True) for n in range(count)]
        self._running += threads
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive() and not errors:
                    thread.join(TICK)
                    self.check_servers()
            if errors:
                raise errors[0]
        except BaseException:
            self.stopped.set()
            raise
        return results

    def check_servers(self) -> None:
        """Check that all servers run.

        Raises:
            ServerLost: the process of one has ended.
        """
        for name, server in self._servers.items():
            code = server.exit_code()
            if code is not None:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise ServerLost(f"server {name} (process {server.pid}) {how} while it was measured")

    def close(self) -> None:
        """Wait for threads that an error has left behind: the transport is closed, so nothing keeps them long."""
        self.stopped.set()
        for thread in self._running:
            thread.join(TIMEOUT)


class Stage:
    """What the rows use.

    Attributes:
        client: of the bench's topic.
        payload: what is sent.
        seconds: for which each row repeats its operation.
        one_process: the servers are in this process.
        threads: that run what is measured.
    """

    def __init__(self, client: RPCClient, threads: Threads, payload: str, seconds: float, *, one_process: bool) -> None:
        self.client = client
        self.threads = threads
        self.payload = payload
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

        def reach() -> None:
            try:
                self.call()
            except (MessageUndeliverable, MessagingTimeout):
                pass  # Nobody listens yet, and the message system is there to say so.

        self.threads.run(reach)

    def warm_up(self) -> None:
        """Make all connections and threads."""
        end = time.perf_counter() + WARM_UP
        self.threads.run(lambda: self.repeat(self.call, end), CALLERS)

    def repeat(self, operation: Callable[[], object], end: float) -> array[float]:
        """Do it at least once, and until `end`. Returns the seconds that each took."""
        clock, stopped, seconds = time.perf_counter, self.threads.stopped.is_set, array("d")
        begun = clock()
        while True:
            operation()
            now = clock()
            seconds.append(now - begun)
            if now >= end or stopped():
                return seconds
            begun = now

    def call(self) -> None:
        """One call."""
        answer = self.client.call({}, "echo", payload=self.payload)
        if answer != self.payload:
            raise RemoteError("ValueError", "what a server answered is not what was sent")

    def cast(self) -> None:
        """One cast."""
        self.client.cast({}, "note", payload=self.payload)

    def fanout(self) -> None:
        """One cast to each server."""
        self.client.fanout_cast({}, "note", payload=self.payload)

    def stream(self, end: float) -> int:
        """Take items of one stream until `end`, at least one. Returns how many came."""
        clock, stopped, count = time.perf_counter, self.threads.stopped.is_set, 0
        with self.client.multicall({}, "items", payload=self.payload) as items:
            for _item in items:
                count += 1
                if clock() >= end or stopped():
                    break
        return count

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


class Load(NamedTuple):
    """What was done.

    Attributes:
        operations: how many.
        seconds: from the first to the last.
        times: seconds of each operation; empty where they are not waited for one by one.
    """

    operations: int
    seconds: float
    times: array[float]


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


def _repeat(stage: Stage, operation: Callable[[], object], threads: int) -> Load:
    begun = time.perf_counter()
    end = begun + stage.seconds
    found = stage.threads.run(lambda: stage.repeat(operation, end), threads)
    seconds = time.perf_counter() - begun
    times = array("d")
    for some in found:
        times += some
    return Load(len(times), seconds, times)


def _cast(stage: Stage, operation: Callable[[], object], servers: int) -> Load:
    """Casts, each of which is run by so many servers; ends when all have run."""
    before = sum(usage["noted"] for usage in stage.usages())
    load = _repeat(stage, operation, 1)
    stage.wait_until_noted(before + load.operations * servers)
    return load


def _stream(stage: Stage) -> Load:
    begun = time.perf_counter()
    end = begun + stage.seconds
    (count,) = stage.threads.run(lambda: stage.stream(end))
    return Load(count, time.perf_counter() - begun, array("d"))


ROWS = (
    Row("call", "calls, one caller", "calls", lambda stage: _repeat(stage, stage.call, 1)),
    Row(
        "call_concurrent",
        f"calls, {CALLERS} callers",
        "calls",
        lambda stage: _repeat(stage, stage.call, CALLERS),
    ),
    Row("cast", "casts, one thread", "casts", lambda stage: _cast(stage, stage.cast, 1)),
    Row(
        "fanout",
        f"fanouts to {len(NAMES)} servers",
        "fanouts",
        lambda stage: _cast(stage, stage.fanout, len(NAMES)),
    ),
    Row("stream", "items of a stream", "items", _stream),
)
