"""``msgbus describe --asyncapi``.

Documents are validated by the JSON Schema that the AsyncAPI project publishes: see tests/data/README.md. What a schema
cannot say, that references lead somewhere and that messages are those of their channel, `check` adds.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import jsonschema
import pytest

import msgbus
from msgbus import Target, since
from msgbus.cli.asyncapi import asyncapi_document
from msgbus.cli.asyncapi_schemas import MAX_DEPTH, Converter, Names
from msgbus.cli.asyncapi_servers import servers_of
from msgbus.cli.errors import Code
from msgbus.describing import Description, Interface, MethodInfo
from msgbus.drivers.base import Address
from tests.cli.described import Bus, Plain, hostile
from tests.core.test_describing import many
from tests.core.typed_service import AsyncImages, Images
from tests.support import PROTON, conf_from_file, new_transport

SCHEMA = pathlib.Path(__file__).parents[1] / "data" / "asyncapi-3.0.0.json"
VALIDATOR = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
TOPIC = Address("topic", "msgbus", "images")


class Shop:
    """Sells things.

    By day only.
    """

    target: ClassVar[Target] = Target(namespace="shop", version="2.1", legacy_namespaces=["old"])

    @since("2.1")
    def price(self, ctxt: object, item: str, count: int = 1) -> float:
        """Say what it costs.

        In euros.
        """
        raise NotImplementedError

    def prices(self, ctxt: object) -> Iterator[float]:
        raise NotImplementedError

    @msgbus.one_way
    def forget(self, ctxt: object, **names: int) -> None: ...


def document_of(bus: Bus, *args: str) -> dict[str, Any]:
    """What the command prints."""
    result = bus.run("describe", "images", "--asyncapi", *args)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def references_in(value: Any) -> Iterator[str]:
    """All references, wherever they are. No schema of these tests has a property of that name."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = [*value.values()]
    if isinstance(value, list):
        for inner in value:
            yield from references_in(inner)


def resolved(document: dict[str, Any], reference: str) -> Any:
    """What a reference refers to."""
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def check(document: dict[str, Any]) -> None:
    """Check what the specification demands, by the schema and beyond it."""
    assert [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(document)] == []
    check_references(document)


def check_references(document: dict[str, Any]) -> None:
    """Each leads to something; an operation's messages are those of its channel, and its answers those of theirs."""
    for reference in references_in(document):
        assert isinstance(resolved(document, reference), dict), reference
    for operation in document["operations"].values():
        for way in filter(None, [operation, operation.get("reply")]):
            start = f"{way['channel']['$ref']}/messages/"
            assert all(message["$ref"].startswith(start) for message in way.get("messages", []))
    for channel in document["channels"].values():
        assert set(re.findall(r"\{(.*?)\}", channel["address"] or "")) == set(channel.get("parameters", ()))
    for named in (document["channels"], document["operations"], *document["components"].values()):
        assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in named)


def payload_validator(document: dict[str, Any], message: str) -> Any:
    """A validator of a message's payload."""
    payload = document["components"]["messages"][message]["payload"]
    return jsonschema.Draft7Validator({"components": document["components"], "allOf": [payload]})


def test_the_schema_refuses_what_is_wrong() -> None:
    """So that the tests below mean something."""
    document = asyncapi_document(Description("images", "s", interfaces=[Interface("E")]), TOPIC, {}, "application/json")
    check(document)
    for path in ("info", "asyncapi"):
        assert not VALIDATOR.is_valid({name: value for name, value in document.items() if name != path})
    document["channels"]["topic"]["kind"] = "topic"
    assert not VALIDATOR.is_valid(document)


@pytest.mark.parametrize("endpoints", [(), (Images(), Plain(), Shop()), (Plain(), Plain(), Shop(), Shop())])
def test_a_document_is_valid_asyncapi(bus: Bus, endpoints: tuple[Any, ...]) -> None:
    """Whatever types methods have, and if several endpoints have methods of the same name."""
    bus.serve("one", *endpoints)
    check(document_of(bus))


