"""The conformance suite on ZeroMQ, between processes of this host."""

from __future__ import annotations

import os
import pathlib

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import Conformance
from tests.documented import Documented
from tests.functional.zmq_faults import cut_connections


class ZmqHarness(Harness):
    """A run directory of its own. There is no broker that could be stopped."""

    def __init__(self, run_dir: pathlib.Path) -> None:
        self._run_dir = run_dir
        self.url = f"zmq://{run_dir}"

    def cut(self) -> None:
        cut_connections(self._run_dir)

    def leftovers(self) -> set[str]:
        return set(os.listdir(self._run_dir)) - {"changes"}


class TestZmq(Documented, Conformance):
    """Every check, with processes of its own."""

    column = "zmq"

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, tmp_path_factory: pytest.TempPathFactory) -> Harness:
        return ZmqHarness(tmp_path_factory.mktemp("zmq"))
