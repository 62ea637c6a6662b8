"""Connection: one connection to one NATS server, from log-in to loss."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

import nats.aio.client
import nats.aio.subscription
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import api

from msgbus.drivers.base import Address
from msgbus.url import TransportHost
from msgbus_nats.errors import STREAM_EXISTS
from msgbus_nats.names import consumer_of, stream_of, subject_of

LOG = logging.getLogger(__name__)

OnMessage = Callable[[Msg], Awaitable[None]]

FANOUT_KEPT: Final = 60.0
"""Seconds that what is sent to a fanout is kept for a subscriber that is away."""
_CONNECT_SECONDS: Final = 5.0
_HEARTBEAT_SECONDS: Final = 10.0


class Connection:
    """Used on the loop's thread only.

    It never comes back once it is lost: nats-py's own reconnecting would send, late, what its buffer still holds, and
    nobody could say any more what became of it.

    Attributes:
        lost: done when the connection is; its result says why.
        max_payload: bytes that a message may have, with its headers.
    """

    def __init__(self, host: TransportHost, name: str) -> None:
        self.host = host
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.max_payload = 0
        self._client = nats.aio.client.Client()
        self._name = name
        self._prefix = f"_INBOX.{uuid.uuid4().hex}"
        self._numbers = itertools.count()
        self._answers: dict[str, Callable[[Msg], None]] = {}
        self._declared: dict[Address, asyncio.Task[None]] = {}
        self._why = ""
        self._heart: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect and log in. Raises errors of nats-py."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._client.connect(
                    servers=f"nats://{self.host}",
                    user=self.host.username,
                    password=self.host.password,
                    name=self._name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    error_cb=self._on_error,
                    closed_cb=self._on_closed,
                )
                self.max_payload = self._client.max_payload
                self._js = self._client.jsm(timeout=_CONNECT_SECONDS)
                await self._js.account_info()
                await self.subscribe(f"{self._prefix}.*", self._on_answer)
        except BaseException as exc:
            await self.close()
            if isinstance(exc, nats.errors.NoServersError) and self._why:
                raise OSError(self._why) from exc  # nats-py told it to the error callback only
            raise
        self._heart = asyncio.create_task(self._beat())

    async def close(self) -> None:
        """Let go of it. Raises nothing."""
        if self._heart is not None:
            self._heart.cancel()
        for task in self._declared.values():
            task.cancel()
        try:
            async with asyncio.timeout(2):
                await self._client.close()
        except (OSError, nats.errors.Error):
            pass
        self._lose("it was closed")

    async def publish(self, subject: str, body: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Publish; a connection that is gone is no error: `lost` tells."""
        try:
            await self._client.publish(subject, body, reply, headers)
        except (OSError, nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as exc:
            self._lose(str(exc))

    async def request(
        self, subject: str, body: bytes, headers: dict[str, str], on_answer: Callable[[Msg], None]
    ) -> Callable[[], None]:
        """Publish, and have the answer passed to `on_answer`. Returns what ends the wait for it."""
        token = f"{self._prefix}.{next(self._numbers)}"
        self._answers[token] = on_answer
        await self.publish(subject, body, token, headers)
        return lambda: void(self._answers.pop(token, None))

    async def subscribe(self, subject: str, on_message: OnMessage) -> nats.aio.subscription.Subscription:
        """Subscribe, without a bound on what waits here: nats-py would drop what is above it."""
        return await self._client.subscribe(subject, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0)

    async def flush(self) -> None:
        """Return when the server has taken in all that was published, and sent what it had to say to that."""
        await self._client.flush(timeout=int(_CONNECT_SECONDS))

    # JetStream

    async def declare(self, address: Address, ack_wait: float) -> None:
        """Have the stream and the shared consumer of an address, on each connection once."""
        task = self._declared.get(address)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._declared[address] = asyncio.create_task(self._declare(address, ack_wait))
        await asyncio.shield(task)

    def forget(self, address: Address) -> None:
        """It has to be declared again: somebody has deleted it."""
        self._declared.pop(address, None)

    async def _declare(self, address: Address, ack_wait: float) -> None:
        kept = address.kind in ("server", "dead")
        # A stream of retention "interest" keeps what its consumers want: a message that comes before the first of
        # them is acknowledged and dropped. So a topic's stream gets its subject only after its first consumer.
        subject = subject_of(address)
        stream = api.StreamConfig(
            name=stream_of(address),
            subjects=[subject],
            retention=api.RetentionPolicy.WORK_QUEUE if kept else api.RetentionPolicy.INTEREST,
            storage=api.StorageType.FILE,
        )
        late = not kept and address.kind != "fanout"
        if late:
            stream.subjects = [f"{subject}.not-yet"]
        try:
            info = await self._js.add_stream(stream)
        except nats.js.errors.BadRequestError as exc:
            if exc.err_code != STREAM_EXISTS:
                raise
            info = await self._js.stream_info(stream_of(address))
        if address.kind != "fanout":
            await self.add_consumer(address, consumer_of(address), ack_wait, durable=True)
        if late and info.config.subjects != [subject]:
            await self._js.update_stream(info.config, subjects=[subject])

    async def add_consumer(self, address: Address, name: str, ack_wait: float, *, durable: bool) -> None:
        """Make a consumer, of which the subscribers pull."""
        all_of_it = address.kind in ("server", "dead")
        await self._js.add_consumer(
            stream_of(address),
            name=name,
            durable_name=name if durable else None,
            inactive_threshold=None if durable else FANOUT_KEPT,
            deliver_policy=api.DeliverPolicy.ALL if all_of_it else api.DeliverPolicy.NEW,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ack_wait,
            max_ack_pending=-1,
        )

    async def delete_consumer(self, address: Address, name: str) -> None:
        """Delete a consumer, if it is there."""
        try:
            await self._js.delete_consumer(stream_of(address), name)
        except nats.js.errors.NotFoundError:
            pass

    async def consumer_info(self, address: Address) -> api.ConsumerInfo:
        """What JetStream knows of the shared consumer of an address."""
        return await self._js.consumer_info(stream_of(address), consumer_of(address))

    async def pull(self, address: Address, consumer: str, count: int, seconds: float, reply: str) -> None:
        """Ask for up to `count` messages within `seconds`; they go to `reply`, and so does word of the end."""
        order = {"batch": count, "expires": int(seconds * 1e9)}
        await self.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream_of(address)}.{consumer}", json.dumps(order).encode(), reply)

    # What nats-py calls

    async def _on_answer(self, msg: Msg) -> None:
        on_answer = self._answers.pop(msg.subject, None)
        if on_answer is not None:
            on_answer(msg)

    async def _on_error(self, error: Exception) -> None:
        if not isinstance(error, OSError | nats.errors.Error):
            LOG.error("a callback of ours failed", exc_info=error)
            return
        self._why = str(error)
        # What the server refuses, but goes on; anything else has broken the connection.
        if "permissions violation" not in self._why.lower():
            self._lose(self._why)

    async def _on_closed(self) -> None:
        self._lose(str(self._client.last_error or "the server closed it"))

    async def _beat(self) -> None:
        """Notice a server that is gone without a word."""
        try:
            while not self.lost.done():
                await asyncio.sleep(_HEARTBEAT_SECONDS)
                await self.flush()
        except (OSError, nats.errors.Error) as exc:
            self._lose(str(exc))

    def _lose(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)


def void(_: object) -> None:
    """For lambdas that are to return nothing."""
