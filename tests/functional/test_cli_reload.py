"""`msgbus serve --reload`, in processes that talk over ZeroMQ."""

from __future__ import annotations

import contextlib
import json
import pathlib
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import IO

import pytest

from msgbus.conformance.waiting import until
from tests.functional.test_cli import SECONDS, Bench

pytest.importorskip("watchfiles", reason="the extra reload is not installed")

GREETING = """
import pathlib

class Greeting:
    def greet(self, ctxt):
        return "TEXT"

    def wait_for(self, ctxt, path):
        print("waiting", flush=True)
        pathlib.Path(path).read_text()
        return "TEXT"
"""


class Output:
    """The lines that a process writes, as they come."""

    def __init__(self, stream: IO[str] | None) -> None:
        assert stream is not None
        self._lines: queue.Queue[str] = queue.Queue()
        self._stream = stream
        self._seen: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream:
            self._lines.put(line)

    def wait_for(self, text: str) -> str:
        """The next line with `text` in it."""
        while True:
            try:
                line = self._lines.get(timeout=SECONDS)
            except queue.Empty:
                pytest.fail(f"{text!r} did not come: {''.join(self._seen)}")
            self._seen.append(line)
            if text in line:
                return line


class Reloading(Bench):
    """A folder with a service, and a server that is started anew when the service changes.

    Attributes:
        process: the one that watches.
        out, err: what it and the server print.
    """

    process: subprocess.Popen[str]
    out: Output
    err: Output

    def begin(self, *words: str) -> None:
        """Start it, and return when the server is ready."""
        self.write("one")
        words = ("serve", "greeting:Greeting", "--topic", self.topic, "--reload", "--json", *words)
        self.process = self.start(*words)
        self.out, self.err = Output(self.process.stdout), Output(self.process.stderr)
        self.pid = self.ready()

    def write(self, text: str, code: str = GREETING) -> None:
        """Change the service."""
        (self.folder / "greeting.py").write_text(code.replace("TEXT", text))

    def ready(self) -> int:
        """Wait until the server is ready. Returns its process id."""
        return int(json.loads(self.out.wait_for('"state":"ready"'))["pid"])


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Reloading]:
    """A service, and processes that find each other in its folder."""
    with contextlib.ExitStack() as cleanup:
        made = Reloading(tmp_path, "zmq://", cleanup)
        made.env["XDG_RUNTIME_DIR"] = str(tmp_path)
        yield made


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that nobody has waited for does not."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_change_starts_the_server_anew(bench: Reloading) -> None:
    """What it served before has time to finish; other files do not matter. A signal stops both."""
    bench.begin()
    assert bench.run("call", "greet").stdout == '"one"\n'
    path, go_on = bench.gate()
    call = bench.start("call", bench.topic, "wait_for", f"path={path}")
    bench.out.wait_for("waiting")
    (bench.folder / "notes.txt").write_text("no code")
    bench.write("two")
    assert "greeting.py changed" in bench.err.wait_for("is restarted")
    assert call.poll() is None
    go_on()
    assert call.communicate(timeout=SECONDS) == ('"one"\n', "")
    assert bench.ready() != bench.pid
    assert bench.run("call", "greet").stdout == '"two"\n'
    bench.process.terminate()
    assert bench.process.wait(SECONDS) == 0


def test_an_error_in_the_code_is_shown_until_it_is_mended(bench: Reloading) -> None:
    """The server ends with it, and the next change starts it again."""
    bench.begin()
    bench.write("", "def broken(:\n")
    bench.err.wait_for("SyntaxError")
    bench.err.wait_for("the server has ended with 2; it is started again after the next change")
    bench.write("mended")
    bench.ready()
    assert bench.run("call", "greet").stdout == '"mended"\n'
    bench.write("", "raise RuntimeError('once more')\n")
    bench.err.wait_for("it is started again after the next change")
    bench.process.send_signal(signal.SIGINT)
    assert bench.process.wait(SECONDS) == 0


def test_a_second_signal_ends_it_at_once(bench: Reloading) -> None:
    """Methods that run are not waited for."""
    bench.begin()
    path, _go_on = bench.gate()
    bench.start("call", bench.topic, "wait_for", f"path={path}", "--timeout", "5")
    bench.out.wait_for("waiting")
    bench.process.send_signal(signal.SIGINT)
    until(lambda: bench.run("ping", "--timeout", "0.5").returncode != 0, "it stops", SECONDS)
    assert bench.process.poll() is None
    bench.process.send_signal(signal.SIGINT)
    assert bench.process.wait(SECONDS) == 128 + signal.SIGINT


def test_the_server_ends_with_the_process_that_watches(bench: Reloading) -> None:
    """Also if that is killed."""
    bench.begin()
    bench.process.kill()
    until(lambda: not is_alive(bench.pid), "the end of the server", SECONDS)
