"""msgbus.aio on real message systems: all I/O is on the event loop, and nothing blocks that, whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Protocol

import pytest
import trustme
import uvloop
from blockbuster import BlockBuster, blockbuster_ctx

import msgbus
from msgbus import Target, aio
from msgbus.drivers.zmq.matchmakers.local import LocalMatchmaker
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.support import new_conf

LONG = 30.0
"""Seconds for what takes a moment, unless the machine is busy or there is a bug."""
TICK = 0.005
"""Seconds between two counts of a `Ticker`."""

LOCAL_FILES = {
    "zmq/matchmakers/local.py": {"prepare", *vars(LocalMatchmaker)},
    "zmq/security.py": {"open", "_is_private"},
    "toolkit/descriptors.py": {"count"},
}
"""Functions that read and write small files of this machine: ZeroMQ's run directory, keys, and /proc. They wait for no
other process, and for no disk where the run directory is in memory, as is usual."""

FAILED_TLS = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
"""py-amqp drops a socket with which TLS could not be begun, without closing it."""


class Node(Protocol):
    """A message system that tests may disturb."""

    port: int

    def alive(self) -> bool: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class System:
    """A message system behind a proxy.

    Attributes:
        url: by way of the proxy.
        node: the message system.
        proxy: cuts and stalls connections.
    """

    def __init__(self, node: Node, proxy: Proxy, url: str) -> None:
        self.node = node
        self.proxy = proxy
        self.url = url

    def restore(self) -> None:
        """Have it run, and all go through."""
        self.proxy.resume()
        self.proxy.accept()
        if not self.node.alive():
            self.node.start()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with those of a server for localhost, and of who vouches for it."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "server.key")
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def certified_rabbitmq(
    rabbitmq_310: RabbitMQ, certificates: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RabbitMQ]:
    """A RabbitMQ that also speaks TLS; it is skipped where the other one is."""
    node = RabbitMQ("3.10", tmp_path_factory.mktemp("rabbitmq-aio"), tls=certificates)
    try:
        node.start()
        yield node
    finally:
        node.close()


MAKERS: dict[str, tuple[str, str, str]] = {
    "rabbitmq": ("rabbitmq_310", "port", "rabbit://guest:guest@127.0.0.1:{}/"),
    "rabbitmq-tls": ("certified_rabbitmq", "tls_port", "rabbits://guest:guest@localhost:{}/?ssl_ca_file={}"),
    "qpid": ("qpid_durable", "port", "qpid://guest:guest@127.0.0.1:{}/"),
    "nats": ("nats", "port", "nats://127.0.0.1:{}/"),
    "redis": ("lasting_redis", "port", "redis://:s3cret@127.0.0.1:{}/0"),
}
"""By name: the fixture of the node, the name of its port, and the URL for a port."""
BEHIND_PROXY = sorted(MAKERS)


def make_system(request: pytest.FixtureRequest, name: str) -> Iterator[System]:
    """A system by its name. It is restored afterwards."""
    fixture, port, url = MAKERS[name]
    node = request.getfixturevalue(fixture)
    trusted = request.getfixturevalue("certificates") / "ca.pem"
    proxy = Proxy(getattr(node, port))
    made = System(node, proxy, url.format(proxy.port, trusted))
    made.restore()
    yield made
    made.restore()
    proxy.close()


@pytest.fixture(params=BEHIND_PROXY)
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    """Each message system that has a broker."""
    yield from make_system(request, request.param)


@pytest.fixture
def rabbit(request: pytest.FixtureRequest) -> Iterator[System]:
    """RabbitMQ alone."""
    yield from make_system(request, "rabbitmq")


@pytest.fixture(params=[*BEHIND_PROXY, "zmq"])
def url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    """The URL of each message system."""
    if request.param == "zmq":
        yield f"zmq://{tmp_path}/run"
    else:
        for made in make_system(request, request.param):
            yield made.url


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine on each event loop."""
    found: Callable[[Coroutine[Any, Any, None]], None] = request.param
    return found


class Ticker:
    """Counts as long as the event loop goes on: about every 5 ms."""

    def __init__(self) -> None:
        self.count = 0
        self._task = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self.count += 1

    def check(self, since: tuple[int, float]) -> None:
        """Check that it has gone on since `now`: a busy machine makes it slower, and what blocks stops it."""
        count, began = since
        assert self.count - count >= (time.monotonic() - began) / TICK / 20 - 1

    def now(self) -> tuple[int, float]:
        """For `check`."""
        return self.count, time.monotonic()

    async def __aenter__(self) -> Ticker:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


