"""Processor: runs one delivery after another as the delivery policy of each says.

================================== ============================================ ===================================
what happens                       at_most_once                                 at_least_once
================================== ============================================ ===================================
it is accepted                     before it runs                               after its answer is safe
it may have run before             not run: a call is declined, a cast given up run
the same id comes again here       dropped                                      waits for the outcome of the first
a cast raises                      logged                                       run again, then given up
================================== ============================================ ===================================

What is given up goes to the dead letters, the log and the server's hook.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import Any

from msgbus import current
from msgbus import deadline as inherited
from msgbus.awaitables import refuse_async, refuse_awaitable
from msgbus.closing import end_child
from msgbus.current import ServerContext
from msgbus.dispatcher import ExpectedException, RPCDispatcher, each_plain
from msgbus.drivers.base import Address, Capability, Delivery, Message
from msgbus.exceptions import (
    InvalidTarget,
    MessageDeliveryFailure,
    MessageTooLarge,
    MessageUndeliverable,
    MessagingException,
    RPCDispatcherError,
    SerializationError,
)
from msgbus.foreign import get_logger, name_of, printable, printable_lines, text_of, traceback_of
from msgbus.forking import fork_count
from msgbus.message import (
    AT_LEAST_ONCE,
    JSON,
    POLICIES,
    DeadLetter,
    Request,
    UnacceptableRequest,
    decode_request,
    encode_dead_letter,
    with_attempts,
)
from msgbus.running import Running
from msgbus.transport import Transport

LOG = get_logger(__name__)

TICK = 0.1
"""Seconds between two looks at the running requests, for signs of life that are due."""
KNOWN_REQUESTS = 10_000
"""How many requests a server remembers, in order not to run one a second time."""
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a cast that raised is run again: the first, second, third time; then always the last."""

OnDeadLetter = Callable[[DeadLetter], None]


class Work:
    """A request that is being run, its delivery, and the server that runs it.

    Attributes:
        attempts: how often it was begun before, here and elsewhere, as far as that is known.
        failure: of a cast that is to be run again, what it raised last: the reason and the traceback.
        running: of a call that is not over, what answers it.
        cancelled: the client had given up a call that is over.
    """

    __slots__ = (
        "accepted",
        "at_least_once",
        "attempts",
        "cancelled",
        "deadline",
        "delivery",
        "done",
        "failure",
        "request",
        "running",
        "server",
    )

    def __init__(
        self, server: str, delivery: Delivery, request: Request, deadline: float | None, at_least_once: bool
    ) -> None:
        self.server = server
        self.delivery = delivery
        self.request = request
        self.deadline = deadline
        self.at_least_once = at_least_once
        self.accepted = not at_least_once
        self.attempts = _attempts_before(request, delivery)
        self.failure: tuple[str, list[str]] = ("", [])
        self.running: Running | None = None
        self.cancelled = False
        self.done = False


class _Known:
    """The requests that were begun here, by id, and further deliveries of those that are not done yet. Thread-safe."""

    def __init__(self) -> None:
        self._unfinished: dict[str, list[Delivery]] = {}
        self._done: OrderedDict[str, bool] = OrderedDict()  # with whether the client is known to have the answer
        self._lock = threading.Lock()

    def begin(self, unique_id: str, *, again: bool = False) -> bool:
        """Whether the request is new, or is done and has to be run `again` since its client has no answer."""
        with self._lock:
            if unique_id in self._unfinished:
                return False
            if unique_id in self._done:
                if self._done[unique_id] or not again:
                    return False
                del self._done[unique_id]
            self._unfinished[unique_id] = []
            return True

    def wait(self, unique_id: str, delivery: Delivery) -> bool:
        """Have a further delivery wait for the outcome of the first. False: that is done with."""
        with self._lock:
            waiting = self._unfinished.get(unique_id)
            if waiting is None:
                return False
            waiting.append(delivery)
            return True

    def end(self, unique_id: str, *, done: bool, confirmed: bool = False) -> list[Delivery]:
        """The request is done, or is to be forgotten. Returns what waited for that.

        `confirmed`: the client has said that it has the answer, or wants none.
        """
        with self._lock:
            waiting = self._unfinished.pop(unique_id, None)
            if waiting is None:
                return []
            if done:
                self._done[unique_id] = confirmed
                if len(self._done) > KNOWN_REQUESTS:
                    self._done.popitem(last=False)
            return waiting


