"""`msgbus serve` in processes that talk over ZeroMQ: closed terminals, several classes, serializers, exceptions."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from msgbus.conformance.waiting import until
from tests.functional.test_cli import MSGBUS, SECONDS, Bench, Server
from tests.terminal import Terminal

SHELL = """
import msgbus
from msgbus.serializer import NoOpSerializer

class Admin:
    target = msgbus.Target(namespace="admin", version="1.2")

    def stop_all(self, ctxt):
        return "stopped"

class NoDefault:
    def __init__(self, stock):
        pass

class Point:
    def __init__(self, x):
        self.x = x

    def __str__(self):
        return f"Point({self.x})"

class Points(NoOpSerializer):
    def serialize_entity(self, ctxt, entity):
        return {"point": entity.x} if isinstance(entity, Point) else entity

    def deserialize_entity(self, ctxt, entity):
        return Point(entity["point"]) if isinstance(entity, dict) and "point" in entity else entity

class Plane:
    def mirror(self, ctxt, at):
        return Point(-at.x)

    def points(self, ctxt, to):
        for x in range(to):
            yield Point(x)

class OutOfPlane(Exception):
    pass

class Raising:
    def leave(self, ctxt):
        raise OutOfPlane("too far")
"""

MEASURED = """
from opentelemetry import metrics

COUNTER = metrics.get_meter("shapes").create_counter("measured")

class Metrics:
    def measure(self, ctxt):
        COUNTER.add(1)
        return 1

class AsyncMetrics:
    async def measure(self, ctxt):
        COUNTER.add(1)
        return 1
"""


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Bench]:
    """A folder with a service, and processes that find each other in it."""
    with contextlib.ExitStack() as cleanup:
        made = Bench(tmp_path, "zmq://", cleanup)
        made.env["XDG_RUNTIME_DIR"] = str(tmp_path)
        (tmp_path / "shapes.py").write_text(SHELL)
        (tmp_path / "measured.py").write_text(MEASURED)
        yield made


def test_closed_terminal_lets_a_running_handler_finish_and_answer(bench: Bench) -> None:
    """The shell and the kernel both send SIGHUP then; a method that prints afterwards is not disturbed."""
    (bench.folder / "printing.py").write_text(
        "import pathlib\n"
        "class Printing:\n"
        "    def wait_for(self, ctxt, path):\n"
        "        print('waiting', flush=True)\n"
        "        pathlib.Path(path).read_text()\n"
        "        print('to nobody', flush=True)\n"
        "        return 'waited'\n"
    )
    path, go_on = bench.gate()
    log = bench.folder / "log"
    env = {**bench.env, "PS1": "$ ", "HISTFILE": ""}
    with Terminal(["bash", "--norc", "-i"], env, cwd=bench.folder, controlling=True) as terminal:
        terminal.type(f"{MSGBUS} serve printing:Printing --topic {bench.topic} --log-level info 2>{log}; exit\n")
        terminal.wait_for("is ready")
        call = bench.start("call", bench.topic, "wait_for", f"path={path}")
        terminal.wait_for("waiting")
        terminal.close()
        terminal.process.wait(SECONDS)  # the shell has ended
        server = int(re.findall(r"-(\d+) of topic", terminal.raw)[0])
        os.kill(server, signal.SIGHUP)  # the second one may come late
        until(lambda: os.readlink(f"/proc/{server}/fd/1") == os.devnull, "it prints to nobody", SECONDS)
        assert call.poll() is None
        go_on()
        assert call.communicate(timeout=SECONDS) == ('"waited"\n', "")


def test_sighup_that_is_ignored_stays_ignored(bench: Bench) -> None:
    """Under nohup a server outlives its terminal."""
    process = subprocess.Popen(
        ["nohup", MSGBUS, "serve", "hello:Hello", "--topic", bench.topic],
        cwd=bench.folder,
        env=bench.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        Server(process).wait_for("is ready")
        process.send_signal(signal.SIGHUP)
        assert bench.run("call", "greet", "name=Ada").stdout == '"Hello, Ada"\n'
        process.terminate()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


def test_serves_several_classes_each_with_an_interface_of_its_own(bench: Bench) -> None:
    """One server; namespace and version choose the class. It says what it serves."""
    server = Server(bench.start("serve", "hello:Hello", "shapes:Admin", "--topic", bench.topic, "--server", "one"))
    server.wait_for("is ready")
    assert server.wait_for("it serves").startswith("it serves hello:Hello: greet, ")
    assert server.wait_for("it serves") == "it serves shapes:Admin: stop_all; namespace admin; version 1.2"
    assert bench.run("call", "greet", "name=Ada").stdout == '"Hello, Ada"\n'
    assert bench.run("call", "stop_all", "--namespace", "admin", "--version", "1.1").stdout == '"stopped"\n'
    assert bench.run("call", "stop_all").returncode == 1
    assert bench.run("call", "greet", "name=Ada", "--namespace", "admin").returncode == 1
    found = [json.loads(line) for line in bench.run("ping", "--json").stdout.splitlines()]
    assert [answer["server"] for answer in found] == ["one"]


def health(url: str, path: str) -> tuple[int, str]:
    """The status of a server, and why."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, int(port), timeout=SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, ", ".join(json.loads(response.read())["why"])
    finally:
        connection.close()


