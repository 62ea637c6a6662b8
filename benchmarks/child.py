"""A process of a measurement: ``python -m benchmarks.child ROLE MODULE:ATTRIBUTE URL TOPIC WORKLOAD SIZE``.

ROLE is ``serve``, ``drive``, or ``both`` where client and servers are one process. It is told what to do by lines of
JSON on its input, and answers with lines of JSON on its output. An error ends it, after a traceback on stderr. So does
the end of its input: it does not outlive who started it.

It runs in environments that have a library of somebody else's, and neither msgbus nor rich.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pkgutil import resolve_name
from typing import IO, Any

from benchmarks.base import Client, Peer, Service, Work
from benchmarks.payloads import Payload, WrongAnswer, check, make_payload, most
from benchmarks.workloads import TIMEOUT, WORKLOADS, Workload


class Sink(Service):
    """Takes casts, and knows which."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen = bytearray()
        self._count = 0
        self._wrong: str | None = None
        self._changes = threading.Lock()

    def echo(self, payload: Payload) -> Payload:
        """Note that a payload has come. What is returned goes nowhere, where the library knows casts."""
        number = payload["number"]
        try:
            check(payload, make_payload(number, self._size))
        except WrongAnswer as exc:
            self._wrong = str(exc)
        with self._changes:
            if number >= len(self._seen):
                self._seen.extend(bytes(number + 1000 - len(self._seen)))
            if self._seen[number]:
                self._wrong = f"number {number} came twice"
            self._seen[number] = 1
            self._count += 1
        return {}

    def wait(self, count: int, timeout: float = TIMEOUT) -> float:
        """Return when so many have come, the numbers from 0 on: the time of `time.monotonic`.

        Raises:
            WrongAnswer: others came, or not so many in time.
        """
        end = time.monotonic() + timeout
        while self._count < count and self._wrong is None and time.monotonic() < end:
            time.sleep(0.001)
        now = time.monotonic()
        if self._wrong is None and (self._count != count or self._seen.count(1, 0, count) != count):
            self._wrong = f"{self._count} messages were processed and {count} were sent, or not the same ones"
        if self._wrong is not None:
            raise WrongAnswer(self._wrong)
        return now


class Role:
    """What the process does, and how it talks to who started it."""

    def __init__(self, name: str, url: str, topic: str, workload: str, size: int, output: IO[str]) -> None:
        self._peer: Peer = resolve_name(name)
        self._url, self._topic, self._workload, self._size = url, topic, workload, size
        self._kind: Workload = WORKLOADS[workload]
        self._output = output
        self._numbers = itertools.count()
        self._client: Client | None = None
        self._sinks: list[Sink] = []
        self._ready = threading.Semaphore(0)

    def say(self, answer: object) -> None:
        self._output.write(json.dumps(answer) + "\n")
        self._output.flush()

    def start_server(self) -> None:
        """Serve in a thread, and return when requests will arrive."""
        service = Service()
        if self._kind.counts:
            service = Sink(self._size)
            self._sinks.append(service)
        server = self._peer.server(self._url, self._topic)
        threading.Thread(target=end_on_error(server.serve), args=(service, self._ready.release), daemon=True).start()
        if not self._ready.acquire(timeout=TIMEOUT):
            raise TimeoutError(f"the server is not ready after {TIMEOUT:g} s")

    def start_client(self) -> None:
        self._client = self._peer.client(self._url, self._topic)

    def load(self, seconds: float) -> dict[str, Any]:
        """Do the work, and say what was done."""
        assert self._client is not None
        limit = most(self._size) if self._kind.counts else None
        begun = time.monotonic()
        work = Work(self._size, self._numbers, seconds, limit)
        operations: int = getattr(self._client, self._workload)(work)
        took = time.monotonic() - begun
        p50 = statistics.median(work.times) if work.times else None
        return {"begun": begun, "seconds": took, "operations": operations, "p50": p50}

    def obey(self, order: dict[str, Any]) -> None:
        """One line of the input."""
        if "load" in order:
            self.say(self.load(order["load"]))
        else:
            self.say(max(sink.wait(order["processed"]) for sink in self._sinks))


def end_on_error(func: Callable[..., None]) -> Callable[..., None]:
    """The same function, after whose error the process ends, whatever its threads wait for."""

    def run(*args: Any, **kwargs: Any) -> None:
        try:
            func(*args, **kwargs)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    return run


def main(role: str, *words: str, kind: type[Role] = Role) -> None:
    """Be the process."""
    # What libraries print goes to stderr: the output is for answers.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, url, topic, workload, size = words
    this = kind(name, url, topic, workload, int(size), output)
    if role in ("serve", "both"):
        for _ in range(this._kind.servers if role == "both" else 1):
            this.start_server()
    if role in ("drive", "both"):
        this.start_client()
    this.say("ready")
    for line in sys.stdin:
        this.obey(json.loads(line))
    os._exit(0)  # Threads of libraries may wait for ever.


if __name__ == "__main__":
    end_on_error(main)(*sys.argv[1:])
