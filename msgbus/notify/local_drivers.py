"""The drivers that send no messages: log, noop, and test."""

from __future__ import annotations

import json
import logging
import re
import threading
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from msgbus.foreign import text_of
from msgbus.notify.driver import NotificationDriver

if TYPE_CHECKING:
    from msgbus.base_transport import BaseTransport

LOGGER = "msgbus.notification"
"""The loggers of the driver ``log`` are below this one: an event's type is the rest of the name."""
LEVELS = {"debug": logging.DEBUG, "warn": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}
"""The level of a record for each of a notification; of all others it is INFO."""
_SECRET = re.compile(
    r"passw|secret|token|auth_?key|private_?key|api_?key|credential|adminPass|admin_pass", re.IGNORECASE
)
"""A key of a payload that holds what nobody may read in a log."""
HIDDEN = "***"


class LogDriver(NotificationDriver):
    """The driver ``log``: a line of JSON in the log of this program.

    The logger is ``msgbus.notification.EVENT_TYPE``. Values whose keys look like those of a password or another secret
    are left out.
    """

    may_block = False

    def notify(self, ctxt: dict[str, Any], message: dict[str, Any], priority: str, retry: int) -> None:
        """See `NotificationDriver.notify`."""
        logger = logging.getLogger(f"{LOGGER}.{message['event_type']}")
        level = LEVELS.get(priority, logging.INFO)
        if logger.isEnabledFor(level):
            # ASCII, so that no text can forge a line.
            logger.log(level, "%s", json.dumps(without_secrets(message), default=text_of))


def without_secrets(value: Any) -> Any:
    """A copy of plain data, without what looks like a secret by its key."""
    if isinstance(value, dict):
        return {
            text_of(key): HIDDEN if _SECRET.search(text_of(key)) else without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return value


class NoopDriver(NotificationDriver):
    """The driver ``noop``: does nothing."""

    may_block = False
    is_silent = True

    def notify(self, ctxt: dict[str, Any], message: dict[str, Any], priority: str, retry: int) -> None:
        """Do nothing."""


class Recorded(NamedTuple):
    """A notification that the driver ``test`` has kept."""

    ctxt: dict[str, Any]
    message: dict[str, Any]
    priority: str
    retry: int


_recorded: WeakKeyDictionary[BaseTransport, list[Recorded]] = WeakKeyDictionary()
_changing = threading.Lock()


class RecordingDriver(NotificationDriver):
    """The driver ``test``: keeps notifications, for tests; see `recorded_notifications`."""

    may_block = False

    def notify(self, ctxt: dict[str, Any], message: dict[str, Any], priority: str, retry: int) -> None:
        """Keep it."""
        recorded_notifications(self.transport).append(Recorded(ctxt, message, priority, retry))


def recorded_notifications(transport: BaseTransport) -> list[Recorded]:
    """What the driver ``test`` has kept of a transport's notifications, in their order; the list may be changed.

    Each has the attributes ``ctxt``, ``message`` (a dict), ``priority`` and ``retry``.
    """
    with _changing:
        return _recorded.setdefault(transport, [])