class Endpoint:
    """Notes what ran."""

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.go = asyncio.Event()

    async def echo(self, _ctxt: object, value: Any) -> Any:
        self.runs.append(value)
        return value

    def plain(self, _ctxt: object, value: Any) -> Any:
        return value

    async def count(self, _ctxt: object, to: int) -> AsyncIterator[int]:
        for n in range(to):
            yield n

    async def wait(self, _ctxt: object, value: Any) -> None:
        self.runs.append(value)
        await self.go.wait()


@contextlib.asynccontextmanager
async def transport_of(url: str, **options: Any) -> AsyncIterator[aio.AsyncTransport]:
    """A transport that is closed at the end."""
    async with aio.get_rpc_transport(new_conf(**options), url) as transport:
        yield transport


@contextlib.asynccontextmanager
async def serving(
    transport: aio.AsyncTransport, topic: str, server: str = "s1", endpoint: Endpoint | None = None
) -> AsyncIterator[Endpoint]:
    """A server while the block runs."""
    ours = endpoint or Endpoint()
    made = aio.get_rpc_server(transport, Target(topic=topic, server=server), [ours])
    await made.start(LONG)
    try:
        yield ours
    finally:
        assert await made.wait(LONG) == 0


def client_of(transport: aio.AsyncTransport, topic: str, timeout: float = LONG, **options: Any) -> aio.AsyncRPCClient:
    """A client of a topic."""
    return aio.get_rpc_client(transport, Target(topic=topic), timeout=timeout, **options)


async def until(condition: Callable[[], object]) -> None:
    """Return when it is true."""
    async with asyncio.timeout(LONG):
        while not condition():  # noqa: ASYNC110 - there is no event for all that tests wait for
            await asyncio.sleep(0.01)


async def use_all(transport: aio.AsyncTransport, topic: str, calls: int) -> None:
    """Use each verb, and many calls at a time."""
    async with serving(transport, topic) as endpoint:
        client = client_of(transport, topic)
        assert await client.call({}, "echo", value=[1]) == [1]
        assert await client.call({}, "plain", value="x" * 200_000) == "x" * 200_000
        await client.cast({}, "echo", value="cast")
        await client.fanout_cast({}, "echo", value="fanout")
        assert await client.cast_many({}, [("echo", {"value": n}) for n in range(100)]) == 100
        await until(lambda: len(endpoint.runs) == 103)
        assert [item async for item in client.multicall({}, "count", to=500)] == list(range(500))
        async with client.multicall({}, "count", to=1_000_000) as stream:
            async for item in stream:
                if item == 10:
                    break
        assert [answer["server"] for answer in await client.ping()] == ["s1"]
        values = await asyncio.gather(*(client.call({}, "echo", value=n) for n in range(calls)))
        assert values == list(range(calls))


def test_all_verbs_and_thousands_of_calls(url: str, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """On asyncio's own event loop and on uvloop; and again in the same process, on another event loop."""

    async def main(calls: int) -> None:
        async with transport_of(url) as transport:
            await use_all(transport, "verbs", calls)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main(3000))
    run(main(10))


@pytest.fixture
def guard(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], contextlib.AbstractContextManager[BlockBuster]]]:
    """Gives a block in which a call that would block the event loop is an error."""

    @contextlib.contextmanager
    def guarding() -> Iterator[BlockBuster]:
        with blockbuster_ctx() as found:
            for function in found.functions.values():
                for file, names in LOCAL_FILES.items():
                    function.can_block_in(file, names)
            yield found

    yield guarding
    assert "BlockingError" not in caplog.text


