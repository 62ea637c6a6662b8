from __future__ import annotations

from typing import Any

import pytest

from msgbus import InvalidTransportURL, TransportHost, TransportURL
from msgbus.url import backend_name, mask
from tests.support import new_conf


def parse(url: str) -> TransportURL:
    """Read a URL with nothing configured."""
    return TransportURL.parse(new_conf(), url)


@pytest.mark.parametrize(
    ("url", "transport", "hosts", "virtual_host", "query"),
    [
        ("rabbit://", "rabbit", [], None, {}),
        ("rabbit:///", "rabbit", [], "", {}),
        ("rabbit://h", "rabbit", [TransportHost("h")], None, {}),
        ("rabbit://h/", "rabbit", [TransportHost("h")], "", {}),
        ("rabbit://h//", "rabbit", [TransportHost("h")], "/", {}),
        ("rabbit://h/%2F", "rabbit", [TransportHost("h")], "/", {}),
        ("RABBIT://h/v", "rabbit", [TransportHost("h")], "v", {}),
        ("amqps://h", "amqp", [TransportHost("h")], None, {"ssl": "true"}),
        ("RABBITS://h/v?ssl=TRUE", "rabbit", [TransportHost("h")], "v", {"ssl": "TRUE"}),
        ("kombus://", "kombu", [], None, {"ssl": "true"}),
        ("qpids://h?heartbeat=1", "qpid", [TransportHost("h")], None, {"heartbeat": "1", "ssl": "true"}),
        ("rabbit://h:5672/v", "rabbit", [TransportHost("h", 5672)], "v", {}),
        ("rabbit://h:/v", "rabbit", [TransportHost("h")], "v", {}),
        ("rabbit://u:p@h:1/v", "rabbit", [TransportHost("h", 1, "u", "p")], "v", {}),
        ("rabbit://u@h", "rabbit", [TransportHost("h", None, "u")], None, {}),
        ("rabbit://:@h", "rabbit", [TransportHost("h", None, "", "")], None, {}),
        ("rabbit://u:p@/v", "rabbit", [TransportHost(None, None, "u", "p")], "v", {}),
        ("rabbit://u%40x:p%2F%3A%40%2C%3F@h", "rabbit", [TransportHost("h", None, "u@x", "p/:@,?")], None, {}),
        ("rabbit://u:p/w@h/v", "rabbit", [TransportHost("h", None, "u", "p/w")], "v", {}),
        ("rabbit://u:p@w@h/v", "rabbit", [TransportHost("h", None, "u", "p@w")], "v", {}),
        ("rabbit://u:p:w@h/v", "rabbit", [TransportHost("h", None, "u", "p:w")], "v", {}),
        (
            "rabbit://a:b@h1:1,c:d@h2:2/v",
            "rabbit",
            [TransportHost("h1", 1, "a", "b"), TransportHost("h2", 2, "c", "d")],
            "v",
            {},
        ),
        (
            "rabbit://a:b@h1,a:b@h2,a:b@h3",
            "rabbit",
            [TransportHost(name, None, "a", "b") for name in ("h1", "h2", "h3")],
            None,
            {},
        ),
        (
            "rabbit://a:b@h1,h2,c:d@h3,h4/v",
            "rabbit",
            [
                TransportHost("h1", None, "a", "b"),
                TransportHost("h2", None, "a", "b"),
                TransportHost("h3", None, "c", "d"),
                TransportHost("h4", None, "c", "d"),
            ],
            "v",
            {},
        ),
        ("rabbit://h1,a:b@h2", "rabbit", [TransportHost("h1"), TransportHost("h2", None, "a", "b")], None, {}),
        (
            "rabbit:// a:b@h1 ,\tc:d@h2 / v ? a=1 & b=2 \n",
            "rabbit",
            [TransportHost("h1", None, "a", "b"), TransportHost("h2", None, "c", "d")],
            "v",
            {"a": "1", "b": "2"},
        ),
        (
            "rabbit://a%20b:%20c%09@h/v%20w?x=1%202",
            "rabbit",
            [TransportHost("h", None, "a b", " c\t")],
            "v w",
            {"x": "1 2"},
        ),
        ("rabbit://u:100%@h", "rabbit", [TransportHost("h", None, "u", "100%")], None, {}),
        ("rabbit://h:65535,h:1", "rabbit", [TransportHost("h", 65535), TransportHost("h", 1)], None, {}),
        ("zmq://[::1]:5,[fe80::1%eth0]", "zmq", [TransportHost("::1", 5), TransportHost("fe80::1%eth0")], None, {}),
        ("rabbit://[fe80::1%25en-0.1]:5", "rabbit", [TransportHost("fe80::1%en-0.1", 5)], None, {}),
        ("rabbit://mq_1.b\xfccher.example", "rabbit", [TransportHost("mq_1.b\xfccher.example")], None, {}),
        ("fake://x?a=1&b=2", "fake", [TransportHost("x")], None, {"a": "1", "b": "2"}),
        ("fake://x/v?a=1&a=2&b=", "fake", [TransportHost("x")], "v", {"a": "1,2", "b": ""}),
        ("fake://?a=%26+c", "fake", [], None, {"a": "& c"}),
    ],
)
def test_parse(
    url: str, transport: str, hosts: list[TransportHost], virtual_host: str | None, query: dict[str, str]
) -> None:
    """A URL is read into driver, hosts with credentials, virtual host and options, percent signs decoded."""
    parsed = parse(url)
    assert (parsed.transport, list(parsed.hosts), parsed.virtual_host, parsed.query) == (
        transport,
        hosts,
        virtual_host,
        query,
    )


