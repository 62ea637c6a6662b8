"""NotificationDispatcher: which methods of which endpoints get a notification."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from msgbus.awaitables import is_async
from msgbus.endpoints import check_endpoint, check_endpoints
from msgbus.message import Request
from msgbus.notify.filter import NotificationFilter
from msgbus.notify.notification import PRIORITIES, Notification, notification_of
from msgbus.serializer import NoOpSerializer, Serializer, check_serializer

ARGUMENTS = ("ctxt", "publisher_id", "event_type", "payload", "metadata")
"""What an endpoint's method is called with; that of a batch listener with a list alone."""
_OF_BATCHES = ("notifications",)


class Callback(NamedTuple):
    """A method of an endpoint.

    Attributes:
        name: of it, for logs.
        method: is called.
        is_async: has to be awaited.
        rule: which notifications it gets; None means all of its level.
    """

    name: str
    method: Callable[..., Any]
    is_async: bool
    rule: NotificationFilter | None

    def accepts(self, notification: Notification) -> bool:
        """Whether it gets a notification of its level."""
        return self.rule is None or self.rule.match(notification)


class NotificationDispatcher:
    """Finds the methods for notifications. Thread-safe.

    An endpoint is an object with a method for each level that it wants, called as ``info(ctxt, publisher_id,
    event_type, payload, metadata)``; of a batch listener ``info(notifications)``. Its attribute ``filter_rule``, if it
    has one, is a `NotificationFilter`.

    Attributes:
        asynchronous: methods may be ``async``.
        priorities: the levels that any endpoint has a method for.
    """

    def __init__(
        self, endpoints: Sequence[object], serializer: Serializer | None, *, asynchronous: bool | None, batches: bool
    ) -> None:
        """Check and keep the endpoints; `asynchronous`: methods may be ``async``; None means as they are.

        Raises:
            TypeError: an endpoint has no method for any level, or one that cannot be called with a notification, or one
                that is ``async`` where that may not be; or its filter is no `NotificationFilter`.
        """
        self._serializer = serializer or NoOpSerializer()
        check_serializer(self._serializer)
        self._arguments = _OF_BATCHES if batches else ARGUMENTS
        self._callbacks: dict[str, list[Callback]] = {}
        check_endpoints(endpoints)
        for endpoint in endpoints:
            self._add(endpoint)
        if not self._callbacks:
            raise TypeError("there is no endpoint: nothing would be listened to")
        found = [callback for callbacks in self._callbacks.values() for callback in callbacks if callback.is_async]
        if found and asynchronous is False:
            raise TypeError(
                f"{found[0].name} is async, and this listener runs methods on threads, without awaiting them: use "
                "executor='asyncio', or make it a plain one"
            )
        self.asynchronous = bool(found) if asynchronous is None else asynchronous
        self.priorities = [priority for priority in PRIORITIES if priority in self._callbacks]

    def _add(self, endpoint: object) -> None:
        check_endpoint(endpoint)
        cls = type(endpoint).__qualname__
        rule = getattr(endpoint, "filter_rule", None)
        if not isinstance(rule, NotificationFilter | None):
            raise TypeError(f"filter_rule of {cls} has to be a NotificationFilter, not {rule!r}")
        found = False
        for priority in PRIORITIES:
            method = getattr(endpoint, priority, None)
            if not callable(method):
                continue
            self._check_signature(f"{cls}.{priority}", method)
            callback = Callback(f"{cls}.{priority}", method, is_async(method), rule)
            self._callbacks.setdefault(priority, []).append(callback)
            found = True
        if not found:
            raise TypeError(f"{cls} has a method for no level: {', '.join(PRIORITIES)}{_meant(endpoint)}")

    def _check_signature(self, name: str, method: Callable[..., Any]) -> None:
        try:
            signature = inspect.signature(method)
        except (TypeError, ValueError):  # It is not written in Python, and has no signature to read.
            return
        try:
            signature.bind(*self._arguments)
        except TypeError as exc:
            raise TypeError(f"{name} is called as ({', '.join(self._arguments)}): {exc}") from None

    def read(self, request: Request) -> Notification:
        """A notification that came, as endpoints get it. Raises what the serializer raises."""
        serializer, message = self._serializer, request.args
        if type(serializer) is NoOpSerializer:
            return notification_of(message, request.context, message.get("payload"))
        ctxt = serializer.deserialize_context(request.context)
        return notification_of(message, ctxt, serializer.deserialize_entity(ctxt, message.get("payload")))

    def callbacks_of(self, priority: str) -> Sequence[Callback]:
        """The methods for a level, in the order of the endpoints."""
        return self._callbacks.get(priority, ())


def _meant(endpoint: object) -> str:
    """A hint at the method that may be meant for a level."""
    names = [name for name in dir(endpoint) if not name.startswith("_")]
    for name in names:
        if near := difflib.get_close_matches(name, PRIORITIES, n=1):
            return f" (did you mean {near[0]} by {name}?)"
    return ""
