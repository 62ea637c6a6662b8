"""NotificationProcessor: runs the endpoints of a listener on notifications, one by one or in batches.

============================================ =======================================================
what happens                                 what becomes of the notification
============================================ =======================================================
its endpoints have returned                  accepted
one returned REQUEUE, or raised              with `allow_requeue` given back after a pause, else accepted; logged
one cancelled its own task                   as if it had raised
it is no notification                        accepted, and logged
the same id comes again                      dropped; while it is being run, once that is over
the listener was stopped before the end      given back, at once
the process, or its connection, has ended    the message system delivers it again
============================================ =======================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgbus import current, forking
from msgbus import deadline as inherited
from msgbus.awaitables import PLAIN, refuse_awaitable
from msgbus.base_processor import BaseProcessor
from msgbus.base_transport import BaseTransport
from msgbus.closing import end_child
from msgbus.current import target_of
from msgbus.drivers.base import Delivery
from msgbus.executor import Interrupted
from msgbus.foreign import get_logger
from msgbus.interceptors import InterceptedRequest, Once, chain
from msgbus.message import Request
from msgbus.notify.batches import Batch
from msgbus.notify.dispatcher import Callback, NotificationDispatcher
from msgbus.notify.filter import NotificationResult
from msgbus.notify.notification import Notification, check_message, read_notification
from msgbus.notify.requeueing import Requeueing
from msgbus.server_call import ServerCall
from msgbus.server_calls import Seen
from msgbus.workers import Tasks, Workers

LOG = get_logger(__name__)

REQUEUE = NotificationResult.REQUEUE


class NotificationProcessor(BaseProcessor):
    """See the module's text. Thread-safe: `process` runs on many threads at once."""

    def __init__(
        self,
        transport: BaseTransport,
        server: str,
        dispatcher: NotificationDispatcher,
        *,
        allow_requeue: bool,
        on_paused: Callable[[int], None],
        interceptors: Sequence[Any] = (),
    ) -> None:
        """Make one that has not been started.

        Args:
            transport: where notifications come from.
            server: the listener's name.
            dispatcher: has the endpoints.
            allow_requeue: notifications may come again.
            on_paused: see `Requeueing`.
            interceptors: are around the endpoints of each notification.
        """
        super().__init__(transport, server)
        self._dispatcher = dispatcher
        self._allow_requeue = allow_requeue
        self._interceptors = interceptors
        self._tasks: Tasks | None = None
        self._requeueing = Requeueing(transport, self.calls, on_paused)

    def start(self, workers: Workers, tasks: Tasks | None = None) -> None:
        """See `BaseProcessor.start`."""
        super().start(workers, tasks)
        self._tasks = tasks
        self._requeueing.start()

    def stop(self) -> None:
        """The listener stops: what waits to come again goes to others, now and from now on."""
        super().stop()
        self._requeueing.stop()

    def may_have(self, request: Request) -> bool:
        """No: a notification names no method."""
        return False

    def on_answered(self, call: ServerCall, error: BaseException | None) -> None:
        """Nothing: nobody waits for an answer."""

    # One delivery, or a batch of them

    def process(self, item: Delivery | ServerCall) -> None:
        """Run a delivery, or a `Batch`. On a worker's thread."""
        assert isinstance(item, Delivery)
        if isinstance(item, Batch):
            calls = [call for delivery in item.deliveries if (call := self._read(delivery)) is not None]
            if calls:
                self._workers.begin(self._context.copy(), self._run_batch(calls))
                if self.forks != forking.forks:
                    end_child(None)
        elif (call := self._read(item)) is not None:
            self._begin(call)

    def _read(self, delivery: Delivery) -> ServerCall | None:
        """Read a delivery. None: it is not to be run, and is settled."""
        try:
            request = read_notification(delivery)
        except Exception as exc:  # Also unforeseen errors of the codec's library: the message would come again.
            LOG.error("a message to %s is no notification, and was dropped: %s", delivery.address, exc)
            delivery.accept()
            return None
        call = ServerCall(self, delivery, request, None, at_least_once=True)
        seen = self.calls.begin(call)
        if seen is Seen.NEW:
            return call
        LOG.info("notification %s has come a second time and was not run again", request.unique_id)
        if seen is Seen.DONE:
            delivery.accept()
        return None

    async def _run(self, call: ServerCall) -> None:
        current.running.set(call)
        inherited.current.set(None)
        try:
            requeue = await self._handle(call) == REQUEUE
        except Interrupted as exc:
            self._on_interrupted(call, exc)
            return
        except BaseException:  # sys.exit() too: the notification has to be settled
            LOG.exception("notification %s to %s raised", call.request.unique_id, call.delivery.address)
            requeue = True
        self._settle(call, requeue=requeue)

    def _on_interrupted(self, call: ServerCall, exc: Interrupted) -> None:
        if self._stopped:
            LOG.warning("notification %s is given back: %s", call.request.unique_id, exc)
            self.calls.finish(call, done=False)
        else:  # By its endpoint, for example. If it were given back now, that would happen again at once.
            LOG.error(
                "notification %s to %s: its task was cancelled, and not by the listener",
                call.request.unique_id,
                call.delivery.address,
            )
            self._settle(call, requeue=True)

    def _settle(self, call: ServerCall, *, requeue: bool) -> None:
        if not requeue:
            self.calls.finish(call, done=True)
        elif self._allow_requeue:
            self._requeueing.add(call)
        else:
            LOG.warning(
                "notification %s to %s does not come again: the listener was made without allow_requeue",
                call.request.unique_id,
                call.delivery.address,
            )
            self.calls.finish(call, done=True)

    # One by one

    async def _handle(self, call: ServerCall) -> Any:
        """Run the interceptors and the endpoints, and return what they say."""
        if not self._interceptors:
            return await self._run_endpoints(call)
        once, metadata = Once(), {} if call.request.hints is None else call.request.hints.metadata or {}
        call.metadata = metadata
        request = call.request
        target = target_of(call.delivery.address, request)
        intercepted = InterceptedRequest(
            "notification", "", target, request.context, dict(request.args), metadata, call
        )

        def take(changed: InterceptedRequest) -> None:
            once.use("a notification")
            check_message(changed.args)
            request.context, request.args, call.metadata = changed.context, changed.args, changed.metadata

        try:
            if self._tasks is None:

                def last(changed: InterceptedRequest) -> Any:
                    take(changed)
                    return _result_of(self._run_endpoints(call))

                return chain(self._interceptors, last)(intercepted)
            return await self._tasks.run_async(call, self._chain(call, intercepted, take))
        finally:
            once.end()

    async def _chain(
        self, call: ServerCall, request: InterceptedRequest, take: Callable[[InterceptedRequest], None]
    ) -> Any:
        from msgbus.aio.interceptors import async_chain  # Importing the package imports asyncio, which is slow.

        async def last(changed: InterceptedRequest) -> Any:
            take(changed)
            return await self._run_endpoints(call)

        return await async_chain(self._interceptors, last)(request)

    async def _run_endpoints(self, call: ServerCall) -> NotificationResult:
        """Run the methods for a notification, in order.

        If it may come again, the first one that fails ends this, since all would run again. Else each one gets it, and
        then the first error is raised.
        """
        notification = self._dispatcher.read(call.request)
        outcome = NotificationResult.HANDLED
        error: BaseException | None = None
        for callback in self._dispatcher.callbacks_of(notification.priority):
            if not callback.accepts(notification):
                continue
            try:
                if await self._call(call, callback, *notification[1:]) == REQUEUE:
                    outcome = REQUEUE
            except BaseException as exc:  # sys.exit() too: the other endpoints still get it
                if self._stopped and isinstance(exc, Interrupted):
                    raise
                if error is None:
                    error = exc
                else:
                    LOG.exception("%s raised for notification %s", callback.name, call.request.unique_id)
            if self._allow_requeue and (error is not None or outcome == REQUEUE):
                break
        try:
            if error is not None:
                raise error
        finally:
            del error  # It refers to this frame.
        return outcome

    async def _call(self, call: ServerCall, callback: Callback, *args: Any) -> Any:
        """Call a method, wherever it has to run. A forked child that comes back from it ends."""
        try:
            if callback.is_async:
                assert self._tasks is not None
                return await self._tasks.run_async(call, callback.method(*args))
            result = await self._workers.run_plain(callback.method, *args)
        except BaseException as exc:
            if self.forks != forking.forks:
                end_child(exc)
            raise
        if self.forks != forking.forks:
            end_child(None)
        if type(result) not in PLAIN:
            refuse_awaitable(f"{callback.name} returned", result)
        return result

    # In batches

    async def _run_batch(self, calls: Sequence[ServerCall]) -> None:
        """Run a batch, level by level."""
        inherited.current.set(None)
        read = [(call, notification) for call in calls if (notification := self._notification_of(call)) is not None]
        interrupted: Interrupted | None = None
        for _, level in itertools.groupby(sorted(read, key=_priority), key=_priority):
            group = list(level)
            if interrupted is not None:  # Nobody waits for further levels.
                for call, _ in group:
                    self._on_interrupted(call, interrupted)
                continue
            first = group[0][0]
            current.running.set(first)
            first.mates = calls
            try:
                interrupted = await self._run_group(group)
            finally:
                first.mates = ()  # They refer to one another.

    def _notification_of(self, call: ServerCall) -> Notification | None:
        try:
            return self._dispatcher.read(call.request)
        except BaseException:
            LOG.exception("notification %s to %s raised", call.request.unique_id, call.delivery.address)
            self._settle(call, requeue=True)
            return None

    async def _run_group(self, group: Sequence[tuple[ServerCall, Notification]]) -> Interrupted | None:
        """Run those of one level; returns what has interrupted that, if anything.

        A method that raises, or wants them again, means all that it was given.
        """
        requeued: set[ServerCall] = set()
        withheld = requeued if self._allow_requeue else ()  # All methods get what comes again; else each gets it now.
        try:
            for callback in self._dispatcher.callbacks_of(group[0][1].priority):
                given = [(call, note) for call, note in group if call not in withheld and callback.accepts(note)]
                if given and await self._call_batch(callback, given):
                    requeued.update(call for call, _ in given)
        except Interrupted as exc:
            for call, _ in group:
                self._on_interrupted(call, exc)
            return exc
        except BaseException:  # Whatever it is: a delivery that is never settled takes up prefetch for ever.
            LOG.exception("a batch of %d notifications could not be handled", len(group))
            requeued.update(call for call, _ in group)
        for call, _ in group:
            self._settle(call, requeue=call in requeued)
        return None

    async def _call_batch(self, callback: Callback, given: Sequence[tuple[ServerCall, Notification]]) -> bool:
        """Call a method with several. Returns whether they are to come again."""
        call = given[0][0]
        try:
            return bool(await self._call(call, callback, [note.as_dict() for _, note in given]) == REQUEUE)
        except Interrupted:
            if self._stopped:
                raise
            LOG.error(
                "%s: its task for a batch of %d notifications was cancelled, and not by the listener",
                callback.name,
                len(given),
            )
            return True
        except BaseException:  # sys.exit() too: they have to be settled
            LOG.exception("%s raised for a batch of %d notifications", callback.name, len(given))
            return True


def _priority(read: tuple[ServerCall, Notification]) -> str:
    return read[1].priority


def _result_of(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that never waits."""
    try:
        work.send(None)
    except StopIteration as exc:
        return exc.value
    work.close()
    raise RuntimeError("a notification waits for something, on a thread that only runs plain methods")
