"""What a call, a cast and an item of a stream cost: they may not become dearer unnoticed.

Counted are the bytecode instructions that Python runs for one of them, in fresh processes, over the bus in memory and
over ZeroMQ, which need no broker. What is recorded is in tests/counts/recorded, for each version of Python.

Why instructions of Python, and not time or instructions of the processor: time says nothing on a machine that does
something else too. Valgrind's callgrind counts the processor's instructions, but also those that depend on the machine
(its C library, which memory it gets, how threads fight for the interpreter), takes fifty times as long, and is a
package of 80 MB. Bytecode instructions need no package and are nearly the same in each run: two runs differ by 3 %, by
how often a loop turns. What is written in C counts only by being called, so time has to be measured besides, on a quiet
machine: see benchmarks.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module

import pytest

from tests.counts import comparing, tracing
from tests.counts.comparing import Costs, complaint
from tests.support import ROOT

KINDS = ("call", "cast", "stream")
WASTED = 0.15
"""The share by which a call is made dearer on purpose."""
SECONDS = 100


def measure(driver: str, waste: int = 0, kinds: tuple[str, ...] = KINDS) -> Costs:
    """Count in processes of their own."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mb"))
    url = f"zmq://{folder}" if driver == "zmq" else f"{driver}://counted/"
    command = [sys.executable, "-m", "tests.counts.child", "client", url, str(waste), *kinds]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS)
    finally:
        shutil.rmtree(folder)
    assert result.returncode == 0, result.stderr
    costs: Costs = json.loads(result.stdout)
    return costs


@pytest.fixture(scope="module", params=["fake", "zmq"])
def counted(request: pytest.FixtureRequest) -> tuple[str, Costs]:
    """A driver, and what is counted over it; with ``MSGBUS_RECORD=1`` that is recorded."""
    driver: str = request.param
    costs = measure(driver)
    if os.environ.get("MSGBUS_RECORD"):
        comparing.record(driver, costs)
    return driver, costs


@pytest.mark.parametrize("kind", KINDS)
def test_cost_is_as_recorded(counted: tuple[str, Costs], kind: str) -> None:
    """Not more than a tenth more; and if it is more than a tenth less, that has to be recorded, so that it stays."""
    driver, costs = counted
    recorded = comparing.read()
    if recorded is None or driver not in recorded.buses:
        pytest.skip(f"nothing is recorded for this Python; record it with {comparing.RECORD}")
    complaints = [
        complaint(f"one {kind} over {driver}, {side}", counts, costs[kind][side])
        for side, counts in recorded.buses[driver][kind].items()
    ]
    found = [text for text in complaints if text is not None]
    assert not found, "\n\n".join(found) + comparing.other_libraries(recorded)


def test_a_call_that_costs_more_is_noticed(counted: tuple[str, Costs]) -> None:
    """If each message runs one more function, on purpose, there is a complaint on each side, which begins with it."""
    driver, costs = counted
    cheapest = min(sum(counts.values()) for counts in costs["call"].values())
    dearest = max(sum(counts.values()) for counts in costs["call"].values())
    assert dearest < 2 * cheapest, "the same waste would not do for both sides"
    wasting = measure(driver, int(dearest * WASTED / 3), ("call",))
    for side, counts in costs["call"].items():
        text = complaint(f"one call over {driver}, {side}", counts, wasting["call"][side])
        assert text is not None
        first, heading, culprit, *_ = text.splitlines()
        assert f"one call over {driver}, {side} costs " in first
        assert "more than recorded" in first
        assert heading == "The functions that grew most:"
        assert culprit.endswith("  tests/counts/waste.py:waste"), text
        assert complaint("the same", counts, counts) is None


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (89.9, "10% less than recorded (100). So that it stays so, record it: MSGBUS_RECORD=1 "),
        (90.0, None),
        (100.0, None),
        (110.0, None),
        (110.1, "10% more than recorded (100)."),
        (300.0, "200% more than recorded (100)."),
    ],
)
def test_a_tenth_is_the_bound(now: float, says: str | None) -> None:
    """Exactly a tenth is still right, in both directions."""
    text = complaint("a call", {"a.py:f": 60.0, "a.py:g": 40.0}, {"a.py:f": 60.0, "a.py:g": now - 60.0})
    assert (text is None) == (says is None)
    assert text is None or (says is not None and says in text)


def test_a_complaint_names_what_grew_and_what_moved() -> None:
    """Most first, with the counts before and now; a function that is new, and one that is gone, too."""
    text = complaint("a call", {"a.py:f": 50.0, "a.py:old": 50.0}, {"a.py:f": 55.0, "a.py:g": 80.0, "a.py:new": 50.0})
    assert text is not None
    lines = text.splitlines()
    assert lines[2:5] == [
        "     +80.0  (0.0 -> 80.0)  a.py:g",
        "     +50.0  (0.0 -> 50.0)  a.py:new",
        "      +5.0  (50.0 -> 55.0)  a.py:f",
    ]
    assert lines[6] == "     -50.0  (50.0 -> 0.0)  a.py:old"


def test_counts_are_recorded_beside_those_of_other_drivers(tmp_path: pathlib.Path) -> None:
    """To record one driver's leaves the others' as they are."""
    path = tmp_path / "recorded" / "3.0.json"
    assert comparing.read(path) is None
    first: Costs = {"call": {"both": {"b.py:f": 1.5, "a.py:f": 2.0}}}
    comparing.record("one", first, path)
    comparing.record("two", {}, path)
    comparing.record("two", first, path)
    found = comparing.read(path)
    assert found is not None
    assert found.buses == {"one": first, "two": first}
    assert comparing.other_libraries(found) == ""
    found.libraries["pyzmq"] = "0.1"
    assert "(recorded: 0.1)" in comparing.other_libraries(found)


@pytest.mark.parametrize("name", tracing.TIMED)
def test_each_function_that_is_left_out_exists(name: str) -> None:
    """One that is renamed would be counted."""
    file, _, qualname = name.partition(":")
    found: object = import_module(file.removesuffix(".py").replace("/", "."))
    for part in qualname.split("."):
        found = vars(found)[part]
