"""The load that a peer makes, of an oslo.messaging client: as fast as it can, or counted while something is broken."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import oslo_messaging

_WARM_UP = 0.5
"""Seconds of load before any is counted."""


def calls_per_second(client: Any, threads: int, seconds: float) -> float:
    """How many calls in a second so many threads get answered, each calling again and again."""
    counts = [0] * threads
    begin = time.monotonic() + _WARM_UP
    end = begin + seconds

    def call(number: int) -> None:
        while (now := time.monotonic()) < end:
            assert client.call({}, "echo", value=number)["value"] == number
            if now >= begin:
                counts[number] += 1

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, range(threads)))  # raises what a thread has raised
    return sum(counts) / (time.monotonic() - begin)


class Load:
    """Threads that call again and again, and one that casts at regular intervals.

    Args:
        client: of oslo.messaging. Its timeout is how long a call may take.
        threads: how many call.
        casts: in a second.
        work: how long a server takes for each, in seconds.
        name: of the load: casts are written down as "NAME NUMBER".
    """

    def __init__(self, client: Any, *, threads: int, casts: float, work: float, name: str) -> None:
        self._client = client
        self._threads = threads
        self._interval = 1 / casts
        self._work = work
        self._name = name
        self._lock = threading.Lock()
        self._answered = self._timed_out = 0
        self._slowest = 0.0
        self._casts: list[int] = []
        self._errors: Counter[str] = Counter()

    def run(self, seconds: float) -> dict[str, Any]:
        """Make it for so long, and say what the calls and the casts came to.

        Returns:
            "answered" and "timed_out": how many calls. "slowest": the seconds that the slowest of the answered took.
            "casts": the numbers of those that returned. "errors": of calls and casts, class -> how often.
        """
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(self._threads + 1) as pool:
            running = [pool.submit(self._call, number, end) for number in range(self._threads)]
            running.append(pool.submit(self._cast_regularly, end))
        for it in running:
            it.result()
        return {
            "answered": self._answered,
            "timed_out": self._timed_out,
            "slowest": self._slowest,
            "casts": self._casts,
            "errors": dict(self._errors),
        }

    def _call(self, number: int, end: float) -> None:
        while (begin := time.monotonic()) < end:
            try:
                answer = self._client.call({}, "echo", value=number, seconds=self._work)
                if answer["value"] != number:
                    raise ValueError("this is another call's answer")
            except oslo_messaging.MessagingTimeout:
                with self._lock:
                    self._timed_out += 1
            except Exception as exc:
                self._count_error("call", exc)
            else:
                took = time.monotonic() - begin
                with self._lock:
                    self._answered += 1
                    self._slowest = max(self._slowest, took)

    def _cast_regularly(self, end: float) -> None:
        due = time.monotonic()
        for number in itertools.count():
            time.sleep(max(0.0, due - time.monotonic()))
            due += self._interval
            if due > end:
                return
            try:
                self._client.cast({}, "note", text=f"{self._name} {number}", seconds=self._work)
            except Exception as exc:
                self._count_error("cast", exc)
            else:
                self._casts.append(number)

    def _count_error(self, verb: str, error: Exception) -> None:
        with self._lock:
            self._errors[f"{verb}: {type(error).__name__}"] += 1
        time.sleep(0.1)  # What fails at once is not to be tried as fast as it fails.
