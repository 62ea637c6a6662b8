"""Runs the suite with pytest, independent of the pytest configuration of any project."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import sys
import tempfile

import pytest

from msgbus.conformance import REWRITTEN
from msgbus.conformance.check import Level, about
from msgbus.conformance.harness import THREADS, Harness, Worlds
from msgbus.conformance.report import Recorder, Result

STANDALONE = pathlib.Path(__file__).with_name("standalone.py")
TIMEOUT = 120.0
"""Seconds that a check may take."""


class RunFailed(Exception):
    """pytest could not run the checks. The text is what it printed."""


class _Selection:
    """A pytest plugin that selects the checks of a level, and provides the harness."""

    def __init__(self, harness: Harness, level: Level | None, worlds: Worlds) -> None:
        self._harness = harness
        self._level = level
        self._worlds = worlds

    def pytest_configure(self) -> None:
        """Have the suite's asserts rewritten. Earlier than this, pytest has no hook for it."""
        pytest.register_assert_rewrite(*(name for name in REWRITTEN if name not in sys.modules))

    @pytest.fixture(scope="session")
    def given_harness(self) -> Harness:
        """The harness that `run` was given."""
        return self._harness

    @pytest.fixture(scope="session")
    def given_worlds(self) -> Worlds:
        """The clients and servers that `run` was to use."""
        return self._worlds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the checks of another level."""
        if self._level is not None:
            items[:] = [i for i in items if isinstance(i, pytest.Function) and about(i.function).level == self._level]


def _forget_plain_modules() -> None:
    """Have modules imported again that were imported without rewritten asserts, for example by a harness."""
    for name, module in list(sys.modules.items()):
        if name.startswith(REWRITTEN) and not type(module.__loader__).__module__.startswith("_pytest."):
            del sys.modules[name]


def run(
    harness: Harness,
    recorder: Recorder,
    *,
    level: Level | None = None,
    keyword: str = "",
    junit: str | None = None,
    worlds: Worlds = THREADS,
) -> list[Result]:
    """Run the checks, and return their results.

    Args:
        harness: of the message system.
        recorder: gathers the results, and shows the progress meanwhile.
        level: None means both.
        keyword: an expression as for pytest's ``-k``.
        junit: the file for a JUnit XML report.
        worlds: the clients and the servers to use.

    Raises:
        RunFailed: pytest could not run them, for example because `keyword` is invalid.
    """
    _forget_plain_modules()
    with tempfile.TemporaryDirectory(prefix="msgbus-conformance-") as folder:
        # A configuration of our own, and no plugin but the timeout: nothing that is installed here or lies in this
        # directory is to affect the suite.
        configuration = pathlib.Path(folder, "pytest.ini")
        configuration.write_text("[pytest]\njunit_suite_name = msgbus.conformance\n")
        arguments = ["-c", str(configuration), f"--rootdir={STANDALONE.parent}", f"--basetemp={folder}/run"]
        arguments += ["--disable-plugin-autoload", "-p", "pytest_timeout", f"--timeout={TIMEOUT}"]
        arguments += ["-p", "no:cacheprovider", "-k", keyword]
        # An exception that ends a thread, or is lost in a finaliser, fails the check.
        for warning in ("PytestUnhandledThreadExceptionWarning", "PytestUnraisableExceptionWarning"):
            arguments += ["-W", f"error::pytest.{warning}"]
        if junit is not None:
            arguments.append(f"--junitxml={os.path.abspath(junit)}")
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = pytest.main([*arguments, str(STANDALONE)], plugins=[recorder, _Selection(harness, level, worlds)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RunFailed(said.getvalue().strip())
    return [result for results in recorder.results.values() for result in results.values()]
