"""The command line with real processes and RabbitMQ."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.functional.brokers.processes import poll
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.terminal import Terminal

MSGBUS = str(pathlib.Path(sys.executable).parent / "msgbus")
SECONDS = 30

SERVICE = """
import os
import pathlib

class Hello:
    def greet(self, ctxt, name):
        return f"Hello, {name}"

    def fail(self, ctxt):
        raise KeyError("no such thing")

    def note(self, ctxt, text):
        print("noted", text, flush=True)

    def wait_for(self, ctxt, path):
        # What the test opens for writing when this may go on.
        print("waiting", flush=True)
        pathlib.Path(path).read_text()
        return "waited"

    def count(self, ctxt, to, path=None):
        try:
            for number in range(1, to + 1):
                yield number
                if path:
                    pathlib.Path(path).read_text()
        finally:
            print("closed", flush=True)
"""


class Server:
    """A `msgbus serve`, and what it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def wait_for(self, text: str) -> str:
        """The next line with `text` in it; those before are skipped."""
        assert self.process.stdout is not None
        seen = []
        for line in iter(self.process.stdout.readline, ""):
            seen.append(line)
            if text in line:
                return line.strip()
        raise AssertionError(f"it ended without {text!r}: {''.join(seen)}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


class Bench:
    """A folder with a service, a RabbitMQ and a topic of its own, and what was started for a test."""

    def __init__(self, folder: pathlib.Path, url: str, cleanup: contextlib.ExitStack) -> None:
        self.folder = folder
        self.topic = f"cli-{uuid.uuid4().hex[:8]}"
        self.env = {**os.environ, "MSGBUS_URL": url, "PYTHONUNBUFFERED": ""}
        self._cleanup = cleanup
        (folder / "hello.py").write_text(SERVICE)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start the command."""
        process = subprocess.Popen(
            [MSGBUS, *args],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def end() -> None:
            process.kill()
            process.communicate()

        self._cleanup.callback(end)
        return process

    def serve(self, *args: str) -> Server:
        """Start a server, and return when it is ready."""
        server = Server(self.start("serve", "hello:Hello", "--topic", self.topic, *args))
        server.wait_for("is ready")
        return server

    def run(self, verb: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a verb on the topic."""
        return subprocess.run(
            [MSGBUS, verb, self.topic, *args],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    def gate(self) -> tuple[str, Callable[[], None]]:
        """A path that a handler reads from, and what lets one reader go on."""
        path = self.folder / f"gate-{uuid.uuid4().hex[:8]}"
        os.mkfifo(path)
        return str(path), lambda: _open_gate(path)


def _open_gate(path: pathlib.Path) -> None:
    # Opening it waits for the reader; a failing test must not wait for ever for one that is not there.
    opener = threading.Thread(target=lambda: path.write_text("go"), daemon=True)
    opener.start()
    opener.join(SECONDS)
    assert not opener.is_alive(), "nobody waits at the gate"


@pytest.fixture
def bench(rabbitmq: RabbitMQ, tmp_path: pathlib.Path) -> Iterator[Bench]:
    """What most tests here need."""
    with contextlib.ExitStack() as cleanup:
        yield Bench(tmp_path, rabbitmq.url, cleanup)


def test_serve_says_when_it_is_ready_and_where(bench: Bench) -> None:
    """The server's name (host name and pid by default), the topic, RabbitMQ's address, and what to type next."""
    process = bench.start("serve", "hello:Hello", "--topic", bench.topic)
    server = Server(process)
    line = server.wait_for("")
    assert f"-{process.pid} of topic {bench.topic} is ready on RabbitMQ at 127.0.0.1:" in line
    assert server.wait_for("") == "it serves hello:Hello: greet, fail, note, wait_for, count"
    command = f"msgbus call {bench.topic} greet name=... (with MSGBUS_URL set as here)"
    assert server.wait_for("") == f"to call it, type in another terminal: {command}"
    assert server.wait_for("") == "to stop it: Ctrl-C here, or SIGTERM"
    process.terminate()
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (0, "")
    assert stderr == "stopping: running methods have 60 s to finish; a second signal ends it at once\n"


def test_call_prints_the_result_as_json(bench: Bench) -> None:
    """Any server, or a certain one; a generator's last value."""
    bench.serve("--server", "one")
    for args in ((), ("--server", "one"), ("--delivery", "at_least_once"), ("--timeout", "10")):
        result = bench.run("call", "greet", "name=Ada", *args)
        assert (result.returncode, result.stdout, result.stderr) == (0, '"Hello, Ada"\n', "")
    assert bench.run("call", "count", "to=3").stdout == "3\n"


def test_fanout_cast_reaches_every_server_and_cast_one(bench: Bench) -> None:
    """Both print nothing, and end when RabbitMQ has the request."""
    one, two = bench.serve("--server", "one"), bench.serve("--server", "two")
    result = bench.run("fanout-cast", "note", "text=all")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    for server in (one, two):
        assert server.wait_for("noted") == "noted all"
    assert bench.run("cast", "note", "text=you", "--server", "two").returncode == 0
    assert two.wait_for("noted") == "noted you"


def test_multicall_prints_each_item_as_it_arrives(bench: Bench) -> None:
    """The first item is printed before the generator continues."""
    bench.serve()
    path, go_on = bench.gate()
    process = bench.start("multicall", bench.topic, "count", "to=2", f"path={path}")
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    go_on()
    assert process.stdout.readline() == "2\n"
    go_on()
    assert process.wait(SECONDS) == 0


def test_multicall_that_is_interrupted_closes_the_generator(bench: Bench) -> None:
    """By Ctrl-C, and by a reader of its output who goes away."""
    server = bench.serve()
    process = bench.start("multicall", bench.topic, "count", "to=1000000")
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGINT
    server.wait_for("closed")

    process = bench.start("multicall", bench.topic, "count", "to=1000000")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "1\n"
    process.stdout.close()
    server.wait_for("closed")
    assert process.stderr.read() == ""
    assert process.wait(SECONDS) == 128 + signal.SIGPIPE


def test_ping_lists_all_servers(bench: Bench) -> None:
    """Those of the topic, or the one that is named."""
    bench.serve("--server", "one")
    bench.serve("--server", "two")
    found = [json.loads(line) for line in bench.run("ping", "--json", "--timeout", "3").stdout.splitlines()]
    assert [answer["server"] for answer in found] == ["one", "two"]
    assert [line.split()[0] for line in bench.run("ping", "--server", "two").stdout.splitlines()] == ["server", "two"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_lets_a_running_handler_finish_and_answer(bench: Bench, number: signal.Signals) -> None:
    """The server takes nothing new, the caller gets its answer, and the server ends with 0."""
    server = bench.serve("--server", "one", "--log-level", "info")
    path, go_on = bench.gate()
    call = bench.start("call", bench.topic, "wait_for", f"path={path}")
    server.wait_for("waiting")
    server.process.send_signal(number)
    assert server.process.stderr is not None
    while "stopping" not in (line := server.process.stderr.readline()):
        assert line, "it ended"
    assert bench.run("ping", "--server", "one", "--timeout", "0.5").returncode != 0
    assert server.process.poll() is None
    go_on()
    assert call.communicate(timeout=SECONDS) == ('"waited"\n', "")
    assert call.returncode == 0
    assert server.process.wait(SECONDS) == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGHUP),
        (signal.SIGINT, signal.SIGHUP),
    ],
)
def test_second_signal_ends_the_server_at_once(bench: Bench, first: signal.Signals, second: signal.Signals) -> None:
    """It does not wait for the running handler."""
    server = bench.serve("--log-level", "info")
    path, _ = bench.gate()
    bench.start("call", bench.topic, "wait_for", f"path={path}")
    server.wait_for("waiting")
    server.process.send_signal(first)
    assert server.process.stderr is not None
    while "stopping" not in (line := server.process.stderr.readline()):
        assert line, "it ended"
    assert server.stop(second) == 128 + second


