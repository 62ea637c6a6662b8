"""`msgbus bench`, in memory and over ZeroMQ. tests/functional/test_cli_bench.py has it with brokers."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from msgbus.cli import bench_clients, bench_rows, bench_service, own_servers
from msgbus.cli.bench_clients import Load
from msgbus.cli.bench_rows import NAMES, ROWS, Row, Stage
from msgbus.cli.errors import Code
from msgbus.conformance.waiting import until
from msgbus.drivers.fake import get_bus
from msgbus.exceptions import TransportBlocked
from tests.cli.test_cli import MSGBUS, fails, run
from tests.terminal import Terminal

SECONDS = 60
"""How long a test waits for what takes a few seconds on a machine that does nothing else."""
ROW_NAMES = ["call", "call_concurrent", "cast", "fanout", "stream"]


@pytest.fixture(autouse=True)
def _no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSGBUS_URL", raising=False)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may be busy."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(bench_rows, "WARM_UP", 0.01)


def rows_of(stdout: str) -> dict[str, dict[str, Any]]:
    """The rows that --json prints, by name."""
    return {row["name"]: row for row in map(json.loads, stdout.splitlines())}


def added_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    """The threads of msgbus that were not there before."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("msgbus") and thread not in before]


def check_figures(row: dict[str, Any]) -> None:
    """Check that the figures of a row fit each other."""
    assert row["operations"] >= 1
    assert row["seconds"] > 0
    assert row["per_second"] == pytest.approx(row["operations"] / row["seconds"])
    if row["name"] == "stream":
        assert row["p50"] is row["p95"] is row["p99"] is None
    else:
        assert 0 < row["p50"] <= row["p95"] <= row["p99"]
    assert row["client_cpu"] > 0
    assert row["client_memory"] > 1_000_000
    if row["one_process"]:
        assert row["servers_cpu"] is row["server_memory"] is None
    else:
        assert row["servers_cpu"] > 0
        assert row["server_memory"] > 1_000_000


# In memory


def test_bench_prints_each_row_as_json() -> None:
    """Each row has its rate, its times, what it cost, and what was measured; no thread is left."""
    before = set(threading.enumerate())
    result = run("bench", "--json", "--seconds", "0.05", "--url", "fake://test-bench-json/")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = rows_of(result.stdout)
    assert list(rows) == ROW_NAMES
    for row in rows.values():
        check_figures(row)
        assert row["one_process"]
        assert row["size"] == 100
        assert row["message_system"] == "the in-memory message system fake://test-bench-json/"
        assert row["topic"].startswith("msgbus-bench-")
        assert row["busy"] is False
    assert rows["call_concurrent"]["operations"] >= 32
    until(lambda: not added_threads(before), "the end of its threads")


