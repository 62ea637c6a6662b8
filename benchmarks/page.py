"""Writes docs/performance.md, with its plots, from the results of runs; and takes the explanation of them along."""

from __future__ import annotations

import ast
import pathlib
import statistics
from collections.abc import Iterable
from importlib.util import find_spec

from benchmarks import svg
from benchmarks.catalogue import OUR_ROWS, OURS, SYSTEMS, Row
from benchmarks.payloads import SMALL
from benchmarks.results import FIGURES, Results, Spread
from benchmarks.scaling.points import SCALING_FIGURES, SCENARIOS, Points
from benchmarks.targets import IMPORT_MS
from benchmarks.text import low_high, number, size_text
from benchmarks.workloads import WORKLOADS

COMPARISON, SCALING = "comparison.json", "scaling.json"
EXPLANATION = "explanation.md"
"""Of what missed targets consist: the only part of the page that is written by hand."""
_HEAD = """\
# Performance

What msgbus costs, next to loops that are written by hand on the libraries under it, and to other libraries of its
kind. No figure of a run is written by hand: `python -m benchmarks --record docs` and the same with `--scaling` measure
and write the page, and `docs/performance/generate.py` writes it again from what they have kept in
`docs/performance/results`. Anybody can make it on their own machine: `CONTRIBUTING.md` says how.
"""
_METHOD = """\
## How it was measured

- Only ratios of one run say something on their own: other machines have other figures. What is compared was measured
  one after the other, and all of it again in each round, so that whatever else the machine did fell on all. Each
  figure is the median of the rounds, with the least and the most where it is the figure that is compared. A ratio is
  taken in each round, and then it is the median of those.
- Client and server are processes of their own, and fresh for each measurement, except on `fake`, which is in the
  memory of one process. Before it counts there is half a second of load. All answers are checked, and for casts that
  each has been processed exactly once.
- *CPU* is what the process has used, with all its threads, in user and in system, from `/proc`, divided by the number
  of operations; of a fanout, the server's column has all eight servers. *Peak MB* is the most resident memory.
- Payloads are records of a few fields, and a text that makes them as large as said. Each library carries them in the
  way that it does by itself; where it has none, they are JSON.
- In *cast* each library waits for what it waits for by itself: most for the broker's confirmation. In *cast_many*
  confirmations are pipelined where the library can do that, else 32 threads send, or nothing is confirmed at all: rows
  that promise less are faster for that reason, and their text says so.
- Messages that nobody answers are 256 MiB at most in one measurement: large ones end before the time does.
- What waits for answers or confirmations is 64 MiB at most: *call_tasks* with payloads of 1 MiB has 64 callers.
- Everything listens on the loopback of one machine, which clients, servers and brokers share.
"""
_KINDS = {"floor": "a loop written by hand", "peer": "another library"}


def results_folder(docs: pathlib.Path) -> pathlib.Path:
    """Where the results of runs are kept."""
    return docs / "performance" / "results"


def write(docs: pathlib.Path) -> pathlib.Path:
    """Write the page and its plots, from the results that are there. Returns where the page is."""
    comparison, scaling = results_folder(docs) / COMPARISON, results_folder(docs) / SCALING
    results = Results.read(comparison) if comparison.exists() else None
    points = Points.read(scaling) if scaling.exists() else None
    plots = docs / "performance"
    plots.mkdir(parents=True, exist_ok=True)
    for old in plots.glob("*.svg"):
        old.unlink()
    for name, drawing in drawings(results, points).items():
        (plots / name).write_text(drawing)
    path = docs / "performance.md"
    path.write_text(page(results, points, explanation(docs)))
    return path


def explanation(docs: pathlib.Path) -> str:
    """Why targets are missed, in words; empty if nobody has written it."""
    path = docs / "performance" / EXPLANATION
    return path.read_text() if path.exists() else ""


def page(results: Results | None, points: Points | None, why: str = "") -> str:
    """The text of the page; `why` explains the targets that are missed."""
    parts = [_HEAD]
    if results is None and points is None:
        parts.append("No run has been recorded yet.\n")
    if results is not None:
        parts += [_in_short(results), _METHOD, _about(results), _rows(results), _targets(results)]
        parts += [why, _slower(results), _tables(results)] if why else [_slower(results), _tables(results)]
    if points is not None:
        parts.append(_scaling(points))
    left_out = (results.left_out if results else {}) | (points.left_out if points else {})
    if left_out:
        lines = [f"- {what}: {_plain(why)}" for what, why in left_out.items()]
        parts.append("\n".join(["## What could not be measured", "", *lines, ""]))
    return "\n".join(parts)


