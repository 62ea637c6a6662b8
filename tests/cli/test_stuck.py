"""``msgbus stuck``, with a bus in memory. tests/functional/test_cli_stuck.py has it with processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from msgbus.cli.errors import Code
from msgbus.cli.findings import Finding, find
from msgbus.cli.looking import NO_QUEUE, UNKNOWN, Busy, Counts, Look, Queue, Running, ServerSeen, Stats, TopicSeen
from msgbus.conformance.waiting import Task, gather, until
from tests.cli.watched import QUICK, Bus, Service
from tests.support import EVENT_TIMEOUT


@pytest.fixture(autouse=True)
def _no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSGBUS_URL", raising=False)


@pytest.fixture
def bus() -> Iterator[Bus]:
    """What was started ends with the test."""
    with ExitStack() as cleanup:
        yield Bus(cleanup)


def stuck(bus: Bus, *args: str) -> list[tuple[str, str | None]]:
    """What is stuck: of what kind, and the server. The exit code says whether anything is."""
    result = bus.run("stuck", *args, *QUICK, "--json")
    found = [(one["kind"], one.get("server")) for one in _document(result)["stuck"]]
    assert result.exit_code == (Code.NO_SERVER if found else 0)
    return found


def _document(result: Any) -> Any:
    assert result.stderr == "", result.output
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def test_nothing_is_stuck(bus: Bus) -> None:
    """Exit code 0, and a line that says so; also of a server that runs something, as long as it has a free thread."""
    bus.serve("one")
    bus.serve("two", topic="other")
    tasks = bus.occupy("one", 2)
    result = bus.run("stuck", *QUICK)
    assert (result.exit_code, result.stdout) == (0, "nothing is stuck: 2 servers of hello, other answered\n")
    assert stuck(bus, "hello") == []
    bus.service.go_on.set()
    gather(tasks)


def test_a_server_that_does_not_answer_is_frozen(bus: Bus) -> None:
    """It is connected, and did not answer twice."""
    bus.serve("one")
    bus.freeze("two")
    assert stuck(bus, "hello") == [("frozen", "two")]
    result = bus.run("stuck", *QUICK)
    assert result.exit_code == Code.NO_SERVER
    first, *rest = result.stdout.splitlines()
    assert first.startswith(
        "server two of hello: frozen: it is connected to the message system, and did not answer twice"
    )
    assert rest[0].startswith("  next: see whether its process is paused")


def test_a_frozen_server_without_a_name_is_counted(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that answer are named, and with --server it has a name."""
    monkeypatch.setattr(type(bus.transport.driver), "known_servers", lambda _driver: None)
    bus.serve("one")
    bus.freeze("two")
    result = bus.run("stuck", "hello", *QUICK)
    assert result.exit_code == Code.NO_SERVER
    assert "topic hello: frozen: it is connected" in result.stdout
    assert "does not know the name; those that answer: one\n" in result.stdout
    assert stuck(bus, "hello", "--server", "one", "--server", "two") == [("frozen", "two")]


def test_a_server_without_a_free_thread_is_busy(bus: Bus) -> None:
    """It answers, and says what runs. It is not taken for a frozen one."""
    bus.serve("one", executor_thread_pool_size=2)
    tasks = [*bus.occupy("one", 2), Task(bus.client.call, {}, "wait")]
    until(
        lambda: bus.document("top", "hello", "--once", *QUICK)["topics"][0]["servers"][0]["waiting"] == 1, "one waits"
    )
    assert stuck(bus, "hello") == [("busy", "one")]
    result = bus.run("stuck", "hello", *QUICK)
    text = "all its 2 threads are busy; 1 request in its backlog; between the two looks none has ended"
    assert result.stdout.splitlines()[0] == f"server one of hello: busy: {text}"
    bus.service.go_on.set()
    gather(tasks)
    assert stuck(bus, "hello") == []


def test_a_server_whose_event_loop_is_blocked_does_not_answer(bus: Bus) -> None:
    """None of its methods runs: it is as good as frozen, and the text names that reason too."""

    class Blocking(Service):
        async def block(self, _ctxt: object) -> None:
            began.set()
            assert self.go_on.wait(EVENT_TIMEOUT)

    began = threading.Event()
    bus.service = Blocking()
    bus.serve("one")
    task = Task(bus.client.call, {}, "block")
    assert began.wait(EVENT_TIMEOUT)
    result = bus.run("stuck", "hello", *QUICK)
    assert result.exit_code == Code.NO_SERVER
    assert "server one of hello: frozen:" in result.stdout
    assert "whether an async method blocks its event loop" in " ".join(result.stdout.split())
    bus.service.go_on.set()
    gather([task])
    assert stuck(bus, "hello") == []


