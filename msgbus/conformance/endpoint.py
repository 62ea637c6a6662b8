"""What the suite's servers run, in the test's process or in one of their own."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Generator
from typing import Any, NamedTuple

import msgspec
from oslo_config import cfg

from msgbus import (
    MessagingTimeout,
    Target,
    Transport,
    configuration,
    expected_exceptions,
    expose,
    get_rpc_client,
)
from msgbus.conformance.harness import World
from msgbus.drivers.toolkit.loop import Loop

GATE_TIMEOUT = 60.0
"""The most seconds that a handler waits for its gate to open."""


class Entry(NamedTuple):
    """A line of the journal: an event, its key, and the server."""

    event: str
    key: str
    server: str


class Journal:
    """A file to which servers add a line for each event, and which tests read. Also the gates that handlers wait at.

    All of it are files of one folder, and work the same between threads and between processes.
    """

    def __init__(self, folder: str) -> None:
        self.folder = pathlib.Path(folder)
        self._path = self.folder / "journal"

    def add(self, event: str, key: str, server: str) -> None:
        """Add a line."""
        line = "\t".join((event, key.replace("\n", " ").replace("\t", " "), server)) + "\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, line.encode("utf-8", "replace"))
        finally:
            os.close(fd)

    def entries(self, event: str | None = None, key: str | None = None) -> list[Entry]:
        """The lines, or those of one event, or of one key."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        found = [Entry(*line.split("\t")) for line in whole.splitlines()]
        return [entry for entry in found if event in (None, entry.event) and key in (None, entry.key)]

    def open_gate(self, name: str) -> None:
        """Let the handlers that wait at a gate continue."""
        (self.folder / f"gate-{name}").touch()

    def is_open(self, name: str) -> bool:
        """Whether a gate is open."""
        return (self.folder / f"gate-{name}").exists()

    def await_gate(self, name: str) -> None:
        """Wait until a gate is open."""
        end = time.monotonic() + GATE_TIMEOUT
        while not self.is_open(name) and time.monotonic() < end:
            time.sleep(0.005)


class Trouble(Exception):
    """An exception that a service defines."""


class Unprintable(Exception):
    """An exception that can neither be shown nor encoded."""

    def __init__(self) -> None:
        super().__init__(object())

    def __str__(self) -> str:
        raise RuntimeError("no text")


class ServerSpec(msgspec.Struct):
    """Describes a server of the suite.

    Attributes:
        url: of the message system.
        topic, server, exchange: its target.
        folder: of its journal.
        options: values of the core's options.
        access: the access policy: "explicit", "legacy", or "" for the default.
        world: whether it is a server for threads or for asyncio.
        listener: of a listener for notifications, the arguments of `get_notification_listener`, or with ``batch_size``
            or ``batch_timeout`` those of `get_batch_notification_listener`; and ``levels``, if it does not have all.
    """

    url: str
    topic: str
    server: str
    folder: str
    exchange: str | None = None
    options: dict[str, Any] = {}
    access: str = ""
    world: World = "threading"
    listener: dict[str, Any] | None = None