class Processor:
    """See the module's text. Thread-safe: `process` runs on many threads at once."""

    def __init__(
        self,
        transport: Transport,
        server: str,
        dispatcher: RPCDispatcher,
        on_dead_letter: OnDeadLetter | None,
        run_again: Callable[[Work], bool],
    ) -> None:
        """`run_again` has a cast run once more; it says False where the server is stopping.

        Raises:
            TypeError: `on_dead_letter` is ``async``.
        """
        refuse_async("on_dead_letter", on_dead_letter)
        self._transport = transport
        self._server = server
        self._dispatcher = dispatcher
        self._on_dead_letter = on_dead_letter
        self._run_again = run_again
        self._policy: str = transport.option("rpc_delivery")
        self._grace: float = transport.option("rpc_reply_grace")
        self._cast_retries: int = transport.option("rpc_cast_retries")
        self._forks = fork_count()
        self._known = _Known()
        self._running: set[Running] = set()
        self._ticking = False
        self._tick_lock = threading.Lock()
        self._unfinished: set[object] = set()
        self._finished = threading.Condition()
        self._waiting = False
        self._here = threading.local()  # what each thread runs
        self._held: set[Work] = set()  # casts that raised, until they are run again
        self._stopping = False
        self.start()

    def start(self) -> None:
        """The server starts: requests run in copies of the context of whoever calls this."""
        self._context = ServerContext()
        self._stopping = False

    def stop(self) -> None:
        """The server stops: casts that wait to be run again are passed on to others, now and from now on."""
        self._stopping = True
        for work in list(self._held):
            self._end_hold(work)

    # What is unfinished

    def begin(self, token: object) -> None:
        """Something has to be finished before the server may go."""
        self._unfinished.add(token)

    def end(self, token: object) -> None:
        """It is finished."""
        self._unfinished.discard(token)
        if self._waiting:
            with self._finished:
                self._finished.notify_all()

    def wait(self, timeout: float | None) -> int:
        """Wait until nothing is unfinished but what calls this; returns how much is after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        own = {getattr(self._here, "work", None)}
        with self._finished:
            self._waiting = True
            # Without its transport nothing can be finished any more; that it closes is looked at now and then.
            while self._unfinished - own and not self._transport.closed:
                left = 1.0 if end is None else min(1.0, end - time.monotonic())
                if left <= 0:
                    break
                self._finished.wait(left)
        return len(self._unfinished - own)

    # One delivery

    def process(self, work: Delivery | Work) -> None:
        """Run a delivery, or a cast again that raised. On a worker's thread."""
        if isinstance(work, Work):
            message = work.delivery.message
            # Read anew: the method may have changed its arguments before it raised.
            work.request = decode_request(message.body, message.content_type)
            self._in_context(work, self._run_cast)
            return
        request = self._read(work)
        if request is None:
            return
        left = time_left(request, work)
        if left is not None and left <= 0:
            LOG.info("%r (%s) came after its deadline and was not run", request.method, request.unique_id)
            work.accept()
            return
        at_least_once = self.policy_of(request) == AT_LEAST_ONCE
        again = at_least_once and request.hints is not None and request.hints.again
        if request.unique_id and not self._known.begin(request.unique_id, again=again):
            LOG.info("%r (%s) has come a second time and was not run again", request.method, request.unique_id)
            if not self._known.wait(request.unique_id, work):
                work.accept()
            return
        deadline = None if left is None else time.monotonic() + left
        self._in_context(Work(self._server, work, request, deadline, at_least_once), self._run)

    def _in_context(self, work: Work, func: Callable[[Work], None]) -> None:
        """Have `func` run a request in a context of its own, which has the request and its deadline in it.

        All of the user's code runs there: serializers, the access policy, the method, each step of a generator, and the
        hook for dead letters.
        """
        self._here.work = work
        try:
            self._context.run(self._enter, work, func)
        finally:
            self._here.work = None

    def _enter(self, work: Work, func: Callable[[Work], None]) -> None:
        current.work.set(work)
        inherited.current.set(work.deadline)
        self._finish(work, func)

    def _finish(self, work: Work, run: Callable[[Work], None]) -> None:
        """Run a request. Whatever is raised that nobody foresaw, its delivery is settled: else prefetch is lost."""
        try:
            run(work)
        except BaseException:
            LOG.exception("%r (%s) is given up after an error", work.request.method, work.request.unique_id)
            self._settle(work, done=True)

    def _read(self, delivery: Delivery) -> Request | None:
        message = delivery.message
        try:
            request = decode_request(message.body, message.content_type)
        except UnacceptableRequest as exc:
            LOG.error("a request to %s was refused: %s", delivery.address, exc)
            delivery.accept()
            self._refuse(delivery, exc)
            return None
        except Exception as exc:  # Also what the codec's library raises and nobody foresaw: it would come again.
            LOG.error("a message to %s was dropped: %s", delivery.address, exc)
            delivery.accept()
            return None
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("received %s: %r by %s", request.unique_id, request.method, delivery.address)
        return request

    def _refuse(self, delivery: Delivery, exc: UnacceptableRequest) -> None:
        """Tell a client that its request is not acceptable, where it can be told."""
        request = exc.request
        if request.call_id is None or request.reply_to is None:
            return
        if request.hints is not None:
            request.hints.confirms = False  # This answer is sent once.
        running = Running(
            self._transport,
            self._server,
            request,
            delivery.message.content_type,
            durable=False,
            grace=self._grace,
            deadline=None,
            on_end=lambda _running, _error: None,
        )
        try:
            running.failure(SerializationError(str(exc)))
        except MessagingException as error:
            LOG.error("the answer to it cannot be sent: %s", error)

    def policy_of(self, request: Request) -> str:
        """The sender's delivery policy, or the server's where it does not say."""
        hints = request.hints
        return hints.policy if hints is not None and hints.policy in POLICIES else self._policy

    def _run(self, work: Work) -> None:
        request, delivery = work.request, work.delivery
        self.begin(work)
        running = None
        if request.call_id is not None and request.reply_to is not None:
            running = Running(
                self._transport,
                self._server,
                request,
                delivery.message.content_type,
                durable=work.at_least_once,
                grace=self._grace,
                deadline=work.deadline,
                on_end=lambda running, error: self._end_call(work, running, error),
            )
            work.running = running
        if not work.at_least_once:
            if delivery.redelivered:
                self._decline(work, running)
                return
            if not delivery.accept():
                # The message system will deliver it again, and it is given up there.
                LOG.warning("%r (%s) was not run: its connection was lost", request.method, request.unique_id)
                if running is not None:
                    running.decline()
                for other in self._known.end(request.unique_id, done=False):
                    other.reject(requeue=True)  # It is no duplicate, but what is to be declined or given up.
                self.end(work)
                return
        if running is not None:
            self._run_call(work, running)
        else:
            self._run_cast(work)

    def _settle(self, work: Work, *, done: bool, remember: bool = True, confirmed: bool = False) -> None:
        """The end of a request: it is done, or whoever gets it next has to run it.

        One that is not to be remembered is run if it ever comes here again.
        """
        self._end_if_forked(None)  # A generator may have forked too.
        if work.done:
            return
        work.done = True
        done = done or work.accepted
        others = self._known.end(work.request.unique_id, done=done and remember, confirmed=confirmed)
        for delivery in others if work.accepted else (work.delivery, *others):
            try:
                if done:
                    delivery.accept()
                else:
                    delivery.reject(requeue=True)
            except Exception:  # The others have to be settled too.
                LOG.exception("a delivery of %r (%s) could not be settled", work.request.method, work.request.unique_id)
        self.end(work)

    def _decline(self, work: Work, running: Running | None) -> None:
        """Not run what may have run before."""
        request = work.request
        LOG.warning("%r (%s) may have run before and is not run again", request.method, request.unique_id)
        if running is None:
            self._bury(work, "it may have run before, since a server or connection was lost; at_most_once", 1, [])
        else:
            running.decline()
            work.accepted = False
            self._settle(work, done=True)

    # Calls

    def _run_call(self, work: Work, running: Running) -> None:
        request = work.request
        call_id = request.call_id or ""
        self._running.add(running)
        # A peer that uses one id for two requests at a time tells only the later one anything.
        self._transport.running[call_id] = running
        if not self._ticking:
            self._start_ticking()
        try:
            result = self._dispatch(work)
            if request.window is not None:
                if not work.accepted:
                    work.accepted = work.delivery.accept()  # A stream is never started again elsewhere.
                items = each_plain(request.method, result) if isinstance(result, Generator) else _only(result)
                work.deadline = _end_of_stream(work)
                inherited.current.set(work.deadline)
                running.stream(items)
            elif isinstance(result, Generator):
                running.result(_last_of(each_plain(request.method, result), running))
            else:
                running.result(result)
        except ExpectedException as exc:
            LOG.debug("%r raised what it is expected to", request.method, exc_info=True)
            self._answer_with(exc.exc_info[1] or exc, work, running)
        except (RPCDispatcherError, SerializationError) as exc:
            LOG.error("%r (call %s): %s", request.method, call_id, exc)
            self._answer_with(exc, work, running)
        except BaseException as exc:  # sys.exit() too: somebody waits for the answer
            LOG.exception("%r (call %s) raised", request.method, call_id)
            self._answer_with(exc, work, running)
        finally:
            if not running.is_unconfirmed:
                self._forget(running)

    def _answer_with(self, exc: BaseException, work: Work, running: Running) -> None:
        """Answer a call with an exception; where not even that can be sent, end it."""
        try:
            running.failure(exc)
        except BaseException as error:
            LOG.exception("the answer to %r (call %s) cannot be sent", work.request.method, work.request.call_id)
            self._end_call(work, running, error)

    def _forget(self, running: Running) -> None:
        """The client has nothing more to say of a call, nor is to be told anything."""
        self._running.discard(running)
        call_id = running.request.call_id or ""
        if self._transport.running.get(call_id) is running:
            self._transport.running.pop(call_id, None)

    def _end_call(self, work: Work, running: Running, error: BaseException | None) -> None:
        """The client has its answer, or cannot be given it."""
        work.cancelled, work.running = running.cancelled, None  # The two hold each other: memory is freed at once so.
        self._forget(running)
        self._settle(work, done=error is None or _nobody_else_can(error), confirmed=running.confirmed)

    def _dispatch(self, work: Work) -> Any:
        try:
            result = self._dispatcher.dispatch(work.request)
        except BaseException as exc:
            self._end_if_forked(exc)
            raise
        self._end_if_forked(None)
        refuse_awaitable(f"the method {work.request.method!r} returned", result)  # The dispatcher may be anybody's.
        return result

    def _end_if_forked(self, error: BaseException | None) -> None:
        """A method forked, and the child has left it: the request is the parent's, to answer and to settle."""
        if self._forks != fork_count():
            end_child(error)

    def _tick(self) -> None:
        """Show life to the clients that wait. Goes on for as long as something runs."""
        now = time.monotonic()
        for running in list(self._running):
            try:
                running.show_life(now)
            except Exception:  # The others are to be shown life too, and the next time comes.
                LOG.exception("no sign of life could be sent to a client")
        self._ticking = False
        if self._running:  # Looked at last: what comes from now on sees that nothing ticks.
            self._start_ticking()

    def _start_ticking(self) -> None:
        with self._tick_lock:
            if self._ticking:
                return
            self._ticking = True
        self._transport.loop.call_later(TICK, self._tick)

    # Casts

    def _run_cast(self, work: Work) -> None:
        request = work.request
        try:
            result = self._dispatch(work)
            if isinstance(result, Generator):
                _last_of(each_plain(request.method, result), None)
        except ExpectedException:
            LOG.debug("the cast %r raised what it is expected to", request.method, exc_info=True)
        except BaseException as exc:  # sys.exit() too: it has to be settled
            if work.at_least_once:
                self._run_again_or_bury(work, exc)
                return
            if isinstance(exc, RPCDispatcherError):
                LOG.error("the cast %r (%s): %s", request.method, request.unique_id, exc)
            else:
                LOG.exception("the cast %r (%s) raised", request.method, request.unique_id)
        self._settle(work, done=True)

    def _run_again_or_bury(self, work: Work, exc: BaseException) -> None:
        request = work.request
        work.attempts += 1
        work.failure = f"{name_of(type(exc))}: {text_of(exc)}", traceback_of(exc)
        if work.attempts > self._cast_retries or isinstance(exc, RPCDispatcherError | SerializationError):
            self._bury(work, work.failure[0], work.attempts, work.failure[1])
            return
        delay = RETRY_DELAYS[min(work.attempts, len(RETRY_DELAYS)) - 1]
        if work.deadline is not None and time.monotonic() + delay >= work.deadline:
            reason = f"{work.failure[0]}; its deadline passes before it could be run again"
            self._bury(work, reason, work.attempts, work.failure[1])
            return
        LOG.warning(
            "the cast %r (%s) raised %r, and is run again in %g s", request.method, request.unique_id, exc, delay
        )
        self._held.add(work)
        if self._stopping:  # Looked at last: what was held before, `stop` has found.
            self._end_hold(work)
        else:
            self._transport.loop.call_later(delay, lambda: self._end_hold(work))

    def _end_hold(self, work: Work) -> None:
        try:
            self._held.remove(work)
        except KeyError:
            return  # The server has stopped meanwhile, and somebody else has it.
        self.again(work)

    def again(self, work: Work) -> None:
        """Run a cast again, or pass it on where the server is stopping."""
        if self._stopping or not self._run_again(work):
            self._pass_on(work)

    def _pass_on(self, work: Work) -> None:
        """Let another server run a cast that raised here.

        A copy goes, which says how often it was begun. Where none can be sent the message itself is given back: then
        nobody knows more of it than that it was handed over before.
        """
        address, message = work.delivery.address, work.delivery.message
        if address.kind == "fanout":  # It is this server's alone, and goes with it.
            reason = f"the server was stopped before it could be run again; it had raised {work.failure[0]}"
            self._in_context(work, lambda work: self._bury(work, reason, work.attempts, work.failure[1]))
            return
        left = time_left(work.request, work.delivery)
        try:
            body = with_attempts(message.body, message.content_type, work.attempts)
        except SerializationError:
            body = None
        if body is None or address.kind == "pool" or (left is not None and left <= 0):  # To a pool nobody can send.
            self._settle(work, done=False)
            return

        def on_outcome(error: BaseException | None) -> None:
            if error is not None:
                LOG.info("the cast %r (%s) is given back: %s", work.request.method, work.request.unique_id, error)
            # It is not remembered: the copy may come here, if the server starts again.
            self._settle(work, done=error is None, remember=False)

        end = time.monotonic() + max(self._grace, 1.0)
        copy = Message(body, message.content_type, message.id, left, message.durable, max(self._grace, 1.0))
        self._transport.send_until(end, address, copy, mandatory=True, on_outcome=on_outcome)

    # Dead letters

    def _bury(self, work: Work, reason: str, attempts: int, tb: list[str]) -> None:
        """Give a request up: to the dead letters' address where the message system stores, and to the log and hook."""
        delivery, message = work.delivery, work.delivery.message
        letter = DeadLetter(
            printable(reason),
            printable(str(delivery.address)),
            self._server,
            attempts,
            time.time(),
            printable_lines("".join(tb)).splitlines(keepends=True),
            printable(message.content_type),
            message.body,
            delivery.address.kind,
        )
        LOG.error(
            "%r (%s) to %s is given up after %d attempts: %s",
            work.request.method,
            work.request.unique_id,
            delivery.address,
            attempts,
            reason,
        )
        if self._on_dead_letter is not None:
            try:
                refuse_awaitable("the hook returned", self._on_dead_letter(letter))
            except BaseException:  # sys.exit() too: it has to be settled
                LOG.exception("the hook for dead letters raised")
        work.accepted = False
        if Capability.STORE not in self._transport.driver.capabilities:
            self._settle(work, done=True)
            return

        def on_outcome(error: BaseException | None) -> None:
            if error is not None:
                LOG.error("the dead letter of %s could not be stored, this line is all of it: %s", message.id, error)
            self._settle(work, done=True)  # In no case is it run again.

        end = time.monotonic() + max(self._grace, 1.0)
        dead = Address("dead", delivery.address.exchange, delivery.address.topic)
        try:
            buried = Message(encode_dead_letter(letter), JSON, message.id, None, durable=True)
            self._transport.send_until(end, dead, buried, mandatory=False, on_outcome=on_outcome)
        except Exception as exc:
            on_outcome(exc)


