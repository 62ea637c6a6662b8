"""AsyncEndpoint: the methods that the checks call, as a service for asyncio has them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import closing
from typing import Any

from msgbus import MessagingTimeout, Target, expected_exceptions, expose
from msgbus.aio import AsyncTransport, get_rpc_client
from msgbus.conformance.endpoint import GATE_TIMEOUT, Endpoint, Journal, Trouble
from msgbus.drivers.toolkit.loop import Loop

CHECK_INTERVAL = 0.005
"""Seconds between two looks at a gate."""


class AsyncEndpoint:
    """`Endpoint`, with methods that are ``async``, and asynchronous generators. What waits, waits on the event loop."""

    def __init__(self, journal: Journal, server: str, transport: AsyncTransport) -> None:
        self._journal = journal
        self._server = server
        self._transport = transport
        self._plain = Endpoint(journal, server, transport)  # type: ignore[arg-type]  # what needs it is not used
        self.attribute = "not a method"

    async def _await_gate(self, name: str) -> None:
        end = time.monotonic() + GATE_TIMEOUT
        while not self._journal.is_open(name) and time.monotonic() < end:  # noqa: ASYNC110  # it is a file
            await asyncio.sleep(CHECK_INTERVAL)

    async def echo(self, _ctxt: Any, value: Any = None) -> Any:
        """Return the value."""
        return value

    async def note(self, _ctxt: Any, key: str) -> str:
        """Leave a line in the journal; return this server's name."""
        return self._plain.note(_ctxt, key)

    async def context(self, ctxt: Any) -> Any:
        """Return the context."""
        return ctxt

    async def hold(self, _ctxt: Any, key: str, gate: str) -> str:
        """Run until the gate opens."""
        self._journal.add("run", key, self._server)
        try:
            await self._await_gate(gate)
        except asyncio.CancelledError:
            self._journal.add("cancelled", key, self._server)
            raise
        self._journal.add("done", key, self._server)
        return self._server

    async def each(self, _ctxt: Any, key: str, fails: str = "", waits: str = "", gate: str = "") -> str:
        """Return this server's name. The server that is named raises, or waits until the gate opens."""
        if self._server == waits:
            self._journal.add("run", key, self._server)
            await self._await_gate(gate)
            return self._server
        return self._plain.each(_ctxt, key, fails)

    async def work(self, _ctxt: Any, key: str, seconds: float) -> str:
        """Take some time, and return the key."""
        self._journal.add("run", key, self._server)
        await asyncio.sleep(seconds)
        self._journal.add("done", key, self._server)
        return key

    async def nested(self, _ctxt: Any, topic: str, method: str, arguments: dict[str, Any]) -> Any:
        """Call another service with this process's default timeout."""
        return await get_rpc_client(self._transport, Target(topic=topic)).call({}, method, **arguments)

    async def nested_hold(self, _ctxt: Any, topic: str, key: str, gate: str) -> None:
        """Call `hold`; the journal says whether that timed out, or its caller gave up first, which cancels this."""
        try:
            await self.nested(_ctxt, topic, "hold", {"key": key, "gate": gate})
        except (MessagingTimeout, asyncio.CancelledError):
            self._journal.add("timed out", key, self._server)
            raise

    async def nested_late(self, _ctxt: Any, topic: str, n: int, pause: float) -> AsyncGenerator[Any, None]:
        """Yield n items with pauses, then the answer of another service."""
        for item in range(n):
            yield item
            await asyncio.sleep(pause)
        yield await self.nested(_ctxt, topic, "echo", {"value": "nested"})

    async def fail(self, _ctxt: Any, kind: str, key: str = "") -> None:
        """Raise."""
        self._plain.fail(_ctxt, kind, key)

    @expected_exceptions(Trouble)
    async def fail_as_expected(self, _ctxt: Any, key: str = "") -> None:
        """Raise an exception that is part of the interface."""
        self._journal.add("run", key, self._server)
        raise Trouble("as expected")

    async def flaky(self, _ctxt: Any, key: str, failures: int) -> str:
        """Raise the first few times, then succeed."""
        return self._plain.flaky(_ctxt, key, failures)

    async def unserialisable(self, _ctxt: Any) -> object:
        """Return a value that no codec can encode."""
        return object()

    async def big(self, _ctxt: Any, size: int) -> str:
        """Return a long string."""
        return "x" * size

    async def big_items(self, _ctxt: Any, n: int, size: int) -> AsyncGenerator[str, None]:
        """Yield long strings."""
        for _ in range(n):
            yield "x" * size

    async def _private(self, _ctxt: Any) -> str:
        return "private"

    @expose
    async def exposed(self, _ctxt: Any) -> str:
        """Return its name. It is marked as exposed, for the access policies."""
        return "exposed"

    async def inbox(self, _ctxt: Any) -> str:
        """The name of the inbox in which this server takes control frames."""
        return await self._transport.inbox(Loop.now() + 10)

    async def count(self, _ctxt: Any, n: int, key: str = "") -> AsyncGenerator[int, None]:
        """Yield 0 to n - 1."""
        for item in self._plain.count(_ctxt, n, key):
            yield item

    async def nothings(self, _ctxt: Any, n: int) -> AsyncGenerator[None, None]:
        """Yield None n times."""
        for _ in range(n):
            yield None

    async def count_and_fail(self, _ctxt: Any, n: int, kind: str = "value") -> AsyncGenerator[int, None]:
        """Yield 0 to n - 1, then raise."""
        for item in self._plain.count_and_fail(_ctxt, n, kind):
            yield item

    async def count_and_yield_object(self, _ctxt: Any, n: int) -> AsyncGenerator[object, None]:
        """Yield 0 to n - 1, then a value that no codec can encode."""
        for item in self._plain.count_and_yield_object(_ctxt, n):
            yield item

    async def endless(self, _ctxt: Any, key: str) -> AsyncGenerator[int, None]:
        """Yield for ever, and await nothing. The journal has the first 300 items, and when it was closed."""
        with closing(self._plain.endless(_ctxt, key)) as items:
            for item in items:
                yield item

    async def gated(self, _ctxt: Any, key: str, n: int, gate: str) -> AsyncGenerator[int, None]:
        """Yield n times at once, then once more when the gate opens."""
        try:
            for item in range(n):
                yield item
            await self._await_gate(gate)
            yield n
        finally:
            self._journal.add("closed", key, self._server)