def test_a_server_with_async_methods(bus: Bus) -> None:
    """It is described as others are; an asynchronous generator is a stream."""
    bus.serve("one", AsyncImages())
    document = document_of(bus)
    check(document)
    assert document["operations"]["thumbnails"]["x-msgbus"]["kind"] == "stream"
    assert document["components"]["messages"]["thumbnails.item"]["payload"] == {
        "$ref": "#/components/schemas/Thumbnail"
    }


def test_a_document_says_who_serves_what(bus: Bus) -> None:
    """Its title is the topic, its version the highest of an interface; a tag for each interface has its docstring."""
    bus.serve("one", Plain(), Shop())
    bus.serve("two", Plain(), Shop())
    document = document_of(bus)
    assert document["asyncapi"] == "3.0.0"
    assert document["info"] == {
        "title": "images",
        "version": "2.1",
        "tags": [
            {"name": "Plain", "description": "Not annotated."},
            {"name": "Shop", "description": "Sells things.\n\nBy day only."},
        ],
    }
    assert document["defaultContentType"] == "application/json"
    assert [server["protocol"] for server in document["servers"].values()] == ["fake"]


def test_a_topic_has_channels_for_one_server_for_that_one_and_for_all(bus: Bus) -> None:
    """And there is the inbox of a client, whose address is known to its request alone."""
    bus.serve("one", Shop())
    channels = document_of(bus)["channels"]
    assert {name: channel["address"] for name, channel in channels.items()} == {
        "topic": "msgbus/images",
        "server": "msgbus/images/{server}",
        "fanout": "msgbus/images/!fanout",
        "inbox": None,
    }
    assert {name: list(channel["messages"]) for name, channel in channels.items()} == {
        "topic": ["shop.forget", "shop.price", "shop.prices"],
        "server": ["shop.forget", "shop.price", "shop.prices"],
        "fanout": ["shop.forget", "shop.price"],
        "inbox": ["shop.price.result", "shop.prices.item", "failure"],
    }
    assert channels["server"]["x-msgbus"] == {"kind": "server", "exchange": "msgbus", "topic": "images"}


def test_a_method_is_an_operation(bus: Bus) -> None:
    """A call and a stream have a reply, a cast has none; all say which kind they are, and which version added them."""
    bus.serve("one", Shop())
    document = document_of(bus)
    operations = document["operations"]
    assert list(operations) == ["shop.forget", "shop.price", "shop.prices", "at-one-server", "at-all-servers"]
    assert operations["shop.price"] == {
        "action": "receive",
        "channel": {"$ref": "#/channels/topic"},
        "messages": [{"$ref": "#/channels/topic/messages/shop.price"}],
        "x-msgbus": {
            "kind": "call",
            "method": "price",
            "namespace": "shop",
            "version": "2.1",
            "since": "2.1",
            "signature": "(item: str, count: int = 1) -> float",
            "validated": True,
        },
        "summary": "Say what it costs.",
        "description": "Say what it costs.\n\nIn euros.",
        "reply": {
            "address": {"$ref": "#/components/replyAddresses/inbox"},
            "channel": {"$ref": "#/channels/inbox"},
            "messages": [
                {"$ref": "#/channels/inbox/messages/shop.price.result"},
                {"$ref": "#/channels/inbox/messages/failure"},
            ],
        },
        "tags": [{"name": "Shop"}],
    }
    kinds = {name: operation["x-msgbus"]["kind"] for name, operation in operations.items() if "messages" in operation}
    assert kinds == {"shop.forget": "cast", "shop.price": "call", "shop.prices": "stream"}
    assert [name for name in operations if "reply" not in operations[name]] == ["shop.forget"]
    assert operations["shop.forget"]["x-msgbus"]["since"] == "2.0"


