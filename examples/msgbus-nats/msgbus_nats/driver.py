"""The driver: one thread with an event loop, what waits to be sent, and the connection, over and over again."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

import nats.errors
from nats.aio.msg import Msg
from oslo_config import cfg

from msgbus.drivers.base import (
    Address,
    Capability,
    Depth,
    Driver,
    Inbox,
    Message,
    OnDelivery,
    Sent,
    Subscription,
)
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import (
    CallCancelled,
    MessageTooLarge,
    MessageUndeliverable,
    MessagingException,
    TransportUnavailable,
)
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child
from msgbus.options import connection_opts, hosts_of, read_driver_options
from msgbus.url import TransportURL
from msgbus_nats.connection import NOBODY, Connection, status_of
from msgbus_nats.errors import CONSUMER_MISSING, STREAM_MISSING, JetStreamError, mapped, reason_of
from msgbus_nats.names import headers_of, subject_of
from msgbus_nats.receiving import NatsInbox, NatsSubscription, fail, finish

LOG = get_logger(__name__)

HEADER_ROOM: Final = 1024
"""Bytes of the server's max_payload that are kept for headers."""
RECEIPT_SECONDS: Final = 5.0
"""Seconds in which the owner of an inbox says that it has a message. It does so at once, unless it is gone and the
server has not noticed; the core then sends it again."""
INSPECT_SECONDS: Final = 0.9
CLOSE_SECONDS: Final = 5.0
_LONGEST_PAUSE: Final = 1.0


_Opened = TypeVar("_Opened", NatsInbox, NatsSubscription)


class _Send:
    """A message to be sent, until the server's word on it."""

    __slots__ = ("address", "begun", "mandatory", "message", "reply", "result", "timer")

    def __init__(self, address: Address, message: Message, mandatory: bool, result: Future[Sent]) -> None:
        self.address = address
        self.message = message
        self.mandatory = mandatory
        self.result = result
        self.begun = False
        self.timer: asyncio.TimerHandle | None = None
        self.reply = ""


