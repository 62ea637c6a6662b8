"""`msgbus.since` says which version of an interface added a method."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest

import msgbus
from msgbus import ExplicitRPCAccessPolicy, Target, expected_exceptions, expose, get_rpc_client, get_rpc_server, since
from msgbus.rpc import Connection, RpcDispatcher
from tests.support import new_transport


class Images:
    target: ClassVar[Target] = Target(version="2.3")

    def old(self, ctxt: object) -> str:
        return "old"

    @since("2.1")
    def added(self, ctxt: object) -> str:
        return "added"

    @expose
    @expected_exceptions(LookupError)
    @since("2.2.1")
    def inner(self, ctxt: object) -> None: ...

    @since("2.3")
    @msgbus.validated
    def outer(self, ctxt: object, count: int) -> int:
        return count

    @since("2.2")
    @staticmethod
    def static(ctxt: object) -> None: ...

    @classmethod
    @since("2.2")
    def of_class(cls, ctxt: object) -> None: ...

    @since("2")
    def stream(self, ctxt: object) -> Iterator[int]:
        yield 1


def described(endpoint: Any, **options: Any) -> dict[str, str]:
    """The methods of an endpoint, with the version that a running server says of each."""
    transport = new_transport()
    server = get_rpc_server(transport, Target(topic="t", server="s"), [endpoint], **options)
    server.start()
    try:
        client = get_rpc_client(transport, Target(topic="t", namespace="msgbus"), timeout=20)
        (interface,) = client.call({}, "describe")["interfaces"]
        return {method["name"]: method["since"] for method in interface["methods"]}
    finally:
        server.wait(20)
        transport.cleanup()


def test_a_server_says_which_version_added_a_method() -> None:
    """Whatever else decorates the method; one that is not marked was there from the beginning of the major version."""
    assert described(Images()) == {
        "old": "2.0",
        "added": "2.1",
        "inner": "2.2.1",
        "outer": "2.3",
        "static": "2.2",
        "of_class": "2.2",
        "stream": "2",
    }


def test_an_endpoint_without_a_version_has_version_1_0() -> None:
    """So its methods are there since 1.0."""

    class Plain:
        def method(self, ctxt: object) -> None: ...

    assert described(Plain()) == {"method": "1.0"}


def make_server(version: str, added: str, **options: Any) -> None:
    """Make a server for an endpoint of a version, a method of which was added by another version."""

    class Shop:
        target = Target(version=version)

        @since(added)
        def buy(self, ctxt: object) -> None: ...

    transport = new_transport()
    try:
        get_rpc_server(transport, Target(topic="t", server="s"), [Shop()], **options)
    finally:
        transport.cleanup()


@pytest.mark.parametrize(
    ("version", "added"),
    [("1.2", "1.3"), ("1.2", "1.2.1"), ("1.2", "2.0"), ("2.0", "1.0"), ("1.9", "1.10"), ("1", "1.1")],
)
def test_a_version_that_the_endpoint_never_had_is_refused(version: str, added: str) -> None:
    """When the server is made: it is above the endpoint's, or of another major version."""
    text = rf"Shop\.buy is marked with since\('{added}'\), but the version of its endpoint is {version}: "
    with pytest.raises(TypeError, match=text):
        make_server(version, added)


@pytest.mark.parametrize(
    ("version", "added"), [("1.2", "1.2"), ("1.2", "1.0"), ("1.10", "1.9"), ("1.2.1", "1.2"), ("1.2", "1.2.0")]
)
def test_a_version_of_the_endpoints_history_is_taken(version: str, added: str) -> None:
    """Up to the endpoint's own."""
    make_server(version, added)


def test_methods_that_may_not_be_called_are_not_looked_at() -> None:
    """As for annotations."""
    make_server("1.0", "3.0", access_policy=ExplicitRPCAccessPolicy)


def test_the_classic_api_is_checked_and_described_too() -> None:
    """The version of a callback is its RPC_API_VERSION."""

    class Callback:
        RPC_API_VERSION = "1.1"

        @since("1.1")
        def new(self, ctxt: object) -> None: ...

    transport = new_transport()
    connection = Connection(transport)
    connection.create_consumer("t", RpcDispatcher([Callback()]))
    connection.consume_in_thread()
    client = get_rpc_client(transport, Target(topic="t", namespace="msgbus"), timeout=20)
    (interface,) = client.call({}, "describe")["interfaces"]
    assert interface["methods"][0]["since"] == "1.1"
    connection.close()
    transport.cleanup()
    Callback.RPC_API_VERSION = "1.0"
    with pytest.raises(TypeError, match=r"since\('1\.1'\)"):
        RpcDispatcher([Callback()])


def test_a_caller_that_asks_for_an_older_version_may_call_the_method() -> None:
    """A client names the version that it needs; it does not have to name the newest of what it calls."""
    transport = new_transport()
    server = get_rpc_server(transport, Target(topic="t", server="s"), [Images()])
    server.start()
    client = get_rpc_client(transport, Target(topic="t"), timeout=20)
    assert client.prepare(version="2.0").call({}, "added") == "added"
    with pytest.raises(msgbus.UnsupportedVersion):
        client.prepare(version="2.4").call({}, "added")
    server.wait(20)
    transport.cleanup()


def test_functions_of_a_module_can_be_marked() -> None:
    """An endpoint may be a module."""
    module: Any = types.ModuleType("shop_of_functions")
    exec("import msgbus\ntarget = msgbus.Target(version='1.1')", module.__dict__)  # noqa: S102 - a module of text
    exec("@msgbus.since('1.1')\ndef buy(ctxt): ...\ndef sell(ctxt): ...", module.__dict__)  # noqa: S102 - likewise
    assert described(module) == {"buy": "1.1", "sell": "1.0"}


def test_an_endpoint_with_every_attribute_is_not_marked() -> None:
    """A mock, for example."""
    assert described(Mock(spec=["method"], target=None))["method"] == "1.0"


@pytest.mark.parametrize("version", ["", "x", "1.x", "1.2.3.4", "-1.0", "1" * 65])
def test_what_is_no_version_is_refused_where_it_is_written(version: str) -> None:
    """The traceback shows the line."""
    with pytest.raises(ValueError, match=r"version|invalid literal"):
        since(version)


def test_since_needs_a_version_and_a_method() -> None:
    """Without parentheses, with a number, or on a class it would say nothing."""
    wrong: Any = since
    with pytest.raises(TypeError, match=r"@since\('1\.2'\), and not 1\.2$"):
        wrong(1.2)
    with pytest.raises(TypeError, match=r"since takes the version that added the method"):
        wrong(lambda ctxt: None)
    with pytest.raises(TypeError, match=r"since is for methods; the version of .*Marked is in its target"):

        @since("1.0")
        class Marked:
            pass


def test_a_marked_method_is_called_as_before() -> None:
    """The decorator returns the method itself."""

    def method(ctxt: object) -> int:
        return 1

    assert since("1.0")(method) is method
