"""msgbus.drivers.toolkit.connecting: which host is tried when, and what the log says of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest

from msgbus.conformance.waiting import until
from msgbus.drivers.toolkit.connecting import Connector
from msgbus.drivers.toolkit.loop import Loop
from msgbus.exceptions import TransportUnavailable
from tests.support import EVENT_TIMEOUT


class Hosts:
    """Two hosts, of which those in `up` can be reached."""

    def __init__(self, loop: Loop) -> None:
        self.up = {1}
        self.faults: list[BaseException] = []
        self.lost: TransportUnavailable | None = None
        self.connector = Connector(loop, self, 2)
        self.connected = threading.Semaphore(0)

    def dial(self, attempt: int) -> int:
        if self.faults:
            raise self.faults.pop()
        if attempt % 2 not in self.up:
            raise ConnectionRefusedError("nobody listens")
        return attempt % 2

    def discard(self, connection: int) -> None:
        pass

    def explain(self, error: BaseException, attempt: int) -> tuple[str, bool]:
        if isinstance(error, KeyError):
            raise ZeroDivisionError("the driver has a fault")
        return f"host {attempt % 2}: {error}", False

    def on_connected(self, connection: int) -> None:
        self.connector.serve(f"host {connection}")

    def on_up(self) -> None:
        self.connected.release()

    def on_lost(self, error: TransportUnavailable) -> None:
        self.lost = error

    def let_go(self) -> None:
        pass

    def on_permanent(self, error: TransportUnavailable) -> None:
        pass


@pytest.fixture
def loop() -> Iterator[Loop]:
    """One that is closed at the end."""
    loop = Loop("test")
    yield loop
    loop.close()


def test_after_a_move_each_host_that_fails_is_logged_once(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever host the connection was to before, an operator sees why the others could not be reached."""
    hosts = Hosts(loop)
    hosts.connector.open()
    assert hosts.connected.acquire(timeout=EVENT_TIMEOUT)
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    hosts.up = set()
    loop.call(lambda: hosts.connector.lose("it does not answer", move=True))

    def failures() -> list[tuple[str, str]]:
        return [
            (record.levelname, record.getMessage().partition(": ")[2][:6])
            for record in list(caplog.records)
            if "cannot be made" in record.msg
        ]

    until(lambda: len(failures()) >= 3, "three tries")
    assert failures()[:3] == [("WARNING", "host 0"), ("WARNING", "host 1"), ("DEBUG", "host 0")]
    hosts.up = {0, 1}
    assert hosts.connected.acquire(timeout=EVENT_TIMEOUT)
    hosts.connector.close()


@pytest.mark.parametrize("fault", [asyncio.CancelledError(), SystemExit(1)], ids=repr)
def test_whatever_a_library_raises_a_connection_is_tried_again(loop: Loop, fault: BaseException) -> None:
    """Also what is no `Exception`: libraries for asyncio cancel tasks of their own."""
    hosts = Hosts(loop)
    hosts.faults.append(fault)
    hosts.connector.open()
    assert hosts.connected.acquire(timeout=EVENT_TIMEOUT)
    hosts.connector.close()


def test_an_error_that_a_driver_cannot_explain_does_not_keep_the_next_connection_away(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither while it connects, nor when the connection breaks: who waits for that is notified."""
    hosts = Hosts(loop)
    hosts.faults.append(KeyError("while it connects"))
    hosts.connector.open()
    assert hosts.connected.acquire(timeout=EVENT_TIMEOUT)
    loop.call(hosts.connector.lose, KeyError("later"))
    assert hosts.connected.acquire(timeout=EVENT_TIMEOUT)
    assert hosts.lost is not None
    assert str(hosts.lost) == "KeyError, which the driver cannot explain"
    assert caplog.text.count("cannot be explained") == 2
    hosts.connector.close()