def drawings(results: Results | None, points: Points | None) -> dict[str, str]:
    """File name -> SVG, of each plot of the page."""
    return (_comparing(results) if results else {}) | (_growing(points) if points else {})


def _comparing(results: Results) -> dict[str, str]:
    found = {}
    for system, workload, size in results.groups():
        drawing = _bars(results, system, workload, size)
        if drawing is not None:
            found[_plot(system, workload)] = drawing
    return found


def _growing(points: Points) -> dict[str, str]:
    found = {}
    for scenario, counted in SCENARIOS.items():
        for figure, heading in _plotted(points, scenario):
            series = {
                system: [
                    (float(point.x), point.figures[figure])
                    for point in points.of(scenario, system)
                    if figure in point.figures
                ]
                for system in points.systems(scenario)
            }
            found[_plot(scenario, figure)] = svg.lines(
                f"{heading}, by {counted}", counted, heading, series, logarithmic=scenario != "calls"
            )
    return found


def _plot(first: str, second: str) -> str:
    return f"{first}-{second}.svg".replace("_", "-")


def _bars(results: Results, system: str, workload: str, size: int) -> str | None:
    """The plot of a group of small payloads, if there is something to compare."""
    figure = WORKLOADS[workload].figure
    found = [
        svg.Bar(row, spread.median, spread.low, spread.high, row in OUR_ROWS)
        for row in results.rows(system, workload, size)
        if (spread := results.spread(system, workload, size, row, figure)) is not None
    ]
    if size != SMALL or len(found) < 2:
        return None
    kind = WORKLOADS[workload]
    unit = f"{kind.unit}; {'less' if kind.less_is_better else 'more'} is better"
    return svg.bars(f"{system}: {workload}, {size_text(size)}", unit, found)


def _plotted(points: Points, scenario: str) -> list[tuple[str, str]]:
    """The figures of a scenario of which there are plots, and their headings."""
    wanted = ("client_cpu_us", "per_second", "client_rss_mb", "server_rss_mb")
    there = {figure for point in points.points if point.scenario == scenario for figure in point.figures}
    return [(figure, SCALING_FIGURES[figure]) for figure in wanted if figure in there]


def _about(results: Results) -> str:
    lines = ["### On what", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_plain(text)} |" for name, text in results.about.items()]
    versions = [
        f"| {row} | {', '.join(f'{name} {version}' for name, version in found.items())} |"
        for row, found in results.versions.items()
        if found
    ]
    return "\n".join([*lines, "", "| row | versions |", "|---|---|", *versions, ""])


def _rows(results: Results) -> str:
    lines = ["### What is done", "", "| workload | |", "|---|---|"]
    lines += [f"| {name} | {workload.text} |" for name, workload in WORKLOADS.items()]
    lines += ["", "| row | on | | |", "|---|---|---|---|"]
    measured = {(it.system, it.row) for it in results.measurements}
    for system, rows in SYSTEMS.items():
        by_module: dict[str, list[Row]] = {}
        for row in rows:
            if row.kind != "ours" and (system, row.name) in measured:
                by_module.setdefault(row.peer.partition(":")[0], []).append(row)
        for module, found in by_module.items():
            names = ", ".join(row.name for row in found)
            lines.append(f"| {names} | {system} | {_KINDS[found[0].kind]} | {_about_module(module)} |")
    return "\n".join([*lines, ""])


