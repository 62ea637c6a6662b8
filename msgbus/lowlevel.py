"""For those who build an RPC of their own on msgbus's message systems, over bytes that they have made themselves.

`RPCClient` and `RPCServer` write and read messages in msgbus's own way. This module leaves that out: it opens a
transport from plain values, sends and receives bytes, and waits for the reply to a request. Only what a reply looks
like is given: it is in oslo.messaging's envelope, with ``_msg_id``, ``result``, ``failure`` and ``ending`` (see
`Reply`), as JSON or msgpack. The driver of msgbus for oslo.messaging (`msgbus.oslo`) uses nothing else::

    transport = open_transport("rabbit://guest:guest@localhost/?topology=oslo")
    deadline = now() + 10
    call_id = new_id()
    body = write_request(call_id, reply_to=transport.inbox(deadline))
    address = Address("topic", "openstack", "images")
    reply = transport.call(address, Message(body, JSON, call_id, ttl=10), call_id=call_id, deadline=deadline)

Times are seconds of `now`, unless they are said to be durations.
"""

from __future__ import annotations

import difflib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from msgbus.base_transport import INSPECT_TIMEOUT, open_driver
from msgbus.client_call import ClientCall
from msgbus.deadline import wait_for
from msgbus.drivers.base import (
    Address,
    Capability,
    Delivery,
    Driver,
    Message,
    OnDelivery,
    QueueInfo,
    Sent,
    Subscription,
)
from msgbus.drivers.registry import load_driver_class
from msgbus.drivers.toolkit.futures import LightFuture, finish, forget_callback
from msgbus.drivers.toolkit.loop import FOREVER, Loop
from msgbus.exceptions import CallCancelled, ConfigurationError, MessageUndeliverable, MessagingTimeout
from msgbus.message import JSON, MSGPACK, Reply, new_id
from msgbus.patched import check_unpatched
from msgbus.pending import PendingCall
from msgbus.sending import OnOutcome
from msgbus.transport import Transport
from msgbus.url import TransportURL
from msgbus.widening import WideSubscription

if TYPE_CHECKING:
    from oslo_config import cfg

__all__ = [
    "FOREVER",
    "JSON",
    "MSGPACK",
    "Address",
    "Capability",
    "Delivery",
    "Message",
    "MessageTransport",
    "OnDelivery",
    "OnOutcome",
    "QueueInfo",
    "Reply",
    "Sent",
    "Subscription",
    "ThreadWaiter",
    "Waiter",
    "WideSubscription",
    "load_driver_class",
    "new_id",
    "now",
    "open_transport",
]

now = Loop.now
"""The present time, in the seconds in which deadlines are given here. Any thread."""


class Waiter(ABC):
    """How one thread waits, or what stands for a thread, such as a green thread.

    A waiter is made for each wait (see `open_transport`) and used by one thread, which enters it as a context manager
    before it sends what it is going to wait for. Only `wake` may be called by others.
    """

    def __enter__(self) -> Waiter:
        return self

    def __exit__(  # noqa: B027 - most have nothing to do
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """The wait is over."""

    @abstractmethod
    def wait(self, until: float) -> None:
        """Wait until `wake` is called, or `until`. If it was called before, return at once. It may return early."""

    @abstractmethod
    def wake(self) -> None:
        """End the wait, or the next one. Any thread, any number of times; it must not block."""


class ThreadWaiter(Waiter):
    """Waits by blocking the thread, which does the work of the transport's loop meanwhile, if no other does."""

    def __init__(self, loop: Loop) -> None:
        """`loop` is the transport's."""
        self._loop = loop
        self._ready = threading.Lock()
        self._ready.acquire()
        self._drives = False

    def __enter__(self) -> Waiter:
        self._drives = self._loop.take_turn()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._drives:
            self._loop.give_turn()

    def wait(self, until: float) -> None:
        """See `Waiter.wait`."""
        self._loop.wait(self._ready, until)

    def wake(self) -> None:
        """See `Waiter.wake`."""
        self._loop.wake(self._ready)


def open_transport(
    url: str | TransportURL,
    settings: Mapping[str, Any] | None = None,
    *,
    driver_conf: cfg.ConfigOpts | None = None,
    make_waiter: Callable[[Loop], Waiter] | None = None,
) -> MessageTransport:
    """Make a transport from plain values. Nothing is connected yet.

    Args:
        url: where the message system is. Options of the driver are in its query.
        settings: values of msgbus's options of group DEFAULT, by name, such as ``rpc_reply_grace``. No configuration
            file and no environment variable is read for them.
        driver_conf: where the driver's own group is registered and read, and nothing else: the configuration of a
            service. None: there are no settings of the driver but those in the URL.
        make_waiter: makes a waiter for each wait, given the transport's loop, in programs whose threads must not
            block. From then on the loop has a thread of its own. None: a `ThreadWaiter`.

    Raises:
        InvalidTransportURL: the URL cannot be read.
        DriverLoadFailure: the driver is unknown or cannot be loaded.
        ConfigurationError: a name in `settings`, or an option of the driver, is unknown, or a value is wrong; or
            gevent or eventlet has replaced the threads that msgbus uses.
    """
    from msgbus import configuration

    check_unpatched()
    conf = _conf_of(settings or {})
    configuration.check_core_options(conf)
    parsed = url if isinstance(url, TransportURL) else TransportURL.parse(conf, url)
    driver, loop = open_driver(conf if driver_conf is None else driver_conf, parsed, Loop)
    return MessageTransport(conf, parsed, driver, loop, make_waiter)


def _conf_of(settings: Mapping[str, Any]) -> cfg.ConfigOpts:
    """A configuration of its own, in which the core finds its settings."""
    from oslo_config import cfg

    from msgbus import configuration

    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[], use_env=False)
    configuration.register(conf)
    known = [opt.dest for opt in configuration.CORE_OPTS]
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigurationError(f"unknown setting {name!r}; {hint}")
        if value is None and conf[name] is not None:  # oslo.config checks any value but this one.
            raise ConfigurationError(f"setting {name}: it has no value; leave it out for its default")
        try:
            conf.set_override(name, value)
        except ValueError as exc:
            raise ConfigurationError(f"setting {name}: {configuration.in_words(exc)}") from None
    return conf