def test_a_server_that_was_stopped_is_named(bus: Bus) -> None:
    """Where its name is given: its queue may be there still."""
    bus.serve("one")
    bus.serve("two").wait(EVENT_TIMEOUT)
    assert stuck(bus, "hello") == []
    assert stuck(bus, "hello", "--server", "two", "--server", "never") == [("stopped", "never"), ("stopped", "two")]
    result = bus.run("stuck", "hello", "--server", "two", *QUICK)
    assert "it was stopped, or has died; its own queue still exists, with 0 messages" in result.stdout


def test_a_queue_without_consumers_is_named(bus: Bus) -> None:
    """With what waits in it; without any it is a topic without servers."""
    bus.serve("one").wait(EVENT_TIMEOUT)
    assert stuck(bus, "hello") == [("no_server", None)]
    bus.client.cast({}, "greet")
    bus.client.cast({}, "greet")
    assert stuck(bus, "hello") == [("no_consumers", None)]
    result = bus.run("stuck", "hello", *QUICK)
    assert "topic hello: no consumers: 2 requests in its queue, which has no consumers" in result.stdout
    assert stuck(bus, "nowhere") == [("no_server", None)]


def test_a_request_that_runs_long_is_shown(bus: Bus) -> None:
    """With its method and id, once it has run for longer than is said."""
    bus.serve("one")
    tasks = bus.occupy("one", 2)
    assert stuck(bus, "hello") == []
    result = bus.run("stuck", "hello", "--longer-than", "0.1", *QUICK, "--json")
    assert result.exit_code == Code.NO_SERVER
    (found,) = _document(result)["stuck"]
    assert (found["kind"], found["server"], found["method"], found["count"]) == ("long_request", "one", "wait", 2)
    assert len(found["id"]) == 32
    assert found["seconds"] > 0.1
    bus.service.go_on.set()
    gather(tasks)


def test_a_queue_that_grows_is_named(bus: Bus) -> None:
    """Where something waited at both looks, and more at the second."""
    bus.freeze("one")
    for _ in range(65):
        bus.client.cast({}, "greet")
    assert stuck(bus, "hello") == [("frozen", "one")]
    growing = Task(_cast_for_a_while, bus)
    assert ("growing_queue", None) in stuck(bus, "hello")
    bus.service.go_on.set()
    gather([growing])


def _cast_for_a_while(bus: Bus) -> None:
    while not bus.service.go_on.wait(0.02):
        bus.client.cast({}, "greet")


def test_two_servers_of_one_name_are_named(bus: Bus) -> None:
    """One of them seems not to answer; what is wrong is the name."""
    bus.serve("one")
    bus.serve("one")
    assert stuck(bus, "hello") == [("same_name", "one")]


def test_servers_are_named_for_one_topic() -> None:
    """Of two, it is not known whose they are."""
    with ExitStack() as cleanup:
        result = Bus(cleanup).run("stuck", "a", "b", "--server", "one")
    assert result.exit_code == Code.USAGE
    assert "give that one TOPIC" in result.stderr


def test_no_server_at_all_is_exit_code_3(bus: Bus) -> None:
    """Where all are to be looked at, and there are none."""
    result = bus.run("stuck", *QUICK)
    assert result.exit_code == Code.NO_SERVER
    assert "MessageUndeliverable: no server is there" in result.stderr


def test_what_servers_say_is_escaped(bus: Bus) -> None:
    """A name may hold what a terminal would obey."""
    server = bus.serve("one")
    tasks = bus.occupy("one", 1)
    server._processor.server = "\x1b[31mred"
    for command in (["stuck", "hello", "--longer-than", "0"], ["top", "hello", "--once"]):
        for as_json in ([], ["--json"]):
            result = bus.run(*command, *QUICK, *as_json)
            assert "31mred" in result.stdout
            assert "\x1b" not in result.stdout
    bus.service.go_on.set()
    gather(tasks)


# Which two looks come to what


def stats(
    *,
    running: int = 0,
    limit: int = 2,
    ended: int = 0,
    waiting: int = 0,
    tasks: Busy | None = None,
    uptime: float = 100.0,
) -> Stats:
    """What a server says."""
    return Stats(
        uptime=uptime,
        running=[Running("wait", "1f", 30.0)] * running,
        running_count=running,
        methods={"wait": Counts(finished=ended), "msgbus.stats": Counts(finished=1000)},
        others=Counts(),
        threads=Busy(running, limit, waiting if tasks else 0),
        tasks=tasks,
        backlog=0 if tasks else waiting,
    )


def look(*servers: ServerSeen, known: int | None, queue: Queue = NO_QUEUE) -> Look:
    """A look at one topic."""
    return Look(0.0, {"t": TopicSeen("t", list(servers), queue, 0, known)})


def well(name: str, said: Stats | None = None) -> ServerSeen:
    """A server that answers."""
    return ServerSeen(name, answers=True, stats=said or stats(), queue=Queue(1, 0))


def silent(name: str, consumers: int | None = 1) -> ServerSeen:
    """A server that does not."""
    return ServerSeen(name, queue=Queue(consumers, None, why="" if consumers else "refused"))


