"""The conformance suite: what every driver of msgbus, ours or yours, has to do. It needs pytest.

A driver joins with a test file like this one::

    import pytest

    from msgbus.conformance import Harness
    from msgbus.conformance.suite import Conformance


    class MyHarness(Harness):
        url = "mine://localhost/"


    class TestMyDriver(Conformance):
        @pytest.fixture(scope="class")
        @classmethod
        def harness(cls) -> Harness:
            return MyHarness()

The checks arrive with the class, new ones by upgrading msgbus; `DriverConformance` and `BusConformance` have those of
the bare driver and of the whole bus alone. Each check asks for the capabilities that it needs, and is skipped where the
driver does not declare them; and for what it needs of the `Harness`, for example that it can break connections. The
more a harness can do, the more is checked. A check that builds on another is not judged where that one has failed.

Without a test file: ``msgbus conformance --url mine://localhost/``.

Checks whose names begin with ``test_slow`` take 15 seconds and more: ``-k "not slow"`` leaves them out.
"""

import sys

REWRITTEN = tuple(f"{__name__}.{part}" for part in ("bus", "checks", "endpoint", "processes", "suite", "waiting"))
"""Modules whose asserts pytest is to rewrite, so that a check that fails says with which values."""

if "pytest" in sys.modules:  # Not in the servers' processes.
    import pytest

    # Before anything of it is imported.
    pytest.register_assert_rewrite(*REWRITTEN)

from msgbus.conformance.harness import Harness  # noqa: E402

__all__ = ["Harness"]
