"""How addresses are named in Redis."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import quote

from msgbus.drivers.base import Address

GROUP: Final = "msgbus"
"""The one consumer group of each stream."""

NONE: Final = "msgbus:none"
"""Stands for no key. (An empty one would be against the rights of most users.)"""


class Keys(NamedTuple):
    """The keys of one queue.

    Attributes:
        stream: has the messages.
        lease: a sorted set: who consumes, and until when that holds unless it is renewed.
        members: the set of streams that this one is in, for a pool or a fanout; else `NONE`.
    """

    stream: str
    lease: str
    members: str = NONE


def queue_of(address: Address, unique: str = "") -> Keys:
    """The queue of a subscriber. That of a fanout is its alone, and `unique` tells it from others."""
    kind, exchange, topic, server, name = address
    parts: tuple[str, ...]
    match kind:
        case "topic" | "stored":
            parts = ("topic", exchange, topic)
        case "server":
            parts = ("server", exchange, topic, server)
        case "fanout":
            parts = ("fanout", exchange, topic, unique)
        case "pool":
            parts = ("pool", exchange, topic, name)
        case "inbox":
            parts = ("inbox", name)
        case _:
            parts = ("dead", exchange, topic)
    stream = _key("queue", *parts)
    members = _key(f"{kind}s", exchange, topic) if kind in ("fanout", "pool") else NONE
    return Keys(stream, _key("lease", *parts), members)


def target_of(address: Address) -> tuple[str, str]:
    """To what a message goes: to a stream, and to the streams in a set; one of both may be `NONE`."""
    if address.kind == "fanout":
        return NONE, _key("fanouts", address.exchange, address.topic)
    pools = _key("pools", address.exchange, address.topic) if address.kind in ("topic", "stored") else NONE
    return queue_of(address).stream, pools


def _key(*parts: str) -> str:
    return ":".join(("msgbus", *(quote(part, safe="") for part in parts)))
