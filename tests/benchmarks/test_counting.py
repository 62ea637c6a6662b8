"""What operations cost in counts."""

from __future__ import annotations

import pathlib
import shutil
import sys
from collections.abc import Iterator

import pytest

from benchmarks import counting
from benchmarks.catalogue import BLOCKING, Cell, Row
from benchmarks.counting import Counts, Kind
from benchmarks.systems import System

STRACE = """\
syscall                calls    errors
---------------- ----------- ---------
futex                   4011       320
sendto                    12
---------------- ----------- ---------
total                   4023       320
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A folder with a short name, for Unix sockets."""
    path = tmp_path_factory.mktemp("c")
    yield path
    assert not list(path.iterdir())


def counted(folder: pathlib.Path, workload: str, kind: Kind) -> Counts:
    """What is counted of the made-up library."""
    row = Row("made-up", "floor", "tests.benchmarks.peer:APART", BLOCKING)
    system = System(f"zmq://{folder}/run?", "")
    return counting.count(Cell("zmq", workload, 100, row), sys.executable, system, 0.1, kind)


@pytest.mark.parametrize("workload", ["call_seq", "cast"])
def test_functions_are_counted_for_each_operation(folder: pathlib.Path, workload: str) -> None:
    """On both sides; the same program runs the same functions again and again."""
    found = counted(folder, workload, "functions")
    assert set(found) == {"client", "server"}
    for side in found.values():
        assert set(side) == {"Python functions", "C functions"}
        assert all(1 < number < 1000 for number in side.values())


def test_waits_are_counted_for_each_operation(folder: pathlib.Path) -> None:
    """A client that waits for an answer gives up the processor."""
    found = counted(folder, "call_seq", "waits")
    assert set(found) == {"client", "server"}
    assert 0 < found["client"]["waits"] < 100


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_system_calls_are_counted_for_each_operation(folder: pathlib.Path) -> None:
    """The made-up library reads and writes sockets."""
    found = counted(folder, "call_seq", "system calls")
    for side in found.values():
        assert side["sendto"] >= 1
        assert side["system calls"] >= side["sendto"] + side["recvfrom"]


def test_the_table_of_strace_is_read() -> None:
    """With and without errors; the total is no system call."""
    assert counting.read_strace(STRACE) == {"futex": 4011, "sendto": 12}


def test_a_report_has_the_most_first() -> None:
    """What hardly ever happens is left out."""
    found = {"client": {"a": 0.5, "b": 12.0, "c": 0.001}, "server": {"d": 1.0}}
    assert counting.report(found) == "  client: b 12.00, a 0.50\n  server: d 1.00"


@pytest.mark.parametrize(
    ("system", "row", "workload"),
    [("zmq", "no-such", "cast"), ("zmq", "pyzmq", "cast"), ("fake", "msgbus", "cast"), ("no-such", "msgbus", "cast")],
)
def test_a_row_that_cannot_be_counted_is_refused(system: str, row: str, workload: str) -> None:
    """Its name is unknown, it has no such workload, or client and server are one process."""
    with pytest.raises(ValueError, match=row):
        counting.find_row(system, row, workload)
