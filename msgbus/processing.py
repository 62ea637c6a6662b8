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
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextvars import Context
from typing import Any, Protocol

from msgbus import current, forking
from msgbus import deadline as inherited
from msgbus.awaitables import PLAIN, refuse_awaitable
from msgbus.base_transport import BaseTransport
from msgbus.closing import end_child
from msgbus.current import ServerContext
from msgbus.dead_lettering import DeadLetterSender, OnDeadLetter
from msgbus.dispatcher import ExpectedException, RPCDispatcher, each_plain
from msgbus.drivers.base import Delivery, Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import decode_request, with_attempts
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
from msgbus.executor import Executor, Interrupted
from msgbus.foreign import get_logger, name_of, text_of, traceback_of
from msgbus.message import AT_LEAST_ONCE, POLICIES, Request, UnacceptableRequest
from msgbus.server_call import ServerCall, deadline_of, time_left
from msgbus.server_calls import Seen, ServerCalls
from msgbus.stream_sender import TURN, Event, yield_to_others

LOG = get_logger(__name__)

TASK_CANCELLED = "its task was cancelled, by the method itself or by the program"
TOO_LATE = "its deadline passes before it could be run again"
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a cast that raised is run again: the first, second, third time; then always the last."""


class Unwanted(Exception):
    """When a thread was free for a plain method, its client did not want it any more."""


class Workers(Protocol):
    """What requests run on: the threads of an `Executor`, or the tasks of an event loop."""

    def submit(self, item: Delivery | ServerCall) -> None:
        """Have `Processor.process` called with an item, soon."""

    def begin(self, context: Context, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in a context: on threads to its end, where it never waits; as a task on an event loop."""

    async def run_plain(self, func: Callable[..., Any], *args: Any) -> Any:
        """Call a function that may block, and return its value."""


class Tasks(Workers, Protocol):
    """Workers that also run methods which are ``async``."""

    async def run_async(self, call: ServerCall, work: Coroutine[Any, Any, Any]) -> Any:
        """Await what such a method does. It is cancelled when the client cancels the call.

        Raises:
            Interrupted: the server has stopped, and waits for it no longer.
        """

    def make_event(self) -> Event:
        """What a coroutine waits with."""


