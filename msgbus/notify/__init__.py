"""Notifications: a program says what has happened, and does not know who listens.

`Notifier` says it, at one of seven levels; `get_notification_listener` makes a listener, whose endpoints have a method
for each level that they want. The names and the messages are those of oslo.messaging. `msgbus.aio` has the same for
asyncio. See ``docs/howto/notifications.md``.
"""

from msgbus.notify.driver import NotificationDriver
from msgbus.notify.filter import NotificationFilter, NotificationResult
from msgbus.notify.listener import (
    NotificationListener,
    get_batch_notification_listener,
    get_notification_listener,
)
from msgbus.notify.local_drivers import recorded_notifications
from msgbus.notify.log_handlers import (
    LoggingErrorNotificationHandler,
    LoggingNotificationHandler,
    PublishErrorsHandler,
)
from msgbus.notify.notifier import Notifier
from msgbus.notify.options import get_notification_transport

__all__ = [
    "LoggingErrorNotificationHandler",
    "LoggingNotificationHandler",
    "NotificationDriver",
    "NotificationFilter",
    "NotificationListener",
    "NotificationResult",
    "Notifier",
    "PublishErrorsHandler",
    "get_batch_notification_listener",
    "get_notification_listener",
    "get_notification_transport",
    "recorded_notifications",
]
