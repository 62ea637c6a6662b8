"""The matchmaker ``redis``: nodes of many hosts find each other in a Redis; those of one host also without it.

=====================  ======================================================================================
``msgbus:node:<id>``   the node's entry, with a time to live: its lease, which it renews
``msgbus:nodes``       the ids of all (a set); some of them may have ended
``msgbus:<db>`` (pub)  the id of a node that has started, changed or closed
=====================  ======================================================================================

Entries are kept here, and Redis pushes changes, so it is not asked for each message, but only for those for which no
node is known. While it is away, the known entries stay in use. A node that cannot be reached, or whose lease runs out,
is left out.

What Redis says is not trusted: with keys, `keys_dir` decides who is connected to.

Processes that share a host and a Redis also meet in a folder of the run directory, as with ``local``: there a death is
known at once, and they use Unix sockets.

One thread (the worker) reads from Redis and writes to it, another one listens to changes. Their state is guarded by one
condition; the loop's thread reads only what they have published for it.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.connecting import backoff
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq.matchmakers.base import Entry, Matchmaker
from msgbus.drivers.zmq.matchmakers.local import ENTRY_MAX, LocalMatchmaker, prepare
from msgbus.drivers.zmq.matchmakers.redis_server import Server
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

LEASE = 10
"""Seconds after which a node that does not renew it counts as dead."""
RENEW = 3.0
"""Seconds between two renewals of a lease; then the leases of other nodes are checked too."""
PROPAGATION = 0.2
"""Seconds after which all other nodes know of a change that was published."""
LEFT_OUT = 1.0
"""Seconds for which a node is left out that has a lease, but does not listen at its endpoints."""
BACKOFF_FIRST, BACKOFF_MAX = 0.1, 2.0
"""Seconds between two attempts to reach Redis, at first and at most. Each is shortened by up to a half."""
RECOVERY = 4.0
"""Seconds within which all others have reconnected to a Redis that was away, and have registered again."""
DEAD_KEPT = 10_000
"""How many dead nodes are remembered."""
CHUNK = 500
"""How many entries are read at once."""

_NODES = "msgbus:nodes"
_NODES_KEPT = 24 * 3600
"""Seconds for which the set of nodes is kept when no node renews it any more."""
_decode = msgspec.msgpack.Decoder(Entry).decode


def _key(node: str) -> str:
    return f"msgbus:node:{node}"


def folder_for(run_dir: str, server: Server) -> str:
    """The folder for the processes that share a host and a Redis."""
    return os.path.join(run_dir, hashlib.sha256(server.name.encode()).hexdigest()[:8])


class RedisMatchmaker(Matchmaker):
    """See the module's text."""

    def __init__(self, loop: Loop, server: Server, run_dir: str, changed: Callable[[], None]) -> None:
        """Make one; no I/O.

        Args:
            loop: the transport's.
            server: the Redis.
            run_dir: the run directory.
            changed: called on the loop's thread when `entries`, `why_incomplete`, `rechecked` or `is_opening` changes.

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
        # Guarded by the condition: what the worker is to do, and which errors either thread has had.
        self._closing = False
        self._id = ""  # of the node, until the threads have ended
        self._own: Entry | None = None
        self._unpublished = False
        self._on_published: list[Callable[[], None]] = []
        self._changed_nodes: set[str] = set()
        self._must_read_all = False
        self._rechecks = 0
        self._renew_at = 0.0
        self._errors: dict[str, str] = {}  # by thread
        self._keeps_until = 0.0
        self._recovers_until = 0.0
        # The worker's.
        self._is_published = False
        self._not_before = 0.0
        self._failures = 0
        self._values: dict[str, bytes] = {}  # what was read, valid or not
        # Written by the worker, and only read by others: each is replaced as a whole.
        self._remote: dict[str, Entry] = {}
        self._version = 0
        self._rechecked = 0
        self.is_opening = False
        self._dead: dict[str, None] = {}
        # The loop's.
        self._seen = -1
        self._left_out: dict[str, tuple[float, Entry | None]] = {}

    @property
    def node(self) -> str:
        return self._local.node

    def open(self) -> str:
        if any(thread.is_alive() for thread in self._threads):
            raise TransportUnavailable(f"the former connections to Redis at {self._server.name} are still being closed")
        prepare(self._run_dir)
        folder = self._local.open()
        self._start_clean()
        self._id = self._local.node
        self.is_opening = True
        return folder

    def _start_threads(self) -> None:
        for name, run in (("work", self._work), ("listen", self._listen)):
            thread = threading.Thread(target=run, name=f"msgbus-zmq-redis-{name}", daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:
                raise TransportUnavailable(descriptors.not_started(thread.name, exc)) from exc
            self._threads.append(thread)

    def register(self, entry: Entry, published: Callable[[], None] | None = None) -> None:
        self._local.register(entry)
        if not self._threads:  # Not before: the node may turn out not to be able to listen.
            self._start_threads()
        # Other hosts cannot use the Unix socket; a node without another endpoint is not published to them.
        endpoints = [endpoint for endpoint in entry.endpoints if endpoint.startswith("tcp://")]
        if endpoints:
            with self._condition:
                self._own = msgspec.structs.replace(entry, endpoints=endpoints)
                self._unpublished = True
                self._on_published += [published] if published is not None else []
                self._condition.notify_all()
            return
        if entry.services:
            LOG.warning("node %s serves this host alone: set listen of [msgbus_zmq] for others", entry.node)
        if published is not None:
            published()

    def changed(self) -> bool:
        if self._version != self._seen or self._local.changed():
            return True
        return bool(self._left_out) and min(until for until, _ in self._left_out.values()) <= Loop.now()

    def entries(self) -> Mapping[str, Entry]:
        self._seen = self._version
        now, remote = Loop.now(), self._remote
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
            self._left_out[node] = (Loop.now() + LEFT_OUT, self._remote.get(node))
            self._seen = -1

    @property
    def is_reachable(self) -> bool:
        return self._own is not None

    def why_incomplete(self) -> str:
        if errors := self._errors.copy():
            return next(iter(errors.values()))
        if Loop.now() < self._recovers_until:
            return f"Redis at {self._server.name} has just come back, and may not know all nodes yet"
        return ""

    def recheck(self) -> int:
        with self._condition:
            self._rechecks += 1
            self._condition.notify_all()
            return self._rechecks

    @property
    def rechecked(self) -> int:
        return self._rechecked

    def maintain(self) -> None:
        self._local.maintain()

    def close(self) -> None:
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._local.close()

    def wait_closed(self, until: float) -> None:
        for thread in self._threads:
            thread.join(max(0.0, until - Loop.now()))

    def abandon(self) -> None:
        self._local.abandon()

    # Both threads

    def _succeeded(self, thread: str) -> None:
        with self._condition:
            had_failed, is_last = thread in self._errors, len(self._errors) == 1
            self._errors.pop(thread, None)
        if had_failed and is_last:
            self._recovers_until = Loop.now() + RECOVERY
            LOG.warning("Redis at %s is back", self._server.name)
            self._loop.call(self._on_change)

    def _failed(self, thread: str, exc: Exception) -> None:
        text = f"Redis at {self._server.name}, where nodes find each other, cannot be used: {self._server.explain(exc)}"
        with self._condition:
            is_first = not self._errors
            self._errors[thread] = text
            # When it is back it may have lost all data: until then nodes have had the time to register again.
            self._keeps_until = Loop.now() + BACKOFF_MAX + LEASE + RENEW
        if is_first:
            LOG.warning("%s; known nodes keep working, new ones are not found", text)
            self._loop.call(self._opened)

    def _opened(self) -> None:
        """On the loop's thread, so that messages that waited for this go before those that come now."""
        self.is_opening = False
        self._on_change()

    # The thread that listens

    def _listen(self) -> None:
        failures = 0
        while not self._closing:
            begun = Loop.now()
            client = self._server.connect()
            pubsub = client.pubsub()
            try:
                pubsub.subscribe(self._channel, f"{self._channel}:{self._id}")
                self._read_messages(pubsub)
            except self._server.errors as exc:
                self._failed("listen", exc)
            finally:
                _close(pubsub, client)
            failures = 0 if Loop.now() - begun > 3 * RENEW else failures + 1
            with self._condition:
                self._condition.wait_for(lambda: self._closing, backoff(failures, BACKOFF_FIRST, BACKOFF_MAX))

    def _read_messages(self, pubsub: Any) -> None:
        """Read pushed changes, until the matchmaker is closed. Raises an error of Redis."""
        last = Loop.now()
        while not self._closing:
            message = pubsub.get_message(timeout=1.0)
            if message is not None:
                last = Loop.now()
                self._on_message(message)
            elif Loop.now() - last > 3 * RENEW:
                raise TimeoutError("it no longer pushes changes")

    def _on_message(self, message: dict[str, Any]) -> None:
        if message["channel"] != self._channel.encode():
            return  # The worker publishes it for this thread, to show that changes arrive.
        if message["type"] == "subscribe":
            # From now on no change is missed. Earlier ones have to be read, and this node may have to register again.
            with self._condition:
                self._must_read_all = True
                self._renew_at = 0.0
                self._condition.notify_all()
        elif (node := _node_of(message["data"])) and node != self._id:
            with self._condition:
                self._changed_nodes.add(node)
                self._condition.notify_all()

    # The worker

    def _work(self) -> None:
        client = self._server.connect()
        while self._wait():
            try:
                self._write(client)
                self._read(client)
            except self._server.errors as exc:
                self._failed("work", exc)
                self._not_before = Loop.now() + backoff(self._failures, BACKOFF_FIRST, BACKOFF_MAX)
                self._renew_at = 0.0
                self._failures += 1
            else:
                self._failures = 0
                self._succeeded("work")
        try:
            self._unregister(client)
        except self._server.errors as exc:
            LOG.debug("node %s could not be removed from Redis at %s: %s", self._id, self._server.name, exc)
        _close(client)

    def _wait(self) -> bool:
        """Wait until there is something to do. False: the matchmaker is closed."""
        with self._condition:
            while not self._closing:
                now = Loop.now()
                due = self._not_before
                has_work = self._unpublished or self._changed_nodes or self._must_read_all
                if not has_work and self._rechecks == self._rechecked:
                    due = max(due, self._renew_at)
                if due <= now:
                    return True
                self._condition.wait(due - now)
        return False

    def _write(self, client: Any) -> None:
        """Publish the node's entry if it is new, or renew its lease when that is due."""
        with self._condition:
            own, unpublished, on_published = self._own, self._unpublished, self._on_published
            self._unpublished, self._on_published = False, []
        try:
            if unpublished and own is not None:
                self._publish(client, own)
            elif Loop.now() >= self._renew_at:
                self._renew(client, own)
        except self._server.errors:
            with self._condition:
                self._unpublished = self._unpublished or unpublished
                self._on_published = on_published + self._on_published
            raise
        for call in on_published:
            self._loop.call(self._loop.call_later, PROPAGATION, call)

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
            pipe.publish(f"{self._channel}:{self._id}", b"")
            if own is not None:
                pipe.sadd(_NODES, own.node)  # Another node may have removed it a moment ago.
                pipe.expire(_NODES, _NODES_KEPT)
                pipe.expire(_key(own.node), LEASE)
            is_there = pipe.execute()[-1]
        if own is not None and not is_there:
            self._publish(client, own)  # Redis has lost its data, or this process was frozen for too long.

    def _read(self, client: Any) -> None:
        """Read the entries of nodes that have changed, or of all where changes may have been missed."""
        with self._condition:
            changed, must_read_all, rechecks = self._changed_nodes, self._must_read_all, self._rechecks
            self._changed_nodes, self._must_read_all = set(), False
        try:
            is_due = Loop.now() >= self._renew_at or rechecks > self._rechecked
            if must_read_all or (is_due and self._has_changed(client)):
                self._read_all(client)
            elif changed:
                self._update(self._values_of(client, changed), changed)
        except self._server.errors:
            with self._condition:
                self._changed_nodes |= changed
                self._must_read_all = self._must_read_all or must_read_all
            raise
        if Loop.now() >= self._renew_at:
            self._renew_at = Loop.now() + RENEW * random.uniform(0.8, 1.0)
        if rechecks > self._rechecked:
            self._rechecked = rechecks
            self._loop.call(self._on_change)
        if must_read_all:
            self._succeeded("listen")
            if self.is_opening:
                self._loop.call(self._opened)

    def _members(self, client: Any) -> set[str]:
        return {node for data in client.smembers(_NODES) if (node := _node_of(data))} - {self._id}

    def _has_changed(self, client: Any) -> bool:
        """Whether there are other nodes than those that are known, or a lease has run out."""
        nodes = self._members(client)
        return nodes != self._values.keys() or (bool(nodes) and client.exists(*map(_key, nodes)) != len(nodes))

    def _values_of(self, client: Any, nodes: Iterable[str]) -> dict[str, bytes]:
        wanted, found = list(nodes), {}
        for at in range(0, len(wanted), CHUNK):
            some = wanted[at : at + CHUNK]
            values = client.mget(list(map(_key, some)))
            found.update({node: value for node, value in zip(some, values, strict=True) if value is not None})
        return found

    def _read_all(self, client: Any) -> None:
        nodes = self._members(client)
        found = self._values_of(client, nodes)
        if expired := nodes - found.keys():
            client.srem(_NODES, *expired)
        keeps = Loop.now() < self._keeps_until
        self._update(found, found.keys() if keeps else {*found, *self._values})

    def _update(self, found: Mapping[str, bytes], nodes: Iterable[str]) -> None:
        """Replace the entries of these nodes by what was found. Those that were not found are dead."""
        remote = dict(self._remote)
        for node in nodes:
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
        while len(self._dead) > DEAD_KEPT:
            del self._dead[next(iter(self._dead))]
        if remote != self._remote:
            self._remote = remote
            self._version += 1
            self._loop.call(self._on_change)

    def _unregister(self, client: Any) -> None:
        if self._errors:
            return
        with client.pipeline() as pipe:
            if self._is_published:
                pipe.delete(_key(self._id))
                pipe.srem(_NODES, self._id)
                pipe.publish(self._channel, self._id)
            pipe.publish(f"{self._channel}:{self._id}", b"")  # It wakes the thread that listens.
            pipe.execute()


def _node_of(data: Any) -> str:
    """The id of a node, as read from Redis; empty if it is invalid."""
    text = data.decode("ascii", "replace") if isinstance(data, bytes) else ""
    return text if len(text) == 16 and text.isalnum() and text.isascii() else ""


def _read_entry(node: str, value: bytes) -> Entry | None:
    """The entry of a node, as read from Redis; None, and a line in the log, if it is invalid."""
    try:
        if len(value) > ENTRY_MAX:
            raise ValueError(f"it has {len(value)} bytes")
        entry = _decode(value)
        if entry.node != node or not entry.host.isprintable():
            raise ValueError(f"it belongs to node {entry.node!r} on {entry.host!r}")
        if not entry.endpoints or not all(endpoint.startswith("tcp://") for endpoint in entry.endpoints):
            raise ValueError("it has endpoints other than tcp://, or none")
    except (ValueError, RecursionError) as exc:
        LOG.warning("%s in Redis cannot be read, and the node is left out: %s", _key(node), exc)
        return None
    return entry


def _close(*opened: Any) -> None:
    for each in opened:
        try:
            each.close()
        except Exception as exc:  # Nobody uses the connection any more, whatever is wrong with it.
            LOG.debug("a connection to Redis could not be closed: %r", exc)
