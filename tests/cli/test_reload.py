"""How `msgbus serve --reload` treats its child. tests/functional/test_cli_reload.py tries the command itself."""

from __future__ import annotations

import pathlib
import signal
import sys

import click
import pytest

from msgbus.cli.reload import _Server
from msgbus.conformance.waiting import Task, until
from tests.support import EVENT_TIMEOUT

CHILD = """
import os, pathlib, signal, sys, time

signals = []
folder = pathlib.Path(sys.argv[1])

def handle(number, frame):
    signals.append(number)
    (folder / f"signal-{len(signals)}").touch()

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, handle)
(folder / "ready").touch()
while not (folder / "go-on").exists() and len(signals) < 2:
    time.sleep(0.01)
sys.exit(len(signals))
"""
"""A server that, once it is asked to stop, takes as long as it is told. It ends with the number of its signals."""


@pytest.fixture
def server(tmp_path: pathlib.Path) -> _Server:
    """One whose child is ready."""
    made = _Server([sys.executable, "-c", CHILD, str(tmp_path)], drain=EVENT_TIMEOUT)
    made.go_on([])
    until((tmp_path / "ready").exists, "a child", EVENT_TIMEOUT)
    return made


def test_a_signal_while_the_child_is_replaced_lets_it_finish(server: _Server, tmp_path: pathlib.Path) -> None:
    """It was asked to stop because of a change: what it runs is not cut short by the first Ctrl-C. None follows it."""
    replacing = Task(server.go_on, ["service.py"])
    until((tmp_path / "signal-1").exists, "a child that stops", EVENT_TIMEOUT)
    server.pass_on(signal.SIGINT)
    (tmp_path / "go-on").touch()
    replacing.result()
    assert server.end() == 1


def test_the_second_signal_meanwhile_ends_it_at_once(server: _Server, tmp_path: pathlib.Path) -> None:
    """As ever."""
    replacing = Task(server.go_on, ["service.py"])
    until((tmp_path / "signal-1").exists, "a child that stops", EVENT_TIMEOUT)
    server.pass_on(signal.SIGINT)
    server.pass_on(signal.SIGINT)
    replacing.result()
    assert server.end() == 2


def test_a_server_that_cannot_be_started_is_an_error() -> None:
    """Its text says so."""
    with pytest.raises(click.ClickException, match=r"the server cannot be started: .*nowhere"):
        _Server(["/nowhere"], drain=1.0).go_on([])


STUBBORN = """
import pathlib, signal, subprocess, sys, time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
path = pathlib.Path(sys.argv[1]) / "helper"
path.with_suffix(".new").write_text(str(helper.pid))
path.with_suffix(".new").rename(path)
time.sleep(3600)
"""


def test_a_server_that_does_not_end_is_killed_with_what_it_has_started(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper that was left would keep what the next server needs: ports, for example."""
    monkeypatch.setattr("msgbus.cli.reload.KILL_AFTER", 0.1)
    server = _Server([sys.executable, "-c", STUBBORN, str(tmp_path)], drain=0.1)
    server.go_on([])
    until((tmp_path / "helper").exists, "a helper", EVENT_TIMEOUT)
    status = pathlib.Path("/proc", (tmp_path / "helper").read_text(), "stat")
    assert server.end() == 128 + signal.SIGKILL

    def is_dead() -> bool:
        try:
            return status.read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    until(is_dead, "the end of the helper", EVENT_TIMEOUT)
