"""Target: whom a client addresses, or what a server and its endpoints serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from msgbus.exceptions import InvalidTarget
from msgbus.message import MAX_NAME, MAX_VERSION

# The shortest limit of the supported message systems is RabbitMQ's 255 bytes for a queue name, which holds the
# exchange, topic and server; a name that would not fit all of them everywhere is refused by all drivers alike.
MAX_NAME_BYTES = 75
_MAX_CHARACTERS = {"namespace": MAX_NAME, "version": MAX_VERSION}  # Message systems do not see them.


@dataclass(frozen=True)
class Target:
    """Names a set of servers, or one.

    A client needs `topic`, and may add `server` (that one only) or `fanout` (all of them). A server needs `topic` and
    `server`. An endpoint may name its interface with `namespace` and `version`.

    Attributes:
        exchange: a namespace for topics; None means the option ``control_exchange``.
        topic: the name of the service.
        namespace: the name of an interface of an endpoint; None is the nameless default.
        version: of that interface, as ``"major.minor"``; for a client the version that it needs.
        server: the name of one server of the topic.
        fanout: address every server of the topic (casts only).
        legacy_namespaces: further namespaces under which an endpoint answers.

    Raises:
        InvalidTarget: a name is not a string, is empty, contains control characters, or is longer than 75 bytes; a
            namespace is longer than 255 characters, or a version than 64; the legacy namespaces are one string.
    """

    exchange: str | None = None
    topic: str | None = None
    namespace: str | None = None
    version: str | None = None
    server: str | None = None
    fanout: bool | None = None
    legacy_namespaces: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("exchange", "topic", "server"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise InvalidTarget(f"the {name} must be a string, not {type(value).__name__}", value)
            if not value or not value.isprintable():
                raise InvalidTarget(f"the {name} must not be empty or contain control characters", repr(value))
            if len(value.encode("utf-8", "replace")) > MAX_NAME_BYTES:
                raise InvalidTarget(f"the {name} is longer than {MAX_NAME_BYTES} bytes", value)
        if not isinstance(self.namespace, str | None):
            raise InvalidTarget(f"the namespace must be a string, not {type(self.namespace).__name__}", self.namespace)
        if isinstance(self.legacy_namespaces, str):  # Each of its characters would be one.
            raise InvalidTarget("legacy_namespaces is a list of names, not a string", self.legacy_namespaces)
        for name, limit in _MAX_CHARACTERS.items():
            value = getattr(self, name)
            if isinstance(value, str) and len(value) > limit:
                raise InvalidTarget(f"the {name} is longer than {limit} characters", f"{value[:40]}…")

    @property
    def accepted_namespaces(self) -> list[str | None]:
        """The namespaces that an endpoint with this target answers to."""
        return [self.namespace, *(self.legacy_namespaces or ())]

    def __call__(self, **changes: Any) -> Target:
        """Return a copy with some attributes changed.

        Raises:
            TypeError: an attribute that a target does not have.
            InvalidTarget: as for the constructor.
        """
        return replace(self, **changes)

    def __str__(self) -> str:
        given = ((f.name, getattr(self, f.name)) for f in fields(self))
        return f"<Target {', '.join(f'{name}={value}' for name, value in given if value is not None)}>"


def topic_hint(target: Target) -> str:
    """What to add to an error where the topic of a target is missing; empty where nothing is known."""
    if target.topic or not target.exchange:
        return ""
    return f" (did you mean Target(topic={target.exchange!r})? The first argument is the exchange)"
