"""The message system of a transport, as the servers of an AsyncAPI document. No secret is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from msgbus.cli.asyncapi_schemas import Names
from msgbus.options import hosts_of, read_driver_options

if TYPE_CHECKING:
    from msgbus.transport import Transport

_PROTOCOLS = {
    "amqp": ("amqp", "0.9.1"),
    "kombu": ("amqp", "0.9.1"),
    "rabbit": ("amqp", "0.9.1"),
    "qpid": ("amqp1", "1.0"),
}
"""Driver -> the protocol that it speaks, by the name that it has in AsyncAPI, and which version of it."""
_NO_BROKER = {
    "host": "{host}",
    "variables": {"host": {"description": "There is no broker: servers and clients find each other."}},
}


def servers_of(transport: Transport) -> dict[str, Any]:
    """The hosts of the message system, by name."""
    url = transport.url
    options = read_driver_options(transport.conf, *transport.driver.options(), url)
    hosts = hosts_of(options, url) if hasattr(options, "hosts") else url.hosts
    protocol, version = _PROTOCOLS.get(url.transport, (url.transport, None))
    if protocol == "amqp" and options.ssl:
        protocol = "amqps"
    common: dict[str, Any] = {"protocol": protocol}
    if version is not None:
        common["protocolVersion"] = version
    virtual_host = url.virtual_host or getattr(options, "virtual_host", None)
    if hosts and virtual_host:
        common["pathname"] = f"/{quote(virtual_host.removeprefix('/'))}"
    places: list[dict[str, Any]] = [{"host": str(host)} for host in hosts] or [_NO_BROKER]
    names = Names()
    return {names.new(url.transport): {**place, **common} for place in places}
