"""What the operating system refuses to a driver: threads, descriptors, and those that something else has closed."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

import pytest

from msgbus import Target, TransportUnavailable, get_rpc_client, get_rpc_transport
from msgbus.drivers.base import Address
from msgbus.drivers.toolkit.loop import Loop
from tests.support import EVENT_TIMEOUT, PROTON, new_conf

TOPIC = Address("topic", "msgbus", "foo")
REMOTE = ["rabbit://guest:guest@127.0.0.1:1/", pytest.param("qpid://guest:guest@127.0.0.1:1/", marks=PROTON)]
DRIVERS = pytest.mark.parametrize("url", ["fake://system/", *REMOTE, "zmq://"])

# What a program does whose descriptors run out, or are closed by somebody else.
PROGRAM = """
import os, resource, sys
from msgbus import MessagingException, Target, TransportUnavailable, get_rpc_client, get_rpc_transport
from msgbus.conformance.endpoint import make_conf

def tried(verb):
    try:
        getattr(client, verb)({}, "echo")
    except TransportUnavailable as exc:
        print(verb, exc)

client = get_rpc_client(get_rpc_transport(make_conf({}), sys.argv[1]), Target(topic="foo"), timeout=1)
if sys.argv[2] == "closed":
    tried("cast")
    os.closerange(3, 100)
else:
    limit = len(os.listdir("/proc/self/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    for _ in range(int(sys.argv[2])):
        os.close(held.pop())
for verb in ("cast", "call"):
    tried(verb)
client.transport.cleanup()
"""


def url_in(url: str, folder: pathlib.Path) -> str:
    """With a run directory where that is needed."""
    return f"{url}{folder}/run" if url == "zmq://" else url


def run(url: str, how: str) -> list[str]:
    """What the program says of its cast and its call."""
    command = [sys.executable, "-c", PROGRAM, url, how]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@DRIVERS
def test_the_constructor_of_a_transport_opens_nothing(url: str, tmp_path: pathlib.Path) -> None:
    """No descriptor, no thread; and what was never used is closed without any."""
    get_rpc_transport(new_conf(), url_in(url, tmp_path)).cleanup()  # for what is imported
    threads, before = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    made = [get_rpc_transport(new_conf(), url_in(url, tmp_path)) for _ in range(3)]
    assert len(set(os.listdir("/proc/self/fd"))) == len(before)
    assert set(threading.enumerate()) <= threads
    for transport in made:
        transport.cleanup()


@pytest.mark.parametrize("url", [*REMOTE, "zmq://"])
def test_a_thread_that_cannot_be_started_is_an_error_of_ours(
    url: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of the interpreter: every use of a transport fails at once and says so, and none is raw."""

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    transport = get_rpc_transport(new_conf(), url_in(url, tmp_path))
    driver, nothing = transport.driver, lambda _delivery: None
    monkeypatch.setattr(threading.Thread, "start", start)
    client = get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
    for verb in ("cast", "call", "multicall", "fanout_cast"):
        with pytest.raises(TransportUnavailable, match="cannot be started: can't create new thread"):
            getattr(client, verb)({}, "echo")
    futures: list[Any] = [
        driver.subscribe([TOPIC], nothing, prefetch=1).ready,
        driver.open_inbox(nothing).ready,
        driver.inspect(TOPIC),
    ]
    for future in futures:
        assert isinstance(future.exception(EVENT_TIMEOUT), TransportUnavailable)
    transport.cleanup()


@pytest.mark.parametrize("url", REMOTE)
@pytest.mark.parametrize("left", [0, 1, 2, 3, 4])
def test_out_of_descriptors_is_an_error_that_says_what_to_do(url: str, left: int) -> None:
    """Where a connection cannot be opened for want of one, it is `TransportUnavailable`, whatever it is wanted for."""
    said = run(url, str(left))
    assert [line.partition(" ")[0] for line in said] == ["cast", "call"]
    if left == 0:
        assert all("ulimit -n" in line for line in said), said


@pytest.mark.parametrize("url", REMOTE)
def test_descriptors_that_were_closed_by_others_are_no_raw_error(url: str) -> None:
    """A library that makes daemons closes them all: whatever is used afterwards fails with `TransportUnavailable`."""
    first, *later = run(url, "closed")
    assert first.startswith("cast ")
    assert [line.partition(" ")[0] for line in later] == ["cast", "call"]


def test_a_loop_whose_descriptors_were_closed_says_so() -> None:
    """It ends, and each call says what has happened and what to do; what it was to do is not done."""
    code = (
        "import os, threading\n"
        "from msgbus import TransportUnavailable\n"
        "from msgbus.drivers.toolkit.loop import Loop\n"
        "loop, ran = Loop('test'), threading.Event()\n"
        "loop.call(ran.set)\n"
        "assert ran.wait(20)\n"
        "os.closerange(3, 100)\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        loop.call(print, 'it was refused')\n"
        "    except TransportUnavailable as exc:\n"
        "        print(exc)\n"
        "loop.close()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("make the transport after that") == 2, ended.stdout
    assert "it was refused" not in ended.stdout


def test_a_loop_starts_when_there_is_a_thread_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused calls are not run later; later calls are."""
    loop, ran = Loop("test"), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _thread: (_ for _ in ()).throw(RuntimeError("no thread")))
        with pytest.raises(TransportUnavailable, match="no thread"):
            loop.call(pytest.fail, "it was refused")
    loop.call(ran.set)
    assert ran.wait(EVENT_TIMEOUT)
    loop.close()


def test_a_loop_starts_for_what_is_due_later_when_there_is_a_thread_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused calls are not run later; later calls are."""
    loop, ran = Loop("test"), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _thread: (_ for _ in ()).throw(RuntimeError("no thread")))
        with pytest.raises(TransportUnavailable, match="no thread"):
            loop.call_later(0, lambda: pytest.fail("it was refused"))
    loop.call_later(0, ran.set)
    assert ran.wait(EVENT_TIMEOUT)
    loop.close()
