"""The life of a transport of msgbus.aio: event loops, threads, forks, and the end of the program."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
import uvloop

import msgbus
from msgbus import Target, aio
from msgbus.drivers.toolkit.loop import CLOSE_TIMEOUT, Loop
from tests.aio.support import LONG, SERVER, TOPIC, Service, conf_with, guarded, on_loop, request_var, serving, until
from tests.support import EVENT_TIMEOUT, ROOT, exit_code_of, new_conf

Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def call_oneself(url: str, name: str = "one") -> None:
    """Serve, and call that server, on the event loop that runs."""
    conf = await conf_with()
    async with aio.get_rpc_transport(conf, url) as transport:
        target = Target(topic=f"t-{name}", server=name)
        async with aio.get_rpc_server(transport, target, [Service()]):
            client = aio.get_rpc_client(transport, target(server=None), timeout=EVENT_TIMEOUT)
            assert await asyncio.gather(*(client.call({}, "echo", value=n) for n in range(20))) == list(range(20))
            assert [item async for item in client.multicall({}, "count", to=100)] == list(range(100))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_one_transport_after_another(url: str, run: Run) -> None:
    """`asyncio.run` may be called again and again, each time with a transport of its own."""
    for _ in range(2):
        run(call_oneself(url))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_an_event_loop_in_each_of_several_threads(url: str, run: Run) -> None:
    """Each has a transport of its own."""
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            run(call_oneself(url, name))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(f"s{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(EVENT_TIMEOUT)
    assert errors == []


@on_loop
async def test_several_transports_on_one_event_loop(url: str) -> None:
    """They do not disturb each other."""
    await asyncio.gather(*(call_oneself(url, f"s{number}") for number in range(3)))


@on_loop
async def test_no_thread_is_started_for_a_transport(zmq_url: str) -> None:
    """Neither for its I/O nor for a server whose methods are async."""
    threads = {thread.name for thread in threading.enumerate()}
    async with aio.get_rpc_transport(await conf_with(), zmq_url) as transport:
        await aio.get_rpc_server(transport, SERVER, [Service()]).start()
        assert await aio.get_rpc_client(transport, TOPIC).call({}, "echo", value=1) == 1
        new = {thread.name for thread in threading.enumerate()} - threads
        assert not [name for name in new if not name.startswith("asyncio_")], new


@on_loop
async def test_a_transport_that_is_closed_while_calls_run_ends_them(url: str) -> None:
    """Each gets `CallCancelled`, and later ones are refused; twice is as once."""
    service = Service()
    conf = await conf_with()
    async with aio.get_rpc_transport(conf, url) as served, aio.get_rpc_server(served, SERVER, [service]) as server:
        transport = aio.get_rpc_transport(conf, url)
        client = aio.get_rpc_client(transport, TOPIC, timeout=LONG)
        calls = [asyncio.create_task(client.call({}, "nap", value=1)) for _ in range(3)]
        stream = client.multicall({}, "drip")
        assert await anext(stream) == 1
        item = asyncio.create_task(anext(stream))
        await until(lambda: service.log.count("began") == 3)
        await asyncio.gather(transport.aclose(), transport.aclose())
        for task in (*calls, item):
            with pytest.raises(msgbus.CallCancelled, match="closed"):
                await task
        for later in (client.call({}, "echo", value=1), client.cast({}, "echo", value=1), client.ping(0.1)):
            with pytest.raises(msgbus.CallCancelled):
                await later
        await transport.aclose()
        service.may_go = True
        await server.wait(EVENT_TIMEOUT / 10)


def close_slowly(transport: aio.AsyncTransport, seconds: float) -> threading.Event:
    """Have the transport's driver take so long to close. Returns what is set when that begins."""
    closing = threading.Event()
    close = transport.driver.close

    def slowly() -> None:
        closing.set()
        time.sleep(seconds)
        close()

    transport.driver.close = slowly  # type: ignore[method-assign]
    return closing


def no_thread_is_left(before: set[threading.Thread]) -> None:
    """A thread that has done all its work may end a moment later than what waited for that work."""
    for thread in set(threading.enumerate()) - before:
        thread.join(EVENT_TIMEOUT)
        assert not thread.is_alive(), thread.name


