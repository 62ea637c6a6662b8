"""The classic functional rpc API: ``from msgbus import rpc``, for services written like the early nova.

A message is a dict ``{"method": name, "args": {...}}``; "args", "version" and "namespace" are optional.
A topic is ``foo`` (any one of its servers) or ``foo.host`` (that one). It uses the same core as `msgbus.RPCClient`
and `msgbus.RPCServer`, with the same message systems and guarantees: services of both kinds can call each other.

`init` sets the configuration; without it, ``oslo_config.cfg.CONF`` is used. A connection to the message system is
opened when it is first needed and shared by all threads; `cleanup` closes it.

``docs/migrating.md`` lists each function and option of the old API, and what replaces it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgbus.rpc import binding
from msgbus.rpc.binding import cleanup, init, set_defaults
from msgbus.rpc.common import (
    ClientException,
    CommonRpcContext,
    Connection,
    DuplicateMessageError,
    InvalidRPCConnectionReuse,
    RemoteError,
    RpcContext,
    RPCException,
    RpcVersionCapError,
    Timeout,
    UnsupportedRpcEnvelopeVersion,
    UnsupportedRpcVersion,
    catch_client_exception,
    client_exceptions,
    version_is_compatible,
)
from msgbus.rpc.dispatcher import RpcDispatcher
from msgbus.rpc.messages import cast_elsewhere, client_for
from msgbus.rpc.notifying import notify
from msgbus.rpc.proxy import RpcProxy
from msgbus.rpc.service import Service

__all__ = [
    "ClientException",
    "CommonRpcContext",
    "Connection",
    "DuplicateMessageError",
    "InvalidRPCConnectionReuse",
    "RPCException",
    "RemoteError",
    "RpcContext",
    "RpcDispatcher",
    "RpcProxy",
    "RpcVersionCapError",
    "Service",
    "Timeout",
    "UnsupportedRpcEnvelopeVersion",
    "UnsupportedRpcVersion",
    "call",
    "cast",
    "cast_to_server",
    "catch_client_exception",
    "cleanup",
    "client_exceptions",
    "create_connection",
    "fanout_cast",
    "fanout_cast_to_server",
    "init",
    "multicall",
    "notify",
    "queue_get_for",
    "set_defaults",
    "version_is_compatible",
]


def create_connection(new: bool = True) -> Connection:
    """Make a `Connection`, on which a service creates its consumers.

    Args:
        new: ignored: connections to the message system are always shared.

    Raises:
        InvalidTransportURL, DriverLoadFailure, ConfigurationError: the configuration cannot be used.
    """
    return Connection(binding.transport())


def call(context: Any, topic: str, msg: dict[str, Any], timeout: float | None = None) -> Any:
    """Run a method on one server and return its value (of a generator: the last).

    Args:
        context: the caller's: a dict, an object with ``to_dict()``, or None.
        topic: ``foo`` or ``foo.host``.
        msg: the message. It is not changed.
        timeout: seconds; None means the option ``rpc_response_timeout``.

    Raises:
        Timeout: no answer by then.
        MessageUndeliverable: nobody listens to the topic.
        RemoteError: the method raised an exception. If that may be rebuilt here, it is raised itself.
        SerializationError: the message is invalid, or holds a value that cannot be sent.
        InvalidTarget: the topic is invalid.
        ValueError: `timeout` is invalid.
        MessagingException: as for `msgbus.RPCClient.call`.
    """
    client, method, args = client_for(topic, msg, timeout)
    return client.call(context, method, **args)


def multicall(context: Any, topic: str, msg: dict[str, Any], timeout: float | None = None) -> Iterator[Any]:
    """Run a generator method on one server and iterate over its values as it yields them.

    The message is sent at once. A method that is not a generator yields one value. If the iterator is closed or dropped
    before its end, the generator on the server is closed.

    The arguments are those of `call`; `timeout` is for each value.

    Raises:
        As `call`; an exception of the generator is raised by the iteration, after the values before it.
    """
    client, method, args = client_for(topic, msg, timeout)
    return client.multicall(context, method, **args)


def cast(context: Any, topic: str, msg: dict[str, Any]) -> None:
    """Have a method run on one server. Returns when the message system has taken the message.

    Raises:
        As `call`, except for the errors about the answer.
    """
    client, method, args = client_for(topic, msg)
    client.cast(context, method, **args)


def fanout_cast(context: Any, topic: str, msg: dict[str, Any]) -> None:
    """Have a method run on every server that consumes the topic with ``fanout=True``.

    It is not an error if there is none.

    Raises:
        As `cast`, except for `MessageUndeliverable`.
    """
    client, method, args = client_for(topic, msg, fanout=True)
    client.cast(context, method, **args)


def cast_to_server(context: Any, server_params: dict[str, Any], topic: str, msg: dict[str, Any]) -> None:
    """`cast` over another message system of the same kind.

    `server_params` has ``hostname``, and optionally ``port``, ``username``, ``password``, ``virtual_host``; the
    configuration supplies what is missing. The connection is kept for later casts. The other arguments are those of
    `cast`.

    Raises:
        ConfigurationError: the hostname is missing, a key is unknown, or a value has the wrong type.
        MessagingException: as for `cast`.
    """
    cast_elsewhere(context, server_params, topic, msg)


def fanout_cast_to_server(context: Any, server_params: dict[str, Any], topic: str, msg: dict[str, Any]) -> None:
    """`fanout_cast` over another message system of the same kind; see `cast_to_server`.

    Raises:
        As `cast_to_server`.
    """
    cast_elsewhere(context, server_params, topic, msg, fanout=True)


def queue_get_for(context: Any, topic: str, host: str | None) -> str:
    """The topic of one server: ``topic.host``; without a host, the topic."""
    return f"{topic}.{host}" if host else topic
