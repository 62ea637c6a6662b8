"""RpcProxy: the client side of a service's interface, with its version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgbus.rpc.common import RpcVersionCapError
from msgbus.rpc.messages import EntitySerializer, cast_elsewhere, check, client_for
from msgbus.serializer import Serializer
from msgbus.versions import version_is_compatible


class RpcProxy:
    """Sends messages to a topic, with a version. Subclass it, with a method for each remote one. Thread-safe.

    Args:
        topic: of messages for which no other is given.
        default_version: of messages for which no other is given.
        version_cap: the highest version that the servers support; None means any.
        serializer: has ``serialize_entity(context, entity)`` for arguments and ``deserialize_entity`` for results.

    Raises:
        ValueError: a version is invalid.
    """

    RPC_API_NAMESPACE: str | None = None
    """The namespace of the messages that `make_msg` makes."""

    def __init__(
        self, topic: str, default_version: str, version_cap: str | None = None, serializer: Any = None
    ) -> None:
        for version in (default_version, version_cap or default_version):
            version_is_compatible(version, version)
        self.topic = topic
        self.default_version = default_version
        self.version_cap = version_cap
        self.serializer: Serializer | None = None if serializer is None else EntitySerializer(serializer)

    def make_msg(self, method: str, **kwargs: Any) -> dict[str, Any]:
        """A message for a method of this interface, with its arguments by name."""
        return self.make_namespaced_msg(method, self.RPC_API_NAMESPACE, **kwargs)

    @staticmethod
    def make_namespaced_msg(method: str, namespace: str | None, /, **kwargs: Any) -> dict[str, Any]:
        """A message for a method of a namespace."""
        return {"method": method, "namespace": namespace, "args": kwargs}

    def can_send_version(self, version: str) -> bool:
        """Whether the version cap allows messages of `version`.

        Raises:
            ValueError: `version` is invalid.
        """
        return self.version_cap is None or version_is_compatible(self.version_cap, version)

    def _in_version(self, msg: dict[str, Any], version: str | None) -> dict[str, Any]:
        version = version or self.default_version
        if self.version_cap is not None and not self.can_send_version(version):
            raise RpcVersionCapError(version, self.version_cap)
        check(msg)
        return {**msg, "version": version}

    def call(
        self,
        context: Any,
        msg: dict[str, Any],
        topic: str | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """As `msgbus.rpc.call`.

        Raises:
            RpcVersionCapError: the version is above the cap.
            MessagingException: as for `msgbus.rpc.call`.
        """
        msg = self._in_version(msg, version)
        client, method, args = client_for(topic or self.topic, msg, timeout, serializer=self.serializer)
        return client.call(context, method, **args)

    def multicall(
        self,
        context: Any,
        msg: dict[str, Any],
        topic: str | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """As `msgbus.rpc.multicall`.

        Raises:
            As `call`.
        """
        msg = self._in_version(msg, version)
        client, method, args = client_for(topic or self.topic, msg, timeout, serializer=self.serializer)
        return client.multicall(context, method, **args)

    def cast(self, context: Any, msg: dict[str, Any], topic: str | None = None, version: str | None = None) -> None:
        """As `msgbus.rpc.cast`.

        Raises:
            As `call`, except for the errors about the answer.
        """
        self._cast(context, msg, topic, version)

    def fanout_cast(
        self, context: Any, msg: dict[str, Any], topic: str | None = None, version: str | None = None
    ) -> None:
        """As `msgbus.rpc.fanout_cast`.

        Raises:
            As `cast`.
        """
        self._cast(context, msg, topic, version, fanout=True)

    def cast_to_server(
        self,
        context: Any,
        server_params: dict[str, Any],
        msg: dict[str, Any],
        topic: str | None = None,
        version: str | None = None,
    ) -> None:
        """As `msgbus.rpc.cast_to_server`.

        Raises:
            As `cast`, and `ConfigurationError`.
        """
        msg = self._in_version(msg, version)
        cast_elsewhere(context, server_params, topic or self.topic, msg, serializer=self.serializer)

    def fanout_cast_to_server(
        self,
        context: Any,
        server_params: dict[str, Any],
        msg: dict[str, Any],
        topic: str | None = None,
        version: str | None = None,
    ) -> None:
        """As `msgbus.rpc.fanout_cast_to_server`.

        Raises:
            As `cast_to_server`.
        """
        msg = self._in_version(msg, version)
        cast_elsewhere(context, server_params, topic or self.topic, msg, fanout=True, serializer=self.serializer)

    def _cast(self, context: Any, msg: dict[str, Any], topic: str | None, version: str | None, **options: Any) -> None:
        msg = self._in_version(msg, version)
        client, method, args = client_for(topic or self.topic, msg, serializer=self.serializer, **options)
        client.cast(context, method, **args)
