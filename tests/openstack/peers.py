"""Starts peers of oslo.messaging, and knows what their servers have written down."""

from __future__ import annotations

import itertools
import pathlib
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from benchmarks.process import Process
from tests.openstack.buses import Bus

_MODULE = "tests.openstack.peer"
_START_SECONDS = 60.0


class Peers:
    """Processes that end with this context, on one message system.

    Attributes:
        bus: the message system.
    """

    def __init__(self, bus: Bus, folder: pathlib.Path) -> None:
        self.bus = bus
        self._folder = folder
        self._numbers = itertools.count()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, driver: str) -> Process:
        """A new process that uses a driver, `STOCK` or `MSGBUS`, and has nothing open yet."""
        process = self._stack.enter_context(Process(sys.executable, _MODULE, self.bus.urls[driver]))
        process.answer(_START_SECONDS)
        return process

    def new_notes(self) -> Notes:
        """A file for what servers write down."""
        return Notes(self._folder / f"notes-{next(self._numbers)}")

    def serve(self, driver: str, target: dict[str, Any], notes: Notes, threads: int = 64) -> Process:
        """A new process that serves, with so many threads. It is ready."""
        process = self.start(driver)
        process.ask({"do": "serve", "target": target, "notes": str(notes.path), "threads": threads})
        return process


class Notes:
    """What casts have had servers write down: a line for each run, with its text and the server."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def lines(self) -> list[tuple[str, str]]:
        """Text and server of each run so far."""
        found = self.path.read_text().splitlines() if self.path.exists() else []
        return [(text, server) for text, _, server in (line.rpartition(" ") for line in found)]

    def servers_of(self, text: str) -> list[str]:
        """Which servers ran the cast of this text so far."""
        return sorted(server for found, server in self.lines() if found == text)
