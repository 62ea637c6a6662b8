"""RPCServer: takes requests from the message system, has them run, and keeps to the delivery policy of each."""

from __future__ import annotations

import contextvars
import logging
import os
import socket
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from importlib.metadata import version
from typing import Any

from msgbus import deadline as inherited
from msgbus.dispatcher import ExpectedException, RPCAccessPolicyBase, RPCDispatcher
from msgbus.drivers.base import Address, Capability, Delivery, Message, Subscription
from msgbus.exceptions import InvalidTarget, MessagingException, RPCDispatcherError, SerializationError
from msgbus.executor import Executor
from msgbus.message import (
    AT_LEAST_ONCE,
    JSON,
    PING_NAMESPACE,
    POLICIES,
    DeadLetter,
    Request,
    decode,
    decode_request,
    encode_dead_letter,
)
from msgbus.running import Running
from msgbus.serializer import Serializer
from msgbus.target import Target
from msgbus.transport import Transport, wait_for

LOG = logging.getLogger(__name__)

TICK = 0.1
"""Seconds between two looks at the running requests, for signs of life that are due."""
KNOWN_REQUESTS = 10_000
"""How many requests a server remembers, in order not to run one a second time."""
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a cast that raised is run again: the first, second, third time; then always the last."""
STOP_TIMEOUT = 5.0
"""Seconds for the message system to say that it delivers no more."""


def get_rpc_server(
    transport: Transport,
    target: Target,
    endpoints: Sequence[object],
    executor: str | None = None,
    serializer: Serializer | None = None,
    access_policy: type[RPCAccessPolicyBase] | None = None,
    on_dead_letter: Callable[[DeadLetter], None] | None = None,
) -> RPCServer:
    """Make a server. It serves once it is started.

    Args:
        transport: where it listens.
        target: its topic and its name (``server``).
        endpoints: whose methods it runs; see `RPCDispatcher`.
        executor: None or ``"threading"``: each request runs on a thread of a pool.
        serializer: undoes on arguments and context what the client's did, and the other way round with results.
        access_policy: which methods may be called; a subclass of `RPCAccessPolicyBase`.
        on_dead_letter: called with each message that is given up, besides the log and the dead letters' address.

    Raises:
        InvalidTarget: topic or server is missing.
        TypeError: an endpoint or the policy is of no use.
        ValueError: an executor that does not exist.
    """
    if executor not in (None, "threading"):
        raise ValueError(f"there is no executor {executor!r}; there is 'threading'")
    return RPCServer(transport, target, RPCDispatcher(endpoints, serializer, access_policy), on_dead_letter)


class _Ping:
    """The endpoint that answers `RPCClient.ping`."""

    target = Target(namespace=PING_NAMESPACE)

    def __init__(self, target: Target) -> None:
        self._answer = {
            "server": target.server,
            "topic": target.topic,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": version("msgbus"),
        }

    def ping(self, _ctxt: object) -> dict[str, Any]:
        """Say who this is."""
        return self._answer


class _Cast:
    """A cast that is being run, for the first time or again after it raised."""

    __slots__ = ("at_least_once", "attempts", "deadline", "delivery", "request")

    def __init__(self, delivery: Delivery, request: Request, deadline: float | None, at_least_once: bool) -> None:
        self.delivery = delivery
        self.request = request
        self.deadline = deadline
        self.at_least_once = at_least_once
        self.attempts = 0


class RPCServer:
    """Serves a topic: as any one of its servers, as the one of its name, and as one of all.

    `start`, `stop` and `wait` may be called from any thread, in that order.
    """

    def __init__(
        self,
        transport: Transport,
        target: Target,
        dispatcher: RPCDispatcher,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> None:
        if not target.topic or not target.server:
            raise InvalidTarget("a server's target needs a topic and a server", target)
        self.transport = transport
        self.target = target
        self.dispatcher = dispatcher
        conf = transport.conf
        if conf.rpc_ping_enabled:
            dispatcher.add_endpoint(_Ping(target))
        self._on_dead_letter = on_dead_letter
        self._policy: str = conf.rpc_delivery
        self._grace: float = conf.rpc_reply_grace
        self._cast_retries: int = conf.rpc_cast_retries
        self._state = threading.Condition()
        self._subscription: Subscription | None = None
        self._executor: Executor[Delivery | _Cast] | None = None
        self._stopping = False
        # The ids of requests; those that are not done yet with further deliveries of the same.
        self._known: OrderedDict[str, list[Delivery] | None] = OrderedDict()
        self._knowing = threading.Lock()
        self._running: dict[str, Running] = {}
        self._open: set[Future[Any]] = set()  # answers and dead letters that are on their way
        self._ticking = False

    def start(self, timeout: float | None = None) -> None:
        """Begin to serve; returns when requests will arrive. On a server that runs already: nothing.

        Args:
            timeout: seconds to wait for the message system; None means the option ``rpc_response_timeout``.

        Raises:
            TransportUnavailable: it could not be reached in that time.
            MessagingException: it refuses, for example for want of rights.
        """
        with self._state:
            if self._subscription is not None:
                return
            self._stopping = False
            conf, transport = self.transport.conf, self.transport
            end = time.monotonic() + (conf.rpc_response_timeout if timeout is None else timeout)
            transport.inbox(end)
            topic = transport.address(self.target(server=None, fanout=None))
            name = self.target.server or ""
            addresses = [topic, topic._replace(kind="server", server=name), topic._replace(kind="fanout", server=name)]
            self._executor = Executor(conf.executor_thread_pool_size, self._process, f"msgbus-{self.target.topic}")
            # The deliveries hold a thread each; the executor may queue those for which there is none.
            subscription = transport.driver.subscribe(addresses, self._executor.submit, prefetch=conf.rpc_prefetch)
            try:
                wait_for(subscription.ready, end, f"{self.target} cannot listen on {transport.driver.state}")
            except BaseException:
                subscription.close()
                self._executor.close(0)
                raise
            self._subscription = subscription
        LOG.info("server %s of topic %s serves on %s", name, self.target.topic, transport.driver.state)

    def stop(self) -> None:
        """Take no new requests, and give back those that no thread has begun. What runs goes on: see `wait`."""
        with self._state:
            if self._subscription is None or self._stopping or self._executor is None:
                return
            self._stopping = True
            try:
                self._subscription.stop().result(STOP_TIMEOUT)
            except (MessagingException, TimeoutError) as exc:
                LOG.warning("%s: the message system did not say that it delivers no more: %s", self.target, exc)
            for work in self._executor.take_backlog():
                if isinstance(work, _Cast):
                    self._submit_again(work)
                else:
                    self._hand_back(work)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until what runs has finished and is answered, then let go of the message system.

        Args:
            timeout: seconds; None means as long as it takes.

        Returns:
            how many requests were abandoned since they were still running or unanswered.
        """
        self.stop()
        end = None if timeout is None else time.monotonic() + timeout
        with self._state:
            if self._subscription is None or self._executor is None:
                return 0
            abandoned = self._executor.close(timeout)
            for future in list(self._open):
                try:
                    future.exception(None if end is None else max(0.0, end - time.monotonic()))
                except TimeoutError:
                    abandoned += 1
            try:
                self._subscription.close().result(STOP_TIMEOUT)
            except (MessagingException, TimeoutError) as exc:
                LOG.warning("%s: the message system did not take its leave: %s", self.target, exc)
            self._subscription = self._executor = None
        if abandoned:
            LOG.warning("%s: %d requests were abandoned after %s s", self.target, abandoned, timeout)
        return abandoned

    def reset(self) -> None:
        """Nothing: it is here for callers of oslo.messaging's interface."""

    def _hand_back(self, delivery: Delivery) -> None:
        """Let another server have what has not begun here."""
        message = delivery.message
        try:
            request = decode_request(decode(message.body, message.content_type))
        except SerializationError:
            self._process(delivery)  # It is of no use to others either; this says so in the log.
            return
        if delivery.address.kind == "fanout" or delivery.redelivered:
            self._process(delivery)  # It is this server's alone, or must be treated as one that may have run.
        elif self._policy_of(request) == AT_LEAST_ONCE:
            delivery.reject(requeue=True)
        else:
            # A message that was handed back would look like one that may have run. So a fresh copy goes.
            left = _time_left(request, message, time.monotonic())
            copy = Message(message.body, message.content_type, message.id, left, message.durable)
            sent = self.transport.send(delivery.address, copy, mandatory=False)
            sent.add_done_callback(
                lambda future: delivery.reject(requeue=True) if future.exception() else delivery.accept()
            )
            self._keep(sent)

    def _policy_of(self, request: Request) -> str:
        return request.policy if request.policy in POLICIES else self._policy

    def _keep(self, future: Future[Any]) -> None:
        self._open.add(future)
        future.add_done_callback(self._open.discard)

    def _process(self, work: Delivery | _Cast) -> None:
        """Run one delivery, on a worker's thread."""
        if isinstance(work, _Cast):
            self._run_cast(work)
            return
        delivery, message = work, work.message
        try:
            request = decode_request(decode(message.body, message.content_type))
        except SerializationError as exc:
            LOG.error("a message to %s was dropped: %s", delivery.address, exc)
            delivery.accept()
            return
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug("received %s: %r by %s", request.unique_id, request.method, delivery.address)
        now = time.monotonic()
        left = _time_left(request, message, now)
        if left is not None and left <= 0:
            LOG.info("%r (%s) came after its deadline and was not run", request.method, request.unique_id)
            delivery.accept()
            return
        at_least_once = self._policy_of(request) == AT_LEAST_ONCE
        if request.unique_id and not self._begin(request, delivery, wait=at_least_once):
            return
        deadline = None if left is None else now + left
        running = None
        if request.call_id is not None and request.reply_to is not None:
            running = Running(
                self.transport,
                self.target.server or "",
                request,
                message.content_type,
                durable=at_least_once,
                grace=self._grace,
                deadline=deadline,
            )
        if not at_least_once and not self._accept_first(delivery, request, running):
            self._settled(request, delivery, done=True)
        elif running is not None:
            self._run_call(delivery, running, deadline, at_least_once)
        else:
            self._run_cast(_Cast(delivery, request, deadline, at_least_once))

    def _begin(self, request: Request, delivery: Delivery, *, wait: bool) -> bool:
        """Whether a request is new here. Else its delivery is done with, or waits for the outcome of the one before."""
        with self._knowing:
            if request.unique_id not in self._known:
                self._known[request.unique_id] = []
                if len(self._known) > KNOWN_REQUESTS:
                    self._known.popitem(last=False)
                return True
            waiting = self._known[request.unique_id]
            if waiting is not None and wait:
                waiting.append(delivery)
        LOG.info("%r (%s) has come a second time and was not run again", request.method, request.unique_id)
        if waiting is None or not wait:
            delivery.accept()
        return False

    def _settled(self, request: Request, delivery: Delivery, *, done: bool, accepted: bool = True) -> None:
        """A request has come to its end: done, or to be run again by whoever gets it next."""
        with self._knowing:
            if done:
                waiting = self._known.get(request.unique_id)
                if request.unique_id in self._known:
                    self._known[request.unique_id] = None
            else:
                waiting = self._known.pop(request.unique_id, None)
        for each in waiting or () if accepted else (delivery, *(waiting or ())):
            if done:
                each.accept()
            else:
                each.reject(requeue=True)

    def _accept_first(self, delivery: Delivery, request: Request, running: Running | None) -> bool:
        """Accept before it runs, as at_most_once asks. False: it may have run before, and is not run."""
        if delivery.redelivered:
            self._decline(delivery, request, running)
            return False
        if delivery.accept():
            return True
        # The message system will deliver it again; a cast is given up where that happens, so that it is done once.
        LOG.warning("%r (%s) was not run: the connection that it came by was lost", request.method, request.unique_id)
        if running is not None:
            running.decline()
        return False

    def _decline(self, delivery: Delivery, request: Request, running: Running | None) -> None:
        """Not run what may have run before."""
        LOG.warning("%r (%s) may have run before and is not run again", request.method, request.unique_id)
        if running is not None:
            running.decline()
            delivery.accept()
        else:
            self._bury(delivery, "at_most_once, and it may have run before: a server or connection was lost", 1, [])

    def _run_call(self, delivery: Delivery, running: Running, deadline: float | None, at_least_once: bool) -> None:
        request = running.request
        call_id = request.call_id or ""
        self._running[call_id] = self.transport.running[call_id] = running
        if not self._ticking:
            self._ticking = True
            self.transport.timer.call_later(TICK, self._tick)
        accepted = not at_least_once
        try:
            result = self._dispatch(request, deadline)
            if request.window is not None:
                if not accepted:
                    accepted = delivery.accept()  # A stream is never started again elsewhere.
                items = result if isinstance(result, Generator) else _only(result)
                self._in_context(deadline, running.stream, items)
            elif isinstance(result, Generator):
                running.result(self._in_context(deadline, _last_of, result, running))
            else:
                running.result(result)
        except ExpectedException as exc:
            LOG.debug("%r raised what it is expected to", request.method, exc_info=True)
            running.failure(exc.exc_info[1] or exc)
        except (RPCDispatcherError, SerializationError) as exc:
            LOG.error("%r (call %s): %s", request.method, call_id, exc)
            running.failure(exc)
        except Exception as exc:
            LOG.exception("%r (call %s) raised", request.method, call_id)
            running.failure(exc)
        finally:
            self._running.pop(call_id, None)
            self.transport.running.pop(call_id, None)
            answered = running.stream_done or running.answered
            if answered is None:
                self._settled(request, delivery, done=True, accepted=accepted)
            else:
                self._keep(answered)
                # Until the answer is safe the request is not done: should it get lost, the next one has to give it.
                answered.add_done_callback(
                    lambda sent: self._settled(
                        request, delivery, done=accepted or sent.exception() is None, accepted=accepted
                    )
                )

    def _dispatch(self, request: Request, deadline: float | None) -> Any:
        token = inherited.current.set(deadline)
        try:
            return self.dispatcher.dispatch(request)
        finally:
            inherited.current.reset(token)

    def _in_context(self, deadline: float | None, func: Callable[..., Any], *args: Any) -> Any:
        """Run what iterates over a generator: its code is the handler's, and inherits the deadline too."""

        def run() -> Any:
            inherited.current.set(deadline)
            return func(*args)

        return contextvars.copy_context().run(run)

    def _run_cast(self, cast: _Cast) -> None:
        request = cast.request
        try:
            result = self._dispatch(request, cast.deadline)
            if isinstance(result, Generator):
                self._in_context(cast.deadline, _last_of, result, None)
        except ExpectedException:
            LOG.debug("the cast %r raised what it is expected to", request.method, exc_info=True)
        except Exception as exc:
            if cast.at_least_once:
                self._run_again_or_bury(cast, exc)
                return
            if isinstance(exc, RPCDispatcherError):
                LOG.error("the cast %r (%s): %s", request.method, request.unique_id, exc)
            else:
                LOG.exception("the cast %r (%s) raised", request.method, request.unique_id)
        self._settled(request, cast.delivery, done=True, accepted=not cast.at_least_once)

    def _run_again_or_bury(self, cast: _Cast, exc: Exception) -> None:
        request, delivery = cast.request, cast.delivery
        cast.attempts = max(cast.attempts, delivery.attempts or 0) + 1
        if cast.attempts > self._cast_retries or isinstance(exc, RPCDispatcherError | SerializationError):
            self._bury(delivery, f"{type(exc).__name__}: {exc}", cast.attempts, traceback.format_exception(exc))
            self._settled(request, delivery, done=True)
            return
        delay = RETRY_DELAYS[min(cast.attempts, len(RETRY_DELAYS)) - 1]
        LOG.warning(
            "the cast %r (%s) raised %r, and is run again in %g s", request.method, request.unique_id, exc, delay
        )
        self.transport.timer.call_later(delay, lambda: self._submit_again(cast))

    def _submit_again(self, cast: _Cast) -> None:
        if self._stopping or self._executor is None:
            self._settled(cast.request, cast.delivery, done=False, accepted=False)
        else:
            self._executor.submit(cast)

    def _bury(self, delivery: Delivery, reason: str, attempts: int, tb: list[str]) -> None:
        """Give a message up: to the dead letters' address where the message system stores, and to the log and hook."""
        message = delivery.message
        letter = DeadLetter(
            reason,
            str(delivery.address),
            self.target.server or "",
            attempts,
            time.time(),
            tb,
            message.content_type,
            message.body,
        )
        LOG.error("message %s to %s is given up after %d attempts: %s", message.id, delivery.address, attempts, reason)
        if self._on_dead_letter is not None:
            self._on_dead_letter(letter)
        if Capability.STORE not in self.transport.driver.capabilities:
            delivery.accept()
            return
        dead = Address("dead", delivery.address.exchange, delivery.address.topic)
        buried = Message(encode_dead_letter(letter), JSON, message.id, None, durable=True)
        sent = self.transport.send(dead, buried, mandatory=False)
        sent.add_done_callback(
            lambda future: delivery.reject(requeue=True) if future.exception() else delivery.accept()
        )
        self._keep(sent)

    def _tick(self) -> None:
        """Show life to the clients that wait. Goes on for as long as something runs."""
        now = time.monotonic()
        for running in list(self._running.values()):
            try:
                running.show_life(now)
            except MessagingException:
                LOG.exception("no sign of life could be sent to a client")
        self._ticking = bool(self._running)
        if self._ticking:
            self.transport.timer.call_later(TICK, self._tick)


def _time_left(request: Request, message: Message, now: float) -> float | None:
    """Seconds that are left to a request, or None where nobody said.

    Where the message system does not tell how long it kept the message, the sender's wall clock may shorten the time;
    but clocks differ, so that alone never lets a request expire.
    """
    if message.ttl is not None:
        return message.ttl if request.ttl is None else min(message.ttl, request.ttl)
    if request.ttl is None or request.sent_at is None:
        return request.ttl
    queued = max(0.0, time.time() - request.sent_at)
    return max(request.ttl - queued, min(request.ttl, 1.0))


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