def kinds(found: list[Finding]) -> list[tuple[str, str | None, bool]]:
    """The kind, the server, and whether it counts."""
    return [(one.kind, one.server, one.is_stuck) for one in found]


SERVED = Queue(1, 0)


def found_in(looks: Iterable[Look]) -> list[Finding]:
    """What is found by two looks."""
    first, second = looks
    return find(first, second, 60.0)


@pytest.mark.parametrize(
    ("before", "now", "is_stuck"),
    [
        (stats(running=2), stats(running=2), True),
        (stats(running=2), stats(running=1), False),
        (stats(running=2, ended=5), stats(running=2, uptime=1.0), False),
        (stats(running=1), stats(running=2), False),
        (stats(running=2, ended=5), stats(running=2, ended=6), False),
        (stats(running=2, ended=5, waiting=3), stats(running=2, ended=6, waiting=4), True),
        (stats(running=2, ended=5, waiting=3), stats(running=2, ended=6, waiting=3), False),
        (stats(running=2, tasks=Busy(2, 100, 0)), stats(running=2, tasks=Busy(2, 100, 0)), True),
        (stats(running=2, limit=9, tasks=Busy(2, 100, 0)), stats(running=2, limit=9, tasks=Busy(2, 100, 0)), False),
        (stats(running=2, limit=9, tasks=Busy(2, 2, 0)), stats(running=2, limit=9, tasks=Busy(2, 2, 0)), True),
    ],
)
def test_a_busy_server_is_stuck_if_it_does_not_get_further(before: Stats, now: Stats, is_stuck: bool) -> None:
    """All its threads or tasks were taken twice, and nothing has ended, or more waits."""
    looks = (look(well("one", said), known=1, queue=SERVED) for said in (before, now))
    found = found_in(looks)
    assert kinds(found) == ([("busy", "one", True)] if is_stuck else [])


def test_a_server_that_has_just_ended_is_a_note() -> None:
    """It answered at first, and is not counted any more: it is not frozen."""
    found = found_in((look(well("one"), well("two"), known=2), look(well("one"), known=1, queue=SERVED)))
    assert kinds(found) == [("ended", "two", False)]


def test_a_server_that_was_silent_once_is_a_note() -> None:
    """It may have been too slow. A second look says more, whether its name is known by the message system or not."""
    first = look(well("one"), well("two"), known=2)
    for second in (look(well("one"), silent("two"), known=2, queue=SERVED), look(well("one"), known=2, queue=SERVED)):
        assert ("silent_once", "two", False) in kinds(found_in((first, second)))
        assert len(found_in((first, second))) == 1
    recovered = look(well("one"), well("two"), known=2, queue=SERVED)
    assert found_in((look(well("one"), silent("two"), known=2), recovered)) == []


def test_a_server_that_joins_meanwhile_is_not_stuck() -> None:
    """It is counted, and was not asked, or was asked once."""
    first = look(well("one"), known=1)
    second = look(well("one"), known=2, queue=SERVED)
    assert not any(one.is_stuck for one in found_in((first, second)))


def test_a_server_that_cannot_be_reached_is_no_frozen_one() -> None:
    """As one that a file of hosts names, and that does not listen."""
    looks = [look(well("one"), silent("two", None), known=1, queue=SERVED) for _ in range(2)]
    assert kinds(found_in(looks)) == [("unreachable", "two", True)]


def test_a_server_of_which_nothing_is_known_is_silent() -> None:
    """Where the message system says nothing of servers."""
    looks = [look(well("one"), ServerSeen("two"), known=None, queue=UNKNOWN) for _ in range(2)]
    assert kinds(found_in(looks)) == [("silent", "two", True), ("not_counted", None, False)]


def test_where_servers_are_not_counted_that_is_a_note() -> None:
    """Frozen ones cannot be told from those that are not there."""
    looks = [look(well("one"), known=None, queue=Queue(None, None, why="no answer")) for _ in range(2)]
    assert kinds(found_in(looks)) == [("not_counted", None, False)]


@pytest.mark.parametrize(
    ("before", "now", "grows"),
    [(0, 5, False), (1, 1, False), (1, 2, True), (5, 4, False), (None, 5, False), (5, None, False)],
)
def test_a_queue_grows_if_more_waits_than_before(before: int | None, now: int | None, grows: bool) -> None:
    """One that was empty has just got something: that is no sign."""
    looks = (look(well("one"), known=1, queue=Queue(1, messages)) for messages in (before, now))
    assert kinds(found_in(looks)) == ([("growing_queue", None, True)] if grows else [])


def test_all_that_is_frozen_is_counted_together() -> None:
    """Where the message system knows no names."""
    looks = [look(well("one"), known=4, queue=SERVED) for _ in range(2)]
    (found,) = found_in(looks)
    assert (found.kind, found.count) == ("frozen", 3)
    assert "does not know the names; those that answer: one" in found.text
