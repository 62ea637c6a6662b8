"""The scenarios: what is broken, while what is sent. Each is a function of a `Run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import msgspec

from msgbus.conformance.waiting import until
from tests.faults.processes import Worker
from tests.faults.run import Run
from tests.faults.workload import AT_MOST_ONCE, Load


class Scenario(NamedTuple):
    """A scenario.

    Attributes:
        name: of its function.
        title: what happens, for the table and the documentation.
        run: the function.
        needs: what the message system must be able to do, see `System.can`.
        short: whether it is part of the ordinary run.
    """

    name: str
    title: str
    run: Callable[[Run], None]
    needs: Collection[str]
    short: bool


SCENARIOS: list[Scenario] = []
POOL: dict[str, Any] = {"executor_thread_pool_size": 6, "rpc_prefetch": 10}
"""Of the servers: more is waiting at each than it can run at once."""


def scenario(*needs: str, short: bool = False) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    """Add a function to the scenarios; its docstring is the title."""

    def add(function: Callable[[Run], None]) -> Callable[[Run], None]:
        title = (function.__doc__ or "").rstrip(".")
        SCENARIOS.append(Scenario(function.__name__, title, function, needs, short))
        return function

    return add


# What is sent

CALLS = (
    Load(name="1ms", seconds=0.001, count=140, rate=20),
    Load(name="300ms", seconds=0.3, count=30, rate=10, concurrency=6),
    Load(name="2s", seconds=2.0, count=10, rate=10, concurrency=6),
)
"""Calls under at_least_once that take from a moment to two seconds."""
CASTS = (Load(name="casts", verb="cast", seconds=0.05, count=80, rate=20),)
AT_MOST = (
    Load(name="most", policy=AT_MOST_ONCE, seconds=0.05, count=60, rate=20, deadline=20.0),
    Load(name="most-2s", policy=AT_MOST_ONCE, seconds=2.0, count=4, rate=10, concurrency=4, deadline=20.0),
    Load(name="most-casts", verb="cast", policy=AT_MOST_ONCE, seconds=0.05, count=40, rate=20, deadline=20.0),
)
LONG = tuple(
    msgspec.structs.replace(load, deadline=120.0)
    for load in (*CALLS, Load(name="20s", seconds=20.0, count=4, rate=10, concurrency=4), *CASTS, *AT_MOST)
)
"""The same and calls of 20 s, all with two minutes of time."""
PATIENT = tuple(msgspec.structs.replace(load, deadline=120.0) for load in (*CALLS, *CASTS))
"""With time for a broker that starts slowly."""
OTHERS = (
    Load(name="fanouts", verb="fanout_cast", policy=AT_MOST_ONCE, count=40, rate=10, deadline=20.0),
    Load(name="streams", verb="multicall", policy=AT_MOST_ONCE, seconds=0.2, count=8, items=20, rate=4, deadline=20.0),
)


def steady(seconds: float) -> Load:
    """Calls for so long: with them it is seen when calls go on."""
    return Load(name="steady", count=int(20 * seconds), rate=20)


def until_busy(run: Run, load: str, seconds: float = 1.0, among: Collection[str] = ()) -> Worker:
    """Wait until a server has run something of a load for so long, and return it.

    It may be any of them, or one of those named: which of two idle servers gets a message is for the message system
    to say, and it may give all to one.
    """
    names = among or run.servers
    found: list[Worker] = []

    def busy() -> bool:
        mine = [event for event in run.events() if f"/{load}/" in event.id]
        finished = {(event.id, event.pid) for event in mine if event.what == "finished"}
        before = time.monotonic() - seconds
        at_work = {
            event.pid
            for event in mine
            if event.what == "begun" and event.at < before and (event.id, event.pid) not in finished
        }
        found.extend(run.servers[name] for name in names if run.servers[name].pid in at_work)
        return bool(found)

    run.until(busy, f"a server ({', '.join(names)}) has run a call of {load} for {seconds:g} s", 60)
    return found[0]


def nobody_there(run: Run) -> list[str]:
    """The errors by which a message may end while no server is there: nothing waits for one where nothing is stored."""
    return [] if "store" in run.system.can else ["MessageUndeliverable"]


def rest(run: Run, seconds: float) -> None:
    """Let a fault last."""
    end = time.monotonic() + seconds
    run.progress(f"it lasts for {seconds:g} s")
    until(lambda: time.monotonic() > end, "the end of a fault", seconds + 10)


def two_servers(run: Run, *loads: Load) -> Worker:
    """Two servers, and a client that sends; return a server that is busy with what takes longest."""
    run.serve("one", "two", **POOL)
    run.send("client", *loads)
    longest = max((load for load in loads if load.verb == "call"), key=lambda load: load.seconds)
    return until_busy(run, longest.name, min(1.0, longest.seconds / 2))


# A server


@scenario("processes", short=True)
def server_killed(run: Run) -> None:
    """A server is killed; another is there."""
    run.kill(two_servers(run, *CALLS, *CASTS))


@scenario("processes")
def server_killed_in_long_calls(run: Run) -> None:
    """A server is killed while it runs calls of 20 s; another is there."""
    run.kill(two_servers(run, *LONG))


@scenario("processes", short=True)
def server_killed_at_most_once(run: Run) -> None:
    """A server is killed, with calls, casts and streams that must not run twice."""
    run.kill(two_servers(run, *AT_MOST, *OTHERS))


@scenario("processes", short=True)
def server_frozen(run: Run) -> None:
    """A server is frozen for 3 s; another is there."""
    with run.paused(two_servers(run, *CALLS, *CASTS)):
        rest(run, 3)


@scenario("processes")
def server_frozen_in_long_calls(run: Run) -> None:
    """A server is frozen for 45 s while it runs calls of 20 s; another is there."""
    with run.paused(two_servers(run, *LONG)):
        rest(run, 45)


@scenario("processes", "cut", short=True)
def server_cut_off(run: Run) -> None:
    """A server is cut off for 3 s; another is there."""
    with run.cut_off(two_servers(run, *CALLS, *CASTS)):
        rest(run, 3)


@scenario("processes", "cut")
def server_cut_off_in_long_calls(run: Run) -> None:
    """A server is cut off for 30 s while it runs calls of 20 s; another is there."""
    with run.cut_off(two_servers(run, *LONG)):
        rest(run, 30)


@scenario("processes", "stall")
def server_unplugged(run: Run) -> None:
    """A server is cut off silently for 45 s; another one runs."""
    with run.unplugged(two_servers(run, *LONG)):
        rest(run, 45)


@scenario(short=True)
def server_stopped(run: Run) -> None:
    """A server is stopped cleanly; another is there."""
    run.stop(two_servers(run, *CALLS, *CASTS, *AT_MOST, *OTHERS))


@scenario()
def server_stopped_in_long_calls(run: Run) -> None:
    """A server is stopped cleanly while it runs calls of 20 s; another is there."""
    run.stop(two_servers(run, *LONG))


@scenario("processes", short=True)
def only_server_dies(run: Run) -> None:
    """The only server ends in the middle of a call, then of a cast, and another takes its place."""
    run.serve("one", **POOL)
    errors = nobody_there(run)
    run.send(
        "client",
        Load(name="calls", count=60, rate=20, errors=errors),
        Load(name="casts", verb="cast", count=60, rate=20, errors=errors),
        Load(name="dying-call", method="die_once", seconds=0.5, count=1),
        Load(name="dying-cast", verb="cast", method="die_once", seconds=0.7, count=1),
    )

    def both_have_run() -> bool:
        return not run.replace_dead() and run.count("finished", prefix="client/dying") >= 2

    run.until(both_have_run, "what kills servers has run", 120)


@scenario("processes", short=True)
def servers_die_around_answers(run: Run) -> None:
    """Servers end within milliseconds of a method's return, one after the other, and others take their places."""
    run.serve("one", "two", "three")
    errors = nobody_there(run)
    run.send(
        "client",
        Load(name="calls", count=160, rate=20, errors=errors),
        Load(name="dying", method="die_around", seconds=0.05, count=12, rate=1.5, concurrency=1, errors=errors),
    )
    run.until(lambda: not run.replace_dead() and run.count("done"), "all calls are answered", 120)