@pytest.mark.parametrize(
    "url",
    [
        "rabbit://u%40x:p%2F%3A%40%2C%3F%25@h:1/v%2F%3F?a=1%262&b=",
        "rabbit://a:b@h1:1,c:d@[::1]:2/",
        "fake://",
        "rabbit://:@h/",
        "rabbit://u@h//",
        "amqps://a:b@h1,h2/",
        "rabbit://u:p@[fe80::1%25eth0]:5/",
    ],
)
def test_unmasked_can_be_read_again(url: str) -> None:
    """`unmasked` gives a URL that means the same."""
    parsed = parse(url)
    again = parse(parsed.unmasked())
    assert (again.transport, again.hosts, again.virtual_host or "", again.query) == (
        parsed.transport,
        parsed.hosts,
        parsed.virtual_host or "",
        parsed.query,
    )


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "begins with DRIVER://"),
        ("rabbit", "begins with DRIVER://"),
        ("rabbit:/h", "begins with DRIVER://"),
        ("://h", "begins with DRIVER://"),
        ("1rabbit://h", "begins with DRIVER://"),
        ("ra bbit://h", "begins with DRIVER://"),
        ("rabbit://h:0", "0 is not a port"),
        ("rabbit://h:65536", "65536 is not a port"),
        ("rabbit://h:x", "'h:x' is not a host name"),
        ("rabbit://h:-1", "'h:-1' is not a host name"),
        ("rabbit://::1", "write an IPv6 address in brackets"),
        ("rabbit://[::1", "is not a host name"),
        ("rabbit://a b", "is not a host name"),
        ("rabbit://[::1]x", "is not a host name"),
        ("rabbit://[fe80::1%]", "is not a host name"),
        ("rabbit://[1.2.3.4]", "is not a host name"),
        ("rabbit://[:::::]", "is not a host name"),
        ("rabbit://$host/", "is not a host name"),
        ("rabbit://h1;h2/", "is not a host name"),
        ("rabbit://h:" + "9" * 5000, "is not a port"),
        ("rabbit://u:p@h1,,h2/", "one of the hosts is empty"),
        ("rabbit://u:p@h1,/", "one of the hosts is empty"),
        ("rabbit://,h1/", "one of the hosts is empty"),
        ("rabbit://h1, ,h2", "one of the hosts is empty"),
        ("rabbit://h1,u:p@,h2", "one of the hosts is empty"),
        ("rabbit://h1:5,h2:5,H1:5", "the host H1:5 is named twice"),
        ("rabbit://a b:c@h", "a user name contains white space .*%20"),
        ("rabbit://a:b c@h", "a password contains white space .*%20"),
        ("rabbit://a:b @h", "a password contains white space"),
        ("rabbit://a:b\x00@h", "a password contains white space or a control character"),
        ("rabbit://a:b@h/v w", "the virtual host contains white space"),
        ("rabbit://h?a=1 2", "option=value"),
        ("rabbit://h?a= 1", "option=value"),
        ("rabbit://a:%ff@h", "percent-encoding of a password is not UTF-8"),
        ("rabbit://h/%ff", "percent-encoding of the virtual host is not UTF-8"),
        ("rabbit://h?a=%ff", "option=value"),
        ("rabbit+ssl://h", "'rabbit[+]ssl' is not the name of a driver.*TLS.*rabbits://"),
        ("kombu+amqps://h", "leave '[+]amqps' out"),
        ("kombu+memory://h", "leave '[+]memory' out"),
        ("amqp+://h", "leave '[+]' out"),
        ("amqps://h?ssl=false", "amqps:// means TLS, but the option ssl turns it off"),
        ("rabbit://h?novalue", "option=value"),
        ("rabbit://h?a=1&&b=2", "option=value"),
    ],
)
def test_refuses_what_it_cannot_read(url: str, says: str) -> None:
    """A malformed URL is an error that says what is wrong with it."""
    with pytest.raises(InvalidTransportURL, match=says):
        parse(url)


