"""The Broker-J that the other functional tests rely on does what it says."""

from __future__ import annotations

import pathlib
import socket
from typing import Any

import pytest
import trustme

from tests.functional.brokers.processes import BrokerFailed, BrokerMissing, poll
from tests.functional.brokers.qpid import USERS, Qpid

proton = pytest.importorskip("proton", reason="the extra qpid is not installed")
utils = pytest.importorskip("proton.utils")


def connect(port: int, user: str | None = "guest", **options: Any) -> Any:
    """A connection of proton."""
    if user is not None:
        options = {"user": user, "password": USERS[user], "allow_insecure_mechs": True} | options
    return utils.BlockingConnection(
        f"amqp{'s' if 'ssl_domain' in options else ''}://localhost:{port}", timeout=30, **options
    )


def mechanism(connection: Any) -> str:
    """What a connection has authenticated with; ends it."""
    found: str = connection.conn.transport.sasl().mech
    connection.close()
    return found


def test_proton_has_tls_and_sasl() -> None:
    """The installed proton was built with OpenSSL and Cyrus proton.SASL.

    If not, it was built before tests/functional/brokers/install has brought their headers, and kept by pip:
    `pip cache remove python_qpid_proton`, then have tox make the environment anew (`tox -r`).
    """
    assert proton.SSL.present()
    assert proton.SASL.extended()


def test_serves_a_client(qpid: Qpid) -> None:
    """A message that a client sends to a queue arrives as it was; the broker's figures show it meanwhile."""
    qpid.create("Queue", "sérved #1", durable=True)
    with pytest.raises(BrokerFailed, match="409"):
        qpid.create("Queue", "sérved #1")
    qpid.create("FanoutExchange", "to all", lifetimePolicy="DELETE_ON_NO_OUTBOUND_LINKS")
    assert qpid.exchanges()["to all"] == {
        "type": "fanout",
        "durable": False,
        "lifetime": "DELETE_ON_NO_OUTBOUND_LINKS",
    }
    qpid.delete("Exchange", "to all")
    assert "to all" not in qpid.exchanges()
    assert qpid.connections() == set()
    connection = connect(qpid.port)
    try:
        assert len(qpid.connections()) == 1
        connection.create_sender("sérved #1").send(proton.Message("hello"))
        facts = {"durable": True, "lifetime": "PERMANENT", "messages": 1, "consumers": 0}
        assert qpid.queues()["sérved #1"] == facts
        receiver = connection.create_receiver("sérved #1")
        assert receiver.receive().body == "hello"
        assert qpid.queues()["sérved #1"] == facts | {"consumers": 1}
        receiver.accept()
    finally:
        connection.close()
    assert qpid.queues()["sérved #1"] == facts | {"messages": 0}
    poll(lambda: not qpid.connections(), 10, "the end of the connection")
    qpid.delete("Queue", "sérved #1")
    assert "sérved #1" not in qpid.queues()
    with pytest.raises(BrokerFailed, match="404"):
        qpid.delete("Queue", "sérved #1")


def test_users(qpid: Qpid) -> None:
    """Passwords are checked, by the mechanism that the client picks; who is limited may connect and nothing else."""
    for name in ("PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256"):
        assert mechanism(connect(qpid.port, allowed_mechs=name)) == name
        with pytest.raises(proton.ConnectionException, match="unauthorized"):
            connect(qpid.port, allowed_mechs=name, password="wrong")
    assert mechanism(connect(qpid.anonymous_port, None)) == "ANONYMOUS"
    qpid.create("Queue", "guarded")
    connection = connect(qpid.port, "limited")
    try:
        with pytest.raises(utils.LinkDetached, match="unauthorized-access"):
            connection.create_receiver("guarded")
    finally:
        connection.close()
        qpid.delete("Queue", "guarded")


def test_keeps_what_is_durable(qpid_durable: Qpid) -> None:
    """After kill and start, and after stop and start, the broker is on the same port, with what was durable."""
    qpid_durable.create("Queue", "kept", durable=True)
    connection = connect(qpid_durable.port)
    connection.create_sender("kept").send(proton.Message("hello", durable=True))
    connection.close()
    for end in (qpid_durable.kill, qpid_durable.stop):
        end()
        assert not qpid_durable.alive()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", qpid_durable.port))
        qpid_durable.start()
        assert qpid_durable.queues()["kept"]["messages"] == 1
    qpid_durable.delete("Queue", "kept")


def test_cut(qpid: Qpid) -> None:
    """A cut closes every connection, and new ones are accepted."""
    connections = [connect(qpid.port), connect(qpid.anonymous_port, None)]
    qpid.cut()
    for connection in connections:
        with pytest.raises(proton.ConnectionException, match="connection:forced"):
            connection.wait(lambda: False, timeout=10)
        connection.close()
    assert qpid.connections() == set()
    connect(qpid.port).close()


def test_pause_and_resume(qpid: Qpid) -> None:
    """A paused broker keeps its connections open and answers nothing; resumed, it answers."""
    with socket.create_connection(("127.0.0.1", qpid.port), 10) as connection:
        qpid.pause()
        try:
            connection.sendall(b"AMQP\x03\x01\x00\x00")
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):
                connection.recv(8)
        finally:
            qpid.resume()
        connection.settimeout(10)
        assert connection.recv(8) == b"AMQP\x03\x01\x00\x00"


def test_tls(qpid: Qpid, tmp_path: pathlib.Path) -> None:
    """A broker that is given certificates serves clients that check them, and clients that show one of their own."""
    authority = trustme.CA()
    server, client = authority.issue_cert("localhost"), authority.issue_cert("alice@example.org", common_name="alice")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    client.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    broker = Qpid(tmp_path / "broker", tls=tmp_path)
    try:
        broker.start()
        assert str(broker.tls_port) in broker.tls_url
        domain = proton.SSLDomain(proton.SSLDomain.MODE_CLIENT)
        domain.set_trusted_ca_db(str(tmp_path / "ca.pem"))
        domain.set_peer_authentication(proton.SSLDomain.VERIFY_PEER_NAME)
        assert mechanism(connect(broker.tls_port, ssl_domain=domain)) == "SCRAM-SHA-256"
        with pytest.raises(proton.ConnectionException):
            connect(broker.external_port, None, ssl_domain=domain)
        domain.set_credentials(str(tmp_path / "client.pem"), str(tmp_path / "client.pem"), None)
        assert mechanism(connect(broker.external_port, None, ssl_domain=domain)) == "EXTERNAL"
    finally:
        broker.close()
    assert not broker.base.exists()


def test_a_failed_start_shows_the_log(qpid: Qpid, tmp_path: pathlib.Path) -> None:
    """A broker that cannot open its port says why, and leaves nothing running."""
    broker = Qpid(tmp_path / "broker", config=qpid.base / "config.json")
    with pytest.raises(BrokerFailed, match="BRK-1019"):
        broker.start()
    assert not broker.alive()


def test_a_missing_broker_says_what_installs_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a broker that is not installed the error names the command that installs it."""
    monkeypatch.setenv("MSGBUS_BROKERS_DIR", str(tmp_path))
    with pytest.raises(BrokerMissing, match=r"tests/functional/brokers/install qpid"):
        Qpid(tmp_path / "broker")
