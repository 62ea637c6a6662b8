"""`msgbus stuck` and `msgbus top` where something is wrong, with real processes."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from msgbus.conformance.waiting import until
from tests.functional.brokers.processes import send_signal
from tests.functional.test_cli import MSGBUS, SECONDS, Bench, Server

PATIENT = ("--timeout", "20")
"""Where all servers answer."""
BRIEF = ("--timeout", "3", "--interval", "1")
"""Where one does not, and is waited for."""


@pytest.fixture(params=["zmq", "rabbitmq_310"])
def bench(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Bench]:
    """A topic on each message system in turn."""
    (tmp_path / "one-thread.conf").write_text("[DEFAULT]\nexecutor_thread_pool_size = 1\n")
    with contextlib.ExitStack() as cleanup:
        url = "zmq://" if request.param == "zmq" else request.getfixturevalue(request.param).url
        made = Bench(tmp_path, url, cleanup)
        made.env["XDG_RUNTIME_DIR"] = str(tmp_path)
        yield made


def serve(bench: Bench, name: str) -> Server:
    """Start a server with one thread."""
    return bench.serve("--server", name, "--config-file", "one-thread.conf")


def lists_servers(bench: Bench) -> bool:
    """Whether the message system knows the names of servers."""
    return bench.env["MSGBUS_URL"] == "zmq://"


def stuck(bench: Bench, *args: str) -> list[dict[str, Any]]:
    """What is stuck. The exit code says whether anything is."""
    result = bench.run("stuck", "--json", *args)
    assert result.stderr == ""
    found: list[dict[str, Any]] = json.loads(result.stdout)["stuck"]
    assert result.returncode == (3 if found else 0)
    return found


def kinds(found: list[dict[str, Any]]) -> set[tuple[str, str | None]]:
    """The kind of each, and the server."""
    return {(one["kind"], one.get("server")) for one in found}


def test_frozen_busy_and_stopped_servers_are_told_apart(bench: Bench) -> None:
    """Each is named as what it is, while a third one is well; and afterwards nothing is stuck."""
    servers = {name: serve(bench, name) for name in ("well", "busy", "frozen", "stopped")}
    result = bench.run("stuck", *PATIENT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"nothing is stuck: 4 servers of {bench.topic} answered\n"
    assert servers["stopped"].stop() == 0
    path, go_on = bench.gate()
    bench.start("call", bench.topic, "wait_for", f"path={path}", "--server", "busy")
    servers["busy"].wait_for("waiting")
    assert kinds(stuck(bench, *PATIENT)) == {("busy", "busy")}
    send_signal(servers["frozen"].process.pid, signal.SIGSTOP)
    found = stuck(bench, *BRIEF)
    assert kinds(found) == {("busy", "busy"), ("frozen", "frozen" if lists_servers(bench) else None)}
    names = [word for name in servers for word in ("--server", name)]
    assert kinds(stuck(bench, *BRIEF, *names)) == {("busy", "busy"), ("frozen", "frozen"), ("stopped", "stopped")}
    (request,) = [one for one in stuck(bench, *BRIEF, "--longer-than", "1") if one["kind"] == "long_request"]
    assert (request["server"], request["method"], request["count"]) == ("busy", "wait_for", 1)
    go_on()
    servers["frozen"].process.send_signal(signal.SIGCONT)
    assert stuck(bench, *PATIENT) == []


def test_a_server_that_was_killed_is_no_frozen_one(bench: Bench) -> None:
    """The message system counts it no more, however it has ended."""
    serve(bench, "one")
    two = serve(bench, "two")
    two.process.kill()
    two.process.wait()
    until(lambda: stuck(bench, *PATIENT) == [], "its end is known", SECONDS)
    assert kinds(stuck(bench, *PATIENT, "--server", "two")) == {("stopped", "two")}


def test_a_topic_whose_servers_have_ended_is_named(bench: Bench) -> None:
    """With what waits in its queue, where the message system stores that."""
    assert serve(bench, "one").stop() == 0
    assert kinds(stuck(bench, *BRIEF)) == {("no_server", None)}
    if lists_servers(bench):
        return  # It stores nothing.
    for _ in range(3):
        assert bench.run("cast", "note", "text=x").returncode == 0
    (found,) = stuck(bench, *BRIEF)
    assert (found["kind"], found["count"]) == ("no_consumers", 3)


def test_top_shows_each_as_it_is(bench: Bench) -> None:
    """The busy one with what it runs; the frozen one by its name, or by its number."""
    servers = {name: serve(bench, name) for name in ("busy", "frozen", "well")}
    path, go_on = bench.gate()
    bench.start("call", bench.topic, "wait_for", f"path={path}", "--server", "busy")
    servers["busy"].wait_for("waiting")
    assert bench.run("call", "greet", "name=Ada", "--server", "well").returncode == 0
    send_signal(servers["frozen"].process.pid, signal.SIGSTOP)
    result = bench.run("top", "--once", "--json", *BRIEF)
    assert (result.returncode, result.stderr) == (0, "")
    (topic,) = json.loads(result.stdout)["topics"]
    states = {server["server"]: server["state"] for server in topic["servers"]}
    named = {"frozen": "no answer"} if lists_servers(bench) else {}
    assert states == {"busy": "busy", "well": "ok", **named}
    assert (topic["known"], topic["answered"], topic["unnamed"]) == (3, 2, 0 if named else 1)
    busy = topic["servers"][0]
    assert (busy["oldest"]["method"], busy["running"], busy["pid"]) == ("wait_for", 1, servers["busy"].process.pid)
    go_on()


def test_without_a_topic_all_are_looked_at_where_that_can_be(bench: Bench) -> None:
    """Where the message system does not list them, the error says to name topics."""
    serve(bench, "one")
    for verb, *args in (["stuck", *PATIENT], ["top", "--once", *PATIENT]):
        result = subprocess.run(
            [MSGBUS, verb, *args], env=bench.env, capture_output=True, text=True, check=False, timeout=SECONDS
        )
        if lists_servers(bench):
            assert result.returncode == 0, result.stderr
            assert bench.topic in result.stdout
        else:
            assert result.returncode == 2, result.stderr
            assert f"msgbus {verb}: name the topics: RabbitMQ at 127.0.0.1:" in result.stderr
            assert "cannot list topics" in result.stderr
