"""The driver that oslo.messaging uses: `MsgbusDriver`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from oslo_config import cfg
from oslo_messaging import exceptions
from oslo_messaging._drivers import base, common
from oslo_serialization import jsonutils

from msgbus import MessageUndeliverable, MessagingException
from msgbus.foreign import get_logger
from msgbus.lowlevel import (
    FOREVER,
    JSON,
    Address,
    Capability,
    Message,
    new_id,
    now,
    open_transport,
)
from msgbus.oslo.errors import translated
from msgbus.oslo.incoming import CONTEXT, Incoming, IncomingNotification, Replies, can_requeue
from msgbus.oslo.listener import Listener, Run
from msgbus.oslo.settings import read_settings

if TYPE_CHECKING:
    from msgbus_oslo import Hub

LOG = get_logger(__name__)

CAST_PATIENCE = 10.0
"""Seconds for which a cast is tried that nobody listens for: its server may be restarting."""


class MsgbusDriver(base.BaseDriver):  # type: ignore[misc]  # oslo.messaging has no types
    """Sends and receives for oslo.messaging, over a message system of msgbus."""

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        url: Any,
        default_exchange: str | None = None,
        allowed_remote_exmods: list[str] | None = None,
        hub: Hub | None = None,
    ) -> None:
        """Read the settings. Nothing is connected yet.

        Args:
            conf: the service's configuration.
            url: a transport URL of oslo.messaging.
            default_exchange: of targets that name none.
            allowed_remote_exmods: modules whose exceptions may be rebuilt here.
            hub: of eventlet, if this program has green threads.

        Raises:
            RuntimeError: a setting is wrong, or the driver of msgbus cannot be loaded. oslo.messaging makes a
                `DriverLoadFailure` of it.
        """
        super().__init__(conf, url, default_exchange, allowed_remote_exmods)
        make_waiter = None
        if hub is not None:
            from msgbus.oslo.green import make_waiter as make_green_waiter

            make_waiter = partial(make_green_waiter, hub)
        try:
            self._settings = read_settings(conf, url)
            # The core's options are not registered on the service's configuration: some have the names of
            # oslo.messaging's own, which may be registered later, and would differ.
            self.transport = open_transport(self._settings.url, driver_conf=conf, make_waiter=make_waiter)
        except (MessagingException, ValueError, cfg.Error) as exc:
            raise RuntimeError(str(exc)) from exc
        self._hub = hub
        self._run: Run = call if hub is None else hub.run_soon
        self._stores = Capability.STORAGE in self.transport.driver.capabilities
        self._replies = Replies(self.transport, self._settings.reply_timeout)
        self._unread: set[Address] = set()  # topics of notifications that nobody has read

    def require_features(self, requeue: bool = False) -> None:
        """Check what the message system can do.

        Raises:
            NotImplementedError: it takes no messages back, and `requeue` asks for that.
        """
        if requeue and not can_requeue(self.transport):
            raise NotImplementedError(f"{self.transport.driver.state} takes no messages back")

    # Sending

    def send(
        self,
        target: Any,
        ctxt: Any,
        message: dict[str, Any],
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        call_monitor_timeout: float | None = None,
        retry: int | None = None,
        transport_options: Any = None,
    ) -> Any:
        """Send a request, and wait for the reply if there is to be one; see oslo.messaging's ``BaseDriver``."""
        deadline = FOREVER if timeout is None else now() + timeout
        at_least_once = transport_options is not None and bool(transport_options.at_least_once)
        try:
            if wait_for_reply:
                return self._call(target, ctxt, message, deadline, call_monitor_timeout, retry, at_least_once)
            return self._cast(target, ctxt, message, deadline, retry, at_least_once)
        except MessagingException as exc:
            # Nobody there is no error, unless that was asked for: then the caller's time is over.
            timed_out = wait_for_reply and not at_least_once and isinstance(exc, MessageUndeliverable)
            error = translated(exc, target, self._exchange(target), timed_out=bool(timed_out or now() >= deadline))
            raise error from exc

    def _call(
        self,
        target: Any,
        ctxt: Any,
        message: dict[str, Any],
        deadline: float,
        monitor: float | None,
        retry: int | None,
        at_least_once: bool,
    ) -> Any:
        method = str(message.get("method"))
        send_timeout = self._send_timeout(retry)
        send_until = deadline if send_timeout is None else min(deadline, now() + send_timeout)
        inbox = self.transport.inbox(send_until, f"a call of {method!r}")
        call_id = new_id()
        body = _pack(message, ctxt, _msg_id=call_id, _reply_q=inbox, _timeout=monitor, _unique_id=new_id())
        ttl = None if deadline == FOREVER else max(deadline - now(), 0.001)
        reply = self.transport.call(
            self._address(target),
            Message(body, JSON, call_id, ttl, send_timeout=send_timeout),
            call_id=call_id,
            deadline=deadline,
            method=method,
            monitor=monitor,
            wait_for_server=not at_least_once,
        )
        if reply.failure:
            raise common.deserialize_remote_exception(reply.failure, self._allowed_remote_exmods)
        return reply.result

    def _cast(
        self, target: Any, ctxt: Any, message: dict[str, Any], deadline: float, retry: int | None, at_least_once: bool
    ) -> None:
        unique_id = new_id()
        address = self._address(target)
        body = _pack(message, ctxt, _unique_id=unique_id)
        send_timeout = self._send_timeout(retry)
        if send_timeout is not None:
            deadline = min(deadline, now() + send_timeout)
        out = Message(body, JSON, unique_id, durable=not target.fanout, send_timeout=send_timeout)
        if at_least_once or target.fanout:
            mandatory = not target.fanout
            self.transport.send_and_wait(address, out, deadline, what="a cast to", mandatory=mandatory, repeat=True)
            return

        def on_lost(error: BaseException) -> None:
            LOG.warning("a cast of %r to %s is lost: %s", message.get("method"), address, error)

        self.transport.cast(address, out, deadline, keep_trying=CAST_PATIENCE, on_lost=on_lost)

    def send_notification(
        self, target: Any, ctxt: Any, message: dict[str, Any], version: float, retry: int | None = None
    ) -> None:
        """Send a notification. Where the message system stores messages, it is kept until somebody reads it."""
        unique_id = new_id()
        exchange, topic = self._exchange(target), target.topic
        address = Address("stored", exchange, topic) if self._stores else Address("topic", exchange, topic)
        body = _pack(message, ctxt, envelope=version >= 2.0, _unique_id=unique_id)
        send_timeout = self._send_timeout(retry)
        out = Message(body, JSON, unique_id, durable=True, send_timeout=send_timeout)
        deadline = FOREVER if send_timeout is None else now() + send_timeout
        try:
            self.transport.send_and_wait(address, out, deadline, what="a notification to", mandatory=True, repeat=True)
        except MessageUndeliverable as exc:
            if self._stores:
                raise translated(exc, target, exchange) from exc
            if address not in self._unread:
                self._unread.add(address)
                LOG.warning(
                    "nobody reads notifications to %s, and %s stores none: they are lost. This is said once",
                    address,
                    self.transport.driver.state,
                )
        except MessagingException as exc:
            raise translated(exc, target, exchange) from exc

    def _send_timeout(self, retry: int | None) -> float | None:
        """Seconds in which a message has to be sent, for a number of retries; None: for as long as it takes."""
        return None if retry is None or retry < 0 else (1 + retry) * self._settings.retry_interval

    def _exchange(self, target: Any) -> str:
        return target.exchange or self._default_exchange or "openstack"

    def _address(self, target: Any) -> Address:
        if target.fanout:
            return Address("fanout", self._exchange(target), target.topic)
        if target.server:
            return Address("server", self._exchange(target), target.topic, target.server)
        return Address("topic", self._exchange(target), target.topic)

    # Listening

    def listen(self, target: Any, batch_size: int | None, batch_timeout: float | None) -> Listener:
        """Listen to a topic, as one of its servers."""
        exchange, topic, server = self._exchange(target), target.topic, target.server
        addresses = [
            Address("topic", exchange, topic),
            Address("server", exchange, topic, server),
            Address("fanout", exchange, topic, server),
        ]
        if not self._settings.stock_names:
            # Services also send to the topic TOPIC.SERVER, which a stock oslo.messaging does not tell from the server.
            addresses.append(Address("topic", exchange, f"{topic}.{server}"))
        return self._listen(addresses, Incoming, batch_size, batch_timeout)

    def listen_for_notifications(
        self,
        targets_and_priorities: Iterable[tuple[Any, str]],
        pool: str | None,
        batch_size: int | None,
        batch_timeout: float | None,
    ) -> Listener:
        """Listen to notifications of some topics and priorities, alone or as one of a pool."""
        addresses: dict[Address, None] = {}
        for target, priority in targets_and_priorities:
            exchange, topic = self._exchange(target), f"{target.topic}.{priority}"
            address = Address("pool", exchange, topic, name=pool) if pool else Address("topic", exchange, topic)
            addresses[address] = None
        return self._listen(list(addresses), IncomingNotification, batch_size, batch_timeout)

    def _listen(
        self, addresses: list[Address], kind: type[Incoming], batch_size: int | None, batch_timeout: float | None
    ) -> Listener:
        listener = Listener(
            self.transport, self._replies, kind, self._settings.prefetch, batch_size, batch_timeout, self._run
        )
        if self._hub is not None:
            self._hub.start()
        try:
            listener.listen(addresses)
        except MessagingException as exc:
            # Not a TransportDriverError: oslo.messaging 18.3 fails itself when it reports one.
            raise exceptions.MessagingException(f"cannot listen: {exc}") from exc
        return listener

    def cleanup(self) -> None:
        """Close everything. Those who still wait get an error."""
        if self._hub is not None and self._hub.is_here:
            self._hub.run_native(self.transport.cleanup)
        else:
            self.transport.cleanup()


def call(func: Callable[..., object], *args: Any) -> None:
    """Call a function on this thread."""
    func(*args)


def _pack(message: dict[str, Any], ctxt: Any, *, envelope: bool = True, **more: Any) -> bytes:
    """Write a request or notification, with its context and the keys of the wire."""
    context = ctxt if isinstance(ctxt, dict) else ctxt.to_dict()
    payload = {**message, **more, **{f"{CONTEXT}{name}": value for name, value in context.items()}}
    return bytes(jsonutils.dump_as_bytes(common.serialize_msg(payload) if envelope else payload))