def test_health_says_whether_the_server_is_ready_and_live(bench: Bench) -> None:
    """Over HTTP: also while it stops, until its running methods have finished."""
    server = Server(bench.start("serve", "hello:Hello", "--topic", bench.topic, "--health", "0", "--json"))
    url = json.loads(server.wait_for("ready"))["health"]
    assert health(url, "/ready") == health(url, "/live") == (200, "")
    path, go_on = bench.gate()
    call = bench.start("call", bench.topic, "wait_for", f"path={path}")
    server.wait_for("waiting")
    server.process.terminate()
    until(lambda: health(url, "/ready") == (503, "it is being stopped"), "the server stops", SECONDS)
    assert health(url, "/live")[0] == 200
    go_on()
    assert call.communicate(timeout=SECONDS) == ('"waited"\n', "")
    assert server.process.wait(SECONDS) == 0


def test_a_server_is_live_while_it_waits_for_its_message_system(bench: Bench) -> None:
    """It is not ready then. Kubernetes must not start it anew because of that."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", "hello:Hello", "--topic", bench.topic, "--url", "rabbit://guest:guest@127.0.0.1:1/"]
    process = bench.start(*words, "--health", str(port), "--health-address", "127.0.0.1")

    def status(path: str) -> tuple[int, str]:
        try:
            return health(f"http://127.0.0.1:{port}", path)
        except ConnectionRefusedError:
            return 0, ""

    until(lambda: status("/live")[0] == 200, "it is live", SECONDS)
    assert status("/ready")[0] == 503
    assert process.poll() is None


ASYNC = """
import asyncio

class Waiting:
    async def count(self, ctxt, to):
        try:
            for number in range(to):
                await asyncio.sleep(0)
                yield number
        finally:
            print("count is closed", flush=True)

    async def add(self, ctxt, a, b):
        return a + b

    async def sleep(self, ctxt, seconds):
        print("sleep began", flush=True)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            print("sleep is cancelled", flush=True)
            raise
        return "slept"

    async def note(self, ctxt, text):
        print("noted:", text, flush=True)

    def plain(self, ctxt):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return "on a thread"
