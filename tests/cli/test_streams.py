"""The standard streams of the command: closed, without a reader, and of an encoding that lacks characters."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from msgbus.cli.errors import Code
from tests.cli.test_cli import FAKE, MSGBUS
from tests.support import EVENT_TIMEOUT, ROOT

PING = ["ping", "cli-nobody", "--timeout", "0.5", "--url", FAKE]


@contextmanager
def pipe_without_reader() -> Iterator[int]:
    """Yield the end for writing."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize(
    ("closed", "args", "code"),
    [(">&-", ["drivers"], Code.OK), ("2>&-", PING, Code.NO_SERVER), ("<&- >&- 2>&-", PING, Code.NO_SERVER)],
)
def test_closed_stream_changes_nothing_but_the_output(closed: str, args: list[str], code: Code) -> None:
    """As if it were /dev/null: the command does its work, and its exit code says how that ended."""
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", MSGBUS, *args]
    found = subprocess.run(command, capture_output=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (code, b"", b"")


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["call", "--help"]])
def test_closed_output_ends_the_help_with_the_code_of_sigpipe(args: list[str]) -> None:
    """1 would mean that a server has answered with an error."""
    with pipe_without_reader() as write:
        found = subprocess.run([MSGBUS, *args], stdout=write, stderr=subprocess.PIPE, check=False)
    assert (found.returncode, found.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("args", [["nonsense"], ["call", "cli-nobody", "echo", "--url", FAKE]])
def test_closed_stderr_ends_a_failed_command_with_the_code_of_sigpipe(args: list[str]) -> None:
    """As in ``msgbus ... 2>&1 | head``."""
    with pipe_without_reader() as write:
        found = subprocess.run([MSGBUS, *args], stdout=write, stderr=write, check=False)
    assert found.returncode == 128 + signal.SIGPIPE


def test_what_an_encoding_lacks_is_escaped(tmp_path: pathlib.Path) -> None:
    """So JSON stays JSON, and what was done is not reported as an error."""
    folder = tmp_path / "grün-🐦"
    command = [MSGBUS, "new-driver", "pigeon", str(folder), "--json"]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    found = subprocess.run(command, capture_output=True, encoding="latin-1", env=env, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout)["folder"] == str(folder)


SERVICE = f"""
import os, pathlib, signal, sys, threading
import msgbus
from msgbus.cli import main
from tests.support import EVENT_TIMEOUT, new_transport

path = pathlib.Path(sys.argv.pop())
stopping = threading.Event()
stop = msgbus.RPCServer.stop

def stop_and_note(server):
    stop(server)
    stopping.set()

msgbus.RPCServer.stop = stop_and_note

class Slow:
    def wait(self, ctxt):
        os.kill(os.getpid(), signal.SIGINT)
        return stopping.wait(EVENT_TIMEOUT)

def call():
    sys.stdin.readline()
    client = msgbus.get_rpc_client(new_transport("{FAKE}"), msgbus.Target(topic="cli"), timeout=EVENT_TIMEOUT)
    answer = client.call({{}}, "wait")
    client.transport.cleanup()
    path.write_text(str(answer))

threading.Thread(target=call).start()
sys.modules["service"] = sys.modules["__main__"]
sys.argv[1:1] = ["serve", "service:Slow", "--topic", "cli", "--url", "{FAKE}"]
main()
"""


def test_server_finishes_what_it_runs_if_nobody_reads_its_end(tmp_path: pathlib.Path) -> None:
    """Ctrl-C ends the tee behind ``2>&1 | tee`` as well: the running method is answered, and the exit code is 0."""
    answer = tmp_path / "answer"
    command = [sys.executable, "-c", SERVICE, str(answer)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert "is ready" in process.stdout.readline()
        process.stderr.close()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(EVENT_TIMEOUT) == 0
    assert answer.read_text() == "True"