class NatsDriver(Driver):
    """See the contract, `msgbus.drivers.base`."""

    contract = (2, 0)
    capabilities = frozenset(
        {
            Capability.STORE,
            Capability.DURABLE,
            Capability.ORDERED,
            Capability.COUNTS,
            Capability.INSPECT,
            Capability.REQUEUE,
        }
    )

    @classmethod
    def options(cls) -> tuple[str, Sequence[cfg.Opt]]:
        defaults = {"hosts": ["localhost"], "port": 4222, "username": None, "password": None, "virtual_host": None}
        where = [opt for opt in connection_opts({}, defaults) if opt.dest != "virtual_host"]
        return "msgbus_nats", [
            cfg.FloatOpt(
                "ack_wait",
                default=10.0,
                min=1.0,
                help="Seconds after which JetStream gives the messages of a server that died to others. A server that "
                "lives says so four times in that time.",
            ),
            *where,
        ]

    def __init__(self, conf: cfg.ConfigOpts, url: TransportURL, _loop: Loop) -> None:
        options = read_driver_options(conf, *self.options(), url)
        self._hosts = hosts_of(options, url)
        self.ack_wait: float = options.ack_wait
        self.where = "NATS at " + ", ".join(map(str, self._hosts))
        self._inherited: list[object] = []
        self._start_clean()
        call_in_child(self._forked)

    def _start_clean(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._futures: set[Future[Any]] = set()
        # What follows belongs to the loop's thread.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._opened: list[NatsInbox | NatsSubscription] = []
        self._queue: deque[_Send] = deque()
        self._under_way: set[_Send] = set()
        self._connection: Connection | None = None
        self._more = asyncio.Event()
        self._ending = asyncio.Event()
        self._changed = asyncio.Event()
        self._why = "not connected yet"
        self._failed = False
        self._up_since: float | None = None

    # From any thread

    @property
    def up_since(self) -> float | None:
        return self._up_since

    @property
    def state(self) -> str:
        return self.where if self._up_since is not None else f"{self.where}: {self._why}"

    def send(self, address: Address, message: Message, *, mandatory: bool) -> Future[Sent]:
        result: Future[Sent] = self.new_future()
        if not self.on_loop(self._enqueue, _Send(address, message, mandatory, result)):
            fail(result, CallCancelled(f"the driver of {self.where} was closed"))
        return result

    def subscribe(self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int) -> Subscription:
        return self._open(NatsSubscription(self, addresses, on_delivery, prefetch))

    def open_inbox(self, on_delivery: OnDelivery) -> Inbox:
        return self._open(NatsInbox(self, on_delivery))

    def _open(self, opened: _Opened) -> _Opened:
        if not self.on_loop(self._add, opened):
            fail(opened.ready, CallCancelled(f"the driver of {self.where} was closed"))
        return opened

    def inspect(self, address: Address) -> Future[Depth]:
        found: Future[Depth] = self.new_future()
        if not self.on_loop(lambda: self.spawn(self._inspect(address, found))):
            fail(found, CallCancelled(f"the driver of {self.where} was closed"))
        return found

    def close(self) -> None:
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        try:
            loop.call_soon_threadsafe(self._ending.set)
        except RuntimeError:  # it was closed before
            return
        if thread is not threading.current_thread():
            thread.join(2 * CLOSE_SECONDS)

    def on_loop(self, func: Callable[..., object], *args: Any) -> bool:
        """Call a function on the loop's thread. False: the driver is closed."""
        with self._lock:
            if self._loop is None and not self._closed:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=[self._loop], name="msgbus-nats", daemon=True)
                self._thread.start()
            if self._loop is None:
                return False
            try:
                self._loop.call_soon_threadsafe(func, *args)
            except RuntimeError:  # it is closed
                return False
            return not self._closed

    def new_future(self) -> Future[Any]:
        """A future that is failed in a forked child."""
        future: Future[Any] = Future()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    # On the loop's thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        # Errors of a lost connection in tasks of nats-py that nobody awaits. Those of our own tasks are logged anyway.
        loop.set_exception_handler(lambda _, context: LOG.debug("in a task of nats-py: %s", context))
        try:
            loop.run_until_complete(self._main())
        finally:
            loop.close()
            for future in list(self._futures):
                fail(future, CallCancelled(f"the driver of {self.where} was closed"))

    async def _main(self) -> None:
        connecting = self.spawn(self._stay_connected())
        self.spawn(self._keep_alive())
        await self._ending.wait()
        await self._shut_down()
        connecting.cancel()  # What it is about to open, it closes; from then on there is no new connection.
        await asyncio.wait({connecting}, timeout=CLOSE_SECONDS)
        if self._connection is not None:
            await self._connection.close()
        for _ in range(3):  # nats-py swallows a cancellation now and then
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            if others:
                await asyncio.wait(others, timeout=1)
        await asyncio.sleep(0)  # what was closed last is taken apart

    async def _shut_down(self) -> None:
        """Let what was sent get its answers, and take leave."""
        end = time.monotonic() + CLOSE_SECONDS
        while self._queue or self._under_way:
            if time.monotonic() > end or (self._connection is None and self._failed):
                break
            await asyncio.sleep(0.005)
        closing = [asyncio.wrap_future(opened.close()) for opened in list(self._opened)]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_SECONDS / 2)

    def spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run a coroutine; that it failed stands in the log."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("a task of the driver of %s failed", self.where, exc_info=error)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self.ack_wait / 4)
            for opened in list(self._opened):
                await opened.keep_alive()

    # Connecting

    async def _stay_connected(self) -> None:
        pause = 0.0
        while True:
            connection = await self._connect()
            if connection is None:
                pause = min(_LONGEST_PAUSE, pause * 2 or 0.1)
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                continue
            pause = 0.0
            LOG.info("connected to NATS at %s", connection.host)
            await self._use(connection)

    async def _connect(self) -> Connection | None:
        """A connection to the first host that answers."""
        causes = []
        for host in self._hosts:
            connection = Connection(host, "msgbus")
            try:
                await connection.open()
                return connection
            except Exception as exc:  # nats-py lets many sorts through
                why = f"cannot connect to {host}: {reason_of(exc)}"
                LOG.log(logging.DEBUG if self._failed else logging.WARNING, "NATS: %s", why)
                causes.append(why)
                self._failed, self._why = True, "; also ".join(causes)
                self._changed.set()
        return None

    async def _use(self, connection: Connection) -> None:
        """Return when the connection is lost."""
        self._connection = connection
        self._changed.set()
        opened = list(self._opened)
        for inbox in opened:
            if isinstance(inbox, NatsInbox):
                await inbox.attach(connection)
        attaching = [self.spawn(each.attach(connection)) for each in opened if isinstance(each, NatsSubscription)]
        if attaching:
            await asyncio.wait(attaching, timeout=CLOSE_SECONDS)
        self._failed, self._up_since = False, time.monotonic()
        pump = self.spawn(self._pump(connection))
        why = await connection.lost
        self._changed.clear()
        if self._ending.is_set():
            return
        self._why = f"the connection to {connection.host} was lost: {why}"
        self._up_since = self._connection = None
        pump.cancel()
        LOG.warning("NATS: %s", self._why)
        for each in self._opened:
            each.detach()
        for send in list(self._under_way):
            self._settle(send, TransportUnavailable(f"{send.address}: {self._why}", maybe_delivered=True))
        self.spawn(connection.close())

    def _add(self, opened: NatsInbox | NatsSubscription) -> None:
        self._opened.append(opened)
        if self._connection is not None:
            self.spawn(opened.attach(self._connection))

    def forget(self, opened: NatsInbox | NatsSubscription) -> None:
        """It is closed."""
        if opened in self._opened:
            self._opened.remove(opened)

    # Sending

    def _enqueue(self, send: _Send) -> None:
        patience = send.message.patience
        if patience is not None:
            send.timer = asyncio.get_running_loop().call_later(patience, self._expire, send, patience)
        self._queue.append(send)
        self._more.set()

    async def _pump(self, connection: Connection) -> None:
        """Send what waits, in order."""
        while not connection.lost.done():
            while self._queue and not connection.lost.done():
                send = self._queue.popleft()
                if send.result.done():
                    continue
                if send.address.kind in ("stored", "dead"):
                    self.spawn(self._store(connection, send))
                else:
                    await self._publish(connection, send)
            self._more.clear()
            await self._more.wait()

    async def _store(self, connection: Connection, send: _Send) -> None:
        """Send to what has to be there even though nobody has subscribed yet."""
        try:
            await connection.declare(send.address, self.ack_wait)
        except (OSError, nats.errors.Error) as exc:
            if not connection.lost.done():
                self._settle(send, mapped(exc, f"{send.address} cannot be declared on {self.where}"))
                return
        if connection.lost.done():  # Nothing of it was sent: it waits for the next connection.
            self._queue.appendleft(send)
            self._more.set()
        else:
            await self._publish(connection, send)

    async def _publish(self, connection: Connection, send: _Send) -> None:
        message = send.message
        headers = headers_of(message)
        size, limit = len(message.body), connection.max_payload
        length = sum(len(name) + len(value) + 4 for name, value in headers.items()) + 12
        if size > limit - HEADER_ROOM or size + length > limit:
            text = (
                f"a message of {size} bytes to {send.address}; {self.where} takes {limit - HEADER_ROOM} (max_payload)"
            )
            self._settle(send, MessageTooLarge(text))
            return
        send.begun = True
        self._under_way.add(send)
        if send.address.kind == "inbox":
            self._await_receipt(send)
        send.reply = connection.expect(lambda msg: self._on_answer(send, msg))
        await connection.publish(subject_of(send.address), message.body, send.reply, headers)

    def _await_receipt(self, send: _Send) -> None:
        patience = send.message.patience
        if patience is None or patience > RECEIPT_SECONDS:
            if send.timer is not None:
                send.timer.cancel()
            later = asyncio.get_running_loop().call_later
            send.timer = later(RECEIPT_SECONDS, self._expire, send, RECEIPT_SECONDS)

    def _on_answer(self, send: _Send, msg: Msg) -> None:
        """The server's, or the inbox's, word on a message."""
        if status_of(msg) == NOBODY:
            if send.mandatory:
                self._settle(send, MessageUndeliverable(f"nobody listens at {send.address} on {self.where}"))
            else:
                self._settle(send, Sent(0))
        elif send.address.kind == "inbox":
            self._settle(send, Sent(1))
        else:
            error = json.loads(msg.data).get("error")
            what = f"{send.address} on {self.where}"
            self._settle(send, Sent() if error is None else mapped(JetStreamError(error), what))

    def _expire(self, send: _Send, seconds: float) -> None:
        if send.begun:
            text = f"{send.address}: it was sent to {self.where}, which said nothing for {seconds:g} s"
        else:
            text = f"{send.address}: waited for {seconds:g} s; {self.state}"
        self._settle(send, TransportUnavailable(text, maybe_delivered=send.begun))

    def _settle(self, send: _Send, outcome: Sent | MessagingException) -> None:
        if send.timer is not None:
            send.timer.cancel()
        if self._connection is not None:
            self._connection.forget(send.reply)
        self._under_way.discard(send)
        if isinstance(outcome, Sent):
            finish(send.result, outcome)
        else:
            fail(send.result, outcome)

    async def _inspect(self, address: Address, found: Future[Depth]) -> None:
        end = time.monotonic() + INSPECT_SECONDS
        if self._connection is None and not self._failed:  # It is being opened.
            await asyncio.wait({self.spawn(self._changed.wait())}, timeout=INSPECT_SECONDS / 2)
        connection = self._connection
        if connection is None:
            fail(found, TransportUnavailable(f"{address}: {self.state}"))
            return
        try:
            info = await connection.consumer_info(address)
        except (OSError, nats.errors.Error) as exc:
            if isinstance(exc, JetStreamError) and exc.code in (CONSUMER_MISSING, STREAM_MISSING):
                fail(found, MessageUndeliverable(f"there is no {address} on {self.where}"))
            else:
                fail(found, mapped(exc, f"{address} on {self.where}"))
            return
        consumers = await connection.count(address, info["num_waiting"], end - time.monotonic())
        # What was handed over may be given back; where nobody is left who could have it, it waits already.
        finish(found, Depth(consumers, info["num_pending"] + (0 if consumers else info["num_ack_pending"])))

    # Fork

    def _forked(self) -> None:
        """In the child: everything is the parent's. It is kept, so that nothing of it is closed here."""
        inherited = (self._loop, self._connection, self._tasks, self._opened, self._queue, self._under_way)
        self._inherited.append(inherited)
        futures, opened = list(self._futures), list(self._opened)
        self._start_clean()
        for each in opened:
            each.abandon()
        for future in futures:
            fail(future, CallCancelled(f"the process forked: what was under way to {self.where} is the parent's"))
