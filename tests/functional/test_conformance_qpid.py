"""The conformance suite on Apache Qpid Broker-J, with its queues on disk."""

from __future__ import annotations

import pytest

from msgbus.conformance import Harness
from msgbus.conformance.suite import Conformance
from tests.documented import Documented
from tests.functional.brokers.qpid import Qpid


class QpidHarness(Harness):
    """One Broker-J."""

    def __init__(self, broker: Qpid) -> None:
        self.url = broker.url
        self._broker = broker

    def stop(self) -> None:
        self._broker.stop()

    def start(self) -> None:
        self._broker.start()

    def kill(self) -> None:
        self._broker.kill()

    def cut(self) -> None:
        self._broker.cut()

    def pause(self) -> None:
        self._broker.pause()

    def resume(self) -> None:
        self._broker.resume()

    def leftovers(self) -> set[str]:
        if not self._broker.alive():  # a check that stopped it has failed
            self._broker.start()
        # What the broker has made for inboxes and fanouts, and for the answers of its management.
        own = {name for name in self._broker.queue_names() if name.startswith(("qpidsub_", "TempQueue"))}
        return own | self._broker.connections()


class TestQpid(Documented, Conformance):
    """Every check, with processes of its own."""

    column = "qpid"

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, qpid_durable: Qpid) -> Harness:
        return QpidHarness(qpid_durable)