def test_headers_tell_the_methods_apart(bus: Bus) -> None:
    """A request is valid against the message of its method alone, in each namespace that the endpoint answers to."""
    bus.serve("one", Shop(), Plain())
    messages = document_of(bus)["components"]["messages"]
    price, greet = (jsonschema.Draft7Validator(messages[name]["headers"]) for name in ("shop.price", "greet"))
    for namespace in ("shop", "old"):
        assert price.is_valid({"method": "price", "namespace": namespace, "version": "2.0", "_msg_id": "1"})
    assert not price.is_valid({"method": "prices", "namespace": "shop"})
    assert not price.is_valid({"method": "price", "namespace": "other"})
    assert not price.is_valid({"method": "price"})
    assert greet.is_valid({"method": "greet"})
    assert greet.is_valid({"method": "greet", "namespace": None})
    assert not greet.is_valid({"method": "greet", "namespace": "shop"})


@pytest.mark.parametrize(
    ("message", "payload", "valid"),
    [
        ("images.resize", {"image": {"name": "n"}, "size": [1, 2], "at": "2026-01-02T00:00:00"}, True),
        ("images.resize", {"image": {"name": "n"}, "size": [1, "x"], "at": "2026-01-02T00:00:00"}, False),
        ("images.resize", {"image": {"name": "n"}, "size": [1, 2, 3], "at": "2026-01-02T00:00:00"}, False),
        ("images.resize", {"image": {"width": 1}, "size": [1, 2], "at": "2026-01-02T00:00:00"}, False),
        ("images.resize", {"image": {"name": "n", "width": 0}, "size": [1, 2], "at": "2026-01-02T00:00:00"}, False),
        ("images.resize", {"image": {"name": "n"}, "size": [1, 2]}, False),
        ("images.area", {"shape": {"type": "Circle", "radius": 1}}, True),
        ("images.area", {"shape": {"type": "Circle", "side": 1}}, False),
        ("images.names.result", [{"name": "n", "since": "2026-01-02T00:00:00"}], True),
        ("images.names.result", [{"name": "n"}], False),
        ("images.thumbnails.item", {"image": {"name": "n"}, "size": [1, 2], "at": "2026-01-02T00:00:00"}, True),
        ("images.thumbnails.item", {"image": {"name": "n"}, "size": [1], "at": "2026-01-02T00:00:00"}, False),
        ("images.numbers", {"first": 2, "second": 3}, True),
        ("images.numbers", {"first": 2, "second": 0}, False),
        ("images.half", {"image": {"name": "n"}, "rest": [1]}, True),
    ],
)
def test_payloads_are_the_arguments_and_results(bus: Bus, message: str, payload: Any, valid: bool) -> None:
    """What the server takes and returns is valid against the schemas, and what it refuses is not."""
    bus.serve("one", Images())
    assert payload_validator(document_of(bus), message).is_valid(payload) == valid


def test_with_json_it_is_one_line(bus: Bus) -> None:
    """The same document."""
    bus.serve("one", Shop())
    result = bus.run("describe", "images", "--asyncapi", "--json")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == document_of(bus)


def test_the_codec_of_the_client_is_the_content_type(bus: Bus, tmp_path: pathlib.Path) -> None:
    """A server answers in that of the request."""
    bus.serve("one", Shop())
    path = tmp_path / "client.conf"
    path.write_text("[DEFAULT]\nrpc_codec = msgpack\n")
    assert document_of(bus, "--config-file", str(path))["defaultContentType"] == "application/msgpack"


def test_a_document_is_about_servers_that_have_the_same(bus: Bus) -> None:
    """If they differ, one has to be named: nothing is left out or put together in silence."""
    bus.serve("one", Shop())
    bus.serve("three", Shop())
    bus.serve("two", Plain())
    result = bus.run("describe", "images", "--asyncapi")
    assert (result.exit_code, result.stdout) == (Code.USAGE, "")
    assert "do not all have the same methods" in result.stderr
    assert "name one of them with --server (one, three; two)" in result.stderr
    assert "note" in document_of(bus, "--server", "two")["operations"]
    assert "shop.price" in document_of(bus, "--server", "three")["operations"]


def test_a_server_that_says_nothing_is_an_error_after_the_document(bus: Bus) -> None:
    """The document is about the others."""
    transport = new_transport(bus.url, rpc_built_in_methods=["stats"])
    bus.serve("one", Shop())
    bus.serve("two", Shop(), transport=transport)
    result = bus.run("describe", "images", "--asyncapi")
    assert result.exit_code == Code.REMOTE
    assert "shop.price" in json.loads(result.stdout)["operations"]
    assert "the server 'two' of topic 'images' cannot be described" in result.stderr
    bus.servers.pop().wait(20)
    transport.cleanup()


