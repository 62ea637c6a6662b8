"""One look at topics: what their servers say of themselves, and what the message system knows of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from msgbus.cli.errors import line_of
from msgbus.drivers.base import Address, Capability, QueueInfo
from msgbus.exceptions import (
    InvalidTarget,
    MessageUndeliverable,
    MessagingException,
    RPCDispatcherError,
    TransportUnavailable,
)
from msgbus.target import Target

if TYPE_CHECKING:
    from msgbus.answers import Answer
    from msgbus.transport import Transport

INSPECT_TIMEOUT = 1.5
"""Seconds for the message system to say what it knows of all queues. Drivers answer within one."""


class Running(msgspec.Struct):
    """A request that a server runs. The names are those of its stats, as in all of these classes."""

    method: str
    id: str
    seconds: float


class Busy(msgspec.Struct):
    """How many threads or tasks of a server are busy."""

    busy: int
    limit: int
    waiting: int


class Counts(msgspec.Struct):
    """How often a method has ended, and how."""

    finished: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def ended(self) -> int:
        """However it has."""
        return self.finished + self.failed + self.cancelled


class Stats(msgspec.Struct):
    """What a server says of itself, as far as it is looked at here."""

    uptime: float
    running: list[Running]
    running_count: int
    methods: dict[str, Counts]
    others: Counts
    threads: Busy
    tasks: Busy | None
    backlog: int
    durations: list[tuple[float, int]] = []

    @property
    def is_full(self) -> bool:
        """Whether all threads or tasks are taken. The request for the stats does not count."""
        if self.tasks is None:
            return self.running_count >= self.threads.limit
        return self.running_count >= self.tasks.limit or self.threads.busy >= self.threads.limit

    @property
    def what_is_full(self) -> str:
        """What is taken, in words."""
        what, limit = "thread", self.threads.limit
        if self.tasks is not None and self.running_count >= self.tasks.limit:
            what, limit = "task", self.tasks.limit
        return f"its only {what} is busy" if limit == 1 else f"all its {limit} {what}s are busy"

    @property
    def waiting(self) -> int:
        """How many requests, or plain methods of such, wait for a thread or a task."""
        return self.backlog + (0 if self.tasks is None else self.threads.waiting)

    @property
    def oldest(self) -> Running | None:
        """The request that has run longest."""
        return max(self.running, key=lambda request: request.seconds, default=None)

    def _own(self) -> Iterable[Counts]:
        """Those of the service's own methods."""
        return [*(counts for name, counts in self.methods.items() if not name.startswith("msgbus.")), self.others]

    @property
    def ended(self) -> int:
        """How many requests have ended since it was started."""
        return sum(counts.ended for counts in self._own())

    @property
    def failed(self) -> int:
        """How many of these have failed."""
        return sum(counts.failed for counts in self._own())


class Queue(NamedTuple):
    """What the message system knows of an address.

    Attributes:
        consumers: how many subscribe to it; None if that is unknown.
        messages: how many messages wait there; likewise.
        exists: the address is known at all.
        why: why nothing is known.
    """

    consumers: int | None
    messages: int | None
    exists: bool = True
    why: str = ""


NO_QUEUE = Queue(0, 0, exists=False)
UNKNOWN = Queue(None, None, why="the message system does not say")


@dataclass
class ServerSeen:
    """A server that has answered, or whose name is known otherwise.

    Attributes:
        name: None if it does not say: a stock oslo.messaging server.
        answers: it has answered, with its stats or without.
        stats: what it says of itself, or None.
        host, pid, version: where it says so.
        why: why there are no stats.
        queue: that of its own address.
    """

    name: str | None
    answers: bool = False
    stats: Stats | None = None
    host: str = ""
    pid: int | None = None
    version: str = ""
    why: str = ""
    queue: Queue = UNKNOWN

    def note(self, value: Any) -> None:
        """Keep what it has said of itself. It may be anything."""
        if isinstance(value, dict):
            self.host, self.version = str(value.get("host", "")), str(value.get("version", ""))
            pid = value.get("pid")
            self.pid = pid if isinstance(pid, int) else None