def _about_module(module: str) -> str:
    """The docstring of a module, in one line. It is not imported: its library may be installed elsewhere."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = ast.get_docstring(ast.parse(pathlib.Path(spec.origin).read_text())) or ""
    return " ".join(text.split())


def _targets(results: Results) -> str:
    verdicts = results.verdicts()
    met = sum(verdict.met for verdict in verdicts)
    lines = [
        "## Targets",
        "",
        f"{met} of {len(verdicts)} targets that were measured are met. A target is of the ratio of msgbus to another"
        " row, or of a figure of msgbus, with payloads of 100 bytes. Limits in microseconds of CPU are half of what"
        " release 0.1.0 needed on the machine where it was measured: on another they say little.",
        "",
        "| on | workload | of | figure | compared with | target | found | min - max | |",
        "|---|---|---|---|---|---:|---:|---:|---|",
    ]
    for target, value, is_met in verdicts:
        compared, verdict = target.compared, "met" if is_met else "**missed**"
        of = (target.system, target.workload, target.row, FIGURES[target.name])
        cells = (*of, compared, target, number(value.median))
        lines.append(f"| {' | '.join(map(str, cells))} | {low_high(value)} | {verdict} |")
    if results.import_ms:
        spread, verdict = Spread.of(results.import_ms), "met" if results.import_is_met else "**missed**"
        median = number(statistics.median(results.import_ms))
        lines.append(f"| | `import msgbus` | | ms | | <= {IMPORT_MS:g} | {median} | {low_high(spread)} | {verdict} |")
    return "\n".join([*lines, "", *_missed(results)])


def _missed(results: Results) -> list[str]:
    """Of what the difference consists, where a target is missed."""
    missed = [verdict.target for verdict in results.verdicts() if not verdict.met and verdict.target.other]
    if not missed:
        return []
    cpu = ("client_cpu_us", "server_cpu_us", "broker_cpu_us")
    lines = [
        "Where a ratio is missed, this is what each side spends for an operation, in microseconds of CPU. The rest of a"
        " sequential call's time is waiting: for the other process, for a hand-off between threads, for the kernel.",
        "",
        f"| on | workload | | {' | '.join(FIGURES[figure] for figure in cpu)} |",
        "|---|---|---|---:|---:|---:|",
    ]
    places = [(target.system, target.workload, target.row) for target in missed]
    places += [(target.system, target.others_workload or target.workload, target.other or "") for target in missed]
    for system, workload, row in sorted(dict.fromkeys(places)):
        spreads = (results.spread(system, workload, SMALL, row, figure) for figure in cpu)
        cells = ("-" if spread is None else number(spread.median) for spread in spreads)
        lines.append(f"| {system} | {workload} | {row} | {' | '.join(cells)} |")
    return [*lines, ""]


def _in_short(results: Results) -> str:
    """What a reader wants to see first: calls of many callers, with a broker and without."""
    workload = "call_conc"
    lines = ["## In short", "", "Calls of 32 callers in one process, payloads of 100 bytes, the fastest first.", ""]
    lines += ["| over | row | calls/s | |", "|---|---|---:|---|"]
    for system in ("rabbit", "zmq"):
        kinds = {row.name: _KINDS.get(row.kind, "") for row in SYSTEMS[system]}
        found = []
        for row in results.rows(system, workload, SMALL):
            rate = results.spread(system, workload, SMALL, row, WORKLOADS[workload].figure)
            if rate is not None:
                found.append((rate.median, f"| {system} | {row} | {number(rate.median)} | {kinds[row]} |"))
        lines += [line for _, line in sorted(found, reverse=True)]
    return "\n".join([*lines, ""])


def _slower(results: Results) -> str:
    """Where others are better, and by how much."""
    clearly, about = [], []
    for system, workload, size in results.groups():
        kind = WORKLOADS[workload]
        for row in results.rows(system, workload, size):
            ratio = None if row in OUR_ROWS else results.ratio(system, workload, size, row, kind.figure)
            if ratio is None:
                continue
            # By how much the other is better, whichever direction is better.
            times = (
                ratio
                if kind.less_is_better
                else Spread(*(1 / value for value in (ratio.median, ratio.high, ratio.low)))
            )
            where = f"{system} | {workload} | {size_text(size)} | {row} | {number(times.median)} | {low_high(times)}"
            if times.low > 1:
                clearly.append((times.median, where))
            elif times.high > 1:
                about.append((times.median, where))
    lines = ["## Where others are faster", ""]
    lines += _ranked("In every round these were faster than msgbus, so many times:", clearly)
    lines += _ranked("In some rounds these were, and in others msgbus was:", about)
    if not clearly and not about:
        lines += ["Nothing that was measured was faster than msgbus in any round.", ""]
    return "\n".join(lines)


def _ranked(text: str, found: Iterable[tuple[float, str]]) -> list[str]:
    ranked = [f"| {where} |" for _, where in sorted(found, reverse=True)]
    head = [text, "", "| on | workload | payload | row | times as fast | min - max |", "|---|---|---|---|---:|---:|"]
    return [*head, *ranked, ""] if ranked else []


def _tables(results: Results) -> str:
    lines = ["## All figures", ""]
    title = ""
    for system, workload, size in results.groups():
        if title != f"### {system}, {size_text(size)}":
            title = f"### {system}, {size_text(size)}"
            lines += [title, ""]
        kind = WORKLOADS[workload]
        if _bars(results, system, workload, size) is not None:
            lines += [f"![{workload} on {system}](performance/{_plot(system, workload)})", ""]
        rows = results.rows(system, workload, size)
        shown = [
            figure for figure in FIGURES if any(results.spread(system, workload, size, row, figure) for row in rows)
        ]
        headings = []
        for figure in shown:
            headings.append(kind.unit if figure == kind.figure else FIGURES[figure])
            if figure == kind.figure:
                headings += ["min - max", "msgbus to it"]
        lines += [f"| **{workload}** | {' | '.join(headings)} |", f"|---|{'---:|' * len(headings)}"]
        for row in rows:
            lines.append(f"| {row} | {' | '.join(_cells(results, system, workload, size, row, shown))} |")
        lines.append("")
    return "\n".join(lines)


def _cells(results: Results, system: str, workload: str, size: int, row: str, shown: Iterable[str]) -> list[str]:
    cells = []
    for figure in shown:
        spread = results.spread(system, workload, size, row, figure)
        cells.append("-" if spread is None else number(spread.median))
        if figure == WORKLOADS[workload].figure:
            cells.append("-" if spread is None else low_high(spread))
            ratio = None if row == OURS else results.ratio(system, workload, size, row, figure)
            cells.append("" if ratio is None else f"{number(ratio.median)} ({low_high(ratio)})")
    return cells


def _scaling(points: Points) -> str:
    lines = [
        "## How the cost grows",
        "",
        "Calls of 100 bytes, all the time. By calls in flight: from so many threads, to one server. By topics: from 32"
        " threads, to one server process of so many topics, in turns. By servers: from 32 threads, to any of so many"
        " servers. By calls made so far: from 32 threads, to one server, with a look at both sides' memory.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_plain(text)} |" for name, text in points.about.items()),
        "",
    ]
    for scenario, counted in SCENARIOS.items():
        if not points.systems(scenario):
            continue
        lines += [f"### By {counted}", "", *_growth(points, scenario), ""]
        for figure, heading in _plotted(points, scenario):
            lines += [f"![{heading} by {counted}](performance/{_plot(scenario, figure)})", ""]
        for system in points.systems(scenario):
            found = points.of(scenario, system)
            if scenario == "calls":  # The plot has all.
                found = found[:: max(len(found) // 5, 1)]
            shown = [figure for figure in SCALING_FIGURES if any(figure in point.figures for point in found)]
            headings = " | ".join(SCALING_FIGURES[figure] for figure in shown)
            lines += [f"| {system}: {counted} | {headings} |", f"|---|{'---:|' * len(shown)}"]
            for point in found:
                cells = (number(point.figures[figure]) if figure in point.figures else "-" for figure in shown)
                lines.append(f"| {point.x:,} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def _growth(points: Points, scenario: str) -> list[str]:
    """How far the figures that should stay as they are do so."""
    lines = []
    for system in points.systems(scenario):
        for figure in ("client_cpu_us", "client_rss_mb", "server_rss_mb"):
            values = [point.figures[figure] for point in points.of(scenario, system) if figure in point.figures]
            if values:
                least, most, last = min(values), max(values), values[-1]
                heading = SCALING_FIGURES[figure]
                lines.append(
                    f"- {system}, {heading}: from {number(least)} to {number(most)}, {number(most / least)} times as"
                    f" much; at the largest count {number(last)}."
                )
    return lines


def _plain(text: str) -> str:
    """Somebody's text, which may have characters that mean something in Markdown."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|$" else char for char in text)
