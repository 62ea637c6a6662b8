"""A command in a terminal, as a person would see it."""

from __future__ import annotations

import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

SECONDS = 30.0
"""How long a test waits for an event that happens at once, unless there is a bug."""
_PIECE = re.compile(r"\x1b\[(?P<up>\d*)A|(?P<erase>\x1b\[2K)|\x1b\[[0-9;?]*[a-zA-Z]|(?P<plain>[^\x1b])", re.DOTALL)


_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)
"""Makes the terminal that is stdin the controlling one of a new session, and runs the command."""


class Terminal:
    """Runs a command whose stdin and stderr, and by default stdout, are a terminal. A context manager: it is killed.

    Attributes:
        process: the command.
        raw: all that it has written to the terminal.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        stdout: int | None = None,
        cwd: pathlib.Path | None = None,
        controlling: bool = False,
    ) -> None:
        """`controlling`: it is the process's controlling terminal, which sends signals: to a shell, for one."""
        self._fd, theirs = pty.openpty()
        self.raw = ""
        if controlling:
            command = [sys.executable, "-c", _TAKE_TERMINAL, *command]
        self.process = subprocess.Popen(
            command,
            # Without these, what a CI system sets would decide whether rich takes it for a terminal.
            env={name: value for name, value in env.items() if name not in ("CI", "NO_COLOR", "FORCE_COLOR")}
            | {"TERM": "xterm-256color", "COLUMNS": "200"},
            cwd=cwd,
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """Close the terminal, as by its window's button."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._fd, text.encode())

    def wait_for(self, text: str, times: int = 1) -> None:
        """Read until `text` has appeared, so many times."""
        end = time.monotonic() + SECONDS
        while self.raw.count(text) < times:
            assert self._read(end), f"it ended without {text!r}: {self.raw!r}"

    def finish(self, number: signal.Signals | None = None) -> int:
        """Send a signal, read all output, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        end = time.monotonic() + SECONDS
        while self._read(end):
            pass
        return self.process.wait(SECONDS)

    def _read(self, end: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"nothing more came: {self.raw!r}"
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the other end is closed
            return False
        self.raw += data.decode()
        return bool(data)

    @property
    def screen(self) -> list[str]:
        """The lines that can be seen now, without the empty ones."""
        lines, row, column = [""], 0, 0
        for piece in _PIECE.finditer(self.raw):
            char = piece["plain"]
            if piece["up"] is not None:
                row -= int(piece["up"] or 1)
            elif piece["erase"]:
                lines[row] = ""
            elif char == "\r":
                column = 0
            elif char == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif char is not None:
                lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines if line.strip()]
