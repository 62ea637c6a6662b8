"""The processes that are counted: ``python -m tests.counts.child client URL WASTE call cast stream``.

WASTE is what each message is made to cost more, for a test; else 0.

They are fresh ones: what a test runner or a coverage tool does to its own process is not in the counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgbus
from msgbus import executor
from msgbus.drivers.registry import load_driver_class
from tests.counts import tracing
from tests.counts.waste import add_to_each_message
from tests.support import new_transport

TOPIC = "counted"
WARM_UP = 100
"""Operations before anything is counted."""
OPERATIONS = {"call": 5, "cast": 5, "stream": 500}
"""Kind of operation -> how many are counted together."""
ROUNDS = 20
"""How often they are: see `measure`."""
PAYLOAD = {"number": 1, "name": "instance-00042", "state": "active", "tags": ["blue", "large", "spare"]}


class Service:
    """What is called. Whoever casts is told through a pipe when a cast has been run."""

    def __init__(self, noted: int) -> None:
        self._noted = noted

    def echo(self, _ctxt: object, payload: Any) -> Any:
        return payload

    def note(self, _ctxt: object, payload: Any) -> None:
        os.write(self._noted, b"x")

    def items(self, _ctxt: object, payload: Any, count: int) -> Iterator[Any]:
        for _ in range(count):
            yield payload


def driver_of(url: str) -> str:
    """The name of its driver."""
    return url.partition(":")[0]


def serve(transport: msgbus.Transport, noted: int) -> msgbus.RPCServer:
    """A server that is ready."""
    server = msgbus.get_rpc_server(transport, msgbus.Target(topic=TOPIC, server="s1"), [Service(noted)])
    server.start()
    return server


class Client:
    """Does what is counted."""

    def __init__(self, transport: msgbus.Transport, noted: int) -> None:
        self._client = msgbus.get_rpc_client(transport, msgbus.Target(topic=TOPIC), timeout=tracing.DEADLINE)
        self._noted = noted

    def call(self, count: int) -> None:
        for _ in range(count):
            assert self._client.call({}, "echo", payload=PAYLOAD) == PAYLOAD

    def cast(self, count: int) -> None:
        # One after the other: how many wait in a queue at the same time is up to chance.
        for _ in range(count):
            self._client.cast({}, "note", payload=PAYLOAD)
            os.read(self._noted, 1)

    def stream(self, count: int) -> None:
        items = 0
        with self._client.multicall({}, "items", payload=PAYLOAD, count=count) as stream:
            for _item in stream:
                items += 1
        assert items == count


class Side:
    """The client's process, which may be the server's too, or what is said to the server's."""

    def __init__(self) -> None:
        self._before: dict[Any, int] = {}

    def mark(self) -> None:
        """Count from here."""
        self._before = tracing.snapshot()

    def count(self) -> tracing.Counts:
        """What was counted since then."""
        return tracing.difference(self._before, tracing.snapshot())


class ServerSide(Side):
    """A server in a process of its own."""

    def __init__(self, url: str, amount: int, noted: int) -> None:
        command = [sys.executable, "-m", "tests.counts.child", "server", url, str(amount), str(noted)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[noted], cwd=tracing.ROOT
        )
        self._read()

    def mark(self) -> None:
        self._ask("mark")

    def count(self) -> tracing.Counts:
        found: tracing.Counts = self._ask("count")
        return found

    def _ask(self, what: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server has ended with exit code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(tracing.DEADLINE)


def be_server(url: str, amount: int, noted: int) -> None:
    """Serve, and do what is said on stdin, until that is closed."""
    if amount:
        add_to_each_message(driver_of(url), amount)
    transport = new_transport(url)  # It has no thread yet, and to count what it imports would take long.
    tracing.begin()
    server = serve(transport, noted)
    side = Side()
    print("null", flush=True)
    for line in sys.stdin:
        if line == "mark\n":
            side.mark()
            print("null", flush=True)
        else:
            print(json.dumps(side.count()), flush=True)
    tracing.end()
    server.stop()
    server.wait(tracing.DEADLINE)
    transport.cleanup()


def be_client(url: str, amount: int, kinds: list[str]) -> None:
    """Print for each kind of operation and each side what one operation costs, by function, as JSON."""
    reading, writing = os.pipe()
    if amount:
        add_to_each_message(driver_of(url), amount)
    transport = new_transport(url)
    tracing.begin()
    sides: dict[str, Side] = {}
    with ExitStack() as cleanup:
        cleanup.callback(transport.cleanup)
        if load_driver_class(driver_of(url)).one_process:
            server = serve(transport, writing)
            cleanup.callback(server.wait, tracing.DEADLINE)
            cleanup.callback(server.stop)
            sides["both"] = Side()
        else:
            other = ServerSide(url, amount, writing)
            cleanup.callback(other.close)
            sides |= {"client": Side(), "server": other}
        client = Client(transport, reading)
        print(json.dumps({kind: measure(getattr(client, kind), OPERATIONS[kind], sides) for kind in kinds}))
        tracing.end()


def measure(run: Callable[[int], None], operations: int, sides: dict[str, Side]) -> dict[str, dict[str, float]]:
    """What one operation costs on each side, by function.

    Threads take turns as the machine lets them, which adds turns of a loop, and hand-offs: the round with the least
    counts.
    """
    run(WARM_UP)
    rounds: dict[str, list[tracing.Counts]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for side in sides.values():
            side.mark()
        run(operations)
        for name, side in sides.items():
            rounds[name].append(side.count())
    found = {}
    for name, counts in rounds.items():
        least = min(counts, key=lambda one: sum(one.values()))
        found[name] = {function: round(count / operations, 2) for function, count in least.items()}
    return found


def main() -> None:
    """Be one of the processes."""
    role, url, amount, *rest = sys.argv[1:]
    # How long a method takes is up to the machine: here, each is short.
    executor.SHORT = executor.QUICK = executor.WAITS = 1.0
    if role == "server":
        be_server(url, int(amount), int(rest[0]))
    else:
        be_client(url, int(amount), rest)


if __name__ == "__main__":
    main()