def test_a_program_that_is_cancelled_while_it_closes_its_transport_leaves_nothing(url: str) -> None:
    """The end of `asyncio.run` cancels all tasks, and waits until the transport is closed."""
    before, kept = set(threading.enumerate()), list[aio.AsyncTransport]()

    async def main() -> None:
        transport = aio.get_rpc_transport(await conf_with(), url)
        kept.append(transport)
        await transport.inbox(Loop.now() + EVENT_TIMEOUT)
        closing = close_slowly(transport, 0.5)
        task = asyncio.create_task(transport.aclose())
        await until(closing.is_set)
        task.cancel()
        await task

    with guarded(), pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert kept[0].loop.closed
    no_thread_is_left(before)


@on_loop
async def test_who_closes_a_transport_that_is_being_closed_waits_for_that(url: str) -> None:
    """It gets all the time that the driver needs: longer than a loop waits for a driver that does not end."""
    transport = aio.get_rpc_transport(await conf_with(), url)
    await transport.inbox(Loop.now() + EVENT_TIMEOUT)
    closing, may_close = threading.Event(), threading.Event()
    ended: list[bool] = []
    close = transport.driver.close

    def close_slowly() -> None:
        closing.set()
        may_close.wait(CLOSE_TIMEOUT + 1.0)
        ended.append(transport.loop.closed)
        close()

    transport.driver.close = close_slowly  # type: ignore[method-assign]
    first = asyncio.create_task(transport.aclose())
    await until(closing.is_set)
    await transport.aclose()
    await first
    await transport.aclose()
    assert ended == [False]
    assert transport.loop.closed


def test_an_event_loop_that_ends_while_a_transport_is_being_closed_waits_for_that(url: str) -> None:
    """Also one that the program runs by hand: it closes the asynchronous generators at the end."""
    before, kept = set(threading.enumerate()), list[aio.AsyncTransport]()

    async def main() -> None:
        transport = aio.get_rpc_transport(await conf_with(), url)
        kept.append(transport)
        await transport.inbox(Loop.now() + EVENT_TIMEOUT)
        close_slowly(transport, 0.3)
        async with asyncio.timeout(0.05):
            await transport.aclose()

    loop = asyncio.new_event_loop()
    with pytest.raises(TimeoutError):
        loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert kept[0].loop.closed
    no_thread_is_left(before)