def test_drain_bounds_the_wait_for_handlers(bench: Bench) -> None:
    """Requests that run longer are abandoned, with a line in the log."""
    server = bench.serve("--drain", "0.2")
    path, _ = bench.gate()
    bench.start("call", bench.topic, "wait_for", f"path={path}")
    server.wait_for("waiting")
    assert server.stop() == 0
    assert server.process.stderr is not None
    assert "1 requests were abandoned" in server.process.stderr.read()


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["fail"], 1, "the server raised KeyError: 'no such thing'"),
        (["nothing"], 1, "nothing"),
        (["greet", "nme=Ada"], 1, "nme"),
        (["greet", "name=Ada", "--version", "7.0"], 1, "7.0"),
        (["greet", "name=Ada", "--namespace", "other"], 1, ""),
        (["greet", "name=Ada", "--server", "none"], 3, "nobody listens"),
        (["greet", "name=Ada", "--exchange", "other"], 3, "nobody listens"),
        (["wait_for", "path=gate", "--timeout", "0.5"], 4, "no answer within 0.5 s"),
    ],
)
def test_error_is_one_line_and_an_exit_code(bench: Bench, args: list[str], code: int, text: str) -> None:
    """As the help says."""
    os.mkfifo(bench.folder / "gate")
    bench.serve("--server", "one")
    result = bench.run("call", *args)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("msgbus call: ")
    assert text in result.stderr


