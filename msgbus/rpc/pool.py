"""PoolConsumer: passes the messages of a pool to a callback unchanged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from msgbus import current
from msgbus import deadline as inherited
from msgbus.awaitables import refuse_awaitable
from msgbus.base_listener import STOP_TIMEOUT, process_name
from msgbus.current import RunningRequest, ServerContext
from msgbus.deadline import wait_for
from msgbus.drivers.base import Address, Delivery, Subscription
from msgbus.drivers.toolkit.loop import Loop
from msgbus.encoding import context_of, take_metadata, with_context
from msgbus.exceptions import MessagingException, SerializationError
from msgbus.executor import Executor
from msgbus.foreign import get_logger
from msgbus.interceptors import InterceptedRequest, Interceptor, Once, chain
from msgbus.message import Request
from msgbus.payload import Payload, decode
from msgbus.target import Target
from msgbus.transport import Transport
from msgbus.widening import WideSubscription

LOG = get_logger(__name__)

RETRY_DELAY = 1.0
"""Seconds until the callback is called again for a message for which it raised. Without a delay it would spin."""

Callback = Callable[[dict[str, Any]], object]


class PoolConsumer:
    """See `Connection.join_consumer_pool`. `start`, `stop` and `wait` are called in that order."""

    def __init__(
        self,
        transport: Transport,
        address: Address,
        callback: Callback,
        ack_on_error: bool,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self._transport = transport
        self._address = address
        self._callback = callback
        self._ack_on_error = ack_on_error
        self._interceptors = interceptors
        self._subscription: Subscription | None = None
        self._stopping = False
        self._lock = threading.Lock()
        self._paused = 0  # How many messages wait to be tried again.
        self._context = ServerContext()
        self._server = process_name()
        self._executor: Executor[Delivery] = Executor(
            transport.option("executor_thread_pool_size"),
            self._run,
            f"msgbus-{address.topic}",
            transport.loop,
        )

    def start(self, timeout: float | None = None) -> None:
        """Begin to consume; returns when messages will arrive. If it raises, `wait` has to be called.

        Raises:
            MessagingException: as for `RPCServer.start`.
        """
        option, driver = self._transport.option, self._transport.driver
        end = Loop.now() + (option("rpc_response_timeout") if timeout is None else timeout)
        prefetch = option("rpc_prefetch")
        subscribe = partial(driver.subscribe, [self._address], self._executor.submit, prefetch=prefetch)
        subscription = subscribe() if self._ack_on_error else WideSubscription(subscribe, prefetch)
        self._subscription = subscription
        wait_for(self._transport.loop, subscription.ready, end, f"{self._address} cannot be consumed from", driver)

    def stop(self) -> None:
        """Take no more messages, and give back those that no thread has begun."""
        self._stopping = True
        if self._subscription is None:
            return
        try:
            self._subscription.stop().result(STOP_TIMEOUT)
        except (MessagingException, TimeoutError) as exc:
            LOG.warning("%s: the message system did not confirm that it has stopped delivering: %r", self._address, exc)
        for delivery in self._executor.take_backlog():
            delivery.reject(requeue=True)

    def wait(self, timeout: float | None = None) -> int:
        """Let running callbacks finish, then unsubscribe. Returns how many still ran after `timeout` seconds.

        Messages that wait to be tried again are given back.
        """
        if self._subscription is None:
            return 0
        running = self._executor.close(timeout)
        if running:
            LOG.warning("%s: %d messages were abandoned after %s s", self._address, running, timeout)
        try:
            self._subscription.close().result(STOP_TIMEOUT)
        except (MessagingException, TimeoutError) as exc:
            LOG.warning("%s: the subscription could not be closed cleanly: %r", self._address, exc)
        self._subscription = None
        return running

    def _run(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            payload = decode(message.body, message.content_type)
        except SerializationError as exc:
            LOG.error("a message to %s was dropped: %s", delivery.address, exc)
            delivery.accept()
            return
        LOG.debug("received %s by %s", message.id, delivery.address)
        try:
            self._context.copy().run(self._call, delivery, payload)
        except BaseException:  # sys.exit() too: the message has to be acknowledged
            if not self._ack_on_error:
                LOG.exception("message %s to %s raised, and is tried again", message.id, delivery.address)
                self._pause(delivery)
                return
            LOG.exception("message %s to %s raised, and is dropped", message.id, delivery.address)
        delivery.accept()

    def _call(self, delivery: Delivery, payload: Payload) -> None:
        """Call the callback, in a context of its own as for a request's method."""
        unique_id = payload.get("_unique_id")
        request_id = unique_id if isinstance(unique_id, str) else delivery.message.id
        metadata = take_metadata(payload)
        request = Request("", unique_id=request_id, context=context_of(payload))
        running = RunningRequest(self._server, delivery, request, None, at_least_once=True)
        running.metadata = metadata
        current.running.set(running)
        inherited.current.set(None)
        if self._interceptors:
            self._intercept(running, payload)
        else:
            refuse_awaitable("the callback returned", self._callback(payload))

    def _intercept(self, running: RunningRequest, payload: Payload) -> None:
        """Call the callback by way of the interceptors: they see the message as its sender's do."""
        once, context = Once(), running.request.context

        def last(request: InterceptedRequest) -> None:
            once.use("a notification")
            running.request.context, running.metadata = request.context, request.metadata
            refuse_awaitable("the callback returned", self._callback(with_context(request.args, request.context)))

        target = Target(exchange=self._address.exchange or None, topic=self._address.topic)
        args = with_context(payload, {})
        request = InterceptedRequest("notification", "", target, context, args, running.metadata or {}, running)
        try:
            chain(self._interceptors, last)(request)
        finally:
            once.end()

    def _pause(self, delivery: Delivery) -> None:
        """Have the callback called again for a message in a while. Others come meanwhile."""
        with self._lock:
            self._paused += 1
            paused = self._paused
        self._transport.loop.call_later(RETRY_DELAY, lambda: self._try_again(delivery))
        subscription = self._subscription
        if isinstance(subscription, WideSubscription):
            subscription.widen_for(paused)

    def _try_again(self, delivery: Delivery) -> None:
        with self._lock:
            self._paused -= 1
        # It is not given back meanwhile: RabbitMQ 4 drops a message that was given back twenty times.
        if self._stopping:
            delivery.reject(requeue=True)
        else:
            self._executor.submit(delivery)
