"""What the qpid driver promises beyond what every driver does: Broker-J's own failures, each with its own error."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
from oslo_config import cfg
from proton import Message as ProtonMessage
from proton.utils import BlockingConnection

import msgbus
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Address, Capability, Delivery, Message
from msgbus.drivers.qpid import management, nodes, relay
from msgbus.message import JSON, DeadLetter
from tests.functional.brokers.processes import free_ports
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.qpid import Qpid
from tests.functional.services import Connect, Endpoint, client_of, nothing_is_added, serving

MEMORY = "?durable=false"
"""The broker of most of these tests keeps all in memory, and refuses what is marked durable."""


@pytest.fixture
def broker(qpid: Qpid) -> Qpid:
    """Broker-J, running."""
    if not qpid.alive():  # an earlier test failed half-way
        qpid.start()
    return qpid


@pytest.fixture
def proxy(broker: Qpid) -> Iterator[Proxy]:
    """A proxy in front of the broker."""
    proxy = Proxy(broker.port)
    yield proxy
    proxy.close()


def through(broker: Qpid, proxy: Proxy, query: str = "") -> str:
    """The broker's URL, by way of a proxy."""
    return broker.url.replace(f":{broker.port}/", f":{proxy.port}/") + MEMORY + query


def _accept(delivery: Delivery) -> None:
    delivery.accept()


def own_nodes(broker: Qpid) -> set[str]:
    """What the broker has made for links that exist."""
    return {name for name in broker.queues() if name.startswith("qpidsub_")}


# Connecting


@pytest.mark.parametrize("mechanism", ["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-1"])
def test_a_password_logs_in(broker: Qpid, connect: Connect, mechanism: str) -> None:
    """By each mechanism that the broker has, and by the best of them where none is named."""
    transport = connect(broker.url + MEMORY + (f"&sasl_mechanisms={mechanism}" if mechanism else ""))
    with serving(transport, "login"):
        assert client_of(transport, "login").call({}, "echo", value=1) == 1


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_a_wrong_password_is_reported_at_once_and_never_shown(broker: Qpid, connect: Connect, mechanism: str) -> None:
    """Waiting would not help: the first call fails at once, with user, host, port and what to check, no password."""
    url = broker.url.replace("guest:guest", "guest:s3cr3t-pw") + f"?sasl_mechanisms={mechanism}"
    task = Task(client_of(connect(url), "nobody", timeout=60).call, {}, "echo", value=1)
    with pytest.raises(msgbus.TransportUnavailable) as caught:
        task.result(20)
    text = str(caught.value)
    assert f"127.0.0.1:{broker.port}" in text
    assert "user guest" in text
    assert "password" in text
    assert "s3cr3t" not in text


def test_nobody_is_let_in_where_that_is_allowed(broker: Qpid, connect: Connect) -> None:
    """Without a user the log-in is anonymous; where the broker wants one, the error says what it offers."""
    transport = connect(f"qpid://127.0.0.1:{broker.anonymous_port}/{MEMORY}")
    with serving(transport, "anonymous"):
        assert client_of(transport, "anonymous").call({}, "echo", value=1) == 1
    task = Task(client_of(connect(f"qpid://127.0.0.1:{broker.port}/"), "nobody", timeout=60).call, {}, "echo")
    with pytest.raises(msgbus.TransportUnavailable, match=r"it offers .*PLAIN.*sasl_mechanisms"):
        task.result(20)


def test_the_options_of_the_old_systems_are_read(broker: Qpid, tmp_path: pathlib.Path) -> None:
    """A configuration that named impl_qpid and qpid_hostname connects as it did."""
    path = tmp_path / "old.conf"
    path.write_text(
        "[DEFAULT]\nrpc_backend = nova.rpc.impl_qpid\nqpid_hostname = 127.0.0.1\n"
        f"qpid_port = {broker.port}\nqpid_username = guest\nqpid_password = guest\nqpid_heartbeat = 20\n"
        "[msgbus_qpid]\ndurable = false\n"
    )
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(path)])
    transport = msgbus.get_rpc_transport(conf)
    try:
        with serving(transport, "old"):
            assert client_of(transport, "old").call({}, "echo", value=1) == 1
        assert f"127.0.0.1:{broker.port} (user guest)" in transport.driver.state
    finally:
        transport.cleanup()