@scenario("processes")
def servers_killed_in_turn(run: Run) -> None:
    """Servers are killed one after the other, and each comes back."""
    run.serve("one", "two", "three", **POOL)
    run.send("client", Load(name="calls", seconds=0.5, count=300, rate=10), *CASTS, *AT_MOST)
    for name in ("one", "two", "three", "one"):
        run.kill(until_busy(run, "calls", 0.2, [name]))
        run.serve(name, **POOL)


# A client


@scenario("processes", short=True)
def client_killed(run: Run) -> None:
    """A client is killed; another goes on."""
    two_servers(run, *CALLS, *CASTS)
    run.send("other", *CALLS, *AT_MOST)
    run.wait_for("sent", 20, prefix="other/")
    run.kill(run.clients["client"])


@scenario("processes", "cut", short=True)
def client_cut_off(run: Run) -> None:
    """A client is cut off for 3 s."""
    two_servers(run, *CALLS, *CASTS, *AT_MOST)
    with run.cut_off(run.clients["client"]):
        rest(run, 3)


@scenario("processes", "stall")
def client_unplugged(run: Run) -> None:
    """A client is cut off silently for 30 s."""
    two_servers(run, *LONG)
    with run.unplugged(run.clients["client"]):
        rest(run, 30)


@scenario("processes")
def client_frozen(run: Run) -> None:
    """A client is frozen for 10 s."""
    two_servers(run, *CALLS, *CASTS, *AT_MOST)
    with run.paused(run.clients["client"]):
        rest(run, 10)


