"""The command line: ``python -m benchmarks``."""

import argparse
import json
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import runner, table
from benchmarks.peers import WORKLOADS, workloads


def _workloads(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in WORKLOADS:
            raise argparse.ArgumentTypeError(f"there is no workload {name!r}; there are: {', '.join(WORKLOADS)}")
    return names


def main() -> int:
    """Run, and show what was found. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=runner.__doc__)
    parser.add_argument(
        "--url", default="rabbit://guest:guest@127.0.0.1:5672/", help="RabbitMQ, Qpid, or zmq://; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement; default: %(default)g")
    parser.add_argument("--only", type=_workloads, default=list(WORKLOADS), help=f"of {','.join(WORKLOADS)}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    chosen = {name: peers for name, peers in workloads(options.url).items() if name in options.only}
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task("", total=runner.count(chosen, options.rounds), completed=-1)

            def progress(workload: str, peer: str) -> None:
                bar.update(task, description=f"{workload} {peer}")
                bar.advance(task)

            results = runner.run(chosen, options.url, options.rounds, options.seconds, progress)
    except runner.Failed as exc:
        errors.print(f"failed: {exc}", style="red")
        return 1
    if options.json:
        print(json.dumps(table.as_data(results, chosen), indent=2))
    else:
        table.show(results, chosen, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
