"""Processes of the suite's own. Each is forked from one that has imported what they need: that takes milliseconds."""

from __future__ import annotations

import multiprocessing

from msgbus.conformance.endpoint import ServerSpec
from msgbus.conformance.server import serve
from msgbus.conformance.streamer import read_stream

PROGRAMS = {"server": serve, "streamer": read_stream}
"""What such a process can run: with what it is to be, and a connection over which it is told what to do."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["msgbus.conformance.processes", "stevedore"])


def prepare() -> None:
    """Start what the processes are forked from, unless it runs. It ends with this process."""
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

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def ready(self) -> None:
        """Return when it serves."""
        self._read(40)

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

    def close(self) -> None:
        """End it in good order. Idempotent.

        Raises:
            AssertionError: it did not end, and was killed, or failed.
        """
        if self._pipe.closed:
            return
        self._pipe.close()
        try:
            self._end(30)
        except AssertionError:
            self._process.kill()
            self._end(10)
            raise
        assert self._process.exitcode in (0, -9), f"the process of {self.name} ended with {self._process.exitcode}"

    def _end(self, seconds: float) -> None:
        self._process.join(seconds)
        assert not self._process.is_alive(), f"the process of {self.name} goes on after {seconds:g} s"

    def _read(self, seconds: float) -> str:
        assert self._pipe.poll(seconds), f"the process of {self.name} said nothing for {seconds:g} s"
        try:
            return str(self._pipe.recv())
        except EOFError as exc:
            raise AssertionError(f"the process of {self.name} ended") from exc