class Processor:
    """See the module's text. Thread-safe: `process` runs on many threads at once.

    What is done for a request is written once, as coroutines. They wait only on an event loop: on threads, which run
    plain methods alone, they run to their end at once.
    """

    def __init__(
        self, transport: BaseTransport, server: str, dispatcher: RPCDispatcher, on_dead_letter: OnDeadLetter | None
    ) -> None:
        """Make one that has not been started.

        Raises:
            TypeError: `on_dead_letter` is ``async``.
        """
        self.transport = transport
        self.server = server
        self.grace: float = transport.option("rpc_reply_grace")
        self.forks = forking.forks
        self.calls = ServerCalls(transport)
        self._dispatcher = dispatcher
        self._dead_letters = DeadLetterSender(transport, on_dead_letter, self.grace)
        self._policy: str = transport.option("rpc_delivery")
        self._cast_retries: int = transport.option("rpc_cast_retries")
        self._context = ServerContext()
        self._workers: Workers = Executor(0, self.process, server, transport.loop)  # until `start`
        self._tasks: Tasks | None = None
        self._stopped = True
        self._delayed: set[ServerCall] = set()  # casts that raised, until they are run again

    def start(self, workers: Workers, tasks: Tasks | None = None) -> None:
        """Run requests on `workers`, in copies of the caller's context. Methods that are async need `tasks`."""
        self._context = ServerContext()
        self._workers = workers
        self._tasks = tasks
        self._stopped = False

    def stop(self) -> None:
        """The server stops: casts that are to be run again go to other servers, now and from now on."""
        self._stopped = True
        for call in list(self._delayed):
            self._end_delay(call)

    def begin_wait(self) -> None:
        """The server's end is going to be waited for. If a request does so, others that do the same ignore it."""
        own = current.running.get()
        if isinstance(own, ServerCall) and own.owner is self:
            self.calls.closers.add(own)

    def wait(self, timeout: float | None) -> int:
        """Wait until all requests but the calling one are finished; returns how many are not in `timeout` seconds.

        `begin_wait` comes first, before other things are waited for.
        """
        own = current.running.get()
        return self.calls.wait(timeout, own if isinstance(own, ServerCall) and own.owner is self else None)

    # One delivery

    def process(self, item: Delivery | ServerCall) -> None:
        """Run a delivery, or again a cast that raised. On a worker's thread."""
        if isinstance(item, ServerCall):
            if item.deadline is not None and item.deadline <= Loop.now():  # All threads or tasks were busy.
                self._context.copy().run(self._dead_letter_after, item, f"{item.failure[0]}; {TOO_LATE}")
                return
            message = item.delivery.message
            # Read anew: the method may have changed its arguments before it raised.
            item.request = decode_request(message.body, message.content_type)
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

    def _begin(self, call: ServerCall) -> None:
        """Run a request in a new context, which holds the request and its deadline.

        All of the user's code runs there: serializers, the access policy, the method, each step of a generator, and the
        hook for dead letters.
        """
        self._workers.begin(self._context.copy(), self._run(call))
        if self.forks != forking.forks:  # Wherever it forked: it must not go on as a worker.
            end_child(None)

    async def _run(self, call: ServerCall) -> None:
        """Run a request if it may, as its policy says."""
        current.running.set(call)
        inherited.current.set(call.deadline)
        try:
            if not call.at_least_once:
                if call.delivery.redelivered:
                    self._decline(call)
                    return
                call.accepted = call.delivery.accept()
                if not call.accepted:
                    self._leave_to_redelivery(call)
                    return
            if call.is_call:
                await self._run_call(call)
            else:
                await self._run_cast(call)
        except BaseException:  # Whatever it is: a delivery that is never settled takes up prefetch for ever.
            LOG.exception("%r (%s) is dropped after an error", call.request.method, call.request.unique_id)
            self._finish(call, done=True)

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
            self._dead_letter(call, reason, 1, [])
        else:
            call.decline()
            self._finish(call, done=True)

    def _leave_to_redelivery(self, call: ServerCall) -> None:
        """Do not run what could not be accepted: it is delivered again, and declined or dead-lettered there."""
        request = call.request
        LOG.warning("%r (%s) was not run: its connection was lost", request.method, request.unique_id)
        if call.is_call:
            call.decline()
        for duplicate in self.calls.end(call, done=False):
            duplicate.reject(requeue=True)  # It takes the place of this delivery: it is declined or dead-lettered.
        self.calls.remove(call)

    def _finish(self, call: ServerCall, *, done: bool, remember: bool = True, confirmed: bool = False) -> None:
        """Accept a request's delivery and duplicates if it is done, else give them back.

        Without `remember`, the request is run if it comes here again.
        """
        if call.finished or self.forks != forking.forks:  # In a forked child: the parent settles it.
            return
        call.finished = True
        done = done or call.accepted
        duplicates = self.calls.end(call, done=done and remember, confirmed=confirmed)
        for delivery in duplicates if call.accepted else (call.delivery, *duplicates):
            try:
                if done:
                    delivery.accept()
                else:
                    delivery.reject(requeue=True)
            except Exception:  # The others have to be settled too.
                LOG.exception(
                    "a delivery of %r (%s) could not be accepted or given back",
                    call.request.method,
                    call.request.unique_id,
                )
        self.calls.remove(call)

    # Calls

    async def _run_call(self, call: ServerCall) -> None:
        request, hints = call.request, call.request.hints
        call.active = True
        if not self.calls.ticks:
            self.calls.start_ticking()
        try:
            if hints is not None and hints.again:  # Its client may know this server's inbox from the first time.
                call.take_control()
            streams = hints is not None and hints.window is not None
            result = await self._dispatch(call, streams=streams)
            if streams:
                if not call.accepted:
                    call.accepted = call.delivery.accept()  # A stream is never started again elsewhere.
                call.deadline = _end_of_stream(call)
                inherited.current.set(call.deadline)
                if self._tasks is not None and isinstance(result, AsyncGenerator):
                    await self._tasks.run_async(call, call.stream_async(result, self._tasks.make_event()))
                else:
                    items = result if isinstance(result, Generator) else _only(result)
                    await self._workers.run_plain(call.stream, items)
            else:
                call.result(result)
        except ExpectedException as exc:
            LOG.debug("%r raised an expected exception", request.method, exc_info=True)
            self._answer_error(call, exc.exc_info[1] or exc)
        except (RPCDispatcherError, SerializationError) as exc:
            LOG.error("%r (call %s): %s", request.method, request.call_id, exc)
            self._answer_error(call, exc)
        except Unwanted as exc:
            LOG.info("%r (call %s) %s", request.method, request.call_id, exc)
            self.on_answered(call, None)
        except Interrupted as exc:
            reason = exc if self._stopped else TASK_CANCELLED
            LOG.warning("%r (call %s): %s", request.method, request.call_id, reason)
            # Where the server has not been stopped, it may get the request again, and the same may happen each time.
            if call.at_least_once and not call.accepted and (self._stopped or not call.delivery.redelivered):
                self._finish(call, done=False)
            else:
                self._answer_error(call, CallCancelled(f"{request.method!r}: {reason}"))
        except BaseException as exc:  # sys.exit() too: somebody waits for the answer
            if call.cancelled:
                LOG.info("%r (call %s) was cancelled by its client", request.method, request.call_id)
            else:
                LOG.exception("%r (call %s) raised", request.method, request.call_id)
            self._answer_error(call, exc)
        finally:
            call.active = False
            if call.finished:
                call.forget_stream()
            if call.controlled and not call.is_unconfirmed:
                call.end_control()

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
        self._finish(call, done=error is None or _is_permanent(error), confirmed=call.confirmed)

    async def _dispatch(self, call: ServerCall, *, streams: bool = False) -> Any:
        """Run a request's method. Unless its items are sent as a stream, of a generator the last one is the result.

        A forked child that comes back from it ends: the parent answers and settles the request.
        """
        dispatcher, tasks = self._dispatcher, self._tasks
        try:
            if tasks is not None and dispatcher.runs_async(call.request):
                result = await tasks.run_async(call, dispatcher.dispatch_async(call.request))
                if isinstance(result, AsyncGenerator) and not streams:
                    result = await tasks.run_async(call, _last_of_async(result))
            else:
                result = await self._workers.run_plain(self._dispatch_plain, call, streams)
        except BaseException as exc:
            if self.forks != forking.forks:
                end_child(exc)
            raise
        if self.forks != forking.forks:
            end_child(None)
        return result

    def _dispatch_plain(self, call: ServerCall, streams: bool) -> Any:
        if self._tasks is not None:  # It may have waited for a thread.
            if call.cancelled:
                raise Unwanted("was cancelled by its client before it began, and was not run")
            if call.deadline is not None and call.deadline <= Loop.now():
                raise Unwanted("could not begin before its deadline, and was not run")
        result = self._dispatcher.dispatch(call.request)
        if type(result) not in PLAIN:
            method = call.request.method
            refuse_awaitable(f"the method {method!r} returned", result)  # It may be a user's dispatcher.
            if isinstance(result, Generator) and not streams:
                return _last_of(each_plain(method, result), call)
        return result

    # Casts

    async def _run_cast(self, call: ServerCall) -> None:
        request = call.request
        try:
            await self._dispatch(call)
        except ExpectedException:
            LOG.debug("the cast %r raised an expected exception", request.method, exc_info=True)
        except Unwanted as exc:
            if call.raised:
                self._dead_letter(call, f"{call.failure[0]}; {TOO_LATE}", call.attempts, call.failure[1])
                return
            LOG.info("the cast %r (%s) %s", request.method, request.unique_id, exc)
        except BaseException as exc:  # sys.exit() too: the delivery has to be settled
            if isinstance(exc, Interrupted):
                if self._stopped and (call.at_least_once or not exc.begun):
                    self._pass_on(call, exc)
                    return
                if not self._stopped:
                    exc = Interrupted(TASK_CANCELLED)
            if call.at_least_once:
                self._retry_or_dead_letter(call, exc)
                return
            if isinstance(exc, RPCDispatcherError):
                LOG.error("the cast %r (%s): %s", request.method, request.unique_id, exc)
            else:
                LOG.exception("the cast %r (%s) raised", request.method, request.unique_id)
        self._finish(call, done=True)

    def _pass_on(self, call: ServerCall, exc: Interrupted) -> None:
        """Let another server run a cast that was interrupted. If it had begun, that counts as an attempt."""
        LOG.warning("the cast %r (%s) is passed on: %s", call.request.method, call.request.unique_id, exc)
        if exc.begun:
            call.raised += 1
        call.failure = f"{name_of(type(exc))}: {exc}", traceback_of(exc)
        try:
            self._send_to_others(call)
        except Exception:  # The message system still has it.
            LOG.exception("the cast %r (%s) is given back", call.request.method, call.request.unique_id)
            self._finish(call, done=False)

    def _retry_or_dead_letter(self, call: ServerCall, exc: BaseException) -> None:
        request = call.request
        call.raised += 1
        reason, traceback = call.failure = f"{name_of(type(exc))}: {text_of(exc)}", traceback_of(exc)
        if call.attempts > self._cast_retries or isinstance(exc, RPCDispatcherError | SerializationError):
            self._dead_letter(call, reason, call.attempts, traceback)
            return
        delay = RETRY_DELAYS[min(call.attempts, len(RETRY_DELAYS)) - 1]
        if call.deadline is not None and Loop.now() + delay >= call.deadline:
            self._dead_letter(call, f"{reason}; {TOO_LATE}", call.attempts, traceback)
            return
        LOG.warning(
            "the cast %r (%s) raised %r, and is run again in %g s", request.method, request.unique_id, exc, delay
        )
        self._delayed.add(call)
        if self._stopped:  # Checked last: `stop` has found what was added before it.
            self._end_delay(call)
        else:
            self.transport.loop.call_later(delay, lambda: self._end_delay(call))

    def _end_delay(self, call: ServerCall) -> None:
        try:
            self._delayed.remove(call)
        except KeyError:
            return  # The server was stopped, and another server gets it.
        self.run_again(call)

    def run_again(self, call: ServerCall) -> None:
        """Run a cast again, or let another server do so if this one is stopping."""
        if self._stopped:
            self._send_to_others(call)
        else:
            self._workers.submit(call)

    def _send_to_others(self, call: ServerCall) -> None:
        """Let another server run a cast that raised here, or could not begin or finish.

        It is sent a copy that holds the number of attempts. If no copy can be sent, the message itself is given back:
        then other servers only know that it was delivered before. One that was accepted becomes a dead letter then.
        """
        address, message = call.delivery.address, call.delivery.message
        if address.kind == "fanout":  # Only this server has it, and only until it ends.
            reason = f"the server was stopped before it could be run again; it had raised {call.failure[0]}"
            self._context.copy().run(self._dead_letter_after, call, reason)
            return

        def give_back(why: object) -> None:
            if call.accepted:
                reason = f"the server was stopped, and no other could be sent it: {why}"
                self._context.copy().run(self._dead_letter_after, call, reason)
                return
            LOG.info("the cast %r (%s) is given back: %s", call.request.method, call.request.unique_id, why)
            self._finish(call, done=False, remember=False)

        left = time_left(call.request, call.delivery)
        try:
            body = with_attempts(message.body, message.content_type, call.attempts)
        except SerializationError:
            body = None
        if body is None or address.kind == "pool" or (left is not None and left <= 0):  # Nobody can send to a pool.
            give_back("nobody can be sent a copy of it")
            return

        def on_outcome(error: BaseException | None) -> None:
            if error is not None:
                give_back(error)
                return
            # It is not remembered: the copy may come here, if the server starts again.
            self._finish(call, done=True, remember=False)

        seconds = max(self.grace, 1.0)
        copy = Message(body, message.content_type, message.id, left, message.durable, seconds)
        end = Loop.now() + seconds
        self.transport.send(address, copy, mandatory=True, until=end, on_outcome=on_outcome)

    def _dead_letter_after(self, call: ServerCall, reason: str) -> None:
        """Give up a request that raised before. In a context of its own: the hook is the user's code."""
        current.running.set(call)
        self._dead_letter(call, reason, call.attempts, call.failure[1])

    def _dead_letter(self, call: ServerCall, reason: str, attempts: int, traceback: Sequence[str]) -> None:
        """Give a request up: send it to the dead letters (if the message system stores them), the log and the hook."""
        LOG.error(
            "%r (%s) to %s is given up after %d attempts: %s",
            call.request.method,
            call.request.unique_id,
            call.delivery.address,
            attempts,
            reason,
        )
        self._dead_letters.send(call, reason, attempts, traceback, lambda: self._finish(call, done=True))


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


def _last_of(items: Generator[Any, Any, Any], call: ServerCall) -> Any:
    """Run a generator for a client that wants one value: the last."""
    last = None
    try:
        for item in items:
            last = item
            if call.cancelled:
                break
    finally:
        items.close()
    return last


async def _last_of_async(items: AsyncGenerator[Any, None]) -> Any:
    """As `_last_of`, for an asynchronous generator: when the client cancels the call, this is cancelled."""
    last = None
    try:
        count = 0
        async for item in items:
            last = item
            count += 1
            if count % TURN == 0:
                await yield_to_others()
    finally:
        await items.aclose()
    return last


def _only(value: Any) -> Generator[Any, None, None]:
    yield value
