"""The names of the old ``rpc.common``: its exceptions are msgbus's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgbus.dispatcher import ExpectedException, expected_exceptions
from msgbus.exceptions import (
    MessagingException,
    MessagingTimeout,
    RemoteError,
    RPCVersionCapError,
    SerializationError,
    UnsupportedVersion,
)
from msgbus.rpc.connection import Connection, InvalidRPCConnectionReuse
from msgbus.rpc.context import CommonRpcContext, RpcContext
from msgbus.versions import version_is_compatible

R = TypeVar("R")

__all__ = [
    "ClientException",
    "CommonRpcContext",
    "Connection",
    "DuplicateMessageError",
    "InvalidRPCConnectionReuse",
    "RPCException",
    "RemoteError",
    "RpcContext",
    "RpcVersionCapError",
    "Timeout",
    "UnsupportedRpcEnvelopeVersion",
    "UnsupportedRpcVersion",
    "catch_client_exception",
    "client_exceptions",
    "version_is_compatible",
]

RPCException = MessagingException
Timeout = MessagingTimeout
UnsupportedRpcVersion = UnsupportedVersion
UnsupportedRpcEnvelopeVersion = SerializationError
RpcVersionCapError = RPCVersionCapError
ClientException = ExpectedException
client_exceptions = expected_exceptions


class DuplicateMessageError(MessagingException):
    """Never raised: servers drop duplicates by themselves. It exists for code that catches it."""


def catch_client_exception(
    exceptions: Sequence[type[BaseException]] | type[BaseException],
    func: Callable[..., R],
    *args: Any,
    **kwargs: Any,
) -> R:
    """Run ``func(*args, **kwargs)``; an exception of these types is an answer, and not a fault of the service.

    Raises:
        ClientException: in place of an exception of these types or their subclasses.
    """
    types = (exceptions,) if isinstance(exceptions, type) else exceptions
    return client_exceptions(*types)(func)(*args, **kwargs)
