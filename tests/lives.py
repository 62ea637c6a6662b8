"""Programs that fork, end without clean-up, or drop their transports.

Each is run in a process of its own:

python -m tests.lives NAME URL

It ends with 0 if all went as it should. tests/test_lives.py and tests/functional/test_lives.py run them.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from msgbus import (
    CallCancelled,
    MessagingException,
    RPCServer,
    Target,
    Transport,
    get_rpc_client,
    get_rpc_server,
    get_rpc_transport,
    rpc,
)
from msgbus.client import RPCClient
from tests.support import EVENT_TIMEOUT, new_conf

LEAVING = {"return": 0, "raise": 1, "exit": 3, "text": 1}
"""The exit code of a forked child, by the way in which it leaves a method."""


class Endpoint:
    """The endpoint of the servers in this file."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def pid(self, ctxt: Any) -> int:
        """Which process this is."""
        return os.getpid()

    def hold(self, ctxt: Any) -> int:
        """Return when it may go on."""
        self.begun.set()
        assert self.go_on.wait(EVENT_TIMEOUT)
        return os.getpid()

    def note(self, ctxt: Any, number: int) -> None:
        """Note a number."""
        self.noted.append(number)

    def count(self, ctxt: Any, to: int) -> Iterator[int]:
        """Yield numbers."""
        yield from range(to)

    def fork(self, ctxt: Any, how: str) -> int:
        """Fork, leave the method in the child, and return how that ended."""
        child = os.fork()
        if child == 0:
            leave(how)
            return -1
        return code_of(child)

    def fork_between(self, ctxt: Any, how: str) -> Iterator[int]:
        """The same between two items."""
        yield 1
        child = os.fork()
        if child == 0:
            leave(how)
            yield -1
        yield code_of(child)


def leave(how: str) -> None:
    """Leave a method in a forked child (by returning, in the caller)."""
    if how == "raise":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the child ends
        raise ValueError("left by an exception")
    if how == "exit":
        sys.exit(3)
    if how == "text":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - likewise
        sys.exit("left with a text")


class Warnings(logging.Handler):
    """Gathers what is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        # A child may end while its parent's node is just being connected to: then the one says that the other hung up.
        expected = "another server has this name|is already served by node|or the other side hung up"
        if not re.search(expected, record.getMessage()):
            self.texts.append(record.getMessage())


logged = Warnings()


def until(holds: Callable[[], object], what: str) -> None:
    """Wait for a condition."""
    end = time.monotonic() + EVENT_TIMEOUT
    while not holds():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.02)


def code_of(child: int) -> int:
    """Wait for a child to end by itself; return its exit code."""
    end = time.monotonic() + 2 * EVENT_TIMEOUT
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGABRT)
            os.waitpid(child, 0)
            return -signal.SIGABRT
        time.sleep(0.02)


def in_child(func: Callable[[], None]) -> None:
    """Run a function in a forked child, which then ends like a program without clean-up."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            func()
            assert not logged.texts, logged.texts
        except SystemExit:  # a child of this one, which ends
            raise
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.exit(0)
    assert code_of(child) == 0, "it went wrong in the child"


def new(url: str, **overrides: Any) -> Transport:
    """A transport with a configuration of its own."""
    return get_rpc_transport(new_conf(rpc_response_timeout=EVENT_TIMEOUT, **overrides), url)


def serve(transport: Transport, endpoint: Endpoint, name: str = "one") -> RPCServer:
    """Start a server."""
    server = get_rpc_server(transport, Target(topic="lives", server=name), [endpoint])
    server.start()
    return server


def client_of(transport: Transport, **target: Any) -> RPCClient:
    """A client of the servers here."""
    return get_rpc_client(transport, Target(topic="lives", **target))


def end(server: RPCServer, *transports: Transport) -> None:
    """Stop a server, check that it waited for nothing and logged no warning, and close."""
    server.stop()
    assert server.wait(EVENT_TIMEOUT) == 0
    for transport in transports:
        transport.cleanup()
    assert not logged.texts, logged.texts


def answers_until_own(call: Callable[[], int]) -> set[int]:
    """Call until this process answers; return which processes did."""
    seen: set[int] = set()

    def is_own() -> bool:
        seen.add(call())
        return os.getpid() in seen

    until(is_own, "an answer of this process")
    return seen


def parent_still_serves(endpoint: Endpoint, client: RPCClient) -> None:
    """All three patterns reach the parent, and no other process."""
    for _ in range(5):
        assert client.call({}, "pid") == os.getpid()
        assert client.prepare(server="one").call({}, "pid") == os.getpid()
    noted = len(endpoint.noted)
    client.fanout_cast({}, "note", number=1)
    until(lambda: len(endpoint.noted) == noted + 1, "the fanout")


# Forks


