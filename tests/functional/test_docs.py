"""The pages of the documentation are true. `tests.functional.pages` has the rules for their blocks."""

from __future__ import annotations

import configparser
import contextlib
import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import Any

import click
import pytest
import trustme

import msgbus.aio
from msgbus.cli.serve import serve
from msgbus.conformance.waiting import until
from msgbus.drivers.zmq.matchmakers.file import read_topics
from tests.functional.brokers.rabbitmq import RabbitMQ
from tests.functional.pages import ROOT, URL, Block, blocks, check_configuration, check_rules, run
from tests.support import new_transport

DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page for page in sorted(DOCS.rglob("*.md"))}
WITH_BLOCKS = {name: page for name, page in PAGES.items() if any(not block.left_out for block in blocks(page))}
ON_RABBITMQ = [name for name, page in WITH_BLOCKS.items() if URL in page.read_text()]
ON_NOTHING = [name for name in WITH_BLOCKS if name not in ON_RABBITMQ]
LEFT_OUT = {
    "architecture.md": ["it is a drawing"] * 2,
    "howto/asyncio.md": ["it is a part of a program", "it needs FastAPI", *["it needs the plugin"] * 2],
    "howto/debug.md": ["it is for a cluster with such a queue"] * 2,
    "howto/deploy.md": [
        "it is for systemd; another test reads its command and its times",
        "it is for systemd",
        *["it is for Kubernetes; another test asks both paths"] * 2,
        "it is for RabbitMQ; another test starts one with it",
        *["it needs the service to run"] * 2,
    ],
    "howto/interceptors.md": ["it is a part of a program"] * 4,
    "howto/notifications.md": ["another test reads such a file"],
    "howto/opentelemetry.md": ["it is a part of a program"],
    "howto/secure.md": [
        "it is for RabbitMQ; another test starts one with it",
        "it is for the operator's RabbitMQ; another test applies the rights and uses all verbs",
    ],
    "howto/typed-and-watched.md": ["it installs packages"],
    "howto/write-a-driver.md": [
        *["it installs packages"] * 2,
        *["another test runs it"] * 3,
        *["it needs the packages"] * 2,
        "it is a part of a file",
    ],
    "migrating.md": ["it needs nameko", "it needs the nova of 2012"],
    "qpid_broker.md": ["it is for the operator's broker; another test starts one with this file"],
    "start.md": ["it installs packages"] * 3,
    "tutorial.md": ["it installs packages"] * 2,
    "zmq.md": ["another test reads it", "it installs packages"],
}
"""The reasons of the blocks that are not run."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", ON_RABBITMQ)
def test_blocks_work_next_to_a_rabbitmq(page: str, rabbitmq: RabbitMQ, tmp_path: pathlib.Path) -> None:
    """Pasted in order into an empty directory, they do what the page says."""
    run(PAGES[page], tmp_path, rabbitmq.url)


@pytest.mark.parametrize("page", ON_NOTHING)
def test_blocks_work_without_a_message_system(page: str, tmp_path: pathlib.Path) -> None:
    """Likewise those that need none."""
    run(PAGES[page], tmp_path, "")


def test_no_block_is_left_out_silently() -> None:
    """Every block is run, or says why not; and these are all of those."""
    reasons = {name: [block.left_out for block in check_rules(page)] for name, page in PAGES.items()}
    assert {name: found for name, found in reasons.items() if found} == LEFT_OUT


def test_reference_is_complete() -> None:
    """Every public name is described on a page of the reference."""
    text = "".join(page.read_text() for name, page in PAGES.items() if name.startswith("reference/"))
    described = set(
        re.findall(r"^\.\. auto(?:class|exception|function):: msgbus\.((?:aio\.)?\w+)$", text, re.MULTILINE)
    )
    others = {name for name in msgbus.__all__ if getattr(getattr(msgbus, name), "__name__", name) != name}
    assert {name for name in others if f"`{name}` is another name of" not in text} == set()
    assert described == {*msgbus.__all__, *(f"aio.{name}" for name in msgbus.aio.__all__)} - others


# Blocks that cannot be run are checked in other ways


def only_block(page: str, text: str) -> Block:
    """The block of a page that holds a text."""
    (found,) = [block for block in blocks(PAGES[page]) if text in block.text]
    return found


class Endpoint:
    """What the tests of the rights call."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.gate = True

    def echo(self, _ctxt: object, value: Any) -> Any:
        return value

    def count(self, _ctxt: object, to: int) -> Iterator[int]:
        yield from range(to)

    def note(self, _ctxt: object, text: str) -> None:
        self.notes.append(text)

    def fail(self, _ctxt: object) -> None:
        raise ValueError("never works")

    def wait(self, _ctxt: object) -> None:
        self.notes.append("waits")
        until(lambda: not self.gate, "the end of the test")


