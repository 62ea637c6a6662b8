"""The standard streams of the command: closed, without a reader, and of an encoding that lacks characters."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from msgbus.cli.errors import Code
from tests.cli.test_cli import FAKE, MSGBUS

PING = ["ping", "cli-nobody", "--timeout", "0.1", "--url", FAKE]


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
