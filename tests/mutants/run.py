"""Runs the suite on a mutant. ``python -m tests.mutants.run NAME [URL]`` prints a line of JSON for each check.

The URL is that of the message system, for a mutant of `tests.mutants.processes`.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence
from multiprocessing import forkserver

import msgspec

from msgbus.conformance.check import Level
from msgbus.conformance.fake import FakeHarness
from msgbus.conformance.harness import Harness
from msgbus.conformance.report import Recorder, Result
from msgbus.conformance.run import run
from tests.mutants.others import OTHERS
from tests.mutants.promises import PROMISES
from tests.mutants.ten import TEN


def run_on_fake(name: str) -> Sequence[Result]:
    """Run the checks: of one of the ten all, of the others those of the bare driver.

    The slow ones are left out, unless one of them is to catch this mutant.
    """
    mutant = (TEN | OTHERS | PROMISES)[name]
    mutant.apply()
    slow = any(check.startswith("test_slow") for check in mutant.caught_by)
    level: Level | None = None if name in TEN else "driver"
    return run(FakeHarness(), Recorder(), level=level, keyword="" if slow else "not slow")


def run_on(url: str, name: str) -> Sequence[Result]:
    """Run the slow checks of the whole bus: they kill processes."""
    from tests.mutants.processes import PROCESSES, VARIABLE

    PROCESSES[name].apply()
    os.environ[VARIABLE] = name
    # The server from which processes are forked passes over a module that it does not find, and has a path of its own.
    os.environ["PYTHONPATH"] = str(pathlib.Path(__file__).parents[2])
    preload = forkserver.set_forkserver_preload
    # The suite says what to preload each time that it is imported: once more when pytest rewrites its assertions.
    forkserver.set_forkserver_preload = lambda modules_names: preload(["tests.mutants.processes", *modules_names])
    harness = Harness()
    harness.url = url
    return run(harness, Recorder(), level="bus", keyword="slow")


def main(name: str, url: str = "") -> None:
    """See the module's text."""
    for result in run_on(url, name) if url else run_on_fake(name):
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