class _BytesCall(ClientCall):
    """A call whose request is not the core's own: it is repeated only if its outcome is unknown."""

    __slots__ = ()

    lost_answer = "the connection of this process was lost meanwhile, and the answer may have been lost with it"

    def send_bytes(self, message: Message, retry_undeliverable: float | None) -> None:
        """Send the request, again after each unknown outcome. `close` has to follow in any case.

        Args:
            message: the request.
            retry_undeliverable: as for `MessageTransport.send`.

        Raises:
            CallCancelled: the transport is closed.
        """
        pending = self.pending
        self._expect_replies()
        self.transport.send(
            pending.address,
            message,
            mandatory=True,
            until=pending.deadline,
            retry_undeliverable=retry_undeliverable,
            pending=pending,
            on_outcome=self._on_outcome,
        )


class MessageTransport(Transport):
    """A transport for bytes; `open_transport` makes it. Thread-safe; `cleanup` closes it.

    A forked child that inherits it connects anew when it uses it. Subscriptions and calls belong to the parent.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        url: TransportURL,
        driver: Driver,
        loop: Loop,
        make_waiter: Callable[[Loop], Waiter] | None,
    ) -> None:
        super().__init__(conf, url, driver, loop)
        self._make_waiter = make_waiter or ThreadWaiter
        if make_waiter is not None:
            loop.keep_thread()

    def wait_for(self, future: Future[Any], until: float) -> bool:
        """Wait until a future of the driver, or of `send`, is done, or `until`. Returns whether it is."""
        if future.done():
            return True
        waiter = self._make_waiter(self.loop)
        with waiter:
            return _wait_with(waiter, future, until)

    def call(
        self,
        address: Address,
        message: Message,
        *,
        call_id: str,
        deadline: float,
        method: str = "request",
        monitor: float | None = None,
        wait_for_server: bool = False,
    ) -> Reply:
        """Send a request, and wait for its reply.

        If it is unknown whether the message system has taken the request, it is sent again, as the same message: a
        server that gets it twice has to notice that by an id in the body.

        Args:
            address: where to; not a fanout.
            message: the request. Its body names the inbox (`inbox`) and `call_id`, under which the reply comes.
            call_id: names the call; see `new_id`.
            deadline: when the call ends.
            method: what is called, for errors and the log.
            monitor: seconds of silence after which the call ends: the server sends frames without ``ending`` meanwhile.
            wait_for_server: if nobody listens at the address, try until the deadline.

        Returns:
            the reply that has ended the call. If the server has failed, `Reply.failure` says how.

        Raises:
            MessageUndeliverable: nobody listens at the address.
            MessagingTimeout: no reply by the deadline, or no sign of life for `monitor` seconds.
            TransportUnavailable, TransportBlocked, MessageTooLarge, InvalidTarget: it could not be sent.
            SerializationError: the reply cannot be read.
            CallCancelled: the transport was closed, or the process forked.
        """
        pending = PendingCall(
            call_id,
            method,
            address,
            began=Loop.now(),
            deadline=deadline,
            grace=FOREVER,
            repeatable=False,
            monitor=monitor,
            allowed_modules=(),
        )
        waiter = self._make_waiter(self.loop)
        pending.wake = waiter.wake
        call = _BytesCall(self, pending, message.content_type, None)
        error: Exception | None = None
        with waiter:
            try:
                call.send_bytes(message, deadline if wait_for_server else None)
                while not pending.ready and error is None:
                    waiter.wait(pending.next_check())
                    if not pending.ready:
                        error = call.check()
            finally:
                call.close()
        if error is None:
            assert pending.answer is not None
            return pending.answer
        try:
            raise self._explained(call, error).with_traceback(None)  # Others may get the same error.
        finally:
            del error  # Its traceback refers to this frame.

    def _explained(self, call: ClientCall, error: Exception) -> Exception:
        """The error with which a call ends, with what is known of it if it has timed out."""
        if type(error) is not MessagingTimeout or Loop.now() < call.pending.deadline:
            return error
        return call.explain_timeout(self.inspect(call.pending.address, INSPECT_TIMEOUT))

    def cast(
        self,
        address: Address,
        message: Message,
        deadline: float,
        *,
        keep_trying: float,
        on_lost: Callable[[BaseException], None],
    ) -> None:
        """Send a message that may be for a server which is away for the moment.

        It returns when the message system has taken the message, or has said that nobody listens. In the latter case
        it goes on trying in the background: a message system that stores nothing would lose what is sent while a
        server restarts. It is sent again after an unknown outcome, as for `call`.

        Args:
            address: where to; not a fanout.
            message: what to send.
            deadline: until when to wait for the message system.
            keep_trying: seconds to go on trying if nobody listens.
            on_lost: called with the reason, on any thread, if that was in vain; it must not block.

        Raises:
            TransportUnavailable, TransportBlocked, MessageTooLarge, InvalidTarget: it could not be sent.
            CallCancelled: the transport is closed.
        """
        returned: Future[BaseException | None] = LightFuture()

        def on_outcome(error: BaseException | None) -> None:
            if not returned.done():
                finish(returned, error)
            elif error is not None:
                on_lost(error)

        def on_first_try(sent: Future[Sent]) -> None:
            if isinstance(sent.exception(), MessageUndeliverable):
                finish(returned)

        waiter = self._make_waiter(self.loop)
        with waiter:
            sent = self.send(
                address,
                message,
                mandatory=True,
                until=deadline,
                retry_undeliverable=Loop.now() + keep_trying,
                on_outcome=on_outcome,
            )
            sent.add_done_callback(on_first_try)
            known = _wait_with(waiter, returned, deadline + INSPECT_TIMEOUT)
        error = returned.result() if known else self.unconfirmed()
        if error is not None:
            raise self.about(address, error).with_traceback(None)

    def subscribe(
        self, addresses: Sequence[Address], on_delivery: OnDelivery, *, prefetch: int, deadline: float
    ) -> WideSubscription:
        """Consume from addresses. Returns when messages to all of them will be delivered.

        Args:
            addresses: of the kinds topic, server, fanout and pool.
            on_delivery: called with each `Delivery`, on any thread, one at a time until it is widened; it must not
                block. It may be called before this returns.
            prefetch: how many deliveries of each address may be neither accepted nor rejected, 1 or more.
            deadline: until when to wait for the message system.

        Returns:
            the subscription; wait for the futures of its ``stop`` and ``close`` with `wait_for`. If many deliveries are
            held for a while, its ``widen_for`` lets others come.

        Raises:
            TransportUnavailable: the message system could not be reached by the deadline.
            InvalidTarget: an address cannot be named on this message system.
            MessageDeliveryFailure: the message system refuses.
            CallCancelled: the transport is closed.
            ValueError: there is no address, or `prefetch` is less than 1.
        """
        if not addresses:
            raise ValueError("there is no address to consume from")
        if prefetch < 1:  # 0 is how drivers are told that a delivery counts as accepted when it comes.
            raise ValueError(f"prefetch is 1 or more, not {prefetch!r}")
        if self.closed:
            raise CallCancelled(self.closed_reason)
        subscribe = partial(self.driver.subscribe, addresses, on_delivery, prefetch=prefetch)
        subscription = WideSubscription(subscribe, prefetch)
        try:
            wait_for(self, subscription.ready, deadline, f"cannot consume from {addresses[0]}:", self.driver)
        except BaseException:
            subscription.close()
            raise
        return subscription


def _wait_with(waiter: Waiter, future: Future[Any], until: float) -> bool:
    """Wait until a future is done, or `until`. Returns whether it is."""

    def on_done(_future: Future[Any]) -> None:
        waiter.wake()

    future.add_done_callback(on_done)
    try:
        while not future.done() and Loop.now() < until:
            waiter.wait(until)
    finally:
        is_done = future.done()
        if not is_done:  # Many may wait, one after another, for what is never done.
            forget_callback(future, on_done)
    return is_done