def test_nothing_blocks_the_event_loop(url: str, guard: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
    """Not connecting, log-in and TLS, no verb, no server, and not closing."""

    async def main() -> None:
        transport = aio.get_rpc_transport(new_conf(), url)  # Imports the driver.
        with guard():
            async with transport:
                await use_all(transport, "guarded", 200)

    asyncio.run(main())


@FAILED_TLS
def test_nothing_blocks_while_connections_break(
    system: System, guard: Callable[[], contextlib.AbstractContextManager[Any]]
) -> None:
    """Nor losing a connection, opening the next one, and giving up."""

    async def main() -> None:
        transport = aio.get_rpc_transport(new_conf(), system.url)
        with guard():
            async with transport:
                async with serving(transport, "guarded-cut"):
                    client = client_of(transport, "guarded-cut", delivery="at_least_once")
                    for n in range(2):
                        await asyncio.to_thread(system.proxy.cut)
                        assert await client.call({}, "echo", value=n) == n
                await asyncio.to_thread(system.proxy.refuse)
                await asyncio.to_thread(system.proxy.cut)
                with pytest.raises(msgbus.MessagingException):
                    await client_of(transport, "guarded-cut", timeout=0.5).call({}, "echo", value=1)

    asyncio.run(main())


@FAILED_TLS
def test_calls_streams_and_casts_go_on_after_connections_were_cut(system: System) -> None:
    """What may be repeated is; nothing is lost, and the streams that are cut end with an error, or go on in order."""

    async def stream(client: aio.AsyncRPCClient) -> None:
        got = []
        try:
            async for item in client.multicall({}, "count", to=20_000):
                got.append(item)
        except msgbus.MessagingException:
            pass
        assert got == list(range(len(got)))

    async def main() -> None:
        async with (
            transport_of(system.url) as theirs,
            transport_of(system.url) as transport,
            serving(theirs, "cut") as endpoint,
        ):
            client = client_of(transport, "cut", delivery="at_least_once")
            await client.call({}, "echo", value="first")
            streaming = asyncio.create_task(stream(client_of(transport, "cut", timeout=5)))

            async def work(worker: int) -> None:
                for n in range(30):
                    value = [worker, n]
                    assert await client.call({}, "echo", value=value) == value
                    await client.cast({}, "echo", value=["cast", *value])
                    await asyncio.sleep(0.02)

            workers = [asyncio.create_task(work(n)) for n in range(10)]
            for _ in range(3):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(system.proxy.cut)
            await asyncio.gather(*workers)
            await streaming
            await until(lambda: len({tuple(run) for run in endpoint.runs if run[0] == "cast"}) == 300)

    asyncio.run(main())


@FAILED_TLS
@pytest.mark.timeout(300)
def test_calls_wait_for_a_message_system_that_restarts(system: System) -> None:
    """They are answered when it is back, and the event loop goes on meanwhile."""

    async def main() -> None:
        async with transport_of(system.url) as transport, serving(transport, "restart"), Ticker() as ticker:
            client = client_of(transport, "restart", timeout=200, delivery="at_least_once")
            assert await client.call({}, "echo", value=0) == 0
            await asyncio.to_thread(system.node.stop)
            calls = [asyncio.create_task(client.call({}, "echo", value=n)) for n in range(100)]
            before = ticker.now()
            await asyncio.to_thread(system.node.start)
            assert await asyncio.gather(*calls) == list(range(100))
            ticker.check(before)

    asyncio.run(main())


def test_a_frozen_message_system_blocks_nothing(system: System) -> None:
    """Calls end at their deadline with an error that says why, tasks go on, and so do calls when it goes on."""

    async def main() -> None:
        async with transport_of(system.url) as transport, serving(transport, "frozen"), Ticker() as ticker:
            client = client_of(transport, "frozen")
            assert await client.call({}, "echo", value=0) == 0
            await asyncio.to_thread(system.node.pause)
            try:
                before = ticker.now()
                failed = await asyncio.gather(
                    *(client.prepare(timeout=1.5).call({}, "echo", value=n) for n in range(50)), return_exceptions=True
                )
                assert all(isinstance(error, msgbus.MessagingException) for error in failed), failed
                ticker.check(before)
            finally:
                await asyncio.to_thread(system.node.resume)
            assert await client.prepare(delivery="at_least_once").call({}, "echo", value=1) == 1

    asyncio.run(main())


@FAILED_TLS
def test_a_message_system_that_cannot_be_reached_at_the_start_blocks_nothing(system: System) -> None:
    """Neither one that says nothing, nor one that refuses; calls wait for it, and are answered when it is there."""

    async def main() -> None:
        await asyncio.to_thread(system.proxy.stall)
        async with transport_of(system.url) as transport, Ticker() as ticker:
            client = client_of(transport, "late", timeout=1.5)
            before = ticker.now()
            with pytest.raises(msgbus.TransportUnavailable):
                await client.call({}, "echo", value=1)
            ticker.check(before)
            await asyncio.to_thread(system.proxy.refuse)
            await asyncio.to_thread(system.proxy.cut)
            await asyncio.to_thread(system.proxy.resume)
            before = ticker.now()
            with pytest.raises(msgbus.TransportUnavailable):
                await client.call({}, "echo", value=1)
            ticker.check(before)
            await asyncio.to_thread(system.proxy.accept)
            async with serving(transport, "late"):
                assert await client.prepare(timeout=LONG).call({}, "echo", value=2) == 2

    asyncio.run(main())


def test_a_name_that_cannot_be_looked_up_blocks_nothing(rabbit: System) -> None:
    """The look-up is done elsewhere, and its error is in the text."""

    async def main() -> None:
        url = rabbit.url.replace("127.0.0.1", "no-such-host.invalid")
        async with transport_of(url) as transport, Ticker() as ticker:
            before = ticker.now()
            with pytest.raises(msgbus.TransportUnavailable, match=r"no-such-host\.invalid"):
                await client_of(transport, "nowhere", timeout=1.0).call({}, "echo", value=1)
            ticker.check(before)

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["silent from the start", "silent", "gone"])
def test_closing_does_not_need_the_message_system(system: System, fault: str) -> None:
    """Its connections are given up in time, those who still wait get an error, and the event loop goes on."""

    async def main() -> None:
        if fault == "silent from the start":
            await asyncio.to_thread(system.proxy.stall)
        async with Ticker() as ticker, transport_of(system.url) as transport:
            client = client_of(transport, "closing")
            if fault != "silent from the start":
                await client.fanout_cast({}, "echo", value=1)
                await asyncio.to_thread(system.proxy.stall if fault == "silent" else system.proxy.refuse)
                if fault == "gone":
                    await asyncio.to_thread(system.proxy.cut)
            waiting = asyncio.create_task(client.call({}, "echo", value=1))
            await asyncio.sleep(0.1)
            before = ticker.now()
            async with asyncio.timeout(LONG):
                await transport.aclose()
            ticker.check(before)
            with pytest.raises(msgbus.CallCancelled):
                await waiting
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    system.restore()