def _attempts_before(request: Request, delivery: Delivery) -> int:
    """How often a request was begun by other servers, as far as that is known.

    One that stopped in good order has said so in the request. Of one that was lost only its delivery is known.
    """
    passed_on = 0 if request.hints is None else request.hints.attempts
    return passed_on + max(delivery.attempts or 0, int(delivery.redelivered))


def time_left(request: Request, delivery: Delivery) -> float | None:
    """Seconds that are left to a request, or None where nobody said.

    Where the message system does not tell how long it kept the message, the sender's wall clock may shorten the time;
    but clocks differ, so that alone never lets a request expire. How long it has been here since is known.
    """
    hints, ttl = request.hints, delivery.message.ttl
    here = time.monotonic() - delivery.arrived
    if hints is None or hints.ttl is None:
        return None if ttl is None else ttl - here
    if ttl is not None:
        return min(ttl, hints.ttl) - here
    if hints.at is None:
        return hints.ttl - here
    queued = max(0.0, time.time() - here - hints.at)
    return max(hints.ttl - queued, min(hints.ttl, 1.0)) - here


def _nobody_else_can(error: BaseException) -> bool:
    """Whether an answer could not be delivered for a reason that another server, running it again, would meet too."""
    hopeless = isinstance(error, InvalidTarget | MessageTooLarge | MessageUndeliverable)
    return hopeless or type(error) is MessageDeliveryFailure  # it cannot be written for this message system


def _end_of_stream(work: Work) -> float | None:
    """The deadline of a whole stream: the one that came with its request was for the first item."""
    hints = work.request.hints
    if work.deadline is None or hints is None or hints.ttl is None or hints.end is None:
        return None
    return work.deadline + hints.end - hints.ttl


def _last_of(items: Generator[Any, Any, Any], running: Running | None) -> Any:
    """Run a generator for a client that wants one value: the last."""
    last = None
    try:
        for item in items:
            last = item
            if running is not None and running.cancelled:
                break
    finally:
        items.close()
    return last


def _only(value: Any) -> Generator[Any, None, None]:
    yield value