def test_a_description_that_was_cut_says_so(bus: Bus) -> None:
    """In the document, and on stderr."""
    bus.serve("one", many(501, "short"))
    result = bus.run("describe", "images", "--asyncapi")
    assert result.stderr == "too large to be described whole, left out: methods\n"
    document = json.loads(result.stdout)
    check(document)
    assert document["info"]["x-msgbus"] == {"left_out": ["methods"]}


def test_escape_sequences_of_a_server_do_not_reach_the_terminal(bus: Bus) -> None:
    """They are escaped as JSON has it."""

    class Hostile:
        def greet(self, ctxt: object) -> None: ...

    Hostile.greet.__doc__ = "\x1b[31mred\u202e\x9b"
    bus.serve("one", Hostile())
    text = bus.run("describe", "images", "--asyncapi").stdout
    assert all(char.isprintable() or char == "\n" for char in text)
    assert json.loads(text)["operations"]["greet"]["summary"] == Hostile.greet.__doc__


def test_names_of_a_server_are_brought_into_the_form_of_asyncapi() -> None:
    """References lead where they should, whatever the server says, and nothing is said twice under one name."""
    topic = Address("topic", "ex{a}/?#", "a/b {server}!")
    document = asyncapi_document(hostile(), topic, {}, "application/json")
    check_references(document)
    assert document["channels"]["server"]["address"] == "ex%7Ba%7D%2F%3F%23/a%2Fb%20%7Bserver%7D%21/{server}"
    assert document["channels"]["server"]["x-msgbus"]["topic"] == "a/b {server}!"
    for message in document["components"]["messages"].values():  # A schema that makes no sense stays one.
        message["payload"] = {}
    document["components"]["schemas"] = {}
    check(document)


def test_a_server_may_say_that_it_has_very_many_methods_of_one_name() -> None:
    """Each gets a number without a search through all others, which would take hours."""
    names = Names()
    made = [names.new("m") for _ in range(200_000)]
    assert made[:3] == ["m", "m-2", "m-3"]
    assert len(set(made)) == len(made)


def test_methods_named_as_the_document_names_its_own_parts() -> None:
    """Theirs get a number."""
    methods = [MethodInfo("at-one-server"), MethodInfo("failure"), MethodInfo("a"), MethodInfo("a.result")]
    description = Description("images", "s", interfaces=[Interface("E", methods=methods)])
    document = asyncapi_document(description, TOPIC, {}, "application/json")
    check(document)
    operations = ["at-one-server-2", "failure-2", "a", "a.result-2", "at-one-server", "at-all-servers"]
    assert list(document["operations"]) == operations
    assert document["components"]["messages"]["failure"]["payload"]["type"] == "string"


@pytest.mark.parametrize(
    ("schema", "converted"),
    [
        ({"type": "integer", "minimum": 1}, {"type": "integer", "minimum": 1}),
        (True, True),
        (5, {}),
        (None, {}),
        (
            {"prefixItems": [{"type": "null"}, {"$ref": "#/$defs/A b"}], "items": False},
            {"items": [{"type": "null"}, {"$ref": "#/components/schemas/A_b"}], "additionalItems": False},
        ),
        ({"prefixItems": [{"type": "null"}]}, {"items": [{"type": "null"}]}),
        ({"prefixItems": [], "items": {"prefixItems": [True]}}, {"items": {"items": [True]}}),
        (
            {"$ref": "#/$defs/A b", "default": "x"},
            {"default": "x", "allOf": [{"$ref": "#/components/schemas/A_b"}]},
        ),
        ({"$ref": "#/$defs/Nowhere"}, {}),
        ({"$ref": 5}, {}),
        ({"$ref": "https://example.org/schema.json"}, {}),
        ({"anyOf": [{"type": "null"}, {}], "discriminator": {"propertyName": "x"}}, {"anyOf": [{"type": "null"}, {}]}),
        ({"anyOf": []}, {"anyOf": [{}]}),
        ({"properties": {"items": {"type": "null"}, "x": 5}}, {"properties": {"items": {"type": "null"}, "x": {}}}),
        ({"type": "number", "default": float("nan")}, {"type": "number"}),
        ({"enum": [{"$ref": "#/$defs/A b"}]}, {"enum": [{"$ref": "#/$defs/A b"}]}),
    ],
)
def test_schemas_in_the_dialect_of_asyncapi(schema: Any, converted: Any) -> None:
    """Tuples are written as in draft 07, references stand alone, and what leads nowhere allows all."""
    assert Converter({"A b": {}}).of(schema) == converted


