"""Processes of the suite. Each is forked from one that has imported everything already, in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import signal

from msgbus.conformance.endpoint import ServerSpec
from msgbus.conformance.holder import hold_an_inbox
from msgbus.conformance.server import serve
from msgbus.conformance.streamer import read_stream

PROGRAMS = {"server": serve, "streamer": read_stream, "holder": hold_an_inbox}
"""What such a process can run. It is called with its spec, and with a connection for commands."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["msgbus.conformance.processes", "stevedore"])


def prepare() -> None:
    """Start the process that the others are forked from, unless it runs. It ends with this one."""
    process = _CONTEXT.Process(target=int)
    process.start()
    process.join()
    process.close()


class ProcessServer:
    """A server, or another program of the suite, in a process of its own."""

    def __init__(self, spec: ServerSpec, program: str = "server") -> None:
        self.name = spec.server
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=PROGRAMS[program], args=(spec, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._ended = False

    @property
    def pid(self) -> int:
        """The process's id, while it has not been closed."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return not self._ended and self._process.is_alive()

    def ready(self) -> str:
        """Return when it does its work, with the first text that it sends: for a holder, the name of its inbox."""
        return self._read(40)

    def stop(self) -> None:
        """As `RPCServer.stop`."""
        self._pipe.send(("stop", 0.0))
        self._read(15)

    def wait(self, seconds: float) -> int:
        """As `RPCServer.wait`."""
        self._pipe.send(("wait", seconds))
        return int(self._read(seconds + 15))

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._end(10)

    def freeze(self) -> None:
        """Freeze it with SIGSTOP, until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it cleanly. Idempotent.

        Raises:
            AssertionError: it failed, or did not end, and was killed.
        """
        self._pipe.close()
        if self._ended:
            return
        try:
            code = self._end(30)
        except AssertionError:
            self.kill()
            raise
        assert code == 0, f"the process of {self.name} ended with {code}"

    def _end(self, seconds: float) -> int | None:
        self._process.join(seconds)
        assert not self._process.is_alive(), f"the process of {self.name} still runs after {seconds:g} s"
        code = self._process.exitcode
        self._process.close()
        self._ended = True
        return code

    def _read(self, seconds: float) -> str:
        assert self._pipe.poll(seconds), f"the process of {self.name} sent nothing for {seconds:g} s"
        try:
            return str(self._pipe.recv())
        except EOFError as exc:
            raise AssertionError(f"the process of {self.name} ended") from exc
