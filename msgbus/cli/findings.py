"""What is stuck, by two looks a few seconds apart, and what to look at next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from msgbus.cli.looking import UNKNOWN, Look, Queue, Running, ServerSeen, Stats, TopicSeen
from msgbus.cli.measuring import GONE, NO_ANSWER, state_of


@dataclass
class Finding:
    """Something that is stuck, or a note.

    Attributes:
        kind: one word for programs; docs/howto/stuck.md has all.
        topic: where.
        server: its name, or None.
        text: what was seen.
        next: what to look at.
        method, id, seconds: of a request that runs.
        count: how many servers, requests or messages it is about.
        is_stuck: false for a note.
    """

    kind: str
    topic: str
    server: str | None
    text: str
    next: str
    method: str | None = None
    id: str | None = None
    seconds: float | None = None
    count: int | None = None
    is_stuck: bool = True

    def as_dict(self) -> dict[str, Any]:
        """It, for programs: without what it has not."""
        found = asdict(self)
        del found["is_stuck"]
        return {name: value for name, value in found.items() if value is not None}


LOOK_AT_FROZEN = (
    "see whether its process is paused (state T in ps; kill -CONT lets it go on), whether its machine and network "
    "work, and whether an async method blocks its event loop (py-spy dump --pid PID). An older msgbus without free "
    "threads does not answer either"
)
LOOK_AT_NAME = (
    "to find out which it is, name the servers that should run: msgbus stuck TOPIC --server NAME --server NAME. "
    "RabbitMQ shows them, too: rabbitmqctl list_queues name consumers"
)
LOOK_AT_BUSY = (
    "see what its methods wait for (py-spy dump --pid PID): a database, another service, a lock. More servers or a "
    "higher executor_thread_pool_size help only if the methods end at all"
)
LOOK_AT_STOPPED = "start it again, or see why it has ended, in its log or in that of its supervisor"
LOOK_AT_REQUEST = (
    "search the logs of server and client for the id. Its client may have given up already: a method can ask "
    "msgbus.current_request().cancelled and time_left"
)
LOOK_AT_GROWTH = (
    "see in msgbus top whether the servers are busy: then start more servers, or find out what their methods wait for"
)
LOOK_AT_NOBODY = (
    "start its servers, or see in their logs why they have ended. If they run: do they use the same topic, exchange "
    "and message system (--url, --exchange)?"
)


def counted(number: int, what: str) -> str:
    """So many of them, in words."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def find(first: Look, second: Look, longer_than: float) -> list[Finding]:
    """All that is stuck, and notes; servers first, then requests, then queues."""
    found: list[Finding] = []
    for name, now in second.topics.items():
        before = first.topics.get(name) or TopicSeen(name)
        found += _about_servers(before, now)
        found += _about_requests(now, longer_than)
        found += _about_queues(before, now)
    return sorted(found, key=lambda finding: not finding.is_stuck)


# Servers


def _about_servers(before: TopicSeen, now: TopicSeen) -> Iterator[Finding]:
    for server in now.servers:
        yield from _about_server(now.topic, server, before.server(server.name))
    if now.known is None and now.queue.consumers is None:
        text = f"how many servers there are is unknown: {now.queue.why}"
        yield Finding("not_counted", now.topic, None, text, "see whether all that should run answer", is_stuck=False)
    yield from _about_nameless(before, now)


def _about_server(topic: str, server: ServerSeen, former: ServerSeen | None) -> Iterator[Finding]:
    queue = server.queue
    if server.answers:
        if queue.consumers and queue.consumers > 1:
            text = f"{queue.consumers} servers have this name: a request to that name goes to either of them"
            yield Finding("same_name", topic, server.name, text, "give each server a unique name")
        if server.stats is not None:
            yield from _about_busy(topic, server, None if former is None else former.stats)
    elif state_of(server) == GONE:
        text = "it does not run: it was stopped, or has died"
        if queue.exists:
            text += f"; its own queue still exists, with {counted(queue.messages or 0, 'message')}"
        yield Finding("stopped", topic, server.name, text, LOOK_AT_STOPPED)
    elif queue == UNKNOWN:
        text = "it does not answer; the message system does not say whether it runs"
        yield Finding("silent", topic, server.name, text, f"see whether its process lives. Then {LOOK_AT_FROZEN}")
    elif queue.consumers is None:
        yield Finding("unreachable", topic, server.name, f"it cannot be reached: {queue.why}", LOOK_AT_STOPPED)
    elif former is not None and state_of(former) == NO_ANSWER:
        yield Finding("frozen", topic, server.name, _frozen(1), LOOK_AT_FROZEN, count=1)
    else:
        yield _silent_once(topic, server.name)