class Endpoint:
    """The methods that the checks call."""

    def __init__(self, journal: Journal, server: str, transport: Transport) -> None:
        self._journal = journal
        self._server = server
        self._transport = transport
        self.attribute = "not a method"

    def _note(self, event: str, key: str) -> None:
        self._journal.add(event, key, self._server)

    def echo(self, _ctxt: Any, value: Any = None) -> Any:
        """Return the value."""
        return value

    def note(self, _ctxt: Any, key: str) -> str:
        """Leave a line in the journal; return this server's name."""
        self._note("run", key)
        return self._server

    def context(self, ctxt: Any) -> Any:
        """Return the context."""
        return ctxt

    def hold(self, _ctxt: Any, key: str, gate: str) -> str:
        """Run until the gate opens."""
        self._note("run", key)
        self._journal.await_gate(gate)
        self._note("done", key)
        return self._server

    def each(self, _ctxt: Any, key: str, fails: str = "", waits: str = "", gate: str = "") -> str:
        """Return this server's name. The server that is named raises, or waits until the gate opens."""
        self._note("run", key)
        if self._server == fails:
            raise ValueError(f"on {self._server}")
        if self._server == waits:
            self._journal.await_gate(gate)
        return self._server

    def work(self, _ctxt: Any, key: str, seconds: float) -> str:
        """Take some time, and return the key."""
        self._note("run", key)
        time.sleep(seconds)
        self._note("done", key)
        return key

    def nested(self, _ctxt: Any, topic: str, method: str, arguments: dict[str, Any]) -> Any:
        """Call another service with this process's default timeout."""
        return get_rpc_client(self._transport, Target(topic=topic)).call({}, method, **arguments)

    def nested_hold(self, _ctxt: Any, topic: str, key: str, gate: str) -> None:
        """Call `hold`; the journal says whether that timed out."""
        try:
            self.nested(_ctxt, topic, "hold", {"key": key, "gate": gate})
        except MessagingTimeout:
            self._note("timed out", key)
            raise

    def nested_late(self, _ctxt: Any, topic: str, n: int, pause: float) -> Generator[Any, None, None]:
        """Yield n items with pauses, then the answer of another service."""
        for item in range(n):
            yield item
            time.sleep(pause)
        yield self.nested(_ctxt, topic, "echo", {"value": "nested"})

    def fail(self, _ctxt: Any, kind: str, key: str = "") -> None:
        """Raise."""
        self._note("run", key)
        if kind == "trouble":
            raise Trouble("deep", 7)
        if kind == "unprintable":
            raise Unprintable
        raise ValueError(f"bad: {kind}", 7)

    @expected_exceptions(Trouble)
    def fail_as_expected(self, _ctxt: Any, key: str = "") -> None:
        """Raise an exception that is part of the interface."""
        self._note("run", key)
        raise Trouble("as expected")

    def flaky(self, _ctxt: Any, key: str, failures: int) -> str:
        """Raise the first few times, then succeed."""
        self._note("run", key)
        if len(self._journal.entries("run", key)) <= failures:
            raise Trouble("not yet")
        return self._server

    def unserialisable(self, _ctxt: Any) -> object:
        """Return a value that no codec can encode."""
        return object()

    def big(self, _ctxt: Any, size: int) -> str:
        """Return a long string."""
        return "x" * size

    def big_items(self, _ctxt: Any, n: int, size: int) -> Generator[str, None, None]:
        """Yield long strings."""
        for _ in range(n):
            yield "x" * size

    def _private(self, _ctxt: Any) -> str:
        return "private"

    @expose
    def exposed(self, _ctxt: Any) -> str:
        """Return its name. It is marked as exposed, for the access policies."""
        return "exposed"

    def inbox(self, _ctxt: Any) -> str:
        """The name of the inbox in which this server takes control frames."""
        return self._transport.inbox(Loop.now() + 10)

    def count(self, _ctxt: Any, n: int, key: str = "") -> Generator[int, None, None]:
        """Yield 0 to n - 1."""
        self._note("run", key)
        yield from range(n)
        self._note("done", key)

    def nothings(self, _ctxt: Any, n: int) -> Generator[None, None, None]:
        """Yield None n times."""
        for _ in range(n):
            yield None

    def count_and_fail(self, _ctxt: Any, n: int, kind: str = "value") -> Generator[int, None, None]:
        """Yield 0 to n - 1, then raise."""
        yield from range(n)
        self.fail(_ctxt, kind)

    def count_and_yield_object(self, _ctxt: Any, n: int) -> Generator[object, None, None]:
        """Yield 0 to n - 1, then a value that no codec can encode."""
        yield from range(n)
        yield object()

    def endless(self, _ctxt: Any, key: str) -> Generator[int, None, None]:
        """Yield for ever. The journal has the first 300 items, and when it was closed."""
        n = 0
        try:
            while True:
                if n < 300:
                    self._note("yield", key)
                yield n
                n += 1
        finally:
            self._note("closed", key)

    def gated(self, _ctxt: Any, key: str, n: int, gate: str) -> Generator[int, None, None]:
        """Yield n times at once, then once more when the gate opens."""
        try:
            yield from range(n)
            self._journal.await_gate(gate)
            yield n
        finally:
            self._note("closed", key)


class Versioned:
    """An interface with a namespace and a version of its own."""

    target = Target(namespace="books", version="2.3", legacy_namespaces=["library"])

    def __init__(self, server: str) -> None:
        self._server = server

    def edition(self, _ctxt: Any) -> str:
        """Say which version this is."""
        return "2.3"


class Older:
    """Another version of the same interface."""

    target = Target(namespace="books", version="1.7")

    def edition(self, _ctxt: Any) -> str:
        """Say which version this is."""
        return "1.7"


def make_conf(values: dict[str, Any]) -> cfg.ConfigOpts:
    """A configuration with these values of the core's options."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    configuration.register(conf)
    for name, value in values.items():
        conf.set_override(name, value)
    return conf
