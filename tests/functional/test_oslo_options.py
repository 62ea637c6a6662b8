"""Beside stock oslo.messaging peers whose options say how things are declared in RabbitMQ: both have to agree."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg

import msgbus
from msgbus.drivers.base import Capability
from tests.functional.brokers.processes import BrokerMissing, poll
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.conftest import skip_or_fail
from tests.functional.test_oslo_interop import PEER

LIMITS = "rabbit_quorum_delivery_limit=7&rabbit_quorum_max_memory_length=1000&rabbit_quorum_max_memory_bytes=1000000"
SETTINGS = {
    "defaults": "rabbit_transient_queues_ttl=1800",
    "ttl": "rabbit_transient_queues_ttl=600",
    "no ttl": "rabbit_transient_queues_ttl=0",
    "durable": "amqp_durable_queues=true",
    "auto-delete": "amqp_auto_delete=true",
    "durable auto-delete": "amqp_durable_queues=true&amqp_auto_delete=true",
    "quorum": f"rabbit_quorum_queue=true&{LIMITS}",
    "all quorum": f"rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true&{LIMITS}",
    "durable, transient quorum": "amqp_durable_queues=true&rabbit_transient_quorum_queue=true",
    "streams": "rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true&rabbit_stream_fanout=true",
    "gzip": "kombu_compression=gzip",
    "bzip2": "kombu_compression=bzip2",
}


class StockPeer:
    """A stock server and client in a process of its own; see ``stock_peer.py``."""

    def __init__(self, process: subprocess.Popen[str], journal: Path) -> None:
        self._process = process
        self._journal = journal

    def do(self, verb: str, server: str | None, method: str, **arguments: Any) -> Any:
        """Have it call, cast or fanout; returns the result, and fails the test if there is an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, server, method, arguments]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer
        return answer["result"]

    def notes(self) -> list[str]:
        """What its endpoint has noted, in order."""
        return self._journal.read_text().splitlines() if self._journal.exists() else []


@contextmanager
def stock_peer(url: str, name: str, journal: Path, config: Path | None = None) -> Iterator[StockPeer]:
    """A stock peer that serves and does what it is told; `name` is that of the exchange, and of the topic in it."""
    command = [sys.executable, "-W", "ignore", str(PEER), "both", url, name, name, str(journal)]
    if config is not None:
        command.append(str(config))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield StockPeer(process, journal)
            process.communicate(timeout=30)
        finally:
            process.kill()


class Endpoint:
    """What our server serves."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def echo(self, _ctxt: dict[str, Any], value: Any) -> Any:
        return value

    def note(self, _ctxt: dict[str, Any], text: str) -> None:
        self.notes.append(text)


class Ours:
    """Our server and client of the same topic."""

    def __init__(self, transport: msgbus.Transport, name: str) -> None:
        self.transport = transport
        self.endpoint = Endpoint()
        self.client = msgbus.get_rpc_client(transport, msgbus.Target(exchange=name, topic=name), timeout=20)
        target = msgbus.Target(exchange=name, topic=name, server="ours")
        self.server = msgbus.get_rpc_server(transport, target, [self.endpoint])


@contextmanager
def our_peer(url: str, name: str, *, conf: cfg.ConfigOpts | None = None) -> Iterator[Ours]:
    """Our server and client, the server started."""
    if conf is None:
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[])
    transport = msgbus.get_rpc_transport(conf, url)
    try:
        ours = Ours(transport, name)
        ours.server.start()
        yield ours
        ours.server.stop()
        assert ours.server.wait(10) == 0
    finally:
        transport.cleanup()


def check_both_ways(ours: Ours, stock: StockPeer) -> None:
    """Each calls the other, by name and whoever serves, and the fanouts of each reach both."""
    text = "ü" * 5000
    assert ours.client.prepare(server="stock").call({"user": "u"}, "echo", value=text) == {"value": text, "user": "u"}
    assert stock.do("call", "ours", "echo", value=text) == text
    assert stock.do("call", "ours", "oslo_rpc_server_ping") == "pong"
    for number in range(4):
        assert ours.client.call({}, "echo", value=number) in (number, {"value": number, "user": None})
        assert stock.do("call", None, "echo", value=number) in (number, {"value": number, "user": None})
    ours.client.fanout_cast({}, "note", text="a fanout of ours")
    stock.do("fanout", None, "note", text="a fanout of theirs")
    ours.client.prepare(server="stock").cast({}, "note", text="a cast of ours")
    stock.do("cast", "ours", "note", text="a cast of theirs")
    both = ["a fanout of ours", "a fanout of theirs"]
    poll(lambda: len(ours.endpoint.notes) >= 3 and len(stock.notes()) >= 3, 20, "fanouts and casts at both servers")
    assert sorted(ours.endpoint.notes) == ["a cast of theirs", *both]
    assert sorted(stock.notes()) == ["a cast of ours", *both]


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_both_sides_declare_the_same_and_call_each_other(
    rabbitmq: RabbitMQ, tmp_path: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest, options: str
) -> None:
    """With the same options, a stock server and ours serve one topic, and clients of both kinds call both.

    So nothing that one declares is refused because of the other.
    """
    name = request.node.callspec.id
    theirs = f"{rabbitmq.url}?{options}" + ("&rabbit_qos_prefetch_count=10" if "stream" in options else "")
    with (
        stock_peer(theirs, name, tmp_path / "journal") as stock,
        our_peer(f"{rabbitmq.url}?topology=oslo&{options}", name) as ours,
    ):
        check_both_ways(ours, stock)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_options_are_read_where_the_stock_library_has_them(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """One file of an existing service is enough for both: the group of the stock library is read."""
    config = tmp_path / "service.conf"
    config.write_text(
        "[msgbus_kombu]\ntopology = oslo\n"
        "[oslo_messaging_rabbit]\namqp_durable_queues = true\nrabbit_transient_queues_ttl = 77\n"
        "kombu_compression = gzip\n"
    )
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(config)])
    with (
        stock_peer(rabbitmq.url, "from-file", tmp_path / "journal", config) as stock,
        our_peer(rabbitmq.url, "from-file", conf=conf) as ours,
    ):
        check_both_ways(ours, stock)
        assert rabbitmq.exchanges()["from-file"]["durable"] is True


def test_an_exchange_that_is_not_durable_is_shared_as_stock_peers_share_it(
    rabbitmq: RabbitMQ, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where another service has made the exchange without amqp_durable_queues, both sides go on without it.

    The queues are then not durable either, and the log of ours says so.
    """
    (tmp_path / "other").mkdir()
    with stock_peer(rabbitmq.url, "mixed", tmp_path / "other" / "journal"):
        pass
    assert rabbitmq.exchanges()["mixed"]["durable"] is False
    rabbitmq.delete_queue("mixed")
    rabbitmq.delete_queue("mixed.stock")
    options = "amqp_durable_queues=true"
    with our_peer(f"{rabbitmq.url}?topology=oslo&{options}", "mixed") as ours:
        assert "exchange 'mixed' is not durable, so neither is queue 'mixed'" in caplog.text
        with stock_peer(f"{rabbitmq.url}?{options}", "mixed", tmp_path / "journal") as stock:
            check_both_ways(ours, stock)


