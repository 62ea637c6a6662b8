"""Shows the results of a run in the terminal."""

from __future__ import annotations

import statistics

from rich.console import Console
from rich.table import Table

from benchmarks.catalogue import OURS
from benchmarks.results import FIGURES, Results, Spread
from benchmarks.scaling.points import SCALING_FIGURES, SCENARIOS, Points
from benchmarks.targets import IMPORT_MS
from benchmarks.text import low_high, number, size_text
from benchmarks.workloads import WORKLOADS

_SEVERAL = {
    "CPU us c/s/b": ("client_cpu_us", "server_cpu_us", "broker_cpu_us"),
    "peak MB c/s": ("client_memory_mb", "server_memory_mb"),
}
"""Figures that share a column: of client, server and broker."""


def show(results: Results, console: Console) -> None:
    """Print tables: what it was made on, each group, the targets, and what was left out."""
    for name, text in results.about.items():
        console.print(f"{name}: {text}", highlight=False)
    for row, versions in results.versions.items():
        if versions:
            console.print(f"{row}: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    for group in results.groups():
        console.print(_group(results, *group))
    if results.verdicts() or results.import_ms:
        console.print(_targets(results))
    for what, why in results.left_out.items():
        console.print(f"not measured: {what}: {why}", style="yellow", markup=False)
    console.print(
        "Medians over all rounds. CPU is of client, server and broker, for each operation. Only ratios say something on"
        " their own."
    )


def _group(results: Results, system: str, workload: str, size: int) -> Table:
    kind = WORKLOADS[workload]
    title = f"{system}: {workload}, {kind.text}; {size_text(size)}"
    table = Table(title=title, title_justify="left")
    table.add_column("row", no_wrap=True)
    headings = (kind.unit, "min - max", "msgbus to it", *_SEVERAL)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in results.rows(system, workload, size):
        spread = results.spread(system, workload, size, row, kind.figure)
        ratio = None if row == OURS else results.ratio(system, workload, size, row, kind.figure)
        cells = ["-" if spread is None else number(spread.median), "" if spread is None else low_high(spread)]
        cells.append("" if ratio is None else number(ratio.median))
        for figures in _SEVERAL.values():
            found = (results.spread(system, workload, size, row, figure) for figure in figures)
            cells.append(" / ".join("-" if one is None else f"{one.median:.0f}" for one in found))
        table.add_row(row, *cells)
    return table


def _targets(results: Results) -> Table:
    table = Table("target", "of", title="targets", title_justify="left")
    for header in ("limit", "found", "min - max", ""):
        table.add_column(header, justify="right")
    for target, value, met in results.verdicts():
        of = FIGURES[target.name] + (f", ratio to {target.compared}" if target.compared else "")
        table.add_row(
            f"{target.system} {target.workload} {target.row}",
            of,
            str(target),
            number(value.median),
            low_high(value),
            "met" if met else "missed",
            style="green" if met else "red",
        )
    if results.import_ms:
        median = statistics.median(results.import_ms)
        met = bool(results.import_is_met)
        spread = low_high(Spread.of(results.import_ms))
        limit = f"<= {IMPORT_MS:g}"
        words = ("import msgbus", "ms", limit, number(median), spread, "met" if met else "missed")
        table.add_row(*words, style="green" if met else "red")
    return table


def show_points(points: Points, console: Console) -> None:
    """Print tables of how the cost of a call grows."""
    for scenario, counted in SCENARIOS.items():
        for system in points.systems(scenario):
            found = points.of(scenario, system)
            table = Table(counted, title=f"{system}: {counted}", title_justify="left")
            shown = [figure for figure in SCALING_FIGURES if any(figure in point.figures for point in found)]
            for figure in shown:
                table.add_column(SCALING_FIGURES[figure], justify="right")
            for point in found:
                cells = (number(point.figures[figure]) if figure in point.figures else "-" for figure in shown)
                table.add_row(f"{point.x:,}", *cells)
            console.print(table)
    for what, why in points.left_out.items():
        console.print(f"not measured: {what}: {why}", style="yellow", markup=False)