@dataclass
class TopicSeen:
    """A topic.

    Attributes:
        servers: by name, and those without one.
        queue: what all of its servers share.
        dead: how many dead letters there are; None where none are stored, or that is unknown.
        known: how many servers the message system counts, both before and after they were asked; None if it does not
            say.
    """

    topic: str
    servers: list[ServerSeen] = field(default_factory=list)
    queue: Queue = NO_QUEUE
    dead: int | None = None
    known: int | None = None

    @property
    def answered(self) -> int:
        """How many servers have answered."""
        return sum(server.answers for server in self.servers)

    @property
    def nameless(self) -> int:
        """How many servers there are that do not answer and whose names are unknown."""
        named = sum(max(server.answers, server.queue.consumers or 0) for server in self.servers)
        return 0 if self.known is None else max(0, self.known - named)

    def server(self, name: str | None) -> ServerSeen | None:
        """The server of that name."""
        return next((server for server in self.servers if name is not None and server.name == name), None)


@dataclass
class Look:
    """What was seen.

    Attributes:
        at: when, in seconds of `time.time`.
        topics: by name.
    """

    at: float
    topics: dict[str, TopicSeen]


class Watcher:
    """Looks at topics, again and again."""

    def __init__(
        self,
        transport: Transport,
        topics: Sequence[str],
        *,
        exchange: str | None = None,
        timeout: float,
        servers: Sequence[str] = (),
    ) -> None:
        """Make one; nothing is sent.

        Args:
            transport: where.
            topics: their names; empty for all whose servers the message system can list.
            exchange: of the topics, if it is not the configured one.
            timeout: seconds that servers may take to answer.
            servers: names of servers that are shown in any case.

        Raises:
            InvalidTarget: such a topic or server cannot be.
        """
        self._transport = transport
        self._topics = list(dict.fromkeys(topics))
        self._exchange = exchange
        self._timeout = timeout
        self._names = list(dict.fromkeys(servers))
        for topic in self._topics:
            for server in (None, *self._names):
                Target(exchange=exchange, topic=topic, server=server)

    def look(self) -> Look:
        """Look once.

        Raises:
            UsageError: no topic was named, and the message system cannot list any.
            TransportUnavailable: likewise, and at present it does not.
            MessagingException: the servers could not be asked.
        """
        listed = self._list()
        if listed is None and not self._topics:
            raise click.UsageError(
                f"name the topics: {self._transport.driver.state.partition(': ')[0]} cannot list topics"
            )
        names = self._topics or sorted(listed or ())
        at = time.time()
        topics = {name: TopicSeen(name) for name in names}
        counted = ask(self._transport, [self._address(name) for name in names])
        self._ask(topics)
        listed_now = self._list() or {}
        for name, seen in topics.items():
            still_there = [] if listed is None else set(listed.get(name, ())) & set(listed_now.get(name, ()))
            for server in [*self._names, *sorted(still_there)]:
                if seen.server(server) is None:
                    seen.servers.append(ServerSeen(server))
            seen.servers.sort(key=lambda server: server.name or "")
        before = read(self._transport, counted)
        self._inspect(topics)
        for name, seen in topics.items():
            seen.known = _both(before[self._address(name)].consumers, seen.queue.consumers)
        return Look(at, topics)

    def _address(self, topic: str, server: str | None = None) -> Address:
        return self._transport.address(Target(exchange=self._exchange, topic=topic, server=server))

    def _list(self) -> dict[str, list[str]] | None:
        """The servers of each topic that the message system lists; None if it cannot do that."""
        transport = self._transport
        listing = transport.driver.known_servers()
        if listing is None:
            return None
        exchange = self._address("any").exchange
        found: dict[str, list[str]] = {}
        try:
            addresses = _result(transport, listing, INSPECT_TIMEOUT)
        except (MessagingException, TimeoutError) as exc:
            if self._topics:  # Then it is enough to ask these.
                return None
            why = exc if isinstance(exc, MessagingException) else f"no answer in {INSPECT_TIMEOUT:g} s"
            raise TransportUnavailable(f"{transport.driver.state}: the servers cannot be listed: {why}") from exc
        for address in addresses:
            if address.exchange == exchange:
                found.setdefault(address.topic, []).append(address.server)
        return found

    def _inspect(self, topics: dict[str, TopicSeen]) -> None:
        """Inspect the queues of topics and single servers, and dead letters."""
        shared = {self._address(name): seen for name, seen in topics.items()}
        own: dict[Address, ServerSeen] = {}
        for seen in topics.values():
            for server in seen.servers:
                if server.name is not None:
                    with suppress(InvalidTarget):  # Who answers may call itself anything.
                        own[self._address(seen.topic, server.name)] = server
        stores = Capability.STORAGE in self._transport.driver.capabilities
        dead = {self._address(name)._replace(kind="dead"): seen for name, seen in topics.items() if stores}
        found = read(self._transport, ask(self._transport, [*shared, *own, *dead]))
        for address, seen in shared.items():
            seen.queue = found[address]
        for address, server in own.items():
            server.queue = found[address]
        for address, seen in dead.items():
            seen.dead = found[address].messages

    # Asking servers

    def _ask(self, topics: dict[str, TopicSeen]) -> None:
        """Ask for stats, and those that have none for who they are."""
        for answer in self._gather("stats", list(topics)):
            server = ServerSeen(answer.server, answers=True)
            topics[answer.topic].servers.append(server)
            _read(server, answer)
        bare = [name for name, seen in topics.items() if any(server.stats is None for server in seen.servers)]
        for answer in self._gather("ping", bare):
            known = topics[answer.topic].server(answer.server)
            if known is not None and known.stats is None and answer.error is None:
                known.note(answer.value)

    def _gather(self, method: str, topics: Sequence[str]) -> list[Answer]:
        from msgbus.client import get_rpc_client

        if not topics:
            return []
        target = Target(exchange=self._exchange, topic=topics[0], namespace="msgbus")
        client = get_rpc_client(self._transport, target, timeout=self._timeout)
        with client.prepare(topics=topics).gather({}, method) as answers:
            return list(answers)


