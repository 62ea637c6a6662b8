"""``msgbus top``, with a bus in memory. tests/functional/test_cli_stuck.py has it with message systems."""

from __future__ import annotations

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import pytest
from rich.console import Console

from msgbus import Target, get_rpc_server
from msgbus.cli.errors import Code
from msgbus.cli.looking import Busy, Counts, Look, ServerSeen, Stats, TopicSeen, Watcher
from msgbus.cli.measuring import durations_between, percentile, rows_of
from msgbus.cli.top import _tables
from msgbus.conformance.waiting import gather, until
from tests.cli.watched import QUICK, Bus
from tests.support import EVENT_TIMEOUT, ROOT, new_transport
from tests.terminal import Terminal

MSGBUS = str(pathlib.Path(sys.executable).parent / "msgbus")


@pytest.fixture(autouse=True)
def _no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSGBUS_URL", raising=False)


@pytest.fixture
def bus() -> Iterator[Bus]:
    """What was started ends with the test."""
    with ExitStack() as cleanup:
        yield Bus(cleanup)


def servers(document: Any, topic: str = "hello") -> dict[str, Any]:
    """The servers of a topic in a document, by name."""
    (found,) = [found for found in document["topics"] if found["topic"] == topic]
    return {server["server"]: server for server in found["servers"]}


def test_it_shows_what_servers_do(bus: Bus) -> None:
    """A line for each, with what runs longest; and the queues."""
    bus.serve("one")
    bus.serve("two", executor_thread_pool_size=1)
    tasks = bus.occupy("two", 1)
    result = bus.run("top", "hello", "--once", *QUICK)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == [
        "topic",
        "server",
        "state",
        "rate",
        "p50",
        "p99",
        "running",
        "waiting",
        "errors",
        "oldest",
    ]
    assert lines[1] == ["hello", "one", "ok", "0/s", "0", "0", "0"]
    assert lines[2][:3] == ["hello", "two", "busy"]
    assert lines[2][-1] in ("s", "ms")
    assert ["hello", "all", "servers", "0", "2", "0"] in lines
    assert lines[-2] == ["runs", "for", "topic", "server", "method", "id"]
    assert lines[-1][-4:-1] == ["hello", "two", "wait"]
    assert len(lines[-1][-1]) == 32
    bus.service.go_on.set()
    gather(tasks)


def test_as_json_it_is_one_document(bus: Bus) -> None:
    """With all that is known, also of the server's own queue."""
    bus.serve("one", executor_thread_pool_size=1)
    tasks = bus.occupy("one", 1)
    document = bus.document("top", "hello", "--once", *QUICK)
    assert document["seconds"] >= 0.3
    (topic,) = document["topics"]
    assert (topic["topic"], topic["known"], topic["answered"], topic["unnamed"]) == ("hello", 1, 1, 0)
    assert topic["queue"] == {"messages": 0, "consumers": 1}
    assert topic["dead_letters"] == 0
    (server,) = topic["servers"]
    assert (server["state"], server["running"], server["waiting"]) == ("busy", 1, 0)
    assert server["oldest"]["method"] == "wait"
    assert server["oldest"]["seconds"] > 0
    assert server["queue"] == {"messages": 0, "consumers": 1}
    bus.service.go_on.set()
    gather(tasks)


def uptime(look: Look) -> float:
    """For how long the only server had run."""
    stats = look.topics["hello"].servers[0].stats
    assert stats is not None
    return stats.uptime


def next_look(watcher: Watcher, before: Look) -> Look:
    """A look when the server's clock has gone on. It counts in milliseconds."""
    found = watcher.look()
    while uptime(found) <= uptime(before):
        found = watcher.look()
    return found


