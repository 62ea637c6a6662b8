"""AsyncMemoryBus: a `MemoryBus` for tests that run on an event loop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from msgbus.target import Target
from msgbus.testing.canned import Canned, client_target

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.aio import AsyncRPCClient, AsyncRPCServer, AsyncTransport


class AsyncMemoryBus:
    """The message system of a `MemoryBus`, which makes it, on the event loop that runs; to be used by ``async with``.

    ::

        async def test_greets(msgbus_bus):
            async with msgbus_bus.aio() as bus:
                await bus.serve("hello", Hello())
                assert await bus.client("hello").call({}, "greet", name="Ada") == "Hello, Ada"

    Attributes:
        transport: a transport to it, for tasks.
    """

    transport: AsyncTransport

    def __init__(self, conf: cfg.ConfigOpts, timeout: float) -> None:
        """It is at the URL of `conf`; its end waits `timeout` seconds for methods that run."""
        self._conf = conf
        self._timeout = timeout
        self._ending = AsyncExitStack()

    async def __aenter__(self) -> AsyncMemoryBus:
        from msgbus import aio

        self.transport = await self._ending.enter_async_context(aio.get_rpc_transport(self._conf))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._ending.aclose()

    async def serve(self, topic: str, *endpoints: object, server: str = "test", **arguments: Any) -> AsyncRPCServer:
        """Start a server; see `MemoryBus.serve`. `arguments` are those of `msgbus.aio.get_rpc_server`."""
        from msgbus import aio

        made = aio.get_rpc_server(self.transport, Target(topic=topic, server=server), endpoints, **arguments)
        await made.start()
        self._ending.push_async_callback(self._end, made)
        return made

    async def _end(self, server: AsyncRPCServer) -> None:
        await server.stop()
        await server.wait(self._timeout)

    async def answer(self, topic: str, answers: Mapping[str, Any], server: str = "test") -> AsyncRPCServer:
        """Start a server with prepared answers; see `MemoryBus.answer`."""
        return await self.serve(topic, Canned(answers), server=server)

    def client(self, target: str | Target, **arguments: Any) -> AsyncRPCClient:
        """Make a client; see `MemoryBus.client`. `arguments` are those of `msgbus.aio.get_rpc_client`."""
        from msgbus import aio

        return aio.get_rpc_client(self.transport, client_target(target), **arguments)