def a_child_serves(url: str) -> None:
    """A server that was started before a fork starts anew in the child, while the parent's has a call in flight."""
    endpoint = Endpoint()
    transport = new(url)
    server = serve(transport, endpoint)
    client = client_of(transport)
    answers: list[int] = []
    caller = threading.Thread(target=lambda: answers.append(client.prepare(server="one").call({}, "hold")))
    caller.start()
    assert endpoint.begun.wait(EVENT_TIMEOUT)

    def child() -> None:
        server.stop()  # It is the parent's: there is nothing to stop here.
        assert server.wait(EVENT_TIMEOUT) == 0
        parent = os.getppid()
        server.start()
        assert answers_until_own(lambda: client.call({}, "pid")) <= {os.getpid(), parent}
        assert os.getpid() in {found["pid"] for found in client.ping()}
        server.stop()
        assert server.wait(EVENT_TIMEOUT) == 0
        server.start()  # What is left open is closed at the end of the child.

    in_child(child)
    endpoint.go_on.set()
    caller.join(EVENT_TIMEOUT)
    assert answers == [os.getpid()]
    until(lambda: len(client.ping()) == 1, "the end of the child's server")
    parent_still_serves(endpoint, client)
    end(server, transport)


def a_child_of_a_child_serves(url: str) -> None:
    """A grandchild's inherited transport works too, and disturbs neither of the others."""
    endpoint = Endpoint()
    transport = new(url)
    server = serve(transport, endpoint)
    client = client_of(transport)
    assert client.call({}, "pid") == os.getpid()

    def grandchild() -> None:
        server.start()
        answers_until_own(lambda: client.call({}, "pid"))

    in_child(lambda: in_child(grandchild))
    until(lambda: len(client.ping()) == 1, "the end of the grandchild's server")
    parent_still_serves(endpoint, client)
    end(server, transport)


def a_fork_before_first_use(url: str) -> None:
    """A transport that was made and not used works in parent and child."""
    endpoint = Endpoint()
    transport = new(url)
    server = get_rpc_server(transport, Target(topic="lives", server="one"), [endpoint])
    client = client_of(transport)

    def child() -> None:
        server.start()
        assert client.call({}, "pid") == os.getpid()

    in_child(child)
    server.start()
    until(lambda: len(client.ping()) == 1, "the end of the child's server")
    parent_still_serves(endpoint, client)
    end(server, transport)


def streams_stay_with_the_parent(url: str) -> None:
    """A stream goes on in the parent; in the child it says that the process forked."""
    endpoint = Endpoint()
    transport = new(url)
    server = serve(transport, endpoint)
    client = client_of(transport)
    some, all_there = client.multicall({}, "count", to=1000), client.multicall({}, "count", to=3)
    assert next(some) == next(all_there) == 0
    until(lambda: all_there._pending.ended, "the end of the short stream")

    def child() -> None:
        for stream in (some, all_there):
            with pytest.raises(CallCancelled, match="forked"):
                next(stream)
            stream.close()

    in_child(child)
    assert list(some) == list(range(1, 1000))
    assert list(all_there) == [1, 2]
    end(server, transport)


def methods_fork(url: str) -> None:
    """A method forks. However its child leaves it, that ends; and the request is answered once, by the parent."""
    transport = new(url)
    server = serve(transport, Endpoint())
    client = client_of(transport)
    for how, code in LEAVING.items():
        assert client.call({}, "fork", how=how) == code
        assert client.prepare(delivery="at_least_once").call({}, "fork", how=how) == code
        items = list(client.multicall({}, "fork_between", how=how))
        assert items == [1, code if how == "return" else items[1]]
        client.prepare(delivery="at_least_once").cast({}, "fork", how=how)
    assert client.call({}, "pid") == os.getpid()
    end(server, transport)


def children_of_multiprocessing_call(url: str) -> None:
    """A child of `multiprocessing` calls over a transport that it inherited, and ends without clean-up."""
    import multiprocessing  # Not above: it brings an end of its own to each program.

    endpoint = Endpoint()
    serving, calling = new(url, rpc_reply_grace=3 * EVENT_TIMEOUT), new(url)
    server = serve(serving, endpoint)
    client = client_of(calling)
    assert client.call({}, "pid") == os.getpid()
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        process = context.Process(target=client.call, args=({}, "pid"))
        process.start()
        process.join(EVENT_TIMEOUT)
        assert process.exitcode == 0
    parent_still_serves(endpoint, client)
    end(server, serving, calling)


def programs_inherit_no_descriptor(url: str) -> None:
    """A program that was forked and executed has none of our descriptors open."""
    transport = new(url)
    server = serve(transport, Endpoint())
    assert client_of(transport).call({}, "pid") == os.getpid()
    script = "import os; print(*[os.readlink(one.path) for one in os.scandir('/proc/self/fd')])"
    child = [sys.executable, "-I", "-c", script]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        os.execv(child[0], child)  # noqa: S606
    os.close(write)
    assert code_of(pid) == 0
    with os.fdopen(read) as lines:
        found = lines.read()
    for ours in ("socket:", "eventpoll", "eventfd"):
        assert ours not in found, found
    end(server, transport)