@scenario()
def client_stopped(run: Run) -> None:
    """A client ends cleanly in the middle of its calls."""
    cancelled = ["CallCancelled"]
    two_servers(
        run,
        Load(name="1ms", count=400, rate=20, errors=cancelled),
        Load(name="2s", seconds=2.0, count=20, rate=10, errors=cancelled),
        Load(name="casts", verb="cast", seconds=0.05, count=400, rate=20, errors=cancelled),
    )
    run.stop(run.clients["client"])


# The message system


@scenario("broker", short=True)
def broker_killed(run: Run) -> None:
    """The broker is killed, and started again."""
    two_servers(run, *PATIENT, *AT_MOST)
    run.kill_node(run.system.nodes[0])
    rest(run, 2)
    run.start_node(run.system.nodes[0])


@scenario("broker")
def broker_restarted(run: Run) -> None:
    """The broker is stopped cleanly, and started again."""
    two_servers(run, *LONG, *OTHERS)
    run.stop_node(run.system.nodes[0])
    rest(run, 3)
    run.start_node(run.system.nodes[0])


@scenario("broker")
def broker_killed_under_a_thousand_calls(run: Run) -> None:
    """The broker is killed in the middle of 1,000 calls that wait at the same time."""
    run.serve("one", "two", "three", executor_thread_pool_size=8)
    run.send("client", Load(name="calls", seconds=0.1, count=1000, rate=1000, concurrency=1000, deadline=60.0))
    run.wait_for("finished", 100)
    run.kill_node(run.system.nodes[0])
    rest(run, 3)
    run.start_node(run.system.nodes[0])


@scenario("broker", short=True)
def broker_frozen(run: Run) -> None:
    """The broker is frozen for 10 s, longer than the timeout of casts."""
    unreachable = ["TransportUnavailable", "TransportBlocked"]
    two_servers(
        run,
        *CALLS,
        Load(name="casts", verb="cast", count=100, rate=10, deadline=3.0, errors=unreachable),
        Load(
            name="most-casts",
            verb="cast",
            policy=AT_MOST_ONCE,
            count=100,
            rate=10,
            deadline=3.0,
            errors=[*unreachable, "OutcomeUnknown"],
        ),
    )
    with run.paused(run.system.nodes[0]):
        rest(run, 10)


@scenario("processes", "exchange", short=True)
def exchange_deleted(run: Run) -> None:
    """The broker's exchange is deleted."""
    two_servers(run, *CALLS, *CASTS)
    run.delete_exchange()


# A cluster of brokers


def three_of_each(run: Run, *loads: Load) -> None:
    """Three servers and three clients, one of each at each node, and those of the first node are busy."""
    run.serve("one", "two", "three", **POOL)
    for name in ("first", "second", "third"):
        run.send(name, *loads)
    until_busy(run, "2s", among=["one"])


@scenario("cluster", short=True)
def node_killed(run: Run) -> None:
    """A node of the cluster is killed, and stays away."""
    three_of_each(run, *CALLS, *CASTS, *AT_MOST)
    run.kill_node(run.system.nodes[0])


@scenario("cluster")
def nodes_killed_in_turn(run: Run) -> None:
    """The nodes of the cluster are killed one after the other, and each is started again."""
    uncertain = ["OutcomeUnknown"]
    three_of_each(
        run,
        *CALLS,
        steady(60),
        Load(name="casts", verb="cast", count=1200, rate=20),
        Load(name="most-casts", verb="cast", policy=AT_MOST_ONCE, count=1200, rate=20, errors=uncertain),
    )
    for node in run.system.nodes:
        run.kill_node(node)
        rest(run, 3)
        run.start_node(node)


@scenario("cluster")
def node_frozen(run: Run) -> None:
    """A node of the cluster is frozen for 20 s."""
    three_of_each(run, *CALLS, *CASTS, *AT_MOST, steady(30))
    with run.paused(run.system.nodes[0]):
        rest(run, 20)


@scenario("cluster")
def node_partitioned(run: Run) -> None:
    """A node of the cluster is cut off from the others for 20 s, but not from its clients."""
    three_of_each(run, *CALLS, *CASTS, *AT_MOST, steady(30))
    with run.partitioned(run.system.nodes[0]):
        rest(run, 20)
