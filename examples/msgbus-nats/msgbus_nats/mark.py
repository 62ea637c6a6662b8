"""Mark: up to which message a consumer has delivered, for the case that NATS forgets it.

nats-server counts deliveries in memory, and writes them to a file about ten times a second. If it is killed, what that
file lacks comes again, counted as delivered for the first time. The same happens if it is stopped in good order on a
busy machine: its last write and one that is late may overlap, and leave an old or an empty file (seen with 2.9.10; the
code of 2.10 is the same there). So another server could run once more what has run before.

What is published to a stream, however, is in its file before NATS confirms it. So before a feed hands over a message it
publishes a mark, and waits for the confirmation: everything up to this sequence number may have been delivered. NATS
has a new id each time it starts. After that, what is not above the mark counts as delivered before, whatever NATS says.

A mark reaches further than the message that it is written for, and is used for a while, so that few are written.
Messages that are stored later than that are above suspicion, whatever their number. So, after a restart of NATS, only
messages of the last moment before it are suspected although nobody has had them.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from msgbus.drivers.base import Address
from msgbus.drivers.toolkit.loop import Loop
from msgbus_nats.clock import seconds_of
from msgbus_nats.connection import Connection
from msgbus_nats.errors import MESSAGE_MISSING, WRONG_SEQUENCE, JetStreamError
from msgbus_nats.jetstream import JetStream
from msgbus_nats.names import MARKS, mark_of

AHEAD: Final = 64
"""How many messages more than needed a mark covers."""
RENEW: Final = 1.0
"""Seconds for which a subscriber uses a mark that it has published."""
USED: Final = 2.0
"""Seconds after which certainly nobody uses it any more: longer than `RENEW`, since NATS has another clock."""


class Mark:
    """The mark of one consumer, which its subscribers share, as one of them knows it.

    All coroutines raise `JetStreamError`, and TimeoutError where JetStream does not answer.
    """

    def __init__(self, connection: Connection, jetstream: JetStream, address: Address, consumer: str) -> None:
        self._connection = connection
        self._jetstream = jetstream
        self._address = address
        self._consumer = consumer
        self._subject = mark_of(address, consumer)
        self._up_to = 0  # the newest mark that is known
        self._renew_at = 0.0
        self._written = 0  # its own sequence number: whoever publishes the next one has to know it
        # Sequence number and time of the last message whose delivery NATS may have forgotten.
        self._doubtful, self._doubtful_until = 0, 0.0

    async def begin(self) -> None:
        """Learn what NATS may have forgotten. Before the first message is asked for."""
        await self._jetstream.declare_marks()
        stream = await self._jetstream.stream_info(self._address)
        consumer = await self._jetstream.consumer_info(self._address, self._consumer)
        self._stream: str = stream["created"]
        self._last: int = stream["state"]["last_seq"]
        # In a cluster the one that keeps the stream would be needed, and its id is not known.
        run = stream["cluster"].get("leader") if "cluster" in stream else self._connection.server_id
        self._run = f"{run} {consumer['created']}"
        await self._read()

    def covers(self, sequence: int) -> bool:
        """Whether a message may be handed over, since its delivery cannot be forgotten any more."""
        return sequence <= self._up_to and Loop.now() < self._renew_at

    async def cover(self, sequence: int) -> None:
        """Return when that is so for a message that has come already, and for those before it."""
        while not self.covers(sequence) and not await self._write(sequence):
            await self._read()

    def doubts(self, sequence: int, stored: float) -> bool:
        """Whether a message, stored at that time of the server's clock, may have been delivered before NATS started."""
        return sequence <= self._doubtful and stored <= self._doubtful_until

    async def _read(self) -> None:
        try:
            answer = await self._connection.ask(f"STREAM.MSG.GET.{MARKS}", {"last_by_subj": self._subject})
        except JetStreamError as exc:
            if exc.code != MESSAGE_MISSING:
                raise
            self._written = 0
            return
        found = answer["message"]
        try:
            self._learn(found, json.loads(base64.b64decode(found["data"])))
        except (ValueError, LookupError, TypeError) as exc:
            raise JetStreamError({"description": f"what somebody has published to {self._subject} is no mark"}) from exc

    def _learn(self, found: dict[str, Any], mark: dict[str, Any]) -> None:
        self._written = found["seq"]
        if mark["stream"] != self._stream:  # Somebody has deleted that one: numbers began anew.
            return
        doubtful, until = mark["doubtful"], mark["doubtful_until"]
        if mark["run"] != self._run:
            doubtful = max(doubtful, min(mark["up_to"], self._last))
            until = max(until, seconds_of(found["time"]) + USED)
        self._up_to = max(self._up_to, mark["up_to"])
        self._doubtful = max(self._doubtful, doubtful)
        self._doubtful_until = max(self._doubtful_until, until)

    async def _write(self, sequence: int) -> bool:
        """Publish a mark. False: another subscriber has published one meanwhile."""
        up_to = max(self._up_to, sequence + AHEAD)
        mark = {
            "stream": self._stream,
            "run": self._run,
            "up_to": up_to,
            "doubtful": self._doubtful,
            "doubtful_until": self._doubtful_until,
        }
        renew_at = Loop.now() + RENEW
        expected = {"Nats-Expected-Last-Subject-Sequence": str(self._written)}
        try:
            answer = await self._connection.store(self._subject, json.dumps(mark).encode(), expected)
        except JetStreamError as exc:
            if exc.code != WRONG_SEQUENCE:
                raise
            return False
        self._written, self._up_to, self._renew_at = answer["seq"], up_to, renew_at
        return True