def test_debug_shows_the_traceback_of_the_server(bench: Bench) -> None:
    """From --debug and from --log-level debug."""
    bench.serve()
    for args in (["--debug"], ["--log-level", "debug"]):
        result = bench.run("call", "fail", *args)
        assert result.returncode == 1
        assert 'raise KeyError("no such thing")' in result.stderr


def test_message_system_that_is_away_is_exit_code_5(tmp_path: pathlib.Path) -> None:
    """Each command says in one line where it looked and why it failed."""
    (tmp_path / "hello.py").write_text(SERVICE)
    conf = tmp_path / "away.conf"
    # The port of the discard service: nobody listens there, and no process gets it by chance.
    conf.write_text("[DEFAULT]\ntransport_url = rabbit://guest:guest@127.0.0.1:9/\nrpc_response_timeout = 2\n")
    for args in (
        ["call", "away", "greet"],
        ["cast", "away", "greet"],
        ["fanout-cast", "away", "greet"],
        ["multicall", "away", "greet"],
        ["ping", "away"],
        ["serve", "hello:Hello", "--topic", "away", "--log-level", "error"],
    ):
        result = subprocess.run(
            [MSGBUS, *args, "--config-file", str(conf)],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "MSGBUS_URL"},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert (result.returncode, result.stdout) == (5, ""), result.stderr
        *before, last = result.stderr.splitlines()
        if "--log-level" not in args:
            assert "WARNING" in before[0], "it is seen at once that something is wrong"
        assert f"msgbus {args[0]}: TransportUnavailable: " in last
        assert "127.0.0.1:9" in result.stderr
        assert "Connection refused" in result.stderr


