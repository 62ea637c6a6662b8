"""What a row of the benchmarks is made of: a server, and a client with the load that it makes.

These files run in the environments of other libraries too: they import nothing but Python's own.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from benchmarks.payloads import Payload, WrongAnswer, check, items, make_payload, window
from benchmarks.workloads import THREADS


class Broker(NamedTuple):
    """Where the broker is, for libraries that do not read URLs of msgbus."""

    host: str
    port: int
    user: str
    password: str
    virtual_host: str

    @classmethod
    def parse(cls, url: str) -> Broker:
        """Take a transport URL apart."""
        parts = urlsplit(url)
        return cls(
            parts.hostname or "localhost",
            parts.port or 5672,
            unquote(parts.username or "guest"),
            unquote(parts.password or "guest"),
            unquote(parts.path[1:]) or "/",
        )

    @property
    def amqp(self) -> str:
        """The URL that AMQP libraries read."""
        return f"amqp://{self.user}:{self.password}@{self.host}:{self.port}/"


class Work:
    """What a client has to do: payloads to send, until the time is up.

    Attributes:
        size: of each payload, in bytes.
        times: how long calls took, in seconds: only `Client.call_seq` writes it.
    """

    def __init__(self, size: int, numbers: Iterator[int], seconds: float, most: int | None = None) -> None:
        """At most `most` payloads, with the next of `numbers`."""
        self.size = size
        self.times = array("d")
        self._numbers = numbers
        self._end = time.monotonic() + seconds
        self._left = iter(range(most)) if most is not None else itertools.count()

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._end

    def payloads(self) -> Iterator[Payload]:
        """The payloads that are to be sent. Several threads may each iterate; no two get the same.

        Each gets one at least, however busy the machine is, unless there are no more.
        """
        while next(self._left, None) is not None:
            yield make_payload(next(self._numbers), self.size)
            if self.is_over:
                return


class Service:
    """What a server runs. Threads may run it at the same time."""

    def echo(self, payload: Payload) -> Payload:
        """What is called, and what is cast."""
        return payload

    def items(self, count: int, size: int) -> Iterator[Payload]:
        """What is streamed."""
        return (make_payload(number, size) for number in range(count))


class Server(ABC):
    """Runs a service for what clients send to `topic`."""

    def __init__(self, url: str, topic: str) -> None:
        self.url = url
        self.topic = topic

    @abstractmethod
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        """Serve until the process ends; call `ready` when requests will arrive."""


class Client:
    """Sends to `topic`. The methods with a workload's name do that work, and return how many operations it had."""

    def __init__(self, url: str, topic: str) -> None:
        self.url = url
        self.topic = topic

    def call_once(self, payload: Payload) -> Payload:
        """Send, and wait for the answer."""
        raise NotImplementedError(f"{type(self)} makes no calls")

    def cast_once(self, payload: Payload) -> None:
        """Send, and wait for what the library waits for."""
        raise NotImplementedError(f"{type(self)} makes no casts")

    def fanout_once(self, payload: Payload) -> None:
        """Send to all servers."""
        raise NotImplementedError(f"{type(self)} makes no fanouts")

    def stream(self, count: int, size: int) -> Iterable[Payload]:
        """Ask for a stream of so many items."""
        raise NotImplementedError(f"{type(self)} has no streams")

    def call_seq(self, work: Work) -> int:
        """One call after another."""
        clock = time.perf_counter
        for payload in work.payloads():
            begun = clock()
            answer = self.call_once(payload)
            work.times.append(clock() - begun)
            check(answer, payload)
        return len(work.times)

    def call_conc(self, work: Work) -> int:
        """Calls from many threads."""
        return in_threads(self._checked_call, work)

    def _checked_call(self, payload: Payload) -> None:
        check(self.call_once(payload), payload)

    def cast(self, work: Work) -> int:
        """One cast after another."""
        return repeat(self.cast_once, work)

    def cast_many(self, work: Work) -> int:
        """Casts from many threads: for a library that has no better way to send many."""
        return in_threads(self.cast_once, work)

    def fanout(self, work: Work) -> int:
        """Fanouts from many threads."""
        return in_threads(self.fanout_once, work)

    def multicall(self, work: Work) -> int:
        """One stream after another."""
        count, wanted = 0, items(work.size)
        while not count or not work.is_over:
            numbers = itertools.count()
            item = None
            for item in self.stream(wanted, work.size):
                if item["number"] != next(numbers):
                    raise WrongAnswer("the items of a stream came in another order, or not all")
            check(item or {}, make_payload(wanted - 1, work.size))
            count += wanted
        return count


