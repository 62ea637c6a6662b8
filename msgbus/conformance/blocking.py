"""Clients, transports and servers of `msgbus.aio` for the threads of the checks: each verb waits for its outcome.

The event loop runs on a thread of its own. What the checks call is the same as for `msgbus.RPCClient` and
`msgbus.RPCServer`, so that each check can be run with either.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from oslo_config import cfg

from msgbus import Answer, Target
from msgbus.aio import (
    AsyncGathering,
    AsyncNotificationListener,
    AsyncNotifier,
    AsyncRPCClient,
    AsyncRPCServer,
    AsyncStream,
    AsyncTransport,
    get_batch_notification_listener,
    get_notification_listener,
    get_rpc_client,
    get_rpc_server,
    get_rpc_transport,
)
from msgbus.drivers.base import Driver

T = TypeVar("T")

END_TIMEOUT = 5.0
"""Seconds in which what still runs on the event loop has to end, once all that the check has opened is closed."""
_ENDED = object()


class EventLoop:
    """An event loop on a thread of its own.

    What goes wrong on it where nobody waits fails the check that has made it, and so does a task that does not end.
    """

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._on_problem)
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="check-asyncio", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_closed())

    async def _until_closed(self) -> None:
        await self._ending.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, others = await asyncio.wait(others, timeout=END_TIMEOUT)
        self._problems += [f"a task is left: {task!r}" for task in others]

    def _on_problem(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._problems.append(f"{context.get('message')}: {context.get('exception') or context}")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something on the event loop, and return what it does or raise what it raises. Any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End the thread. Idempotent.

        Raises:
            AssertionError: tasks were left, or something has failed that nobody has waited for.
        """
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join()
        problems, self._problems = self._problems, []
        if problems:
            raise AssertionError(f"on the event loop: {'; '.join(problems)}")


class BlockingTransport:
    """An `AsyncTransport`.

    Attributes:
        loop: where it runs.
        transport: itself.
    """

    def __init__(
        self,
        loop: EventLoop,
        conf: cfg.ConfigOpts,
        url: str,
        allowed: Sequence[str] | None = None,
        *,
        ends: bool = False,
    ) -> None:
        """Make one for an event loop, which is closed with it if it `ends` that."""

        async def make() -> AsyncTransport:
            return get_rpc_transport(conf, url, allowed)

        self.loop = loop
        self._ends = ends
        self._closed = False
        self.transport = loop.run(make())

    @property
    def driver(self) -> Driver:
        """Its driver, which any thread may use."""
        return self.transport.driver

    @property
    def router(self) -> Any:
        """The calls that wait for replies."""
        return self.transport.router

    def inbox(self, deadline: float) -> str:
        """As `Transport.inbox`."""
        return self.loop.run(self.transport.inbox(deadline))

    def cleanup(self) -> None:
        """As `Transport.cleanup`."""
        if not self._closed:
            self._closed = True
            self.loop.run(self.transport.aclose())
            if self._ends:
                self.loop.close()