def test_unreachable_message_system_is_reported_once_as_json(tmp_path: pathlib.Path) -> None:
    """With --json, stderr has the error alone, as JSON."""
    (tmp_path / "away.conf").write_text("[DEFAULT]\nrpc_response_timeout = 2\n")
    command = [MSGBUS, "call", "away", "greet", "--json", "--url", "rabbit://guest:guest@127.0.0.1:9/"]
    result = subprocess.run(
        [*command, "--config-file", "away.conf"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert json.loads(result.stderr)["error"] == "TransportUnavailable"


def test_wrong_password_fails_at_once(rabbitmq: RabbitMQ) -> None:
    """Not after the timeout, and without the password."""
    url = rabbitmq.url.replace(":guest@", ":swordfish@")
    command = [MSGBUS, "call", "topic", "method", "--url", url]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert result.returncode == 5
    assert "log-in was refused" in result.stderr
    assert "swordfish" not in result.stderr
    assert result.stderr.count("\n") == 1, "the warning would say the same"


def test_call_waits_for_a_server_that_is_restarting(bench: Bench, rabbitmq: RabbitMQ) -> None:
    """The queue of the topic is there, its only server is not: the request waits for the next one."""
    assert bench.serve("--server", "one").stop() == 0
    call = bench.start("call", bench.topic, "greet", "name=Ada")
    queue = f"msgbus/{bench.topic}"
    poll(lambda: rabbitmq.queues()[queue]["messages"] == 1, SECONDS, "the request in the queue")
    bench.serve("--server", "one")
    assert call.communicate(timeout=SECONDS) == ('"Hello, Ada"\n', "")


def test_serve_says_in_json_when_it_is_ready(bench: Bench) -> None:
    """For a program that starts it and waits for it."""
    process = bench.start("serve", "hello:Hello", "--topic", bench.topic, "--server", "one", "--json")
    ready = json.loads(Server(process).wait_for(""))
    assert ready.pop("message_system").startswith("RabbitMQ at 127.0.0.1:")
    assert ready == {
        "state": "ready",
        "server": "one",
        "topic": bench.topic,
        "host": socket.gethostname(),
        "pid": process.pid,
    }


def test_json_result_and_error(bench: Bench) -> None:
    """The result is what it is without --json in a pipe; an error is a line of JSON on stderr."""
    bench.serve()
    assert bench.run("call", "greet", "name=Ada", "--json").stdout == '"Hello, Ada"\n'
    result = bench.run("multicall", "count", "to=2", "--json")
    assert (result.stdout, result.stderr) == ("1\n2\n", "")
    result = bench.run("call", "fail", "--json")
    assert (result.returncode, result.stdout) == (1, "")
    assert json.loads(result.stderr) == {
        "error": "KeyError",
        "message": "the server raised KeyError: 'no such thing'",
        "exit_code": 1,
        "remote": True,
    }


def test_progress_while_an_answer_or_an_item_is_awaited(bench: Bench) -> None:
    """It is shown on the terminal until the answer arrives; stdout gets only the answer."""
    bench.serve()
    path, go_on = bench.gate()
    with Terminal([MSGBUS, "call", bench.topic, "wait_for", f"path={path}"], bench.env) as terminal:
        terminal.wait_for("waiting for the answer of wait_for (")
        go_on()
        assert terminal.finish() == 0
    assert terminal.screen == ['"waited"']

    multicall = [MSGBUS, "multicall", bench.topic, "count", "to=2", f"path={path}"]
    with Terminal(multicall, bench.env, subprocess.PIPE) as terminal:
        assert terminal.process.stdout is not None
        terminal.wait_for("waiting for the next item of count (")
        go_on()
        assert terminal.process.stdout.read(4) == b"1\n2\n"
        go_on()
        assert terminal.finish() == 0
        assert terminal.process.stdout.read() == b""
        terminal.process.stdout.close()
    assert terminal.screen == []


def test_progress_of_a_server_that_connects_and_drains(bench: Bench) -> None:
    """Both may take long; a second signal ends it all the same."""
    serve = [MSGBUS, "serve", "hello:Hello", "--topic", bench.topic]
    with Terminal([*serve, "--url", "rabbit://u:secret@127.0.0.1:9/"], bench.env, cwd=bench.folder) as terminal:
        terminal.wait_for("connecting to rabbit://u:***@127.0.0.1:9/ (")
        assert terminal.finish(signal.SIGINT) == 0
    assert [line for line in terminal.screen if "WARNING" not in line] == []

    path, go_on = bench.gate()
    with Terminal(serve, bench.env, cwd=bench.folder) as terminal:
        terminal.wait_for("is ready")
        call = bench.start("call", bench.topic, "wait_for", f"path={path}")
        terminal.wait_for("waiting")
        terminal.process.terminate()
        terminal.wait_for("stopping: running methods have 60 s to finish (")
        go_on()
        assert terminal.finish() == 0
        assert call.communicate(timeout=SECONDS) == ('"waited"\n', "")
    assert [line.split()[0] for line in terminal.screen] == ["server", "it", "to", "to", "waiting", "stopping:"]


def queues_of(rabbitmq: RabbitMQ, topic: str) -> dict[str, Any]:
    """The queues that were made for a topic."""
    return {name: queue for name, queue in rabbitmq.queues().items() if topic in name}


def test_demo_starts_processes_and_leaves_nothing_for_ever(bench: Bench, rabbitmq: RabbitMQ) -> None:
    """All steps go well with servers that are processes, which then have ended; each queue is one that expires."""
    result = subprocess.run([MSGBUS, "demo", "--json"], env=bench.env, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    steps = {step["name"]: step for step in map(json.loads, result.stdout.splitlines())}
    assert all(step["ok"] for step in steps.values())
    pids = steps["start"]["outcome"]["servers"].values()
    assert len(set(pids)) == 3
    for pid in pids:
        assert not pathlib.Path(f"/proc/{pid}").exists()
    topic = steps["start"]["topic"]
    queues = queues_of(rabbitmq, topic)
    assert set(queues) == {f"msgbus/{topic}{server}" for server in ("", "/one", "/two", "/three")}
    assert {queue["arguments"]["x-expires"] for queue in queues.values()} == {60_000}


def test_demo_on_a_terminal_says_that_nothing_stays(bench: Bench) -> None:
    """For people; no log line is in between."""
    with Terminal([MSGBUS, "demo"], bench.env) as terminal:
        assert terminal.finish() == 0
    words = " ".join(terminal.screen)
    assert "The servers are processes: msgbus serve." in words
    assert "steps had the expected result. The message system removes the topic's queues" in words


def wait_for_no_fanouts(rabbitmq: RabbitMQ, topic: str) -> None:
    """RabbitMQ deletes the queue of a server's fanouts a moment after its last consumer has ended."""
    poll(
        lambda: not any("fanout" in name for name in queues_of(rabbitmq, topic)),
        SECONDS,
        "the end of the servers' queues for fanouts",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_demo_that_is_ended_stops_its_servers(bench: Bench, rabbitmq: RabbitMQ, number: signal.Signals) -> None:
    """However it ends. The password is not among the words of their commands, which everybody can see."""
    conf = bench.folder / "demo.conf"
    conf.write_text(f"[DEFAULT]\ntransport_url = {bench.env.pop('MSGBUS_URL')}\n")
    process = bench.start("demo", "--json", "--config-file", str(conf))
    line = Server(process).wait_for('"start"')
    topic = json.loads(line)["topic"]
    for pid in json.loads(line)["outcome"]["servers"].values():
        assert "guest" not in pathlib.Path(f"/proc/{pid}/cmdline").read_text()
        assert os.getpgid(pid) != os.getpgid(process.pid), "Ctrl-C would reach them before the demo can stop them"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert stderr.strip() == ""
    poll(
        lambda: not any(queue["consumers"] for queue in queues_of(rabbitmq, topic).values()),
        SECONDS,
        "the servers' end",
    )
    wait_for_no_fanouts(rabbitmq, topic)


def test_demo_that_is_interrupted_while_it_stops_a_server_stops_it_cleanly(bench: Bench, rabbitmq: RabbitMQ) -> None:
    """The server gets one signal. A second one would make it drop what it runs and leave its queue."""
    process = bench.start("demo", "--json")
    topic = json.loads(Server(process).wait_for('"name":"error"'))["topic"]  # The next step is that one.
    queue = f"msgbus/{topic}"
    poll(lambda: rabbitmq.queues()[queue]["consumers"] == 2, SECONDS, "the server stops")
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130
    wait_for_no_fanouts(rabbitmq, topic)


def test_demo_with_a_message_system_that_is_away_is_exit_code_5() -> None:
    """As for every command."""
    command = [MSGBUS, "demo", "--json", "--url", "rabbit://guest:guest@127.0.0.1:9/"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    error = json.loads(result.stderr)
    assert (result.returncode, error["exit_code"], error["error"]) == (5, 5, "TransportUnavailable")
