"""What the stats of a server come to between two looks: rates, and how long its methods take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from msgbus.cli.looking import Look, Running, ServerSeen, Stats, TopicSeen

OK = "ok"
BUSY = "busy"
NO_STATS = "no stats"
NO_ANSWER = "no answer"
GONE = "not running"

SORTED_BY = ("name", "rate", "p50", "p99", "running", "waiting", "errors", "oldest")
"""What servers can be sorted by."""


@dataclass
class Row:
    """A server, as it is shown.

    Attributes:
        server: what was seen of it.
        state: in one or two words; see above.
        rate: requests that have ended, a second; None if that is unknown, as all below.
        p50, p99: seconds within which half, and 99 of 100, of these were run.
        running: how many requests run.
        waiting: how many wait for a thread or a task.
        errors: how many have failed since it was started.
        new_errors: how many of these since the look before.
        oldest: the request that has run longest.
    """

    topic: str
    server: ServerSeen
    state: str
    rate: float | None = None
    p50: float | None = None
    p99: float | None = None
    running: int | None = None
    waiting: int | None = None
    errors: int | None = None
    new_errors: int | None = None
    oldest: Running | None = None

    def as_dict(self) -> dict[str, Any]:
        """It, for programs."""
        server, stats, oldest = self.server, self.server.stats, self.oldest
        queue = server.queue
        return {
            "server": server.name,
            "state": self.state,
            "why": server.why or None,
            "host": server.host or None,
            "pid": server.pid,
            "version": server.version or None,
            "uptime": None if stats is None else stats.uptime,
            "rate": self.rate,
            "p50": self.p50,
            "p99": self.p99,
            "running": self.running,
            "waiting": self.waiting,
            "errors": self.errors,
            "new_errors": self.new_errors,
            "oldest": oldest and {"method": oldest.method, "id": oldest.id, "seconds": oldest.seconds},
            "queue": {"messages": queue.messages, "consumers": queue.consumers},
        }


def rows_of(look: Look, before: Look | None, sorted_by: str = "name") -> list[Row]:
    """The servers of all topics. Without a look before it, rates are those since each was started."""
    found = []
    for topic, seen in look.topics.items():
        former = None if before is None else before.topics.get(topic)
        for server in seen.servers:
            found.append(_row(topic, server, None if former is None else former.server(server.name)))
    if sorted_by != "name":
        found.sort(key=lambda row: _amount(row, sorted_by), reverse=True)
    return found


def _amount(row: Row, name: str) -> float:
    value = getattr(row, name)
    amount = value.seconds if isinstance(value, Running) else value
    return -1.0 if amount is None or math.isnan(amount) else float(amount)


def _row(topic: str, server: ServerSeen, former: ServerSeen | None) -> Row:
    stats = server.stats
    if stats is None:
        return Row(topic, server, state_of(server))
    old = _same(server, former)
    seconds = stats.uptime - (0.0 if old is None else old.uptime)
    ended = stats.ended - (0 if old is None else old.ended)
    times = durations_between(old, stats)
    return Row(
        topic,
        server,
        state_of(server),
        rate=round(max(0, ended) / seconds, 3) if seconds > 0 else None,
        p50=percentile(times, 0.5),
        p99=percentile(times, 0.99),
        running=stats.running_count,
        waiting=stats.waiting,
        errors=stats.failed,
        new_errors=max(0, stats.failed - (0 if old is None else old.failed)),
        oldest=stats.oldest,
    )


def state_of(server: ServerSeen) -> str:
    """What a server's state is called."""
    if server.stats is not None:
        return BUSY if server.stats.is_full else OK
    if server.answers:
        return NO_STATS
    return GONE if server.queue.consumers == 0 else NO_ANSWER


def _same(server: ServerSeen, former: ServerSeen | None) -> Stats | None:
    """The former stats, if they are those of the same process."""
    if former is None or former.stats is None or server.stats is None:
        return None
    is_same = (former.host, former.pid) == (server.host, server.pid) and former.stats.uptime <= server.stats.uptime
    return former.stats if is_same else None


def durations_between(old: Stats | None, new: Stats) -> Counter[float]:
    """How many methods have taken how long, by the upper bound in seconds."""
    found: Counter[float] = Counter()
    for bound, count in new.durations:
        found[bound] += count
    for bound, count in () if old is None else old.durations:
        found[bound] -= count
    return +found


def percentile(times: Counter[float], part: float) -> float | None:
    """Seconds within which that part of the methods was run; None if none was."""
    left = math.ceil(part * times.total())
    for bound in sorted(times):
        left -= times[bound]
        if left <= 0:
            return bound
    return None


def of_topic(rows: Iterable[Row], topic: str) -> list[Row]:
    """Those of one topic."""
    return [row for row in rows if row.topic == topic]


def topic_as_dict(seen: TopicSeen, rows: Iterable[Row]) -> dict[str, Any]:
    """A topic, for programs."""
    return {
        "topic": seen.topic,
        "queue": {"messages": seen.queue.messages, "consumers": seen.queue.consumers},
        "dead_letters": seen.dead,
        "known": seen.known,
        "answered": seen.answered,
        "unnamed": seen.nameless,
        "servers": [row.as_dict() for row in of_topic(rows, seen.topic)],
    }