class BlockingClient:
    """An `AsyncRPCClient`, with what `RPCClient` has."""

    def __init__(self, loop: EventLoop, client: AsyncRPCClient) -> None:
        self._loop = loop
        self._client = client

    def call(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> Any:
        """As `RPCClient.call`."""
        return self._loop.run(self._client.call(ctxt, method, **kwargs))

    def cast(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> None:
        """As `RPCClient.cast`."""
        self._loop.run(self._client.cast(ctxt, method, **kwargs))

    def fanout_cast(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> None:
        """As `RPCClient.fanout_cast`."""
        self._loop.run(self._client.fanout_cast(ctxt, method, **kwargs))

    def cast_many(self, ctxt: Any, requests: Iterable[tuple[str, dict[str, Any]]], /) -> int:
        """As `RPCClient.cast_many`."""
        return self._loop.run(self._client.cast_many(ctxt, requests))

    def multicall(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> BlockingStream:
        """As `RPCClient.multicall`: the request is sent at once."""
        stream = self._client.multicall(ctxt, method, **kwargs)
        return BlockingStream(self._loop, self._loop.run(stream.__aenter__()))

    def gather(self, ctxt: Any, method: str = "", /, **kwargs: Any) -> BlockingGathering:
        """As `RPCClient.gather`: the request is sent at once."""
        answers = self._client.gather(ctxt, method, **kwargs)
        return BlockingGathering(self._loop, self._loop.run(answers.__aenter__()))

    def ping(self, timeout: float = 1.0) -> Any:
        """As `RPCClient.ping`."""
        return self._loop.run(self._client.ping(timeout))

    def prepare(self, **changes: Any) -> BlockingClient:
        """As `RPCClient.prepare`."""
        return BlockingClient(self._loop, self._client.prepare(**changes))

    def can_send_version(self, *version: str | None) -> bool:
        """As `RPCClient.can_send_version`."""
        return self._client.can_send_version(*version)


class BlockingStream(Iterator[Any]):
    """An `AsyncStream`. Where this is dropped, that is."""

    def __init__(self, loop: EventLoop, stream: AsyncStream) -> None:
        self._loop = loop
        self._stream = stream

    def __next__(self) -> Any:
        item = self._loop.run(_next(self._stream))
        if item is _ENDED:
            raise StopIteration
        return item

    def close(self) -> None:
        """As `Stream.close`."""
        self._loop.run(self._stream.aclose())

    def __enter__(self) -> BlockingStream:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class BlockingGathering(Iterator[Answer]):
    """An `AsyncGathering`."""

    def __init__(self, loop: EventLoop, answers: AsyncGathering) -> None:
        self._loop = loop
        self._answers = answers

    @property
    def answered(self) -> int:
        """As `Gathering.answered`."""
        return self._answers.answered

    @property
    def expected(self) -> int | None:
        """As `Gathering.expected`."""
        return self._answers.expected

    def __next__(self) -> Answer:
        answer = self._loop.run(_next(self._answers))
        if answer is _ENDED:
            raise StopIteration
        assert isinstance(answer, Answer)
        return answer

    def close(self) -> None:
        """As `Gathering.close`."""
        self._loop.run(self._answers.aclose())


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator, _ENDED)


class BlockingServer:
    """An `AsyncRPCServer`, with what `RPCServer` has; or a listener for notifications.

    Attributes:
        transport: the server's.
    """

    def __init__(
        self, transport: BlockingTransport, make: Callable[[AsyncTransport], AsyncRPCServer | AsyncNotificationListener]
    ) -> None:
        async def made() -> AsyncRPCServer | AsyncNotificationListener:
            return make(transport.transport)

        self.transport = transport
        self._server = transport.loop.run(made())

    def start(self, timeout: float) -> None:
        """As `RPCServer.start`."""
        self.transport.loop.run(self._server.start(timeout))

    def stop(self) -> None:
        """As `RPCServer.stop`."""
        self.transport.loop.run(self._server.stop())

    def wait(self, timeout: float) -> int:
        """As `RPCServer.wait`."""
        return self.transport.loop.run(self._server.wait(timeout))


def blocking_client(transport: BlockingTransport, target: Target, **options: Any) -> BlockingClient:
    """A client over a transport, with the options of `AsyncRPCClient`."""
    return BlockingClient(transport.loop, get_rpc_client(transport.transport, target, **options))


def blocking_server(
    transport: BlockingTransport, target: Target, endpoints: Sequence[object], **more: Any
) -> BlockingServer:
    """A server over a transport, with the options of `msgbus.aio.get_rpc_server`."""
    return BlockingServer(transport, lambda made: get_rpc_server(made, target, endpoints, **more))


def blocking_listener(
    transport: BlockingTransport, targets: Sequence[Target], endpoints: Sequence[object], **more: Any
) -> BlockingServer:
    """A listener for notifications over a transport; with a size or a time of batches, one for these."""
    batches = "batch_size" in more or "batch_timeout" in more
    make = get_batch_notification_listener if batches else get_notification_listener
    return BlockingServer(transport, lambda made: make(made, targets, endpoints, **more))


class BlockingNotifier:
    """An `AsyncNotifier`, with what `Notifier` has."""

    def __init__(self, transport: BlockingTransport, **options: Any) -> None:
        async def make() -> AsyncNotifier:
            return AsyncNotifier(transport.transport, **options)

        self._loop = transport.loop
        self._notifier = self._loop.run(make())

    def __getattr__(self, level: str) -> Callable[[Any, str, Any], None]:
        method = getattr(self._notifier, level)
        return lambda ctxt, event_type, payload: self._loop.run(method(ctxt, event_type, payload))
