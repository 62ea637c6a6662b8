"""A fork of the test's process while it uses a driver."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from msgbus import CallCancelled
from msgbus.conformance.checks.receiver import Receiver, send, send_all
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Driver


def look_at_a_fork(driver: Driver, address: Address) -> None:
    """Fork, and check that both sides continue, each with its own messages.

    Args:
        driver: of the parent. The child inherits it, and uses it.
        address: of a server that nobody else has.

    Raises:
        AssertionError: they do not. What went wrong in the child stands on stderr.
    """
    mine, replies = Receiver(), Receiver(accept=False)
    mine.subscribe(driver, address)
    inbox = driver.open_inbox(replies.take)
    inbox.ready.result(15)
    send_all(driver, address, ["before"])
    send_all(driver, inbox.address, ["before"])
    mine.wait_for("before")
    replies.wait_for("before")
    _in_child(lambda: _be_the_child(driver, address, mine))
    bodies = [str(n) for n in range(20)]
    send_all(driver, address, bodies)
    send_all(driver, inbox.address, bodies)
    mine.wait_for_all(bodies)
    replies.wait_for_all(bodies)
    assert sorted(replies.bodies) == sorted(["before", *bodies])
    assert set(mine.bodies) <= {"before", *bodies, "from the child"}
    assert len(mine.bodies) == len(set(mine.bodies))


def look_at_futures_after_a_fork(futures: Sequence[Future[Any]]) -> None:
    """Fork, and see that those futures that are not done fail in the child.

    Raises:
        AssertionError: they do not. What went wrong in the child stands on stderr.
    """
    unfinished = [future for future in futures if not future.done()]
    _in_child(lambda: _look_at_inherited(unfinished))


def _in_child(func: Callable[[], None]) -> None:
    """Run a function in a forked child, and return when that has ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about a fork with threads, which is what is tested
        child = os.fork()
    if child:
        assert _end_of(child) == 0, "the child failed"
        return
    code = 1
    try:
        func()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # without what the parent does at exit


def _be_the_child(driver: Driver, parents: Address, of_the_parent: Receiver) -> None:
    count = len(of_the_parent.deliveries)
    own = Receiver()
    address = parents._replace(server="child")
    own.subscribe(driver, address)
    send(driver, parents, "from the child", mandatory=False)
    send_all(driver, address, ["1", "2", "3"])
    own.wait_for_all(["1", "2", "3"])
    assert len(of_the_parent.deliveries) == count, "the child got messages of the parent"
    driver.close()


def _look_at_inherited(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        assert future.done(), "a future that was not done when the process forked is still not done in the child"
        error = future.exception(0)
        assert isinstance(error, CallCancelled), f"in the child it ended with {error!r}"


def _end_of(child: int) -> int:
    """Wait for the end of the child; return its exit code."""
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(ended)

    try:
        until(has_ended, "the end of the child", 60)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return ended[0]
