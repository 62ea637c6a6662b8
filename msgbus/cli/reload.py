"""Starts a server anew when the code changes, for ``msgbus serve --reload``.

The server is a child process: modules that were imported cannot be unloaded. This process only watches.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

import click

from msgbus.cli.own_process import end_with_command
from msgbus.foreign import printable

IS_RELOADED = "MSGBUS_RELOADED"
"""The environment variable that is set in the child."""
LOOK = 100
"""Milliseconds between two looks at whether the child has ended."""
KILL_AFTER = 30.0
"""Seconds after the end of the time to drain: a child that has not ended then is killed."""
SHOWN = 3
"""So many of the changed files are named."""


def end_with_watcher() -> None:
    """In the child: end when the process that watches has ended, even if it is killed."""
    if os.environ.pop(IS_RELOADED, None) is not None:
        end_with_command()


def serve_and_reload(drain: float) -> int:
    """Run this command as a child, without ``--reload``, and anew after each change. Returns its exit code at last.

    Raises:
        click.UsageError: watchfiles is missing, or the current directory cannot be watched.
    """
    command = [sys.executable, "-P", "-m", "msgbus.cli", *(word for word in sys.argv[1:] if word != "--reload")]
    watchfiles = _import_watchfiles()
    server = _Server(command, drain)
    with _signals_to(server):
        try:
            changes = watchfiles.watch(
                os.getcwd(),
                watch_filter=watchfiles.PythonFilter(),
                stop_event=server.stopping,
                rust_timeout=LOOK,
                yield_on_timeout=True,
                ignore_permission_denied=True,
            )
            for found in changes:  # Comes even if nothing has changed. The first time, it is being watched already.
                server.go_on([path for _, path in found])
        except (OSError, RuntimeError) as exc:  # The latter is watchfiles' own.
            raise click.UsageError(f"--reload: {os.getcwd()} cannot be watched: {exc}") from exc
        finally:
            code = server.end()
    return code


def _import_watchfiles() -> ModuleType:
    try:
        return importlib.import_module("watchfiles")
    except ImportError as exc:
        raise click.UsageError(f"--reload needs watchfiles: pip install 'msgbus[reload]' ({exc})") from exc


class _Server:
    """The child, and the one that takes its place after a change.

    Attributes:
        stopping: a signal has come, or the end: no other child is started.
    """

    def __init__(self, command: Sequence[str], drain: float) -> None:
        self.stopping = threading.Event()
        self._command = command
        self._drain = drain
        self._child: subprocess.Popen[bytes] | None = None
        self._is_watched = False  # its end has not been reported yet
        self._is_ending = False  # it was asked to stop, to make room for the next one
        self._signal: int | None = None

    def go_on(self, changed: Sequence[str]) -> None:
        """Start the child, or after a change a new one; say so if it has ended by itself."""
        if self.stopping.is_set():
            return
        if self._child is None:
            self._start()
        elif changed:
            _say(f"{_named(changed)} changed: the server is restarted")
            self._stop()
            if not self.stopping.is_set():
                self._start()
        elif self._is_watched and (code := self._child.poll()) is not None:
            self._is_watched = False
            _say(f"the server has ended with {code}; it is started again after the next change")

    def _start(self) -> None:
        # The child reads from a pipe whose other end closes with this process. A group of its own: what a terminal
        # sends goes to this process alone, which passes it on.
        env = {**os.environ, IS_RELOADED: "1"}
        try:
            self._child = subprocess.Popen(self._command, env=env, stdin=subprocess.PIPE, process_group=0)  # noqa: S603
        except OSError as exc:
            raise click.ClickException(f"the server cannot be started: {exc}") from exc
        self._is_watched, self._is_ending = True, False
        if self._signal is not None:  # It came before there was a child.
            self._child.send_signal(self._signal)

    def pass_on(self, number: int) -> None:
        """A signal has come. The second one ends the child at once.

        A child that was asked to stop already takes the first one for its second.
        """
        is_first, self._signal = self._signal is None, number
        self.stopping.set()
        if self._child is not None and not (is_first and self._is_ending):
            self._child.send_signal(number)

    def _stop(self) -> None:
        assert self._child is not None
        self._is_ending = True
        self._child.terminate()
        self._wait(self._child)

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        """Wait for the end of a child that was asked to stop."""
        try:
            return child.wait(self._drain + KILL_AFTER)
        except subprocess.TimeoutExpired:
            _say("the server does not end, and is killed")
            os.killpg(child.pid, signal.SIGKILL)  # With what it has started: that would keep its ports.
            return child.wait()
        finally:
            if child.stdin is not None:
                child.stdin.close()

    def end(self) -> int:
        """Stop the child, if that was not done by a signal. Returns its exit code, as a shell shows it."""
        self.stopping.set()
        if self._child is None:
            return 0 if self._signal is None else 128 + self._signal
        if self._signal is None:
            self._child.terminate()
        code = self._wait(self._child)
        if not self._is_watched:  # It had ended before by itself, and that was said then.
            return 0
        return code if code >= 0 else 128 - code


@contextmanager
def _signals_to(server: _Server) -> Iterator[None]:
    """Have the signals that stop a server passed on to the child meanwhile."""

    def handle(number: int, _frame: FrameType | None) -> None:
        server.pass_on(number)

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _named(paths: Sequence[str]) -> str:
    names = sorted(printable(os.path.relpath(path)) for path in paths)
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _say(text: str) -> None:
    click.echo(f"msgbus serve: {text}", err=True)
