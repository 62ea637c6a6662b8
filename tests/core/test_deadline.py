from __future__ import annotations

import contextvars
import threading
import time
from concurrent.futures import Future

import pytest

from msgbus import MessagingTimeout, TransportUnavailable
from msgbus.deadline import bounded, current, wait_for
from tests.support import new_transport


@pytest.mark.parametrize(
    ("inherited", "own", "result"),
    [(None, 5.0, 5.0), (3.0, 5.0, 3.0), (7.0, 5.0, 5.0), (5.0, 5.0, 5.0), (3.0, float("inf"), 3.0)],
)
def test_the_earlier_one_counts(inherited: float | None, own: float, result: float) -> None:
    """Of one's own deadline and the inherited one, the earlier one counts."""

    def run() -> float:
        current.set(inherited)
        return bounded(own)

    assert contextvars.copy_context().run(run) == result


def test_another_thread_inherits_nothing() -> None:
    """The deadline belongs to what a handler runs itself, not to the threads of the process."""
    found: list[float | None] = []

    def run() -> None:
        current.set(3.0)
        thread = threading.Thread(target=lambda: found.append(current.get()))
        thread.start()
        thread.join()

    contextvars.copy_context().run(run)
    assert found == [None]
    assert current.get() is None


def test_wait_for() -> None:
    """`wait_for` waits until the deadline; a timeout that the future failed with is raised as it is."""
    transport = new_transport()
    loop, driver = transport.loop, transport.driver
    future: Future[None] = Future()
    with pytest.raises(TransportUnavailable, match=r"^cannot do it the in-memory .*: gave up"):
        wait_for(loop, future, time.monotonic(), "cannot do it", driver)
    future.set_exception(MessagingTimeout("theirs"))
    with pytest.raises(MessagingTimeout, match="theirs"):
        wait_for(loop, future, time.monotonic(), "cannot do it", driver)
