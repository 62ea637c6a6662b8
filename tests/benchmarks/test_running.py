"""A run of many measurements: their order, what is kept of them, and what could not be measured."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence

import pytest

from benchmarks import __main__ as command
from benchmarks import catalogue, environments, machine, runner
from benchmarks.catalogue import Cell
from benchmarks.environments import Environment, PeerMissing
from benchmarks.process import Failed
from benchmarks.results import Figures, Measurement, Results
from benchmarks.systems import System, SystemMissing, running

CELLS = catalogue.cells(("rabbit",), ("call_seq", "cast"), (100,), ("pyamqp", "pyamqp-confirmed", "oslo.messaging"))


class Run:
    """A run whose measurements are made up.

    Attributes:
        order: what was measured.
        fail: rows that fail.
        interrupt_at: Ctrl-C comes in this measurement.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        self.fail: set[str] = set()
        self.interrupt_at = -1
        self.missing: set[str] = set()
        self.pythons: set[str] = set()
        monkeypatch.setattr(runner, "measure", self._measure)
        monkeypatch.setattr(runner, "running", self._running)
        monkeypatch.setattr(environments, "get", self._get)
        monkeypatch.setattr(runner, "import_ms", lambda: [50.0, 70.0, 55.0])
        monkeypatch.setattr(machine, "busy_share", lambda: 0.5)

    def _measure(self, cell: Cell, python: str, system: System, seconds: float) -> Figures:
        if len(self.order) == self.interrupt_at:
            raise KeyboardInterrupt
        self.order.append(f"{cell.workload} {cell.row.name}")
        self.pythons.add(python)
        if cell.row.name in self.fail:
            raise Failed("it has ended: no such thing")
        figure = {"call_seq": "p50_us"}.get(cell.workload, "per_second")
        return {figure: 100.0 + len(self.order), "client_cpu_us": 10.0}

    @contextlib.contextmanager
    def _running(self, name: str, _url: str | None) -> Iterator[System]:
        if name in self.missing:
            raise SystemMissing("it is not installed")
        yield System(f"{name}://", "Made-up 1.0", frozenset({1}))

    def _get(self, name: str, _requirements: Sequence[str], _module: str) -> Environment:
        if name in self.missing:
            raise PeerMissing(f"{name}: ERROR: requires another Python")
        return Environment("/made-up/python", {name: "9.9"})

    def results(self, cells: Sequence[Cell] = CELLS, rounds: int = 2) -> Results:
        """Of a run."""
        results = Results()
        runner.run(cells, results, rounds, 1.0, {}, lambda _: None, lambda: None)
        return results


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Measurements that are made up."""
    return Run(monkeypatch)


def test_what_is_compared_is_measured_in_turns(made_up: Run) -> None:
    """A B A B: one after the other, and all of it again in the next round."""
    made_up.results()
    once = [
        "call_seq msgbus",
        "call_seq msgbus-aio",
        "call_seq pyamqp",
        "call_seq pyamqp-confirmed",
        "call_seq oslo.messaging",
        "cast msgbus",
        "cast msgbus-aio",
        "cast pyamqp-confirmed",
        "cast oslo.messaging",
    ]
    assert made_up.order == once * 2


def test_others_run_in_their_own_environment(made_up: Run) -> None:
    """And ours in that of the run; the versions of both are kept."""
    results = made_up.results()
    assert made_up.pythons == {sys.executable, "/made-up/python"}
    assert results.versions["oslo.messaging"] == {"oslo.messaging": "9.9", "kombu": "?", "amqp": "?"}
    assert results.versions["pyamqp"]["amqp"][0].isdigit()
    assert results.about["broker of rabbit"] == "Made-up 1.0"


def test_a_library_that_cannot_be_installed_is_named(made_up: Run) -> None:
    """With the reason; the others are measured."""
    made_up.missing = {"oslo.messaging"}
    results = made_up.results()
    assert results.left_out == {"oslo.messaging": "oslo.messaging: ERROR: requires another Python"}
    assert "cast msgbus" in made_up.order
    assert not any("oslo" in what for what in made_up.order)


def test_a_missing_broker_is_named(made_up: Run) -> None:
    """Nothing is measured on it, and all else is."""
    made_up.missing = {"rabbit"}
    cells = [*CELLS, *catalogue.cells(("fake",), ("cast",), (100,), ())]
    results = made_up.results(cells)
    assert results.left_out == {"rabbit": "it is not installed"}
    assert made_up.order == ["cast msgbus", "cast msgbus-aio"] * 2


def test_a_failure_is_kept_and_the_run_goes_on(made_up: Run) -> None:
    """It is not tried again, since a failure may take minutes."""
    made_up.fail = {"pyamqp"}
    results = made_up.results()
    assert results.left_out == {"rabbit call_seq 100 pyamqp": "it has ended: no such thing"}
    assert made_up.order.count("call_seq pyamqp") == 1
    assert made_up.order.count("call_seq msgbus") == 2


def test_the_command_keeps_and_shows_results(
    made_up: Run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file has every measurement, the page is written, and a busy machine is named."""
    words = ["--only", "rabbit,call_seq", "--peers", "pyamqp", "--sizes", "100", "--rounds", "2"]
    assert command.main([*words, "--json", str(tmp_path / "found.json"), "--record", str(tmp_path / "docs")]) == 0
    assert len(Results.read(tmp_path / "found.json").measurements) == 6
    assert "call_seq" in (tmp_path / "docs" / "performance.md").read_text()
    assert (tmp_path / "docs" / "performance" / "rabbit-call-seq.svg").exists()
    output = capsys.readouterr()
    assert "rabbit: call_seq" in output.out
    assert "is busy" in output.err


