"""The processes of clients and servers, as those see them who break things."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import msgspec

from tests.faults.systems import Line
from tests.faults.workload import Spec
from tests.functional.brokers.processes import send_signal

ROOT = pathlib.Path(__file__).parents[2]


class Process:
    """A client or a server; it runs from the beginning.

    Args:
        kind: "client" or "server".
        spec: what it is to be; its URL is that of the line.
        line: its way to the message system. It is closed with the process.
    """

    def __init__(self, kind: str, spec: Spec, line: Line) -> None:
        self.name = spec.name
        self.line = line
        self.log = pathlib.Path(spec.folder) / f"{spec.name}.log"
        command = [sys.executable, "-m", f"tests.faults.{kind}", msgspec.json.encode(spec).decode(), str(os.getpid())]
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it runs (it may be paused)."""
        return self._popen.poll() is None

    def kill(self) -> None:
        """End it with SIGKILL, and return when it is gone."""
        self._popen.kill()
        self._popen.wait(30)

    def pause(self) -> None:
        """Freeze it (SIGSTOP)."""
        send_signal(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        send_signal(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Have it end in good order. Returns at once."""
        self._popen.terminate()

    def wait(self, seconds: float) -> int | None:
        """Wait for its end; return its exit code, or None if it goes on."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def cut(self) -> None:
        """Break its connections, and let none through until `heal`. Over ZeroMQ it breaks them once."""
        self.line.cut(self.pid)

    def heal(self) -> None:
        """End what `cut` or `stall` began."""
        self.line.heal()

    def stall(self) -> None:
        """Let nothing through any more, while its connections stay open, until `heal`."""
        self.line.stall()

    def close(self) -> None:
        """End it at once, if it still runs, and close its line."""
        if self.alive:
            self.kill()
        self.line.close()
