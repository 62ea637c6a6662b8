"""A process that forks while it uses a driver, and looks at what that does to parent and child.

``python -m msgbus.conformance.forker``; the first line of its input is a `ServerSpec` as JSON. It says ``well``, or
ends with an exception, on either side of the fork.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback

import msgspec

from msgbus import get_rpc_transport
from msgbus.conformance.checks.receiver import Receiver, send, send_all
from msgbus.conformance.endpoint import ServerSpec, make_conf
from msgbus.conformance.waiting import until
from msgbus.drivers.base import Address, Driver


def main() -> None:
    """Fork, and see that both go on."""
    spec = msgspec.json.decode(sys.stdin.readline(), type=ServerSpec)
    transport = get_rpc_transport(make_conf(spec.options), spec.url)
    try:
        _fork(transport.driver, spec.topic)
    finally:
        transport.cleanup()
    sys.stdout.write("well\n")


def _fork(driver: Driver, topic: str) -> None:
    address = Address("server", "msgbus", topic, "parent")
    mine, replies = Receiver(), Receiver(accept=False)
    mine.subscribe(driver, address)
    inbox = driver.open_inbox(replies.take)
    inbox.ready.result(15)
    send_all(driver, address, ["before"])
    send_all(driver, inbox.address, ["before"])
    mine.wait_for("before")
    replies.wait_for("before")
    child = os.fork()
    if child == 0:
        _child(driver, address, mine)
    end = _end_of(child)
    assert end == 0, f"the child ended with {end}"
    bodies = [str(n) for n in range(20)]
    send_all(driver, address, bodies)
    send_all(driver, inbox.address, bodies)
    mine.wait_for_all(bodies)
    replies.wait_for_all(bodies)
    assert sorted(replies.bodies) == sorted(["before", *bodies])
    assert set(mine.bodies) <= {"before", *bodies, "from the child"}
    assert len(mine.bodies) == len(set(mine.bodies))


def _child(driver: Driver, parents: Address, of_the_parent: Receiver) -> None:
    code = 1
    try:
        count = len(of_the_parent.deliveries)
        own = Receiver()
        address = parents._replace(server="child")
        own.subscribe(driver, address)
        send(driver, parents, "from the child", mandatory=False)
        send_all(driver, address, ["1", "2", "3"])
        own.wait_for_all(["1", "2", "3"])
        assert len(of_the_parent.deliveries) == count, "the child got what is the parent's"
        driver.close()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # nothing of what the parent does at its end


def _end_of(child: int) -> int:
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(ended)

    try:
        until(has_ended, "the end of the child", 40)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return ended[0]


if __name__ == "__main__":
    main()
