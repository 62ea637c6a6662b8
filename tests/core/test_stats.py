"""What a server says of itself: the method `stats` in the namespace `msgbus`."""

from __future__ import annotations

import os
import pathlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from msgbus import (
    ConfigurationError,
    ExplicitRPCAccessPolicy,
    InterceptedRequest,
    NoSuchMethod,
    Proceed,
    RPCAccessPolicyBase,
    RPCClient,
    RPCServer,
    Target,
    UnsupportedVersion,
    expected_exceptions,
    expose,
    get_rpc_client,
    get_rpc_server,
    get_rpc_transport,
)
from msgbus.conformance.waiting import Task, gather, until
from msgbus.counting import MOST_METHODS
from msgbus.durations import Durations
from msgbus.message import Request
from msgbus.stats import MOST_RUNNING
from tests.support import EVENT_TIMEOUT, conf_from_file, new_transport, new_url

SERVER = Target(topic="foo", server="h1")


class Service:
    """What the server runs."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.casts = 0

    def echo(self, _ctxt: object, value: Any = None) -> Any:
        return value

    def fail(self, _ctxt: object) -> None:
        raise KeyError("no such thing")

    @expected_exceptions(KeyError)
    def fail_as_expected(self, _ctxt: object) -> None:
        raise KeyError("no such thing")

    def wait(self, _ctxt: object) -> None:
        assert self.go_on.wait(EVENT_TIMEOUT)

    def flaky(self, _ctxt: object) -> None:
        self.casts += 1
        if self.casts == 1:
            raise KeyError("not yet")

    def count(self, _ctxt: object) -> Iterator[int]:
        while True:
            yield 1


class Asynchronous(Service):
    """The same on an event loop, with one method that is ``async``."""

    async def quick(self, _ctxt: object) -> None:
        pass


class Admin:
    """Methods of another interface."""

    target = Target(namespace="admin")

    def echo(self, _ctxt: object) -> None:
        pass


class Bus:
    """A server, and clients of it.

    Attributes:
        service: what the server runs.
        client: of the topic.
        server: the server.
    """

    def __init__(self, cleanup: ExitStack, service: Service, **overrides: Any) -> None:
        access, interceptors = overrides.pop("access", None), overrides.pop("interceptors", ())
        transport = new_transport(**overrides)
        cleanup.callback(transport.cleanup)
        self.service = service
        self.client: RPCClient = get_rpc_client(transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
        served = new_transport(str(transport.url), **overrides)
        cleanup.callback(served.cleanup)
        self.server: RPCServer = get_rpc_server(
            served, SERVER, [service, Admin()], access_policy=access, interceptors=interceptors
        )
        self.server.start(EVENT_TIMEOUT)
        cleanup.callback(self.server.wait, EVENT_TIMEOUT)
        cleanup.callback(service.go_on.set)

    def stats(self) -> Any:
        """What the server says."""
        return self.client.prepare(namespace="msgbus").call({}, "stats")

    def counts(self, method: str) -> tuple[int, ...]:
        """How often the method was begun, has finished and failed, and was cancelled."""
        found = self.stats()["methods"].get(method, {})
        return tuple(found.get(name, 0) for name in ("begun", "finished", "failed", "cancelled"))


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    """Ends what a test has started."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=[Service, Asynchronous])
def bus(request: pytest.FixtureRequest, cleanup: ExitStack) -> Bus:
    """A server with threads, and one with an event loop."""
    return Bus(cleanup, request.param())


def test_it_says_which_server_it_is(bus: Bus) -> None:
    """As a ping does; and since when it runs."""
    found = bus.stats()
    pinged = bus.client.ping(EVENT_TIMEOUT)[0]
    for name in ("server", "topic", "host", "pid", "version"):
        assert found[name] == pinged[name]
    assert found["pid"] == os.getpid()
    assert 0 <= found["uptime"] < EVENT_TIMEOUT
    assert bus.stats()["uptime"] >= found["uptime"]


