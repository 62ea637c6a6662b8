"""What is made of measurements: medians, ratios, targets, and the page."""

from __future__ import annotations

import ast
import pathlib
from importlib.util import find_spec
from xml.etree import ElementTree

import pytest

from benchmarks import catalogue, page, svg
from benchmarks.catalogue import ALL, OUR_ROWS, SYSTEMS
from benchmarks.results import Measurement, Results, Spread
from benchmarks.scaling.points import SCENARIOS, Point, Points
from benchmarks.targets import TARGETS
from benchmarks.text import low_high, number, size_text
from benchmarks.workloads import WORKLOADS
from tests.support import ROOT

DOCS = ROOT / "docs"


def made_up() -> Results:
    """A run of three rounds: slower than pyamqp in calls, in each round; faster in casts, but for one."""
    results = Results()
    results.about = {"processor": "a <fast> one"}
    results.versions = {"pyamqp": {"amqp": "5.4.2"}}
    results.import_ms = [50.0, 70.0, 55.0]
    for number_, (ours, theirs) in enumerate([(900.0, 300.0), (400.0, 200.0), (100.0, 50.0)]):
        for row, value in (("msgbus", ours), ("pyamqp", theirs)):
            figures = {"p50_us": value, "client_cpu_us": value / 10, "client_memory_mb": 35.0}
            results.add(Measurement(number_, "rabbit", "call_seq", 100, row, figures))
    for number_, (ours, theirs) in enumerate([(3000.0, 1000.0), (2000.0, 1000.0), (900.0, 1000.0)]):
        for row, value in (("msgbus", ours), ("pyamqp-confirmed", theirs)):
            results.add(Measurement(number_, "rabbit", "cast", 100, row, {"per_second": value}))
    return results


def test_a_ratio_is_the_median_of_those_of_each_round() -> None:
    """Not the ratio of the medians: a round that was slow for all says as much as another."""
    results = made_up()
    assert results.spread("rabbit", "call_seq", 100, "msgbus", "p50_us") == Spread(400, 100, 900)
    assert results.ratio("rabbit", "call_seq", 100, "pyamqp", "p50_us") == Spread(2, 2, 3)


def test_a_ratio_is_of_rounds_that_have_both() -> None:
    """A failure in one round leaves the others."""
    results = made_up()
    del results.measurements[1]
    assert results.ratio("rabbit", "call_seq", 100, "pyamqp", "p50_us") == Spread(2, 2, 2)
    assert results.ratio("rabbit", "call_seq", 100, "kombu", "p50_us") is None
    assert results.ratio("rabbit", "call_seq", 100, "pyamqp", "broker_cpu_us") is None


def test_targets_are_judged() -> None:
    """Each for which there is something to judge, in the direction that is better."""
    found = {(it.target.workload, it.target.other): it.met for it in made_up().verdicts()}
    assert found == {("call_seq", "pyamqp"): False, ("cast", "pyamqp-confirmed"): True, ("call_seq", None): True}
    assert made_up().import_is_met
    assert Results().import_is_met is None


def test_a_target_may_compare_workloads_and_be_of_the_api_for_asyncio() -> None:
    """Many tasks, which others do not have, with what others do best; and msgbus.aio with msgbus."""
    results = Results()
    for row, workload, figure, value in (
        ("msgbus-aio", "call_tasks", "per_second", 10_000.0),
        ("pyamqp-windowed", "call_conc", "per_second", 2000.0),
        ("msgbus-aio", "call_seq", "p50_us", 300.0),
        ("msgbus", "call_seq", "p50_us", 200.0),
    ):
        results.add(Measurement(0, "rabbit", workload, 100, row, {figure: value}))
    found = {(it.target.workload, it.target.compared): (it.value.median, it.met) for it in results.verdicts()}
    assert found == {("call_tasks", "pyamqp-windowed, call_conc"): (5.0, True), ("call_seq", "msgbus"): (1.5, False)}
    text = page.page(results, None)
    assert "| rabbit | call_seq | msgbus-aio | p50 us | msgbus | <= 1 | 1.50 | 1.50 - 1.50 | **missed** |" in text
    assert "Nothing that was measured was faster" in text, "ours are no others"


