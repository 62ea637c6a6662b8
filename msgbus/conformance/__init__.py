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

if "pytest" in sys.modules:  # Not in the servers' processes.
    import pytest

    # Before anything of it is imported, so that its asserts say more.
    pytest.register_assert_rewrite(
        *(f"{__name__}.{part}" for part in ("bus", "checks", "processes", "suite", "waiting"))
    )

from msgbus.conformance.harness import Harness

__all__ = ["Harness"]
