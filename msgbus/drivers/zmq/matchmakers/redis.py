"""The matchmaker ``redis``: nodes of many hosts find each other in a Redis, and those of one host without it too.

=====================  ======================================================================================
``msgbus:node:<id>``   what the node tells of itself, with a time to live: its lease, which it renews
``msgbus:nodes``       the ids of all (a set); some of them may be gone
``msgbus:<db>`` (pub)  the id of a node that has come, has changed or has gone
=====================  ======================================================================================

What was learnt is kept here, and changes are pushed, so that Redis is asked nothing for a message, but for one that
nobody seems to be there for. While it is away, what was known holds. A node that is not reached, or whose lease runs
out, is left out.

What Redis says is not trusted: with keys, who is connected to is decided by `keys_dir`.

Processes that share a host and a Redis also meet in a folder of the run directory, as with ``local``: there a death is
known at once, and they use Unix sockets.

A thread asks Redis and tells it, another listens. Their state is guarded by one condition; the loop's thread only reads
what they have put together.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from msgbus.drivers.base import import_library
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq.matchmakers.base import Entry, Matchmaker
from msgbus.drivers.zmq.matchmakers.local import ENTRY_MAX, LocalMatchmaker, prepare
from msgbus.exceptions import ConfigurationError
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

LEASE = 10
"""Seconds after which a node that says nothing more is gone."""
RENEW = 3.0
"""Seconds between two renewals of a lease; at every other one, the leases of others are looked at."""
LAG = 0.2
"""Seconds after which all others have heard of a change that was published."""
LEFT_OUT = 1.0
"""Seconds for which a node is left out that has a lease, and at whose endpoints nobody listens."""
TIMEOUT = 3.0
"""Seconds for an answer of Redis."""
BACKOFF_MIN, BACKOFF_MAX = 0.1, 2.0
"""Seconds between two attempts to reach Redis."""
SETTLING = 4.0
"""Seconds within which all others have found a Redis again that was away, and have said that they are there."""
REMEMBERED = 10_000
"""How many nodes are remembered that are gone."""
CHUNK = 500
"""How many nodes are asked for at once."""

_NODES = "msgbus:nodes"
_NODES_KEPT = 24 * 3600
"""Seconds for which the set of nodes is kept when nobody renews anything any more."""
_decode = msgspec.msgpack.Decoder(Entry).decode


def _key(node: str) -> str:
    return f"msgbus:node:{node}"


class Server:
    """Which Redis, and how to speak to it.

    Attributes:
        name: ``HOST:PORT/DB``, without user and password.
        db: the number of its database.
    """

    def __init__(self, url: str) -> None:
        """Read a URL; no I/O.

        Raises:
            ConfigurationError: it is none. The URL is not in the text, for it may hold a password.
            DriverLoadFailure: the library for Redis is missing.
        """
        self._redis = import_library("redis", "redis")
        try:
            pool = self._redis.ConnectionPool.from_url(url)
            settings = pool.connection_kwargs
            if (
                any(name.startswith("ssl_") for name in settings)
                and pool.connection_class is not self._redis.SSLConnection
            ):
                raise ConfigurationError(
                    "redis_url of [msgbus_zmq] has options of TLS, which would have no effect: it has to begin with "
                    "rediss://"
                )
            pool.connection_class(**settings)  # Opens nothing; an option that there is not is an error.
            self.db = int(settings.get("db") or 0)
            port = int(settings.get("port") or 6379)
        except ConfigurationError:
            raise
        except (ValueError, TypeError, self._redis.RedisError):
            raise ConfigurationError(
                "redis_url of [msgbus_zmq] cannot be read: it is redis://USER:PASSWORD@HOST:PORT/DB (all but HOST may "
                "be left out), rediss:// with TLS, or unix:///PATH; special characters of the password are "
                "percent-encoded"
            ) from None
        place = settings.get("path") or f"{settings.get('host') or 'localhost'}:{port}"
        self.name = f"{place}/{self.db}"
        self._url = url
        self._secrets = [str(settings[name]) for name in ("password", "ssl_password") if settings.get(name)]

    def connect(self) -> Any:
        """A client. Nothing is repeated by itself, and no answer is waited for longer than `TIMEOUT`."""
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return self._redis.Redis.from_url(
            self._url,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),
            client_name="msgbus",
        )

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What a command may raise."""
        return (self._redis.RedisError, OSError)

    def words(self, exc: Exception) -> str:
        """An error's text, in which no password is."""
        text = " ".join(str(exc).split()) or type(exc).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def folder_for(run_dir: str, server: Server) -> str:
    """Where those meet who share a host and a Redis."""
    return os.path.join(run_dir, hashlib.sha256(server.name.encode()).hexdigest()[:8])


