"""A bus in memory for the tests of `msgbus top` and `msgbus stuck`, and what is wrong on it."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from typing import Any

from click.testing import CliRunner, Result

from msgbus import RPCServer, Target, get_rpc_client, get_rpc_server
from msgbus.cli.app import cli
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Address
from tests.support import EVENT_TIMEOUT, new_transport, new_url

QUICK = ("--interval", "0.3", "--timeout", "2")
"""Options for tests in which a server does not answer. The others may be slow on a busy machine."""


class Service:
    """What servers run."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def greet(self, _ctxt: object, name: str = "you") -> str:
        return f"Hello, {name}"

    def fail(self, _ctxt: object) -> None:
        raise KeyError("no such thing")

    def wait(self, _ctxt: object) -> None:
        assert self.go_on.wait(EVENT_TIMEOUT)


class Bus:
    """A bus, with servers of the topic hello."""

    def __init__(self, cleanup: ExitStack) -> None:
        self.url = new_url()
        self.service = Service()
        self._cleanup = cleanup
        self.transport = self._transport()
        self.client = get_rpc_client(self.transport, Target(topic="hello"), timeout=EVENT_TIMEOUT)
        cleanup.callback(self.service.go_on.set)

    def _transport(self, **options: Any) -> Any:
        transport = new_transport(self.url, **options)
        self._cleanup.callback(transport.cleanup)
        return transport

    def serve(self, name: str, topic: str = "hello", **options: Any) -> RPCServer:
        """Start a server."""
        target = Target(topic=topic, server=name)
        server = get_rpc_server(self._transport(**options), target, [self.service])
        server.start(EVENT_TIMEOUT)
        self._cleanup.callback(server.wait, EVENT_TIMEOUT)
        self._cleanup.callback(self.service.go_on.set)
        return server

    def freeze(self, name: str, topic: str = "hello") -> None:
        """Add a server that takes what comes and does nothing, as one that is frozen."""
        at = Address("topic", "msgbus", topic)
        addresses = [at, at._replace(kind="server", server=name), at._replace(kind="fanout", server=name)]
        self.transport.driver.subscribe(addresses, lambda _delivery: None, prefetch=64)

    def occupy(self, name: str, threads: int) -> list[Task]:
        """Have so many threads of a server busy."""
        asked = self.client.prepare(server=name)
        tasks = [Task(asked.call, {}, "wait") for _ in range(threads)]
        stats = asked.prepare(namespace="msgbus")
        until(lambda: stats.call({}, "stats")["running_count"] == threads, "all threads are busy")
        return tasks

    def let_run_for(self, name: str, seconds: float) -> None:
        """Wait until a server says that the request that has run longest there has run for so long."""
        asked = self.client.prepare(server=name, namespace="msgbus")

        def oldest() -> float:
            return float(max(request["seconds"] for request in asked.call({}, "stats")["running"]))

        until(lambda: oldest() >= seconds, f"a request has run for {seconds} seconds")

    def run(self, *args: str) -> Result:
        """Run the command."""
        return CliRunner().invoke(cli, [*args, "--url", self.url])

    def document(self, *args: str, code: int = 0) -> Any:
        """The only line of JSON that the command prints."""
        result = self.run(*args, "--json")
        assert (result.exit_code, result.stderr) == (code, ""), result.output
        (line,) = result.stdout.splitlines()
        return json.loads(line)
