"""From a topic and a message dict of the old API to a client that sends it."""

from __future__ import annotations

import difflib
from typing import Any

from msgbus.awaitables import refuse_async
from msgbus.client import RPCClient
from msgbus.exceptions import InvalidTarget, SerializationError, TransportUnavailable
from msgbus.rpc import binding
from msgbus.serializer import NoOpSerializer, Serializer
from msgbus.target import Target
from msgbus.transport import Transport
from msgbus.versions import is_version

KEYS = ("method", "args", "version", "namespace")


class EntitySerializer(NoOpSerializer):
    """Adapts a serializer of the old API, which has no methods for the context."""

    def __init__(self, entities: Any) -> None:
        for name in ("serialize_entity", "deserialize_entity"):
            refuse_async(f"{name} of {type(entities).__name__}", getattr(entities, name, None))
        self._entities = entities

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """As the old one does."""
        return self._entities.serialize_entity(ctxt, entity)

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """As the old one does."""
        return self._entities.deserialize_entity(ctxt, entity)


def split_topic(topic: str) -> tuple[str, str | None]:
    """Topic and server of ``foo`` or ``foo.host``. The first dot ends the topic; a host may contain dots.

    Raises:
        InvalidTarget: it is not a string.
    """
    if not isinstance(topic, str):
        raise InvalidTarget(f"the topic must be a string, not {type(topic).__name__}", topic)
    base, dot, host = topic.partition(".")
    return base, host if dot else None


def client_for(
    topic: str,
    msg: dict[str, Any],
    timeout: float | None = None,
    *,
    fanout: bool = False,
    serializer: Serializer | None = None,
    transport: Transport | None = None,
) -> tuple[RPCClient, str, dict[str, Any]]:
    """A client for a message, and the message's method and arguments.

    Raises:
        SerializationError: the message is invalid.
        InvalidTarget: the topic is invalid.
        ValueError: the timeout is invalid.
        MessagingException: as for `binding.transport`.
    """
    check(msg)
    base, host = (topic, None) if fanout else split_topic(topic)
    target = Target(
        topic=base, server=host, fanout=fanout or None, namespace=msg.get("namespace"), version=msg.get("version")
    )
    transport = transport or binding.transport()  # which may be what reads the configuration
    interceptors = binding.client_interceptors()
    client = RPCClient(transport, target, timeout=timeout, serializer=serializer, interceptors=interceptors)
    return client, msg["method"], msg.get("args") or {}


def cast_elsewhere(
    context: Any,
    server_params: dict[str, Any],
    topic: str,
    msg: dict[str, Any],
    *,
    fanout: bool = False,
    serializer: Serializer | None = None,
) -> None:
    """Cast over another message system than the configured one.

    Raises:
        MessagingException: as for `client_for`, `binding.transport_to` and `RPCClient.cast`.
    """
    check(msg)
    transport = binding.transport_to(server_params)
    client, method, args = client_for(topic, msg, fanout=fanout, serializer=serializer, transport=transport)
    try:
        client.cast(context, method, **args)
    except TransportUnavailable:
        binding.forget(transport)  # It may never come back, and the driver would go on trying to reach it.
        raise


def check(msg: object) -> None:
    """Refuse an invalid message.

    Raises:
        SerializationError: the text says what is wrong with it.
    """
    if not isinstance(msg, dict):
        raise SerializationError(f"a message is a dict with 'method' and 'args', not {type(msg).__name__}")
    for key in msg:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, KEYS))}"
            raise SerializationError(f"a message has no key {key!r}; {hint}")
    if not isinstance(msg.get("method"), str):
        raise SerializationError("a message names its method, a string: {'method': 'greet', 'args': {...}}")
    args = msg.get("args") or {}
    if not isinstance(args, dict) or not all(isinstance(name, str) for name in args):
        raise SerializationError(f"{msg['method']!r}: the message's 'args' is a dict with arguments by name")
    for key in ("version", "namespace"):
        value = msg.get(key)
        if value is not None and not isinstance(value, str):
            raise SerializationError(
                f"{msg['method']!r}: the message's {key!r} is a string, not {type(value).__name__}"
            )
    if msg.get("version") is not None and not is_version(msg["version"]):
        raise SerializationError(
            f"{msg['method']!r}: the message's 'version' {msg['version']!r} is invalid: write it like '1.2'"
        )