def test_a_port_that_speaks_something_else_is_reported_at_once(connect: Connect, broker: Qpid) -> None:
    """An AMQP broker that wants TLS there, for example."""
    with contextlib.closing(_Listener(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as listener:
        client = client_of(connect(f"qpid://guest:guest@127.0.0.1:{listener.port}/"), "nobody", timeout=60)
        with pytest.raises(msgbus.TransportUnavailable, match=r"AMQP 1\.0"):
            Task(client.call, {}, "echo").result(20)


class _Listener:
    """Answers whatever comes with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        import socket

        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._answer = answer
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                with sock:
                    sock.recv(8)
                    sock.sendall(self._answer)

    def close(self) -> None:
        import socket

        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(20)


def test_a_broker_that_is_not_there_is_waited_for_until_the_deadline(connect: Connect) -> None:
    """It may be starting just now. At the deadline the error says which host and port, why, and what to check."""
    (port,) = free_ports(1)
    client = client_of(connect(f"qpid://guest:guest@127.0.0.1:{port}/"), "nobody", timeout=1.5)
    with pytest.raises(msgbus.TransportUnavailable, match=f"127.0.0.1:{port}.*refused.*check"):
        client.cast({}, "echo", value=1)


def test_the_next_host_is_tried(broker: Qpid, connect: Connect) -> None:
    """With several hosts in the URL one that is away costs a try, not the call."""
    (port,) = free_ports(1)
    transport = connect(broker.url.replace("@127.0.0.1", f"@127.0.0.1:{port},guest:guest@127.0.0.1") + MEMORY)
    with serving(transport, "failover"):
        assert client_of(transport, "failover").call({}, "echo", value=1) == 1


def test_a_first_host_that_refuses_is_no_reason_to_give_up(broker: Qpid, connect: Connect) -> None:
    """If the first host refuses the log-in permanently, the second is tried before anything fails."""
    url = broker.url.replace("guest:guest@127.0.0.1", f"bad:bad@127.0.0.1:{broker.port},guest:guest@127.0.0.1")
    transport = connect(url + MEMORY)
    with serving(transport, "second"):
        assert client_of(transport, "second").call({}, "echo", value=1) == 1


def test_everybody_moves_to_the_other_host(
    broker: Qpid, connect: Connect, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of two brokers one dies: servers and clients go on at the other, where all that they need is made anew."""
    other = Qpid(tmp_path_factory.mktemp("qpid-other"))
    try:
        other.start()
        hosts = f"guest:guest@127.0.0.1:{other.port},guest:guest@127.0.0.1:{broker.port}"
        servers, clients = (connect(f"qpid://{hosts}/{MEMORY}") for _ in range(2))
        with serving(servers, "moving"):
            client = client_of(clients, "moving", 60).prepare(delivery="at_least_once")
            assert client.call({}, "echo", value=1) == 1
            assert f":{other.port}" in clients.driver.state
            other.kill()

            def answered() -> bool:
                try:
                    return bool(client.call({}, "echo", value=2) == 2)
                except msgbus.MessageUndeliverable:  # The server is on its way.
                    return False

            until(answered, "all meet at the other broker", 60)
            assert f":{broker.port}" in clients.driver.state
    finally:
        other.close()


def test_a_broker_that_is_killed_and_started_again_is_found(
    connect: Connect, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One in memory has forgotten all: servers make anew what they listen to, and clients find it."""
    broker = Qpid(tmp_path_factory.mktemp("qpid-restart"))
    try:
        broker.start()
        with serving(connect(broker.url + MEMORY), "forgotten"):
            client = client_of(connect(broker.url + MEMORY), "forgotten", 60).prepare(delivery="at_least_once")
            assert client.call({}, "echo", value=1) == 1
            broker.kill()
            broker.start()

            def answered() -> bool:
                try:
                    return bool(client.call({}, "echo", value=2) == 2)
                except msgbus.MessageUndeliverable:
                    return False

            until(answered, "the server is back", 60)
    finally:
        broker.close()


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Vouches for the test broker."""
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_broker(authority: trustme.CA, qpid: Qpid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qpid]:
    """A broker with a certificate for localhost; it is skipped where the other one is."""
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "server.key")
    broker = Qpid(tmp_path_factory.mktemp("qpid-tls"), tls=folder)
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: pathlib.Path) -> pathlib.Path:
    """The authority's certificate, as a file."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


def tls_url(broker: Qpid, host: str, trusted: pathlib.Path | None) -> str:
    """The URL of the TLS port by a name of the host, and whom to trust."""
    query = f"{MEMORY}&ssl=true" + (f"&ssl_ca_file={trusted}" if trusted else "")
    return f"qpid://guest:guest@{host}:{broker.tls_port}/{query}"


def test_calls_over_tls(tls_broker: Qpid, connect: Connect, trusted: pathlib.Path) -> None:
    """With the right authority and host name all works: 16 threads and large messages too."""
    transport = connect(tls_url(tls_broker, "localhost", trusted))
    with serving(transport, "tls"):
        client = client_of(transport, "tls", 60)
        large = "x" * 1_000_000
        assert client.call({}, "echo", value=large) == large
        tasks = [Task(lambda: [client.call({}, "echo", value=i) for i in range(50)]) for _ in range(16)]
        assert all(task.result(60) == list(range(50)) for task in tasks)


def test_a_client_certificate_logs_in(
    tls_broker: Qpid, authority: trustme.CA, connect: Connect, trusted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """EXTERNAL: who has a certificate of the right authority needs no password."""
    certificate = authority.issue_cert("somebody@example.org", common_name="somebody")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "me.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "me.key")
    url = (
        f"qpid://localhost:{tls_broker.external_port}/{MEMORY}&ssl=true&ssl_ca_file={trusted}"
        f"&ssl_cert_file={tmp_path / 'me.pem'}&ssl_key_file={tmp_path / 'me.key'}"
    )
    transport = connect(url)
    with serving(transport, "external"):
        assert client_of(transport, "external").call({}, "echo", value=1) == 1


def test_scheme_that_turns_tls_on(tls_broker: Qpid, connect: Connect, trusted: pathlib.Path) -> None:
    """qpids:// says it all, with the authority to trust."""
    url = f"qpids://guest:guest@localhost:{tls_broker.tls_port}/{MEMORY}&ssl_ca_file={trusted}"
    transport = connect(url)
    with serving(transport, "tls-scheme"):
        assert client_of(transport, "tls-scheme", 60).call({}, "echo", value=1) == 1


def test_hosts_that_fail_for_different_reasons(qpid: Qpid, connect: Connect) -> None:
    """The error of fail-over names each host with its own reason, and no password."""
    (port,) = free_ports(1)
    transport = connect(f"qpid://nobody:s3cr3t@127.0.0.1:{port}, 127.0.0.1:{qpid.port}/{MEMORY}")
    with pytest.raises(msgbus.TransportUnavailable) as caught:
        client_of(transport, "failover", timeout=6).cast({}, "echo", value=1)
    text = str(caught.value)
    assert f"127.0.0.1:{port} (user nobody): [Errno 111] Connection refused" in text
    assert f"127.0.0.1:{qpid.port} (user nobody): the log-in by" in text
    assert "s3cr3t" not in text


def test_a_certificate_for_another_host_is_refused(tls_broker: Qpid, connect: Connect, trusted: pathlib.Path) -> None:
    """The host name is checked by default: the certificate is for localhost, not for 127.0.0.1."""
    client = client_of(connect(tls_url(tls_broker, "127.0.0.1", trusted)), "tls", timeout=60)
    with pytest.raises(msgbus.TransportUnavailable, match=r"certificate is not trusted.*host name"):
        Task(client.call, {}, "echo", value=1).result(20)


def test_an_unknown_authority_is_refused(tls_broker: Qpid, connect: Connect) -> None:
    """A certificate that nobody trusted vouches for is refused, unless the operator says ssl_verify=false."""
    client = client_of(connect(tls_url(tls_broker, "localhost", None)), "tls", timeout=60)
    with pytest.raises(msgbus.TransportUnavailable, match="certificate is not trusted"):
        Task(client.call, {}, "echo", value=1).result(20)
    careless = client_of(connect(tls_url(tls_broker, "localhost", None) + "&ssl_verify=false"), "nobody-there")
    with pytest.raises(msgbus.MessageUndeliverable):
        careless.call({}, "echo", value=1)


def test_tls_on_one_side_only(tls_broker: Qpid, connect: Connect) -> None:
    """Both fail with an error that says what to check."""
    plain = f"qpid://guest:guest@localhost:{tls_broker.port}/?ssl=true"
    with pytest.raises(msgbus.TransportUnavailable, match="check that this port speaks TLS"):
        Task(client_of(connect(plain), "tls", 60).call, {}, "echo").result(20)
    secure = f"qpid://guest:guest@localhost:{tls_broker.tls_port}/"
    error = Task(client_of(connect(secure), "tls", 3).call, {}, "echo").error(20)
    assert isinstance(error, msgbus.TransportUnavailable)
    assert "check" in str(error)


# What the broker refuses


def test_missing_rights_are_reported(broker: Qpid, connect: Connect) -> None:
    """A user who may only connect gets an error at once, with what to check."""
    transport = connect(broker.url.replace("guest:guest", "limited:limited") + MEMORY)
    server = msgbus.get_rpc_server(transport, msgbus.Target(topic="rights", server="s1"), [Endpoint()])
    with pytest.raises(msgbus.TransportUnavailable, match="check the user's rights"):
        Task(server.start, 60).result(20)


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
def test_a_missing_right_to_publish_is_reported(broker: Qpid, connect: Connect, delivery: Any) -> None:
    """The broker closes the link for it: the error says what to check, at once, and the connection goes on."""
    with serving(connect(broker.url + MEMORY), "unwritable"):
        transport = connect(broker.url.replace("guest:guest", "limited:limited") + MEMORY)
        client = client_of(transport, "unwritable", 30).prepare(delivery=delivery)
        nowhere = Address("topic", "msgbus", "nowhere")
        with pytest.raises(msgbus.TransportUnavailable, match="check the user's rights to publish"):
            Task(client.cast, {}, "echo", value=1).result(15)
        since = transport.driver.up_since
        # Of many in flight nobody knows which it was. Afterwards they go one by one, until it is known.
        address = Address("topic", "msgbus", "forbidden")
        sent = [
            transport.driver.send(address, Message(b"{}", JSON, f"{number:032}", 20.0), mandatory=True)
            for number in range(20)
        ]
        errors = [future.exception(20) for future in sent]
        assert all(isinstance(error, msgbus.TransportUnavailable) for error in errors)
        with pytest.raises(msgbus.TransportUnavailable, match="check the user's rights to publish") as caught:
            transport.driver.send(address, Message(b"{}", JSON, "1" * 32, 20.0), mandatory=True).result(20)
        assert not caught.value.maybe_delivered
        assert transport.driver.up_since == since
        assert isinstance(
            transport.driver.send(nowhere, Message(b"{}", JSON, "2" * 32, 20.0), mandatory=True).exception(20),
            msgbus.MessageDeliveryFailure,
        )


def test_a_full_queue_fails_only_its_own_sends(broker: Qpid, connect: Connect) -> None:
    """A cast to a full queue raises TransportBlocked; what goes elsewhere at the same time goes on."""
    transport = connect(f"{broker.url}{MEMORY}&queue_limit=60")
    driver = transport.driver
    full, other = Address("topic", "msgbus", "full"), Address("topic", "msgbus", "not-full")
    for address in (full, other):
        driver.subscribe([address], _accept, prefetch=1).ready.result(20)
    with serving(transport, "full-too"):
        pass
    client = client_of(transport, "full-too", 10)
    for _ in range(60):
        client.cast({}, "echo", value=1)
    futures = [
        driver.send(
            Address("topic", "msgbus", "full-too") if n % 2 else other,
            Message(b"{}", JSON, f"{n:032}", 20.0),
            mandatory=True,
        )
        for n in range(100)
    ]
    for n, future in enumerate(futures):
        assert isinstance(future.exception(20), msgbus.TransportBlocked if n % 2 else type(None)), n
    with pytest.raises(msgbus.TransportBlocked, match="full-too"):
        client.cast({}, "echo", value=1)


def test_a_broker_in_memory_refuses_what_is_durable(broker: Qpid, connect: Connect) -> None:
    """It could not keep it: the error names the option that says so, with which the capability goes too."""
    transport = connect(broker.url)
    with serving(transport, "memory"), pytest.raises(msgbus.MessageDeliveryFailure, match="durable=false"):
        client_of(transport, "memory").prepare(delivery="at_least_once").cast({}, "echo", value=1)
    assert Capability.DURABLE in transport.driver.capabilities
    assert Capability.DURABLE not in connect(broker.url + MEMORY).driver.capabilities


@pytest.mark.parametrize(
    "properties",
    [
        {"body": "a text"},
        {"body": {"a": [1, None, {"b": 2.5}]}},
        {"body": b"rubbish", "id": 7, "content_type": "text/plain"},
        {"body": b"rubbish", "properties": {"x": "y"}, "annotations": {"x-opt-z": [1, 2]}, "inferred": True},
        {"body": None},
    ],
    ids=range(5),
)
def test_a_strange_message_costs_nothing(broker: Qpid, connect: Connect, properties: dict[str, Any]) -> None:
    """A user with the right to send can send messages that msgbus does not: they are dropped, the server goes on."""
    transport = connect(broker.url + MEMORY)
    with serving(transport, "strange"):
        client = client_of(transport, "strange")
        assert client.call({}, "echo", value=1) == 1
        foreign = BlockingConnection(broker.url.replace("qpid", "amqp"), allow_insecure_mechs=True)
        foreign.create_sender("msgbus/strange").send(ProtonMessage(**properties))
        foreign.close()
        assert client.call({}, "echo", value=2) == 2
        until(lambda: broker.queues()["msgbus:strange"]["messages"] == 0, "the strange message is gone")


def test_nodes_may_be_made_beforehand(broker: Qpid, connect: Connect) -> None:
    """With declare=false nothing is created: a missing node is an error that says what to do."""
    url = f"{broker.url}{MEMORY}&declare=false"
    server = msgbus.get_rpc_server(connect(url), msgbus.Target(topic="ready-made", server="s1"), [Endpoint()])
    with pytest.raises(msgbus.TransportUnavailable, match="beforehand"):
        Task(server.start, 60).result(20)
    for name in ("msgbus", "msgbus:!inboxes"):
        with contextlib.suppress(Exception):  # Another test has made it.
            broker.create("DirectExchange", name, durable=True, unroutableMessageBehaviour="REJECT")
    with serving(connect(broker.url + MEMORY), "ready-made"):
        pass  # as an operator would
    before = set(broker.exchanges()) | set(broker.queues())
    with serving(connect(url), "ready-made"):
        client = client_of(connect(url), "ready-made")
        assert client.call({}, "echo", value=1) == 1
        client.fanout_cast({}, "echo", value=1)
        made = (set(broker.exchanges()) | set(broker.queues())) - before
        assert all(name.startswith(("qpidsub_", "TempQueue")) for name in made), made


# Connections that break


def test_calls_in_flight_outlive_a_cut(broker: Qpid, proxy: Proxy, connect: Connect) -> None:
    """The connection of the client is cut while calls run: under at_least_once each gets its own answer."""
    release = threading.Event()

    class Waiting:
        def work(self, _ctxt: object, value: int) -> int:
            release.wait(30)
            return value

    with serving(connect(broker.url + MEMORY), "cut", Waiting()):
        client = client_of(connect(through(broker, proxy)), "cut", 30).prepare(delivery="at_least_once")
        tasks = [Task(client.call, {}, "work", value=value) for value in range(20)]
        until(lambda: broker.queues()["msgbus:cut"]["messages"] >= 20, "all are there")
        proxy.cut()
        release.set()
        assert [task.result(40) for task in tasks] == list(range(20))


def test_a_silent_connection_is_given_up(broker: Qpid, proxy: Proxy, connect: Connect) -> None:
    """A network that drops everything is noticed by the missing heartbeats, and the server reconnects by itself."""
    servers = connect(through(broker, proxy, "&heartbeat=1"), rpc_response_timeout=20)
    with serving(servers, "silent"):
        client = client_of(connect(broker.url + MEMORY), "silent", 30)
        assert client.call({}, "echo", value=1) == 1
        before = proxy.connections
        proxy.stall()
        until(lambda: proxy.connections > before or "idle" in servers.driver.state, "it noticed", 20)
        proxy.resume()
        assert client.prepare(delivery="at_least_once").call({}, "echo", value=2) == 2


def test_a_connection_that_lingers_at_the_broker_takes_nothing(broker: Qpid, proxy: Proxy, connect: Connect) -> None:
    """A server comes back by another way while the broker still has its old connection: what is sent to it arrives."""
    servers = connect(
        f"qpid://guest:guest@127.0.0.1:{proxy.port},guest:guest@127.0.0.1:{broker.port}/{MEMORY}&heartbeat=1",
    )
    with serving(servers, "lingering"):
        client = client_of(connect(broker.url + MEMORY), "lingering", 30)
        assert client.call({}, "echo", value=1) == 1
        proxy.stall()
        until(lambda: f":{broker.port}" in servers.driver.state and servers.driver.up_since, "it went on", 30)
        assert servers.driver.up_since
        for value in range(20):
            assert client.prepare(server="s1", timeout=10).call({}, "echo", value=value) == value
        proxy.resume()


# A broker that does not answer


def test_inspecting_ends_though_the_broker_is_silent(
    broker: Qpid, proxy: Proxy, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error that says which queue, how long was waited, and what to check. The next one is answered again."""
    monkeypatch.setattr(nodes, "INSPECT_TIMEOUT", 0.5)
    driver = connect(through(broker, proxy)).driver
    address = Address("topic", "msgbus", "silent-inspected")
    driver.subscribe([address], _accept, prefetch=1).ready.result(20)
    proxy.stall()
    error = driver.inspect(address).exception(20)
    assert isinstance(error, msgbus.TransportUnavailable)
    assert "cannot inspect msgbus:silent-inspected: no answer within 0.5 s; check that" in str(error)
    proxy.resume()

    def is_inspected() -> bool:
        found = driver.inspect(address)
        return found.exception(20) is None and found.result().consumers == 1

    until(is_inspected, "the broker answers", 20)


def test_declaring_is_tried_again_until_the_broker_answers(
    broker: Qpid, proxy: Proxy, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the state, and the errors of what cannot be sent, say what is not declared, and what to check."""
    monkeypatch.setattr(management, "ANSWER_TIMEOUT", 0.5)
    driver = connect(through(broker, proxy)).driver
    driver.inspect(Address("topic", "msgbus", "silent-nothing")).exception(20)  # So it is connected.
    proxy.stall()
    address = Address("stored", "msgbus", "silent-declared")
    got: list[Delivery] = []
    subscription = driver.subscribe([address._replace(kind="topic")], got.append, prefetch=1)
    error = driver.send(address, Message(b"", JSON, "short", 2.0), mandatory=True).exception(20)
    assert isinstance(error, msgbus.TransportUnavailable)
    assert not error.maybe_delivered
    sent = driver.send(address, Message(b"", JSON, "long", 60.0), mandatory=True)
    for text in (str(error), driver.state):
        assert re.search(r"has not declared .*silent-declared.*: no answer within 0.5 s; check that", text)
    assert not subscription.ready.done()
    proxy.resume()
    subscription.ready.result(20)
    sent.result(20)
    until(lambda: [delivery.message.id for delivery in got] == ["long"], "the message", 20)


def test_an_inbox_for_which_the_broker_does_nothing_is_reported(
    broker: Qpid, proxy: Proxy, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the state, with what to check, until the broker answers. Only one host is known, so it is waited for."""
    monkeypatch.setattr(management, "ANSWER_TIMEOUT", 0.5)
    driver = connect(through(broker, proxy)).driver
    driver.inspect(Address("topic", "msgbus", "silent-nothing")).exception(20)  # So it is connected.
    proxy.stall()
    inbox = driver.open_inbox(lambda _delivery: None)
    pattern = r"has not answered for \d+ s: inbox '.*' is not consumed from; check that"
    until(lambda: re.search(pattern, driver.state), "the state says so", 20)
    proxy.resume()
    inbox.ready.result(20)
    assert "has not answered" not in driver.state


@pytest.mark.parametrize("kind", ["topic", "fanout", "stored"])
def test_a_broker_that_does_not_answer_is_left_for_the_next_host(
    broker: Qpid, proxy: Proxy, connect: Connect, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """Whether it has to declare a queue, or only to let a link be attached; long before heartbeats are missed."""
    monkeypatch.setattr(management, "ANSWER_TIMEOUT", 1.0)
    hosts = f"guest:guest@127.0.0.1:{proxy.port},guest:guest@127.0.0.1:{broker.port}"
    driver = connect(f"qpid://{hosts}/{MEMORY}&heartbeat=0").driver
    driver.inspect(Address("topic", "msgbus", "silent-nothing")).exception(20)  # So it is connected.
    assert f":{proxy.port}" in driver.state
    proxy.stall()
    address = Address(kind, "msgbus", "silent-left")
    if kind == "stored":
        driver.send(address, Message(b"", JSON, "m", 60.0), mandatory=True).result(20)
    else:
        driver.subscribe([address], _accept, prefetch=1).ready.result(20)
    assert f":{broker.port}" in driver.state


def test_a_connection_on_which_nothing_can_be_sent_is_given_up(
    broker: Qpid, proxy: Proxy, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker closes the link on which messages are sent, and does not answer when it is attached again."""
    monkeypatch.setattr(management, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr(relay, "REATTACH_DELAY", 2.0)
    url = through(broker, proxy, "&heartbeat=0").replace("guest:guest", "limited:limited")
    driver = connect(url).driver

    def send(topic: str, seconds: float) -> BaseException | None:
        message = Message(b"", JSON, topic, seconds)
        return driver.send(Address("topic", "msgbus", topic), message, mandatory=True).exception(20)

    assert "check the user's rights to publish" in str(send("silent-forbidden", 20.0))
    proxy.stall()
    error = send("silent-other", 0.5)
    assert isinstance(error, msgbus.TransportBlocked)
    assert "has closed the link on which messages are sent" in str(error)
    until(lambda: driver.up_since is None, "the connection is given up", 20)


def test_an_exchange_that_was_deleted_is_declared_again(broker: Qpid, connect: Connect) -> None:
    """For the next one that listens, over a connection that has declared it before."""
    driver = connect(broker.url + MEMORY).driver
    driver.subscribe([Address("topic", "fleeting", "first")], _accept, prefetch=1).ready.result(20)
    broker.delete("Exchange", "fleeting")
    second = Address("topic", "fleeting", "second")
    driver.subscribe([second], _accept, prefetch=1).ready.result(20)
    driver.send(second, Message(b"", JSON, "m", 60.0), mandatory=True).result(20)


def test_a_queue_that_is_deleted_under_a_server_comes_back(broker: Qpid, connect: Connect) -> None:
    """An operator deletes the topic's queue: the server declares it again, and says so in the log."""
    transport = connect(broker.url + MEMORY)
    with serving(transport, "deleted"):
        client = client_of(transport, "deleted", 5)
        assert client.call({}, "echo", value=1) == 1
        broker.delete("Queue", "msgbus:deleted")

        def answered() -> bool:
            try:
                return bool(client.call({}, "echo", value=2) == 2)
            except msgbus.MessageUndeliverable:
                return False

        until(answered, "the server is back", 20)


def test_twenty_reconnects_leave_nothing_behind(broker: Qpid, proxy: Proxy, connect: Connect) -> None:
    """After each cut inboxes and queues are back: no queue, exchange, connection, thread or descriptor is added."""
    transport = connect(through(broker, proxy))
    with serving(transport, "again"):
        client = client_of(transport, "again", 30).prepare(delivery="at_least_once")
        assert client.call({}, "echo", value=0) == 0

        def state() -> Counter[str]:
            """Names, and how many there are of each. What tests before this one had may go meanwhile."""
            queues = broker.queues()
            threads = (thread.name for thread in threading.enumerate())
            # A server may add threads while it works, up to the size of its pool.
            lasting = [name for name in threads if not name.startswith(("msgbus-again", "msgbus-connect"))]
            names = [name for name in queues if name.startswith("msgbus:")]
            made = ["subscription" for name in queues if name.startswith("qpidsub_")]
            consumers = ["consumer"] * sum(queue["consumers"] for queue in queues.values())
            descriptors = ["descriptor"] * len(os.listdir("/proc/self/fd"))
            return Counter([*names, *made, *consumers, *broker.exchanges(), *lasting, *descriptors])

        until(lambda: len(broker.connections()) == 1, "one connection")
        before = state()
        for number in range(20):
            proxy.cut()
            assert client.call({}, "echo", value=number) == number
        until(lambda: len(broker.connections()) == 1, "one connection again")
        nothing_is_added(state, before)


# Queues


def test_what_lives_how_long(broker: Qpid, connect: Connect) -> None:
    """Inbox and fanout go with a clean close; the queues of topic and server stay for the next one."""
    transport = connect(broker.url + MEMORY)
    before = set(broker.queues())
    with serving(transport, "lifetimes"):
        assert client_of(transport, "lifetimes").call({}, "echo", value=1) == 1
        assert len(own_nodes(broker)) == 2
    transport.cleanup()
    until(lambda: not own_nodes(broker), "they are gone")
    left = {name: queue["lifetime"] for name, queue in broker.queues().items() if name not in before}
    left = {name: lifetime for name, lifetime in left.items() if not name.startswith("TempQueue")}
    assert left == {"msgbus:lifetimes": "PERMANENT", "msgbus:lifetimes:s1": "PERMANENT"}


def test_the_queue_of_a_server_may_go_with_it(broker: Qpid, connect: Connect) -> None:
    """With keep_server_queues=false names that never come back leave nothing behind."""
    transport = connect(f"{broker.url}{MEMORY}&keep_server_queues=false")
    with serving(transport, "passing"):
        assert client_of(transport, "passing").prepare(server="s1").call({}, "echo", value=1) == 1
        assert "msgbus:passing:s1" in broker.queues()
    until(lambda: "msgbus:passing:s1" not in broker.queues(), "it is gone")
    assert "msgbus:passing" in broker.queues()


def test_the_queue_of_a_topic_may_go_with_its_last_server(broker: Qpid, connect: Connect) -> None:
    """With keep_topic_queues=false topics that are used once leave nothing behind."""
    transport = connect(f"{broker.url}{MEMORY}&keep_server_queues=false&keep_topic_queues=false")
    with serving(transport, "once"):
        assert client_of(transport, "once").call({}, "echo", value=1) == 1
        assert "msgbus:once" in broker.queues()
    until(lambda: not [name for name in broker.queues() if name.startswith("msgbus:once")], "they are gone")


def test_a_poisonous_message_becomes_a_dead_letter(
    broker: Qpid, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A cast that its server never manages lies in the dead letters with its reason, after the configured attempts."""
    caplog.set_level(logging.CRITICAL, logger="msgbus")
    letters: list[DeadLetter] = []
    transport = connect(broker.url + MEMORY, rpc_cast_retries=2)
    with serving(transport, "dying", on_dead_letter=letters.append):
        client_of(transport, "dying").prepare(delivery="at_least_once").cast({}, "fail")
        until(lambda: broker.queues().get("msgbus:dying:!dead", {}).get("messages") == 1, "a dead letter", 30)
    assert letters[0].reason == "ValueError: never works"
    assert letters[0].attempts == 3
    assert "never works" in "".join(letters[0].traceback)
    found: list[Delivery] = []
    subscription = transport.driver.subscribe([Address("dead", "msgbus", "dying")], found.append, prefetch=1)
    until(lambda: found, "the letter is read")
    assert b"ValueError: never works" in found[0].message.body
    found[0].accept()
    subscription.close().result(20)


@pytest.mark.parametrize("name", ["with/slash", "a#b*.c", "two words", "Größe 漢字 🐇", "%2F:!fanout", "%F", "x" * 75])
def test_names_may_hold_anything(broker: Qpid, connect: Connect, name: str) -> None:
    """Topic, server and exchange."""
    transport = connect(broker.url + MEMORY)
    target = msgbus.Target(exchange=name, topic=name, server=name)
    server = msgbus.get_rpc_server(transport, target, [Endpoint()])
    server.start(20)
    client = msgbus.get_rpc_client(transport, msgbus.Target(exchange=name, topic=name), timeout=20)
    assert client.call({}, "echo", value=1) == 1
    assert client.prepare(server=name).call({}, "echo", value=2) == 2
    server.stop()
    assert server.wait(20) == 0


def test_large_messages_go_both_ways(broker: Qpid, connect: Connect) -> None:
    """In many frames, at the same time as small ones."""
    transport = connect(broker.url + MEMORY)
    with serving(transport, "large"):
        client = client_of(transport, "large", 60)
        large = "0123456789abcdef" * 500_000
        big = [Task(client.call, {}, "echo", value=large) for _ in range(3)]
        small = [client.call({}, "echo", value=value) for value in range(100)]
        assert small == list(range(100))
        assert all(task.result(60) == large for task in big)


def test_what_the_broker_takes_is_checked_before_it_is_sent(broker: Qpid, connect: Connect) -> None:
    """Over its limit (100 MiB by default) the message fails alone, also where our own option allows more."""
    transport = connect(f"{broker.url}{MEMORY}&max_message_size=200000000")
    with serving(transport, "too-large"):
        client = client_of(transport, "too-large", 60)
        driver = transport.driver
        huge = driver.send(
            Address("topic", "msgbus", "too-large"), Message(bytes(105_000_000), JSON, "1" * 32, 30.0), mandatory=True
        )
        assert client.call({}, "echo", value=1) == 1
        assert isinstance(huge.exception(60), msgbus.MessageTooLarge)
        assert transport.driver.up_since


# Fork


def test_a_forked_child_starts_clean(broker: Qpid, connect: Connect) -> None:
    """A child of fork() makes a connection of its own, and the parent's goes on as if nothing had happened."""
    transport = connect(broker.url + MEMORY)
    with serving(connect(broker.url + MEMORY), "forked"):
        client = client_of(transport, "forked")
        assert client.call({}, "echo", value=1) == 1
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if client.call({}, "echo", value=2) == 2 else 1)
            except BaseException:  # whatever it is: a child of a test must not go on running the tests
                os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert client.call({}, "echo", value=3) == 3


def test_what_is_closed_during_a_reconnect_is_removed_too(broker: Qpid, proxy: Proxy, connect: Connect) -> None:
    """A close while the connection is away for a moment leaves nothing of its own behind."""
    transport = connect(through(broker, proxy))
    server = msgbus.get_rpc_server(transport, msgbus.Target(topic="leaving", server="s1"), [Endpoint()])
    server.start(20)
    assert client_of(transport, "leaving").call({}, "echo", value=1) == 1
    proxy.refuse()
    proxy.cut()
    until(lambda: not broker.connections(), "the connection is gone")

    def close() -> None:
        server.wait(20)
        transport.cleanup()

    closing = Task(close)
    proxy.accept()
    closing.join(30)
    until(lambda: not own_nodes(broker) and not broker.connections(), "all is gone", 20)
