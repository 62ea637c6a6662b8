"""get_rpc_transport, and AsyncTransport: the connection to a message system, for tasks that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from types import AsyncGeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, cast

from msgbus.aio.waiting import Deadlines, Waiter, run_in_thread, wait_in_any_case
from msgbus.aio.window import AsyncWindow
from msgbus.base_transport import INSPECT_TIMEOUT, BaseTransport, make_driver, send_error
from msgbus.closing import open_drivers
from msgbus.drivers.base import Address, Capability, Driver, Message, QueueInfo
from msgbus.drivers.registry import installed_names
from msgbus.drivers.toolkit.futures import forget_callback
from msgbus.drivers.toolkit.hosted import HostedLoop
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import (
    CallCancelled,
    ConfigurationError,
    MessageUndeliverable,
    MessagingException,
    TransportUnavailable,
)
from msgbus.foreign import get_logger
from msgbus.sending import server_named_by

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.url import TransportURL

LOG = get_logger(__name__)

installed_names()  # The first call reads files, which must not happen on an event loop.


def get_rpc_transport(
    conf: cfg.ConfigOpts, url: str | TransportURL | None = None, allowed_remote_exmods: Sequence[str] | None = None
) -> AsyncTransport:
    """Make a transport for the event loop that runs here. Nothing is connected yet.

    ::

        async with get_rpc_transport(conf, "rabbit://guest:guest@localhost/") as transport:
            client = get_rpc_client(transport, Target(topic="hello"))

    Arguments and errors are those of `msgbus.get_rpc_transport`.

    Raises:
        RuntimeError: no event loop runs here.
    """
    parsed, driver, loop = make_driver(conf, url, allowed_remote_exmods, HostedLoop)
    return AsyncTransport(conf, parsed, driver, loop, allowed_remote_exmods)


class AsyncTransport(BaseTransport):
    """The connection to one message system, for all clients and servers of one event loop.

    Use it by ``async with``, or await `aclose` at the end. Only the event loop's thread may use it. At most
    ``rpc_send_window`` calls, casts and open streams are unfinished at the same time; further ones wait.
    """

    loop: HostedLoop
    window: AsyncWindow

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        url: TransportURL,
        driver: Driver,
        loop: HostedLoop,
        allowed_remote_exmods: Sequence[str] | None = None,
    ) -> None:
        super().__init__(conf, url, driver, loop, allowed_remote_exmods)
        self.deadlines = Deadlines(loop)
        self._closing: asyncio.Task[None] | None = None
        self._guard = cast("AsyncGeneratorType[None, None]", _close_with_event_loop(weakref.ref(self)))
        with contextlib.suppress(StopIteration):  # It waits for its end from now on.
            self._guard.asend(None).send(None)

    def _make_window(self, size: int) -> AsyncWindow:
        return AsyncWindow(size, self.loop)

    async def __aenter__(self) -> AsyncTransport:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def inbox(self, deadline: float, whose: object = "a request") -> str:
        """The name of this process's inbox, which is opened on the first call; see `msgbus.Transport.inbox`."""
        return self._inbox.name or await self._open_inbox(deadline, whose)

    async def _open_inbox(self, deadline: float, whose: object) -> str:
        if self.closed:
            raise CallCancelled(f"{whose}: the transport to {self.url} is closed")
        try:
            inbox = self._inbox.begin()
            try:
                await self.wait_until_ready(inbox.ready, deadline, "cannot reach")
            except MessagingException:
                self._inbox.on_failed(inbox)
                raise
            return self._inbox.on_open(inbox)
        except MessagingException as exc:
            raise self.inbox_failure(whose, exc) from exc.__cause__

    async def wait_until_ready(self, ready: Future[None], deadline: float, what: str) -> None:
        """Wait for a driver's future.

        Raises:
            TransportUnavailable: `deadline` (seconds of `Loop.now`) came first; `what` begins the text.
            MessagingException: what the future failed with.
        """
        if not await self.wait_for(ready, deadline):
            raise TransportUnavailable(f"{what} {self.driver.state}: gave up at the deadline")
        error = ready.exception()
        if error is not None:
            raise error.with_traceback(None)  # Thousands may get the same error: it would grow with each of them.

    async def wait_for(self, future: Future[Any], until: float) -> bool:
        """Wait until a driver's future is done, or `until` (seconds of `Loop.now`). Returns whether it is."""
        if future.done():
            return True
        waiter = Waiter(self.deadlines)

        def on_done(_future: Future[Any]) -> None:
            waiter.wake()

        future.add_done_callback(on_done)
        try:
            while not future.done() and Loop.now() < until:
                await waiter.wait(until)
        finally:
            is_done = future.done()
            if not is_done:  # Many may wait, one after another, for what is never done.
                forget_callback(future, on_done)
        return is_done

    async def send_and_wait(
        self,
        address: Address,
        message: Message,
        deadline: float,
        *,
        what: str,
        mandatory: bool,
        repeat: bool,
        fallback: Address | None = None,
    ) -> None:
        """Send a message, and return when the message system has taken it; see `msgbus.Transport.send_and_wait`."""
        outcome = self.begin_send(address, message, deadline, mandatory=mandatory, repeat=repeat, fallback=fallback)
        known = await self.wait_for(outcome, max(deadline, Loop.now()) + INSPECT_TIMEOUT)
        error = send_error(outcome) if known else self.unconfirmed()
        if error is not None:
            # Others may get the same error: their frames have no place in it.
            raise self.send_failure(f"{what} {address}", error, repeated=repeat).with_traceback(None)

    def check_loop(self) -> None:
        """Check that this transport's event loop runs here.

        Raises:
            ConfigurationError: another event loop runs here.
        """
        if not self.loop.runs_here():
            raise ConfigurationError(
                f"the transport to {self.url} belongs to another event loop: create a transport in each event loop, "
                "and close it there"
            )

    async def slot(self, deadline: float, method: str, address: Address) -> AsyncWindow:
        """Take a place in the send window for a request: ``with await transport.slot(...):`` gives it back.

        Raises:
            MessagingTimeout: as for `msgbus.Transport.slot`.
            ConfigurationError: another event loop runs here.
        """
        self.check_loop()
        if deadline <= Loop.now():
            raise self.no_time(method, address)
        window = self.window
        if not window.take() and not await window.wait_for_place(Waiter(self.deadlines), deadline):
            raise self.window_full(method, address)
        return window

    async def inspect(self, address: Address, timeout: float) -> QueueInfo | None:
        """What is known of an address, or None if there is no answer within `timeout` seconds."""
        if Capability.INSPECT not in self.driver.capabilities:
            return None
        try:
            found = self.driver.inspect(address)
            await self.wait_for(found, Loop.now() + timeout)
            return found.result(0)
        except MessageUndeliverable:
            server = server_named_by(address)
            return QueueInfo(0, 0) if server is None else await self.inspect(server, timeout)
        except (MessagingException, TimeoutError):
            return None

    async def aclose(self) -> None:
        """Close everything. Tasks that still wait get `CallCancelled`.

        What servers have said to run for them is cancelled there.

        Idempotent.

        Raises:
            ConfigurationError: another event loop runs here.
        """
        self.check_loop()
        if self._closing is None:  # Two at once would not leave each other the time to send what is under way.
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        # A program that ends cancels all tasks, this one too. Half closed, the transport would keep a thread for ever.
        self._cancel_running()
        self._begin_close()
        self.window.close()
        try:
            await self._close_driver()
        finally:
            open_drivers.discard(self.driver)
            await wait_in_any_case(self.loop.closing())
            self._end_close()
            self.deadlines.wake_all()
        if not self._guard.ag_running:
            await self._guard.aclose()

    async def _close_driver(self) -> None:
        try:
            closing = run_in_thread(self.driver.close, "msgbus-closing")
        except RuntimeError as exc:  # There are too many.
            LOG.warning("the transport to %s is closed without waiting for what is being sent: %s", self.url, exc)
            self.driver.close()  # Here, on the event loop, it does not wait.
        else:
            await wait_in_any_case(closing)


async def _close_with_event_loop(found: weakref.ref[AsyncTransport]) -> AsyncGenerator[None]:
    """Close a transport that its program has left open. An event loop that ends closes all asynchronous generators."""
    try:
        yield
    finally:
        transport = found()
        if transport is not None and not transport.loop.closed:
            if not transport.closed:  # Otherwise it is just being closed.
                LOG.warning(
                    "the event loop ended before the transport to %s was closed: use 'async with', or await its "
                    "aclose()",
                    transport.url,
                )
            await transport.aclose()


def check_transport(transport: object, whose: str) -> None:
    """Check that a client or server for asyncio is given a transport for asyncio.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(transport, AsyncTransport):
        raise TypeError(
            f"the first argument of {whose} is a transport of msgbus.aio, not {type(transport).__name__}: "
            "transport = msgbus.aio.get_rpc_transport(conf, url)"
        )