class RedisMatchmaker(Matchmaker):
    """See the module's text."""

    def __init__(self, loop: Loop, server: Server, run_dir: str, changed: Callable[[], None]) -> None:
        """Make one; no I/O.

        Args:
            loop: the I/O thread.
            server: the Redis.
            run_dir: the run directory.
            changed: called on the I/O thread when `entries`, `doubt` or `is_opening` has something new to say.

        Raises:
            ConfigurationError: the path of the run directory is too long.
        """
        self._loop = loop
        self._server = server
        self._run_dir = run_dir
        self._on_change = changed
        self._local = LocalMatchmaker(folder_for(run_dir, server))
        self._channel = f"msgbus:{server.db}"
        self._start_clean()

    def _start_clean(self) -> None:
        self._condition = threading.Condition()
        self._threads: list[threading.Thread] = []
        # Guarded by the condition: what the worker is to do, and what has gone wrong for either thread.
        self._closing = False
        self._own: Entry | None = None
        self._unpublished = False
        self._told: list[Callable[[], None]] = []
        self._looks: set[str] = set()
        self._wants_all = False
        self._asked = 0
        self._renew_at = 0.0
        self._troubles: dict[str, str] = {}
        self._keeps_until = 0.0
        self._settles_until = 0.0
        # The worker's.
        self._is_published = False
        self._not_before = 0.0
        self._delay = BACKOFF_MIN
        self._values: dict[str, bytes] = {}  # what was read, whether it makes sense or not
        # Written by the worker, and only read by others: each is replaced as a whole.
        self._remote: dict[str, Entry] = {}
        self._version = 0
        self._answered = 0
        self._is_opening = False
        self._dead: dict[str, None] = {}
        # The loop's.
        self._seen = -1
        self._left_out: dict[str, tuple[float, Entry | None]] = {}

    @property
    def node(self) -> str:
        return self._local.node

    def open(self) -> str:
        prepare(self._run_dir)
        folder = self._local.open()
        self._start_clean()
        self._is_opening = True
        for name, run in (("work", self._work), ("listen", self._listen)):
            thread = threading.Thread(target=run, name=f"msgbus-zmq-redis-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return folder

    def register(self, entry: Entry, told: Callable[[], None] | None = None) -> None:
        self._local.register(entry)
        # Another host has no use for the Unix socket; who has nothing else is not told of there.
        endpoints = [endpoint for endpoint in entry.endpoints if endpoint.startswith("tcp://")]
        if endpoints:
            with self._condition:
                self._own = msgspec.structs.replace(entry, endpoints=endpoints)
                self._unpublished = True
                self._told += [told] if told is not None else []
                self._condition.notify_all()
            return
        if entry.services:
            LOG.warning("node %s serves this host alone: set listen of [msgbus_zmq] for others", entry.node)
        if told is not None:
            told()

    def changed(self) -> bool:
        if self._version != self._seen or self._local.changed():
            return True
        return bool(self._left_out) and min(until for until, _ in self._left_out.values()) <= time.monotonic()

    def entries(self) -> Mapping[str, Entry]:
        self._seen = self._version
        now, remote = time.monotonic(), self._remote
        self._left_out = {
            node: (until, entry)
            for node, (until, entry) in self._left_out.items()
            if until > now and remote.get(node) is entry
        }
        found = {node: entry for node, entry in remote.items() if node not in self._left_out}
        found.update(self._local.entries())
        return found

    def is_alive(self, node: str) -> bool | None:
        if self._local.knows(node):
            return self._local.is_alive(node)
        return False if node in self._dead else None

    def forget(self, node: str) -> None:
        if self._local.knows(node):
            self._local.forget(node)
        else:
            self._left_out[node] = (time.monotonic() + LEFT_OUT, self._remote.get(node))
            self._seen = -1

    @property
    def is_reachable(self) -> bool:
        return self._own is not None

    def doubt(self) -> str:
        if troubles := self._troubles.copy():
            return next(iter(troubles.values()))
        if time.monotonic() < self._settles_until:
            return f"Redis at {self._server.name} has just come back, and may not know yet who is there"
        return ""

    def ask(self) -> int:
        with self._condition:
            self._asked += 1
            self._condition.notify_all()
            return self._asked

    @property
    def answered(self) -> int:
        return self._answered

    @property
    def is_opening(self) -> bool:
        return self._is_opening

    def keep(self) -> None:
        self._local.keep()

    def close(self) -> None:
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join(TIMEOUT)
        self._threads.clear()
        self._local.close()

    def abandon(self) -> None:
        self._local.abandon()

    # Both threads

    def _succeeded(self, who: str) -> None:
        with self._condition:
            was, is_last = who in self._troubles, len(self._troubles) == 1
            self._troubles.pop(who, None)
        if was and is_last:
            self._settles_until = time.monotonic() + SETTLING
            LOG.warning("Redis at %s is back", self._server.name)
            self._loop.call(self._on_change)

    def _failed(self, who: str, exc: Exception) -> None:
        text = f"Redis at {self._server.name}, where nodes find each other, cannot be used: {self._server.words(exc)}"
        with self._condition:
            is_first = not self._troubles
            self._troubles[who] = text
            # When it is back it may have forgotten everything: nodes get the time to say again that they are there.
            self._keeps_until = time.monotonic() + BACKOFF_MAX + LEASE + RENEW
        if is_first:
            LOG.warning("%s; nodes that are known go on, others are not found", text)
            self._loop.call(self._opened)

    def _opened(self) -> None:
        """On the loop's thread: what waited for this goes before all that comes now."""
        self._is_opening = False
        self._on_change()

    def _pause(self, seconds: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._closing, seconds * random.uniform(0.5, 1.0))

    # The one that listens

    def _listen(self) -> None:
        delay = BACKOFF_MIN
        while not self._closing:
            begun = time.monotonic()
            client = self._server.connect()
            pubsub = client.pubsub()
            try:
                pubsub.subscribe(self._channel, f"{self._channel}:{self.node}")
                self._hear(pubsub)
            except self._server.errors as exc:
                self._failed("listen", exc)
            finally:
                _close(pubsub, client)
            delay = BACKOFF_MIN if time.monotonic() - begun > 3 * RENEW else min(BACKOFF_MAX, 2 * delay)
            self._pause(delay)

    def _hear(self, pubsub: Any) -> None:
        """Take in what is pushed. Raises an error of Redis, and ends only when all does."""
        heard = time.monotonic()
        while not self._closing:
            message = pubsub.get_message(timeout=1.0)
            if message is not None:
                heard = time.monotonic()
                self._on_message(message)
            elif time.monotonic() - heard > 3 * RENEW:
                raise TimeoutError("it does not push changes any more")

    def _on_message(self, message: dict[str, Any]) -> None:
        if message["channel"] != self._channel.encode():
            return  # The worker's sign of life, which it sends to itself.
        if message["type"] == "subscribe":
            # From now on nothing is missed; what was before has to be asked for, and perhaps to be said again.
            with self._condition:
                self._wants_all = True
                self._renew_at = 0.0
                self._condition.notify_all()
        elif (node := _node_of(message["data"])) and node != self.node:
            with self._condition:
                self._looks.add(node)
                self._condition.notify_all()

    # The one that asks and tells

    def _work(self) -> None:
        client = self._server.connect()
        while self._wait():
            try:
                self._tell(client)
                self._look(client)
            except self._server.errors as exc:
                self._failed("work", exc)
                self._not_before = time.monotonic() + self._delay * random.uniform(0.5, 1.0)
                self._renew_at = 0.0
                self._delay = min(BACKOFF_MAX, 2 * self._delay)
            else:
                self._delay = BACKOFF_MIN
                self._succeeded("work")
        try:
            self._take_leave(client)
        except self._server.errors as exc:
            LOG.debug("Redis at %s was not told that node %s leaves: %s", self._server.name, self.node, exc)
        _close(client)

    def _wait(self) -> bool:
        """Return when there is something to do; False if that is to end."""
        with self._condition:
            while not self._closing:
                now = time.monotonic()
                due = self._not_before
                if not (self._unpublished or self._looks or self._wants_all or self._asked > self._answered):
                    due = max(due, self._renew_at)
                if due <= now:
                    return True
                self._condition.wait(due - now)
        return False

    def _tell(self, client: Any) -> None:
        """Publish what is new of this node, or renew its lease."""
        with self._condition:
            own, unpublished, told = self._own, self._unpublished, self._told
            self._unpublished, self._told = False, []
        try:
            if unpublished and own is not None:
                self._publish(client, own)
            elif time.monotonic() >= self._renew_at:
                self._renew(client, own)
        except self._server.errors:
            with self._condition:
                self._unpublished = self._unpublished or unpublished
                self._told = told + self._told
            raise
        for call in told:
            self._loop.call(self._loop.call_later, LAG, call)

    def _publish(self, client: Any, own: Entry) -> None:
        with client.pipeline() as pipe:
            pipe.set(_key(own.node), msgspec.msgpack.encode(own), ex=LEASE)
            pipe.sadd(_NODES, own.node)
            pipe.expire(_NODES, _NODES_KEPT)
            pipe.publish(self._channel, own.node)
            pipe.execute()
        self._is_published = True

    def _renew(self, client: Any, own: Entry | None) -> None:
        with client.pipeline() as pipe:
            pipe.publish(f"{self._channel}:{self.node}", b"")
            if own is not None:
                pipe.sadd(_NODES, own.node)  # Somebody may have taken it out a moment ago.
                pipe.expire(_NODES, _NODES_KEPT)
                pipe.expire(_key(own.node), LEASE)
            is_there = pipe.execute()[-1]
        if own is not None and not is_there:
            self._publish(client, own)  # Redis has forgotten it, or this process was frozen for too long.

    def _look(self, client: Any) -> None:
        """Learn what is new of others."""
        with self._condition:
            looks, wants_all, asked = self._looks, self._wants_all, self._asked
            self._looks, self._wants_all = set(), False
        try:
            is_time = time.monotonic() >= self._renew_at or asked > self._answered
            if wants_all or (is_time and self._has_changed(client)):
                self._read_all(client)
            elif looks:
                self._take_in(self._read(client, looks), looks)
        except self._server.errors:
            with self._condition:
                self._looks |= looks
                self._wants_all = self._wants_all or wants_all
            raise
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + RENEW * random.uniform(0.8, 1.0)
        if asked > self._answered:
            self._answered = asked
            self._loop.call(self._on_change)
        if wants_all:
            self._succeeded("listen")
            if self._is_opening:
                self._loop.call(self._opened)

    def _members(self, client: Any) -> set[str]:
        return {node for data in client.smembers(_NODES) if (node := _node_of(data))} - {self.node}

    def _has_changed(self, client: Any) -> bool:
        """Whether there are others than those that are known, or a lease has run out."""
        nodes = self._members(client)
        return nodes != self._values.keys() or (bool(nodes) and client.exists(*map(_key, nodes)) != len(nodes))

    def _read(self, client: Any, nodes: Iterable[str]) -> dict[str, bytes]:
        wanted, found = list(nodes), {}
        for at in range(0, len(wanted), CHUNK):
            some = wanted[at : at + CHUNK]
            values = client.mget(list(map(_key, some)))
            found.update({node: value for node, value in zip(some, values, strict=True) if value is not None})
        return found

    def _read_all(self, client: Any) -> None:
        nodes = self._members(client)
        found = self._read(client, nodes)
        if expired := nodes - found.keys():
            client.srem(_NODES, *expired)
        keeps = time.monotonic() < self._keeps_until
        self._take_in(found, found.keys() if keeps else {*found, *self._values})

    def _take_in(self, found: Mapping[str, bytes], asked: Iterable[str]) -> None:
        """Know of the nodes that were asked for what was found; those that were not found are gone."""
        remote = dict(self._remote)
        for node in asked:
            value = found.get(node)
            if value is not None and self._values.get(node) == value:
                continue
            remote.pop(node, None)
            self._values.pop(node, None)
            if value is None:
                self._dead[node] = None
                continue
            self._dead.pop(node, None)
            self._values[node] = value
            if (entry := _read_entry(node, value)) is not None:
                remote[node] = entry
        while len(self._dead) > REMEMBERED:
            del self._dead[next(iter(self._dead))]
        if remote != self._remote:
            self._remote = remote
            self._version += 1
            self._loop.call(self._on_change)

    def _take_leave(self, client: Any) -> None:
        if self._troubles:
            return
        with client.pipeline() as pipe:
            if self._is_published:
                pipe.delete(_key(self.node))
                pipe.srem(_NODES, self.node)
                pipe.publish(self._channel, self.node)
            pipe.publish(f"{self._channel}:{self.node}", b"")  # It wakes the one that listens.
            pipe.execute()


def _node_of(data: Any) -> str:
    """The id of a node that somebody wrote; empty where it is none."""
    text = data.decode("ascii", "replace") if isinstance(data, bytes) else ""
    return text if len(text) == 16 and text.isalnum() and text.isascii() else ""


def _read_entry(node: str, value: bytes) -> Entry | None:
    """What a node tells of itself; None, and a line in the log, where it makes no sense."""
    try:
        if len(value) > ENTRY_MAX:
            raise ValueError(f"it has {len(value)} bytes")
        entry = _decode(value)
        if entry.node != node or not entry.host.isprintable():
            raise ValueError(f"it is of node {entry.node!r} on {entry.host!r}")
        if not entry.endpoints or not all(endpoint.startswith("tcp://") for endpoint in entry.endpoints):
            raise ValueError("it has other endpoints than those of other hosts")
    except ValueError as exc:
        LOG.warning("%s in Redis cannot be read, and the node is left out: %s", _key(node), exc)
        return None
    return entry


def _close(*opened: Any) -> None:
    for each in opened:
        try:
            each.close()
        except Exception as exc:  # It is of no use any more, whatever it says.
            LOG.debug("a connection to Redis did not close: %r", exc)