def test_schemas_are_read_down_to_a_bound() -> None:
    """A server that sends a deep one does not end the command by a recursion."""
    schema: dict[str, Any] = {}
    for _ in range(MAX_DEPTH * 3):
        schema = {"items": schema}
    found, depth = Converter({}).of(schema), 0
    while found:
        found, depth = found["items"], depth + 1
    assert depth == MAX_DEPTH


# Servers

PASSWORD = "a-secret"


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        (
            f"rabbit://ada:{PASSWORD}@h1:5673,h2/shop?heartbeat=20",
            {
                "rabbit": {
                    "host": "h1:5673", "protocol": "amqp", "protocolVersion": "0.9.1", "pathname": "/shop"
                },
                "rabbit-2": {"host": "h2", "protocol": "amqp", "protocolVersion": "0.9.1", "pathname": "/shop"},
            },
        ),
        (
            f"amqps://ada:{PASSWORD}@[::1]/a%20b",
            {"amqp": {"host": "[::1]", "protocol": "amqps", "protocolVersion": "0.9.1", "pathname": "/a%20b"}},
        ),
        (
            "kombu://",
            {"kombu": {"host": "localhost", "protocol": "amqp", "protocolVersion": "0.9.1", "pathname": "/"}},
        ),
        pytest.param(
            f"qpid://ada:{PASSWORD}@h",
            {"qpid": {"host": "h", "protocol": "amqp1", "protocolVersion": "1.0"}},
            marks=PROTON,
        ),
    ],
)  # fmt: skip
def test_servers_are_the_hosts_of_the_message_system(url: str, servers: dict[str, Any]) -> None:
    """By the names that AsyncAPI has for protocols; user and password are not among what is said."""
    transport = new_transport(url)
    try:
        found = servers_of(transport)
        assert found == servers
        assert PASSWORD not in json.dumps(found)
        check(asyncapi_document(Description("images", "s"), TOPIC, found, "application/json"))
    finally:
        transport.cleanup()


def test_servers_of_a_configuration_file(tmp_path: pathlib.Path) -> None:
    """Hosts, virtual host and TLS may stand there, and in no URL."""
    text = f"""[DEFAULT]
rpc_backend = rabbit
[msgbus_kombu]
hosts = h1,h2:5999
port = 5672
password = {PASSWORD}
virtual_host = shop
ssl = true
"""
    transport = msgbus.get_rpc_transport(conf_from_file(tmp_path, text))
    try:
        found = servers_of(transport)
        assert {(server["host"], server["protocol"], server["pathname"]) for server in found.values()} == {
            ("h1:5672", "amqps", "/shop"),
            ("h2:5999", "amqps", "/shop"),
        }
        assert PASSWORD not in json.dumps(found)
    finally:
        transport.cleanup()


def test_without_a_broker_the_host_is_left_open(tmp_path: pathlib.Path) -> None:
    """Servers and clients of ZeroMQ find each other: there is no host to name."""
    transport = new_transport(f"zmq://{tmp_path}")
    try:
        servers = servers_of(transport)
        assert servers["zmq"]["host"] == "{host}"
        assert servers["zmq"]["protocol"] == "zmq"
        assert "pathname" not in servers["zmq"]
        check(asyncapi_document(Description("images", "s"), TOPIC, servers, "application/json"))
    finally:
        transport.cleanup()