def _read(server: ServerSeen, answer: Answer) -> None:
    """Read what a server has answered when it was asked for its stats."""
    if isinstance(answer.error, RPCDispatcherError):
        server.why = "it does not say: its option rpc_built_in_methods has no stats, or its msgbus is older"
    elif answer.error is not None:
        server.why = line_of(answer.error)
    else:
        server.note(answer.value)
        try:
            server.stats = msgspec.convert(answer.value, Stats)
        except (msgspec.ValidationError, UnicodeError) as exc:
            server.why = f"its stats cannot be read: {exc}"


Asked = dict[Address, Future[QueueInfo] | None]
"""What the message system was asked for, and None for all if it cannot say such things."""


def ask(transport: Transport, addresses: Sequence[Address]) -> Asked:
    """Ask the message system what it knows of addresses."""
    if Capability.INSPECT not in transport.driver.capabilities:
        return dict.fromkeys(addresses)
    return {address: transport.driver.inspect(address) for address in addresses}


def read(transport: Transport, asked: Asked) -> dict[Address, Queue]:
    """What it knows, as far as it says so in time."""
    end = transport.loop.now() + INSPECT_TIMEOUT
    return {address: _queue(transport, info, end - transport.loop.now()) for address, info in asked.items()}


def _queue(transport: Transport, info: Future[QueueInfo] | None, seconds: float) -> Queue:
    if info is None:
        return UNKNOWN
    try:
        found = _result(transport, info, seconds)
    except MessageUndeliverable:
        return NO_QUEUE
    except MessagingException as exc:
        return Queue(None, None, why=line_of(exc))
    except TimeoutError:
        return Queue(None, None, why="the message system has not answered in time")
    return Queue(found.consumers, found.messages)


def _result(transport: Transport, future: Future[Any], seconds: float) -> Any:
    transport.loop.wait_for(future, transport.loop.now() + max(0.0, seconds))
    return future.result(0)


def _both(before: int | None, after: int | None) -> int | None:
    """How many servers were there all the time."""
    return None if before is None or after is None else min(before, after)
