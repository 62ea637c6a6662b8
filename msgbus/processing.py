"""Processor: runs one delivery after another as the delivery policy of each says.

================================== ============================================ ===================================
what happens                       at_most_once                                 at_least_once
================================== ============================================ ===================================
it is accepted                     before it runs                               after its answer is safe
it may have run before             not run: a call is declined, a cast          run
                                   dead-lettered
the same id comes again here       dropped                                      waits for the outcome of the first
a cast raises                      logged                                       run again, then dead-lettered
================================== ============================================ ===================================

A dead letter goes to the topic's address for them, to the log, and to the server's hook.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from msgbus import current
from msgbus import deadline as inherited
from msgbus.base_processor import BaseProcessor
from msgbus.base_transport import BaseTransport
from msgbus.counting import CANCELLED, FINISHED, MethodCounts
from msgbus.dead_lettering import DeadLetterSender, OnDeadLetter
from msgbus.dispatcher import ExpectedException, RPCDispatcher
from msgbus.drivers.base import Delivery
from msgbus.drivers.toolkit.loop import Loop
from msgbus.durations import Durations
from msgbus.encoding import decode_request
from msgbus.exceptions import (
    CallCancelled,
    InvalidTarget,
    MessageDeliveryFailure,
    MessageTooLarge,
    MessageUndeliverable,
    MessagingException,
    RPCDispatcherError,
    SerializationError,
)
from msgbus.executor import Interrupted
from msgbus.failed_casts import FailedCasts
from msgbus.foreign import get_logger
from msgbus.intercepted_methods import InterceptedMethods
from msgbus.message import AT_LEAST_ONCE, PING_NAMESPACE, POLICIES, Request, UnacceptableRequest
from msgbus.method_runner import TASK_CANCELLED, MethodRunner, NotAccepted, Unwanted
from msgbus.server_call import ServerCall, deadline_of
from msgbus.server_calls import Seen
from msgbus.workers import Tasks, Workers

LOG = get_logger(__name__)


class Processor(BaseProcessor):
    """See the module's text. Thread-safe: `process` runs on many threads at once."""

    def __init__(
        self,
        transport: BaseTransport,
        server: str,
        dispatcher: RPCDispatcher,
        on_dead_letter: OnDeadLetter | None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        """Make one that has not been started. `interceptors` are around each method; they were checked.

        Raises:
            TypeError: `on_dead_letter` is ``async``.
        """
        super().__init__(transport, server)
        self.counts = MethodCounts(dispatcher.may_have)
        self.durations = Durations()
        self.started_at = 0.0
        self._dispatcher = dispatcher
        self._interceptors = interceptors
        self._policy: str = transport.option("rpc_delivery")
        self._methods = MethodRunner(dispatcher, self._workers, None)
        dead_letters = DeadLetterSender(transport, on_dead_letter, self.grace)
        self.failed_casts = FailedCasts(transport, self.calls, dead_letters, self._workers, self._context)

    def start(self, workers: Workers, tasks: Tasks | None = None) -> None:
        """Run requests on `workers`, in copies of the caller's context. Methods that are async need `tasks`."""
        super().start(workers, tasks)
        self._methods = self._method_runner(workers, tasks)
        self.failed_casts.start(workers, self._context)
        self.started_at = Loop.now()

    def _method_runner(self, workers: Workers, tasks: Tasks | None) -> MethodRunner:
        if not self._interceptors:
            return MethodRunner(self._dispatcher, workers, tasks)
        if tasks is None:
            return InterceptedMethods(self._dispatcher, workers, self._interceptors)
        from msgbus.aio.intercepted_methods import InterceptedTasks  # It imports asyncio, which is slow.

        return InterceptedTasks(self._dispatcher, workers, tasks, self._interceptors)

    def stop(self) -> None:
        """The server stops: casts that are to be run again go to other servers, now and from now on."""
        super().stop()
        self.failed_casts.stop()

    def may_have(self, request: Request) -> bool:
        """Whether there is such a method, and it may be called."""
        return self._dispatcher.may_have(request.namespace, request.method)

    # One delivery

    def process(self, item: Delivery | ServerCall) -> None:
        """Run a delivery, or again a cast that raised. On a worker's thread."""
        if isinstance(item, ServerCall):
            if item.deadline is not None and item.deadline <= Loop.now():  # All threads or tasks were busy.
                self.failed_casts.give_up_too_late(item)
                return
            message = item.delivery.message
            # Read anew: the method may have changed its arguments before it raised.
            item.request = decode_request(message.body, message.content_type)
            item.waits, item.counted, item.began = False, False, Loop.now()
            self._begin(item)
            return
        message = item.message
        try:
            request = decode_request(message.body, message.content_type)
        except Exception as exc:  # Also unforeseen errors of the codec's library: the message would come again.
            self._refuse(item, exc)
            return
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("received %s: %r by %s", request.unique_id, request.method, item.address)
        deadline = deadline_of(request, item)
        if deadline is not None and deadline <= Loop.now():
            LOG.info("%r (%s) came after its deadline and was not run", request.method, request.unique_id)
            item.accept()
            return
        at_least_once = self.policy_of(request) == AT_LEAST_ONCE
        call = ServerCall(self, item, request, deadline, at_least_once)
        again = at_least_once and request.hints is not None and request.hints.again
        seen = self.calls.begin(call, again=again)
        if seen is Seen.NEW:
            self._begin(call)
            return
        LOG.info("%r (%s) has come a second time and was not run again", request.method, request.unique_id)
        if seen is Seen.DONE:
            item.accept()

    async def _run(self, call: ServerCall) -> None:
        """Run a request if it may, as its policy says."""
        current.running.set(call)
        inherited.current.set(call.deadline)
        try:
            if call.delivery.redelivered and not call.at_least_once:
                self._decline(call)
            elif call.is_call:
                await self._run_call(call)
            else:
                await self._run_cast(call)
        except BaseException:  # Whatever it is: a delivery that is never settled takes up prefetch for ever.
            LOG.exception("%r (%s) is dropped after an error", call.request.method, call.request.unique_id)
            self.calls.finish(call, done=True)

    def _refuse(self, delivery: Delivery, exc: Exception) -> None:
        """Do not run what cannot be read as a request."""
        if isinstance(exc, UnacceptableRequest):
            LOG.error("a request to %s was refused: %s", delivery.address, exc)
            delivery.accept()
            self._answer_unacceptable(delivery, exc)
        else:
            LOG.error("a message to %s was dropped: %s", delivery.address, exc)
            delivery.accept()

    def _answer_unacceptable(self, delivery: Delivery, exc: UnacceptableRequest) -> None:
        """Answer an unacceptable request with an error, if it names a client."""
        request = exc.request
        if request.hints is not None:
            request.hints.confirms = False  # This answer is sent once.
        call = ServerCall(self, delivery, request, None, at_least_once=False)
        call.accepted = True
        if not call.is_call:
            return
        try:
            call.error(SerializationError(str(exc)))
        except MessagingException as error:
            LOG.error("the answer to it cannot be sent: %s", error)

    def policy_of(self, request: Request) -> str:
        """The sender's delivery policy, or the server's where it does not say."""
        hints = request.hints
        return hints.policy if hints is not None and hints.policy in POLICIES else self._policy

    def _decline(self, call: ServerCall) -> None:
        """Do not run what may have run before."""
        request = call.request
        LOG.warning("%r (%s) may have run before and is not run again", request.method, request.unique_id)
        if not call.is_call:
            reason = "it may have run before, since a server or connection was lost; at_most_once"
            self.failed_casts.give_up(call, reason, 1, [])
        else:
            call.decline()
            self.calls.finish(call, done=True)

    def _leave_to_redelivery(self, call: ServerCall) -> None:
        """Do not run what could not be accepted: it is delivered again, and declined or dead-lettered there."""
        request = call.request
        LOG.warning("%r (%s) was not run: its connection was lost", request.method, request.unique_id)
        if call.is_call:
            call.decline()
        for duplicate in self.calls.end(call, done=False):
            duplicate.reject(requeue=True)  # It takes the place of this delivery: it is declined or dead-lettered.
        self.calls.remove(call)

    def give_up_unbegun(self, call: ServerCall, why: object) -> None:
        """End a request under at_most_once that the stopped server has not begun, and that no other one could take.

        If its message were given back, it would look like one that may have run.
        """
        reason = f"the server was stopped before it began, and no other server could take it: {why}"
        call.accepted = call.delivery.accept()
        if call.is_call:
            LOG.warning("%r (call %s): %s", call.request.method, call.request.call_id, reason)
            self._answer_error(call, CallCancelled(f"{call.request.method!r}: {reason}"))
        else:
            self.failed_casts.give_up_waiting(call, reason)

    # Calls

    async def _run_call(self, call: ServerCall) -> None:
        request = call.request
        hints = request.hints
        call.active = True
        if not self.calls.ticks:
            self.calls.start_ticking()
        try:
            if hints is not None and hints.again:  # Its client may know this server's inbox from the first time.
                call.take_control()
            streams = hints is not None and hints.window is not None
            result = await self._methods.run(call, streams)
            if streams:
                if not call.accepted:
                    call.accepted = call.delivery.accept()  # A stream is never started again elsewhere.
                call.deadline = _end_of_stream(call)
                inherited.current.set(call.deadline)
                await self._methods.stream(call, result)
            else:
                call.result(result)
            self._count(call, CANCELLED if call.cancelled else FINISHED)
        except ExpectedException as exc:
            LOG.debug("%r raised an expected exception", request.method, exc_info=True)
            self._count_failure(call, exc)
            self._answer_error(call, exc.exc_info[1] or exc)
        except (RPCDispatcherError, SerializationError) as exc:
            LOG.error("%r (call %s): %s", request.method, request.call_id, exc)
            self._count_failure(call, exc)
            self._answer_error(call, exc)
        except NotAccepted:
            self._leave_to_redelivery(call)
        except Unwanted as exc:
            LOG.info("%r (call %s) %s", request.method, request.call_id, exc)
            self._count_failure(call, exc)
            self.on_answered(call, None)
        except Interrupted as exc:
            reason = exc if self._stopped else TASK_CANCELLED
            LOG.warning("%r (call %s): %s", request.method, request.call_id, reason)
            self._count_failure(call, exc)
            # Where the server has not been stopped, it may get the request again, and the same may happen each time.
            if call.at_least_once and not call.accepted and (self._stopped or not call.delivery.redelivered):
                self.calls.finish(call, done=False)
            else:
                self._answer_error(call, CallCancelled(f"{request.method!r}: {reason}"))
        except BaseException as exc:  # sys.exit() too: somebody waits for the answer
            if call.cancelled:
                LOG.info("%r (call %s) was cancelled by its client", request.method, request.call_id)
            else:
                LOG.exception("%r (call %s) raised", request.method, request.call_id)
            self._count_failure(call, exc)
            self._answer_error(call, exc)
        finally:
            call.active = False
            if call.finished:
                call.forget_stream()
            if call.controlled and not call.is_unconfirmed:
                call.end_control()

    def _count(self, call: ServerCall, outcome: int) -> None:
        """Count a request whose method has ended. From that moment it does not count as running."""
        request = call.request
        self.counts[request.namespace, request.method][outcome] += 1
        call.counted = True
        if request.namespace != PING_NAMESPACE:
            self.durations.add(Loop.now() - call.began)

    def _count_failure(self, call: ServerCall, exc: BaseException) -> None:
        namespace = call.request.namespace
        if isinstance(exc, ExpectedException):
            self._count(call, FINISHED)
        else:
            cancelled = call.cancelled or isinstance(exc, Unwanted | Interrupted)
            has_run = self.counts.note_failure((namespace, call.request.method), exc, cancelled=cancelled)
            call.counted = True
            if has_run and namespace != PING_NAMESPACE:
                self.durations.add(Loop.now() - call.began)

    def _answer_error(self, call: ServerCall, exc: BaseException) -> None:
        """Answer a call with an exception; if not even that can be sent, finish it."""
        try:
            call.error(exc)
        except BaseException as error:
            LOG.exception("the answer to %r (call %s) cannot be sent", call.request.method, call.request.call_id)
            self.on_answered(call, error)

    def on_answered(self, call: ServerCall, error: BaseException | None) -> None:
        """Finish a call whose client has its answer or does not want it, or cannot be sent it because of `error`."""
        if call.controlled:
            call.end_control()
        if not call.active:
            call.forget_stream()
        self.calls.finish(call, done=error is None or _is_permanent(error), confirmed=call.confirmed)

    # Casts

    async def _run_cast(self, call: ServerCall) -> None:
        try:
            await self._methods.run(call)
        except NotAccepted:
            self._leave_to_redelivery(call)
        except BaseException as exc:  # sys.exit() too: the delivery has to be settled
            self._count_failure(call, exc)
            self.failed_casts.settle(call, exc)
        else:
            self._count(call, FINISHED)
            self.calls.finish(call, done=True)


def _is_permanent(error: BaseException) -> bool:
    """Whether another server that ran the request again could not deliver its answer either."""
    permanent = isinstance(error, InvalidTarget | MessageTooLarge | MessageUndeliverable)
    return permanent or type(error) is MessageDeliveryFailure  # it cannot be written for this message system


def _end_of_stream(call: ServerCall) -> float | None:
    """The deadline of a whole stream: the one that came with its request was for the first item."""
    hints = call.request.hints
    if call.deadline is None or hints is None or hints.ttl is None or hints.end is None:
        return None
    return call.deadline + hints.end - hints.ttl