@pytest.mark.parametrize("name", ["rabbitmq", "rabbitmq-tls", "qpid"])
def test_a_connection_outlives_an_event_loop_that_is_idle_or_busy(request: pytest.FixtureRequest, name: str) -> None:
    """Idle: heartbeats go on. Busy for longer than the interval: what has come meanwhile is read first."""

    async def main(url: str) -> None:
        async with transport_of(url) as transport, serving(transport, "beating"):
            client = client_of(transport, "beating")
            await client.call({}, "echo", value=1)
            since = transport.driver.up_since
            assert since is not None
            await asyncio.sleep(9)
            time.sleep(4.5)  # noqa: ASYNC251 - as a program does that it should not
            await client.call({}, "echo", value=2)
            assert transport.driver.up_since == since

    for made in make_system(request, name):
        asyncio.run(main(f"{made.url}{'&' if '?' in made.url else '?'}heartbeat=4"))


def test_an_event_loop_that_is_busy_for_too_long_costs_the_connection_alone(rabbit: System) -> None:
    """RabbitMQ gives the connection up; it comes back, and so do the subscriptions."""

    async def main() -> None:
        async with transport_of(f"{rabbit.url}?heartbeat=1") as transport, serving(transport, "too-busy"):
            client = client_of(transport, "too-busy", delivery="at_least_once")
            await client.call({}, "echo", value=1)
            time.sleep(5)  # noqa: ASYNC251
            assert await client.call({}, "echo", value=2) == 2

    asyncio.run(main())


def test_what_a_busy_server_does_not_hold_goes_to_another(url: str) -> None:
    """The prefetch bounds what it holds without having begun it."""

    async def main() -> None:
        async with (
            transport_of(url, rpc_prefetch=3, executor_tasks=1) as theirs,
            transport_of(url) as others,
            transport_of(url) as transport,
            serving(theirs, "busy", "busy") as busy,
            serving(others, "busy", "idle") as idle,
        ):
            client = client_of(transport, "busy")
            of_busy = aio.get_rpc_client(transport, Target(topic="busy", server="busy"))
            await of_busy.cast({}, "wait", value="first")
            await until(lambda: busy.runs)
            try:
                assert await client.cast_many({}, [("echo", {"value": n}) for n in range(40)]) == 40
                await until(lambda: len(idle.runs) >= 40 - 3)
                assert busy.runs == ["first"]
                busy.go.set()
                await until(lambda: len(idle.runs) + len(busy.runs) == 41)
            finally:
                busy.go.set()

    asyncio.run(main())


def test_an_event_loop_that_ends_without_closing_leaves_no_connection(
    system: System, run: Callable[[Coroutine[Any, Any, None]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The transport is closed with it, and the log says what to do better; nothing that was sent is lost."""

    async def main() -> None:
        transport = aio.get_rpc_transport(new_conf(), system.url)
        server = aio.get_rpc_server(transport, Target(topic="early", server="s1"), [Endpoint()])
        await server.start(LONG)
        assert await client_of(transport, "early").call({}, "echo", value=1) == 1

    run(main())
    end = time.monotonic() + LONG
    while system.proxy.connections:
        assert time.monotonic() < end, "a connection is left"
        time.sleep(0.05)
    assert caplog.text.count("async with") == 1