def test_results_are_kept_whole(tmp_path: pathlib.Path) -> None:
    """They are the same after reading, and writing leaves nothing beside them."""
    path = tmp_path / "new" / "found.json"
    made_up().write(path)
    assert Results.read(path).as_data() == made_up().as_data()
    assert list(path.parent.iterdir()) == [path]


def test_a_page_says_what_was_missed_and_who_is_faster() -> None:
    """In every round, or in some; with what each side spends."""
    text = page.page(made_up(), None)
    assert "2 of 3 targets that were measured are met" in text
    assert "| rabbit | call_seq | msgbus | p50 us | pyamqp | <= 0.8 | 2 | 2 - 3 | **missed** |" in text
    assert "| rabbit | call_seq | msgbus | 40 | - | - |" in text
    always, sometimes = text.split("In some rounds")
    assert "| rabbit | call_seq | 100 bytes | pyamqp | 2 | 2 - 3 |" in always
    assert "| rabbit | cast | 100 bytes | pyamqp-confirmed | 0.50 | 0.33 - 1.11 |" in sometimes
    assert "a \\<fast\\> one" in text, "what others say is no markup"


def test_a_page_without_a_faster_one_says_so() -> None:
    """Only if it is so."""
    results = made_up()
    results.measurements = [it for it in results.measurements if it.workload == "cast" and it.round < 2]
    text = page.page(results, None)
    assert "Nothing that was measured was faster" in text
    assert "In every round" not in text


def test_a_page_says_what_could_not_be_measured() -> None:
    """And why."""
    results = made_up()
    results.left_out = {"nameko": "nameko: ERROR: requires another Python"}
    assert "- nameko: nameko: ERROR: requires another Python" in page.page(results, None)
    assert "could not be measured" not in page.page(made_up(), None)


def scaled() -> Points:
    """Costs that grow by a half, and memory that does not."""
    points = Points()
    points.about = {"processor": "one"}
    for count, cost in ((1, 100.0), (10, 80.0), (10_000, 120.0)):
        points.points.append(Point("in_flight", "zmq", count, {"client_cpu_us": cost, "per_second": 1e6 / cost}))
    for count in range(0, 100_000, 1000):
        points.points.append(Point("calls", "zmq", count, {"client_rss_mb": 40.0, "server_rss_mb": 41.0}))
    return points


def test_a_page_says_how_costs_grow(tmp_path: pathlib.Path) -> None:
    """With plots, and how much the largest is above the least."""
    text = page.page(None, scaled())
    assert "zmq, client CPU us: from 80 to 120, 1.50 times as much; at the largest count 120." in text
    assert "zmq, client MB: from 40 to 40, 1 times as much" in text
    path = tmp_path / "points.json"
    scaled().write(path)
    assert Points.read(path).as_data() == scaled().as_data()


def elements(drawing: str) -> list[ElementTree.Element]:
    """All elements of a drawing, which has to be XML."""
    return list(ElementTree.fromstring(drawing).iter())  # noqa: S314  # It is our own.


def test_every_plot_of_the_page_is_drawn(tmp_path: pathlib.Path) -> None:
    """And those of an earlier run are removed."""
    made_up().write(page.results_folder(tmp_path) / page.COMPARISON)
    scaled().write(page.results_folder(tmp_path) / page.SCALING)
    (tmp_path / "performance" / "old.svg").write_text("")
    text = page.write(tmp_path).read_text()
    drawn = {path.name for path in (tmp_path / "performance").glob("*.svg")}
    assert drawn == {line.partition("(performance/")[2].rstrip(")") for line in text.splitlines() if line[:2] == "!["}
    assert len(drawn) == 6
    for path in (tmp_path / "performance").glob("*.svg"):
        elements(path.read_text())


def test_what_explains_the_results_is_a_part_of_the_page(tmp_path: pathlib.Path) -> None:
    """It stands after the targets, and a run leaves it as it is. Without it there is none."""
    made_up().write(page.results_folder(tmp_path) / page.COMPARISON)
    assert page.explanation(tmp_path) == ""
    assert "## Why" not in page.write(tmp_path).read_text()
    path = tmp_path / "performance" / page.EXPLANATION
    path.write_text("## Why\n\nSince.\n")
    text = page.write(tmp_path).read_text()
    assert text.index("## Targets") < text.index("## Why") < text.index("## Where others are faster")
    assert path.read_text() == "## Why\n\nSince.\n"