def a_classic_service_starts_in_a_child(url: str) -> None:
    """A `Service` of msgbus.rpc that runs in the parent is started anew in the child."""
    conf = new_conf(rpc_response_timeout=EVENT_TIMEOUT)
    conf.set_override("transport_url", url)
    rpc.init(conf)

    class Manager:
        def pid(self, _ctxt: Any) -> int:
            return os.getpid()

    service = rpc.Service("one", "lives", Manager())
    service.start()

    def pid() -> Any:
        return rpc.call({}, "lives.one", {"method": "pid", "args": {}})

    assert pid() == os.getpid()

    def child() -> None:
        service.start()
        answers_until_own(pid)

    in_child(child)
    until(lambda: all(pid() == os.getpid() for _ in range(3)), "the end of the child's service")
    service.stop()
    rpc.cleanup()
    assert not logged.texts, logged.texts


# Ends


def call(url: str) -> None:
    """Call, stream and cast; then the program ends without clean-up."""
    transport = new(url)
    client = client_of(transport)
    print(client.call({}, "pid"))
    assert next(client.multicall({}, "count", to=2)) == 0
    client.cast({}, "note", number=1)
    print(client.prepare(delivery="at_least_once").call({}, "pid"))


def call_and_fail(url: str) -> None:
    """The same; the program ends with an exception."""
    call(url)
    raise ValueError("the end")


def wait_for_nobody(url: str) -> None:
    """The program ends while one of its threads waits for a message system that is away."""
    transport = new(url)
    client = client_of(transport)

    def run() -> None:
        try:
            client.call({}, "pid")
        except MessagingException:
            pass

    threading.Thread(target=run, daemon=True).start()
    until(lambda: transport._inbox, "the call")


def ends_without_cleanup(url: str) -> None:
    """The server logs no warning when clients end without clean-up, and waits for nothing when it stops."""
    endpoint = Endpoint()
    transport = new(url, rpc_reply_grace=3 * EVENT_TIMEOUT)
    server = serve(transport, endpoint)
    for number, (name, code) in enumerate((("call", 0), ("call_and_fail", 1), ("call", 0), ("call", 0)), 1):
        done = subprocess.run(
            [sys.executable, "-m", "tests.lives", name, url],
            capture_output=True,
            timeout=2 * EVENT_TIMEOUT,
            check=False,
        )
        assert done.returncode == code, done.stderr.decode()
        assert done.stdout.decode().split() == [str(os.getpid())] * 2
        assert done.stderr.decode().count("Traceback") == code, done.stderr.decode()
        until(lambda number=number: len(endpoint.noted) == number, "the cast")  # type: ignore[misc]
    end(server, transport)


def dropped_transports_are_collected(url: str) -> None:
    """Transports that were used and dropped leave neither threads nor descriptors."""
    transport = new(url)
    server = serve(transport, Endpoint())

    def use_and_drop(number: int) -> None:
        used = new(url)
        client = client_of(used)
        assert client.call({}, "pid") == os.getpid()
        assert client.prepare(delivery="at_least_once").call({}, "pid") == os.getpid()
        assert list(client.multicall({}, "count", to=3)) == [0, 1, 2]
        client.prepare(server="one").cast({}, "note", number=1)
        if number % 3 == 0:
            stopped = serve(used, Endpoint(), f"stopped-{number}")
            stopped.stop()
            stopped.wait(EVENT_TIMEOUT)

    def threads() -> int:
        gc.collect()
        return sum(
            not thread.name.startswith("msgbus-lives") for thread in threading.enumerate()
        )  # The server's may grow.

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    assert client_of(transport).call({}, "pid") == os.getpid()
    had_threads, had_descriptors = threads(), descriptors()
    for number in range(12):
        use_and_drop(number)
    try:
        until(lambda: threads() <= had_threads, "the end of their threads")
        # A message system's own connections to clients that went may be closed a moment later.
        until(lambda: descriptors() <= had_descriptors, "the end of their descriptors")
    except AssertionError:
        print(had_threads, [thread.name for thread in threading.enumerate()], had_descriptors, descriptors())
        raise
    assert client_of(transport).call({}, "pid") == os.getpid()
    end(server, transport)


FORKS = [
    a_child_serves,
    a_child_of_a_child_serves,
    a_fork_before_first_use,
    streams_stay_with_the_parent,
    methods_fork,
    children_of_multiprocessing_call,
    programs_inherit_no_descriptor,
    a_classic_service_starts_in_a_child,
]


def run(program: Callable[[str], None], url: str) -> None:
    """Run a program in a separate process, and check that it succeeds."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.lives", program.__name__, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    if sys.argv[1] == "methods_fork":
        logging.getLogger("msgbus").setLevel(logging.CRITICAL)  # what the methods raise is meant
    globals()[sys.argv[1]](sys.argv[2])
