"""The matchmaker ``file``: a JSON file says which servers a topic has, and where. It is watched for changes.

::

    {
      "inventory": {"one": "10.0.0.5:9501", "two": "10.0.0.6:9501"},
      "billing": {"one": {"address": "10.0.0.7:9501", "key": "host-c"}}
    }

The topics are those of `control_exchange`. A server's process is identified by its address: its node's id is made from
that, so every process that reads the file knows it. A process that does not listen (a client) is not in the file, and
has a random id.

Nothing says whether a process lives. So a node at whose address nobody listens is left out for `RETRY_AFTER` seconds,
and then tried again for the next message. Therefore a server is ready only that long after it has begun to listen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
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

RETRY_AFTER = 0.1
"""Seconds after which a server that refused a connection, or said that it does not serve a topic, is tried again."""
PREFETCH = 64
"""The assumed prefetch of a server, which the file does not say: the default of ``rpc_prefetch``."""

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
        ValueError: its content is invalid; the text says where.
    """
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file, object_pairs_hook=_without_duplicates)
        except RecursionError:
            raise ValueError("it is nested too deep") from None
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
            if match is None or not place.address.isprintable() or not 0 < int(match[1]) < 65536:
                raise ValueError(f"server {server!r} of topic {topic!r}: {place.address!r} is not HOST:PORT")
            if keys.setdefault(place.address, place.key) != place.key:
                raise ValueError(f"{place.address} has two keys: {keys[place.address]!r} and {place.key!r}")
    return topics


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} occurs twice in one object")
    return found


class FileMatchmaker(Matchmaker):
    """See the module's text."""

    def __init__(self, loop: Loop, path: str, own: str, exchange: str, key_named: Callable[[str], str]) -> None:
        """Make one; no I/O.

        Args:
            loop: the transport's.
            path: of the file.
            own: the ``HOST:PORT`` at which others reach this process, or empty if it does not listen.
            exchange: of the file's topics.
            key_named: see `Security.key_named`.
        """
        self._loop = loop
        self._path = path
        self._own = own
        self._exchange = exchange
        self._key_named = key_named
        self._node = ""
        self._topics: Topics = {}
        self._file_state: Any = None
        self._last_error = ""
        self._warned: set[str] = set()
        self._own_entry: Entry | None = None
        self._entries: dict[str, Entry] = {}
        self._is_outdated = False  # the entries have to be made again
        self._has_changed = False  # they have been changed already
        self._retry_at = 0.0

    @property
    def node(self) -> str:
        return self._node

    def open(self) -> str:
        self._file_state = self._stat()
        try:
            self._topics = read_topics(self._path)
        except (OSError, ValueError) as exc:
            raise ConfigurationError(self._unusable(exc)) from exc
        self._node = node_at(self._own) if self._own else secrets.token_hex(8)
        return ""

    def _unusable(self, exc: Exception) -> str:
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        return f"matchmaker_file of [msgbus_zmq], {self._path}, cannot be used: {why}"

    def _stat(self) -> Any:
        """Something that differs after the file has changed."""
        try:
            found = os.stat(self._path)
        except OSError as exc:
            return exc.errno
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def register(self, entry: Entry, published: Callable[[], None] | None = None) -> None:
        for service in entry.services:
            kind, exchange, topic, server, name = service.address
            if kind == "pool":
                raise ConfigurationError(
                    f"pool {name!r} of topic {topic!r}: matchmaker_file cannot list pools; set matchmaker of "
                    "[msgbus_zmq] to local or redis"
                )
            if kind == "server":
                self._warn_if_missing(exchange, topic, server)
        self._own_entry = entry
        self._is_outdated = True
        if published is not None and self._own:
            self._loop.call_later(1.5 * RETRY_AFTER, published)
        elif published is not None:
            published()

    def _warn_if_missing(self, exchange: str, topic: str, server: str) -> None:
        place = self._topics.get(topic, {}).get(server)
        if place is not None and place.address == self._own and exchange == self._exchange:
            return
        where = self._own or "an address of this process (the option listen is not set, so nobody can connect)"
        text = f"{self._path} does not say that server {server!r} of topic {topic!r} is at {where}"
        if text not in self._warned:
            self._warned.add(text)
            LOG.warning("%s: nobody finds it there", text)

    def changed(self) -> bool:
        if self._is_outdated or self._has_changed:
            return True
        return Loop.now() >= self._retry_at or self._stat() != self._file_state

    def entries(self) -> Mapping[str, Entry]:
        self._read()
        if self._is_outdated or Loop.now() >= self._retry_at:
            self._retry_at = Loop.now() + RETRY_AFTER
            self._entries = self._make_entries()
        self._is_outdated = self._has_changed = False
        return self._entries

    def _read(self) -> None:
        """Read the file if it has changed. While it cannot be used, its former content stays in use."""
        state = self._stat()
        if state == self._file_state:
            return
        self._file_state = state
        try:
            self._topics = read_topics(self._path)
        except (OSError, ValueError) as exc:
            if descriptors.is_shortage(exc):
                self._file_state = None  # It is read when descriptors are free again.
            text = self._unusable(exc)
            if text != self._last_error:
                LOG.error("%s; its former content stays in use", text)
            self._last_error = text
            return
        LOG.info("%s has changed, and was read", self._path)
        self._last_error = ""
        self._is_outdated = True

    def _make_entries(self) -> dict[str, Entry]:
        """Make the entries of all nodes. They are new objects, so that a node that said NOBODY is tried again."""
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
            self._retry_at = Loop.now() + RETRY_AFTER
            self._has_changed = True

    def maintain(self) -> None:
        pass

    def close(self) -> None:
        self._node = ""
        self._own_entry = None
        self._entries = {}
        self._retry_at = 0.0

    def abandon(self) -> None:
        pass