def test_an_event_loop_may_go_on_on_another_thread(url: str) -> None:
    """As in a program that prepares it, and then runs it on a thread: the first thread is one like others from then."""
    loop = asyncio.new_event_loop()
    loop.set_debug(True)  # To use it from a wrong thread is an error then.

    async def prepare() -> aio.AsyncTransport:
        transport = aio.get_rpc_transport(await conf_with(), url)
        await transport.inbox(Loop.now() + EVENT_TIMEOUT)
        return transport

    async def use(transport: aio.AsyncTransport) -> None:
        await aio.get_rpc_client(transport, TOPIC).ping(0.5)

    transport = loop.run_until_complete(prepare())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(use(transport), loop).result(EVENT_TIMEOUT)
    called = threading.Event()
    transport.loop.call(called.set)
    assert called.wait(EVENT_TIMEOUT)
    assert transport.loop._successor is None
    asyncio.run_coroutine_threadsafe(transport.aclose(), loop).result(EVENT_TIMEOUT)
    asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(EVENT_TIMEOUT)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_server_whose_event_loop_goes_on_on_another_thread_answers_the_first_one(url: str) -> None:
    """As where a program starts its server, runs the event loop on a thread, and calls the server itself."""
    loop = asyncio.new_event_loop()

    async def prepare() -> aio.AsyncRPCServer:
        transport = aio.get_rpc_transport(await conf_with(), url)
        server = aio.get_rpc_server(transport, SERVER, [Service()])
        await server.start()
        return server

    async def end() -> None:
        await server.wait(1.0)
        await server.transport.aclose()
        await loop.shutdown_default_executor()

    server = loop.run_until_complete(prepare())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    transport = msgbus.get_rpc_transport(new_conf(), url)
    client = msgbus.get_rpc_client(transport, TOPIC, timeout=EVENT_TIMEOUT)
    try:
        assert [client.call({}, method, value=1) for method in ("echo", "plain_echo")] == [1, 1]
        assert list(client.multicall({}, "count", to=1000)) == list(range(1000))
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(EVENT_TIMEOUT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        transport.cleanup()


def test_calls_that_an_event_loop_has_left_behind_do_no_harm(fake_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The program has only closed its event loop: its transport can be closed, and just says what was wrong."""
    loop = asyncio.new_event_loop()
    transports: list[aio.AsyncTransport] = []
    arrived: list[Any] = []

    async def main() -> asyncio.Task[Any]:
        conf = await conf_with()
        transports.extend(aio.get_rpc_transport(conf, fake_url) for _ in range(2))
        transports[0].driver.subscribe([transports[0].address(TOPIC)], arrived.append, prefetch=100)
        task = asyncio.create_task(aio.get_rpc_client(transports[1], TOPIC, timeout=LONG).call({}, "echo", value=1))
        await until(lambda: arrived)
        return task

    task = loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    for transport in transports:
        transport.router.wake_all()
        transport.driver.close()
        transport.loop.call(transport.router.wake_all)
        transport.loop.close()
        transport._begin_close()
    assert not task.done()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert [text for text in caplog.messages if "the event loop was closed before the transport" not in text] == []


def test_a_transport_is_refused_on_another_event_loop_or_thread(fake_url: str) -> None:
    """Each verb, and what a server does, says that each event loop needs a transport of its own; and works here."""

    async def main() -> None:
        async with serving(fake_url) as bus:
            client, transport = bus.client, bus.client.transport

            async def elsewhere() -> None:
                server = aio.get_rpc_server(transport, SERVER(server="two"), [Service()])
                for verb in (
                    client.call({}, "echo", value=1),
                    client.cast({}, "echo", value=1),
                    client.fanout_cast({}, "echo", value=1),
                    client.cast_many({}, [("echo", {"value": 1})]),
                    client.ping(),
                    client.multicall({}, "count", to=3).__anext__(),
                    server.start(),
                    bus.server.stop(),
                    bus.server.wait(),
                    transport.aclose(),
                ):
                    with pytest.raises((msgbus.ConfigurationError, msgbus.CastsFailed), match="another event loop"):
                        await verb

            await asyncio.to_thread(asyncio.run, elsewhere())
            assert await client.call({}, "echo", value=1) == 1

    asyncio.run(main())


def test_a_transport_needs_an_event_loop_that_runs(fake_url: str) -> None:
    """Outside of one, none is made."""
    with pytest.raises(RuntimeError, match="event loop"):
        aio.get_rpc_transport(new_conf(), fake_url)


@on_loop
async def test_closing_does_not_wait_for_the_programs_own_threads(zmq_url: str) -> None:
    """Also where the program has filled all threads of `asyncio.to_thread`."""
    let_go = threading.Event()
    from concurrent.futures import ThreadPoolExecutor

    conf = await conf_with()
    pool = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(pool)
    async with aio.get_rpc_transport(conf, zmq_url) as transport:
        service = Service()
        server = aio.get_rpc_server(transport, SERVER, [service])
        await server.start()
        client = aio.get_rpc_client(transport, TOPIC, timeout=EVENT_TIMEOUT)
        assert await client.call({}, "echo", value=1) == 1
        held = asyncio.create_task(asyncio.to_thread(let_go.wait, EVENT_TIMEOUT))
        await asyncio.sleep(0)
        async with asyncio.timeout(EVENT_TIMEOUT / 2):
            await server.wait(EVENT_TIMEOUT)
            await transport.aclose()
        assert not held.done()
        let_go.set()
        await held


@on_loop
async def test_a_transport_is_closed_where_no_thread_can_be_started(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes to its server any more."""
    conf = await conf_with()
    async with aio.get_rpc_transport(conf, url) as other:
        client = aio.get_rpc_client(other, TOPIC, timeout=EVENT_TIMEOUT)
        transport = aio.get_rpc_transport(conf, url)
        await aio.get_rpc_server(transport, SERVER, [Service()]).start()
        assert await client.call({}, "echo", value=1) == 1

        def start(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            await transport.aclose()
        async with aio.get_rpc_server(other, SERVER(server="two"), [Service()]):
            for n in range(4):
                assert await client.call({}, "echo", value=n) == n


@on_loop
async def test_a_transport_keeps_nothing_of_the_task_that_used_it_first(fake_url: str) -> None:
    """What a request's context holds is freed when the request is over."""

    class Big:
        pass

    variable: ContextVar[Any] = ContextVar("variable", default=None)
    async with serving(fake_url) as bus:

        async def use() -> weakref.ref[Big]:
            big = Big()
            variable.set(big)
            await bus.client.call({}, "echo", value=1)
            return weakref.ref(big)

        found = await asyncio.create_task(use())
        await asyncio.sleep(0.3)
        gc.collect()
        assert found() is None
        assert request_var.get() == "none"


def test_a_forked_child_may_not_use_its_parents_transport(fake_url: str) -> None:
    """It makes one of its own, on an event loop of its own; the parent goes on."""

    async def main() -> None:
        async with serving(fake_url) as bus:
            assert await bus.client.call({}, "echo", value=1) == 1

            async def in_child() -> None:
                with pytest.raises(msgbus.ConfigurationError, match="another event loop"):
                    await bus.client.call({}, "echo", value=1)
                conf = new_conf()
                async with aio.get_rpc_transport(conf, "fake://in-the-child/") as transport:  # noqa: SIM117 - one belongs to the other
                    async with aio.get_rpc_server(transport, SERVER, [Service()]):
                        assert await aio.get_rpc_client(transport, TOPIC).call({}, "echo", value=2) == 2

            assert exit_code_of(lambda: asyncio.run(in_child())) == 0
            assert await bus.client.call({}, "echo", value=3) == 3

    asyncio.run(main())


PROGRAM = """
import asyncio, gc, logging, sys, threading
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
from tests.aio.support import *

URL = sys.argv[1]

async def serve(transport):
    server = aio.get_rpc_server(transport, SERVER, [Service()])
    await server.start()
    assert await aio.get_rpc_client(transport, TOPIC, timeout=20).call({}, "echo", value=1) == 1
    return server
"""


def run_program(url: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own, with warnings as errors."""
    command = [
        sys.executable,
        "-X",
        "dev",
        "-W",
        "error",
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        PROGRAM + code,
        url,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=4 * EVENT_TIMEOUT, check=False)


@pytest.mark.parametrize("kept", ["kept", "dropped"])
def test_a_program_that_closes_nothing_ends(url: str, kept: str) -> None:
    """An event loop that ends before its transport is closed costs a warning at most; the program ends as it should."""
    code = f"""
kept = []
async def main():
    transport = aio.get_rpc_transport(new_conf(), URL)
    kept.append((transport, await serve(transport)))

asyncio.run(main())
if {kept == "dropped"}:
    kept.clear()
    gc.collect()
print("done")
"""
    ended = run_program(url, code)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "done\n"
    assert "ResourceWarning" not in ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr


def test_ctrl_c_ends_a_program_in_order(url: str) -> None:
    """`asyncio.run` cancels the program's task: what it was waiting for is cancelled, and all is closed."""
    code = """
import os, signal

async def main():
    async with aio.get_rpc_transport(new_conf(), URL) as transport:
        server = await serve(transport)
        async with server:
            client = aio.get_rpc_client(transport, TOPIC, timeout=3600)
            asyncio.get_running_loop().call_later(0.3, os.kill, os.getpid(), signal.SIGINT)
            try:
                await client.call({}, "sleep")
            except asyncio.CancelledError:
                print("cancelled", flush=True)
                raise

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""
    ended = run_program(url, code)
    assert ended.stdout == "cancelled\ninterrupted\n", ended.stderr
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr, ended.stderr


def test_the_first_use_within_an_event_loop_blocks_nothing() -> None:
    """Once msgbus.aio is imported, all that it does may be done for the first time where an event loop runs."""
    program = """
import asyncio
from blockbuster import blockbuster_ctx
from oslo_config import cfg
from msgbus import Target, aio
from msgbus.drivers.toolkit.loop import Loop
conf = cfg.ConfigOpts()
conf([], project="none", default_config_files=[], default_config_dirs=[])

class Endpoint:
    async def echo(self, ctxt, value):
        return value

async def main():
    async with aio.get_rpc_transport(conf, "fake://x/") as transport:
        async with aio.get_rpc_server(transport, Target(topic="t", server="one"), [Endpoint()]):
            client = aio.get_rpc_client(transport, Target(topic="t"), timeout=20)
            print(await client.call({}, "echo", value=1))
            print(len(await client.ping()))
            try:
                await client.call({}, "ecko")
            except Exception as exc:
                print(type(exc).__name__)

with blockbuster_ctx():
    asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=4 * EVENT_TIMEOUT,
        check=False,
    )
    assert ended.stdout == "1\n1\nNoSuchMethod\n", ended.stderr


def test_importing_msgbus_does_not_import_asyncio() -> None:
    """Programs that do not use it do not pay for it."""
    code = "import sys, msgbus; print('asyncio' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_the_guard_of_these_tests_works() -> None:
    """What blocks an event loop is an error in them."""

    async def block() -> None:
        os.listdir(".")

    with guarded(), pytest.raises(Exception, match="Blocking"):
        asyncio.run(block())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
