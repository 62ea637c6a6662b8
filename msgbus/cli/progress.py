"""Shows on stderr, if that is a terminal, what a command waits for, once the wait has taken two seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

from msgbus.cli.context import wants_json
from msgbus.foreign import printable

if TYPE_CHECKING:
    from rich.live import Live

AFTER = 2.0
"""Seconds before anything is shown."""
TICK = 0.2
"""Seconds between two checks whether to show something."""

Text = str | Callable[[], str]
"""What is shown; a function is called each time it is drawn."""
Waiting = Callable[[Text], AbstractContextManager[None]]


@contextmanager
def progress() -> Iterator[Waiting]:
    """Yield a context manager that shows what the command waits for, while its block runs.

    It can be used any number of times. What it shows vanishes at the end of each block::

        with progress() as waiting:
            with waiting("waiting for the answer"):
                ...
    """
    if not sys.stderr.isatty() or wants_json(click.get_current_context()):
        yield lambda _text: nullcontext()
        return
    display = _Display()
    watcher = threading.Thread(target=display.watch, name="msgbus-progress", daemon=True)
    watcher.start()
    try:
        yield display.waiting
    finally:
        display.ended.set()
        watcher.join()


class _Display:
    """Shows, on a thread of its own, what the blocked thread waits for."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._text: Text = ""
        self._began: float | None = None
        self._live: Live | None = None

    @contextmanager
    def waiting(self, text: Text) -> Iterator[None]:
        self._text, self._began = text, time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._began = None
                if self._live is not None:
                    self._live.stop()
                    self._live = None

    def watch(self) -> None:
        while not self.ended.wait(TICK):
            with self._lock:
                began = self._began
                if self._live is None and began is not None and time.monotonic() - began >= AFTER:
                    self._live = _show(self._text, began)


def _show(text: Text, began: float) -> Live:
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text as RichText

    class Stderr(Console):
        def show_cursor(self, show: bool = True) -> bool:
            """Do not hide the cursor: a process that is ended by a signal could not show it again."""
            return False

    spinner = Spinner("line")

    def render() -> Spinner:
        now = printable(text if isinstance(text, str) else text())
        spinner.update(text=RichText(f"{now} ({int(time.monotonic() - began)} s)", no_wrap=True, overflow="ellipsis"))
        return spinner

    # Results go to stdout as usual. Log lines go to stderr through rich, which prints them above the progress.
    live = Live(get_renderable=render, console=Stderr(stderr=True), transient=True, redirect_stdout=False)
    live.start()
    return live
