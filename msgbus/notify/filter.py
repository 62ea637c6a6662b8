"""NotificationFilter: which notifications an endpoint gets. NotificationResult: what it says when it has one."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

from msgbus.notify.notification import Notification


class NotificationResult(StrEnum):
    """What an endpoint of a listener returns."""

    HANDLED = "handled"
    """It is done; None says the same."""
    REQUEUE = "requeue"
    """It is to come again, to this or another listener, after a pause; see ``allow_requeue``."""


class NotificationFilter:
    """Says which notifications an endpoint gets: those that all of its regular expressions match.

    ::

        class Endpoint:
            filter_rule = NotificationFilter(publisher_id=r"^compute.*", payload={"state": r"^deleted$"})

            def info(self, ctxt, publisher_id, event_type, payload, metadata): ...

    An expression is matched with the beginning of a text, as by `re.match`. What a notification does not have, or what
    is not a string, does not match.

    Args:
        context: expressions by the keys of the context, which has to be a dict.
        publisher_id: one for the publisher.
        event_type: one for the event's type.
        metadata: some by the keys of the metadata: ``message_id`` and ``timestamp``.
        payload: some by the keys of the payload, which has to be a dict.

    Raises:
        ValueError: an expression is invalid; the text names it.
        TypeError: an expression is not a string, or `context`, `metadata` or `payload` is not a dict.
    """

    def __init__(
        self,
        context: dict[str, str] | None = None,
        publisher_id: str | None = None,
        event_type: str | None = None,
        metadata: dict[str, str] | None = None,
        payload: dict[str, str] | None = None,
    ) -> None:
        self._publisher_id = _compiled("publisher_id", publisher_id)
        self._event_type = _compiled("event_type", event_type)
        self._context = _each_compiled("context", context)
        self._metadata = _each_compiled("metadata", metadata)
        self._payload = _each_compiled("payload", payload)

    def match(self, notification: Notification) -> bool:
        """Whether an endpoint with this filter gets it."""
        return (
            _matches(self._publisher_id, notification.publisher_id)
            and _matches(self._event_type, notification.event_type)
            and _each_matches(self._context, notification.ctxt)
            and _each_matches(self._metadata, notification.metadata)
            and _each_matches(self._payload, notification.payload)
        )


def _compiled(what: str, pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    if not isinstance(pattern, str):
        raise TypeError(f"{what} of a NotificationFilter is a regular expression, not {pattern!r}")
    try:
        return re.compile(pattern)
    except re.error as exc:
        raise ValueError(f"{what} of a NotificationFilter: {pattern!r} is not a regular expression: {exc}") from None


def _each_compiled(what: str, patterns: dict[str, str] | None) -> dict[str, re.Pattern[str]]:
    if patterns is None:
        return {}
    if not isinstance(patterns, dict):
        raise TypeError(f"{what} of a NotificationFilter is a dict of regular expressions by key, not {patterns!r}")
    found = {key: _compiled(f"{what}[{key!r}]", pattern) for key, pattern in patterns.items()}
    return {key: pattern for key, pattern in found.items() if pattern is not None}


def _matches(pattern: re.Pattern[str] | None, value: object) -> bool:
    return pattern is None or (isinstance(value, str) and pattern.match(value) is not None)


def _each_matches(patterns: dict[str, re.Pattern[str]], values: Any) -> bool:
    if not patterns:
        return True
    return isinstance(values, dict) and all(_matches(pattern, values.get(key)) for key, pattern in patterns.items())
