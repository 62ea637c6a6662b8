"""Bus: what a check works with: the message system, servers, clients, and the servers' journal."""

from __future__ import annotations

import pathlib
import threading
import uuid
from typing import Any, Protocol

from msgbus import Notifier, RPCClient, Target, Transport, get_rpc_client, get_rpc_transport
from msgbus.conformance.blocking import (
    BlockingClient,
    BlockingNotifier,
    BlockingTransport,
    EventLoop,
    blocking_client,
)
from msgbus.conformance.check import Findings
from msgbus.conformance.endpoint import Journal, ServerSpec, make_conf
from msgbus.conformance.harness import THREADS, Harness, Worlds
from msgbus.conformance.processes import ProcessServer
from msgbus.conformance.servers import make_server
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Driver
from msgbus.drivers.toolkit.loop import Loop


class Served(Protocol):
    """A server that the suite has started."""

    name: str

    def stop(self) -> None:
        """As `RPCServer.stop`."""

    def wait(self, seconds: float) -> int:
        """As `RPCServer.wait`."""

    def close(self) -> None:
        """Stop, wait, and close everything. Idempotent."""


class LocalServer:
    """A server in the test's process."""

    def __init__(self, spec: ServerSpec) -> None:
        self.name = spec.server
        self._server = make_server(spec)
        self._closed = False

    def ready(self) -> None:
        """Return when it takes requests."""
        self._server.start(30)

    def stop(self) -> None:
        """As `RPCServer.stop`."""
        self._server.stop()

    def wait(self, seconds: float) -> int:
        """As `RPCServer.wait`."""
        return self._server.wait(seconds)

    def close(self) -> None:
        """Stop, wait, and close everything. Idempotent."""
        if not self._closed:
            self._closed = True
            self._server.wait(10)
            self._server.transport.cleanup()