def test_each_way_in_which_a_method_ends_is_counted(bus: Bus) -> None:
    """By method. An exception that is part of the interface is no failure."""
    for _ in range(3):
        bus.client.call({}, "echo")
    bus.client.cast({}, "echo")
    for method in ("fail", "fail_as_expected"):
        with pytest.raises(KeyError):
            bus.client.call({}, method)
    until(lambda: bus.counts("echo") == (4, 4, 0, 0), "the cast")
    assert bus.counts("fail") == (1, 0, 1, 0)
    assert bus.counts("fail_as_expected") == (1, 1, 0, 0)
    bus.client.prepare(namespace="admin").call({}, "echo")
    assert bus.counts("admin.echo") == (1, 1, 0, 0)
    with bus.client.multicall({}, "count") as items:
        assert next(items) == 1
    until(lambda: bus.counts("count") == (1, 0, 0, 1), "the end of the generator")
    bus.client.prepare(timeout=1.0).cast({}, "fail")
    until(lambda: bus.counts("fail") == (2, 0, 2, 0), "the failure of a cast")


def test_a_request_whose_end_is_counted_does_not_run(cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was begun once, also in the moment before its server has finished with it.

    The requests for the counts themselves may still run.
    """
    bus = Bus(cleanup, Service())
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(Durations, "add", lambda _self, _seconds: found.append(bus.stats()))
    bus.client.call({}, "echo")
    until(lambda: found, "the end of the call")
    bus.client.cast({}, "echo")
    until(lambda: len(found) == 2, "the end of the cast")
    assert [stats["methods"]["echo"]["begun"] for stats in found] == [1, 2]
    assert "echo" not in [request["method"] for stats in found for request in stats["running"]]


def test_a_cast_that_is_run_again_counts_each_time(cleanup: ExitStack) -> None:
    """Meanwhile it does not run, and the server holds it."""
    bus = Bus(cleanup, Service(), rpc_delivery="at_least_once")
    bus.client.cast({}, "flaky")
    until(lambda: bus.service.casts, "the first time")
    until(lambda: bus.stats()["running"] == [] and bus.stats()["held"] == 1, "the time between")
    until(lambda: bus.counts("flaky") == (2, 1, 1, 0), "the second time")
    until(lambda: bus.stats()["held"] == 0, "the end")


def test_what_is_refused_is_counted_without_its_name(bus: Bus) -> None:
    """Clients may ask for any name."""
    for n in range(3):
        with pytest.raises(NoSuchMethod):
            bus.client.call({}, f"nothing {n}")
    with pytest.raises(UnsupportedVersion):
        bus.client.prepare(namespace="nothing").call({}, "echo")
    found = bus.stats()
    assert found["refused"] == 4
    assert set(found["methods"]) <= {"msgbus.stats"}


def test_names_of_no_method_get_no_entry(cleanup: ExitStack) -> None:
    """Also where an interceptor answers or refuses them by itself: the names of methods keep their places."""

    class Secret(RPCAccessPolicyBase):
        def is_allowed(self, endpoint: object, method: str) -> bool:
            if method == "strange":
                raise LookupError(method)
            return not method.startswith("_")

    def around(request: InterceptedRequest, proceed: Proceed) -> Any:
        if request.method == "echo":
            return proceed(request)
        if request.method.startswith("answered"):
            return 1
        raise PermissionError(request.method)

    bus = Bus(cleanup, Service(), access=Secret, interceptors=[around])
    for n in range(MOST_METHODS):
        assert bus.client.call({}, f"answered {n}") == 1
        with pytest.raises(PermissionError):
            bus.client.call({}, f"refused {n}")
    for method in ("strange", "_hidden"):
        with pytest.raises(PermissionError):
            bus.client.call({}, method)
    bus.client.call({}, "echo")
    with pytest.raises(PermissionError):
        bus.client.call({}, "flaky")
    found = bus.stats()
    assert set(found["methods"]) == {"echo", "flaky"}
    assert found["others"] == {"finished": MOST_METHODS, "failed": MOST_METHODS + 2, "cancelled": 0}


def test_what_runs_is_shown_the_oldest_first(bus: Bus) -> None:
    """Each with its method, its id and for how long it has run; calls and casts alike."""
    tasks = []
    for number in range(3):
        if number == 1:
            bus.client.cast({}, "wait")
        else:
            tasks.append(Task(bus.client.call, {}, "wait"))
        until(lambda number=number: bus.stats()["running_count"] == number + 1, "one more")  # type: ignore[misc]
    found = bus.stats()
    assert [running["method"] for running in found["running"]] == ["wait"] * 3
    assert len({running["id"] for running in found["running"]}) == 3
    seconds = [running["seconds"] for running in found["running"]]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] >= 0
    assert bus.counts("wait") == (3, 0, 0, 0)
    assert found["threads"]["busy"] >= 3
    assert found["threads"]["limit"] == 64
    if isinstance(bus.service, Asynchronous):
        assert found["tasks"]["busy"] >= 3
        assert found["tasks"]["limit"] == 1000
    else:
        assert found["tasks"] is None
    bus.service.go_on.set()
    gather(tasks)
    until(lambda: bus.counts("wait") == (3, 3, 0, 0), "the end of the cast")
    assert bus.stats()["running"] == []


def test_not_all_that_runs_is_shown(bus: Bus) -> None:
    """But it is counted."""
    count = MOST_RUNNING + 5
    tasks = [Task(bus.client.call, {}, "wait") for _ in range(count)]
    until(lambda: bus.stats()["running_count"] == count, "all of them")
    assert len(bus.stats()["running"]) == MOST_RUNNING
    assert bus.counts("wait")[0] == count
    bus.service.go_on.set()
    gather(tasks)


def test_what_waits_for_a_thread_is_the_backlog(cleanup: ExitStack) -> None:
    """It has come, and has not begun; the server holds it."""
    bus = Bus(cleanup, Service(), executor_thread_pool_size=2)

    def found() -> Any:
        return bus.server.dispatcher.dispatch(Request("stats", namespace="msgbus"))

    assert (found()["backlog"], found()["held"]) == (0, 0)
    stuck = [Task(bus.client.call, {}, "wait") for _ in range(2)]
    until(lambda: found()["running_count"] == 2, "two that run")
    for _ in range(3):
        bus.client.cast({}, "echo")
    until(lambda: found()["backlog"] == 3, "three that wait")
    assert found()["threads"] == {"busy": 2, "limit": 2, "waiting": 3}
    until(lambda: found()["held"] == 3, "the others are accepted")
    bus.service.go_on.set()
    gather(stuck)
    until(lambda: bus.counts("echo") == (3, 3, 0, 0), "the casts")


@pytest.mark.parametrize(
    ("service", "options"),
    [
        (Service, {"executor_thread_pool_size": 2}),
        (Asynchronous, {"executor_thread_pool_size": 2}),
        (Asynchronous, {"executor_tasks": 2}),
    ],
)
def test_a_server_answers_however_busy_it_is(
    cleanup: ExitStack, service: type[Service], options: dict[str, int]
) -> None:
    """It says so when all threads or tasks are taken, and other requests wait. A ping waits with them."""
    bus = Bus(cleanup, service(), **options)
    stuck = [Task(bus.client.call, {}, "wait") for _ in range(2)]
    until(lambda: bus.stats()["running_count"] == 2, "two that run")
    waiting = [Task(bus.client.call, {}, "echo") for _ in range(3)]
    tasks = "executor_tasks" in options

    def waits() -> int:
        found = bus.stats()
        return int(found["threads"]["waiting"] if found["tasks"] and not tasks else found["backlog"])

    until(lambda: waits() == 3, "three that wait")
    assert bus.client.ping(0.3) == []
    (answer,) = bus.client.prepare(namespace="msgbus").gather({}, "stats")
    assert answer.value["tasks" if tasks else "threads"]["limit"] == 2
    bus.service.go_on.set()
    gather([*stuck, *waiting])


def test_how_long_methods_take_is_counted(bus: Bus) -> None:
    """By an upper bound, at most a quarter above. What msgbus itself answers, and what is refused, does not count."""
    assert bus.stats()["durations"] == []
    with pytest.raises(NoSuchMethod):
        bus.client.call({}, "nothing")
    task = Task(bus.client.call, {}, "wait")
    until(lambda: bus.stats()["running_count"] == 1, "one that runs")
    until(lambda: bus.stats()["running"][0]["seconds"] > 0.1, "a tenth of a second")
    bus.service.go_on.set()
    gather([task])
    bus.client.call({}, "echo")
    with pytest.raises(KeyError):
        bus.client.call({}, "fail")
    until(lambda: sum(count for _, count in bus.stats()["durations"]) == 3, "three")
    bounds = [bound for bound, _ in bus.stats()["durations"]]
    assert bounds == sorted(bounds)
    assert 0.1 < bounds[-1] < EVENT_TIMEOUT


@pytest.mark.parametrize("seconds", [2e-6, 1e-5, 2.0**-10, 0.00099, 0.1, 0.125, 0.99999, 1.0, 59.9, 3600.0, 100_000.0])
def test_the_bound_of_a_duration_is_near(seconds: float) -> None:
    """It is at most a quarter above it."""
    durations = Durations()
    durations.add(seconds)
    ((bound, count),) = durations.shown()
    assert count == 1
    assert seconds < bound <= 1.25 * seconds


@pytest.mark.parametrize(("seconds", "bound"), [(-1.0, 1.8e-7), (0.0, 1.8e-7), (1e-9, 1.8e-7), (1e9, 262144.0)])
def test_a_duration_beyond_all_bounds_counts_at_the_nearest(seconds: float, bound: float) -> None:
    """Clocks may be anything."""
    durations = Durations()
    durations.add(seconds)
    ((found, count),) = durations.shown()
    assert found == pytest.approx(bound, rel=0.05)
    assert count == 1


def test_methods_without_number_are_counted_together(cleanup: ExitStack) -> None:
    """A service that runs whatever its clients name does not fill the memory."""

    class Anything(Service):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("any"):
                return lambda _ctxt: name
            raise AttributeError(name)

    bus = Bus(cleanup, Anything())
    for n in range(MOST_METHODS + 7):
        bus.client.call({}, f"any_{n}")
    found = bus.stats()
    assert len(found["methods"]) == MOST_METHODS
    assert found["others"]["finished"] == 7
    assert bus.counts("any_0") == (1, 1, 0, 0)


def test_counts_are_exact_where_many_threads_count(cleanup: ExitStack) -> None:
    """No request is missed."""
    bus = Bus(cleanup, Service())
    threads, calls = 8, 200

    def call() -> None:
        for _ in range(calls):
            bus.client.call({}, "echo")

    gather([Task(call) for _ in range(threads)])
    until(lambda: bus.counts("echo") == (threads * calls, threads * calls, 0, 0), "all of them", 5.0)


def test_all_servers_can_be_asked(bus: Bus) -> None:
    """As any other method."""
    (answer,) = bus.client.prepare(namespace="msgbus").gather({}, "stats")
    assert answer.value["server"] == answer.server == "h1"


def test_the_operator_may_turn_it_off(cleanup: ExitStack) -> None:
    """Then there is no such method. Pings are answered all the same."""
    bus = Bus(cleanup, Service(), rpc_built_in_methods=[])
    with pytest.raises(NoSuchMethod):
        bus.stats()
    assert len(bus.client.ping(EVENT_TIMEOUT)) == 1


def test_a_wrong_name_in_the_option_is_an_error(tmp_path: pathlib.Path) -> None:
    """It says which option, when the transport is made."""
    with pytest.raises(ConfigurationError, match=r"rpc_built_in_methods.*stat"):
        get_rpc_transport(conf_from_file(tmp_path, "[DEFAULT]\nrpc_built_in_methods = stat\n"), new_url())


def test_an_explicit_access_policy_lets_it_be_called(cleanup: ExitStack) -> None:
    """The policy is about the service's own methods, which have to be exposed one by one."""

    class Exposing(Service):
        @expose
        def shown(self, _ctxt: object) -> str:
            return "shown"

    bus = Bus(cleanup, Exposing(), access=ExplicitRPCAccessPolicy)
    assert bus.client.call({}, "shown") == "shown"
    assert bus.stats()["server"] == "h1"
    assert len(bus.client.ping(EVENT_TIMEOUT)) == 1


def test_a_server_that_starts_again_counts_on(cleanup: ExitStack) -> None:
    """Its uptime begins anew."""
    bus = Bus(cleanup, Service())
    bus.client.call({}, "echo")
    bus.server.wait(EVENT_TIMEOUT)
    bus.server.start(EVENT_TIMEOUT)
    bus.client.call({}, "echo")
    assert bus.counts("echo") == (2, 2, 0, 0)