def test_rates_durations_and_errors_are_of_the_time_between_two_looks(bus: Bus) -> None:
    """Errors are also those since the start; what msgbus itself answers does not count."""
    bus.serve("one")
    for _ in range(3):
        with pytest.raises(KeyError):
            bus.client.call({}, "fail")
    watcher = Watcher(bus.transport, ["hello"], timeout=EVENT_TIMEOUT)
    first = watcher.look()
    for _ in range(5):
        bus.client.call({}, "greet")
    with pytest.raises(KeyError):
        bus.client.call({}, "fail")
    second = next_look(watcher, first)
    (row,) = rows_of(second, first)
    assert (row.errors, row.new_errors) == (4, 1)
    assert row.rate == pytest.approx(6 / (uptime(second) - uptime(first)), rel=0.01)
    assert row.p50 is not None
    assert row.p99 is not None
    assert 0 < row.p50 <= row.p99 < EVENT_TIMEOUT
    third = next_look(watcher, second)
    (row,) = rows_of(third, second)
    assert (row.rate, row.p50, row.p99, row.new_errors) == (0.0, None, None, 0)
    (row,) = rows_of(third, None)
    assert (row.errors, row.new_errors) == (4, 4)


@pytest.mark.parametrize(("pid", "rate"), [(1, 1.0), (2, 0.5)])
def test_a_server_that_was_started_again_is_not_compared_with_the_one_before(pid: int, rate: float) -> None:
    """Its counts have begun at 0: the rate is the one since it was started."""

    def look(pid: int, uptime: float, ended: int) -> Look:
        threads = Busy(0, 64, 0)
        stats = Stats(uptime, [], 0, {"greet": Counts(finished=ended)}, Counts(), threads, None, 0)
        return Look(0.0, {"t": TopicSeen("t", [ServerSeen("one", answers=True, stats=stats, host="a", pid=pid)])})

    (row,) = rows_of(look(pid, 40.0, 20), look(1, 30.0, 10))
    assert row.rate == rate


def test_percentiles_are_those_between_two_looks() -> None:
    """Of a hundred quick ones and a slow one, only what came later counts."""

    class Timed:
        def __init__(self, *durations: tuple[float, int]) -> None:
            self.durations = durations

    old: Any = Timed((0.001, 500), (9.0, 3))
    new: Any = Timed((0.001, 590), (0.5, 9), (9.0, 4))
    times = durations_between(old, new)
    assert (percentile(times, 0.5), percentile(times, 0.99), percentile(times, 1.0)) == (0.001, 0.5, 9.0)
    assert percentile(durations_between(new, new), 0.5) is None
    assert percentile(durations_between(None, new), 0.99) == 0.5


def test_it_sorts_by_what_is_asked_for(bus: Bus) -> None:
    """The highest comes first; a server without a value last.

    Each server says how long its own requests run, at the time when it answers. Answers come within the timeout, so a
    request that is older by more than that is always the older one.
    """
    for name in ("a", "b", "c"):
        bus.serve(name)
    bus.freeze("d")
    tasks = bus.occupy("b", 2)
    bus.let_run_for("b", 2.1)
    tasks += bus.occupy("c", 1)
    for key in ("running", "oldest"):
        result = bus.run("top", "hello", "--once", "--sort", key, *QUICK)
        names = [line.split()[1] for line in result.stdout.splitlines()[1:5]]
        assert names == ["b", "c", "a", "d"], result.output
    result = bus.run("top", "hello", "--once", "--sort", "size")
    assert result.exit_code == Code.USAGE
    bus.service.go_on.set()
    gather(tasks)


def test_without_topics_it_shows_all_that_have_servers(bus: Bus) -> None:
    """If the message system can list them."""
    bus.serve("one")
    bus.serve("one", topic="another")
    document = bus.document("top", "--once", *QUICK)
    assert [topic["topic"] for topic in document["topics"]] == ["another", "hello"]


