"""Handlers of the module logging that send what is logged as notifications."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgbus.foreign import text_of
from msgbus.notify.notifier import Notifier
from msgbus.notify.options import get_notification_transport, read_notification_option
from msgbus.notify.outbox import Outbox, is_sending
from msgbus.serializer import Serializer

if TYPE_CHECKING:
    from oslo_config import cfg

_PRIORITIES = (
    (logging.CRITICAL, "critical"),
    (logging.ERROR, "error"),
    (logging.WARNING, "warn"),
    (logging.INFO, "info"),
)
"""The level of a notification for each of a record: the first that is not above it; below all of them it is debug."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""The attributes that every record has."""


class _NotifyingHandler(logging.Handler):
    """Sends records by a notifier. What the sending itself logs is not sent: that would never end.

    A thread of its own sends them. If those who log sent them, each would wait while the message system is away, and
    each after the other, since `logging` holds the handler's lock meanwhile.
    """

    def __init__(self, notifier: Notifier, level: int | str) -> None:
        super().__init__(level)
        self._notifier = notifier
        self._outbox = Outbox()

    def handle(self, record: logging.LogRecord) -> bool:
        """Send a record, if it is to be sent. It takes no lock for one that is not: this may be the loop's thread."""
        own = record.name == "msgbus" or record.name.startswith("msgbus.")
        if own or is_sending.get() or self._notifier.transport.loop.is_here:
            return False
        had_begun = self._outbox.has_begun
        handled = super().handle(record)
        if not had_begun:
            # Sending opens the connection, which takes threads. Since Python 3.12 a program that ends can start none.
            self._outbox.flush()
        return handled

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record sent. It never raises and never waits."""
        token = is_sending.set(True)  # The arguments' own methods may log something, and so may the serializer.
        try:
            self._outbox.put(self._notifier._prepare_sending({}, *self._notification_of(record)))
        except Exception:
            self.handleError(record)
        finally:
            is_sending.reset(token)

    def _notification_of(self, record: logging.LogRecord) -> tuple[str, Any, str]:
        """The type, the payload and the level. The payload is plain data: what is logged may change at once."""
        raise NotImplementedError

    def flush(self) -> None:
        """Wait until what was logged before is sent, or for 5 seconds."""
        self._outbox.flush()

    def close(self) -> None:
        """Flush it, and close the transport. What is not sent then is dropped, and counted in the log."""
        super().close()
        self._outbox.close()
        self._notifier.transport.cleanup()
        self._outbox.wait()


class LoggingNotificationHandler(_NotifyingHandler):
    """Sends each record of the log as a notification of the type ``logrecord`` and the level of the record.

    ::

        logging.getLogger("orders").addHandler(LoggingNotificationHandler("rabbit://guest:guest@localhost/"))

    The payload has the record's name, levelno, levelname, exc_info (the text of the traceback, or None), pathname,
    lineno, msg (with its arguments in it), funcName, thread, processName, process, and extra (what else the program has
    put into the record, as plain data or text). What msgbus itself logs is not sent.

    The first record of a process waits for the message system, up to 5 seconds, so that it is connected. After that
    logging never waits: records are sent by a thread of the handler's. While the message system is away, up to 1,000
    records wait for it. Further ones are dropped, and their number is logged. `flush`, `close` and the end of the
    program wait up to 5 seconds for what is not sent yet. If the process is killed, that is lost.

    Args:
        url: a transport URL, with options of the driver in it; no configuration file is read.
        publisher_id: who sends.
        driver: as for `Notifier`; None means ``messagingv2``.
        topic: where to, without the level; None means ``notifications``.
        serializer: as for `Notifier`.
        level: as for any handler.

    Raises:
        InvalidTransportURL, ConfigurationError, DriverLoadFailure, TypeError: as for `get_notification_transport` and
            `Notifier`.
    """

    def __init__(
        self,
        url: str,
        publisher_id: str | None = None,
        driver: str | Sequence[str] | None = None,
        topic: str | None = None,
        serializer: Serializer | None = None,
        level: int | str = logging.NOTSET,
    ) -> None:
        from oslo_config import cfg

        conf = cfg.ConfigOpts()
        conf([], project="msgbus", default_config_files=[], default_config_dirs=[])
        transport = get_notification_transport(conf, url)
        topics = None if topic is None else [topic]
        notifier = Notifier(transport, publisher_id, driver or "messagingv2", serializer, topics=topics)
        super().__init__(notifier, level)

    def _notification_of(self, record: logging.LogRecord) -> tuple[str, Any, str]:
        priority = next((name for level, name in _PRIORITIES if record.levelno >= level), "debug")
        return "logrecord", _payload_of(record), priority


def _payload_of(record: logging.LogRecord) -> dict[str, Any]:
    exc = record.exc_info[1] if record.exc_info else None
    return {
        "name": record.name,
        "levelno": record.levelno,
        "levelname": record.levelname,
        "exc_info": "".join(traceback.format_exception(exc)) if exc is not None else None,
        "pathname": record.pathname,
        "lineno": record.lineno,
        "msg": record.getMessage(),
        "funcName": record.funcName,
        "thread": record.thread,
        "processName": record.processName,
        "process": record.process,
        "extra": {name: _plain(value) for name, value in vars(record).items() if name not in _STANDARD},
    }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | str) else text_of(value)


class LoggingErrorNotificationHandler(_NotifyingHandler):
    """Sends what is logged as a notification of the type ``error_notification`` and the level error.

    Its payload is ``{"error": MESSAGE}``, and its publisher ``error.publisher``. If the driver ``log`` is configured,
    nothing is sent: that would log it again. Logging does not wait: see `LoggingNotificationHandler`.

    Args:
        conf: says where to and how: ``[oslo_messaging_notifications]``. (In oslo.messaging it is the global one.)
        level: as for any handler.

    Raises:
        ConfigurationError, InvalidTransportURL, DriverLoadFailure, TypeError: as for `get_notification_transport` and
            `Notifier`.
    """

    def __init__(self, conf: cfg.ConfigOpts, level: int | str = logging.ERROR) -> None:
        logs = "log" in read_notification_option(conf, "driver")
        transport = get_notification_transport(conf)
        super().__init__(Notifier(transport, "error.publisher", driver=[] if logs else None), level)

    def _notification_of(self, record: logging.LogRecord) -> tuple[str, Any, str]:
        return "error_notification", {"error": record.getMessage()}, "error"


PublishErrorsHandler = LoggingErrorNotificationHandler
