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

The checks arrive with the class, new ones by upgrading msgbus. Each asks for the capabilities that it needs, and is
skipped where the driver does not declare them; and for what it needs of the `Harness`, for example that it can break
connections. The more a harness can do, the more is checked.

Checks whose names begin with ``test_slow`` take 15 seconds and more: ``-k "not slow"`` leaves them out.
"""

from msgbus.conformance.harness import Harness

__all__ = ["Harness"]