def _frozen(count: int) -> str:
    it = "it is" if count == 1 else "they are"
    return f"{it} connected to the message system, and did not answer twice: frozen, or cut off from here"


def _silent_once(topic: str, server: str | None) -> Finding:
    text = "it did not answer in time when it was asked a second time: it may be frozen now"
    return Finding("silent_once", topic, server, text, "run msgbus stuck again", is_stuck=False)


def _about_nameless(before: TopicSeen, now: TopicSeen) -> Iterator[Finding]:
    """Servers that do not answer, and whose names the message system does not know."""
    gone = [server.name for server in before.servers if server.answers and now.server(server.name) is None]
    # So many of them are still counted.
    silent = len(gone) if now.known is None else min(now.nameless, len(gone))
    for name in gone[:silent]:
        yield _silent_once(now.topic, name)
    for name in gone[silent:]:
        text = "it answered at first, and no longer runs: it was stopped, or has died"
        yield Finding("ended", now.topic, name, text, LOOK_AT_STOPPED, is_stuck=False)
    count = min(now.nameless - silent, before.nameless)
    if count > 0:
        others = ", ".join(server.name or "?" for server in now.servers if server.answers)
        those = f"; those that answer: {others}" if others else ""
        text = f"{_frozen(count)}. The message system does not know the name{'s' if count > 1 else ''}{those}"
        yield Finding("frozen", now.topic, None, text, f"{LOOK_AT_NAME}. Then {LOOK_AT_FROZEN}", count=count)


def _about_busy(topic: str, server: ServerSeen, before: Stats | None) -> Iterator[Finding]:
    """A server whose threads or tasks were all taken at both looks, and that does not get further."""
    now = server.stats
    if now is None or before is None or not (now.is_full and before.is_full):
        return
    if now.uptime < before.uptime:  # It was started anew meanwhile.
        return
    ended = now.ended - before.ended
    if ended > 0 and now.waiting <= before.waiting:
        return
    did = "none has ended" if ended <= 0 else f"{ended} have ended, and more wait than before"
    text = f"{now.what_is_full}; {counted(now.waiting, 'request')} in its backlog; between the two looks {did}"
    yield Finding("busy", topic, server.name, text, LOOK_AT_BUSY, count=now.running_count)


# Requests and queues


def _about_requests(now: TopicSeen, longer_than: float) -> Iterator[Finding]:
    """For each server the request that has run longest, if that is long."""
    for server in now.servers:
        long = [request for request in _running(server) if request.seconds > longer_than]
        if not long:
            continue
        oldest = max(long, key=lambda request: request.seconds)
        more = f"; {len(long) - 1} more run for over {longer_than:g} s" if len(long) > 1 else ""
        yield Finding(
            "long_request",
            now.topic,
            server.name,
            f"{oldest.method} has run for {oldest.seconds:.0f} s (id {oldest.id}){more}",
            LOOK_AT_REQUEST,
            method=oldest.method,
            id=oldest.id,
            seconds=oldest.seconds,
            count=len(long),
        )


def _running(server: ServerSeen) -> Sequence[Running]:
    return () if server.stats is None else server.stats.running


def _about_queues(before: TopicSeen, now: TopicSeen) -> Iterator[Finding]:
    queue = now.queue
    if queue.consumers == 0 and not now.answered:
        yield _without_consumers(now.topic, queue)
    else:
        yield from _growing(now.topic, None, before.queue, queue)
    for server in now.servers:
        former = before.server(server.name)
        if former is not None and server.queue.consumers:
            yield from _growing(now.topic, server.name, former.queue, server.queue)


def _without_consumers(topic: str, queue: Queue) -> Finding:
    if queue.messages:
        text = f"{counted(queue.messages, 'request')} in its queue, which has no consumers"
        return Finding("no_consumers", topic, None, text, LOOK_AT_NOBODY, count=queue.messages)
    there = "its queue exists, and has no consumers" if queue.exists else "there is no queue for it"
    return Finding("no_server", topic, None, f"no server runs: {there}", LOOK_AT_NOBODY)


def _growing(topic: str, server: str | None, before: Queue, now: Queue) -> Iterator[Finding]:
    if not before.messages or not now.messages or now.messages <= before.messages:
        return
    whose = "its queue" if server is None else "its own queue"
    consumers = "an unknown number of consumers" if now.consumers is None else counted(now.consumers, "consumer")
    text = f"{whose} grows: {before.messages} messages at first, and then {now.messages}, with {consumers}"
    yield Finding("growing_queue", topic, server, text, LOOK_AT_GROWTH, count=now.messages)
