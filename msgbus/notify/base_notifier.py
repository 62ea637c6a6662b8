"""BaseNotifier: what the notifiers for threads and for asyncio have in common: all that does not wait."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any, TypeGuard, TypeVar

from msgbus.base_transport import BaseTransport
from msgbus.drivers.base import Capability
from msgbus.exceptions import InvalidTarget, MessageTooLarge, MessageUndeliverable, SerializationError
from msgbus.foreign import get_logger
from msgbus.interceptors import checked_interceptors
from msgbus.notify.driver import NotificationDriver, load_notification_driver
from msgbus.notify.notification import make_message
from msgbus.notify.options import read_notification_option
from msgbus.serializer import NoOpSerializer, Serializer, check_serializer
from msgbus.target import Target

LOG = get_logger(__name__)

_UNSET: Any = object()
_FAULTS = (SerializationError, InvalidTarget, MessageTooLarge)
"""The caller's: they are raised. All else is the message system's, and logged."""
Own = TypeVar("Own", bound="BaseNotifier")


class BaseNotifier:
    """See `msgbus.Notifier`, whose arguments these are.

    Attributes:
        asynchronous: its methods are awaited, and its interceptors are ``async``.
    """

    asynchronous = False

    def __init__(
        self,
        transport: BaseTransport,
        publisher_id: str | None = None,
        driver: str | Sequence[str] | None = None,
        serializer: Serializer | None = None,
        retry: int | None = None,
        topics: Sequence[str] | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        self.transport = transport
        self.publisher_id = _checked_publisher(publisher_id)
        self.retry = _checked_retry(read_notification_option(transport.conf, "retry") if retry is None else retry)
        self._serializer = serializer or NoOpSerializer()
        check_serializer(self._serializer)
        found = _checked_topics(read_notification_option(transport.conf, "topics") if topics is None else topics)
        interceptors = checked_interceptors(interceptors, asynchronous=self.asynchronous, owner="this notifier")
        names = read_notification_option(transport.conf, "driver") if driver is None else driver
        self._drivers = {
            name: load_notification_driver(name)(transport.conf, list(found), transport, interceptors)
            for name in _checked_drivers(names)
        }
        self._unheard: set[str] = set()  # levels that nobody has listened to

    def __repr__(self) -> str:
        drivers = ", ".join(self._drivers) or "no driver"
        return f"<{type(self).__name__} {self.publisher_id!r}, by {drivers}, over {self.transport}>"

    def prepare(self: Own, publisher_id: str | None = _UNSET, retry: int | None = _UNSET) -> Own:
        """Return a notifier with another publisher, or another number of retries; the rest is the same.

        Args:
            publisher_id: who sends, for example ``"compute.host1"``.
            retry: as for the constructor; None means the option.

        Raises:
            ValueError, TypeError: as for the constructor.
        """
        prepared = copy.copy(self)
        if publisher_id is not _UNSET:
            prepared.publisher_id = _checked_publisher(publisher_id)
        if retry is not _UNSET:
            prepared.retry = _checked_retry(
                read_notification_option(self.transport.conf, "retry") if retry is None else retry
            )
        return prepared

    def is_enabled(self) -> bool:
        """Whether any driver sends anything; without one, or with ``noop`` alone, payloads need not be made."""
        return any(not driver.is_silent for driver in self._drivers.values())

    def _prepared(
        self, ctxt: Any, event_type: str, payload: Any, priority: str
    ) -> tuple[dict[str, Any], dict[str, Any], Sequence[NotificationDriver]]:
        """The context and the message as plain data, and the drivers that send it.

        Raises:
            TypeError, SerializationError: they cannot be sent.
        """
        if isinstance(ctxt, str):
            raise TypeError(
                f"the caller's context is missing, which comes before the event's type: ({{}}, {ctxt!r}, …)"
            )
        context, entity = self._serialized(ctxt, payload)
        message = make_message(self.publisher_id, event_type, entity, priority)
        chosen: dict[NotificationDriver, None] = {}
        for driver in self._drivers.values():
            chosen |= dict.fromkeys(driver.chosen_for(message, priority))
        return context, message, list(chosen)

    def _serialized(self, ctxt: Any, payload: Any) -> tuple[dict[str, Any], Any]:
        entity = self._serializer.serialize_entity(ctxt, payload)
        # oslo.context has this for contexts that others may read: without the token and the like.
        redacted = getattr(ctxt, "redacted_copy", None)
        return self._serializer.serialize_context(ctxt if redacted is None else redacted()), entity

    def _fault_of(self, message: dict[str, Any], error: Exception, known: Exception | None) -> Exception | None:
        """What of a driver's error the caller has to know: its own fault. Anything else is logged.

        `known` is a fault that was found before. Then the caller gets that one, and another one is logged too.
        """
        errors = error.exceptions if isinstance(error, ExceptionGroup) else [error]  # a group: of several topics
        unheard = [one for one in errors if self._is_unheard(one)]
        if unheard:
            self._note_unheard(message["priority"], "; ".join(map(str, unheard)))
        for one in errors:
            if known is None and isinstance(one, _FAULTS):
                known = one
            elif one not in unheard and str(one) != str(known):
                LOG.error("a notification of %s (%s) was not sent: %r", message["event_type"], message["priority"], one)
        return known

    def _is_unheard(self, error: Exception) -> bool:
        """Whether nobody listens, and nothing is stored."""
        nobody = isinstance(error, MessageUndeliverable) or isinstance(error.__cause__, MessageUndeliverable)
        return nobody and Capability.STORAGE not in self.transport.driver.capabilities

    def _note_unheard(self, priority: str, why: str) -> None:
        """That nobody listens may well be meant so, and is said once for each level."""
        if priority in self._unheard:
            LOG.debug("nobody listens to notifications of the level %s: %s", priority, why)
            return
        self._unheard.add(priority)
        LOG.warning(
            "nobody listens to notifications of the level %s, and this message system keeps none, so that they are "
            "dropped (further ones are logged at the level debug): %s",
            priority,
            why,
        )


def _checked_topics(topics: Any) -> Collection[str]:
    if isinstance(topics, str) or not _has_names(topics):
        raise TypeError(f"topics is a list of names: ['notifications'], not {topics!r}")
    for topic in topics:
        Target(topic=topic)
        Target(topic=f"{topic}.critical")  # the longest that is made of it
    return topics


def _checked_drivers(names: Any) -> Collection[str]:
    if isinstance(names, str):
        return [names]
    if not _has_names(names):
        raise TypeError(f"driver is the name of a driver, or a list of such, not {names!r}")
    return dict.fromkeys(names)


def _has_names(names: Any) -> TypeGuard[Collection[str]]:
    return isinstance(names, Collection) and all(isinstance(name, str) for name in names)


def _checked_retry(retry: object) -> int:
    if isinstance(retry, bool) or not isinstance(retry, int) or retry < -1:
        raise ValueError(f"retry is a number of further tries, 0 or more, or -1 for as many as it takes, not {retry!r}")
    return retry


def _checked_publisher(publisher_id: object) -> str | None:
    if not isinstance(publisher_id, str | None):
        raise TypeError(f"publisher_id is a string, not {publisher_id!r}")
    return publisher_id