def test_the_command_fails_if_something_was_not_measured(made_up: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """And says what, and why."""
    made_up.fail = {"pyamqp"}
    assert command.main(["--only", "rabbit,call_seq", "--peers", "pyamqp", "--sizes", "100"]) == 1
    assert "no such thing" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_measured(
    made_up: Run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file has it, the tables are shown, and no page is written from half a run."""
    made_up.interrupt_at = 3
    words = ["--only", "rabbit,call_seq", "--peers", "pyamqp", "--sizes", "100"]
    assert command.main([*words, "--json", str(tmp_path / "found.json"), "--record", str(tmp_path / "docs")]) == 130
    assert len(Results.read(tmp_path / "found.json").measurements) == 3
    assert not (tmp_path / "docs").exists()
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--only", "call-seq"], "no workload or message system 'call-seq'"),
        (["--peers", "celery"], "no 'celery'"),
        (["--sizes", "10"], "at least 100"),
        (["--url", "kafka://there"], "no message system 'kafka'"),
    ],
)
def test_a_wrong_option_says_what_there_is(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is measured."""
    with pytest.raises(SystemExit, match="2"):
        command.main(words)
    assert text in capsys.readouterr().err


def chosen(*words: str) -> list[Cell]:
    """What is measured with these words."""
    options = command.parser().parse_args(words)
    return command.chosen_cells(options, {url.partition(":")[0]: url for url in options.url})


def test_what_is_measured_can_be_chosen() -> None:
    """By message system, workload, size and row; ours is always there."""
    assert {cell.system for cell in chosen()} == set(catalogue.SYSTEMS)
    assert {cell.system for cell in chosen("--url", "qpid://there")} == {"qpid"}
    some = chosen("--only", "zmq,call_seq", "--peers", "rpyc", "--sizes", "100,200")
    assert [(cell.size, cell.row.name) for cell in some] == [
        (100, "msgbus"),
        (100, "msgbus-aio"),
        (100, "msgbus-typed"),
        (100, "rpyc"),
        (200, "msgbus"),
        (200, "msgbus-aio"),
        (200, "msgbus-typed"),
        (200, "rpyc"),
    ]
    assert {cell.row.name for cell in chosen("--peers", "none")} == {"msgbus", "msgbus-aio", "msgbus-typed"}


def test_quick_needs_no_library_of_others() -> None:
    """Unless it is named; and it is short enough for three minutes."""
    quick = chosen("--quick")
    assert all(cell.row.own is None and cell.size == 100 for cell in quick)
    assert len(quick) <= 32
    assert {"call_seq", "call_conc", "cast", "cast_many", "fanout"} <= {cell.workload for cell in quick}
    assert "rpyc" in {cell.row.name for cell in chosen("--quick", "--peers", "rpyc")}


def test_a_driver_that_is_not_installed_is_a_missing_system() -> None:
    """It is found before a broker is started."""
    with pytest.raises(SystemMissing, match="the driver carrier-pigeon is not installed"), running("carrier-pigeon"):
        pass


def test_results_are_of_whole_rounds(made_up: Run) -> None:
    """Each measurement knows its round: ratios are taken in one."""
    results = made_up.results()
    first = Measurement(0, "rabbit", "call_seq", 100, "msgbus", {"p50_us": 101.0, "client_cpu_us": 10.0})
    assert results.measurements[0] == first
    assert [it.round for it in results.measurements] == [0] * 9 + [1] * 9
