"""Runs the suite with pytest, outside of any project of pytest's."""

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
from msgbus.conformance.harness import Harness
from msgbus.conformance.report import Recorder, Result

STANDALONE = pathlib.Path(__file__).with_name("standalone.py")
TIMEOUT = 120.0
"""Seconds that a check may take."""


class RunFailed(Exception):
    """pytest could not run the checks. The text is what it said."""


class _Selection:
    """A plugin of pytest's that leaves out what is not asked for, and has the harness."""

    def __init__(self, harness: Harness, level: Level | None) -> None:
        self._harness = harness
        self._level = level

    def pytest_configure(self) -> None:
        """Have the suite's asserts rewritten. Before, there was no hook of pytest's that could do it."""
        pytest.register_assert_rewrite(*(name for name in REWRITTEN if name not in sys.modules))

    @pytest.fixture(scope="session")
    def given_harness(self) -> Harness:
        """The harness that `run` was given."""
        return self._harness

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the checks of another level."""
        if self._level is not None:
            items[:] = [i for i in items if isinstance(i, pytest.Function) and about(i.function).level == self._level]


def _forget_plain_modules() -> None:
    """Have what was imported without rewritten asserts imported again: a harness may lie in a file of tests."""
    for name, module in list(sys.modules.items()):
        if name.startswith(REWRITTEN) and not type(module.__loader__).__module__.startswith("_pytest."):
            del sys.modules[name]


def run(
    harness: Harness, recorder: Recorder, *, level: Level | None = None, keyword: str = "", junit: str | None = None
) -> list[Result]:
    """Run the checks, and return what came of each.

    Args:
        harness: of the message system.
        recorder: gathers the results, and tells of the progress meanwhile.
        level: None means both.
        keyword: an expression as of pytest's ``-k``.
        junit: a file for a report in the XML of JUnit.

    Raises:
        RunFailed: pytest could not run them, for example as `keyword` is no expression.
    """
    _forget_plain_modules()
    with tempfile.TemporaryDirectory(prefix="msgbus-conformance-") as folder:
        # A file of our own, and no plugin but that of the timeout: what else is installed here, and what lies in this
        # directory, has nothing to do with the suite.
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
            code = pytest.main([*arguments, str(STANDALONE)], plugins=[recorder, _Selection(harness, level)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RunFailed(said.getvalue().strip())
    return [result for results in recorder.results.values() for result in results.values()]
