"""What a journal proves: one function for each promise, which returns a line for each message that breaks it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.faults.journal import SYSTEM, Event
from tests.faults.workload import AT_LEAST_ONCE, AT_MOST_ONCE

ALLOWANCE = 1.0
"""Seconds after its deadline in which a verb may still end: half a second is for finding out what to say."""
LAST_MOMENT = 1.0
"""Seconds before and after a broker is killed, from which it may have forgotten requests. After it has ended, so many
may pass until a client notes that it confirmed a cast, or a server that a connection has broken."""
CASTS = ("cast", "fanout_cast")


class Message(NamedTuple):
    """All that is known of one message.

    Attributes:
        sent: when it was; its id, verb, policy and deadline are there.
        outcome: at its client; None as long as there is none.
        begun, finished: at the servers, in the order of time.
    """

    sent: Event
    outcome: Event | None
    begun: list[Event]
    finished: list[Event]

    @property
    def id(self) -> str:
        """Of the message."""
        return self.sent.id

    @property
    def returned(self) -> bool:
        """Whether its verb returned: a cast was confirmed, a call has a value."""
        return self.outcome is not None and self.outcome.what == "returned"

    def __str__(self) -> str:
        sent = self.sent
        kind = f"{sent.verb} {sent.id} ({sent.policy})"
        if self.outcome is None:
            end = "has no outcome"
        elif self.returned:
            end = f"returned {self.outcome.value!r}"
        else:
            end = f"raised {self.outcome.error}: {self.outcome.text}"
        after = "" if self.outcome is None else f" after {self.outcome.at - sent.at:.2f} s"
        runs = ", ".join(f"{event.who} ({event.pid}) at +{event.at - sent.at:.2f} s" for event in self.begun)
        return f"{kind} {end}{after}; begun: {runs or 'never'}; finished {len(self.finished)} times"


class Record:
    """A journal, by message."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events = list(events)
        sent: dict[str, Event] = {}
        outcome: dict[str, Event] = {}
        begun: defaultdict[str, list[Event]] = defaultdict(list)
        finished: defaultdict[str, list[Event]] = defaultdict(list)
        self.stalls: defaultdict[int, list[Event]] = defaultdict(list)
        self.faults: list[Event] = []
        self.overs: list[Event] = []
        self.ready: list[Event] = []
        self.gone: list[Event] = []
        for event in self.events:
            match event.what:
                case "sent":
                    sent[event.id] = event
                case "returned" | "raised":
                    outcome[event.id] = event
                case "begun":
                    begun[event.id].append(event)
                case "finished":
                    finished[event.id].append(event)
                case "stalled":
                    self.stalls[event.pid].append(event)
                case "fault":
                    self.faults.append(event)
                case "over":
                    self.overs.append(event)
                case "ready":
                    self.ready.append(event)
                case "gone":
                    self.gone.append(event)
        self.messages = [Message(it, outcome.get(id), begun[id], finished[id]) for id, it in sent.items()]
        self.unknown = [event for id, events in begun.items() if id not in sent for event in events]
        self._wiped = max((event.at for event in self.events if event.what == "wiped"), default=0.0)

    def unfinished(self) -> list[Message]:
        """Casts under at_least_once that were confirmed, and that no server has finished though it was kept."""
        return [message for message in self._unfinished() if not self._was_wiped(message)]

    def not_kept(self) -> list[Message]:
        """Those that a message system had, and lost as it may, since it keeps nothing when it ends."""
        return [message for message in self._unfinished() if self._was_wiped(message)]

    def _unfinished(self) -> list[Message]:
        return [
            message
            for message in self.messages
            if message.sent.verb == "cast"
            and message.sent.policy == AT_LEAST_ONCE
            and message.returned
            and not message.finished
        ]

    def _was_wiped(self, message: Message) -> bool:
        if message.outcome is None or message.sent.at > self._wiped:
            return False
        return message.outcome.at < self._wiped + LAST_MOMENT

    def forgotten(self, message: Message) -> bool:
        """Whether a broker was killed at the moment at which a server began this, and may not know that it did.

        A moment later, too: a server may accept over a connection of which it does not know yet that it has broken.
        """
        times = [event.at for event in message.begun]
        return len(times) == 2 and any(
            began < times[1] and began - LAST_MOMENT < times[0] < ended + LAST_MOMENT for began, ended in self._kills()
        )

    def _kills(self) -> list[tuple[float, float]]:
        """When each kill of a broker began, and when that had ended."""
        kills = [event.at for event in self.faults if event.subject == SYSTEM and event.text == "is killed"]
        return [(at, min((event.at for event in self.gone if event.at >= at), default=at)) for at in kills]

    def stall(self, message: Message) -> float:
        """Seconds for which the client of a message did not get to run, from the message's sending on."""
        return sum(event.seconds for event in self.stalls[message.sent.pid] if event.at > message.sent.at)

    def client_was_killed(self, message: Message) -> bool:
        """Whether the client was ended by the fault before it could note the outcomes of its messages."""
        return any(event.subject == message.sent.who and event.text == "is killed" for event in self.faults)

    def hit(self) -> dict[str, int]:
        """How many calls and casts each fault met before, during and after their runs, all faults together.

        Before: it was sent, and no server had begun it. During: the server that was hit ran it, or any server where
        something else was hit. After: that had finished it, and its sender did not know the end yet.
        """
        found = {"before": 0, "during": 0, "after": 0}
        servers = {event.who for event in self.ready}
        for fault in self.faults:
            for message in self.messages:
                if (phase := _phase(message, fault, servers)) is not None:
                    found[phase] += 1
        return found

    def goes_on(self) -> float | None:
        """Seconds from the fault until each client has the value of a call that it sent afterwards.

        They count from the end of a fault that has one, and that hit a client or the message system: where it was a
        server, there were others. None: there was no fault, or some client got no such value.
        """
        servers = {event.who for event in self.ready}
        overs = [event for event in self.overs if event.subject not in servers]
        since = max((event.at for event in overs or self.faults), default=None)
        if since is None:
            return None
        first: dict[str, float] = {}
        clients = set()
        for message in self.messages:
            if message.sent.verb == "call" and message.sent.at >= since and not self.client_was_killed(message):
                clients.add(message.sent.who)
                if message.outcome is not None and message.returned:
                    first[message.sent.who] = min(message.outcome.at, first.get(message.sent.who, message.outcome.at))
        return max(first.values()) - since if clients and set(first) == clients else None


