"""Health: whether a server takes requests, and whether it works at all."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import TransportUnavailable


@dataclass(frozen=True, slots=True)
class Health:
    """What `RPCServer.healthy` has found. It is true if the server is ready, which includes that it is live.

    Attributes:
        live: it works, or can be expected to. If not, restart the process.
        ready: it takes requests. A server that is starting or stopping is not ready, nor is one whose message system is
            away; both are still live.
        why: a line for each problem, the worst first.
    """

    live: bool
    ready: bool
    why: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.ready


def why_it_stands(loop: Loop, timeout: float) -> str | None:
    """Why a transport's loop does not react, or None. It waits for up to `timeout` seconds."""
    if loop.is_here:
        return None
    reacted = threading.Event()
    try:
        if not loop.call(reacted.set):
            return "its transport was closed"
    except TransportUnavailable as exc:
        return f"its I/O does not work: {exc}"
    return None if reacted.wait(timeout) else f"its I/O has not reacted for {timeout:g} s: something blocks it"
