"""What the servers of ``msgbus demo`` serve."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from msgbus.cli.own_process import SERVER_NAME, end_with_command
from msgbus.dispatcher import expected_exceptions

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
        end_with_command()
