"""What the kombu driver promises beyond what every driver does: RabbitMQ's own failures, each with its own error."""

from __future__ import annotations

import datetime
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import amqp
import pytest
import trustme

import msgbus
from msgbus.conformance.waiting import Task, until
from msgbus.drivers.base import Address, Capability, Delivery, Message, QueueInfo
from msgbus.drivers.kombu.feed import CHECK_TIMEOUT
from msgbus.drivers.kombu.publisher import STALL_TIMEOUT
from msgbus.drivers.kombu.session import CHECK_INTERVAL
from msgbus.message import JSON, DeadLetter
from tests.functional.brokers.processes import free_ports
from tests.functional.brokers.proxy import Proxy
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.services import Connect, Endpoint, client_of, nothing_is_added, serving
from tests.support import new_conf


def through(broker: RabbitMQ, proxy: Proxy, query: str = "") -> str:
    """The broker's URL, by way of a proxy."""
    return broker.url.replace(f":{broker.port}/", f":{proxy.port}/") + query


@pytest.fixture
def proxy(rabbitmq: RabbitMQ) -> Iterator[Proxy]:
    """A proxy in front of the broker."""
    proxy = Proxy(rabbitmq.port)
    yield proxy
    proxy.close()


# Connecting


def test_a_wrong_password_is_reported_at_once_and_never_shown(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """Waiting would not help: the first call fails at once, with user, host, port and what to check, no password."""
    url = rabbitmq.url.replace("guest:guest", "guest:s3cr3t-pw")
    task = Task(client_of(connect(url), "nobody", timeout=60).call, {}, "echo", value=1)
    with pytest.raises(msgbus.TransportUnavailable) as caught:
        task.result(20)
    text = str(caught.value)
    assert f"127.0.0.1:{rabbitmq.port}" in text
    assert "user guest" in text
    assert "password" in text
    assert "s3cr3t" not in text


def test_a_missing_virtual_host_is_reported_at_once(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """Likewise with a virtual host that does not exist."""
    task = Task(client_of(connect(f"{rabbitmq.url}nowhere"), "nobody", timeout=60).call, {}, "echo", value=1)
    with pytest.raises(msgbus.TransportUnavailable, match="virtual host nowhere"):
        task.result(20)


def test_a_broker_that_is_not_there_is_waited_for_until_the_deadline(connect: Connect) -> None:
    """It may be starting just now. At the deadline the error says which host and port, why, and what to check."""
    (port,) = free_ports(1)
    client = client_of(connect(f"rabbit://guest:guest@127.0.0.1:{port}/"), "nobody", timeout=1.5)
    with pytest.raises(msgbus.TransportUnavailable, match=f"127.0.0.1:{port}.*refused.*check"):
        client.cast({}, "echo", value=1)


def test_a_call_says_why_it_was_not_sent(rabbitmq: RabbitMQ, proxy: Proxy, connect: Connect) -> None:
    """Also in a process that was connected before, the error of a call is the reason, and not that time has passed."""
    transport = connect(through(rabbitmq, proxy))
    with serving(transport, "away"):
        client = client_of(transport, "away")
        assert client.call({}, "echo", value=1) == 1
        proxy.refuse()
        proxy.cut()
        until(lambda: "refused" in transport.driver.state, "it is known that the connection is gone")
        with pytest.raises(msgbus.TransportUnavailable, match=f"127.0.0.1:{proxy.port}.*check"):
            client.prepare(timeout=1.5).call({}, "echo", value=2)
        proxy.accept()
        assert client.call({}, "echo", value=3) == 3


def test_a_queue_that_may_not_be_inspected_does_not_count_as_empty(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """A user without a right on a queue learns nothing of it; it is not said that it has no consumers."""
    rabbitmq.add_user("blind", "blind")
    rabbitmq.set_permissions("blind", "^reply_", "^(reply_.*|msgbus)$", "^reply_")
    try:
        with serving(connect(rabbitmq.url), "unseen"):
            blind = connect(rabbitmq.url.replace("guest:guest@", "blind:blind@"))
            assert blind.inspect(Address("topic", "msgbus", "unseen"), 10) in (None, QueueInfo(1, 0))
            assert blind.inspect(Address("topic", "msgbus", "nobody"), 10) in (None, QueueInfo(0, 0))
            blind.cleanup()
    finally:
        rabbitmq.delete_user("blind")


def test_the_next_host_is_tried(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """With several hosts in the URL one that is away costs a try, not the call."""
    (port,) = free_ports(1)
    url = rabbitmq.url.replace("@127.0.0.1", f"@127.0.0.1:{port},guest:guest@127.0.0.1")
    transport = connect(url)
    with serving(transport, "failover"):
        assert client_of(transport, "failover").call({}, "echo", value=1) == 1


def test_failover_to_a_host_whose_log_in_stands_at_the_first(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """A host without a user and password has those of the host before it, and not those that are the default."""
    (port,) = free_ports(1)
    rabbitmq.add_user("app", "s3cr3t")
    try:
        transport = connect(f"rabbit://app:s3cr3t@127.0.0.1:{port}, 127.0.0.1:{rabbitmq.port} /")
        with serving(transport, "failover"):
            assert client_of(transport, "failover").call({}, "echo", value=1) == 1
        assert "(user app," in transport.driver.state
    finally:
        rabbitmq.delete_user("app")


def test_hosts_that_fail_for_different_reasons(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """The error of fail-over names each host with its own reason, and no password."""
    (port,) = free_ports(1)
    transport = connect(f"rabbit://nobody:s3cr3t@127.0.0.1:{port},127.0.0.1:{rabbitmq.port}/")
    client = client_of(transport, "failover", timeout=6)
    with pytest.raises(msgbus.TransportUnavailable) as caught:
        client.cast({}, "echo", value=1)
    text = str(caught.value)
    assert f"127.0.0.1:{port} (user nobody, virtual host /): [Errno 111] Connection refused" in text
    assert f"127.0.0.1:{rabbitmq.port} (user nobody, virtual host /): the log-in was refused" in text
    assert "s3cr3t" not in text


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Vouches for the test broker."""
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_broker(
    authority: trustme.CA, rabbitmq_310: RabbitMQ, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RabbitMQ]:
    """A RabbitMQ with a certificate for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "server.key")
    for file in folder.iterdir():
        file.chmod(0o644)
    node = RabbitMQ("3.10", tmp_path_factory.mktemp("rabbitmq-tls"), tls=folder)
    try:
        node.start()
        yield node
    finally:
        node.close()


def tls_url(node: RabbitMQ, host: str, authority_file: Path | None) -> str:
    """The URL of the TLS port by a name of the host, and whom to trust."""
    query = "?ssl=true" + (f"&ssl_ca_file={authority_file}" if authority_file else "")
    return f"rabbit://guest:guest@{host}:{node.tls_port}/{query}"


def test_calls_over_tls(tls_broker: RabbitMQ, authority: trustme.CA, connect: Connect, tmp_path: Path) -> None:
    """With the right authority and host name all works: 16 threads and large messages too."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    transport = connect(tls_url(tls_broker, "localhost", tmp_path / "ca.pem"))
    with serving(transport, "tls"):
        client = client_of(transport, "tls")
        large = "x" * 1_000_000
        assert client.call({}, "echo", value=large) == large
        tasks = [Task(lambda: [client.call({}, "echo", value=i) for i in range(100)]) for _ in range(16)]
        assert all(task.result(60) == list(range(100)) for task in tasks)


@pytest.mark.parametrize("scheme", ["amqps", "rabbits"])
def test_scheme_that_turns_tls_on(
    scheme: str, tls_broker: RabbitMQ, authority: trustme.CA, connect: Connect, tmp_path: Path
) -> None:
    """Nothing else has to be said for a call over TLS."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    query = f"?ssl_ca_file={tmp_path / 'ca.pem'}"
    transport = connect(f"{scheme}://guest:guest@localhost:{tls_broker.tls_port}/{query}")
    with serving(transport, f"tls-{scheme}"):
        assert client_of(transport, f"tls-{scheme}").call({}, "echo", value=1) == 1


@pytest.mark.parametrize(
    "url",
    [
        "rabbit://u:s3cr3t@{at}/?ssl_ca_file={ca}",
        "rabbit://u:s3cr3t@{at}/?ssl_verify=true",
        "rabbit://u:s3cr3t@{at}/?ssl=false&ssl_cert_file={ca}",
        "rabbit+ssl://u:s3cr3t@{at}/",
        "kombu+amqps://u:s3cr3t@{at}/",
        "rabbits://u:s3cr3t@{at}/?ssl=false",
        "qpid://u:s3cr3t@{at}/?ssl_ca_file={ca}",
        "qpid+ssl://u:s3cr3t@{at}/",
    ],
)
def test_tls_that_is_asked_for_in_a_wrong_way_sends_nothing(url: str, tmp_path: Path) -> None:
    """The mistake is an error when the transport is made: not one connection is made, and no password sent."""
    (tmp_path / "ca.pem").touch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        at = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises((msgbus.ConfigurationError, msgbus.InvalidTransportURL)) as caught:
            msgbus.get_rpc_transport(new_conf(), url.format(at=at, ca=tmp_path / "ca.pem"))
        assert "s3cr3t" not in str(caught.value)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_scheme_of_tls_sends_nothing_in_the_clear() -> None:
    """To a port that does not speak TLS goes the beginning of a handshake, and not one byte of AMQP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        at = f"127.0.0.1:{listener.getsockname()[1]}"
        transport = msgbus.get_rpc_transport(new_conf(), f"amqps://u:s3cr3t@{at}/")
        failed = Task(client_of(transport, "tls", timeout=3).cast, {}, "echo", value=1)
        listener.settimeout(30)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(30)
            received = peer.recv(4096)
    assert isinstance(failed.error(30), msgbus.TransportUnavailable)
    transport.cleanup()
    assert received[:2] == b"\x16\x03"  # a record of a TLS handshake
    assert b"AMQP" not in received


def test_a_certificate_for_another_host_is_refused(
    tls_broker: RabbitMQ, authority: trustme.CA, connect: Connect, tmp_path: Path
) -> None:
    """The host name is checked by default: the certificate is for localhost, not for 127.0.0.1."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client = client_of(connect(tls_url(tls_broker, "127.0.0.1", tmp_path / "ca.pem")), "tls", timeout=60)
    with pytest.raises(msgbus.TransportUnavailable, match=r"certificate is not trusted.*host name"):
        Task(client.call, {}, "echo", value=1).result(20)


def test_an_unknown_authority_is_refused(tls_broker: RabbitMQ, connect: Connect) -> None:
    """A certificate that nobody trusted vouches for is refused, unless the operator says ssl_verify=false."""
    client = client_of(connect(tls_url(tls_broker, "localhost", None)), "tls", timeout=60)
    with pytest.raises(msgbus.TransportUnavailable, match="certificate is not trusted"):
        Task(client.call, {}, "echo", value=1).result(20)
    careless = client_of(connect(tls_url(tls_broker, "localhost", None) + "&ssl_verify=false"), "nobody-there")
    with pytest.raises(msgbus.MessageUndeliverable):
        careless.call({}, "echo", value=1)


# What RabbitMQ refuses


def test_a_memory_alarm_blocks_senders_and_not_servers(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """In an alarm a sender gets TransportBlocked at its deadline; a server goes on draining; all is well afterwards."""
    runs: list[int] = []
    go_on = threading.Event()

    class Slow:
        def work(self, _ctxt: object, number: int) -> None:
            go_on.wait(60)
            runs.append(number)

    servers = connect(rabbitmq.url, rpc_prefetch=2, executor_thread_pool_size=1)
    clients = connect(rabbitmq.url)
    with serving(servers, "alarm", Slow()):
        patient = client_of(clients, "alarm")
        client = patient.prepare(timeout=5)  # The driver says why a moment before: a twentieth of that.
        clients.inbox(time.monotonic() + 20)
        for number in range(20):
            patient.prepare(timeout=None).cast({}, "work", number=number)
        rabbitmq.memory_alarm(True)
        try:
            # RabbitMQ says so only to a connection that publishes: the first message is taken and held.
            for _ in range(2):
                with pytest.raises(msgbus.TransportBlocked, match="memory"):
                    client.cast({}, "work", number=-1)
            with pytest.raises(msgbus.TransportBlocked, match="memory"):
                client.call({}, "work", number=-1)
            assert "accepts no messages" in clients.driver.state
            go_on.set()
            until(lambda: len(runs) >= 20, "the server drained its queue during the alarm")
        finally:
            rabbitmq.memory_alarm(False)
        until(lambda: _works(client), "casts are taken again", 20)
        until(lambda: 99 in runs, "and arrive")


def test_an_alarm_is_no_reason_to_change_the_host(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """RabbitMQ answers nothing on a connection that it does not read, nor would it on one to the next host."""
    query = "?quorum_queues=true"
    with serving(connect(rabbitmq.url + query), "steadfast"), ExitStack() as stack:
        proxies = [stack.enter_context(closing(Proxy(rabbitmq.port))) for _ in range(2)]
        hosts = ",".join(f"guest:guest@127.0.0.1:{proxy.port}" for proxy in proxies)
        transport = connect(f"rabbit://{hosts}/{query}")
        stack.callback(transport.cleanup)
        client = client_of(transport, "steadfast", CHECK_INTERVAL + CHECK_TIMEOUT + 3)
        assert client.call({}, "echo", value=1) == 1
        rabbitmq.memory_alarm(True)
        try:
            with pytest.raises(msgbus.TransportBlocked, match="memory"):
                client.cast({}, "echo", value=2)
        finally:
            rabbitmq.memory_alarm(False)
        assert proxies[1].connections == 0
        assert client.call({}, "echo", value=3) == 3
        assert proxies[1].connections == 0


def _works(client: msgbus.RPCClient) -> bool:
    try:
        client.cast({}, "work", number=99)
    except msgbus.MessagingException:
        return False
    return True


def test_a_full_queue_blocks_the_send(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """Where the operator bounds a queue and has RabbitMQ refuse what is too much, a cast raises TransportBlocked."""
    transport = connect(rabbitmq.url)
    with serving(transport, "full"):
        pass
    rabbitmq.limit_queue("msgbus/full", 3)
    client = client_of(transport, "full", timeout=10)

    def fill() -> str:
        try:
            client.cast({}, "echo", value=1)
        except msgbus.TransportBlocked as exc:
            return str(exc)
        return ""

    assert "its queue is full" in until(fill, "the queue is full", 20)


def test_missing_rights_are_reported(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """If the user may not declare queues, the server's start fails at once, with what to check."""
    rabbitmq.add_user("poor", "pw")
    rabbitmq.set_permissions("poor", "^$", ".*", ".*")
    transport = connect(rabbitmq.url.replace("guest:guest", "poor:pw"))
    server = msgbus.get_rpc_server(transport, msgbus.Target(topic="rights", server="s1"), [Endpoint()])
    with pytest.raises(msgbus.TransportUnavailable, match=r"403.*list_permissions"):
        Task(server.start, 60).result(20)


def test_an_exchange_that_cannot_be_declared_harms_nobody_else(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """A call to an exchange that exists with another type fails with RabbitMQ's reason; other calls go on meanwhile."""
    with amqp.Connection(f"127.0.0.1:{rabbitmq.port}") as foreign:
        foreign.channel().exchange_declare("foreign", "fanout", durable=True, auto_delete=False)
    transport = connect(rabbitmq.url)
    with serving(transport, "unharmed"):
        client = client_of(transport, "unharmed")
        stop = threading.Event()

        def others() -> int:
            count = 0
            while not stop.is_set():
                assert client.call({}, "echo", value=count) == count
                count += 1
            return count

        task = Task(others)
        for policy in ("at_most_once", "at_least_once"):
            with pytest.raises(msgbus.TransportUnavailable, match="406"):
                client.prepare(exchange="foreign", delivery=policy, timeout=10).call({}, "echo", value=1)
        stop.set()
        assert task.result(20) > 0


def test_a_missing_right_to_write_is_reported(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """A user who may not publish gets the refusal with what to check, not a time-out and not a storm of tries."""
    with serving(connect(rabbitmq.url), "unwritable"):
        rabbitmq.add_user("mute", "pw")
        rabbitmq.set_permissions("mute", ".*", "^$", ".*")
        client = client_of(connect(rabbitmq.url.replace("guest:guest", "mute:pw")), "unwritable", 30)
        for policy in ("at_most_once", "at_least_once"):
            with pytest.raises(msgbus.TransportUnavailable, match=r"403.*list_permissions"):
                Task(client.prepare(delivery=policy).call, {}, "echo", value=1).result(15)


@pytest.mark.parametrize(
    "properties",
    [
        {"content_type": b"\xff\xfe"},
        {"message_id": b"\xff\xfe"},
        {"application_headers": {"when": datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC), "n": [1, {"a": None}]}},
    ],
)
def test_a_message_with_strange_properties_costs_nothing(
    rabbitmq: RabbitMQ, connect: Connect, properties: dict[str, Any]
) -> None:
    """A peer can set properties that are not text: the message is dropped, and the server goes on."""
    transport = connect(rabbitmq.url)
    with serving(transport, "strange"):
        client = client_of(transport, "strange")
        assert client.call({}, "echo", value=1) == 1
        with amqp.Connection(f"127.0.0.1:{rabbitmq.port}") as foreign:
            foreign.channel().basic_publish(amqp.Message(b"rubbish", **properties), "msgbus", "strange")
        assert client.call({}, "echo", value=2) == 2
        until(lambda: rabbitmq.queues()["msgbus/strange"]["messages"] == 0, "the strange message is gone")
        assert rabbitmq.connections() == 2


def test_a_first_host_that_refuses_is_no_reason_to_give_up(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """If the first host refuses the log-in permanently, the second is tried before anything fails."""
    url = rabbitmq.url.replace("guest:guest@127.0.0.1", f"bad:bad@127.0.0.1:{rabbitmq.port},guest:guest@127.0.0.1")
    transport = connect(url)
    with serving(transport, "second"):
        assert client_of(transport, "second").call({}, "echo", value=1) == 1


# Connections that break


def test_calls_in_flight_outlive_a_cut(rabbitmq: RabbitMQ, proxy: Proxy, connect: Connect) -> None:
    """The connections of the client are cut while calls run: under at_least_once each gets its own answer."""
    release = threading.Event()

    class Waiting:
        def work(self, _ctxt: object, value: int) -> int:
            release.wait(30)
            return value

    with serving(connect(rabbitmq.url), "cut", Waiting()):
        client = client_of(connect(through(rabbitmq, proxy)), "cut", 30).prepare(delivery="at_least_once")
        tasks = [Task(client.call, {}, "work", value=value) for value in range(20)]
        until(lambda: rabbitmq.queues()["msgbus/cut"]["messages"] >= 20, "all are there")
        proxy.cut()
        release.set()
        assert [task.result(40) for task in tasks] == list(range(20))


def test_a_large_message_on_a_slow_network_arrives(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """It takes longer than a node may take to confirm anything, and is not sent to the next host for that reason."""
    rate = 1 << 20
    value = "x" * int((STALL_TIMEOUT + 3) * rate)
    with serving(connect(rabbitmq.url), "slow") as endpoint, ExitStack() as stack:
        proxies = [stack.enter_context(closing(Proxy(rabbitmq.port))) for _ in range(2)]
        hosts = ",".join(f"guest:guest@127.0.0.1:{proxy.port}" for proxy in proxies)
        client = client_of(connect(f"rabbit://{hosts}/"), "slow", 60)
        assert client.call({}, "echo", value=1) == 1
        for proxy in proxies:
            proxy.slow_down(rate)
        client.cast({}, "echo", value=value)
        until(lambda: len(endpoint.runs) > 1, "it has arrived", 20)
    assert endpoint.runs == [1, value]


def test_a_host_that_does_not_answer_a_declaration_is_left(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """As one that confirms nothing, and long before heartbeats are missing: the call is sent to the next host."""
    with serving(connect(rabbitmq.url), "undeclared"), ExitStack() as stack:
        proxies = [stack.enter_context(closing(Proxy(rabbitmq.port))) for _ in range(2)]
        hosts = ",".join(f"guest:guest@127.0.0.1:{proxy.port}" for proxy in proxies)
        transport = connect(f"rabbit://{hosts}/")
        transport.inbox(time.monotonic() + 20)
        proxies[0].stall()
        assert client_of(transport, "undeclared", 30).call({}, "echo", value=1) == 1


def test_a_silent_connection_is_given_up(rabbitmq: RabbitMQ, proxy: Proxy, connect: Connect) -> None:
    """A network that drops everything is noticed by the missing heartbeats, and the server reconnects by itself."""
    servers = connect(through(rabbitmq, proxy, "?heartbeat=1"), rpc_response_timeout=20)
    with serving(servers, "silent"):
        client = client_of(connect(rabbitmq.url), "silent", 30)
        assert client.call({}, "echo", value=1) == 1
        before = proxy.connections
        proxy.stall()
        until(lambda: proxy.connections > before or "heartbeat" in servers.driver.state, "it noticed", 20)
        proxy.resume()
        assert client.prepare(delivery="at_least_once").call({}, "echo", value=2) == 2


def test_a_queue_that_is_deleted_under_a_server_comes_back(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """An operator deletes the topic's queue: the server declares it again, and says so in the log."""
    transport = connect(rabbitmq.url)
    with serving(transport, "deleted"):
        client = client_of(transport, "deleted", 5)
        assert client.call({}, "echo", value=1) == 1
        rabbitmq.delete_queue("msgbus/deleted")

        def answered() -> bool:
            try:
                return bool(client.call({}, "echo", value=2) == 2)
            except msgbus.MessageUndeliverable:
                return False

        until(answered, "the server is back", 20)


def test_twenty_reconnects_leave_nothing_behind(rabbitmq: RabbitMQ, proxy: Proxy, connect: Connect) -> None:
    """After each cut the same inbox and queues come back: no queue, connection, thread or descriptor is added."""
    transport = connect(through(rabbitmq, proxy))
    with serving(transport, "again"):
        client = client_of(transport, "again", 30).prepare(delivery="at_least_once")
        assert client.call({}, "echo", value=0) == 0

        def state() -> Counter[str]:
            """Names, and how many there are of each. What tests before this one had may go meanwhile."""
            queues = (name for name in rabbitmq.queues() if "again" in name or name.startswith("reply_"))
            threads = (thread.name for thread in threading.enumerate())
            # A server may add threads while it works, up to the size of its pool.
            lasting = (name for name in threads if not name.startswith("msgbus-again"))
            return Counter([*queues, *lasting, *["descriptor"] * len(os.listdir("/proc/self/fd"))])

        until(lambda: rabbitmq.connections() == 2, "two connections")
        before = state()
        for number in range(20):
            proxy.cut()
            assert client.call({}, "echo", value=number) == number
        until(lambda: rabbitmq.connections() == 2, "two connections again")
        nothing_is_added(state, before)


# Queues


def test_a_clean_close_removes_what_is_ones_own(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """The queues of inbox and fanout go with a clean close; those of the topic and the server stay for the next one."""
    transport = connect(rabbitmq.url)
    before = set(rabbitmq.queues())
    with serving(transport, "lifetimes"):
        assert client_of(transport, "lifetimes").call({}, "echo", value=1) == 1
        queues = rabbitmq.queues()
        own = {name for name in set(queues) - before if "!fanout" in name or name.startswith("reply_")}
        assert len(own) == 2
        assert all(queues[name]["arguments"]["x-expires"] == 60_000 for name in own)
        assert all(queue["durable"] for name, queue in queues.items() if name not in before)
        assert queues["msgbus/lifetimes/s1"]["arguments"]["x-expires"] == 1_800_000
    transport.cleanup()
    left = until(lambda: (rest := set(rabbitmq.queues()) - before) and not rest & own and rest, "they are gone")
    assert left == {"msgbus/lifetimes", "msgbus/lifetimes/s1"}


def test_quorum_queues_count_deliveries(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """With quorum_queues=true a delivery says how often it was delivered before, and the capability is declared."""
    driver = connect(f"{rabbitmq.url}?quorum_queues=true").driver
    assert Capability.ATTEMPT_COUNT in driver.capabilities
    address = Address("topic", "msgbus", "counted")
    attempts: list[int | None] = []
    done = threading.Event()

    def on_delivery(delivery: Delivery) -> None:
        attempts.append(delivery.attempts)
        if len(attempts) < 3:
            delivery.reject(requeue=True)
        else:
            delivery.accept()
            done.set()

    subscription = driver.subscribe([address], on_delivery, prefetch=1)
    subscription.ready.result(20)
    driver.send(address, Message(b"{}", JSON, "1" * 32), mandatory=True).result(20)
    assert done.wait(20)
    assert attempts == [0, 1, 2]
    subscription.close().result(20)
    rabbitmq.delete_queue("msgbus/counted")


def test_dead_letters_are_kept_in_a_queue(
    rabbitmq: RabbitMQ, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A cast that is given up lies in the topic's queue of dead letters, and the hook and the log say why."""
    caplog.set_level(logging.CRITICAL, logger="msgbus")
    letters: list[DeadLetter] = []
    transport = connect(rabbitmq.url, rpc_cast_retries=0)
    with serving(transport, "dying", on_dead_letter=letters.append):
        client_of(transport, "dying").prepare(delivery="at_least_once").cast({}, "fail")
        until(lambda: rabbitmq.queues().get("msgbus/dying/!dead", {}).get("messages") == 1, "a dead letter")
    assert letters[0].reason == "ValueError: never works"
    assert letters[0].attempts == 1
    assert "never works" in "".join(letters[0].traceback)


# Fork


def test_a_forked_child_starts_clean(rabbitmq: RabbitMQ, connect: Connect) -> None:
    """A child of fork() makes connections of its own, and the parent's go on as if nothing had happened."""
    transport = connect(rabbitmq.url)
    with serving(connect(rabbitmq.url), "forked"):
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


def test_ping_counts_a_server_once_over_a_reconnect(rabbitmq: RabbitMQ, proxy: Proxy, connect: Connect) -> None:
    """Its answer comes again if the connection breaks before RabbitMQ has read that it arrived."""
    transport, client = connect(rabbitmq.url), connect(through(rabbitmq, proxy))
    silent = [Address("topic", "msgbus", "pinged"), Address("fanout", "msgbus", "pinged", "silent")]
    subscription = transport.driver.subscribe(silent, lambda _delivery: None, prefetch=10)
    with serving(transport, "pinged"):
        pinging = Task(client_of(client, "pinged").ping, 4.0)
        until(lambda: any(getattr(pending, "answers", ()) for pending in client.router.waiting()), "an answer")
        proxy.cut()
        found = pinging.result(20)
    subscription.close()
    assert ([answer["server"] for answer in found], found.expected) == (["s1"], 2)


def test_what_is_closed_during_a_reconnect_is_removed_too(rabbitmq: RabbitMQ, proxy: Proxy, connect: Connect) -> None:
    """A close while the connection is away for a moment waits for it, and leaves no queue of its own behind."""
    before = set(rabbitmq.queues())
    transport = connect(through(rabbitmq, proxy))
    target = msgbus.Target(topic="leaving", server="s1")
    server = msgbus.get_rpc_server(transport, target, [Endpoint()])
    server.start(20)
    assert client_of(transport, "leaving").call({}, "echo", value=1) == 1
    proxy.refuse()
    proxy.cut()
    until(lambda: transport.driver.up_since is None, "the connection is away")

    def close() -> None:
        server.wait(20)
        transport.cleanup()

    closing = Task(close)
    proxy.accept()
    closing.join(30)
    left = until(lambda: (rest := set(rabbitmq.queues()) - before) and not _own(rest) and rest, "they are gone", 10)
    assert left == {"msgbus/leaving", "msgbus/leaving/s1"}


def _own(names: set[str]) -> set[str]:
    return {name for name in names if "!fanout" in name or name.startswith("reply_")}
