"""Helpers of the tests for notifications."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgbus
from msgbus.drivers.base import Message
from msgbus.message import JSON
from tests.support import EVENT_TIMEOUT

TARGET = msgbus.Target(topic="notifications")
"""What notifiers send to if they are told nothing else."""


class Endpoint:
    """Has all levels, and keeps what comes.

    Attributes:
        came: the level, and what the method was called with.
        answers: what it returns or raises, in order; then None.
    """

    def __init__(self, *answers: Any) -> None:
        self.came: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.answers = list(answers)

    def _take(self, *came: Any) -> Any:
        self.came.put(came)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def next(self) -> tuple[Any, ...]:
        """What came next."""
        return self.came.get(timeout=EVENT_TIMEOUT)

    def events(self, count: int) -> list[Any]:
        """The types of the next events."""
        return [self.next()[3] for _ in range(count)]

    def audit(self, *args: Any) -> Any:
        return self._take("audit", *args)

    def debug(self, *args: Any) -> Any:
        return self._take("debug", *args)

    def info(self, *args: Any) -> Any:
        return self._take("info", *args)

    def warn(self, *args: Any) -> Any:
        return self._take("warn", *args)

    def error(self, *args: Any) -> Any:
        return self._take("error", *args)

    def critical(self, *args: Any) -> Any:
        return self._take("critical", *args)

    def sample(self, *args: Any) -> Any:
        return self._take("sample", *args)


class Batches:
    """Keeps the batches of the level info."""

    def __init__(self, *answers: Any) -> None:
        self.came: queue.Queue[list[dict[str, Any]]] = queue.Queue()
        self.answers = list(answers)

    def info(self, notifications: list[dict[str, Any]]) -> Any:
        self.came.put(notifications)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def next(self) -> list[str]:
        """The types of the events in the next batch."""
        return [notification["event_type"] for notification in self.came.get(timeout=EVENT_TIMEOUT)]


@contextmanager
def listening(
    transport: msgbus.Transport, *endpoints: object, targets: Sequence[msgbus.Target] = (TARGET,), **options: Any
) -> Iterator[msgbus.NotificationListener]:
    """A listener that is started, and stopped at the end."""
    batches = "batch_size" in options or "batch_timeout" in options
    make = msgbus.get_batch_notification_listener if batches else msgbus.get_notification_listener
    listener = make(transport, targets, endpoints, **options)
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()
        assert listener.wait(EVENT_TIMEOUT) == 0


def send_raw(transport: msgbus.Transport, body: bytes, topic: str = "notifications.info") -> None:
    """Send what no notifier would."""
    address = transport.address(msgbus.Target(topic=topic))
    message = Message(body, JSON, "raw", None, True)
    transport.driver.send(address, message, mandatory=True).result(EVENT_TIMEOUT)
