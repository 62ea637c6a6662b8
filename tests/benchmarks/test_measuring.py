"""One measurement, in processes of its own, of a made-up library."""

from __future__ import annotations

import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks import proc
from benchmarks.catalogue import BLOCKING, Cell, Row
from benchmarks.process import Failed, Process
from benchmarks.results import Figures
from benchmarks.runner import figures, measure
from benchmarks.systems import System
from benchmarks.workloads import SUBSCRIBERS

SECONDS = 0.05


def measured(
    folder: pathlib.Path, workload: str, fault: str = "", *, together: bool = False, size: int = 100, broker: int = 0
) -> Figures:
    """What is found of the made-up library, which may have a fault."""
    peer = f"tests.benchmarks.peer:{'TOGETHER' if together else 'APART'}"
    row = Row("made-up", "floor", peer, BLOCKING, together)
    pids = frozenset({broker} if broker else ())
    system = System(f"zmq://{folder}/run?{fault}", "", pids)
    return measure(Cell("zmq", workload, size, row), sys.executable, system, SECONDS)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A folder with a short name, for Unix sockets. At the end neither they nor processes may be left."""
    before = proc.children(os.getpid())
    path = tmp_path_factory.mktemp("b")
    yield path
    assert not proc.children(os.getpid()) - before
    assert not list(path.iterdir())


@pytest.mark.parametrize("workload", BLOCKING)
def test_every_workload_is_measured(folder: pathlib.Path, workload: str) -> None:
    """A rate, CPU and memory of both sides; the median time of a call only where single calls are timed."""
    found = measured(folder, workload)
    expected = {"per_second", "client_cpu_us", "server_cpu_us", "client_memory_mb", "server_memory_mb"}
    assert set(found) == expected | ({"p50_us"} if workload == "call_seq" else set())
    assert found["per_second"] > 0
    assert min(found["client_memory_mb"], found["server_memory_mb"]) > 5


def test_client_and_server_in_one_process(folder: pathlib.Path) -> None:
    """There is no server whose CPU and memory could be told apart."""
    assert set(measured(folder, "fanout", together=True)) == {"per_second", "client_cpu_us", "client_memory_mb"}


def test_large_payloads(folder: pathlib.Path) -> None:
    """They travel, and are compared, whole."""
    assert measured(folder, "call_seq", size=100_000)["per_second"] > 0


def test_the_brokers_cpu_is_measured_where_its_processes_are_known(folder: pathlib.Path) -> None:
    """Here the test itself stands for the broker."""
    assert measured(folder, "call_seq", broker=os.getpid())["broker_cpu_us"] >= 0


@pytest.mark.parametrize(
    ("workload", "fault", "text"),
    [
        ("call_seq", "answers-wrong", "WrongAnswer"),
        ("call_conc", "answers-wrong", "WrongAnswer"),
        ("cast", "doubles", "came twice"),
        ("fanout", "doubles", "came twice"),
        ("call_seq", "no-start", "the made-up server cannot start"),
        ("cast", "dies", "the made-up server dies"),
    ],
)
def test_what_goes_wrong_is_said(folder: pathlib.Path, workload: str, fault: str, text: str) -> None:
    """No figure comes of a library that loses its way, and the reason is that of the process where it happened."""
    with pytest.raises(Failed, match=text):
        measured(folder, workload, fault)


def test_a_process_that_says_nothing_is_given_up() -> None:
    """Waiting has an end."""
    with (
        Process(sys.executable, "tests.benchmarks.silent") as process,
        pytest.raises(Failed, match=r"nothing for 0\.1 s"),
    ):
        process.answer(0.1)


def test_the_end_of_another_process_is_seen_while_one_waits() -> None:
    """A client does not wait for a server that is gone until its own time is over."""
    with (
        Process(sys.executable, "tests.benchmarks.silent") as client,
        Process(sys.executable, "tests.benchmarks.no_such_module") as server,
        pytest.raises(Failed, match="no_such_module"),
    ):
        client.answer(60, [server])


def test_figures_are_for_each_operation() -> None:
    """CPU is that of all servers; a fanout delivers to each of them."""
    load = {"operations": 100, "p50": None}
    found = figures(load, 2.0, [0.1, 0.8, 0.05], SUBSCRIBERS, apart=True, broker=True)
    assert found == pytest.approx(
        {"per_second": 400, "client_cpu_us": 1000, "server_cpu_us": 8000, "broker_cpu_us": 500}
    )


def test_nothing_done_is_no_figure() -> None:
    """Rather than a division by zero."""
    with pytest.raises(Failed, match="nothing was done"):
        figures({"operations": 0, "p50": None}, 1.0, [0, 0, 0], 1, apart=True, broker=False)


def test_cpu_and_memory_of_a_process() -> None:
    """What /proc says of the process that asks."""
    before = proc.cpu_seconds([os.getpid()])
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert proc.cpu_seconds([os.getpid()]) - before >= 0.08
    assert proc.peak_memory(os.getpid()) > 5
    assert proc.memory(os.getpid()) > 5
    assert 1 < proc.own_memory(os.getpid()) < 4096
    with socket.socket():
        files, sockets = proc.descriptors(os.getpid())
    assert files > sockets > 0
    assert proc.cpu_seconds([2**30]) == 0, "one that has ended"
