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
