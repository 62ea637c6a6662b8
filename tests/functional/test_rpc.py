"""msgbus.rpc on real message systems: the checks of its old tests, and a service in the manner of the early nova."""

from __future__ import annotations

import contextlib
import json
import pathlib
import queue
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import pytest
from oslo_config import cfg

import msgbus
from msgbus import rpc
from msgbus.conformance.waiting import Task
from msgbus.rpc import binding
from tests.functional.brokers.processes import free_ports, poll
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.qpid import Qpid
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.rpc.checks import RpcChecks
from tests.support import EVENT_TIMEOUT, new_conf

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "classic"
SECONDS = 30


def bind(url: str, **overrides: Any) -> cfg.ConfigOpts:
    """Have `rpc` use a message system, with an exchange of the test's own."""
    conf = new_conf(transport_url=url, control_exchange=uuid.uuid4().hex, **overrides)
    rpc.init(conf)
    return conf


def on_rabbitmq(request: pytest.FixtureRequest, version: str) -> str:
    """What a configuration file says beside ``rpc_backend``."""
    node: RabbitMQ = request.getfixturevalue(f"rabbitmq_{version}")
    if not node.alive():  # an earlier test failed half-way
        node.start()
    return f"[msgbus_kombu]\nhosts = 127.0.0.1:{node.port}\nqueue_expires = 60\nserver_expires = 60\n"


def on_qpid(request: pytest.FixtureRequest) -> str:
    """Likewise."""
    broker: Qpid = request.getfixturevalue("qpid")
    return (
        f"[msgbus_qpid]\nhosts = 127.0.0.1:{broker.port}\nusername = guest\npassword = guest\n"
        "durable = false\nkeep_server_queues = false\n"
    )


# A driver joins the checks of the classic API with one line: its name, perhaps with something behind a space, and the
# part of a configuration file that leads it to its message system.
JOINED: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "fake": lambda _request: "",
    "kombu on 3.10": lambda request: on_rabbitmq(request, "310"),
    "kombu on 4.3": lambda request: on_rabbitmq(request, "43"),
    "qpid": lambda request: on_qpid(request),
    "zmq": lambda request: f"[msgbus_zmq]\nrun_dir = {request.getfixturevalue('tmp_path')}/run\n",
}


class Chosen(NamedTuple):
    """A driver, and a configuration file that chooses it."""

    driver: str
    file: pathlib.Path


