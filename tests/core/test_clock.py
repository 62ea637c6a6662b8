"""Everything in msgbus waits by one clock, `Loop.now`, which tests of services that freeze time do not replace."""

from __future__ import annotations

import datetime
import itertools
import pathlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from msgbus import (
    MessageUndeliverable,
    MessagingTimeout,
    Target,
    Transport,
    TransportUnavailable,
    get_rpc_client,
    get_rpc_server,
    get_rpc_transport,
)
from msgbus.message import KEEPALIVE, Reply
from msgbus.pending import PendingCall
from tests.support import EVENT_TIMEOUT, VirtualClock, new_conf, new_url

HOUR = 3600.0


class Frozen(datetime.datetime):
    """Like the class that libraries which freeze time put in place of `datetime`."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Frozen:
        return cls(2020, 1, 1, tzinfo=tz)


@pytest.fixture(params=[1, 2_000_000_000], ids=["long_ago", "far_ahead"])
def frozen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock functions of Python stand still, at a wrong time, for all code that looks them up by name."""
    for name in ("monotonic", "time", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: float(request.param))
        monkeypatch.setattr(time, f"{name}_ns", lambda: request.param * 10**9)
    monkeypatch.setattr(datetime, "datetime", Frozen)


def within(func: Callable[[], Any]) -> Any:
    """Run a function on a separate thread, with a time limit: otherwise a test that fails might hang for ever."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(func())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future.result(EVENT_TIMEOUT)


class Service:
    """Answers at once, or when the test allows it."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def add(self, _ctxt: object, a: int, b: int) -> int:
        return a + b

    def wait(self, _ctxt: object) -> str:
        return "done" if self.go_on.wait(EVENT_TIMEOUT) else "the test did not allow it"


def transport_to(system: str, folder: pathlib.Path) -> Transport:
    """A transport to a message system in memory, to ZeroMQ in a folder, or to a port where nothing listens."""
    url = {"fake": new_url(), "zmq": f"zmq://{folder}/run", "away": "rabbit://127.0.0.1:1/"}[system]
    return get_rpc_transport(new_conf(), url)


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@pytest.mark.parametrize("system", ["fake", "zmq"])
def test_calls_go_on_while_the_clocks_of_python_stand_still(system: Any, delivery: Any, tmp_path: pathlib.Path) -> None:
    """As in a test of a service that freezes time: calls are answered, and a call without an answer ends in time."""
    transport, service = transport_to(system, tmp_path), Service()
    server = get_rpc_server(transport, Target(topic="frozen", server="h1"), [service])
    client = get_rpc_client(transport, Target(topic="frozen"), timeout=EVENT_TIMEOUT, delivery=delivery)
    try:
        within(server.start)
        assert within(lambda: client.call({}, "add", a=1, b=2)) == 3
        client.cast({}, "add", a=1, b=2)
        assert within(lambda: list(client.multicall({}, "add", a=1, b=2))) == [3]
        with pytest.raises(MessagingTimeout):
            within(lambda: client.prepare(timeout=0.3).call({}, "wait"))
        service.go_on.set()
        nobody = client.prepare(topic="nobody", timeout=0.3)
        with pytest.raises((MessageUndeliverable, MessagingTimeout)):
            within(lambda: nobody.call({}, "add", a=1, b=2))
    finally:
        service.go_on.set()
        within(server.wait)
        within(transport.cleanup)


@pytest.mark.usefixtures("frozen")
def test_a_call_that_waits_for_a_connection_ends_while_the_clocks_of_python_stand_still(tmp_path: pathlib.Path) -> None:
    """A call to a broker that does not run fails at its deadline."""
    transport = transport_to("away", tmp_path)
    client = get_rpc_client(transport, Target(topic="frozen"), timeout=0.5)
    try:
        with pytest.raises(TransportUnavailable, match=r"127\.0\.0\.1:1"):
            within(lambda: client.call({}, "add", a=1, b=2))
    finally:
        within(transport.cleanup)


def test_a_call_of_an_hour_is_replayed_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a method runs, its server sends a keepalive every five seconds of the loop's clock, not of another."""
    clock = VirtualClock(monkeypatch)
    transport = get_rpc_transport(new_conf(), new_url())
    keepalives: list[float] = []
    on_reply = PendingCall.on_reply

    def note(pending: PendingCall, reply: Reply, now: float) -> None:
        keepalives.append(now)
        on_reply(pending, reply, now)

    monkeypatch.setattr(PendingCall, "on_reply", note)

    hour_is_over = threading.Event()

    def end_the_hour() -> None:
        clock.stands = True
        hour_is_over.set()

    class Slow:
        def work(self, _ctxt: object) -> str:
            transport.loop.call_later(HOUR, end_the_hour)
            return "done" if hour_is_over.wait(3 * EVENT_TIMEOUT) else "the hour did not pass"

    server = get_rpc_server(transport, Target(topic="slow", server="h1"), [Slow()])
    client = get_rpc_client(transport, Target(topic="slow"), timeout=2 * HOUR)
    try:
        server.start()
        began = clock.seconds
        assert client.call({}, "work") == "done"
        assert HOUR <= clock.seconds - began < HOUR + KEEPALIVE
    finally:
        server.wait()
        transport.cleanup()
    pauses = [after - before for before, after in itertools.pairwise(keepalives)]
    assert max(pauses) < KEEPALIVE + 1
    assert HOUR / KEEPALIVE * 0.9 < len(keepalives) < HOUR / KEEPALIVE + 5