@contextlib.contextmanager
def transport_to(url: str, **overrides: Any) -> Iterator[msgbus.Transport]:
    """A transport, closed at the end."""
    transport = new_transport(url, **overrides)
    try:
        yield transport
    finally:
        transport.cleanup()


@contextlib.contextmanager
def serving(transport: msgbus.Transport, endpoint: object) -> Iterator[None]:
    """A server of the topic inventory."""
    target = msgbus.Target(topic="inventory", server="one")
    server = msgbus.get_rpc_server(transport, target, [endpoint])
    server.start(20)
    try:
        yield
    finally:
        server.stop()
        server.wait(20)


def use_all_verbs(client: msgbus.RPCClient, endpoint: Endpoint) -> None:
    """Call, cast, fanout, stream and ping, of a topic with one server."""
    assert client.call({}, "echo", value=1) == 1
    assert client.prepare(server="one", delivery="at_least_once").call({}, "echo", value=2) == 2
    client.cast({}, "note", text="one of you")
    client.fanout_cast({}, "note", text="all of you")
    until(lambda: sorted(endpoint.notes) == ["all of you", "one of you"], "both notes")
    assert list(client.multicall({}, "count", to=1000)) == list(range(1000))
    with client.multicall({}, "count", to=1000) as items:
        assert next(items) == 0
    assert [answer["server"] for answer in client.ping(5)] == ["one"]


def test_rights_suffice_and_are_no_more_than_needed(rabbitmq: RabbitMQ) -> None:
    """With the rights of the page all verbs, streams, pings and dead letters work; a client cannot serve."""
    text = only_block("howto/secure.md", "set_permissions").text.replace("\\\n", " ")
    for line in map(shlex.split, text.splitlines()):
        if line and line[1] == "set_permissions":
            rabbitmq.add_user(line[4], "pw")
            rabbitmq.ctl(*line[1:])
    endpoint = Endpoint()
    url = rabbitmq.url.replace("guest:guest", "{}:pw")
    try:
        with (
            transport_to(url.format("inventory"), rpc_cast_retries=0, rpc_prefetch=1) as ours,
            transport_to(url.format("shop")) as theirs,
            serving(ours, endpoint),
        ):
            client = msgbus.get_rpc_client(theirs, msgbus.Target(topic="inventory"), timeout=20)
            use_all_verbs(client, endpoint)
            client.prepare(delivery="at_least_once").cast({}, "fail")
            until(lambda: rabbitmq.queues().get("msgbus/inventory/!dead", {}).get("messages"), "the dead letter")
            client.prepare(delivery="at_least_once").cast({}, "wait")
            until(lambda: "waits" in endpoint.notes, "the server has as much as it may have")
            with pytest.raises(msgbus.MessagingTimeout, match="consumers there: 1"):
                client.prepare(timeout=1.0).call({}, "echo", value=1)
            endpoint.gate = False
            thief = msgbus.get_rpc_server(theirs, msgbus.Target(topic="inventory", server="two"), [endpoint])
            with pytest.raises(msgbus.TransportUnavailable, match="403"):
                thief.start(20)
            with pytest.raises(msgbus.TransportUnavailable, match="403"):
                client.prepare(exchange="other").call({}, "echo", value=1)
    finally:
        for user in ("inventory", "shop"):
            rabbitmq.delete_user(user)
        rabbitmq.delete_queue("msgbus/inventory/!dead")


