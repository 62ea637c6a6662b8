"""The matchmaker ``file``: a JSON file says which servers a topic has, and where. It is watched for changes.

::

    {
      "inventory": {"one": "10.0.0.5:9501", "two": "10.0.0.6:9501"},
      "billing": {"one": {"address": "10.0.0.7:9501", "key": "host-c"}}
    }

The topics are those of `control_exchange`. A server's process is known by its address: its node's id is made of that,
so that all who read the file know it. Who listens nowhere (a client) needs no place in the file, and has an id that
nobody else can know.

Nothing says whether a process lives. So a node at whose address nobody listens is left out for `AGAIN` seconds, and
then tried anew by whoever has something to send; and a server is ready only so long after it has begun to listen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from msgbus.drivers.base import Address
from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq.matchmakers.base import Entry, Matchmaker, Service
from msgbus.exceptions import ConfigurationError, InvalidTarget
from msgbus.foreign import get_logger
from msgbus.target import Target

LOG = get_logger(__name__)

AGAIN = 0.1
"""Seconds after which a server that was not there, or said that it does not serve a topic, is asked again."""
PREFETCH = 64
"""How many messages a server is taken to hold, which the file does not say: the default of ``rpc_prefetch``."""

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%a-z]+\]|[^\s:/\[\]@]+):([0-9]{1,5})")


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a server is.

    Attributes:
        address: ``HOST:PORT``.
        key: the name of its public key in ``keys_dir``, without ``.key``.
    """

    address: str
    key: str = ""


Topics = dict[str, dict[str, Place]]
"""By topic, and by server."""


def node_at(address: str) -> str:
    """The id of the node that listens at ``HOST:PORT``."""
    return hashlib.sha256(address.encode()).hexdigest()[:16]


def read_topics(path: str) -> Topics:
    """Read such a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file; the text says where.
    """
    with open(path, encoding="utf-8") as file:
        found = json.load(file, object_pairs_hook=_without_doubles)
    raw = msgspec.convert(found, dict[str, dict[str, str | Place]])
    topics: Topics = {}
    keys: dict[str, str] = {}
    for topic, servers in raw.items():
        places = topics[topic] = {}
        for server, at in servers.items():
            try:
                Target(topic=topic, server=server)
            except InvalidTarget as exc:
                raise ValueError(str(exc)) from None
            place = places[server] = Place(at) if isinstance(at, str) else at
            match = _ADDRESS.fullmatch(place.address)
            if match is None or not 0 < int(match[1]) < 65536:
                raise ValueError(f"server {server!r} of topic {topic!r}: {place.address!r} is not HOST:PORT")
            if keys.setdefault(place.address, place.key) != place.key:
                raise ValueError(f"{place.address} has two keys: {keys[place.address]!r} and {place.key!r}")
    return topics


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one place")
    return found


