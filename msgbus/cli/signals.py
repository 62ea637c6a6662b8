"""Signals that stop a server: the first one lets it finish what it runs, the second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from msgbus.cli.streams import STDERR, STDOUT


class _Stop(BaseException):
    """A signal asked to stop. Raised wherever the main thread is: it may still be starting, which can take long."""


@contextlib.contextmanager
def stopped_by_signal() -> Iterator[None]:
    """End the block at the first SIGTERM, SIGINT or SIGHUP, and the process at the second.

    A SIGHUP that is ignored already, as under nohup, stays ignored. When a terminal is closed, a process may get SIGHUP
    more than once: from the shell, and from the kernel when the shell has ended. So once the terminal is closed, a
    further SIGHUP is ignored.
    """
    came = False
    had_terminal = _has_terminal()
    on_terminal = [fd for fd in (STDOUT, STDERR) if _is_terminal(fd)]

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if number == signal.SIGHUP:
            _discard_output([fd for fd in on_terminal if not _is_terminal(fd)])
            if came and had_terminal and not _has_terminal():
                return
        if came:
            os._exit(128 + number)
        came = True
        raise _Stop

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    except _Stop:
        pass
    finally:
        if had_terminal and not _has_terminal():
            before[signal.SIGHUP] = signal.SIG_IGN
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal. When that is closed, its processes lose it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _is_terminal(fd: int) -> bool:
    """Whether a descriptor refers to a terminal that still exists."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _discard_output(fds: list[int]) -> None:
    """Redirect these descriptors to /dev/null: print() to a closed terminal raises OSError."""
    if not fds:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in fds:
        os.dup2(nowhere, fd)
    os.close(nowhere)