def test_without_topics_it_says_that_they_are_to_be_named(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the message system cannot list them, as RabbitMQ."""
    monkeypatch.setattr(type(bus.transport.driver), "known_servers", lambda _driver: None)
    for command in (["top", "--once"], ["top"], ["stuck"]):
        result = bus.run(*command)
        assert result.exit_code == Code.USAGE, result.output
        assert "name the topics: the in-memory message system" in result.stderr
        assert "cannot list topics" in result.stderr


@pytest.mark.parametrize("named", [True, False])
def test_a_message_system_that_cannot_list_servers_at_present(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """As Redis may be away, where nodes of ZeroMQ meet: it is an error only if no topic is named."""
    bus.serve("one")
    monkeypatch.setattr(type(bus.transport.driver), "known_servers", lambda _driver: Future())
    monkeypatch.setattr("msgbus.cli.looking.INSPECT_TIMEOUT", 0.1)
    result = bus.run("top", *["hello"][:named], "--once", *QUICK)
    if named:
        assert result.exit_code == 0, result.output
        assert "hello  one" in result.stdout
    else:
        assert result.exit_code == Code.AWAY
        assert "the servers cannot be listed: no answer in 0.1 s" in result.stderr


def test_a_server_without_stats_is_shown_with_what_is_known(bus: Bus) -> None:
    """It is older, or its option is off: a ping says who it is. Where pings are off too, it has a name."""
    bus.serve("one", rpc_built_in_methods=[])
    bus.serve("two", rpc_built_in_methods=[], rpc_ping_enabled=False)
    found = servers(bus.document("top", "hello", "--once", *QUICK))
    assert (found["one"]["state"], found["two"]["state"]) == ("no stats", "no stats")
    assert "its option rpc_built_in_methods has no stats, or its msgbus is older" in found["one"]["why"]
    assert found["one"]["host"]
    assert found["one"]["version"]
    assert found["two"]["host"] is None
    result = bus.run("top", "hello", "--once", *QUICK)
    assert ["hello", "two", "no", "stats"] in [line.split() for line in result.stdout.splitlines()]


def test_stats_that_cannot_be_read_are_none(bus: Bus) -> None:
    """A server may answer anything."""

    class Odd:
        target = Target(namespace="msgbus")

        def __init__(self) -> None:
            self.answer: Any = None

        def stats(self, _ctxt: object) -> Any:
            return self.answer

    odd = Odd()
    transport = new_transport(bus.url)
    server = get_rpc_server(transport, Target(topic="hello", server="one"), [odd])
    server.start(EVENT_TIMEOUT)
    for answer in (None, 5, {}, {"host": {"\x1b": 1}, "pid": "x", "uptime": "long"}):
        odd.answer = answer
        result = bus.run("top", "hello", "--once", *QUICK)
        assert result.exit_code == 0, result.output
        assert "no stats" in result.stdout
        assert "\x1b" not in result.stdout
        (found,) = bus.document("top", "hello", "--once", *QUICK)["topics"][0]["servers"]
        assert "its stats cannot be read" in found["why"]
    server.wait(EVENT_TIMEOUT)
    transport.cleanup()


def test_a_server_that_does_not_answer_is_shown(bus: Bus) -> None:
    """By its name if that is known; otherwise it is counted."""
    bus.serve("one")
    bus.freeze("two")
    document = bus.document("top", "hello", "--once", *QUICK)
    assert servers(document)["two"]["state"] == "no answer"
    assert (document["topics"][0]["known"], document["topics"][0]["answered"]) == (2, 1)


def test_a_server_whose_name_is_unknown_is_counted(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on RabbitMQ, which does not list servers."""
    monkeypatch.setattr(type(bus.transport.driver), "known_servers", lambda _driver: None)
    bus.serve("one")
    bus.freeze("two")
    document = bus.document("top", "hello", "--once", *QUICK)
    assert list(servers(document)) == ["one"]
    assert document["topics"][0]["unnamed"] == 1
    result = bus.run("top", "hello", "--once", *QUICK)
    assert ["hello", "(1", "without", "a", "name)", "no", "answer"] in [
        line.split() for line in result.stdout.splitlines()
    ]


def test_no_server_is_exit_code_3(bus: Bus) -> None:
    """As for a ping."""
    for command in (["top", "nobody", "--once", *QUICK], ["top", "--once", *QUICK]):
        result = bus.run(*command)
        assert result.exit_code == Code.NO_SERVER, result.output
        assert "MessageUndeliverable: no server" in result.stderr


def test_dead_letters_and_own_queues_are_shown(bus: Bus) -> None:
    """What waits for one server alone has a line of its own."""
    server = bus.serve("one", rpc_cast_retries=0)
    bus.client.prepare(delivery="at_least_once").cast({}, "fail")
    until(lambda: bus.document("top", "hello", "--once", *QUICK)["topics"][0]["dead_letters"] == 1, "a dead letter")
    server.wait(EVENT_TIMEOUT)
    bus.client.prepare(server="one").cast({}, "greet")
    look = Watcher(bus.transport, ["hello"], timeout=0.5, servers=["one"]).look()
    shown = [line.split() for line in lines_of(look)]
    assert ["hello", "all", "servers", "0", "0", "1"] in shown
    assert ["hello", "server", "one", "1", "0"] in shown


def lines_of(look: Look) -> list[str]:
    """What is shown for people."""
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(*_tables(look, rows_of(look, None)), sep="\n")
    return console.export_text().splitlines()


# Live


def start(bus_of_its_own: str, *args: str) -> list[str]:
    """A command that shows the servers of a process of its own, which it starts first."""
    code = (
        "import sys, msgbus\n"
        "from msgbus.cli import main\n"
        "from tests.cli.watched import Service\n"
        "from tests.support import new_transport\n"
        f"server = msgbus.get_rpc_server(new_transport({bus_of_its_own!r}),"
        " msgbus.Target(topic='hello', server='one'), [Service()])\n"
        "server.start(20)\n"
        "main()\n"
    )
    return [sys.executable, "-c", code, "top", "--url", bus_of_its_own, "--interval", "0.1", *args]


def test_on_a_terminal_each_look_replaces_the_one_before() -> None:
    """Until Ctrl-C, which ends it with 0; the cursor stays where it can be seen."""
    with Terminal(start("fake://top-live", "hello"), os.environ, cwd=ROOT) as terminal:
        terminal.wait_for("Ctrl-C ends this", times=3)
        assert terminal.finish(signal.SIGINT) == 0
    assert [line.split()[:2] for line in terminal.screen[1:3]] == [["topic", "server"], ["hello", "one"]]
    assert sum("server" in line for line in terminal.screen) <= 3
    assert "\x1b[?25l" not in terminal.raw


def test_live_json_is_a_line_for_each_look() -> None:
    """The first one has rates since the server's start; Ctrl-C ends it with 0."""
    process = subprocess.Popen(
        start("fake://top-lines", "hello", "--json"), stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        documents = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=EVENT_TIMEOUT)
        assert process.returncode == 0
    finally:
        process.kill()
    assert [document["topics"][0]["servers"][0]["server"] for document in documents] == ["one"] * 3
    assert documents[0]["seconds"] is None
    assert documents[1]["seconds"] > 0


def test_while_the_message_system_is_away_it_says_so_and_goes_on() -> None:
    """Lines of JSON then have an error."""
    url = "rabbit://u:secret@127.0.0.1:9/"
    command = [MSGBUS, "top", "hello", "--json", "--interval", "0.1", "--timeout", "0.3", "--url", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for _ in range(2):
            document = json.loads(process.stdout.readline())
            assert "Connection refused" in document["error"]
            assert "secret" not in document["error"]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=EVENT_TIMEOUT)
        assert process.returncode == 0
    finally:
        process.kill()
    result = subprocess.run([*command, "--once"], capture_output=True, text=True, check=False)
    assert (result.returncode, json.loads(result.stderr)["error"]) == (Code.AWAY, "TransportUnavailable")
