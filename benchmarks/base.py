"""What a peer of the benchmarks is, and the load that its client makes."""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

THREADS = 32
SUBSCRIBERS = 8
TIMEOUT = 30.0
"""Seconds after which an answer that has not come is an error."""

Payload = dict[str, Any]
Handler = Callable[[Payload], Payload]


class WrongAnswer(Exception):
    """What came is not what was sent."""


def make_payload(number: int) -> Payload:
    """About 100 bytes of JSON, different for each number."""
    return {
        "number": number,
        "name": "instance-00042",
        "state": "active",
        "host": "compute-17",
        "tags": ["blue", "large", "spare"],
    }


def check(answer: Payload, payload: Payload) -> None:
    """Compare an answer with what it should be.

    Raises:
        WrongAnswer: they differ.
    """
    if answer != payload:
        raise WrongAnswer(f"{answer!r} came for {payload!r}")


class Broker(NamedTuple):
    """Where the broker is, for libraries that do not read URLs of msgbus."""

    host: str
    port: int
    user: str
    password: str
    virtual_host: str

    @classmethod
    def parse(cls, url: str) -> "Broker":
        """Take a transport URL apart."""
        parts = urlsplit(url)
        return cls(
            parts.hostname or "localhost",
            parts.port or 5672,
            unquote(parts.username or "guest"),
            unquote(parts.password or "guest"),
            unquote(parts.path[1:]) or "/",
        )


class Server(ABC):
    """Runs a handler on what clients send to `topic`."""

    def __init__(self, url: str, topic: str) -> None:
        self.url = url
        self.topic = topic

    @abstractmethod
    def serve(self, handler: Handler, ready: Callable[[], None]) -> None:
        """Serve until the process ends; call `ready` when requests will arrive."""


class Client:
    """Sends to `topic`, from one thread or many. A subclass has what it is measured by: see `benchmarks.peers`."""

    def __init__(self, url: str, topic: str) -> None:
        self.url = url
        self.topic = topic

    def call(self, payload: Payload) -> Payload:
        """Send, and wait for the answer."""
        raise NotImplementedError(f"{type(self)} is not measured by its calls")

    def cast(self, payload: Payload) -> None:
        """Send."""
        raise NotImplementedError(f"{type(self)} is not measured by its casts")

    def fanout(self, payload: Payload) -> None:
        """Send to all servers."""
        raise NotImplementedError(f"{type(self)} is not measured by its fanouts")

    def call_seq(self, numbers: Iterator[int], seconds: float) -> tuple[int, float]:
        """Make one call after another.

        Returns:
            how many there were, and the median of their times in seconds.
        """
        times: list[float] = []
        clock = time.perf_counter
        end = clock() + seconds
        while (begun := clock()) < end:
            payload = make_payload(next(numbers))
            answer = self.call(payload)
            times.append(clock() - begun)
            check(answer, payload)
        return len(times), statistics.median(times)

    def call_conc(self, numbers: Iterator[int], seconds: float) -> int:
        """Make calls from many threads. Returns how many."""

        def once(payload: Payload) -> None:
            check(self.call(payload), payload)

        return in_threads(once, numbers, seconds)

    def cast_many(self, numbers: Iterator[int], seconds: float) -> int:
        """Make casts from many threads. Returns how many."""
        return in_threads(self.cast, numbers, seconds)

    def fanout_many(self, numbers: Iterator[int], seconds: float) -> int:
        """Make fanouts from many threads. Returns how many."""
        return in_threads(self.fanout, numbers, seconds)


class Peer(NamedTuple):
    """One way to send and serve."""

    server: type[Server]
    client: type[Client]


def repeat(once: Callable[[Payload], None], numbers: Iterator[int], seconds: float) -> int:
    """Do something for some time. Returns how often it was done."""
    count = 0
    clock = time.monotonic
    end = clock() + seconds
    while clock() < end:
        once(make_payload(next(numbers)))
        count += 1
    return count


def in_threads(once: Callable[[Payload], None], numbers: Iterator[int], seconds: float) -> int:
    """Do something in `THREADS` threads for some time. Returns how often it was done."""
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(future.result() for future in [pool.submit(repeat, once, numbers, seconds) for _ in range(THREADS)])
