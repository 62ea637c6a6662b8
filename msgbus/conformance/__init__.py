"""The conformance suite: checks what every driver of msgbus has to do. It needs pytest.

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

The class brings all checks; upgrading msgbus brings new ones. `DriverConformance` and `BusConformance` have only those
of the bare driver or of the whole bus. A check names the capabilities that it needs, and is skipped if the driver does
not declare them; and what the `Harness` has to be able to do, for example to break connections. The more a harness can
do, the more is checked. A check that builds on another one is skipped if that has failed.

The checks of the whole bus use the clients and servers of `msgbus`, which are for threads. A class uses those of
`msgbus.aio` if it says so; with a class that has the harness, each further pairing takes two lines::

    class TestMyDriverOnAsyncio(MyDriver, BusConformance):
        clients = servers = "asyncio"

Without a test file: ``msgbus conformance --url mine://localhost/``, with ``--client asyncio`` and
``--server asyncio`` if so desired.

Checks whose names begin with ``test_slow`` take 15 seconds and more: ``-k "not slow"`` leaves them out.
"""

import sys

REWRITTEN = tuple(
    f"{__name__}.{part}"
    for part in ("async_endpoint", "bus", "checks", "endpoint", "processes", "servers", "suite", "waiting")
)
"""Modules whose asserts pytest rewrites, so that a failing check shows the values."""

if "pytest" in sys.modules:  # It is not in the processes of the servers.
    import pytest

    # Before any of these modules is imported.
    pytest.register_assert_rewrite(*REWRITTEN)

from msgbus.conformance.harness import Harness, World  # noqa: E402

__all__ = ["Harness", "World"]
