"""The environments of the libraries that msgbus is compared with."""

from __future__ import annotations

import os
import pathlib
import sys
import time
from collections.abc import Sequence

import pytest

from benchmarks import environments
from benchmarks.environments import PeerMissing, get


class Machine:
    """Notes what would be run, and does none of it.

    Attributes:
        ran: a word for each command.
        fails: the word whose command fails.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.fails = ""
        monkeypatch.setattr(environments, "_run", self._run)

    def _run(self, name: str, command: Sequence[str]) -> str:
        word = next(word for word in ("venv", "install", "list", "-c") if word in command)
        self.ran.append(word)
        if word == self.fails:
            raise PeerMissing(f"{name}: {word} failed")
        if word == "venv":
            pathlib.Path(command[-1]).mkdir(parents=True)
        return '[{"name": "rpyc", "version": "6.0.2"}]'


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine on which nothing is installed."""
    return Machine(monkeypatch)


def test_an_environment_is_made_once(machine: Machine, tmp_path: pathlib.Path) -> None:
    """Later runs only look whether it still works."""
    first = get("rpyc", ["rpyc"], "rpyc", tmp_path)
    assert first.versions == {"rpyc": "6.0.2"}
    assert first.python == str(tmp_path / "rpyc" / "bin" / "python")
    assert machine.ran == ["venv", "install", "-c", "list"]
    machine.ran.clear()
    assert get("rpyc", ["rpyc"], "rpyc", tmp_path) == first
    assert machine.ran == ["-c", "list"]


def test_an_old_environment_gets_the_newest_release(machine: Machine, tmp_path: pathlib.Path) -> None:
    """It is not made anew for that."""
    get("rpyc", ["rpyc"], "rpyc", tmp_path)
    old = time.time() - environments.FRESH_SECONDS - 1
    os.utime(tmp_path / "rpyc" / "installed", (old, old))
    machine.ran.clear()
    get("rpyc", ["rpyc"], "rpyc", tmp_path)
    assert machine.ran == ["install", "-c", "list"]


def test_other_requirements_are_installed(machine: Machine, tmp_path: pathlib.Path) -> None:
    """Even if the environment is recent."""
    get("rpyc", ["rpyc"], "rpyc", tmp_path)
    machine.ran.clear()
    get("rpyc", ["rpyc", "plumbum"], "rpyc", tmp_path)
    assert "install" in machine.ran


@pytest.mark.parametrize("step", ["venv", "install", "-c"])
def test_what_failed_is_tried_again_in_the_next_run(machine: Machine, tmp_path: pathlib.Path, step: str) -> None:
    """From the beginning: what is there may be half of it."""
    machine.fails = step
    with pytest.raises(PeerMissing, match=f"rpyc: {step} failed"):
        get("rpyc", ["rpyc"], "rpyc", tmp_path)
    machine.fails = ""
    machine.ran.clear()
    get("rpyc", ["rpyc"], "rpyc", tmp_path)
    assert machine.ran == ["venv", "install", "-c", "list"]


def test_a_failed_command_says_why() -> None:
    """In the words of what failed."""
    with pytest.raises(PeerMissing, match="rpyc: ModuleNotFoundError: No module named 'no_such_module'"):
        environments._run("rpyc", [sys.executable, "-c", "import no_such_module"])


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("Traceback:\n  File x\n    raise error\nValueError: no\n", "ValueError: no"),
        (
            "ERROR: Ignored versions\nERROR: No matching distribution found for x\n\n",
            "ERROR: No matching distribution found for x",
        ),
        ("one\ntwo\n", "two"),
        ("", "it failed without a word"),
    ],
)
def test_the_reason_is_found_in_what_a_program_says(output: str, line: str) -> None:
    """Lines that are set in are code."""
    assert environments.reason(output) == line


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Each version of Python has its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environments.cache().parent == tmp_path / "msgbus-benchmarks"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert environments.cache().parent == pathlib.Path("/home/ann/.cache/msgbus-benchmarks")
