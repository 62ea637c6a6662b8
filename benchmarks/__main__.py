"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import catalogue, machine, page, runner, table
from benchmarks.catalogue import SYSTEMS, Cell
from benchmarks.payloads import SIZES, SMALL
from benchmarks.results import Results
from benchmarks.scaling import run as scaling
from benchmarks.scaling.points import Points
from benchmarks.targets import main_cells
from benchmarks.workloads import WORKLOADS

_DESCRIPTION = """\
Measures msgbus next to loops that are written by hand on the libraries under it, and to other libraries of its kind,
in one interleaved run: so the ratios of one run can be compared, and nothing else. It starts the brokers that it needs
(see tests/functional/brokers/install), and makes an environment for each of the other libraries, which it keeps in
the user's cache.
"""
_SCALING_SYSTEMS = ("rabbit", "zmq", "qpid")
"""Those that are measured with --scaling, unless others are named."""


_BUSY = 0.1
"""The share of all cores above which somebody else's work disturbs."""


class Chosen(NamedTuple):
    """What `--only` names."""

    systems: tuple[str, ...]
    workloads: tuple[str, ...]


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=_DESCRIPTION)
    made.add_argument("--quick", action="store_true", help="what the targets are about, in three minutes")
    made.add_argument("--scaling", action="store_true", help="how the cost of a call grows, in place of comparing")
    made.add_argument(
        "--url",
        action="append",
        default=[],
        help="a message system that runs already; the CPU of its broker is not measured, and some of the other "
        "libraries leave queues there. Can be given several times",
    )
    names = f"message systems ({','.join(SYSTEMS)}) and workloads ({','.join(WORKLOADS)})"
    made.add_argument("--only", type=_only, default=Chosen((), ()), help=f"of the {names}")
    made.add_argument("--peers", type=_peers, help=f"what to compare with: none, or of {','.join(catalogue.names())}")
    made.add_argument("--sizes", type=_sizes, help="of payloads, in bytes; default: 100,10240,1048576")
    made.add_argument("--rounds", type=int, help="how often each is measured; default: 3, with --quick 2")
    made.add_argument("--seconds", type=float, help="of load for each measurement; default: 3, with --quick 1")
    made.add_argument(
        "--largest", type=int, default=10_000, help="with --scaling: the most of anything, for a short run"
    )
    made.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep every measurement there")
    made.add_argument(
        "--record",
        type=pathlib.Path,
        metavar="DOCS",
        help="keep the results in that folder's performance/results, and write its performance.md from them",
    )
    return made


def _only(text: str) -> Chosen:
    words = text.split(",")
    for word in words:
        if word not in WORKLOADS and word not in SYSTEMS:
            known = ", ".join([*SYSTEMS, *WORKLOADS])
            raise argparse.ArgumentTypeError(f"there is no workload or message system {word!r}; there are: {known}")
    systems = tuple(word for word in words if word in SYSTEMS)
    return Chosen(systems, tuple(word for word in words if word in WORKLOADS))


def _peers(text: str) -> tuple[str, ...]:
    words = () if text == "none" else tuple(text.split(","))
    for word in words:
        if word not in catalogue.names():
            raise argparse.ArgumentTypeError(f"there is no {word!r}; there are: {', '.join(catalogue.names())}")
    return words


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(word) for word in text.split(","))
    if min(sizes) < SMALL:
        raise argparse.ArgumentTypeError(f"a payload has at least {SMALL} bytes")
    return sizes


def chosen_cells(options: argparse.Namespace, urls: dict[str, str]) -> list[Cell]:
    """What the options ask for."""
    systems = options.only.systems or tuple(urls) or tuple(SYSTEMS)
    workloads = options.only.workloads or tuple(WORKLOADS)
    sizes = options.sizes or (SIZES if not options.quick else (SMALL,))
    cells = catalogue.cells(systems, workloads, sizes, options.peers)
    if not options.quick:
        return cells
    main = main_cells(cells)
    return [cell for cell in cells if cell in main or cell.row.name in (options.peers or ())]


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A bar while the block runs: what to call with what is done next, and what to call when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    # It is seldom drawn: that takes a processor from what is measured.
    with Progress(*columns, *times, console=console, transient=True, refresh_per_second=1) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, description=text), lambda: bar.advance(task)


def compare(options: argparse.Namespace, urls: dict[str, str], console: Console, errors: Console) -> int:
    """Measure and compare. Returns the exit status: 1 if something could not be measured."""
    cells = chosen_cells(options, urls)
    rounds = options.rounds or (2 if options.quick else 3)
    seconds = options.seconds or (1.0 if options.quick else 3.0)
    results = Results()
    results.about = machine.describe() | {"rounds": str(rounds), "seconds for each measurement": f"{seconds:g}"}
    results.import_ms = runner.import_ms()
    _warn_if_busy(errors)
    interrupted = False
    with progress_bar(errors, rounds * len(cells)) as (progress, advance):

        def done() -> None:
            advance()
            if options.json:
                results.write(options.json)

        try:
            runner.run(cells, results, rounds, seconds, urls, progress, done)
        except KeyboardInterrupt:
            interrupted = True
    table.show(results, console)
    if interrupted:
        errors.print("interrupted: these are the measurements until then", style="red")
        return 130
    if options.json:
        results.write(options.json)
    if options.record:
        results.write(page.results_folder(options.record) / page.COMPARISON)
        console.print(f"{page.write(options.record)} is written")
    return 1 if results.left_out else 0


def _warn_if_busy(errors: Console) -> None:
    share = machine.busy_share()
    if share > _BUSY:
        errors.print(
            f"This machine is busy with something else, {share:.0%} of it: the figures will say little.", style="red"
        )


def scale(options: argparse.Namespace, urls: dict[str, str], console: Console, errors: Console) -> int:
    """Measure how the cost of a call grows. Returns the exit status: 1 if something could not be measured."""
    names = options.only.systems or tuple(urls) or _SCALING_SYSTEMS
    plan = scaling.Plan().up_to(options.largest)
    points = Points()
    points.about = machine.describe()
    _warn_if_busy(errors)
    with progress_bar(errors, len(names) * len(plan.steps())) as (progress, advance):

        def done() -> None:
            advance()
            if options.json:
                points.write(options.json)

        scaling.run(plan, names, urls, points, options.seconds or 3.0, progress, done)
    table.show_points(points, console)
    if options.record:
        points.write(page.results_folder(options.record) / page.SCALING)
        console.print(f"{page.write(options.record)} is written")
    return 1 if points.left_out else 0


def main(arguments: list[str] | None = None) -> int:
    """Run, and show what was found. Returns the exit status."""
    options = parser().parse_args(arguments)
    urls = {urlsplit(url).scheme: url for url in options.url}
    for system in urls:
        if system not in SYSTEMS:
            parser().error(f"--url: there is no message system {system!r}; there are: {', '.join(SYSTEMS)}")
    console, errors = Console(), Console(stderr=True)
    return (scale if options.scaling else compare)(options, urls, console, errors)


if __name__ == "__main__":
    sys.exit(main())
