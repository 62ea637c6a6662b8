"""What the servers of ``msgbus demo`` serve."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from msgbus.dispatcher import expected_exceptions

SERVER_NAME = "MSGBUS_DEMO_SERVER"
"""The environment variable that holds the name of a `Process`'s server."""

PART = 0.2
"""Seconds that a part of `Service.work` takes."""


class Service:
    """The methods that the demo calls. Their answers say which server gave them."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._notes: list[str] = []
        self._last_count: dict[str, int] = {}

    def greet(self, _ctxt: object, name: str) -> dict[str, str]:
        """Answer at once."""
        return {"text": f"Hello, {name}", "server": self._server}

    def note(self, _ctxt: object, text: str) -> None:
        """Keep a text. The caller does not wait."""
        self._notes.append(text)

    def notes(self, _ctxt: object) -> list[str]:
        """The texts that were noted here."""
        return self._notes

    def count(self, _ctxt: object, to: int) -> Iterator[int]:
        """Yield 1, 2, 3 and so on."""
        number = 0
        try:
            for number in range(1, to + 1):
                yield number
        finally:
            self._last_count = {"to": to, "got_to": number}

    def last_count(self, _ctxt: object) -> dict[str, int]:
        """How far the last `count` on this server got before it ended."""
        return self._last_count

    @expected_exceptions(ZeroDivisionError)
    def divide(self, _ctxt: object, a: float, b: float) -> float:
        """Divide, or raise."""
        return a / b

    def work(self, _ctxt: object, parts: int) -> Iterator[int]:
        """Take some time, and yield the number of each part that is done."""
        for part in range(1, parts + 1):
            yield part
            time.sleep(PART)


class Process(Service):
    """The same for a server in a process of its own, which ends when the demo ends, even if that is killed."""

    def __init__(self) -> None:
        super().__init__(os.environ[SERVER_NAME])
        threading.Thread(target=_end_with_stdin, daemon=True).start()


def _end_with_stdin() -> None:
    os.read(sys.stdin.fileno(), 1)  # The demo holds the other end, and never writes to it.
    os.kill(os.getpid(), signal.SIGTERM)
