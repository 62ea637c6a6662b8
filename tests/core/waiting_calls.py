"""Calls that wait, and what servers send for them, for tests that need neither a transport nor a clock."""

from __future__ import annotations

from typing import Any

from msgbus.drivers.base import Address
from msgbus.message import Reply
from msgbus.pending import Pending, PendingCall

DEADLINE, GRACE = 1060.0, 10.0
NOW = 1000.0


class Woken:
    """Counts how often a call was woken since it was last asked."""

    def __init__(self, pending: Pending) -> None:
        self.count = 0
        pending.wake = self

    def __call__(self) -> None:
        self.count += 1

    def take(self) -> bool:
        count, self.count = self.count, 0
        return count > 0


def options(**changes: Any) -> dict[str, Any]:
    """Arguments of any kind of call."""
    given: dict[str, Any] = {
        "began": NOW,
        "deadline": DEADLINE,
        "grace": GRACE,
        "repeatable": False,
        "monitor": None,
        "allowed_modules": (),
    }
    return {**given, **changes}


def call(**changes: Any) -> tuple[PendingCall, Woken]:
    """A call that waits, and what counts how often it was woken."""
    pending = PendingCall("c", "echo", Address("topic", "x", "foo"), **options(**changes))
    return pending, Woken(pending)


def started(server: str = "h1", inbox: str | None = None) -> Reply:
    """What a server says when it begins."""
    return Reply("c", "started", extended=True, server=server, inbox=inbox or f"inbox-{server}")


def keepalive(server: str = "h1") -> Reply:
    """A keepalive of a server."""
    return Reply("c", "keepalive", extended=True, server=server, inbox=f"inbox-{server}")


def check(pending: Pending, now: float, up_since: float | None = 0.0) -> Exception | None:
    """Why there is nothing more to wait for, as a `ClientCall` finds out."""
    pending.update(now, up_since)
    return pending.check(now)