def test_a_stream_of_fanouts_is_read_on_after_a_reconnect(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """What a stock peer casts to all while our server's connections are cut arrives once; nothing arrives twice."""
    options = SETTINGS["streams"]
    theirs = f"{rabbitmq.url}?{options}&rabbit_qos_prefetch_count=10"
    proxy = Proxy(rabbitmq.port)
    url = rabbitmq.url.replace(f":{rabbitmq.port}/", f":{proxy.port}/")
    try:
        with (
            stock_peer(theirs, "stream", tmp_path / "journal") as stock,
            our_peer(f"{url}?topology=oslo&{options}", "stream") as ours,
        ):
            stock.do("fanout", None, "note", text="before")
            poll(lambda: ours.endpoint.notes == ["before"], 20, "the first fanout")
            proxy.refuse()
            proxy.cut()
            stock.do("fanout", None, "note", text="meanwhile")
            poll(lambda: "meanwhile" in stock.notes(), 20, "the second fanout at the stock server")
            proxy.accept()
            stock.do("fanout", None, "note", text="after")
            poll(lambda: "after" in ours.endpoint.notes, 30, "the last fanout")
            assert ours.endpoint.notes == ["before", "meanwhile", "after"]
    finally:
        proxy.close()


def test_an_exchange_of_the_other_topology_is_named_with_what_to_do(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """A service that takes the exchange of one with the other topology learns at once what to set."""
    with stock_peer(rabbitmq.url, "theirs", tmp_path / "journal"):
        refused = pytest.raises(msgbus.TransportUnavailable, match=r"stock oslo\.messaging services have made this")
        with refused, our_peer(rabbitmq.url, "theirs"):
            pass
    with our_peer(rabbitmq.url, "ours"):
        pass
    refused = pytest.raises(msgbus.TransportUnavailable, match="a msgbus service without topology = oslo has made this")
    with refused, our_peer(f"{rabbitmq.url}?topology=oslo", "ours"):
        pass


def test_a_url_object_of_oslo_messaging_is_taken(rabbitmq: RabbitMQ) -> None:
    """A service that has parsed its URL with oslo.messaging passes the object on."""
    program = (
        "import sys, oslo_messaging, msgbus\n"
        "from oslo_config import cfg\n"
        "conf = cfg.ConfigOpts()\n"
        "conf([], default_config_files=[])\n"
        "url = oslo_messaging.TransportURL.parse(conf, sys.argv[1])\n"
        "transport = msgbus.get_rpc_transport(conf, url)\n"
        "server = msgbus.get_rpc_server(transport, msgbus.Target(topic='url-object', server='s'), [])\n"
        "server.start()\n"
        "client = msgbus.get_rpc_client(transport, msgbus.Target(topic='url-object'), timeout=20)\n"
        "print(client.call({}, 'oslo_rpc_server_ping'), transport.url)\n"
        "server.stop()\n"
        "transport.cleanup()\n"
    )
    url = f"{rabbitmq.url}?topology=oslo"
    command = [sys.executable, "-W", "ignore", "-c", program, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"pong {url.replace(':guest@', ':***@')}\n"


def test_a_rabbitmq_that_refuses_transient_queues(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """RabbitMQ 4 can be told to refuse the queues that stock peers declare by default: the error says what to set.

    With that both sides work.
    """
    config = {"deprecated_features.permit.transient_nonexcl_queues": "false"}
    try:
        broker = RabbitMQ("4.3", tmp_path_factory.mktemp("strict"), config=config)
    except BrokerMissing as error:
        skip_or_fail(str(error))
    try:
        broker.start()
        refused = pytest.raises(
            msgbus.TransportUnavailable, match="set amqp_durable_queues and rabbit_transient_quorum"
        )
        with refused, our_peer(f"{broker.url}?topology=oslo", "strict"):
            pass
        options = SETTINGS["durable, transient quorum"]
        with (
            stock_peer(f"{broker.url}?{options}", "strict", tmp_path / "journal") as stock,
            our_peer(f"{broker.url}?topology=oslo&{options}", "strict") as ours,
        ):
            assert Capability.DURABLE in ours.transport.driver.capabilities
            check_both_ways(ours, stock)
    finally:
        broker.close()
