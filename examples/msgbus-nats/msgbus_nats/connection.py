"""Connection: one connection to one NATS server, from log-in to loss."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import nats.aio.client
import nats.aio.subscription
import nats.errors
from nats.aio.msg import Msg

from msgbus.drivers.toolkit.aio import event_loop_of
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.foreign import get_logger
from msgbus.url import TransportHost
from msgbus_nats.errors import JetStreamError

LOG = get_logger(__name__)

OnMessage = Callable[[Msg], Awaitable[None]]

NOBODY: Final = "503"
"""The status that says that nobody listens."""
CONNECT_TIMEOUT: Final = 5.0
API_TIMEOUT: Final = 4.0
CLOSE_TIMEOUT: Final = 1.0
"""Seconds for all of it: the transport's loop goes on for twice as long, and then ends whatever is left."""
HEARTBEAT: Final = 10.0
STUCK: Final = 0.5
"""Seconds for which nats-py takes no more before the server is said not to read."""


class Connection:
    """On the transport's loop, but for `open`, and for `close` before `start`.

    It never comes back once it is lost: nats-py's own reconnecting would send, late, what its buffer still holds, and
    nobody could say any more what became of it.

    Attributes:
        aio: runs nats-py.
        lost: done when the connection is; its result says why.
        max_payload: bytes that a message may have, with its headers.
        server_id: the server's, which has another one each time it starts.
        server_version: the server's version.
        on_room: called when all that was published has been given to nats-py.
    """

    def __init__(self, host: TransportHost, loop: Loop) -> None:
        self.aio = event_loop_of(loop)
        self.lost: asyncio.Future[str] = self.aio.create_future()
        self.max_payload = 0
        self.server_id = ""
        self.server_version = (0, 0, 0)
        self.on_room: Callable[[], object] = lambda: None
        self._host = host
        self._client = nats.aio.client.Client()
        self._prefix = f"_INBOX.{uuid.uuid4().hex}"
        self._numbers = itertools.count()
        self._answers: dict[str, Callable[[Msg], None]] = {}
        self._outbox: deque[tuple[str, bytes, str, dict[str, str] | None]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._waits_since = FOREVER
        self._error = ""

    def open(self) -> None:
        """Connect and log in; blocks. Any thread.

        Raises:
            OSError, nats.errors.Error: it cannot be done.
        """
        try:
            self.aio.run(within(CONNECT_TIMEOUT, self._open()))
        except BaseException as exc:
            self.close()
            if isinstance(exc, nats.errors.NoServersError) and self._error:
                raise OSError(self._error) from exc  # nats-py told it to the error callback only
            raise

    async def _open(self) -> None:
        await self._client.connect(
            servers=f"nats://{self._host}",
            user=self._host.username,
            password=self._host.password,
            name="msgbus",
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            error_cb=self._on_error,
            closed_cb=self._on_closed,
        )
        self.max_payload = self._client.max_payload
        self.server_id = self._client._server_info["server_id"]
        version = self._client.connected_server_version
        self.server_version = (version.major, version.minor, version.patch)
        await self.subscribe(f"{self._prefix}.*", self._on_answer)
        await self.ask("INFO")

    def start(self) -> None:
        """Go on, on the transport's loop."""
        self.aio.attach()
        self.aio.spawn(self._beat())

    def close(self) -> None:
        """Let go of it."""
        self._lose("it was closed")
        self.aio.end(self._close(), CLOSE_TIMEOUT)

    async def _close(self) -> None:
        try:
            await within(CLOSE_TIMEOUT / 2, self._write_and_close())
        except (OSError, nats.errors.Error) as exc:
            LOG.debug("closing a connection to %s: %s", self._host, exc)
            # nats-py then leaves the socket open, and what is still to be written would keep it so.
            writer = getattr(self._client._transport, "_io_writer", None)
            if writer is not None:
                writer.transport.abort()
        finally:
            # If the connection has failed, nats-py leaves the tasks of its subscriptions, on the program's event loop.
            for subscription in self._client._subs.values():
                task: asyncio.Task[None] | None = getattr(subscription, "_wait_for_msgs_task", None)
                if task is not None:
                    task.cancel()

    async def _write_and_close(self) -> None:
        if self._writer is not None:
            await asyncio.wait({self._writer})
        await self._client.close()

    # Messages

    @property
    def has_room(self) -> bool:
        """Whether nothing waits to be given to nats-py."""
        return not self._outbox

    @property
    def is_stuck(self) -> bool:
        """Whether nats-py's buffer is full, since the server does not read."""
        return Loop.now() - self._waits_since > STUCK

    def publish(self, subject: str, body: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Publish; a connection that is gone is no error: `lost` tells."""
        if self.lost.done():
            return
        self._outbox.append((subject, body, reply, headers))
        if self._writer is None or self._writer.done():
            self._writer = self.aio.spawn(self._write())

    async def _write(self) -> None:
        """Give to nats-py what was published. It waits where its buffer is full: the server does not read."""
        try:
            while self._outbox:
                self._waits_since = Loop.now()
                await self._client.publish(*self._outbox[0])
                self._waits_since = FOREVER
                self._outbox.popleft()
                if not self._outbox:
                    self.on_room()
        except (OSError, nats.errors.Error) as exc:
            self._outbox.clear()
            self._lose(str(exc))

    async def flush(self) -> None:
        """Return when the server has taken in all that was published, and sent what it had to say to that.

        Raises:
            OSError, nats.errors.Error: it did not, in time.
        """
        if self._writer is not None:
            await asyncio.wait({self._writer})
        await self._client.flush(timeout=int(CONNECT_TIMEOUT))

    async def subscribe(self, subject: str, on_message: OnMessage) -> nats.aio.subscription.Subscription:
        """Subscribe, without a bound on what waits here: nats-py would drop what is above it."""
        return await self._client.subscribe(subject, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0)

    # Answers

    def expect(self, on_answer: Callable[[Msg], None]) -> str:
        """A reply subject, whose messages are passed to `on_answer` until it is given to `forget`."""
        reply = f"{self._prefix}.{next(self._numbers)}"
        self._answers[reply] = on_answer
        return reply

    def forget(self, reply: str) -> None:
        """Expect nothing more there."""
        self._answers.pop(reply, None)

    async def ask(self, subject: str, order: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask JetStream.

        Raises:
            JetStreamError: it refuses.
            TimeoutError: it does not answer.
        """
        return await self.store(f"$JS.API.{subject}", b"" if order is None else json.dumps(order).encode())

    async def store(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Publish something that JetStream answers, and return the answer.

        Raises:
            JetStreamError: it refuses.
            TimeoutError: it does not answer.
        """
        answer: asyncio.Future[Msg] = self.aio.create_future()
        reply = self.expect(lambda msg: None if answer.done() else answer.set_result(msg))
        waiting: set[asyncio.Future[Any]] = {answer, self.lost}
        try:
            self.publish(subject, body, reply, headers)
            await asyncio.wait(waiting, timeout=API_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
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

    # What nats-py calls

    async def _on_answer(self, msg: Msg) -> None:
        on_answer = self._answers.get(msg.subject)
        if on_answer is not None:
            on_answer(msg)

    async def _on_error(self, error: Exception) -> None:
        if not isinstance(error, OSError | nats.errors.Error):
            LOG.error("a callback of ours failed", exc_info=error)
            return
        self._error = str(error)
        # What the server refuses, but goes on; anything else has broken the connection.
        if "permissions violation" not in self._error.lower():
            self._lose(self._error)

    async def _on_closed(self) -> None:
        self._lose(str(self._client.last_error or "the server closed it"))

    async def _beat(self) -> None:
        """Notice a server that is gone without a word."""
        try:
            while not self.lost.done():
                await asyncio.sleep(HEARTBEAT)
                await self.flush()
        except asyncio.CancelledError:
            self._lose("the program has cancelled what reads and writes")
            raise
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
