"""A fork of the test's process while it uses a driver."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings

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
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about a fork with threads, which is what is tested
        child = os.fork()
    if child == 0:
        _be_the_child(driver, address, mine)
    assert _end_of(child) == 0, "the child failed"
    bodies = [str(n) for n in range(20)]
    send_all(driver, address, bodies)
    send_all(driver, inbox.address, bodies)
    mine.wait_for_all(bodies)
    replies.wait_for_all(bodies)
    assert sorted(replies.bodies) == sorted(["before", *bodies])
    assert set(mine.bodies) <= {"before", *bodies, "from the child"}
    assert len(mine.bodies) == len(set(mine.bodies))


def _be_the_child(driver: Driver, parents: Address, of_the_parent: Receiver) -> None:
    code = 1
    try:
        count = len(of_the_parent.deliveries)
        own = Receiver()
        address = parents._replace(server="child")
        own.subscribe(driver, address)
        send(driver, parents, "from the child", mandatory=False)
        send_all(driver, address, ["1", "2", "3"])
        own.wait_for_all(["1", "2", "3"])
        assert len(of_the_parent.deliveries) == count, "the child got messages of the parent"
        driver.close()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # without what the parent does at exit


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
