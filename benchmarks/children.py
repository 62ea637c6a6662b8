"""The two processes of a measurement, which do what the runner tells them through a pipe.

An error ends the process, after a traceback on stderr; the runner sees that.
"""

import itertools
import os
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

from benchmarks.base import TIMEOUT, Payload, WrongAnswer, check, make_payload
from benchmarks.peers import load


class Load(NamedTuple):
    """What a client did.

    Attributes:
        begun: seconds of `time.monotonic`, which is the same for all processes.
        seconds: it took.
        operations: calls or casts.
        cpu: seconds that the client's process used.
        p50: seconds; 0 where single calls are not timed.
    """

    begun: float
    seconds: float
    operations: int
    cpu: float
    p50: float


class _Sink:
    """Takes casts, and knows which."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def take(self, payload: Payload) -> Payload:
        number = payload["number"]
        check(payload, make_payload(number))
        self._numbers.append(number)
        return payload

    def wait(self, count: int) -> float:
        """Return when so many have come, and exactly those: the time of `time.monotonic`."""
        end = time.monotonic() + TIMEOUT
        while len(self._numbers) < count and time.monotonic() < end:
            time.sleep(0.001)
        now = time.monotonic()
        if sorted(self._numbers) != list(range(count)):
            raise WrongAnswer(f"{len(self._numbers)} messages were processed, {count} were sent, or not the same ones")
        return now


def _echo(payload: Payload) -> Payload:
    return payload


def _end_on_error(func: Callable[[], None]) -> None:
    """Run `func`. After an error the process ends, whatever its threads wait for."""
    try:
        func()
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def serve(peer: str, url: str, topic: str, workload: str, pipe: Connection) -> None:
    """Be the server."""
    server = load(peer).server(url, topic)
    sink = _Sink()
    handler = sink.take if workload in ("cast", "fanout") else _echo

    def run() -> None:
        server.serve(handler, lambda: pipe.send("ready"))

    def answer() -> None:
        while True:
            asked = pipe.recv()
            pipe.send(time.process_time() if asked == "cpu" else sink.wait(asked))

    threading.Thread(target=_end_on_error, args=(run,), daemon=True).start()
    _end_on_error(answer)


def drive(peer: str, url: str, topic: str, workload: str, pipe: Connection) -> None:
    """Be the client."""

    def run() -> None:
        client = load(peer).client(url, topic)
        numbers = itertools.count()
        pipe.send("ready")
        while True:
            seconds = pipe.recv()
            p50 = 0.0
            cpu, begun = time.process_time(), time.monotonic()
            if workload == "call_seq":
                count, p50 = client.call_seq(numbers, seconds)
            elif workload == "call_conc":
                count = client.call_conc(numbers, seconds)
            elif workload == "fanout":
                count = client.fanout_many(numbers, seconds)
            else:
                count = client.cast_many(numbers, seconds)
            pipe.send(Load(begun, time.monotonic() - begun, count, time.process_time() - cpu, p50))

    _end_on_error(run)
