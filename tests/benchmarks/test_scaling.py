"""How the cost of a call grows: a short run of the real thing, without a broker."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks import __main__ as command
from benchmarks.process import Failed
from benchmarks.scaling import run
from benchmarks.scaling.points import Points
from benchmarks.scaling.run import Plan


def test_a_plan_can_be_made_smaller() -> None:
    """Up to a largest count of anything."""
    assert Plan().up_to(100) == Plan((1, 10, 100), (1, 10, 100), (1, 10, 50, 100), 10_000)
    assert Plan().up_to(10**6) == Plan()


def test_each_scenario_is_measured() -> None:
    """On zmq, in processes of their own: rates and CPU, what a ping takes, and memory while calls go on."""
    points = Points()
    told: list[str] = []
    run.run(Plan((3,), (2,), (2,), 50), ["zmq"], {}, points, 0.1, told.append, lambda: None)
    assert not points.left_out
    assert told == ["zmq in_flight 3", "zmq topics 2", "zmq servers 2", "zmq calls 50"]
    found = {point.scenario: point for point in points.points}
    assert found["in_flight"].x == 3
    assert found["in_flight"].figures["per_second"] > 0
    assert found["topics"].figures["server_memory_mb"] > 5
    assert found["servers"].figures["next_ping_ms"] > 0
    assert "server_cpu_us" not in found["servers"].figures, "others had a part of the calls"
    assert found["calls"].x >= 50
    assert set(found["calls"].figures) == {"client_rss_mb", "server_rss_mb"}


def test_a_failure_is_named_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command shows it, and ends with 1."""

    def fail(*_: object) -> None:
        raise Failed("the client has ended: no memory")

    monkeypatch.setattr(run, "_topics", fail)
    monkeypatch.setattr(run, "_load", lambda *_: {"client_cpu_us": 5.0})
    monkeypatch.setattr(run, "_servers", lambda *_: [(1, {"client_cpu_us": 5.0})])
    monkeypatch.setattr(run, "_calls", lambda *_: [(100, {"client_rss_mb": 5.0})])
    words = ["--scaling", "--only", "zmq", "--largest", "1", "--record", str(tmp_path)]
    assert command.main([*words, "--json", str(tmp_path / "found.json")]) == 1
    assert Points.read(tmp_path / "found.json").left_out == {"zmq topics 1": "the client has ended: no memory"}
    assert "no memory" in capsys.readouterr().out
    assert "### By calls in flight" in (tmp_path / "performance.md").read_text()