@pytest.mark.parametrize("url", [1, b"rabbit://", ["rabbit://"]])
def test_refuses_what_is_not_a_string(url: Any) -> None:
    """A URL that is no string is refused, and the text says what it was."""
    with pytest.raises(InvalidTransportURL, match=f"not {type(url).__name__}"):
        TransportURL.parse(new_conf(), url)


@pytest.mark.parametrize(
    ("rpc_backend", "transport_url", "transport"),
    [
        ("kombu", None, "kombu"),
        ("nova.openstack.common.rpc.impl_kombu", None, "kombu"),
        ("msgbus.rpc.impl_zmq", None, "zmq"),
        ("impl_fake", None, "fake"),
        ("kombu", "fake://x", "fake"),
    ],
)
def test_configuration_names_the_driver(rpc_backend: str, transport_url: str | None, transport: str) -> None:
    """Without a URL the configuration decides: its transport_url, else rpc_backend, which may be an old module path."""
    conf = new_conf(rpc_backend=rpc_backend, transport_url=transport_url)
    assert TransportURL.parse(conf).transport == transport


def test_nothing_configured_is_zmq() -> None:
    """Nothing configured means zmq, among the processes of this host."""
    assert TransportURL.parse(new_conf()) == TransportURL("zmq")


@pytest.mark.parametrize(
    ("value", "name"), [("rabbit", "rabbit"), ("a.b.impl_qpid", "qpid"), ("impl_mine", "mine"), ("a.b", "b")]
)
def test_backend_name(value: str, name: str) -> None:
    """An old module path ending in impl_NAME stands for the driver NAME."""
    assert backend_name(value) == name


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (TransportHost(), ""),
        (TransportHost("h"), "h"),
        (TransportHost("h", 1, "u", "p"), "h:1"),
        (TransportHost("::1"), "[::1]"),
        (TransportHost("::1", 1), "[::1]:1"),
    ],
)
def test_host_text(host: TransportHost, text: str) -> None:
    """A host's text is its address, an IPv6 one in brackets."""
    assert str(host) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("rabbit://h/v", "rabbit://h/v"),
        ("rabbit://u:p@h/v", "rabbit://***@h/v"),
        ("rabbit://u:p@x@h/v", "rabbit://***@h/v"),
        ("u:p@h/v", "***@h/v"),
        ("rabbit:/u:p@h", "***@h"),
        ("", ""),
    ],
)
def test_mask(text: str, masked: str) -> None:
    """Of a URL that cannot be read, only what follows the last @ and a scheme are shown."""
    assert mask(text) == masked
