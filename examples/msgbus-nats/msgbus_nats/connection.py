"""Connection: one connection to one NATS server, from log-in to loss."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

import nats.aio.client
import nats.aio.subscription
import nats.errors
from nats.aio.msg import Msg

from msgbus.drivers.base import Address
from msgbus.foreign import get_logger
from msgbus.url import TransportHost
from msgbus_nats.clock import Clock
from msgbus_nats.errors import STREAM_EXISTS, SUBJECTS_OVERLAP, JetStreamError
from msgbus_nats.names import consumer_of, roll_call_of, stream_of, subject_of

LOG = get_logger(__name__)

OnMessage = Callable[[Msg], Awaitable[None]]

NOBODY: Final = "503"
"""The status that says that nobody listens."""
FANOUT_KEPT: Final = 60.0
"""Seconds that what is sent to a fanout is kept for a subscriber that is away."""
_CONNECT_SECONDS: Final = 5.0
_API_SECONDS: Final = 4.0
_STRAGGLERS_SECONDS: Final = 0.1
_CLOSE_SECONDS: Final = 2.0
_HEARTBEAT_SECONDS: Final = 10.0


class Connection:
    """Used on the loop's thread only.

    It never comes back once it is lost: nats-py's own reconnecting would send, late, what its buffer still holds, and
    nobody could say any more what became of it.

    Attributes:
        lost: done when the connection is; its result says why.
        max_payload: bytes that a message may have, with its headers.
        clock: tells how long a message was kept.
    """

    def __init__(self, host: TransportHost, name: str) -> None:
        self.host = host
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.max_payload = 0
        self._client = nats.aio.client.Client()
        self._name = name
        self._prefix = f"_INBOX.{uuid.uuid4().hex}"
        self._numbers = itertools.count()
        self.clock = Clock()
        self._answers: dict[str, Callable[[Msg], None]] = {}
        self._declared: dict[Address, asyncio.Task[None]] = {}
        self._subscriptions: list[nats.aio.subscription.Subscription] = []
        self._why = ""
        self._heart: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect and log in. Raises errors of nats-py."""
        try:
            await within(_CONNECT_SECONDS, self._open())
        except BaseException as exc:  # a cancellation too: the socket may be open
            await self.close()
            if isinstance(exc, nats.errors.NoServersError) and self._why:
                raise OSError(self._why) from exc  # nats-py told it to the error callback only
            raise
        self._heart = asyncio.create_task(self._beat())

    async def _open(self) -> None:
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
        await self.subscribe(f"{self._prefix}.*", self._on_answer)
        await self._api("INFO")

    async def close(self) -> None:
        """Let go of it. Raises nothing."""
        self._lose("it was closed")
        if self._heart is not None:
            self._heart.cancel()
        for task in self._declared.values():
            task.cancel()
        try:
            await within(_CLOSE_SECONDS, self._client.close())
        except (OSError, nats.errors.Error) as exc:
            LOG.debug("closing a connection to %s: %s", self.host, exc)
            # Where nats-py has met an error while closing, it leaves the socket open, and the subscriptions running.
            if self._client._transport:
                self._client._transport.close()  # type: ignore[no-untyped-call]  # nats-py types only a part
        for subscription in self._subscriptions:
            subscription._stop_processing()

    async def publish(self, subject: str, body: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Publish; a connection that is gone is no error: `lost` tells."""
        try:
            await self._client.publish(subject, body, reply, headers)
        except (OSError, nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as exc:
            self._lose(str(exc))

    def expect(self, on_answer: Callable[[Msg], None]) -> str:
        """A reply subject, whose messages are passed to `on_answer` until it is given to `forget`."""
        reply = f"{self._prefix}.{next(self._numbers)}"
        self._answers[reply] = on_answer
        return reply

    def forget(self, reply: str) -> None:
        """Expect nothing more there."""
        self._answers.pop(reply, None)

    async def subscribe(self, subject: str, on_message: OnMessage) -> nats.aio.subscription.Subscription:
        """Subscribe, without a bound on what waits here: nats-py would drop what is above it."""
        made = await self._client.subscribe(subject, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0)
        self._subscriptions.append(made)
        return made

    async def unsubscribe(self, made: nats.aio.subscription.Subscription) -> None:
        """End a subscription. Raises errors of nats-py."""
        self._subscriptions.remove(made)
        await made.unsubscribe()

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

    def declare_anew(self, address: Address) -> None:
        """It has to be declared again: somebody has deleted it."""
        self._declared.pop(address, None)

    async def _declare(self, address: Address, ack_wait: float) -> None:
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
        try:
            found = await self._api(f"STREAM.CREATE.{stream}", config)
        except JetStreamError as exc:
            if exc.code not in (STREAM_EXISTS, SUBJECTS_OVERLAP):
                raise
            try:
                found = await self._api(f"STREAM.INFO.{stream}")
            except JetStreamError:
                raise exc from None  # It is another stream's subject.
        if address.kind != "fanout":
            await self.add_consumer(address, consumer_of(address), {"ack_wait": ack_wait})
        if late and found["config"]["subjects"] != [subject]:
            await self._api(f"STREAM.UPDATE.{stream}", found["config"] | {"subjects": [subject]})

    async def add_consumer(self, address: Address, name: str, seconds: dict[str, float]) -> None:
        """Make a consumer, of which subscribers pull: one that lasts, unless it has an ``inactive_threshold``."""
        stream = stream_of(address)
        config = {
            "name": name,
            "deliver_policy": "all" if address.kind in ("server", "dead") else "new",
            "ack_policy": "explicit",
            "max_ack_pending": -1,
            **{name: int(value * 1e9) for name, value in seconds.items()},
        }
        if "inactive_threshold" not in seconds:
            config["durable_name"] = name
        made = await self._api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
        self.clock.see(made["created"])

    async def delete_consumer(self, address: Address, name: str) -> None:
        """Delete a consumer. Raises errors of nats-py."""
        await self._api(f"CONSUMER.DELETE.{stream_of(address)}.{name}")

    async def give_back(self, address: Address, consumer: str, replies: Sequence[str]) -> None:
        """Have messages delivered again, at once. `replies` are their reply subjects."""
        if replies:
            # Looking at a consumer makes the server drop pull requests of clients that are gone. Where it meets one
            # only when it wants to deliver again, server 2.9 forgets that the message was delivered before.
            await self._api(f"CONSUMER.INFO.{stream_of(address)}.{consumer}")
        for reply in replies:
            await self.publish(reply, b"-NAK")

    async def consumer_info(self, address: Address) -> dict[str, Any]:
        """What JetStream knows of the shared consumer of an address."""
        return await self._api(f"CONSUMER.INFO.{stream_of(address)}.{consumer_of(address)}")

    async def _api(self, subject: str, order: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask JetStream. Raises `JetStreamError`, TimeoutError."""
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        def on_answer(msg: Msg) -> None:
            if not answer.done():
                answer.set_result(msg)

        reply = self.expect(on_answer)
        waiting: set[asyncio.Future[Any]] = {answer, self.lost}
        try:
            await self.publish(f"$JS.API.{subject}", b"" if order is None else json.dumps(order).encode(), reply)
            await asyncio.wait(waiting, timeout=_API_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.forget(reply)
        if not answer.done():
            raise TimeoutError(f"JetStream did not answer to {subject}")
        msg = answer.result()
        if status_of(msg) == NOBODY:
            raise JetStreamError({"description": "JetStream is not enabled: start nats-server with -js", "code": 503})
        found: dict[str, Any] = json.loads(msg.data)
        if "error" in found:
            raise JetStreamError(found["error"])
        return found

    async def count(self, address: Address, at_least: int, seconds: float) -> int:
        """How many subscribers an address has: each answers. `at_least` so many will; others may be slower."""
        answers = 0
        answered = asyncio.Event()

        def on_answer(msg: Msg) -> None:
            nonlocal answers
            answers += status_of(msg) != NOBODY
            answered.set()

        end = time.monotonic() + seconds
        reply = self.expect(on_answer)
        try:
            await self.publish(roll_call_of(address), b"", reply)
            while (left := end - time.monotonic()) > 0:
                answered.clear()
                async with asyncio.timeout(left if answers < at_least else min(left, _STRAGGLERS_SECONDS)):
                    await answered.wait()
        except TimeoutError:
            pass
        finally:
            self.forget(reply)
        return answers

    async def pull(self, address: Address, consumer: str, count: int, seconds: float, reply: str) -> None:
        """Ask for up to `count` messages within `seconds`; they go to `reply`, and so does word of the end."""
        order = {"batch": count, "expires": int(seconds * 1e9)}
        await self.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{stream_of(address)}.{consumer}", json.dumps(order).encode(), reply
        )

    # What nats-py calls

    async def _on_answer(self, msg: Msg) -> None:
        on_answer = self._answers.get(msg.subject)
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


async def within(seconds: float, work: Coroutine[Any, Any, object]) -> None:
    """Await something of nats-py, which swallows a cancellation now and then: so it gets a task of its own.

    Raises:
        TimeoutError: it takes longer.
    """
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise TimeoutError
    finally:
        task.cancel()
    task.result()


def status_of(msg: Msg) -> str | None:
    """The status in what is no message but word from the server."""
    return None if msg.headers is None else msg.headers.get("Status")
