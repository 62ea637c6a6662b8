"""Notifier: says what has happened, for threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from msgbus.interceptors import Interceptor
from msgbus.notify.base_notifier import BaseNotifier
from msgbus.notify.driver import NotificationDriver
from msgbus.serializer import Serializer
from msgbus.transport import Transport, check_transport


class Notifier(BaseNotifier):
    """Says what has happened, to whoever listens. Thread-safe; cheap to `prepare`.

    ::

        notifier = Notifier(transport, publisher_id="orders.host1", driver="messagingv2")
        notifier.info({}, "order.created", {"id": 7})

    Each level is a method ``(ctxt, event_type, payload)``, and a topic of its own: ``notifications.info``. It returns
    when the message system has taken the notification. Where nobody has listened yet, the message system keeps it for
    the first listener, if it can store messages (`Capability.STORAGE`); else it is dropped, which a log line says.

    A notification that cannot be sent is an error in the log, and not for the caller: what it is about has happened in
    any case. What is wrong with the notification itself is raised. Every topic and every driver is tried, whatever
    fails. If several fail in a way that is raised, that is the first error, and the log has the others.

    Args:
        transport: where to; see `get_notification_transport`.
        publisher_id: who sends, for example ``"compute.host1"``.
        driver: how: ``"messagingv2"``, ``"messaging"``, ``"log"``, ``"routing"``, ``"test"``, ``"noop"``, the name of a
            plug-in, or a list of several; None means the option ``driver``.
        serializer: turns the context and payloads into plain data.
        retry: how often a notification is sent again if the message system did not take it: 0 or more; -1 means again
            and again; None the option ``retry``. In any case it is given up after ``rpc_response_timeout``.
        topics: where to, without the level; None means the option ``topics``.
        interceptors: functions ``(request, proceed)`` around each message that is sent, as for `RPCClient`.

    Raises:
        DriverLoadFailure: there is no such driver.
        ConfigurationError: an option is wrong; or there is no topic, and `driver` sends to topics.
        InvalidTarget: a topic is too long, or otherwise invalid.
        ValueError: an invalid number of retries.
        TypeError: an argument has another type.
    """

    transport: Transport

    def __init__(
        self,
        transport: Transport,
        publisher_id: str | None = None,
        driver: str | Sequence[str] | None = None,
        serializer: Serializer | None = None,
        retry: int | None = None,
        topics: Sequence[str] | None = None,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        check_transport(transport, "notifier")
        super().__init__(transport, publisher_id, driver, serializer, retry, topics, interceptors)

    def audit(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level audit; see `info`."""
        self._notify(ctxt, event_type, payload, "audit")

    def debug(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level debug; see `info`."""
        self._notify(ctxt, event_type, payload, "debug")

    def info(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level info.

        Args:
            ctxt: the caller's context: a dict, None, or an object that the serializer turns into a dict. Of one with a
                ``redacted_copy()``, as oslo.context has it, that is sent: without the token.
            event_type: what has happened, for example ``"order.created"``.
            payload: more about it: plain data, or what the serializer makes of it.

        Raises:
            SerializationError: the context or the payload holds a value that cannot be sent.
            MessageTooLarge: the notification is larger than the message system accepts.
            TypeError: `event_type` is not a string, or the context is missing.
        """
        self._notify(ctxt, event_type, payload, "info")

    def warn(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level warn; see `info`."""
        self._notify(ctxt, event_type, payload, "warn")

    warning = warn

    def error(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level error; see `info`."""
        self._notify(ctxt, event_type, payload, "error")

    def critical(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level critical; see `info`."""
        self._notify(ctxt, event_type, payload, "critical")

    def sample(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level sample, for what is said often, such as a measurement; see `info`."""
        self._notify(ctxt, event_type, payload, "sample")

    def _notify(self, ctxt: Any, event_type: str, payload: Any, priority: str) -> None:
        self._prepare_sending(ctxt, event_type, payload, priority)()

    def _prepare_sending(self, ctxt: Any, event_type: str, payload: Any, priority: str) -> Callable[[], None]:
        """What sends a notification, as it is now; for any thread, and for later."""
        return partial(self._send, *self._prepared(ctxt, event_type, payload, priority), priority)

    def _send(
        self, context: dict[str, Any], message: dict[str, Any], drivers: Sequence[NotificationDriver], priority: str
    ) -> None:
        fault: Exception | None = None
        for driver in drivers:
            try:
                driver.notify(context, message, priority, self.retry)
            except Exception as exc:  # The other drivers have to send it all the same.
                fault = self._fault_of(message, exc, fault)
        if fault is not None:
            raise fault