def test_client_certificates_log_in(tmp_path: pathlib.Path) -> None:
    """With the settings of the page, a client logs in as the common name of its certificate, and no other way."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    own = authority.issue_cert("localhost", common_name="inventory")
    folder = tmp_path / "tls"
    folder.mkdir()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "server.key")
    own.cert_chain_pems[0].write_to_path(folder / "client.pem")
    own.private_key_pem.write_to_path(folder / "client.key")
    for file in folder.iterdir():
        file.chmod(0o644)
    settings = rabbitmq_settings("howto/secure.md", "auth_mechanisms")
    node = RabbitMQ("3.10", tmp_path / "node", tls=folder, config=settings)
    (tmp_path / "node" / "enabled_plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")
    text = only_block("howto/secure.md", "login_method").text
    query = dict(re.findall(r"^(ssl\w*|login_method) = (.*)$", text, re.MULTILINE))
    for name in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file"):
        query[name] = str(folder / {"ssl_ca_file": "ca.pem"}.get(name, pathlib.Path(query[name]).name))
    url = f"rabbit://localhost:{node.tls_port}/?" + "&".join(f"{name}={value}" for name, value in query.items())
    try:
        node.start()
        node.add_user("inventory", "unused")
        with transport_to(url) as transport, serving(transport, Endpoint()):
            client = msgbus.get_rpc_client(transport, msgbus.Target(topic="inventory"), timeout=20)
            assert client.call({}, "echo", value=1) == 1
            users = node.ctl("list_connections", "user").split()
        assert set(users) <= {"user", "inventory"}
        assert "inventory" in users
        with transport_to(node.url) as transport, pytest.raises(msgbus.TransportUnavailable):
            msgbus.get_rpc_client(transport, msgbus.Target(topic="inventory"), timeout=5).call({}, "echo", value=1)
    finally:
        node.close()


def rabbitmq_settings(page: str, text: str) -> dict[str, str]:
    """The lines of a rabbitmq.conf on a page."""
    lines = [line for line in only_block(page, text).text.splitlines() if line and not line.startswith("#")]
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("version", ["3.10", "4.3"])
def test_rabbitmq_takes_the_settings(version: str, tmp_path: pathlib.Path) -> None:
    """It starts with them, and they are in force: a misspelt one would keep it from starting."""
    settings = rabbitmq_settings("howto/deploy.md", "max_message_size = ")
    settings["disk_free_limit.absolute"] = "50MB"  # the machine of the tests may be small
    node = RabbitMQ(version, tmp_path, config=settings)
    try:
        node.start()
        for name in ("max_message_size", "consumer_timeout"):
            assert node.eval(f"element(2, application:get_env(rabbit, {name})).") == int(settings[name])
    finally:
        node.close()


def test_unit_stops_after_the_drain(tmp_path: pathlib.Path) -> None:
    """Its command is one that `msgbus serve` takes, and systemd waits longer for its end than it drains."""
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # it says so in its documentation
    unit.read_string(only_block("howto/deploy.md", "ExecStart=").text)
    service = unit["Service"]
    command = shlex.split(service["ExecStart"].replace("\\\n", " "))
    assert command[0].endswith("/bin/msgbus")
    assert command[1] == "serve"
    at = command.index("--config-file") + 1
    (tmp_path / "file.conf").write_text("")
    command[at] = str(tmp_path / "file.conf")
    context: click.Context = serve.make_context("serve", command[2:])
    assert context.params["drain"] < int(service["TimeoutStopSec"])
    assert service["KillSignal"] == "SIGTERM"


def test_wrong_option_on_a_page_is_found() -> None:
    """An ini block with a name that does not exist, or a value that does not fit, fails."""
    with pytest.raises(AssertionError):
        check_configuration("[msgbus_kombu]\nheart_beat = 1\n")
    with pytest.raises(ValueError, match="Should be"):
        check_configuration("[msgbus_kombu]\nheartbeat = -1\n")


def test_the_file_of_servers_can_be_read(tmp_path: pathlib.Path) -> None:
    """The file on the page about ZeroMQ is one, and its options choose it."""
    path = tmp_path / "servers.json"
    path.write_text(only_block("zmq.md", '"host-b"').text)
    topics = read_topics(str(path))
    assert {name: (place.address, place.key) for name, place in topics["inventory"].items()} == {
        "one": ("10.0.0.5:9501", "host-a"),
        "two": ("10.0.0.6:9501", "host-b"),
    }
