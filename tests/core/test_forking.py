"""What is to happen in forked children: for all objects that live, and at no cost for those that do not."""

from __future__ import annotations

import gc
import os
from types import FunctionType

import pytest
from oslo_config import cfg

from msgbus import deadline, forking, get_rpc_transport
from msgbus.message import IDS_AT_ONCE, new_id
from tests.support import PROTON


class Item:
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls
        forking.call_in_child(self.on_fork)

    def on_fork(self) -> None:
        self.calls.append(self.name)
        if self.name == "broken":
            raise SystemExit("broken")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_each_living_object_is_called_once_after_a_fork_in_order() -> None:
    """In a child the methods of the objects that live are called in order, also after one that raises."""
    calls: list[str] = []
    items = [Item(name, calls) for name in ("first", "broken", "dropped", "last")]
    del items[2]
    child = os.fork()
    if child == 0:
        os._exit(0 if calls == ["first", "broken", "last"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not calls


def test_a_child_does_not_inherit_a_deadline() -> None:
    """A child that a handler forks may outlive the request, and calls with a time of its own."""
    token = deadline.current.set(0.0)
    try:
        child = os.fork()
        if child == 0:
            os._exit(0 if deadline.bounded(1.0) == 1.0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert deadline.bounded(1.0) == 0.0
    finally:
        deadline.current.reset(token)


@pytest.mark.parametrize(
    "url", ["fake://", "zmq://", "rabbit://guest:guest@127.0.0.1:1/", pytest.param("qpid://127.0.0.1:1/", marks=PROTON)]
)
def test_closed_transports_leave_nothing_behind(url: str) -> None:
    """Of transports that were made and closed no object is left, neither their own nor one for forks."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])

    def objects_after(count: int) -> int:
        for _ in range(count):
            get_rpc_transport(conf, url).cleanup()
        gc.collect()
        # Of msgbus alone, and functions: what measures the coverage keeps objects of its own for each thread.
        found = gc.get_objects()
        return sum(isinstance(item, FunctionType) or str(type(item).__module__).startswith("msgbus") for item in found)

    objects_after(20)  # what is imported and remembered once
    registered = len(forking._methods)
    before = objects_after(20)
    assert objects_after(500) - before < 200
    assert len(forking._methods) == registered


@pytest.mark.parametrize("when", ["between two ids", "while ids are made"])
def test_a_child_makes_ids_of_its_own(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are made many at a time, and a reply is accepted by its id alone: so parent and child never use the same."""
    read, write = os.pipe()
    child: int | None = None
    last = ""

    def fork() -> None:
        nonlocal child
        if child is None:
            child = os.fork()

    if when == "between two ids":
        new_id()
        fork()
        last = new_id()
    else:
        random = os.urandom

        def urandom(size: int) -> bytes:
            made = random(size)
            fork()  # As a handler of a signal may do.
            return made

        monkeypatch.setattr(os, "urandom", urandom)
        while child is None:
            last = new_id()
    found = [last, *(new_id() for _ in range(2 * IDS_AT_ONCE))]
    if not child:
        os.write(write, " ".join(found).encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        others = pipe.read().split()
    os.waitpid(child, 0)
    assert len({*found, *others}) == 2 * (2 * IDS_AT_ONCE + 1)
