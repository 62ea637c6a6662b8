"""Helpers of the tests for msgbus.aio: running on an event loop under a guard, services, and clients of both kinds."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ParamSpec

from blockbuster import blockbuster_ctx
from oslo_config import cfg

import msgbus
from msgbus import Target, aio
from tests.support import EVENT_TIMEOUT, new_conf, new_url

P = ParamSpec("P")

MAY_BLOCK = (
    "drivers/toolkit/descriptors.py",
    "drivers/zmq/driver.py",
    "drivers/zmq/endpoints.py",
    "drivers/zmq/node.py",
    "drivers/zmq/security.py",
    "drivers/zmq/matchmakers/local.py",
)
"""Files of msgbus that list descriptors, or use the run directory of zmq: both are in the memory of this machine."""


class EveryName:
    """Has the name of each function."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())


TOPIC = Target(topic="t")
SERVER = Target(topic="t", server="one")
LONG = 3600.0
"""Seconds that nothing waits for."""

request_var: contextvars.ContextVar[str] = contextvars.ContextVar("request_var", default="none")
"""What the program sets before it starts a server."""


def on_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make an asynchronous test one that pytest runs: on an event loop of its own, where nothing may block."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with guarded():
            asyncio.run(test(*args, **kwargs))

    return run


@contextmanager
def guarded() -> Iterator[None]:
    """Meanwhile it is an error to block a thread in which an event loop runs."""
    with blockbuster_ctx() as guard:
        for function in guard.functions.values():
            function.can_block_functions.extend((file, EveryName()) for file in MAY_BLOCK)
        acquire = guard.functions["threading.Lock.acquire"].deactivate()
        may_block = acquire.can_block_predicate
        acquire.can_block_predicate = lambda lock, *args, **kwargs: (
            lock is lock_of_coverage() or may_block(lock, *args, **kwargs)
        )
        acquire.activate()
        yield


def lock_of_coverage() -> object:
    """What coverage, while it measures, acquires at each call of a function that it measures."""
    coverage = sys.modules.get("coverage")
    measuring = None if coverage is None else coverage.Coverage.current()
    return None if measuring is None or measuring._collector is None else measuring._collector.data_lock


@contextmanager
def new_zmq_url() -> Iterator[str]:
    """The URL of a message system over local sockets that no other test uses."""
    folder = tempfile.mkdtemp(prefix="msgbus-", dir="/tmp")  # The names of sockets have to be short.
    try:
        yield f"zmq://{folder}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def url_of(kind: str) -> Iterator[str]:
    """The URL of a message system of that kind, which no other test uses."""
    if kind == "zmq":
        with new_zmq_url() as url:
            yield url
    else:
        yield new_url()


async def conf_with(**overrides: Any) -> cfg.ConfigOpts:
    """A configuration as `new_conf` makes it. That reads files, as a program does before it runs an event loop."""
    return await asyncio.to_thread(functools.partial(new_conf, **overrides))


async def until(condition: Callable[[], object], seconds: float = EVENT_TIMEOUT) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        await asyncio.sleep(0.005)


