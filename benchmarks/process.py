"""The other end of `benchmarks.child`: starts a process, tells it what to do, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import selectors
import subprocess
import tempfile
import time
from collections.abc import Iterable
from typing import Any, Self

from benchmarks.environments import reason
from benchmarks.workloads import TIMEOUT

_LOOK_SECONDS = 1.0
"""How often it is looked whether other processes still run."""
_ROOT = pathlib.Path(__file__).resolve().parents[1]


class Failed(Exception):
    """A measurement went wrong; the text says in which process, and why."""


class Process:
    """A running ``python -m MODULE WORDS``. Left as a context, it ends.

    Attributes:
        pid: its process id.
    """

    def __init__(self, python: str, module: str, *words: str) -> None:
        self._name = f"{module} {' '.join(words)}"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [python, "-m", module, *words],
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self.pid = self._process.pid
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                file.close()

    def tell(self, order: object) -> None:
        """Give an order; `answer` has what comes of it.

        Raises:
            Failed: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("has ended") from None

    def answer(self, timeout: float = 2 * TIMEOUT, others: Iterable[Process] = ()) -> Any:
        """Wait for what it says.

        Raises:
            Failed: it or one of `others` has ended, or it says nothing for so many seconds.
        """
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(min(max(end - time.monotonic(), 0), _LOOK_SECONDS)):
                    for process in others:
                        process.check()
                    if time.monotonic() > end:
                        raise self._failed(f"said nothing for {timeout:g} s")
                    continue
                data = os.read(self._process.stdout.fileno(), 65536)
                if not data:
                    raise self._failed("has ended")
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def check(self, seconds: float = 0.0) -> None:
        """Look whether it still runs, for so long.

        Raises:
            Failed: it has ended.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            raise self._failed("has ended")

    def ask(self, order: object, timeout: float = 2 * TIMEOUT, others: Iterable[Process] = ()) -> Any:
        """Give an order, and wait for what comes of it.

        Raises:
            Failed: as `answer`.
        """
        self.tell(order)
        return self.answer(timeout, others)

    def _failed(self, what: str) -> Failed:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace")
        return Failed(f"{self._name} {what}: {reason(said)}")
