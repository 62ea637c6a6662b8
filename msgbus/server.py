"""RPCServer: listens at its addresses, and hands deliveries to its threads, which run `msgbus.processing`.

`Listener` is what it shares with listeners for notifications.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgbus.base_listener import STOP_TIMEOUT, BaseListener
from msgbus.base_server import BaseServer
from msgbus.dead_lettering import OnDeadLetter
from msgbus.deadline import checked_seconds, wait_for
from msgbus.dispatcher import RPCAccessPolicyBase, RPCDispatcher
from msgbus.drivers.base import Address, Delivery
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import MessagingException
from msgbus.executor import CANCEL_TIMEOUT, Executor
from msgbus.foreign import get_logger
from msgbus.forking import call_in_child
from msgbus.serializer import Serializer
from msgbus.server_call import ServerCall
from msgbus.target import Target
from msgbus.transport import Transport, check_transport
from msgbus.urgent import holds_urgent

if TYPE_CHECKING:
    from msgbus.aio.loop_thread import LoopThreadExecutor

LOG = get_logger(__name__)


def get_rpc_server(
    transport: Transport,
    target: Target,
    endpoints: Sequence[object],
    executor: str | None = None,
    serializer: Serializer | None = None,
    access_policy: type[RPCAccessPolicyBase] | None = None,
    on_dead_letter: OnDeadLetter | None = None,
    validate: bool = False,
    interceptors: Sequence[Any] = (),
) -> RPCServer:
    """Make a server. It serves once it is started.

    Args:
        transport: where it listens.
        target: its topic and its name (``server``).
        endpoints: whose methods it runs; see `RPCDispatcher`.
        executor: ``"threading"``: each request runs on a thread of a pool. ``"asyncio"``: each is a task of an event
            loop in a separate thread; methods may be ``async``, and plain ones run on threads of a pool. None means
            ``"asyncio"`` where a method is ``async``, else ``"threading"``.
        serializer: undoes what the client's serializer did to arguments and context, and does the same to results.
        access_policy: which methods may be called; a subclass of `RPCAccessPolicyBase`.
        on_dead_letter: called with each dead letter, which is also logged and stored.
        validate: check and convert the arguments of all methods by their annotations, as `validated` does.
        interceptors: functions ``(request, proceed)`` around each method, the first is the outermost. On threads they
            are plain, and run on the method's thread; on an event loop they are ``async``, and run there, also around
            plain methods. See ``docs/howto/interceptors.md``. They do not see the namespace ``msgbus``, so no endpoint
            may have that then.

    Raises:
        InvalidTarget: topic or server is missing.
        TypeError: the transport or target is something else; an endpoint or the policy is invalid; or something that
            the server would call is ``async``: the policy, the serializer, `on_dead_letter`, and with the executor
            ``"threading"`` a method that may be called, or an interceptor (on an event loop one that is plain is
            refused); or an annotation of a method that is validated cannot be used. The text names it.
        ValueError: an executor that does not exist.
    """
    if executor not in (None, "threading", "asyncio"):
        raise ValueError(f"there is no executor {executor!r}; there are 'threading' and 'asyncio'")
    dispatcher = RPCDispatcher(
        endpoints, serializer, access_policy, asynchronous=executor != "threading", validate=validate
    )
    if executor is None:
        dispatcher.asynchronous = dispatcher.has_async
    return RPCServer(transport, target, dispatcher, on_dead_letter, interceptors=interceptors)


class Listener(BaseListener):
    """What a server of requests and a listener for notifications do alike where threads wait.

    `start`, `stop` and `wait` may be called from any thread, in that order. In a forked child that inherits it, it is
    one that was not started: the parent's goes on, and the child may start its own.
    """

    transport: Transport

    def _start_clean(self) -> None:
        """Listen to nothing. Also in a forked child, where threads and requests are the parent's."""
        super()._start_clean()
        self._state = threading.Condition()
        self._executor: Executor[Delivery | ServerCall] | LoopThreadExecutor | None = None

    def _prepare(self, end: float) -> None:
        """What comes before listening, until `end`, in seconds of `Loop.now`."""

    def start(self, timeout: float | None = None) -> None:
        """Begin to serve; returns when requests can arrive. Does nothing if the server runs already.

        Each request runs in a fresh copy of the context (`contextvars`) in which `start` is called. So a request does
        not see what another one sets, and all steps of a generator run in the context of its request.

        Args:
            timeout: seconds to wait for the message system; None means the option ``rpc_response_timeout``.

        Raises:
            TransportUnavailable: it could not be reached in that time.
            CallCancelled: the server was stopped, or its transport closed, meanwhile.
            MessagingException: the message system refuses, for example because of missing permissions; or the server
                was stopped, and `wait` has not returned since.
            ValueError: `timeout` is not a number.
        """
        if self._is_serving():
            return
        transport = self.transport
        end = Loop.now() + (transport.option("rpc_response_timeout") if timeout is None else checked_seconds(timeout))
        stops = self._stops
        self._prepare(end)
        with self._state:
            self._check_not_stopped(stops)
            if self._is_serving():
                return
            if self._subscription is None or self._executor is None:
                self._executor = self._make_executor()
                self._subscribe(self._executor)
            subscription, executor = self._subscription, self._executor
        assert subscription is not None
        try:  # Without the lock: `stop` and `wait` may put an end to it.
            wait_for(transport.loop, subscription.ready, end, f"{self._title} cannot listen on", transport.driver)
        except BaseException:
            subscription.close()
            executor.close(0)
            self._processor.stop()
            with self._state:
                if self._subscription is subscription:
                    self._subscription = self._executor = None
            raise
        self._on_started()

    def _make_executor(self) -> Executor[Delivery | ServerCall] | LoopThreadExecutor:
        transport, process, name = self.transport, self._processor.process, self._thread_name
        threads = transport.option("executor_thread_pool_size")
        if self._asynchronous:
            from msgbus.aio.loop_thread import LoopThreadExecutor  # It imports asyncio, which is slow.

            tasks = LoopThreadExecutor(process, name, transport.loop, transport.option("executor_tasks"), threads)
            self._processor.start(tasks, tasks)
            return tasks
        executor: Executor[Delivery | ServerCall] = Executor(threads, process, name, transport.loop, holds_urgent)
        self._processor.start(executor)
        return executor

    def stop(self) -> None:
        """Take no new requests, and give back those that have not begun. Running requests go on: see `wait`."""
        self._stops += 1
        begun = self._stopping  # Before the lock: `wait` holds it while handlers finish, and one may call this.
        if begun:
            return
        with self._state:
            if self._subscription is None or self._stopping or self._executor is None:
                return
            self._stopping = True
            try:
                if not self._subscription.ready.done():
                    self._subscription.close()  # It will never be ready: so `start` ends, in another thread.
                self._subscription.stop().result(STOP_TIMEOUT)
            except (MessagingException, TimeoutError) as exc:
                LOG.warning(
                    "%s: the message system did not confirm that it has stopped delivering: %r", self._title, exc
                )
            finally:  # Also after Ctrl-C: nobody does this a second time.
                self._processor.stop()
                self._give_back_all(self._executor.take_backlog())

    def wait(self, timeout: float | None = None) -> int:
        """Wait until running requests have finished and are answered, then close the subscription.

        After `timeout` seconds, ``async`` methods that still run are cancelled, and plain ones run on without being
        waited for. What has not begun by then is not run here.

        A method that the server runs may call it: this does not wait for the request that calls it.

        Args:
            timeout: seconds; None means as long as it takes.

        Returns:
            how many requests were abandoned since they had not begun, or were still running or unanswered.

        Raises:
            MessagingException: an ``async`` method calls it, which would block its event loop. Use
                ``await asyncio.to_thread(server.wait)``.
            ValueError: `timeout` is not a number.
        """
        if timeout is not None:
            timeout = checked_seconds(timeout)
        if self._executor is not None:
            self._executor.check_thread()
        self.stop()
        with self._state:  # Another thread may still be in `stop`, which submits and gives back what has not begun.
            pass
        end = None if timeout is None else Loop.now() + timeout
        # Without the lock: while one thread waits, another may, or a method for which that one waits.
        subscription, executor = self._subscription, self._executor
        if subscription is None or executor is None:
            return 0
        self._processor.begin_wait()
        running = executor.close(timeout)
        if not self._asynchronous:  # Tasks count what they have not begun, and begin none of it any more.
            running += len(executor.take_backlog())  # Given back with the subscription: it must not run here as well.
        elif running and end is not None:
            end += CANCEL_TIMEOUT
        left = None if end is None else max(0.0, end - Loop.now())
        abandoned = max(running, self._processor.wait(left))
        with self._state:
            if self._subscription is subscription:
                try:
                    subscription.close().result(STOP_TIMEOUT)
                except (MessagingException, TimeoutError) as exc:
                    LOG.warning("%s: the subscription could not be closed cleanly: %r", self._title, exc)
                self._subscription = self._executor = None
        if abandoned:
            LOG.warning("%s: %d requests were abandoned after %s s", self._title, abandoned, timeout)
        return abandoned

    def reset(self) -> None:
        """Do nothing. It exists for callers of oslo.messaging's interface."""


class RPCServer(Listener, BaseServer):
    """Serves a topic: requests to any of its servers, to this server by its name, and to all servers.

    `start`, `stop` and `wait` may be called from any thread, in that order. In a forked child that inherits it, it is a
    server that was not started: the parent's goes on, and the child may start its own.

    Args:
        transport, target, on_dead_letter, interceptors: as for `get_rpc_server`.
        dispatcher: runs the requests; if it is asynchronous, on an event loop.
        addresses: what it listens to, if not the three addresses of its target.
    """

    def __init__(
        self,
        transport: Transport,
        target: Target,
        dispatcher: RPCDispatcher,
        on_dead_letter: OnDeadLetter | None = None,
        addresses: Sequence[Address] | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        check_transport(transport, "server")
        super().__init__(transport, target, dispatcher, on_dead_letter, addresses, interceptors)
        call_in_child(self._start_clean)

    def _prepare(self, end: float) -> None:
        self.transport.inbox(end, self.target)
