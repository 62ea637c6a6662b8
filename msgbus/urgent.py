"""Which requests a server answers even while all of its threads or tasks are busy: those for its stats."""

from __future__ import annotations

from typing import Any

from msgbus.drivers.base import Delivery
from msgbus.encoding import decode_request
from msgbus.message import PING_NAMESPACE, Request

STATS = "stats"
"""The method. It only looks at counters, and never waits."""
_IN_BODY = STATS.encode()
LARGEST = 64 * 1024
"""Bytes of the body of a request that is looked at. All that waits is, again and again."""


def is_urgent(request: Request) -> bool:
    """Whether a request does not wait for a thread that is free."""
    return request.method == STATS and request.namespace == PING_NAMESPACE


def holds_urgent(item: Any) -> bool:
    """Whether an item that waits for a thread or a task is a delivery of such a request. It never raises."""
    if not isinstance(item, Delivery):
        return False
    body = item.message.body
    if len(body) > LARGEST or _IN_BODY not in body:
        return False
    try:
        return is_urgent(decode_request(body, item.message.content_type))
    except Exception:  # Whoever runs it says what is wrong with it.
        return False
