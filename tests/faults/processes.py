"""Clients and servers, as those see them who break things: processes, or threads where nothing is to be killed."""

from __future__ import annotations

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading

import msgspec

from tests.faults.child import Program, open_transport
from tests.faults.client import send
from tests.faults.journal import Writer
from tests.faults.server import serve
from tests.faults.systems import Line
from tests.faults.workload import Spec
from tests.functional.brokers.processes import send_signal

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS: dict[str, Program] = {"client": send, "server": serve}
_made_up_pids = itertools.count(-1, -1)


class Worker:
    """A client or a server; it runs from the beginning.

    Args:
        kind: "client" or "server".
        spec: what it is to be; its URL is that of the line.
        line: its way to the message system. It is closed with the worker.
    """

    pid: int

    def __init__(self, kind: str, spec: Spec, line: Line) -> None:
        self.name = spec.name
        self.line = line
        self.log = pathlib.Path(spec.folder) / f"{spec.name}.log"

    @property
    def alive(self) -> bool:
        """Whether it runs (it may be paused)."""
        raise NotImplementedError

    def stop(self) -> None:
        """Have it end in good order. Returns at once."""
        raise NotImplementedError

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether that has come."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it with SIGKILL, and return when it has ended."""
        raise NotImplementedError

    def pause(self) -> None:
        """Freeze it (SIGSTOP)."""
        raise NotImplementedError

    def resume(self) -> None:
        """Let it go on."""
        raise NotImplementedError

    def cut(self) -> None:
        """Break its connections, and let none through until `heal`. Over ZeroMQ it breaks them once."""
        self.line.cut(self.pid)

    def stall(self) -> None:
        """Let nothing through any more, while its connections stay open, until `heal`."""
        self.line.stall()

    def heal(self) -> None:
        """End what `cut` or `stall` began."""
        self.line.heal()

    def close(self) -> None:
        """End it at once, if it still runs, and close its line."""
        raise NotImplementedError


class Process(Worker):
    """A worker in a process of its own."""

    def __init__(self, kind: str, spec: Spec, line: Line) -> None:
        super().__init__(kind, spec, line)
        command = [sys.executable, "-m", f"tests.faults.{kind}", msgspec.json.encode(spec).decode(), str(os.getpid())]
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def stop(self) -> None:
        self._popen.terminate()

    def wait(self, seconds: float) -> bool:
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait(30)

    def pause(self) -> None:
        send_signal(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        send_signal(self.pid, signal.SIGCONT)

    def close(self) -> None:
        if self.alive:
            self.kill()
        self.line.close()


class Thread(Worker):
    """A worker in this process, with a process id that is made up. It can be stopped, and no more."""

    def __init__(self, kind: str, spec: Spec, line: Line) -> None:
        super().__init__(kind, spec, line)
        self.pid = next(_made_up_pids)
        self._asked = threading.Event()
        self._journal = Writer(spec.folder, spec.name, self.pid)
        arguments = (spec, self._journal, open_transport(spec), self._asked.wait)
        self._thread = threading.Thread(target=PROGRAMS[kind], args=arguments, name=f"{kind} {spec.name}")
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._asked.set()

    def wait(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self.alive

    def close(self) -> None:
        self.stop()
        self._thread.join()
        self._journal.close()
        self.line.close()
