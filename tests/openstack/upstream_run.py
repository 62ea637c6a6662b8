"""Runs functional tests of oslo.messaging: ``python -m tests.openstack.upstream_run threads|eventlet TEST...``.

They come with oslo.messaging, and are run unchanged: `RPC_TRANSPORT_URL` and `NOTIFY_TRANSPORT_URL` in the environment
say over what. Without a TEST it prints the names of all that there are, one a line. Else it prints a line of JSON for
each test that has ended: its name, "passed", "skipped" or "failed", and why.

Three things are arranged for them here. Importing the package of the tests replaces threads by those of eventlet: for
``threads`` it is imported without running its ``__init__``, and each server gets the executor that fits. And two tests
skip themselves unless the URL begins with ``rabbit://``, where that is to ask for what the driver can do: they are
shown that it does.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import traceback
import types
import unittest
from collections.abc import Iterator
from typing import Any

MODULES = ("oslo_messaging.tests.functional.test_functional", "oslo_messaging.tests.functional.notify.test_logger")


def stay_on_threads() -> None:
    """Import oslo.messaging's tests without eventlet, and have their servers use threads."""
    import oslo_messaging.server

    name = "oslo_messaging.tests"
    found = importlib.util.find_spec("oslo_messaging")
    assert found is not None
    spec = importlib.machinery.PathFinder.find_spec(name, found.submodule_search_locations)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = oslo_messaging.tests = package
    make = oslo_messaging.server.MessageHandlingServer.__init__

    def make_on_threads(self: Any, transport: Any, dispatcher: Any, executor: str | None = None) -> None:
        make(self, transport, dispatcher, "threading")

    oslo_messaging.server.MessageHandlingServer.__init__ = make_on_threads


class Url(str):
    """A URL that says that its driver can do what that of ``rabbit://`` can."""

    __slots__ = ()

    def startswith(self, prefix: Any, *where: Any) -> bool:
        return prefix == "rabbit://" or super().startswith(prefix, *where)


def show_what_the_driver_can() -> None:
    """Have no test skip itself for the name of the driver."""
    from oslo_config import cfg
    from oslo_messaging.tests.functional import utils

    set_up = utils.SkipIfNoTransportURL.setUp

    def set_up_all(self: Any, conf: Any = cfg.CONF) -> None:
        set_up(self, conf=conf)
        self.rpc_url = Url(self.rpc_url)

    utils.SkipIfNoTransportURL.setUp = set_up_all


def tests_in(suite: Any) -> Iterator[Any]:
    """The tests of a suite of suites."""
    for it in suite:
        if isinstance(it, unittest.TestSuite):
            yield from tests_in(it)
        else:
            yield it


def short(name: str) -> str:
    """A test's name without the package: what it is called everywhere here."""
    return name.removeprefix("oslo_messaging.tests.functional.")


class Result(unittest.TestResult):
    """Prints what came of each test."""

    def _print(self, test: Any, outcome: str, why: str) -> None:
        print(json.dumps([short(test.id()), outcome, why]), flush=True)

    def addSuccess(self, test: Any) -> None:  # unittest's own name
        self._print(test, "passed", "")

    def addSkip(self, test: Any, reason: Any = "", details: Any = None) -> None:
        self._print(test, "skipped", reason or _text(details))

    def addFailure(self, test: Any, err: Any = None, details: Any = None) -> None:
        self._print(test, "failed", "".join(traceback.format_exception(*err)) if err else _text(details))

    addError = addFailure


def _text(details: Any) -> str:
    """What testtools knows of the end of a test."""
    return "\n".join(content.as_text() for content in (details or {}).values())


def main() -> None:
    """See the module's text."""
    kind, *wanted = sys.argv[1:]
    if kind == "threads":
        stay_on_threads()
    tests = {short(test.id()): test for test in tests_in(unittest.defaultTestLoader.loadTestsFromNames(MODULES))}
    if not wanted:
        print("\n".join(tests))
        return
    show_what_the_driver_can()
    for name in wanted:
        tests[name].run(Result())


if __name__ == "__main__":
    main()
