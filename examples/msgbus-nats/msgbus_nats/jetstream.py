"""JetStream over one connection: streams, consumers, and who subscribes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

from nats.aio.msg import Msg

from msgbus.drivers.base import Address
from msgbus.drivers.toolkit.loop import Loop
from msgbus_nats.clock import Clock
from msgbus_nats.connection import NOBODY, Connection, status_of
from msgbus_nats.errors import STREAM_EXISTS, SUBJECTS_OVERLAP, JetStreamError
from msgbus_nats.names import MARKS, consumer_of, roll_call_of, stream_of, subject_of

FANOUT_KEPT: Final = 60.0
"""Seconds that what is sent to a fanout is kept for a subscriber that is away."""
NAK: Final = b"-NAK"
"""The word for a message that is to be delivered again."""
STRAGGLERS: Final = 0.1
"""Seconds in which subscribers answer to a roll call, once as many have as JetStream knows of."""


class JetStream:
    """What JetStream keeps. Its coroutines raise `JetStreamError`, and TimeoutError where it does not answer.

    Attributes:
        clock: tells how long a message was kept.
    """

    def __init__(self, connection: Connection, ack_wait: float) -> None:
        self.clock = Clock()
        self._connection = connection
        self._ack_wait = ack_wait
        self._declared: set[Address] = set()

    def is_declared(self, address: Address) -> bool:
        """Whether `declare` has succeeded on this connection."""
        return address in self._declared

    def forget(self, address: Address) -> None:
        """It has to be declared again: somebody has deleted it."""
        self._declared.discard(address)

    async def declare(self, address: Address) -> None:
        """Have the stream and the shared consumer of an address, unless they were declared on this connection."""
        if address in self._declared:
            return
        kept = address.kind in ("server", "dead")
        stream, subject = stream_of(address), subject_of(address)
        # A stream of retention "interest" keeps what its consumers want: a message that comes before the first of
        # them is acknowledged and dropped. So a topic's stream gets its subject only after its first consumer.
        late = not kept and address.kind != "fanout"
        config = {
            "name": stream,
            "subjects": [f"{subject}.not-yet" if late else subject],
            "retention": "workqueue" if kept else "interest",
            "storage": "file",
        }
        found = await self._add_stream(config)
        if address.kind != "fanout":
            await self._add_consumer(address, consumer_of(address), {"durable_name": consumer_of(address)})
        if late and found["config"]["subjects"] != [subject]:
            await self._connection.ask(f"STREAM.UPDATE.{stream}", found["config"] | {"subjects": [subject]})
        self._declared.add(address)

    async def declare_marks(self) -> None:
        """Have the stream of the marks."""
        await self._add_stream(
            {"name": MARKS, "subjects": ["msgbus.mark.>"], "storage": "file", "max_msgs_per_subject": 1}
        )

    async def _add_stream(self, config: dict[str, Any]) -> dict[str, Any]:
        """Have a stream of that name, and return what JetStream says of it. One that exists stays as it is."""
        try:
            return await self._connection.ask(f"STREAM.CREATE.{config['name']}", config)
        except JetStreamError as exc:
            if exc.code not in (STREAM_EXISTS, SUBJECTS_OVERLAP):
                raise
            try:
                return await self._connection.ask(f"STREAM.INFO.{config['name']}")
            except JetStreamError:
                raise exc from None

    async def stream_info(self, address: Address) -> dict[str, Any]:
        """What JetStream knows of an address's stream."""
        return await self._connection.ask(f"STREAM.INFO.{stream_of(address)}")

    async def add_fanout_consumer(self, address: Address, name: str) -> None:
        """Make the consumer of one subscriber, which JetStream deletes when that has been away for a while."""
        await self._add_consumer(address, name, {"inactive_threshold": int(FANOUT_KEPT * 1e9)})

    async def _add_consumer(self, address: Address, name: str, more: dict[str, Any]) -> None:
        stream = stream_of(address)
        config = {
            "name": name,
            "deliver_policy": "all" if address.kind in ("server", "dead") else "new",
            "ack_policy": "explicit",
            "ack_wait": int(self._ack_wait * 1e9),
            "max_ack_pending": -1,
            **more,
        }
        order = {"stream_name": stream, "config": config}
        made = await self._connection.ask(f"CONSUMER.CREATE.{stream}.{name}", order)
        self.clock.see(made["created"])

    async def delete_consumer(self, address: Address, name: str) -> None:
        """Delete a consumer."""
        await self._connection.ask(f"CONSUMER.DELETE.{stream_of(address)}.{name}")

    async def consumer_info(self, address: Address, name: str) -> dict[str, Any]:
        """What JetStream knows of a consumer."""
        return await self._connection.ask(f"CONSUMER.INFO.{stream_of(address)}.{name}")

    async def give_back(self, address: Address, consumer: str, replies: Sequence[str]) -> None:
        """Have messages delivered again, at once. `replies` are their reply subjects, of any connection."""
        if replies:
            # Looking at a consumer makes the server drop pull requests of clients that are gone. Where it meets one
            # only when it wants to deliver again, server 2.9 forgets that the message was delivered before.
            await self.consumer_info(address, consumer)
        for reply in replies:
            self._connection.publish(reply, NAK)

    def pull(self, address: Address, consumer: str, count: int, size: int | None, seconds: float, reply: str) -> None:
        """Ask for up to `count` messages within `seconds`; they go to `reply`, and so does word of the end.

        `size` is how many bytes they may have together; None: any number. The request ends before the first message
        that does not fit, which is not sent then, even if it is the only one.
        """
        order: dict[str, int] = {"batch": count, "expires": int(seconds * 1e9)}
        if size is not None:
            order["max_bytes"] = size
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream_of(address)}.{consumer}"
        self._connection.publish(subject, json.dumps(order).encode(), reply)

    async def count(self, address: Address, at_least: int, end: float) -> int:
        """How many subscribers an address has: each answers. `at_least` so many will; others may be slower."""
        answers = 0
        answered = asyncio.Event()

        def on_answer(msg: Msg) -> None:
            nonlocal answers
            answers += status_of(msg) != NOBODY
            answered.set()

        reply = self._connection.expect(on_answer)
        try:
            self._connection.publish(roll_call_of(address), b"", reply)
            while (left := end - Loop.now()) > 0:
                answered.clear()
                async with asyncio.timeout(left if answers < at_least else min(left, STRAGGLERS)):
                    await answered.wait()
        except TimeoutError:
            pass
        finally:
            self._connection.forget(reply)
        return answers