class FileMatchmaker(Matchmaker):
    """See the module's text."""

    def __init__(self, loop: Loop, path: str, own: str, exchange: str, key_named: Callable[[str], str]) -> None:
        """Make one; no I/O.

        Args:
            loop: the I/O thread.
            path: of the file.
            own: the ``HOST:PORT`` at which others reach this process, or empty where it listens nowhere.
            exchange: of the file's topics.
            key_named: the public key of that name, or a text that is none.
        """
        self._loop = loop
        self._path = path
        self._own = own
        self._exchange = exchange
        self._key_named = key_named
        self._node = ""
        self._topics: Topics = {}
        self._seen: Any = None
        self._complaint = ""
        self._warned: set[str] = set()
        self._own_entry: Entry | None = None
        self._entries: dict[str, Entry] = {}
        self._is_new = False
        self._is_less = False
        self._again = 0.0

    @property
    def node(self) -> str:
        return self._node

    def open(self) -> str:
        self._seen = self._look()
        try:
            self._topics = read_topics(self._path)
        except (OSError, ValueError) as exc:
            raise ConfigurationError(self._unusable(exc)) from exc
        self._node = node_at(self._own) if self._own else secrets.token_hex(8)
        return ""

    def _unusable(self, exc: Exception) -> str:
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        return f"matchmaker_file of [msgbus_zmq], {self._path}, cannot be used: {why}"

    def _look(self) -> Any:
        """What changes when the file does."""
        try:
            found = os.stat(self._path)
        except OSError as exc:
            return exc.errno
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def register(self, entry: Entry, told: Callable[[], None] | None = None) -> None:
        for service in entry.services:
            kind, exchange, topic, server, name = service.address
            if kind == "pool":
                raise ConfigurationError(
                    f"pool {name!r} of topic {topic!r}: matchmaker_file says nothing of pools; set matchmaker of "
                    "[msgbus_zmq] to local or redis"
                )
            if kind == "server":
                self._warn_if_missing(exchange, topic, server)
        self._own_entry = entry
        self._is_new = True
        if told is not None and self._own:
            self._loop.call_later(1.5 * AGAIN, told)
        elif told is not None:
            told()

    def _warn_if_missing(self, exchange: str, topic: str, server: str) -> None:
        place = self._topics.get(topic, {}).get(server)
        if place is not None and place.address == self._own and exchange == self._exchange:
            return
        where = self._own or "some address (the option listen is not set, so nobody can connect)"
        text = f"{self._path} does not say that server {server!r} of topic {topic!r} is at {where}"
        if text not in self._warned:
            self._warned.add(text)
            LOG.warning("%s: nobody finds it there", text)

    def changed(self) -> bool:
        if self._is_new or self._is_less:
            return True
        return time.monotonic() >= self._again or self._look() != self._seen

    def entries(self) -> Mapping[str, Entry]:
        self._read()
        if self._is_new or time.monotonic() >= self._again:
            self._again = time.monotonic() + AGAIN
            self._entries = self._all()
        self._is_new = self._is_less = False
        return self._entries

    def _read(self) -> None:
        """Take in the file, if it is another one. While that cannot be used, what was known holds."""
        state = self._look()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._topics = read_topics(self._path)
        except (OSError, ValueError) as exc:
            if descriptors.is_shortage(exc):
                self._seen = None  # It is read when there are descriptors again.
            text = self._unusable(exc)
            if text != self._complaint:
                LOG.error("%s; what it said before holds", text)
            self._complaint = text
            return
        LOG.info("%s has changed, and was read", self._path)
        self._complaint = ""
        self._is_new = True

    def _all(self) -> dict[str, Entry]:
        """New objects each time: what a node said before of what it does not serve is forgotten with the old ones."""
        services: dict[Place, dict[Address, int]] = {}
        for topic, servers in self._topics.items():
            for server, place in servers.items():
                found = services.setdefault(place, {})
                for address in (
                    Address("topic", self._exchange, topic),
                    Address("server", self._exchange, topic, server),
                    Address("fanout", self._exchange, topic),
                ):
                    found[address] = found.get(address, 0) + 1
        entries = {
            node_at(place.address): Entry(
                node_at(place.address),
                0,
                place.address,
                [f"tcp://{place.address}"],
                [Service((*address,), count, PREFETCH * count) for address, count in found.items()],
                self._key_named(place.key) if place.key else "",
            )
            for place, found in services.items()
        }
        entries.pop(self._node, None)
        if self._own_entry is not None:
            entries[self._node] = self._own_entry
        return entries

    @property
    def is_reachable(self) -> bool:
        return any(place.address == self._own for servers in self._topics.values() for place in servers.values())

    def is_alive(self, node: str) -> bool | None:
        return True if node == self._node else None

    def forget(self, node: str) -> None:
        if node in self._entries and node != self._node:
            self._entries = {name: entry for name, entry in self._entries.items() if name != node}
            self._again = time.monotonic() + AGAIN
            self._is_less = True

    def keep(self) -> None:
        pass

    def close(self) -> None:
        self._node = ""
        self._own_entry = None
        self._entries = {}
        self._again = 0.0

    def abandon(self) -> None:
        pass
