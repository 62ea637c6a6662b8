"""A stock oslo.messaging that notifies or listens, in a process of its own.

``python stock_notifications.py notify RABBIT_URL TOPIC DRIVER`` sends a notification of each level.
``python stock_notifications.py listen RABBIT_URL TOPIC`` prints each notification as a line of JSON, until its input
ends. It knows nothing of msgbus.
"""

import json
import sys
import threading
from typing import Any

import oslo_messaging
from oslo_config import cfg

LEVELS = ("audit", "debug", "info", "warn", "error", "critical", "sample")


class Context:
    """A context: a stock notifier sends no plain dict."""

    def redacted_copy(self) -> "Context":
        """Without what others must not see."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """As it is sent."""
        return {"user": "u"}


class Endpoint:
    """Prints each notification. One that asks for it comes a second time."""

    def __init__(self) -> None:
        self.printing = threading.Lock()
        self._seen: set[str] = set()

    def _take(self, level: str, ctxt: Any, publisher: Any, event_type: str, payload: Any, metadata: Any) -> Any:
        found = [level, ctxt, publisher, event_type, payload, sorted(metadata)]
        with self.printing:
            print(json.dumps(found), flush=True)
        if event_type == "again" and metadata["message_id"] not in self._seen:
            self._seen.add(metadata["message_id"])
            return oslo_messaging.NotificationResult.REQUEUE
        return oslo_messaging.NotificationResult.HANDLED

    def __getattr__(self, level: str) -> Any:
        if level not in LEVELS:
            raise AttributeError(level)
        return lambda *args: self._take(level, *args)


def main() -> None:
    """See the module's text."""
    role, url, topic, *rest = sys.argv[1:]
    cfg.CONF([])
    transport = oslo_messaging.get_notification_transport(cfg.CONF, url)
    if role == "notify":
        notifier = oslo_messaging.Notifier(transport, "stock", driver=rest[0], topics=[topic])
        for level in LEVELS:
            getattr(notifier, level)(Context(), f"stock.{level}", {"a": [1, "ü", None]})
    else:
        targets = [oslo_messaging.Target(topic=topic)]
        endpoint = Endpoint()
        listener = oslo_messaging.get_notification_listener(
            transport, targets, [endpoint], executor="threading", allow_requeue=True
        )
        with endpoint.printing:
            listener.start()
            print(json.dumps("ready"), flush=True)
        sys.stdin.read()
        listener.stop()
        listener.wait()
    transport.cleanup()


if __name__ == "__main__":
    main()
