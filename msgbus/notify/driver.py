"""NotificationDriver: one way to send notifications; a plug-in may add others. Loads them by name."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from msgbus.exceptions import DriverLoadFailure

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.base_transport import BaseTransport

DRIVERS = "msgbus.notify.drivers"
"""The entry point group that names the drivers of notifications."""


class NotificationDriver(ABC):
    """One way to send notifications. Thread-safe.

    Name a subclass in the entry point group ``msgbus.notify.drivers``; then the option ``driver`` of
    ``[oslo_messaging_notifications]``, or `Notifier`, can name it.

    Attributes:
        may_block: `notify` may wait for something. Then a notifier for asyncio calls it on a thread.
        is_silent: it sends nothing; see `Notifier.is_enabled`.
    """

    may_block: ClassVar[bool] = True
    is_silent: ClassVar[bool] = False

    def __init__(
        self, conf: cfg.ConfigOpts, topics: Sequence[str], transport: BaseTransport, interceptors: Sequence[Any] = ()
    ) -> None:
        """Keep what is needed to send.

        Args:
            conf: the configuration.
            topics: without the level.
            transport: what the notifier was given.
            interceptors: those of the notifier; they are for messages that are sent over the transport.

        Raises:
            ConfigurationError: an option is wrong.
        """
        self.conf = conf
        self.topics = topics
        self.transport = transport
        self.interceptors = interceptors

    @abstractmethod
    def notify(self, ctxt: dict[str, Any], message: dict[str, Any], priority: str, retry: int) -> None:
        """Send a notification, and return when it is sent. Any thread.

        The notifier logs what this raises, and goes on with its other drivers. It logs each error of an
        `ExceptionGroup`.

        Args:
            ctxt: the context, plain data.
            message: its keys are message_id, publisher_id, event_type, priority, payload and timestamp.
            priority: the level, in small letters.
            retry: how often it is sent again if it was not taken; -1: again and again.
        """

    def chosen_for(self, _message: dict[str, Any], _priority: str) -> Sequence[NotificationDriver]:
        """The drivers that send a notification for this one: itself, unless it only chooses others."""
        return (self,)


def notification_driver_names() -> list[str]:
    """The names of all drivers of notifications; none is imported for that. The first call reads files."""
    from stevedore import NamedExtensionManager  # slow to import

    return sorted({point.name for point in NamedExtensionManager(DRIVERS, names=[]).list_entry_points()})


def load_notification_driver(name: str) -> type[NotificationDriver]:
    """The class of the driver of that name.

    Raises:
        DriverLoadFailure: there is none (the text names the nearest, and all that are installed), or it cannot be
            imported.
    """
    from stevedore import DriverManager

    known = notification_driver_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DriverLoadFailure(name, f"there is no such driver of notifications; {hint}there are {', '.join(known)}")
    try:
        cls: Any = DriverManager(DRIVERS, name).driver
    except Exception as exc:
        raise DriverLoadFailure(name, exc) from exc
    if not (isinstance(cls, type) and issubclass(cls, NotificationDriver)):
        raise DriverLoadFailure(name, f"{cls!r} is not a subclass of msgbus.notify.NotificationDriver")
    return cls
