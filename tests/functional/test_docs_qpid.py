"""The broker that docs/qpid-broker.json describes is one to start from."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

import msgbus
from msgbus.conformance.waiting import until
from tests.functional.brokers.processes import BrokerMissing
from tests.functional.brokers.qpid import Qpid
from tests.functional.test_docs import Endpoint, serving, transport_to, use_all_verbs

proton = pytest.importorskip("proton", reason="the extra qpid is not installed")
utils = pytest.importorskip("proton.utils")

DOCS = pathlib.Path(__file__).parents[2] / "docs"
CONFIG = DOCS / "qpid-broker.json"


def password_of(user: str) -> str:
    """What the file says."""
    providers = json.loads(CONFIG.read_text())["authenticationproviders"]
    found: dict[str, str] = {entry["name"]: entry["password"] for entry in providers[0]["users"]}
    return found[user]


@pytest.fixture
def broker(tmp_path: pathlib.Path) -> Iterator[Qpid]:
    """A broker that was started with the file, and with a key store made by the command of the page."""
    certificate = (authority := trustme.CA()).issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    try:
        broker = Qpid(tmp_path / "broker", config=CONFIG)
    except BrokerMissing as error:
        pytest.skip(str(error))  # in CI all other tests with it have failed for it
    found = re.search(r"^openssl pkcs12 .*$", (DOCS / "qpid_broker.md").read_text(), re.MULTILINE)
    assert found is not None
    command = found[0].replace("/var/lib/qpid", str(broker.base / "work"))
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


def url_of(broker: Qpid, user: str) -> str:
    """As a user of that broker."""
    authority = broker.base.parent / "ca.pem"
    return f"qpid://{user}:{password_of(user)}@localhost:{broker.port}/?ssl=true&ssl_ca_file={authority}"


def connect(broker: Qpid, user: str) -> Any:
    """As that user, without msgbus."""
    domain = proton.SSLDomain(proton.SSLDomain.MODE_CLIENT)
    domain.set_trusted_ca_db(str(broker.base.parent / "ca.pem"))
    domain.set_peer_authentication(proton.SSLDomain.VERIFY_PEER_NAME)
    address = f"amqps://localhost:{broker.port}"
    return utils.BlockingConnection(address, 30, ssl_domain=domain, user=user, password=password_of(user))


def test_rights_suffice_and_are_no_more_than_needed(broker: Qpid) -> None:
    """With the rights of the page all verbs, streams, pings and dead letters work; a client cannot serve."""
    endpoint = Endpoint()
    with (
        transport_to(url_of(broker, "inventory"), rpc_cast_retries=0) as ours,
        transport_to(url_of(broker, "shop")) as theirs,
    ):
        client = msgbus.get_rpc_client(theirs, msgbus.Target(topic="inventory"), timeout=20)
        with serving(ours, endpoint):
            use_all_verbs(client, endpoint)
            client.prepare(delivery="at_least_once").cast({}, "fail")
            service = connect(broker, "inventory")
            try:
                until(lambda: "msgbus:inventory:!dead" in broker.log(), "the dead letters")
                assert service.create_receiver("msgbus:inventory:!dead").receive() is not None
            finally:
                service.close()
            thief = msgbus.get_rpc_server(theirs, msgbus.Target(topic="inventory", server="two"), [endpoint])
            with pytest.raises(msgbus.TransportUnavailable, match="403"):
                thief.start(20)
    assert "ACL-1002" in broker.log()


def test_a_client_may_not_touch_a_queue(broker: Qpid) -> None:
    """A client can neither read from the queues of a service nor send to them, nor to another topic."""
    with transport_to(url_of(broker, "inventory")) as ours, serving(ours, Endpoint()):
        client = connect(broker, "shop")
        try:
            for address in ("msgbus:inventory", "msgbus:inventory:one"):
                with pytest.raises(utils.LinkDetached, match="unauthorized-access"):
                    client.create_receiver(address)
            for address in ("msgbus:inventory", "msgbus:inventory:one", "msgbus/billing"):
                with pytest.raises(utils.LinkDetached, match="not-allowed"):
                    client.create_sender(address).send(proton.Message("x"))
            # What the page says that the rights do not do.
            client.create_receiver("msgbus/inventory")
        finally:
            client.close()
