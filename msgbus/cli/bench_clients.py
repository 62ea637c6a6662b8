"""The clients of ``msgbus bench``: they do one thing again and again, on threads or as tasks, and take the times."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from msgbus.cli.own_servers import Running
from msgbus.client import RPCClient
from msgbus.exceptions import MessageUndeliverable, MessagingTimeout, RemoteError, ServerLost

if TYPE_CHECKING:
    import asyncio

    from msgbus.aio import AsyncRPCClient
    from msgbus.transport import Transport

R = TypeVar("R")

TIMEOUT = 10.0
"""Seconds for each call, cast and item; and after which servers that run no more casts are an error."""
TICK = 0.1
"""Seconds between two looks whether a server has ended, or all casts have run."""

NOBODY_SERVES = (MessageUndeliverable, MessagingTimeout)
"""What says that nobody serves: the message system is there to say so."""

CALL, CAST, FANOUT = "call", "cast", "fanout_cast"
"""What is repeated."""


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
                time.sleep(TICK)  # A process has ended a moment after its connections, and that explains more.
                self.check_servers()
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
            if thread.is_alive():  # Ctrl-C may have come before all of them were started.
                thread.join(TIMEOUT)


class BenchClient(ABC):
    """Uses the servers of the bench. Each method raises what msgbus raises."""

    def __init__(self, threads: Threads, payload: str) -> None:
        """A client that sends `payload`; it ends when `threads` are stopped."""
        self._threads = threads
        self._payload = payload

    @abstractmethod
    def reach(self) -> None:
        """Reach the message system, whether or not anybody serves."""

    @abstractmethod
    def repeat(self, verb: str, callers: int, seconds: float) -> Load:
        """Have so many callers do it for so long, each at least once."""

    @abstractmethod
    def stream(self, seconds: float) -> Load:
        """Take items of one stream for so long, at least one."""

    def _check(self, answer: object) -> None:
        if answer != self._payload:
            raise RemoteError("ValueError", "what a server answered is not what was sent")


class ThreadClient(BenchClient):
    """Each caller is a thread."""

    def __init__(self, client: RPCClient, threads: Threads, payload: str) -> None:
        super().__init__(threads, payload)
        self._client = client
        self._operations = {CALL: self._call, CAST: self._cast, FANOUT: self._fanout}

    def reach(self) -> None:
        """See `BenchClient`."""
        self._threads.run(self._reach)

    def _reach(self) -> None:
        with suppress(*NOBODY_SERVES):
            self._call()

    def repeat(self, verb: str, callers: int, seconds: float) -> Load:
        """See `BenchClient`."""
        begun = time.perf_counter()
        end, operation = begun + seconds, self._operations[verb]
        return _load(begun, self._threads.run(lambda: self._repeat(operation, end), callers))

    def _repeat(self, operation: Callable[[], object], end: float) -> array[float]:
        clock, stopped, seconds = time.perf_counter, self._threads.stopped.is_set, array("d")
        begun = clock()
        while True:
            operation()
            now = clock()
            seconds.append(now - begun)
            if now >= end or stopped():
                return seconds
            begun = now

    def _call(self) -> None:
        self._check(self._client.call({}, "echo", payload=self._payload))

    def _cast(self) -> None:
        self._client.cast({}, "note", payload=self._payload)

    def _fanout(self) -> None:
        self._client.fanout_cast({}, "note", payload=self._payload)

    def stream(self, seconds: float) -> Load:
        """See `BenchClient`."""
        begun = time.perf_counter()
        (count,) = self._threads.run(lambda: self._stream(begun + seconds))
        return Load(count, time.perf_counter() - begun, array("d"))

    def _stream(self, end: float) -> int:
        clock, stopped, count = time.perf_counter, self._threads.stopped.is_set, 0
        with self._client.multicall({}, "items", payload=self._payload) as items:
            for _item in items:
                count += 1
                if clock() >= end or stopped():
                    break
        return count


class TaskClient(BenchClient):
    """Each caller is a task, of one event loop."""

    def __init__(self, client: AsyncRPCClient, loop: asyncio.AbstractEventLoop, threads: Threads, payload: str) -> None:
        """Use a client of `loop`, which runs on a thread of its own."""
        super().__init__(threads, payload)
        self._client = client
        self._loop = loop
        self._operations = {CALL: self._call, CAST: self._cast, FANOUT: self._fanout}

    def _run(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        import asyncio

        (result,) = self._threads.run(lambda: asyncio.run_coroutine_threadsafe(work(), self._loop).result())
        return result

    def reach(self) -> None:
        """See `BenchClient`."""
        self._run(self._reach)

    async def _reach(self) -> None:
        with suppress(*NOBODY_SERVES):
            await self._call()

    def repeat(self, verb: str, callers: int, seconds: float) -> Load:
        """See `BenchClient`."""
        return self._run(lambda: self._repeat_in_tasks(self._operations[verb], callers, seconds))

    async def _repeat_in_tasks(
        self, operation: Callable[[], Coroutine[Any, Any, None]], callers: int, seconds: float
    ) -> Load:
        import asyncio

        begun = time.perf_counter()
        end = begun + seconds
        return _load(begun, await asyncio.gather(*(self._repeat(operation, end) for _ in range(callers))))

    async def _repeat(self, operation: Callable[[], Coroutine[Any, Any, None]], end: float) -> array[float]:
        clock, stopped, seconds = time.perf_counter, self._threads.stopped.is_set, array("d")
        begun = clock()
        while True:
            await operation()
            now = clock()
            seconds.append(now - begun)
            if now >= end or stopped():
                return seconds
            begun = now

    async def _call(self) -> None:
        self._check(await self._client.call({}, "echo", payload=self._payload))

    async def _cast(self) -> None:
        await self._client.cast({}, "note", payload=self._payload)

    async def _fanout(self) -> None:
        await self._client.fanout_cast({}, "note", payload=self._payload)

    def stream(self, seconds: float) -> Load:
        """See `BenchClient`."""
        return self._run(lambda: self._stream(seconds))

    async def _stream(self, seconds: float) -> Load:
        clock, stopped, count = time.perf_counter, self._threads.stopped.is_set, 0
        begun = clock()
        end = begun + seconds
        async with self._client.multicall({}, "items", payload=self._payload) as items:
            async for _item in items:
                count += 1
                if clock() >= end or stopped():
                    break
        return Load(count, clock() - begun, array("d"))


@contextmanager
def task_client(
    transport: Transport, client: RPCClient, url: str, threads: Threads, payload: str
) -> Iterator[TaskClient]:
    """Run an event loop on a thread, and on it a client of `msgbus.aio`, like `client` of `transport`; close both.

    Raises:
        MessagingException: the driver cannot be used on an event loop.
    """
    import asyncio

    from msgbus.aio import get_rpc_client, get_rpc_transport

    opened: Future[tuple[AsyncRPCClient, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        ended = asyncio.Event()
        async with get_rpc_transport(transport.conf, url) as own:
            opened.set_result(
                (
                    get_rpc_client(own, client.target, timeout=client.timeout),
                    asyncio.get_running_loop(),
                    ended,
                )
            )
            await ended.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as exc:
            if opened.done():
                raise
            opened.set_exception(exc)

    thread = threading.Thread(target=run, name="msgbus-bench-asyncio", daemon=True)
    thread.start()
    own_client, loop, ended = opened.result()
    try:
        yield TaskClient(own_client, loop, threads, payload)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(TIMEOUT)


def _load(begun: float, found: Sequence[array[float]]) -> Load:
    """All that several callers did."""
    seconds = time.perf_counter() - begun
    times = array("d")
    for some in found:
        times += some
    return Load(len(times), seconds, times)