def test_the_page_begins_with_the_calls_of_many_callers() -> None:
    """The fastest first, whoever that is; what is another library, or written by hand, says so."""
    results = Results()
    for row, rate in (("msgbus", 2000.0), ("nameko", 1000.0), ("pyamqp", 3000.0)):
        results.add(Measurement(0, "rabbit", "call_conc", 100, row, {"per_second": rate}))
    begin = page.page(results, None).partition("## How it was measured")[0]
    rows = [line for line in begin.splitlines() if line.startswith("| rabbit")]
    assert [row.split(" | ")[1] for row in rows] == ["pyamqp", "msgbus", "nameko"]
    assert "a loop written by hand" in rows[0]
    assert "another library" in rows[2]


def test_the_page_is_made_from_the_results() -> None:
    """Nobody has changed it by hand, nor forgotten to make it anew."""
    comparison, scaling = (page.results_folder(DOCS) / name for name in (page.COMPARISON, page.SCALING))
    results = Results.read(comparison) if comparison.exists() else None
    points = Points.read(scaling) if scaling.exists() else None
    assert (DOCS / "performance.md").read_text() == page.page(results, points, page.explanation(DOCS))
    for name, drawing in page.drawings(results, points).items():
        assert (DOCS / "performance" / name).read_text() == drawing


def test_bars_are_as_long_as_their_figures() -> None:
    """The longest has the room that there is."""
    drawing = svg.bars("b & w", "calls/s", [svg.Bar("a", 10, 8, 20), svg.Bar("b", 5, 5, 5)])
    widths = [float(it.attrib["width"]) for it in elements(drawing) if it.tag.endswith("rect")][1:]
    assert widths[0] == 2 * widths[1]
    with pytest.raises(ValueError, match="nothing to draw"):
        svg.lines("empty", "x", "y", {}, logarithmic=True)


def test_a_line_of_one_point_is_drawn() -> None:
    """A run may have been cut short."""
    assert elements(svg.lines("one", "x", "y", {"zmq": [(1.0, 0.0)]}, logarithmic=True))


def test_figures_have_the_digits_that_say_something() -> None:
    """And thousands are separated."""
    assert [number(value) for value in (12345.6, 99.94, 1.234, 21.0, 0.0)] == ["12,346", "99.9", "1.23", "21", "0"]
    assert low_high(Spread(2.5, 1.234, 30.1)) == "1.23 - 30.10"
    assert [size_text(size) for size in (100, 10240, 1024 * 1024)] == ["100 bytes", "10 KiB", "1 MiB"]


def test_every_row_has_its_code() -> None:
    """The module is there and has what is named, with a text for the page; ours are first on each message system."""
    for rows in SYSTEMS.values():
        assert [row.name for row in rows[:2]] == ["msgbus", "msgbus-aio"]
        assert [row.name for row in rows if row.kind == "ours"] == [row.name for row in rows if row.name in OUR_ROWS]
        kinds = [row.kind == "ours" for row in rows]
        assert kinds == sorted(kinds, reverse=True)
        for row in rows:
            module, _, attribute = row.peer.partition(":")
            spec = find_spec(module)
            assert spec is not None
            assert spec.origin is not None
            tree = ast.parse(pathlib.Path(spec.origin).read_text())
            assert ast.get_docstring(tree)
            names = {
                target.id
                for node in tree.body
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            assert attribute in names, row
            assert set(row.workloads) <= set(WORKLOADS)
            assert (row.own is not None) == (row.kind == "peer")


def test_every_target_can_be_measured() -> None:
    """Both rows take part in the workload."""
    cells = catalogue.cells(tuple(SYSTEMS), ALL, (100,), None)
    there = {(cell.system, cell.workload, cell.row.name) for cell in cells}
    for target in TARGETS:
        assert (target.system, target.workload, target.row) in there
        assert (target.system, target.others_workload or target.workload, target.other or target.row) in there


def test_every_scenario_has_a_heading() -> None:
    """Of the measurements of how costs grow."""
    from benchmarks.scaling.run import Plan

    assert {scenario for scenario, _ in Plan().steps()} == set(SCENARIOS)
