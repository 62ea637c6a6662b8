"""AsyncRPCServer: listens at its addresses, and runs its requests as tasks of the event loop.

`AsyncListener` is what it shares with listeners for notifications.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Self

from msgbus.aio.executor import TaskExecutor
from msgbus.aio.interceptors import AsyncInterceptor
from msgbus.aio.transport import AsyncTransport, check_transport
from msgbus.aio.waiting import run_in_thread, wait_in_any_case
from msgbus.base_listener import STOP_TIMEOUT, BaseListener
from msgbus.base_server import BaseServer, own_version
from msgbus.dead_lettering import OnDeadLetter
from msgbus.deadline import checked_seconds
from msgbus.dispatcher import RPCAccessPolicyBase, RPCDispatcher
from msgbus.drivers.base import Address
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import MessagingException
from msgbus.executor import CANCEL_TIMEOUT
from msgbus.foreign import get_logger
from msgbus.serializer import Serializer
from msgbus.target import Target

LOG = get_logger(__name__)

own_version()  # Now, since later it would read files on the event loop.


def get_rpc_server(
    transport: AsyncTransport,
    target: Target,
    endpoints: Sequence[object],
    serializer: Serializer | None = None,
    access_policy: type[RPCAccessPolicyBase] | None = None,
    on_dead_letter: OnDeadLetter | None = None,
    validate: bool = False,
    interceptors: Sequence[AsyncInterceptor] = (),
) -> AsyncRPCServer:
    """Make a server. It serves once it is started.

    Arguments and errors are those of `msgbus.get_rpc_server`. Methods may be ``async``, and asynchronous generators;
    plain ones run on threads of a pool. Serializer, access policy and `on_dead_letter` are plain functions. The policy
    and the hook are called on the event loop, and so is the serializer for ``async`` methods: they must not block.
    Interceptors are ``async``, and run in the request's task, also around plain methods.
    """
    dispatcher = RPCDispatcher(endpoints, serializer, access_policy, asynchronous=True, validate=validate)
    return AsyncRPCServer(transport, target, dispatcher, on_dead_letter, interceptors=interceptors)


class AsyncListener(BaseListener):
    """What a server of requests and a listener for notifications do alike on an event loop."""

    transport: AsyncTransport

    def _start_clean(self) -> None:
        """Listen to nothing."""
        super()._start_clean()
        self._executor: TaskExecutor | None = None
        self._state = asyncio.Lock()

    async def _prepare(self, end: float) -> None:
        """What comes before listening, until `end`, in seconds of `Loop.now`."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.wait()

    async def start(self, timeout: float | None = None) -> None:
        """Begin to serve; returns when requests will arrive; see `msgbus.RPCServer.start`.

        Raises:
            ConfigurationError: another event loop than the transport's runs here.
        """
        self.transport.check_loop()
        if self._is_serving():
            return
        transport = self.transport
        end = Loop.now() + (transport.option("rpc_response_timeout") if timeout is None else checked_seconds(timeout))
        stops = self._stops
        await self._prepare(end)
        self._check_not_stopped(stops)
        if self._is_serving():
            return
        if self._subscription is None or self._executor is None:
            self._executor = self._make_executor()
            self._subscribe(self._executor)
        subscription, executor = self._subscription, self._executor
        assert subscription is not None
        try:
            await transport.wait_until_ready(subscription.ready, end, f"{self._title} cannot listen on")
        except BaseException:
            subscription.close()
            if self._subscription is subscription:  # Otherwise another task has done this, and may have started again.
                self._processor.stop()
                self._subscription = self._executor = None
            # A second cancellation must not leave threads behind.
            await wait_in_any_case(asyncio.ensure_future(executor.close(0)))
            raise
        self._on_started()

    def _make_executor(self) -> TaskExecutor:
        transport, process = self.transport, self._processor.process
        tasks, threads = transport.option("executor_tasks"), transport.option("executor_thread_pool_size")
        executor = TaskExecutor(process, self._thread_name, transport.loop, tasks, threads)
        self._processor.start(executor, executor)
        return executor

    async def stop(self) -> None:
        """Take no new requests, and give back those that have not begun. What runs goes on: see `wait`.

        Raises:
            ConfigurationError: another event loop than the transport's runs here.
        """
        self.transport.check_loop()
        self._stops += 1
        async with self._state:  # A second caller returns when it is done, too.
            subscription, executor = self._subscription, self._executor
            if subscription is None or self._stopping or executor is None:
                return
            self._stopping = True
            try:
                if not subscription.ready.done():
                    subscription.close()  # It will never be ready: so `start` ends, in another task.
                await self._confirmed(subscription.stop(), "the message system did not confirm that it has stopped")
            finally:  # Also where the caller is cancelled: nobody calls this a second time.
                self._processor.stop()
                self._give_back_all(executor.take_backlog())

    async def wait(self, timeout: float | None = None) -> int:
        """Stop, wait until what runs has finished and is answered, then close the subscription.

        After `timeout` seconds, ``async`` methods that still run are cancelled, and plain ones run on without being
        waited for. A method that the server runs may call this: it does not wait for the request that calls it.

        Args:
            timeout: None means as long as it takes.

        Returns:
            how many requests were abandoned since they were still running or unanswered.

        Raises:
            ConfigurationError: another event loop than the transport's runs here.
            ValueError: `timeout` is not a number.
        """
        if timeout is not None:
            timeout = checked_seconds(timeout)
        await self.stop()
        end = None if timeout is None else Loop.now() + timeout
        # Without the lock: while one task waits, another may, or a method for which that one waits.
        subscription, executor = self._subscription, self._executor
        if subscription is None or executor is None:
            return 0
        self._processor.begin_wait()
        running = await executor.close(timeout)
        if running and end is not None:
            end += CANCEL_TIMEOUT
        left = None if end is None else max(0.0, end - Loop.now())
        unfinished = self._processor.wait(0.0)
        if unfinished and left != 0.0:
            unfinished = await run_in_thread(partial(self._processor.wait, left), "msgbus-stopping")
        abandoned = max(running, unfinished)
        async with self._state:
            if self._subscription is not subscription:
                return abandoned
            await self._confirmed(subscription.close(), "the subscription could not be closed cleanly")
            self._subscription = self._executor = None
        if abandoned:
            LOG.warning("%s: %d requests were abandoned after %s s", self._title, abandoned, timeout)
        return abandoned

    async def _confirmed(self, future: Future[None], problem: str) -> None:
        """Wait for the message system's confirmation, and log a warning if there is none."""
        try:
            await self.transport.wait_for(future, Loop.now() + STOP_TIMEOUT)
            future.result(0)
        except (MessagingException, TimeoutError) as exc:
            LOG.warning("%s: %s: %r", self._title, problem, exc)


class AsyncRPCServer(AsyncListener, BaseServer):
    """Serves a topic on the event loop of its transport: see `msgbus.RPCServer`, whose arguments these are.

    ::

        async with get_rpc_server(transport, Target(topic="hello", server="one"), [Hello()]):
            await asyncio.Event().wait()

    The end of the ``async with`` stops the server, and waits for what runs as long as it takes; `stop` and `wait` bound
    that.

    A call whose client cancels it, or stops waiting, is cancelled: its ``async`` method gets `asyncio.CancelledError`.
    (A plain method can ask ``current_request().cancelled``.) A cast is never cancelled by its client.

    At most ``executor_tasks`` requests run at the same time, and of these ``executor_thread_pool_size`` plain methods.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        target: Target,
        dispatcher: RPCDispatcher,
        on_dead_letter: OnDeadLetter | None = None,
        addresses: Sequence[Address] | None = None,
        interceptors: Sequence[AsyncInterceptor] = (),
    ) -> None:
        check_transport(transport, "a server of msgbus.aio")
        super().__init__(transport, target, dispatcher, on_dead_letter, addresses, interceptors)

    async def _prepare(self, end: float) -> None:
        await self.transport.inbox(end, self.target)