class WindowedClient(Client):
    """One thread that has as many requests under way as other clients have threads."""

    def begin(self, payload: Payload) -> Any:
        """Send a call. Returns what `finish` needs."""
        raise NotImplementedError(f"{type(self)} makes no calls")

    def finish(self, call: Any) -> Payload:
        """The answer to a call; those before it have been asked for already."""
        raise NotImplementedError(f"{type(self)} makes no calls")

    def call_once(self, payload: Payload) -> Payload:
        """Send, and wait for the answer."""
        return self.finish(self.begin(payload))

    def call_conc(self, work: Work) -> int:
        """Calls in a window."""
        return windowed(self.begin, self._checked_finish, work, THREADS)

    def _checked_finish(self, call: Any, payload: Payload) -> None:
        check(self.finish(call), payload)


class AsyncClient(Client):
    """A client of asyncio. Its tasks do what other clients' threads do. An event loop of its own runs meanwhile."""

    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._runner = asyncio.Runner()
        self._runner.run(self.connect())

    async def connect(self) -> None:
        """Do what is needed before the first message."""

    async def call_async(self, payload: Payload) -> Payload:
        """As `call_once`."""
        raise NotImplementedError(f"{type(self)} makes no calls")

    async def cast_async(self, payload: Payload) -> None:
        """As `cast_once`."""
        raise NotImplementedError(f"{type(self)} makes no casts")

    async def fanout_async(self, payload: Payload) -> None:
        """As `fanout_once`."""
        raise NotImplementedError(f"{type(self)} makes no fanouts")

    def stream_async(self, count: int, size: int) -> AsyncIterator[Payload]:
        """As `stream`."""
        raise NotImplementedError(f"{type(self)} has no streams")

    def call_seq(self, work: Work) -> int:
        """One call after another."""

        async def run() -> int:
            clock = time.perf_counter
            for payload in work.payloads():
                begun = clock()
                answer = await self.call_async(payload)
                work.times.append(clock() - begun)
                check(answer, payload)
            return len(work.times)

        return self._runner.run(run())

    def call_conc(self, work: Work) -> int:
        """Calls from many tasks."""
        return self._runner.run(in_tasks(self._checked_call_async, work, THREADS))

    def call_tasks(self, work: Work) -> int:
        """Calls from very many tasks."""
        return self._runner.run(in_tasks(self._checked_call_async, work, window(work.size)))

    async def _checked_call_async(self, payload: Payload) -> None:
        check(await self.call_async(payload), payload)

    def cast(self, work: Work) -> int:
        """One cast after another."""
        return self._runner.run(in_tasks(self.cast_async, work, 1))

    def cast_many(self, work: Work) -> int:
        """Casts from so many tasks that confirmations are pipelined."""
        return self._runner.run(in_tasks(self.cast_async, work, window(work.size)))

    def fanout(self, work: Work) -> int:
        """Likewise, to all servers."""
        return self._runner.run(in_tasks(self.fanout_async, work, window(work.size)))

    def multicall(self, work: Work) -> int:
        """One stream after another."""

        async def run() -> int:
            count, wanted = 0, items(work.size)
            while not count or not work.is_over:
                numbers = itertools.count()
                item = None
                async for item in self.stream_async(wanted, work.size):
                    if item["number"] != next(numbers):
                        raise WrongAnswer("the items of a stream came in another order, or not all")
                check(item or {}, make_payload(wanted - 1, work.size))
                count += wanted
            return count

        return self._runner.run(run())


class Peer(NamedTuple):
    """One way to send and serve.

    Attributes:
        server: the class of each server.
        client: the class of the client.
        together: all run in one process, since the message system is in its memory.
    """

    server: type[Server]
    client: type[Client]
    together: bool = False


def repeat(once: Callable[[Payload], None], work: Work) -> int:
    """Do something with each payload. Returns how often it was done."""
    count = 0
    for payload in work.payloads():
        once(payload)
        count += 1
    return count


def in_threads(once: Callable[[Payload], None], work: Work) -> int:
    """Do something with each payload, in `THREADS` threads. Returns how often it was done.

    The threads stay: what a library keeps for each of them is made while the load does not count yet.
    """
    pool = _threads()
    return sum(future.result() for future in [pool.submit(repeat, once, work) for _ in range(THREADS)])


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS)


async def in_tasks(once: Callable[[Payload], Awaitable[None]], work: Work, tasks: int) -> int:
    """Do something with each payload, in so many tasks. Returns how often it was done."""

    async def several() -> int:
        count = 0
        for payload in work.payloads():
            await once(payload)
            count += 1
        return count

    return sum(await asyncio.gather(*(several() for _ in range(tasks))))


def windowed(begin: Callable[[Payload], Any], finish: Callable[[Any, Payload], None], work: Work, most: int) -> int:
    """Begin something with each payload while at most `most` others are not finished. Returns how often it was."""
    under_way: deque[tuple[Any, Payload]] = deque()
    count = 0
    for payload in work.payloads():
        under_way.append((begin(payload), payload))
        count += 1
        if len(under_way) >= most:
            finish(*under_way.popleft())
    while under_way:
        finish(*under_way.popleft())
    return count
