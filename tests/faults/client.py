"""``python -m tests.faults.client SPEC PARENT``: a client that notes in the journal what it sends and what comes of it.

It sends what its specification says, notes "done" when everything has come to an end, and goes on to live until it is
told to end: what it has sent may still depend on it.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from msgbus import MessageUndeliverable, MessagingException, RPCClient, Target, Transport, get_rpc_client
from tests.faults.child import asked_to_end, begin
from tests.faults.journal import Event, Writer
from tests.faults.workload import Load

PULSE = 0.1
"""Seconds between two looks at whether this process gets to run."""
STALL = 0.1
"""Seconds of delay that are noted."""


class Sender:
    """Sends the messages of one load, on threads of its own."""

    def __init__(self, name: str, load: Load, client: RPCClient, journal: Writer) -> None:
        self._prefix = f"{name}/{load.name}"
        self._load = load
        self._client = client
        self._journal = journal
        self._numbers = itertools.count()
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

    def _run(self) -> None:
        while (number := next(self._numbers)) < self._load.count:
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


def note_stalls(journal: Writer) -> None:
    """Note when this process did not get to run: it was frozen, or the machine is busy. For a thread of its own."""
    while True:
        due = time.monotonic() + PULSE
        time.sleep(PULSE)
        late = time.monotonic() - due
        if late > STALL:
            journal.add(Event("stalled", seconds=late))


def prepare(transport: Transport, target: Target, load: Load) -> RPCClient:
    """The client for a load.

    The deadline is given as the option, and not as `timeout`: so it bounds how long a cast may take to be handed over,
    and not how long the cast may wait for a server.
    """
    transport.conf.set_override("rpc_response_timeout", load.deadline)
    return get_rpc_client(transport, target, delivery=load.policy)


def main() -> None:
    """Send everything, and wait to be told to end."""
    spec, journal, transport = begin()
    try:
        threading.Thread(target=note_stalls, args=(journal,), daemon=True).start()
        target = Target(topic=spec.topic)
        senders = [Sender(spec.name, load, prepare(transport, target, load), journal) for load in spec.loads]
        for sender in senders:
            sender.start()
        while any(sender.running for sender in senders):
            if asked_to_end(spec, 0.1):
                return
        journal.add(Event("done"))
        while not asked_to_end(spec, 1.0):
            pass
    finally:
        transport.cleanup()
        journal.add(Event("stopped"))


if __name__ == "__main__":
    main()