class Bus:
    """Made for each check, and closed after it.

    Attributes:
        harness: the driver's.
        findings: what earlier checks have found.
        topic: one that no other check uses.
        journal: what the servers of this check write.
        capabilities: what the driver declares.
        killed: whether a process was killed, so that what it left on the message system does not count.
        worlds: which clients and servers it makes.
    """

    def __init__(self, harness: Harness, folder: pathlib.Path, findings: Findings, worlds: Worlds = THREADS) -> None:
        self.harness = harness
        self.findings = findings
        self.topic = f"conformance-{uuid.uuid4().hex[:12]}"
        self.journal = Journal(str(folder))
        self.killed = False
        self.worlds = worlds
        self._event_loop: EventLoop | None = None
        self._transports: list[Transport | BlockingTransport] = []
        self._servers: list[LocalServer | ProcessServer] = []
        self._gates: list[str] = []
        self._shared = threading.Lock()
        self._transport: Transport | BlockingTransport | None = None
        self.capabilities = self.transport.driver.capabilities

    @property
    def transport(self) -> Transport | BlockingTransport:
        """The test's own transport, which its clients share."""
        with self._shared:
            if self._transport is None:
                self._transport = self.new_transport()
            return self._transport

    @property
    def driver(self) -> Driver:
        """The driver of the test's own transport."""
        return self.transport.driver

    def inbox(self) -> str:
        """The name of the test's own inbox."""
        return self.transport.inbox(Loop.now() + 30)

    def new_transport(self, allowed: list[str] | None = None, **options: Any) -> Transport | BlockingTransport:
        """Another transport, with these values of the core's options."""
        conf, url = make_conf(options), self.harness.url
        transport: Transport | BlockingTransport
        if self.worlds.clients == "asyncio":
            if self._event_loop is None:
                self._event_loop = EventLoop()
            transport = BlockingTransport(self._event_loop, conf, url, allowed)
        else:
            transport = get_rpc_transport(conf, url, allowed)
        self._transports.append(transport)
        return transport

    def client(
        self, topic: str | None = None, transport: Transport | BlockingTransport | None = None, **options: Any
    ) -> RPCClient | BlockingClient:
        """A client of this check's topic, or of another."""
        options.setdefault("timeout", 30)
        return self.client_of(Target(topic=topic or self.topic), transport, **options)

    def client_of(
        self, target: Target, transport: Transport | BlockingTransport | None = None, **options: Any
    ) -> RPCClient | BlockingClient:
        """A client of any target."""
        transport = transport or self.transport
        if isinstance(transport, BlockingTransport):
            return blocking_client(transport, target, **options)
        return get_rpc_client(transport, target, **options)

    def notifier(self, **options: Any) -> Notifier | BlockingNotifier:
        """A notifier to this check's topic."""
        options = {"driver": "messagingv2", "topics": [self.topic], **options}
        transport = self.transport
        if isinstance(transport, BlockingTransport):
            return BlockingNotifier(transport, **options)
        return Notifier(transport, **options)

    def listen(self, *servers: str, options: dict[str, Any] | None = None, **more: Any) -> list[Any]:
        """Start listeners to this check's topic (default: one), and return them when all listen; `more`: see `spec`."""
        return self.serve(*servers, listener=more, **(options or {}))

    def address(self, kind: Any = "topic", server: str = "", name: str = "", topic: str | None = None) -> Address:
        """An address of this check's topic."""
        return Address(kind, "msgbus", topic or self.topic, server, name)

    def spec(
        self,
        server: str,
        topic: str | None = None,
        exchange: str | None = None,
        access: str = "",
        listener: dict[str, Any] | None = None,
        **options: Any,
    ) -> ServerSpec:
        """A server of this check's topic, or another."""
        folder = str(self.journal.folder)
        world = self.worlds.servers
        url, topic = self.harness.url, topic or self.topic
        return ServerSpec(url, topic, server, folder, exchange, options, access, world, listener)

    def serve(self, *servers: str, **more: Any) -> list[Any]:
        """Start servers with these names (default: one), and return them when all take requests; `more`: see `spec`."""
        cls: Any = ProcessServer if self.harness.processes else LocalServer
        started = [cls(self.spec(server, **more)) for server in servers or ("s1",)]
        self._servers += started
        for server in started:
            server.ready()
        return started

    def run_streamer(self, key: str) -> ProcessServer:
        """Start a process that reads a stream, and return it when it does."""
        spec = self.spec(key)
        spec.world = self.worlds.clients
        process = ProcessServer(spec, "streamer")
        self._servers.append(process)
        process.ready()
        return process

    def run_holder(self) -> tuple[ProcessServer, Address]:
        """Start a process that has an inbox. Returns it, and the address of the inbox."""
        process = ProcessServer(self.spec("holder"), "holder")
        self._servers.append(process)
        return process, Address("inbox", name=process.ready())

    def kill(self, server: ProcessServer) -> None:
        """Kill a server's process."""
        self.killed = True
        server.kill()

    def gate(self) -> str:
        """The name of a new gate, which is opened at the end of the check at the latest."""
        self._gates.append(uuid.uuid4().hex[:8])
        return self._gates[-1]

    def ran(self, key: str, times: int = 1, seconds: float = 15.0) -> list[str]:
        """Wait until handlers have begun with this key so many times; return the names of the servers."""
        what = f"{times} runs of {key!r}"
        entries = until(lambda: len(found := self.journal.entries("run", key)) >= times and found, what, seconds)
        assert isinstance(entries, list)
        return [entry.server for entry in entries]

    def knows_that_it_runs(self, server: str, seconds: float = 30.0) -> None:
        """Wait until a call of the test's own transport knows that `server` runs it."""

        def heard() -> bool:
            waiting = self.transport.router.waiting()
            return any(running.name == server for call in waiting for running in list(call.servers.values()))

        until(heard, f"a call has heard that {server!r} runs it", seconds)

    def saw(self, event: str, key: str, seconds: float = 15.0) -> None:
        """Wait for an event in the journal."""
        until(lambda: self.journal.entries(event, key), f"event {event!r} of {key!r}", seconds)

    def close(self) -> None:
        """Close everything. The first of several errors is raised."""
        for gate in self._gates:
            self.journal.open_gate(gate)
        errors: list[Exception] = []
        ends = [server.close for server in self._servers] + [transport.cleanup for transport in self._transports]
        if self._event_loop is not None:
            ends.append(self._event_loop.close)
        for end in ends:
            try:
                end()
            except Exception as exc:
                errors.append(exc)
        if errors:
            raise errors[0]
