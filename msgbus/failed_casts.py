"""FailedCasts: what becomes of casts that raised, were interrupted, or may have run before.

Each is run again here after a delay, passed on to another server as a copy, or given up as a dead letter. Which of
these is said by the table at the top of `msgbus.processing`.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgbus import current
from msgbus.base_transport import BaseTransport
from msgbus.current import ServerContext
from msgbus.dead_lettering import DeadLetterSender
from msgbus.dispatcher import ExpectedException
from msgbus.drivers.base import Message
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import with_attempts
from msgbus.exceptions import RPCDispatcherError, SerializationError
from msgbus.executor import Interrupted
from msgbus.foreign import get_logger, name_of, text_of, traceback_of
from msgbus.method_runner import TASK_CANCELLED, Unwanted
from msgbus.server_call import ServerCall, time_left
from msgbus.server_calls import ServerCalls
from msgbus.workers import Workers

LOG = get_logger("msgbus.processing")
"""Operators find the casts that raised or are given up under this name: see docs/howto/deploy.md."""

TOO_LATE = "its deadline passes before it could be run again"
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a cast that raised is run again: the first, second, third time; then always the last."""


class FailedCasts:
    """The casts of one server that could not be run to their end, or not yet. Thread-safe."""

    def __init__(
        self,
        transport: BaseTransport,
        calls: ServerCalls,
        dead_letters: DeadLetterSender,
        workers: Workers,
        context: ServerContext,
    ) -> None:
        """Make one that has not been started: it passes on to other servers what would be run again.

        Args:
            transport: what copies are sent with.
            calls: the table that the casts are in.
            dead_letters: sends those that are given up.
            workers: what casts are run again on.
            context: what the hook for dead letters runs in a copy of, where a cast is given up while it does not run.
        """
        self._transport = transport
        self._calls = calls
        self._dead_letters = dead_letters
        self._workers = workers
        self._context = context
        self._grace: float = transport.option("rpc_reply_grace")
        self._retries: int = transport.option("rpc_cast_retries")
        self._delayed: set[ServerCall] = set()  # those that raised, until they are run again
        self._stopped = True

    def start(self, workers: Workers, context: ServerContext) -> None:
        """The server starts: casts are run again here, on `workers`."""
        self._workers = workers
        self._context = context
        self._stopped = False

    def stop(self) -> None:
        """The server stops: casts that are to be run again go to other servers, now and from now on."""
        self._stopped = True
        for call in list(self._delayed):
            self._end_delay(call)

    def settle(self, call: ServerCall, exc: BaseException) -> None:
        """Decide what becomes of a cast whose method has raised `exc`, or did not run for that reason."""
        request = call.request
        if isinstance(exc, ExpectedException):
            LOG.debug("the cast %r raised an expected exception", request.method, exc_info=exc)
        elif isinstance(exc, Unwanted):
            if call.raised:
                self.give_up(call, f"{call.failure[0]}; {TOO_LATE}", call.attempts, call.failure[1])
                return
            LOG.info("the cast %r (%s) %s", request.method, request.unique_id, exc)
        elif isinstance(exc, Interrupted) and self._stopped and (call.at_least_once or not exc.begun):
            self._pass_on(call, exc)
            return
        elif call.at_least_once:
            self._retry_or_give_up(call, Interrupted(TASK_CANCELLED) if isinstance(exc, Interrupted) else exc)
            return
        elif isinstance(exc, RPCDispatcherError):
            LOG.error("the cast %r (%s): %s", request.method, request.unique_id, exc)
        else:
            LOG.error("the cast %r (%s) raised", request.method, request.unique_id, exc_info=exc)
        self._calls.finish(call, done=True)

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
            self._calls.finish(call, done=False)

    def _retry_or_give_up(self, call: ServerCall, exc: BaseException) -> None:
        request = call.request
        call.raised += 1
        call.waits = True
        reason, traceback = call.failure = f"{name_of(type(exc))}: {text_of(exc)}", traceback_of(exc)
        if call.attempts > self._retries or isinstance(exc, RPCDispatcherError | SerializationError):
            self.give_up(call, reason, call.attempts, traceback)
            return
        delay = RETRY_DELAYS[min(call.attempts, len(RETRY_DELAYS)) - 1]
        if call.deadline is not None and Loop.now() + delay >= call.deadline:
            self.give_up(call, f"{reason}; {TOO_LATE}", call.attempts, traceback)
            return
        LOG.warning(
            "the cast %r (%s) raised %r, and is run again in %g s", request.method, request.unique_id, exc, delay
        )
        self._delayed.add(call)
        if self._stopped:  # Checked last: `stop` has found what was added before it.
            self._end_delay(call)
        else:
            self._transport.loop.call_later(delay, lambda: self._end_delay(call))

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
        call.waits = True
        address, message = call.delivery.address, call.delivery.message
        if address.kind == "fanout":  # Only this server has it, and only until it ends.
            reason = f"the server was stopped before it could be run again; it had raised {call.failure[0]}"
            self.give_up_waiting(call, reason)
            return

        def give_back(why: object) -> None:
            if call.accepted:
                self.give_up_waiting(call, f"the server was stopped, and no other server could take it: {why}")
                return
            LOG.info("the cast %r (%s) is given back: %s", call.request.method, call.request.unique_id, why)
            self._calls.finish(call, done=False, remember=False)

        left = time_left(call.request, call.delivery)
        try:
            body = with_attempts(message.body, message.content_type, call.attempts)
        except SerializationError:
            body = None
        if body is None or address.kind == "pool" or (left is not None and left <= 0):  # Nobody can send to a pool.
            give_back("no copy of it can be sent to another server")
            return

        def on_outcome(error: BaseException | None) -> None:
            if error is not None:
                give_back(error)
                return
            # It is not remembered: the copy may come here, if the server starts again.
            self._calls.finish(call, done=True, remember=False)

        seconds = max(self._grace, 1.0)
        copy = Message(body, message.content_type, message.id, left, message.durable, seconds)
        end = Loop.now() + seconds
        self._transport.send(address, copy, mandatory=True, until=end, on_outcome=on_outcome)

    def give_up_too_late(self, call: ServerCall) -> None:
        """Give up a cast that raised, and whose deadline has passed before it was run again."""
        self.give_up_waiting(call, f"{call.failure[0]}; {TOO_LATE}")

    def give_up_waiting(self, call: ServerCall, reason: str) -> None:
        """Give up a cast that does not run now. In a context of its own: the hook is the user's."""

        def give_up() -> None:
            current.running.set(call)
            self.give_up(call, reason, call.attempts, call.failure[1])

        self._context.copy().run(give_up)

    def give_up(self, call: ServerCall, reason: str, attempts: int, traceback: Sequence[str]) -> None:
        """Give a cast up: send it to the dead letters (if the message system stores them), the log and the hook.

        In the context of the cast, since the hook is the user's code.
        """
        call.waits = True
        LOG.error(
            "%r (%s) to %s is given up after %d attempts: %s",
            call.request.method,
            call.request.unique_id,
            call.delivery.address,
            attempts,
            reason,
        )
        self._dead_letters.send(call, reason, attempts, traceback, lambda: self._calls.finish(call, done=True))
