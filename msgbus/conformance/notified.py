"""The endpoints of the suite's listeners for notifications."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from msgbus import NotificationResult
from msgbus.conformance.endpoint import Journal

LEVELS = ("audit", "debug", "info", "warn", "error", "critical", "sample")


class Notified:
    """Writes each notification down, with its level, and does what its type says.

    ``note``: nothing more. ``fail``: raises. ``requeue``: comes again as often as the payload's ``times`` says.
    ``hold``: waits at the payload's gate.
    """

    def __init__(self, journal: Journal, server: str) -> None:
        self._journal = journal
        self._server = server

    def note(self, level: str, event_type: str, payload: Any) -> NotificationResult | None:
        """Write it down, and say whether it is to come again."""
        key = payload["key"]
        self._journal.add("run", key, self._server)
        self._journal.add(level, key, self._server)
        if event_type == "fail":
            raise ValueError("bad")
        if event_type == "requeue" and len(self._journal.entries("run", key)) <= payload["times"]:
            return NotificationResult.REQUEUE
        return None

    def notify(self, level: str, _ctxt: Any, _publisher: Any, event_type: str, payload: Any, _metadata: Any) -> Any:
        """What is called for a level."""
        result = self.note(level, event_type, payload)
        if event_type == "hold":
            self._journal.await_gate(payload["gate"])
        return result


class AsyncNotified(Notified):
    """As `Notified`, for an event loop."""

    async def notify(
        self, level: str, _ctxt: Any, _publisher: Any, event_type: str, payload: Any, _metadata: Any
    ) -> Any:
        """What is called for a level."""
        result = self.note(level, event_type, payload)
        while event_type == "hold" and not self._journal.is_open(payload["gate"]):  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.005)
        return result


class BatchNotified(Notified):
    """Writes a line for each batch, with the keys in it."""

    def notify(self, level: str, notifications: Sequence[dict[str, Any]]) -> None:  # type: ignore[override]
        """What is called for a level."""
        keys = [notification["payload"]["key"] for notification in notifications]
        self._journal.add("batch", f"{level}: {' '.join(keys)}", self._server)


def only(endpoint: Notified, levels: Sequence[str] | None) -> object:
    """An endpoint with methods for some levels alone, or for all."""
    return SimpleNamespace(**{level: partial(endpoint.notify, level) for level in levels or LEVELS})
