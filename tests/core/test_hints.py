"""What msgbus says to a programmer who passes the wrong thing: the text has what to write instead."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from typing import Any

import pytest

from msgbus import (
    InvalidTarget,
    NoSuchMethod,
    RPCServer,
    SerializationError,
    Target,
    UnsupportedVersion,
    get_rpc_client,
    get_rpc_server,
    get_rpc_transport,
)
from tests.support import new_conf, new_transport


class Hello:
    """The nameless interface."""

    def greet(self, ctxt: dict[str, Any]) -> str:
        return "hello"

    def count(self, ctxt: dict[str, Any]) -> Any:
        yield from range(3)


class Admin:
    """One with a name, and an older one."""

    target = Target(namespace="admin", legacy_namespaces=["control"])

    def wipe(self, ctxt: dict[str, Any]) -> str:
        return "wiped"


@pytest.fixture
def server() -> Any:
    """A server of topic t with both interfaces."""
    transport = new_transport()
    made = get_rpc_server(transport, Target(topic="t", server="s"), [Hello(), Admin()])
    made.start()
    yield made
    made.stop()
    made.wait(5)
    transport.cleanup()


@pytest.mark.parametrize("verb", ["call", "cast", "fanout_cast", "multicall"])
def test_forgotten_context(verb: str, server: RPCServer) -> None:
    """The text is the line as it should be, without the value of an argument: it may be a secret."""
    call = getattr(get_rpc_client(server.transport, Target(topic="t")), verb)
    with pytest.raises(
        TypeError, match=re.escape("context is missing, which comes before the method: ({}, 'greet', id=...)")
    ):
        call("greet", id="s3cr3t")
    with pytest.raises(
        TypeError, match=re.escape("the method's name is missing: it comes after the context, (ctxt, 'METHOD')")
    ):
        call({})
    with pytest.raises(
        SerializationError, match=re.escape("a string, not dict; the context comes before it: ({}, 'greet')")
    ):
        call("greet", {})
    assert server.transport.window.idle


def test_target_whose_only_argument_is_the_exchange() -> None:
    """As in oslo.messaging the exchange comes first; who gives one argument alone means the topic."""
    transport = new_transport()
    for make in (
        lambda: get_rpc_client(transport, Target("hello")),
        lambda: get_rpc_server(transport, Target("hello"), []),
    ):
        with pytest.raises(InvalidTarget, match=re.escape("did you mean Target(topic='hello')? The first argument is")):
            make()
    with pytest.raises(InvalidTarget) as caught:
        get_rpc_client(transport, Target())
    assert "did you mean" not in str(caught.value)


def test_what_is_not_a_target_is_refused() -> None:
    """A topic alone is not a target."""
    transport = new_transport()
    with pytest.raises(TypeError, match=re.escape("Target(topic='t')")):
        get_rpc_client(transport, "t")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=re.escape("Target(topic='t', server=NAME)")):
        get_rpc_server(transport, "t", [])  # type: ignore[arg-type]


def test_what_is_not_a_transport_is_refused() -> None:
    """A URL is not a transport, and is not shown."""
    wrong: Any = "rabbit://app:s3cr3t@h/"
    for make in (
        lambda: get_rpc_client(wrong, Target(topic="t")),
        lambda: get_rpc_server(wrong, Target(topic="t"), []),
    ):
        with pytest.raises(
            TypeError, match=r"a Transport, not str: transport = get_rpc_transport\(conf, url\)"
        ) as caught:
            make()
        assert "s3cr3t" not in str(caught.value)
    with pytest.raises(TypeError, match="not str; a transport URL is the second"):
        get_rpc_transport(wrong)


def test_modules_that_are_not_a_list_are_refused() -> None:
    """A text is a list of letters, none of which is a module."""
    with pytest.raises(TypeError, match=re.escape("['myservice.errors']")):
        get_rpc_transport(new_conf(), "fake://", "myservice.errors")


@pytest.mark.parametrize("endpoints", [Hello(), Hello, "hello", {"hello": Hello()}, None, 1])
def test_endpoints_that_are_not_a_list_are_refused(endpoints: Any) -> None:
    """One endpoint stands in a list, too."""
    with pytest.raises(TypeError, match=r"endpoints is a list of objects, \[endpoint\], not"):
        get_rpc_server(new_transport(), Target(topic="t", server="s"), endpoints)


@pytest.mark.parametrize(
    "endpoint", ["hello", None, 1, [Hello()], {"hello": Hello()}, len, lambda: 1, Target(topic="t")]
)
def test_what_is_not_an_endpoint_is_refused(endpoint: Any) -> None:
    """What has methods that nobody means, or none."""
    with pytest.raises(TypeError, match="an endpoint is an object whose methods are called, not"):
        get_rpc_server(new_transport(), Target(topic="t", server="s"), [endpoint])


@pytest.mark.parametrize(
    ("namespace", "method", "error", "text"),
    [
        ("admn", "wipe", UnsupportedVersion, "'admn'. attempted method: wipe; did you mean the namespace 'admin'?"),
        ("contrl", "x", UnsupportedVersion, "did you mean the namespace 'control'?"),
        ("zzz", "wipe", UnsupportedVersion, "did you mean the namespace 'admin'?"),
        ("zzz", "x", UnsupportedVersion, "no endpoint has the namespace 'zzz'. attempted method: x"),
        (None, "wipe", NoSuchMethod, "did you mean the namespace 'admin'?"),
        (None, "gret", NoSuchMethod, "did you mean 'greet'?"),
        ("admin", "wpe", NoSuchMethod, "did you mean 'wipe'?"),
        (None, "zzz", NoSuchMethod, "does not support rpc method zzz"),
    ],
)  # fmt: skip
def test_namespace_or_method_that_is_nearly_right(
    namespace: str | None, method: str, error: type[Exception], text: str, server: RPCServer
) -> None:
    """The answer names what there is and may be meant; it reaches the client as the same error."""
    client = get_rpc_client(server.transport, Target(topic="t", namespace=namespace), timeout=20)
    with pytest.raises(error) as caught:
        client.call({}, method)
    assert str(caught.value).lower().endswith(text)


def test_server_all_of_whose_endpoints_have_a_namespace() -> None:
    """For a request without a namespace the error says so, and not that the version is wrong."""
    transport = new_transport()
    server = get_rpc_server(transport, Target(topic="t", server="s"), [Admin()])
    server.start()
    with pytest.raises(UnsupportedVersion, match=r"has a namespace.*did you mean the namespace 'admin'"):
        get_rpc_client(transport, Target(topic="t"), timeout=20).call({}, "wipe")
    server.stop()
    server.wait(5)
    transport.cleanup()


def test_texts_of_objects(server: RPCServer) -> None:
    """In a log or a debugger one sees what each object is for; never a password."""
    transport = new_transport("fake://app:s3cr3t@texts/")
    idle = get_rpc_server(transport, Target(topic="t", server="s"), [Hello()])
    client = get_rpc_client(server.transport, Target(topic="t"), timeout=20)
    assert repr(idle) == "<RPCServer <Target topic=t, server=s>, not serving, over <Transport fake://app:***@texts/>>"
    assert repr(server) == f"<RPCServer <Target topic=t, server=s>, serving, over {server.transport!r}>"
    assert repr(client) == f"<RPCClient <Target topic=t> over {server.transport!r}>"
    stream = client.multicall({}, "count")
    assert re.fullmatch(r"<Stream 'count' on topic 't' .*, open>", repr(stream))
    stream.close()
    assert repr(stream).endswith(", closed>")
    transport.cleanup()


@pytest.mark.parametrize(("name", "text"), [("cal", "did you mean call?"), ("zzz", "there are serve, call")])
def test_command_that_is_nearly_right(name: str, text: str) -> None:
    """The nearest command is named, or all of them."""
    command = [os.path.join(sysconfig.get_path("scripts"), "msgbus"), name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"there is no command {name!r}; {text}" in result.stderr