class Service:
    """Methods of every kind.

    Attributes:
        log: what has happened, in order.
    """

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.go_on = threading.Event()  # what plain methods wait for
        self.may_go = False  # what async ones do

    async def echo(self, _ctxt: Any, value: Any) -> Any:
        return value

    def plain_echo(self, _ctxt: Any, value: Any) -> Any:
        return value

    async def context(self, ctxt: Any) -> Any:
        return ctxt

    async def fail(self, _ctxt: Any) -> None:
        raise KeyError("no such thing")

    def plain_fail(self, _ctxt: Any) -> None:
        raise KeyError("no such thing")

    async def note(self, _ctxt: Any, value: Any) -> None:
        self.log.append(value)

    async def count(self, _ctxt: Any, to: int) -> AsyncIterator[int]:
        try:
            for number in range(to):
                yield number
        finally:
            self.log.append("closed")

    def plain_count(self, _ctxt: Any, to: int) -> Iterator[int]:
        try:
            yield from range(to)
        finally:
            self.log.append("closed")

    async def count_and_fail(self, _ctxt: Any, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number
        raise KeyError("no such item")

    async def nap(self, _ctxt: Any, value: Any = None) -> Any:
        """Wait until the test lets it go on."""
        self.log.append("began")
        try:
            while not self.may_go:  # noqa: ASYNC110 - a test may set it on another thread
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        self.log.append("ended")
        return value

    async def sleep(self, _ctxt: Any) -> None:
        """Wait until it is cancelled."""
        self.log.append("asleep")
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise

    def plain_nap(self, _ctxt: Any, value: Any = None) -> Any:
        """Wait until the test lets it go on, or the client cancels it."""
        self.log.append("began")
        request = msgbus.current_request()
        while not self.go_on.wait(0.005):
            if request.cancelled:
                self.log.append("cancelled")
                return None
        self.log.append("ended")
        return value

    async def drip(self, _ctxt: Any) -> AsyncIterator[int]:
        """One item, and then none for long."""
        try:
            yield 1
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        finally:
            self.log.append("closed")


class Bus:
    """One message system, with a server and a client on it, each for asyncio or for threads.

    Attributes:
        service: what the server runs.
        client: for asyncio.
        blocking: for threads.
        server: for asyncio, if there is one.
        blocking_server: for threads, if there is one.
    """

    client: aio.AsyncRPCClient
    blocking: msgbus.RPCClient
    server: aio.AsyncRPCServer
    blocking_server: msgbus.RPCServer

    def __init__(self, url: str, service: Any) -> None:
        self.url = url
        self.service = service


@asynccontextmanager
async def two_servers(
    conf: cfg.ConfigOpts, url: str, first: object, second: object, **options: Any
) -> AsyncIterator[tuple[aio.AsyncRPCServer, aio.AsyncRPCServer, aio.AsyncRPCClient]]:
    """Two servers of one topic, with a transport each, of which the first is started; and a client."""
    async with aio.get_rpc_transport(conf, url) as one, aio.get_rpc_transport(conf, url) as two:
        server = aio.get_rpc_server(one, SERVER, [first], **options)
        other = aio.get_rpc_server(two, SERVER(server="two"), [second], **options)
        await server.start()
        yield server, other, aio.get_rpc_client(two, TOPIC, timeout=EVENT_TIMEOUT)


@asynccontextmanager
async def serving(
    url: str,
    service: Any = None,
    *,
    server: str = "aio",
    executor: str | None = None,
    timeout: float = EVENT_TIMEOUT,  # noqa: ASYNC109 - that of the clients
    **overrides: Any,
) -> AsyncIterator[Bus]:
    """A server for asyncio, or for threads, and clients for both, each with a transport of its own."""
    bus = Bus(url, service or Service())
    conf = await conf_with(**overrides)
    blocking = [await asyncio.to_thread(msgbus.get_rpc_transport, conf, url) for _ in range(2)]
    async with aio.get_rpc_transport(conf, url) as transport, aio.get_rpc_transport(conf, url) as served:
        bus.client = aio.get_rpc_client(transport, TOPIC, timeout=timeout)
        bus.blocking = msgbus.get_rpc_client(blocking[0], TOPIC, timeout=timeout)
        try:
            if server == "aio":
                bus.server = aio.get_rpc_server(served, SERVER, [bus.service])
                await bus.server.start()
                yield bus
                bus.service.go_on.set()
                await bus.server.wait(1.0)
            else:
                make_server = functools.partial(msgbus.get_rpc_server, blocking[1], SERVER, [bus.service], executor)
                bus.blocking_server = await asyncio.to_thread(make_server)
                await asyncio.to_thread(bus.blocking_server.start)
                yield bus
                bus.service.go_on.set()
                await asyncio.to_thread(bus.blocking_server.wait, 1.0)
        finally:
            bus.service.go_on.set()
            for one in blocking:
                await asyncio.to_thread(one.cleanup)