"""


def test_serves_async_methods(bench: Bench) -> None:
    """Nothing has to be said for that: every verb runs them, plain methods beside them run on threads."""
    (bench.folder / "waiting.py").write_text(ASYNC)
    server = Server(bench.start("serve", "waiting:Waiting", "--topic", bench.topic))
    assert f": msgbus multicall {bench.topic} count to=... " in server.wait_for("to call it")
    assert bench.run("call", "add", "a=1", "b=2").stdout == "3\n"
    assert bench.run("call", "plain").stdout == '"on a thread"\n'
    assert bench.run("multicall", "count", "to=3").stdout == "0\n1\n2\n"
    server.wait_for("count is closed")
    assert bench.run("call", "count", "to=3").stdout == "2\n"
    assert bench.run("cast", "note", "text=one").returncode == 0
    server.wait_for("noted: one")
    assert bench.run("fanout-cast", "note", "text=all").returncode == 0
    server.wait_for("noted: all")


def test_call_that_is_given_up_cancels_the_async_method(bench: Bench) -> None:
    """At the end of --timeout, and at Ctrl-C."""
    (bench.folder / "waiting.py").write_text(ASYNC)
    server = Server(bench.start("serve", "waiting:Waiting", "--topic", bench.topic))
    server.wait_for("is ready")
    assert bench.run("call", "sleep", "seconds=600", "--timeout", "1").returncode == 4
    server.wait_for("sleep is cancelled")
    call = bench.start("call", bench.topic, "sleep", "seconds=600", "--timeout", "600", "--debug")
    assert call.stderr is not None
    # Until the server says that it runs the call, nobody knows where it would have to be cancelled.
    assert any("started" in line for line in iter(call.stderr.readline, ""))
    call.send_signal(signal.SIGINT)
    call.communicate(timeout=SECONDS)
    assert call.returncode == 130
    server.wait_for("sleep is cancelled")


@pytest.mark.parametrize(("drain", "answered"), [("600", True), ("0.1", False)])
def test_server_that_is_stopped_lets_async_methods_finish(bench: Bench, drain: str, answered: bool) -> None:
    """What runs gets the time of --drain, and is cancelled then: the caller is told at once."""
    (bench.folder / "waiting.py").write_text(ASYNC)
    server = Server(bench.start("serve", "waiting:Waiting", "--topic", bench.topic, "--drain", drain))
    server.wait_for("is ready")
    seconds = "2" if answered else "600"
    call = bench.start("call", bench.topic, "sleep", f"seconds={seconds}", "--timeout", "600")
    server.wait_for("sleep began")
    server.process.send_signal(signal.SIGTERM)
    stdout, stderr = call.communicate(timeout=SECONDS)
    assert server.process.wait(SECONDS) == 0
    if answered:
        assert (call.returncode, stdout) == (0, '"slept"\n')
    else:
        assert (call.returncode, stdout) == (1, "")
        assert "the server was stopped while it ran" in stderr


def test_command_that_it_shows_can_be_typed(bench: Bench) -> None:
    """What the server says to type calls it, once the dots are replaced: namespace, version and files included."""
    conf = bench.folder / "a file.conf"
    conf.write_text("[DEFAULT]\ncontrol_exchange = own\n")
    more = ["--config-file", str(conf), "--url", "zmq://"]
    del bench.env["MSGBUS_URL"]
    admin = Server(bench.start("serve", "shapes:Admin", "--topic", bench.topic, *more))
    command = admin.wait_for("to call it").partition("terminal: msgbus ")[2]
    assert (
        command == f"call {bench.topic} stop_all --namespace admin --version 1.2 --config-file '{conf}' --url zmq:///"
    )
    shell = {"cwd": bench.folder, "env": bench.env, "text": True, "timeout": SECONDS}
    found = subprocess.run(["sh", "-c", f"{MSGBUS} {command}"], capture_output=True, check=False, **shell)  # type: ignore[call-overload]
    assert (found.stdout, found.stderr) == ('"stopped"\n', "")


def test_serializer_turns_arguments_and_results_into_plain_data_and_back(bench: Bench) -> None:
    """On the server, and on each verb; what JSON does not have is printed as text."""
    words = ["shapes:Plane", "--topic", bench.topic, "--serializer", "shapes:Points"]
    Server(bench.start("serve", *words)).wait_for("is ready")
    plain = ['at={"point": 3}']
    result = bench.run("call", "mirror", *plain, "--serializer", "shapes:Points")
    assert (result.stdout, result.stderr) == ('"Point(-3)"\n', "")
    assert bench.run("call", "mirror", *plain).stdout == '{"point":-3}\n'
    items = bench.run("multicall", "points", "to=2", "--serializer", "shapes:Points")
    assert (items.stdout, items.stderr) == ('"Point(0)"\n"Point(1)"\n', "")
    assert bench.run("cast", "mirror", *plain, "--serializer", "shapes:Points").returncode == 0


def test_exceptions_of_an_allowed_module_are_rebuilt(bench: Bench) -> None:
    """Else they are a RemoteError. A module that is not here cannot be allowed."""
    Server(bench.start("serve", "shapes:Raising", "--topic", bench.topic)).wait_for("is ready")
    for verb in ("call", "multicall"):
        error = json.loads(bench.run(verb, "leave", "--json").stderr)
        assert (error["error"], error["exc_type"]) == ("RemoteError", "OutOfPlane")
        result = bench.run(verb, "leave", "--json", "--allow-exceptions", "os", "--allow-exceptions", "shapes")
        assert (json.loads(result.stderr)["error"], result.returncode) == ("OutOfPlane", 1)
    result = bench.run("call", "leave", "--allow-exceptions", "no_such_module")
    assert result.returncode == 2
    assert "there is no module 'no_such_module'" in result.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["shapes:NoDefault"], "give its arguments defaults"),
        (["shapes:Adm"], "did you mean shapes:Admin?"),
        (["hello:Hello", "shape:Admin"], "run this in the directory of shape.py"),
        (["hello:Hello", "--serializer", "shapes:Admin"], "make its class a subclass of msgbus.Serializer"),
        (["hello:Hello", "--serializer", "msgbus:Serializer"], "has all its methods, and takes no arguments"),
        (["hello:Hello", "--serializer", "shapes"], "is not MODULE:CLASS, such as hello:Hello"),
    ],
)
def test_error_of_a_class_says_what_to_do(bench: Bench, words: list[str], text: str) -> None:
    """One line, and exit code 2."""
    result = subprocess.run(
        [MSGBUS, "serve", *words, "--topic", bench.topic],
        cwd=bench.folder,
        env={**os.environ, **bench.env},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert text in result.stderr


def metrics_of(url: str) -> dict[str, float]:
    """What Prometheus would read: by name, the sum over all labels."""
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:  # noqa: S310 - it is the server's
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


@pytest.mark.parametrize("kind", ["Metrics", "AsyncMetrics"])
def test_prometheus_reads_metrics(bench: Bench, kind: str) -> None:
    """Of servers with plain methods and with async ones: requests, what the service measures, and the transport."""
    ready = json.loads(
        Server(
            bench.start("serve", f"measured:{kind}", "--topic", bench.topic, "--metrics", "127.0.0.1:0", "--json")
        ).wait_for("ready")
    )
    url = ready["metrics"]
    assert url.startswith("http://127.0.0.1:")
    assert bench.run("call", "measure").stdout == "1\n"
    assert bench.run("call", "nothing").returncode == 1
    until(lambda: metrics_of(url).get("rpc_server_call_duration_seconds_count") == 2, "both are counted", SECONDS)
    found = metrics_of(url)
    assert found["measured_total"] == 1
    assert found["msgbus_server_active_requests"] == 0
    assert found["msgbus_server_queue_duration_seconds_count"] == 2
    assert found["msgbus_send_window_size"] == 1000


@pytest.mark.parametrize("name", [None, "shop"])
def test_metrics_name_the_service(bench: Bench, name: str | None) -> None:
    """By its topic, unless the environment says what OpenTelemetry is to call it."""
    if name is not None:
        bench.env["OTEL_SERVICE_NAME"] = name
    words = ["serve", "hello:Hello", "--topic", bench.topic, "--metrics", "127.0.0.1:0", "--json"]
    ready = json.loads(Server(bench.start(*words)).wait_for("ready"))
    with urllib.request.urlopen(ready["metrics"], timeout=SECONDS) as answer:  # noqa: S310 - it is the server's
        found = re.findall(r'target_info{.*service_name="([^"]*)"', answer.read().decode())
    assert found == [name or bench.topic]


def test_where_metrics_are_is_said_on_a_terminal(bench: Bench) -> None:
    """With the port that was free."""
    server = Server(bench.start("serve", "hello:Hello", "--topic", bench.topic, "--metrics", "0"))
    line = server.wait_for("its metrics")
    found = re.search(r"http://localhost:\d+/metrics", line)
    assert found is not None
    assert "msgbus_send_window_size" in metrics_of(found[0])


def test_a_server_has_a_port_for_its_health_and_one_for_its_metrics(bench: Bench) -> None:
    """Both are said when it is ready."""
    words = ["serve", "hello:Hello", "--topic", bench.topic, "--health", "0", "--metrics", "127.0.0.1:0", "--json"]
    ready = json.loads(Server(bench.start(*words)).wait_for("ready"))
    assert health(ready["health"], "/ready") == (200, "")
    assert "msgbus_send_window_size" in metrics_of(ready["metrics"])


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("port", "a port is a number from 0 to 65535"),
        ("65536", "a port is a number from 0 to 65535"),
        ("192.0.2.1:0", "Cannot assign requested address"),
    ],
)
def test_an_address_for_metrics_that_cannot_be_used(bench: Bench, address: str, text: str) -> None:
    """One line says why, and exit code 2."""
    process = bench.start("serve", "hello:Hello", "--topic", bench.topic, "--metrics", address)
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout) == (2, "")
    assert f"--metrics {address}: {text}" in stderr


def test_metrics_without_their_libraries_say_what_to_install(bench: Bench) -> None:
    """As where only msgbus itself is installed."""
    (bench.folder / "opentelemetry").mkdir()
    (bench.folder / "opentelemetry" / "__init__.py").touch()
    bench.env["PYTHONPATH"] = str(bench.folder)
    process = bench.start("serve", "hello:Hello", "--topic", bench.topic, "--metrics", "0")
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "pip install 'msgbus[prometheus]'" in stderr