@pytest.fixture(params=JOINED)
def chosen(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Chosen:
    """Each driver in turn. The files differ in the line with rpc_backend, and in a group that is the driver's own."""
    driver = str(request.param).partition(" ")[0]
    file = tmp_path / "thing.conf"
    file.write_text(
        f"[DEFAULT]\nrpc_backend = {driver}\ncontrol_exchange = {uuid.uuid4().hex}\n{JOINED[request.param](request)}"
    )
    return Chosen(driver, file)


class TestEachDriver(RpcChecks):
    """What users of the old API rely on."""

    @pytest.fixture
    def conf(self, chosen: Chosen) -> cfg.ConfigOpts:
        conf = cfg.ConfigOpts()
        rpc.init(conf)
        conf([], default_config_files=[str(chosen.file)], default_config_dirs=[])
        assert binding.transport().url.transport == chosen.driver
        return conf


def test_each_driver_has_joined() -> None:
    """None of msgbus's own is left out, whatever further names it has."""
    installed = {entry_point.name: entry_point.value for entry_point in entry_points(group="msgbus.drivers")}
    own = {value for value in installed.values() if value.startswith("msgbus.")}
    assert own == {installed[name.partition(" ")[0]] for name in JOINED}


class Thing:
    """A folder with a configuration for the example's service, and the services that were started from it."""

    def __init__(self, folder: pathlib.Path, rabbitmq: RabbitMQ, cleanup: contextlib.ExitStack) -> None:
        self.topic = f"thing-{uuid.uuid4().hex[:8]}"
        self.notes = folder / "notes.txt"
        self.config = folder / "thing.conf"
        self.config.write_text(
            "[DEFAULT]\n"
            "rpc_backend = nova.rpc.impl_kombu\n"
            "rabbit_host = 127.0.0.1\n"
            f"rabbit_port = {rabbitmq.port}\n"
            "rabbit_userid = guest\n"
            "rabbit_password = guest\n"
            "rpc_response_timeout = 20\n"
            "[msgbus_kombu]\n"
            "queue_expires = 120\n"
            "server_expires = 120\n"
        )
        self._cleanup = cleanup

    def start(self, host: str) -> subprocess.Popen[str]:
        """Start the service on a host, and return when it is ready."""
        process = self.run("service.py", "--host", host)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"{self.topic}.{host} is ready\n", process.communicate()
        return process

    def run(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a script of the example."""
        process = subprocess.Popen(
            [
                sys.executable,
                str(EXAMPLE / script),
                "--config-file",
                str(self.config),
                "--topic",
                self.topic,
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._cleanup.callback(process.communicate)
        self._cleanup.callback(process.kill)
        return process

    def bind(self) -> None:
        """Have this process's `rpc` use the same configuration."""
        conf = cfg.ConfigOpts()
        rpc.init(conf)
        conf(["--config-file", str(self.config)], default_config_files=[])

    def lines(self) -> list[str]:
        """What the services have noted."""
        return sorted(self.notes.read_text().splitlines()) if self.notes.exists() else []

    def note(self, send: Callable[..., None], topic: str, text: str) -> None:
        """Have it noted."""
        send({}, topic, {"method": "note", "args": {"path": str(self.notes), "text": text}})


@pytest.fixture
def thing(rabbitmq: RabbitMQ, tmp_path: pathlib.Path) -> Iterator[Thing]:
    """The example's service, configured with nothing but old option names."""
    with contextlib.ExitStack() as cleanup:
        yield Thing(tmp_path, rabbitmq, cleanup)
    rpc.cleanup()


def test_service_of_the_early_nova(thing: Thing) -> None:
    """Three processes, the four functions; then one is killed and another one is stopped, and both come back."""
    hosts = ["host1", "host2", "host3"]
    services = {host: thing.start(host) for host in hosts}
    thing.bind()
    context = rpc.RpcContext(user="ada", roles=["member"])

    def where(topic: str, timeout: float | None = None) -> Any:
        return rpc.call(context, topic, {"method": "where"}, timeout)

    # Any of them, and each shares the work.
    assert sorted(where(thing.topic) for _ in range(30)) == sorted(hosts * 10)
    # That one.
    assert [where(f"{thing.topic}.{host}") for host in hosts] == hosts
    # The context, a nested call, a stream.
    assert rpc.call(context, thing.topic, {"method": "whoami"}) == "ada"
    assert rpc.call(context, f"{thing.topic}.host1", {"method": "ask", "args": {"topic": f"{thing.topic}.host2"}}) == (
        "host2"
    )
    stream = rpc.multicall(context, thing.topic, {"method": "count", "args": {"to": 250}})
    assert list(stream) == list(range(1, 251))
    # One of them, and all of them.
    for number in range(30):
        thing.note(rpc.cast, thing.topic, f"cast {number}")
    poll(lambda: len(thing.lines()) == 30, SECONDS, "thirty casts are run")
    assert len({line.split(maxsplit=1)[1] for line in thing.lines()}) == 30
    thing.notes.unlink()
    thing.note(rpc.fanout_cast, thing.topic, "all")
    poll(lambda: thing.lines() == [f"{host} all" for host in hosts], SECONDS, "all three have run it")

    services["host2"].kill()
    services["host2"].wait()
    poll(
        lambda: {where(thing.topic) for _ in range(6)} == {"host1", "host3"}, SECONDS, "the two that are left share all"
    )
    # A restarting server finds what was sent to it meanwhile.
    thing.note(rpc.cast, f"{thing.topic}.host2", "while away")
    with pytest.raises(rpc.Timeout, match="consumers there: 0"):
        where(f"{thing.topic}.host2", timeout=1)
    services["host2"] = thing.start("host2")
    assert where(f"{thing.topic}.host2") == "host2"
    poll(lambda: "host2 while away" in thing.lines(), SECONDS, "the restarted one runs what was sent meanwhile")

    services["host3"].send_signal(signal.SIGTERM)
    assert services["host3"].wait(SECONDS) == 0
    services["host3"] = thing.start("host3")
    assert sorted(where(thing.topic) for _ in range(30)) == sorted(hosts * 10)
    for service in services.values():
        service.send_signal(signal.SIGINT)
        assert service.wait(SECONDS) == 0
        assert service.stderr is not None
        assert "ERROR" not in service.stderr.read()


def test_client_of_the_example(thing: Thing) -> None:
    """It prints what the four functions return."""
    thing.start("host1")
    client = thing.run("client.py", "--notes", str(thing.notes))
    printed, errors = client.communicate(timeout=SECONDS)
    assert printed.splitlines() == [
        "call: ada",
        "call of one host: host1",
        "nested call: host1",
        "multicall: [1, 2, 3]",
    ], errors
    poll(lambda: thing.lines() == ["host1 cast", "host1 fanout"], SECONDS, "both casts are run")


ONE_PROCESS = """
import json, os, sys, time
sys.path.insert(0, {example!r})
import client, service
from msgbus import rpc

service.CONF(sys.argv[1:], default_config_files=[])
conn = service.start("host1", service.CONF.topic)
notes = service.CONF.notes
client.show(service.CONF.topic, notes)
end = time.monotonic() + 30
while time.monotonic() < end and not (os.path.exists(notes) and len(open(notes).readlines()) == 2):
    time.sleep(0.02)
conn.close()
print(json.dumps(rpc.create_connection()._transport.url.transport))
rpc.cleanup()
"""


@pytest.mark.parametrize("spelling", ["{}", "nova.rpc.impl_{}"])
def test_configuration_file_alone_chooses_the_message_system(chosen: Chosen, spelling: str) -> None:
    """The same service and the same client, with each driver, by its name or by that of the old module."""
    text = chosen.file.read_text()
    backend = f"rpc_backend = {chosen.driver}\n"
    assert backend in text
    chosen.file.write_text(text.replace(backend, f"rpc_backend = {spelling.format(chosen.driver)}\n"))
    notes = chosen.file.with_name("notes.txt")
    done = subprocess.run(
        [
            *(sys.executable, "-c", ONE_PROCESS.format(example=str(EXAMPLE))),
            *("--config-file", str(chosen.file), "--notes", str(notes)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == chosen.driver
    assert sorted(notes.read_text().splitlines()) == ["host1 cast", "host1 fanout"]


def test_notification_waits_for_its_first_reader(rabbitmq: RabbitMQ) -> None:
    """RabbitMQ keeps what is sent to a topic at which nobody has ever listened, once each."""
    conf = bind(f"{rabbitmq.url}?queue_expires=60")
    rpc.notify({"user": "ada"}, "notifications.info", {"n": 0})
    connection = rpc.create_connection()
    got: queue.Queue[dict[str, Any]] = queue.Queue()
    for pool in ("one", "two"):
        connection.join_consumer_pool(got.put, pool, "notifications.info")
    connection.consume_in_thread()
    rpc.notify({"user": "ada"}, "notifications.info", {"n": 1})
    assert [got.get(timeout=EVENT_TIMEOUT)["n"] for _ in range(2)] == [1, 1]
    queued = [
        depth for name, depth in rabbitmq.queues().items() if name == f"{conf.control_exchange}/notifications.info"
    ]
    assert len(queued) == 1
    connection.close()
    rpc.cleanup()


def test_consuming_can_be_tried_again(rabbitmq: RabbitMQ) -> None:
    """A RabbitMQ that is away is an error by the deadline; nothing is half started, and the next try serves."""
    proxy = Proxy(rabbitmq.port)
    proxy.refuse()
    try:
        url = rabbitmq.url.replace(f":{rabbitmq.port}/", f":{proxy.port}/")
        conf = bind(f"{url}?queue_expires=60&server_expires=60", rpc_response_timeout=1.0)
        connection = rpc.create_connection()
        connection.create_consumer("svc.h1", OneMethod())
        with pytest.raises(msgbus.TransportUnavailable):
            connection.consume_in_thread()
        proxy.accept()
        conf.set_override("rpc_response_timeout", EVENT_TIMEOUT)
        connection.consume_in_thread()
        assert rpc.call({}, "svc.h1", {"method": "answer"}) == 42
        connection.close()
        rpc.cleanup()
    finally:
        proxy.close()


WAITS_FOR_ITS_BROKER = """
import signal, sys
from msgbus import rpc
from tests.support import new_conf

rpc.init(new_conf(transport_url=sys.argv[1]))
service = rpc.Service("h1", "svc", object())

def stop(*_):
    print("stopping", flush=True)
    service.stop()
    sys.exit(7)

signal.signal(signal.SIGTERM, stop)
print("starting", flush=True)
service.start()
"""


def test_service_that_waits_for_its_broker_can_be_stopped() -> None:
    """SIGTERM while the message system is away: the service's handler stops it, and the process ends."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS_FOR_ITS_BROKER, f"rabbit://127.0.0.1:{port}/"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=EXAMPLE.parents[1],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping\n"
        assert process.wait(SECONDS) == 7
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", ["call", "consume", "close"])
def test_cleanup_ends_what_waits_for_the_broker(how: str) -> None:
    """What waits for a message system that is away ends when everything is closed, long before its deadline."""
    (port,) = free_ports(1)
    bind(f"rabbit://127.0.0.1:{port}/", rpc_response_timeout=600.0)
    connection = rpc.create_connection()
    connection.create_consumer("svc.h1", OneMethod())
    wait = connection.consume_in_thread if how != "call" else lambda: rpc.call({}, "svc", {"method": "answer"})
    waiting = Task(wait)
    poll(lambda: "refused" in binding.transport().driver.state, SECONDS, "it waits for the message system")
    if how == "close":
        connection.close()
    rpc.cleanup()
    with pytest.raises((msgbus.CallCancelled, rpc.InvalidRPCConnectionReuse)):
        waiting.result(SECONDS)


def test_callback_that_raises_is_called_again_until_it_succeeds(
    rabbitmq_43: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quorum queue of RabbitMQ 4 drops what was given back twenty times: so it is not given back in between."""
    monkeypatch.setattr("msgbus.rpc.pool.RETRY_DELAY", 0.01)
    bind(f"{rabbitmq_43.url}?queue_expires=60&quorum_queues=true")
    tries: queue.Queue[int] = queue.Queue()

    def fail_often(message: dict[str, Any]) -> None:
        tries.put(1)
        if tries.qsize() < 50:
            raise ValueError("not yet")

    connection = rpc.create_connection()
    connection.join_consumer_pool(fail_often, "pool", "notifications.info", ack_on_error=False)
    connection.consume_in_thread()
    rpc.notify({}, "notifications.info", {"n": 1})
    poll(lambda: tries.qsize() == 50, SECONDS, "it has come fifty times")
    connection.close()
    rpc.cleanup()


class OneMethod:
    def answer(self, context: Any) -> int:
        return 42


def test_cast_to_another_server(rabbitmq_310: RabbitMQ, rabbitmq_43: RabbitMQ) -> None:
    """`cast_to_server` and `fanout_cast_to_server` reach the service on another RabbitMQ, not the one here."""

    class Noting:
        def __init__(self) -> None:
            self.notes: queue.Queue[Any] = queue.Queue()

        def note(self, context: Any, text: Any) -> None:
            self.notes.put(text)

    conf = bind(f"{rabbitmq_310.url}?queue_expires=60&server_expires=60")
    here, there = Noting(), Noting()
    connection = rpc.create_connection()
    connection.create_consumer("svc", here)
    connection.create_consumer("svc", here, fanout=True)
    connection.consume_in_thread()
    target = msgbus.Target(topic="svc", server="h1")
    transport = msgbus.get_rpc_transport(
        new_conf(control_exchange=conf.control_exchange), f"{rabbitmq_43.url}?queue_expires=60&server_expires=60"
    )
    server = msgbus.get_rpc_server(transport, target, [there])
    server.start()
    params = {"hostname": "127.0.0.1", "port": rabbitmq_43.port, "username": "guest", "password": "guest"}
    rpc.cast_to_server({}, params, "svc", {"method": "note", "args": {"text": 1}})
    rpc.fanout_cast_to_server({}, params, "svc", {"method": "note", "args": {"text": 2}})
    assert {there.notes.get(timeout=EVENT_TIMEOUT) for _ in range(2)} == {1, 2}
    connection.close()
    assert here.notes.empty()
    server.stop()
    server.wait()
    transport.cleanup()
    rpc.cleanup()