@pytest.mark.parametrize(
    ("client", "server"), [("asyncio", "threading"), ("threading", "asyncio"), ("asyncio", "asyncio")]
)
def test_bench_measures_asyncio(client: str, server: str) -> None:
    """Callers may be tasks, and methods async: the same rows, which say what was measured; no thread is left."""
    url = f"fake://test-bench-{client}-{server}/"
    args = ("bench", "--seconds", "0.05", "--client", client, "--server", server, "--url", url)
    before = set(threading.enumerate())
    result = run(*args, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = rows_of(result.stdout)
    assert list(rows) == ROW_NAMES
    for row in rows.values():
        check_figures(row)
        assert (row["client"], row["server"]) == (client, server)
    assert rows["call_concurrent"]["operations"] >= 32
    until(lambda: not added_threads(before), "the end of its threads")
    result = run(*args)
    assert (result.exit_code, result.stderr) == (0, "")
    said = result.stdout.splitlines()[0]
    assert ("A client on asyncio and" in said) == (client == "asyncio")
    assert ("three servers with async methods, " in said) == (server == "asyncio")


@pytest.mark.parametrize("client", ["threading", "asyncio"])
def test_bench_says_that_threads_are_the_default(client: str) -> None:
    """Of the client and of the servers, in the lines of JSON too."""
    url = f"fake://test-bench-default-{client}/"
    result = run("bench", "--json", "--seconds", "0.01", "--client", client, "--url", url)
    assert {(row["client"], row["server"]) for row in rows_of(result.stdout).values()} == {(client, "threading")}


def test_bench_with_tasks_passes_errors_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task of the client meets is the error of the command, as what a thread meets."""

    class Wrong(bench_service.AsyncService):
        async def echo(self, _ctxt: object, payload: str) -> str:
            return payload[1:]

    monkeypatch.setattr(bench_service, "AsyncService", Wrong)
    args = ("--client", "asyncio", "--server", "asyncio", "--url", "fake://test-bench-wrong-asyncio/")
    before = set(threading.enumerate())
    result = run("bench", "--seconds", "0.01", *args)
    assert result.exit_code == Code.REMOTE
    assert "what a server answered is not what was sent" in result.stderr
    until(lambda: not added_threads(before), "the end of its threads")


def test_bench_prints_a_table_for_people() -> None:
    """It says that all of it is one process, and has a line for each row."""
    result = run("bench", "--seconds", "0.02", "--url", "fake://test-bench-people/")
    assert (result.exit_code, result.stderr) == (0, "")
    first, headings, *lines = result.stdout.splitlines()
    assert first.startswith("A client and three servers, all in this process, of the topic msgbus-bench-")
    assert first.endswith("100 bytes in a message, 0.02 s for each row.")
    assert headings.split() == ["rate", "p50", "p95", "p99", "CPU", "memory"]
    for line, row in zip(lines, ROWS, strict=True):
        assert line.startswith(row.title)
        assert f" {row.unit}/s " in line
        assert line.endswith(" MB")


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_bench_sends_messages_of_the_size_that_is_asked_for(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing to large."""
    came = set()

    class Measuring(bench_service.Service):
        def note(self, ctxt: object, payload: str) -> None:
            came.add(len(payload))
            super().note(ctxt, payload)

    monkeypatch.setattr(bench_service, "Service", Measuring)
    url = f"fake://test-bench-size-{size}/"
    result = run("bench", "--json", "--seconds", "0.01", "--size", str(size), "--url", url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert {row["size"] for row in rows_of(result.stdout).values()} == came == {size}


@pytest.mark.parametrize(
    "args",
    [
        ("--seconds", "0"),
        ("--seconds", "-1"),
        ("--seconds", "600.1"),
        ("--seconds", "nan"),
        ("--size", "-1"),
        ("--size", "1073741825"),
        ("--client", "gevent"),
        ("--server", "threads"),
    ],
)
def test_bench_refuses_sizes_and_times_that_make_no_sense(args: tuple[str, ...]) -> None:
    """Nothing is started."""
    assert "Invalid value for" in fails(run("bench", "--url", "fake://", *args), Code.USAGE)


@pytest.mark.parametrize(("above", "warned"), [(0.0, False), (0.1, True)])
def test_bench_warns_if_the_machine_is_busy(above: float, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """If more wants to run than there are processors; a program finds it in the rows, and stderr has only errors."""
    monkeypatch.setattr(os, "getloadavg", lambda: (4.0 + above, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    args = ("bench", "--seconds", "0.01", "--url", "fake://test-bench-busy/")
    line = "msgbus bench: warning: this machine is busy (load 4.1, 4 processors), so the figures mean little\n"
    assert run(*args).stderr == (line if warned else "")
    result = run(*args, "--json")
    assert result.stderr == ""
    assert {row["busy"] for row in rows_of(result.stdout).values()} == {warned}


def test_bench_of_messages_that_are_too_large_is_wrong_usage() -> None:
    """As for every command."""
    result = run("bench", "--size", "2000", "--url", "fake://test-bench-large/?max_message_size=1024")
    assert "MessageTooLarge" in fails(result, Code.USAGE)


def test_bench_of_a_message_system_that_is_away_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so before it starts servers, which would all say the same."""
    url = "fake://test-bench-blocked/"
    bus = get_bus(url)
    bus.fail_next(TransportBlocked("it is full"))
    monkeypatch.setattr(own_servers, "start_here", None)
    result = run("bench", "--url", url)
    text = fails(result, Code.AWAY)
    assert text.startswith("msgbus bench: TransportBlocked: ")
    assert text.endswith(f" over {url}: it is full")


def test_bench_says_that_the_message_system_went_away_and_prints_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever became of the call that met it: the exit code is that of a message system that is away."""
    url = "fake://test-bench-away/"
    bus = get_bus(url)

    def hang(stage: Stage) -> Load:
        bus.pause()
        stage.client.call({}, "echo", payload="")
        raise AssertionError("it answers")

    monkeypatch.setattr(bench_clients, "TIMEOUT", 0.5)
    monkeypatch.setattr(bench_rows, "PROBE", 0.2)
    monkeypatch.setattr(bench_rows, "ROWS", (ROWS[0], Row("hang", "it hangs", "calls", hang), ROWS[1]))
    try:
        result = run("bench", "--seconds", "0.01", "--url", url)
    finally:
        bus.resume()
    assert result.exit_code == Code.AWAY, result.output
    assert result.stderr.startswith("msgbus bench: TransportUnavailable: ")
    assert result.stderr.count("\n") == 1
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith(ROWS[0].title)


def test_bench_passes_an_error_on_where_the_message_system_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that took too long is just that."""

    def slow(stage: Stage) -> Load:
        stage.client.prepare(timeout=0.01).call({}, "sleep")
        raise AssertionError("it answers")

    class Slow(bench_service.Service):
        def sleep(self, _ctxt: object) -> None:
            threading.Event().wait(0.3)

    monkeypatch.setattr(bench_service, "Service", Slow)
    monkeypatch.setattr(bench_rows, "ROWS", (Row("slow", "it is slow", "calls", slow),))
    result = run("bench", "--seconds", "0.01", "--url", "fake://test-bench-slow/")
    assert result.exit_code == Code.TIMEOUT
    assert result.stderr.startswith("msgbus bench: MessagingTimeout: 'sleep' on topic ")


def test_bench_notices_casts_that_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of casts that nobody runs would be worth nothing."""

    class Forgetful(bench_service.Service):
        def note(self, ctxt: object, payload: str) -> None:
            pass

    monkeypatch.setattr(bench_service, "Service", Forgetful)
    monkeypatch.setattr(bench_rows, "TIMEOUT", 0.3)
    monkeypatch.setattr(bench_rows, "ROWS", ROWS[2:])
    result = run("bench", "--seconds", "0.01", "--url", "fake://test-bench-forgetful/")
    assert result.exit_code == Code.TIMEOUT
    assert "the servers have run 0 of " in result.stderr


def test_bench_notices_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back has to be what was sent."""

    class Wrong(bench_service.Service):
        def echo(self, _ctxt: object, payload: str) -> str:
            return payload[1:]

    monkeypatch.setattr(bench_service, "Service", Wrong)
    result = run("bench", "--seconds", "0.01", "--url", "fake://test-bench-wrong/")
    assert result.exit_code == Code.REMOTE
    assert "what a server answered is not what was sent" in result.stderr


# With processes, over ZeroMQ


@pytest.fixture
def run_dir() -> Iterator[pathlib.Path]:
    """Where the nodes find each other: a short name, since a Unix socket's path has at most 107 bytes."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mb"))
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def started(url: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A bench with processes."""
    command = [MSGBUS, "bench", "--json", *args]
    with subprocess.Popen(
        command, env={**os.environ, "MSGBUS_URL": url}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # A thread that has ended meanwhile.
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def wait_for_end(pids: list[int]) -> None:
    """Return when all these processes have ended."""
    until(lambda: not [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()], "they have ended", SECONDS)


def wait_until_nothing_is_left(pids: list[int], folder: pathlib.Path) -> None:
    """The servers have ended. ZeroMQ keeps one file, by which nodes see that others have come."""
    assert len(pids) == len(NAMES)
    wait_for_end(pids)
    until(lambda: set(os.listdir(folder)) <= {"changes"}, "no file of a node is left", SECONDS)


def test_bench_measures_processes_and_leaves_nothing(run_dir: pathlib.Path) -> None:
    """The servers are processes, whose costs are known apart from the client's."""
    with started(f"zmq://{run_dir}", "--seconds", "0.2") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        pids = children_of(process.pid)
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stderr) == (0, "")
    rows = rows_of(first + stdout)
    assert list(rows) == ROW_NAMES
    for row in rows.values():
        check_figures(row)
        assert not row["one_process"]
    wait_until_nothing_is_left(pids, run_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_bench_that_is_ended_leaves_nothing(number: signal.Signals, run_dir: pathlib.Path) -> None:
    """However it ends, its servers end too. Ctrl-C is no error that would be printed."""
    with started(f"zmq://{run_dir}", "--seconds", "30") as process:
        until(lambda: len(children_of(process.pid)) == len(NAMES), "the servers are there", SECONDS)
        pids = children_of(process.pid)
        until(lambda: len([name for name in os.listdir(run_dir) if name != "changes"]) > 3, "they serve", SECONDS)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert (stdout, stderr.strip()) == ("", "")
    if number in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        # What this process itself had in the folder, the next node removes: it could not.
        with started(f"zmq://{run_dir}", "--seconds", "0.01") as other:
            other.communicate(timeout=SECONDS)
    wait_until_nothing_is_left(pids, run_dir)


def test_bench_whose_server_is_killed_says_which(run_dir: pathlib.Path) -> None:
    """At once, and not after the timeout of the calls that it had; the rows that were done are there."""
    with started(f"zmq://{run_dir}", "--seconds", "1") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        pids = children_of(process.pid)
        os.kill(pids[1], signal.SIGKILL)
        _, stderr = process.communicate(timeout=SECONDS)
    assert first["name"] == "call"
    error = json.loads(stderr)
    assert (process.returncode, error["error"]) == (Code.TIMEOUT, "ServerLost")
    assert f"(process {pids[1]}) was ended by signal 9 while it was measured" in error["message"]
    wait_for_end(pids)


def test_bench_shows_its_progress_on_a_terminal(run_dir: pathlib.Path) -> None:
    """After two seconds it says which row is measured; at the end only the table stays."""
    command = [MSGBUS, "bench", "--seconds", "2.7", "--url", f"zmq://{run_dir}"]
    with Terminal(command, dict(os.environ)) as terminal:
        terminal.wait_for("measuring 1 of 5: calls, one caller")
        assert terminal.finish(signal.SIGINT) == 130
    assert "measuring" not in " ".join(terminal.screen)


def test_ctrl_c_while_threads_are_started_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that runs already is waited for. That the others were never started is no error."""
    threads = bench_clients.Threads({})
    begun = threading.Event()
    start = threading.Thread.start

    def work() -> None:
        begun.set()
        threads.stopped.wait()

    def start_one(thread: threading.Thread) -> None:
        if begun.is_set():
            raise KeyboardInterrupt
        start(thread)
        begun.wait()

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(KeyboardInterrupt):
        threads.run(work, 3)
    threads.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("msgbus-bench-")]
