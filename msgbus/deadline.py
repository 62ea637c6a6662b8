"""The deadline of the request that is being run, which calls made by its handler inherit."""

from __future__ import annotations

import os
from contextvars import ContextVar

current: ContextVar[float | None] = ContextVar("msgbus_deadline", default=None)
"""Seconds of `time.monotonic`, or None outside a handler and in one whose client gave no deadline."""


def bounded(deadline: float) -> float:
    """`deadline`, or the inherited one where that is earlier."""
    inherited = current.get()
    return deadline if inherited is None or inherited > deadline else inherited


# A child that a handler forks is no part of the request, and may live for long.
os.register_at_fork(after_in_child=lambda: current.set(None))
