"""``python -m tests.faults.client SPEC PARENT``: a client that notes in the journal what it sends and the outcome.

It sends what its specification says, notes "done" when everything has come to an end, and goes on to live until it is
stopped: messages that it has sent may still depend on it.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from msgbus import MessageUndeliverable, MessagingException, RPCClient, Target, Transport, get_rpc_client
from tests.faults.child import AskedToEnd, run
from tests.faults.journal import Event, Writer
from tests.faults.workload import Load, Spec

PULSE = 0.1
"""Seconds between two checks whether this process is scheduled."""
STALL = 0.1
"""Seconds of delay that are noted."""
LAST_WORDS = 20.0
"""Seconds for what is still under way when the transport has been closed: it is to end with an error at once."""


class Sender:
    """Sends the messages of one load, on threads of its own."""

    def __init__(self, name: str, load: Load, client: RPCClient, journal: Writer) -> None:
        self._prefix = f"{name}/{load.name}"
        self._load = load
        self._client = client
        self._journal = journal
        self._numbers = itertools.count()
        self._stopped = False
        self._threads = [threading.Thread(target=self._run) for _ in range(min(load.concurrency, load.count))]

    def start(self) -> None:
        """Begin to send."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    @property
    def running(self) -> bool:
        """Whether something is under way or still to be sent."""
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True

    def join(self, end: float) -> None:
        """Return when everything has come to its end, or at a time of `time.monotonic`."""
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while (number := next(self._numbers)) < self._load.count and not self._stopped:
            due = self._began + number / self._load.rate
            time.sleep(max(0.0, due - time.monotonic()))
            self._send(f"{self._prefix}/{number}")

    def _send(self, id: str) -> None:
        load = self._load
        calls = load.verb in ("call", "multicall")
        now = time.monotonic()
        sent = Event("sent", id=id, verb=load.verb, policy=load.policy, at=now, errors=load.errors)
        # What bounds a multicall is the wait for each item.
        sent.deadline = now + (load.deadline if load.verb != "multicall" else load.deadline * (load.items + 1))
        sent.expected = self._expected(id) if calls else None
        self._journal.add(sent)
        items: list[Any] = []
        try:
            value = self._apply_verb(id, items)
        except Exception as exc:
            found = Event("raised", id=id, error=type(exc).__name__, text=str(exc)[:500], value=items)
            found.ours = isinstance(exc, MessagingException)
            found.not_delivered = (
                isinstance(exc, MessageUndeliverable) or getattr(exc, "maybe_delivered", None) is False
            )
        else:
            found = Event("returned", id=id, value=value)
        self._journal.add(found)

    def _expected(self, id: str) -> Any:
        return [f"{id}/{number}" for number in range(self._load.items)] if self._load.verb == "multicall" else id

    def _apply_verb(self, id: str, items: list[Any]) -> Any:
        load = self._load
        arguments = {"id": id, "seconds": load.seconds}
        if load.verb == "multicall":
            items.extend(self._client.multicall({}, "items", n=load.items, **arguments))
            return items
        return getattr(self._client, load.verb)({}, load.method, **arguments)


def note_stalls(journal: Writer, ended: threading.Event) -> None:
    """Note when this process did not get to run: it was frozen, or the machine is busy. For a thread of its own."""
    due = time.monotonic() + PULSE
    while not ended.wait(PULSE):
        late = time.monotonic() - due
        if late > STALL:
            journal.add(Event("stalled", seconds=late))
        due = time.monotonic() + PULSE


def prepare(transport: Transport, target: Target, load: Load) -> RPCClient:
    """The client for a load.

    The deadline is given as the option, and not as `timeout`: so it bounds how long a cast may take to be sent,
    and not how long the cast may wait for a server.
    """
    transport.conf.set_override("rpc_response_timeout", load.deadline)
    return get_rpc_client(transport, target, delivery=load.policy)


def send(spec: Spec, journal: Writer, transport: Transport, asked_to_end: AskedToEnd) -> None:
    """Send everything, and wait to be asked to end."""
    ended = threading.Event()
    pulse = threading.Thread(target=note_stalls, args=(journal, ended))
    pulse.start()
    target = Target(topic=spec.topic)
    senders = [Sender(spec.name, load, prepare(transport, target, load), journal) for load in spec.loads]
    for sender in senders:
        sender.start()
    asked = False
    while not asked and any(sender.running for sender in senders):
        asked = asked_to_end(0.1)
    if not asked:
        journal.add(Event("done"))
    while not asked:
        asked = asked_to_end(1.0)
    for sender in senders:
        sender.stop()
    transport.cleanup()
    end = time.monotonic() + LAST_WORDS
    for sender in senders:
        sender.join(end)
    ended.set()
    pulse.join()
    journal.add(Event("stopped"))


if __name__ == "__main__":
    run(send)
