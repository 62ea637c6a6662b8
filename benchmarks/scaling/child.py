"""A process of these measurements: ``python -m benchmarks.scaling.child ROLE URL WORDS``, with the drivers of msgbus.

It answers each line of its input with a line of JSON, and ends with its input. The roles:

``topics URL TOPIC COUNT``
    one server process of so many topics
``servers URL TOPIC FIRST COUNT``
    so many servers of one topic, each with connections of its own
``call URL TOPIC TOPICS THREADS``
    a client of so many topics, which so many threads call all the time
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

from benchmarks.base import Service
from benchmarks.child import end_on_error
from benchmarks.payloads import SMALL, check, make_payload
from benchmarks.peers.msgbus import Endpoint, transport
from benchmarks.workloads import TIMEOUT
from msgbus import RPCClient, Target, Transport, get_rpc_client, get_rpc_server

START_SECONDS = 300.0
"""How long all servers of a process may take to start, and all callers to have had an answer."""
ONE_SECONDS = 30.0
"""How long one server may take to start."""
_STACK = 256 * 1024


def name(topic: str, number: int) -> str:
    """The name of one of several topics."""
    return f"{topic}-{number}"


def serve_topics(url: str, topic: str, count: int) -> None:
    """Serve so many topics over one transport."""
    bus = transport(url)
    for number in range(count):
        _serve(bus, name(topic, number), f"s{number}")


def serve_many(url: str, topic: str, first: int, count: int) -> None:
    """Be so many servers of a topic."""
    for number in range(first, first + count):
        _serve(transport(url), name(topic, 0), f"s{number}")


def _serve(bus: Transport, topic: str, server: str) -> None:
    get_rpc_server(bus, Target(topic=topic, server=server), [Endpoint(Service())]).start(ONE_SECONDS)


class Callers:
    """Threads that call all the time, and count.

    They go round the topics, and each begins at another.
    """

    def __init__(self, url: str, topic: str, topics: int, threads: int) -> None:
        self._bus = transport(url, rpc_send_window=max(threads, 1000) + 1)
        targets = [Target(topic=name(topic, number)) for number in range(topics)]
        self._clients = [get_rpc_client(self._bus, target, timeout=START_SECONDS) for target in targets]
        self._counts = [0] * threads
        self._stop = False
        self._threads: list[threading.Thread] = []

    def ping(self, servers: int) -> list[float]:
        """Ask all servers of the first topic for a sign of life, twice: the seconds until the last has answered."""
        took = []
        for _ in range(2):
            answers = self._clients[0].ping(TIMEOUT)
            if len(answers) != servers:
                raise ConnectionError(f"{len(answers)} of {servers} servers have answered")
            took.append(max(answer["seconds"] for answer in answers))
        return took

    def start(self) -> None:
        """Call each topic once, then from all threads; return when each has had an answer."""
        for client in self._clients:
            client.call({}, "echo", payload=make_payload(0, SMALL))
        threading.stack_size(_STACK)
        for number in range(len(self._counts)):
            at = number * len(self._clients) // len(self._counts)
            clients = self._clients[at:] + self._clients[:at]
            func = end_on_error(self._call)
            self._threads.append(threading.Thread(target=func, args=(number, clients), daemon=True))
        for thread in self._threads:
            thread.start()
        end = time.monotonic() + START_SECONDS
        while not all(self._counts):
            if time.monotonic() > end:
                raise TimeoutError("not every thread has had an answer")
            time.sleep(0.01)

    def _call(self, number: int, clients: Sequence[RPCClient]) -> None:
        for at, client in zip(itertools.count(), itertools.cycle(clients)):
            if self._stop:
                return
            payload = make_payload(at, SMALL)
            check(client.call({}, "echo", payload=payload), payload)
            self._counts[number] += 1

    def measure(self, seconds: float) -> dict[str, float]:
        """What was done in about so many seconds."""
        begun, before = time.monotonic(), sum(self._counts)
        time.sleep(seconds)
        return {"operations": sum(self._counts) - before, "seconds": time.monotonic() - begun}

    def stop(self) -> int:
        """End the threads. Returns how many calls there were."""
        self._stop = True
        for thread in self._threads:
            thread.join()
        return sum(self._counts)


def main(role: str, url: str, *words: str) -> None:
    """Be the process."""
    output: IO[str] = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: object) -> None:
        output.write(json.dumps(answer) + "\n")
        output.flush()

    topic, numbers = words[0], [int(word) for word in words[1:]]
    if role != "call":
        if role == "topics":
            serve_topics(url, topic, *numbers)
        else:
            serve_many(url, topic, *numbers)
        say("ready")
        sys.stdin.read()
        os._exit(0)
    callers = Callers(url, topic, *numbers)
    say("ready")
    orders: dict[str, Callable[[float], object]] = {
        "ping": lambda servers: callers.ping(int(servers)),
        "start": lambda _: callers.start(),
        "measure": callers.measure,
        "stop": lambda _: callers.stop(),
    }
    for line in sys.stdin:
        order, value = json.loads(line)
        say(orders[order](value))
    os._exit(0)


if __name__ == "__main__":
    end_on_error(main)(*sys.argv[1:])