def _phase(message: Message, fault: Event, servers: set[str]) -> str | None:
    """Where a message was when a fault happened; None: not sent yet, at its end, or with another server."""
    if message.sent.at > fault.at:
        return None
    casts = message.sent.verb in CASTS
    ended = message.outcome is not None and message.outcome.at < fault.at
    begun = [event for event in message.begun if event.at < fault.at]
    if not begun:
        return "before" if not ended or (casts and message.returned) else None
    here = begun[-1]
    if fault.subject in servers and fault.subject != here.who:
        return None
    if not any(event.pid == here.pid and event.at < fault.at for event in message.finished):
        return "during"
    return "after" if not casts and not ended else None


def lost(record: Record) -> list[str]:
    """A confirmed cast under at_least_once that no server has finished, or a value that no server has worked for."""
    found = record.unfinished()
    found += [
        message
        for message in record.messages
        if message.returned and message.sent.verb not in CASTS and not message.begun
    ]
    return [str(message) for message in found]


def wrong(record: Record) -> list[str]:
    """A call that returned something else than its own value, or a stream with gaps, twins or others' items."""
    found = []
    for message in record.messages:
        if message.outcome is None or message.sent.verb in CASTS:
            continue
        value, expected = message.outcome.value, message.sent.expected
        if message.sent.verb == "multicall":
            bad = value != expected if message.returned else value != expected[: len(value or [])]
        else:
            bad = message.returned and value != expected
        if bad:
            found.append(f"{message}; expected {expected!r}")
    return found


def doubled(record: Record) -> list[str]:
    """Begun twice under at_most_once: by two servers or by one, and for a fanout by one.

    What a broker that was killed had forgotten is counted apart: architecture.md says that it may happen.
    """
    found = []
    for message in record.messages:
        if message.sent.policy == AT_MOST_ONCE:
            runs = Counter(event.pid for event in message.begun)
            most = max(runs.values(), default=0) if message.sent.verb == "fanout_cast" else runs.total()
            if most > 1 and not record.forgotten(message):
                found.append(str(message))
    return found


def run_again(record: Record) -> list[str]:
    """A cast under at_least_once that one server process has begun twice: each remembers what it has run.

    A call may be: its caller asks again where the answer seems to be lost.
    """
    return [
        str(message)
        for message in record.messages
        if message.sent.policy == AT_LEAST_ONCE
        and message.sent.verb in CASTS
        and max(Counter(event.pid for event in message.begun).values(), default=0) > 1
    ]


def late(record: Record) -> list[str]:
    """An outcome more than `ALLOWANCE` after its deadline, leaving out what its client did not get to run meanwhile."""
    return [
        f"{message}; {message.outcome.at - message.sent.deadline:.2f} s after its deadline"
        for message in record.messages
        if message.outcome is not None
        and message.outcome.at > message.sent.deadline + ALLOWANCE + record.stall(message)
    ]


def hung(record: Record) -> list[str]:
    """No outcome at all, although its client lived on."""
    return [
        str(message) for message in record.messages if message.outcome is None and not record.client_was_killed(message)
    ]


def foreign(record: Record) -> list[str]:
    """An error that is not one of msgbus's."""
    return [str(message) for message in record.messages if message.outcome is not None and not message.outcome.ours]


def untrue(record: Record) -> list[str]:
    """An error which says that no server has got the message, of one that a server has begun."""
    return [
        str(message)
        for message in record.messages
        if message.outcome is not None and message.outcome.not_delivered and message.begun
    ]


def failed(record: Record) -> list[str]:
    """An error that the scenario does not allow; without a word from it, any under at_least_once."""
    found = []
    for message in record.messages:
        allowed = message.sent.errors
        if allowed is None and message.sent.policy == AT_MOST_ONCE:
            continue
        if message.outcome is not None and message.outcome.error not in ("", *(allowed or ())):
            found.append(str(message))
    return found


def not_everywhere(record: Record) -> list[str]:
    """A confirmed fanout that a server has not run which was there before, where neither it nor the system was hit."""
    hit = {event.subject for event in record.faults}
    if SYSTEM in hit:
        return []
    servers = [event for event in record.ready if event.who not in hit]
    return [
        f"{message}; not finished by {server.who}"
        for message in record.messages
        if message.sent.verb == "fanout_cast" and message.returned
        for server in servers
        if server.at < message.sent.at and server.pid not in {event.pid for event in message.finished}
    ]


def made_up(record: Record) -> list[str]:
    """Something that a server has begun and nobody has sent."""
    return [f"{event.who} has begun {event.id!r}, which nobody has sent" for event in record.unknown]


PROOFS: dict[str, Callable[[Record], list[str]]] = {
    "lost": lost,
    "wrong": wrong,
    "doubled": doubled,
    "run again": run_again,
    "late": late,
    "hung": hung,
    "foreign": foreign,
    "untrue": untrue,
    "failed": failed,
    "not everywhere": not_everywhere,
    "made up": made_up,
}
"""By the name under which they are counted."""
