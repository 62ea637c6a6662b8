"""``msgbus bench``."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from msgbus.cli.connecting import configured_url, open_transport
from msgbus.cli.context import level_of
from msgbus.cli.options import WORLDS, Seconds, bus_options, example, json_option
from msgbus.cli.progress import progress
from msgbus.cli.tables import print_json, print_table
from msgbus.foreign import printable

if TYPE_CHECKING:
    from msgbus.cli.bench_clients import BenchClient
    from msgbus.cli.bench_rows import Figures, Row
    from msgbus.cli.own_servers import Plan, Running

LONGEST = 600
"""Seconds for a row at the most: the time of each call is kept in memory."""
LARGEST = 1 << 30
"""Bytes of a message at the most: it is in memory several times."""
HEADINGS = ("client CPU", "servers CPU", "client memory", "server memory")
"""Of the last columns, unless all is one process."""

HELP = """Measure how fast a message system is with msgbus, from this machine, and what it costs.

The command starts three servers as separate processes, on their own topic, and stops them at the end. Their methods
do nothing, so it measures msgbus, the message system and the network. Each row takes the given time:

\b
  calls, one caller     one call after the other, each waits for its answer
  calls, 32 callers     32 threads, or tasks, do so at the same time
  casts, one caller     each waits until the message system has confirmed it
  fanouts to 3 servers  likewise; each of the servers gets it
  items of a stream     one server yields them, the client reads them

p50, p95 and p99 are the times within which 50, 95 and 99 of 100 operations were done. CPU is the processor's time
for one operation, of the client and of the three servers together, without that of the message system. Memory is
that of the client, and of the largest server, at the end of the row.

With an in-memory message system, everything runs in one process, on one interpreter: compare such figures only with
each other. If the machine is busy with other work, the figures mean little, and a warning says so.
"""


@click.command(
    help=HELP,
    epilog=example(
        "msgbus bench --url rabbit://guest:guest@localhost:5672/",
        "msgbus bench --seconds 10 --size 10240",
        "msgbus bench --client asyncio --server asyncio",
    ),
)
@click.option(
    "--seconds",
    type=Seconds(min=0, min_open=True, max=LONGEST),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to measure each row.",
)
@click.option(
    "--size",
    type=click.IntRange(min=0, max=LARGEST),
    default=100,
    show_default=True,
    metavar="BYTES",
    help="The length of the text in each message, without what msgbus adds.",
)
@click.option(
    "--client",
    type=click.Choice(WORLDS),
    default=WORLDS[0],
    show_default=True,
    help="Whether callers are threads, or tasks on an event loop.",
)
@click.option(
    "--server",
    type=click.Choice(WORLDS),
    default=WORLDS[0],
    show_default=True,
    help="Whether the servers' methods run on threads, or are async and run on an event loop.",
)
@json_option("One line of JSON for each row: times in seconds, memory in bytes.", quiet=True)
@bus_options
@click.pass_context
def bench(
    ctx: click.Context,
    seconds: float,
    size: int,
    client: str,
    server: str,
    as_json: bool,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
) -> None:
    """Measure: see `HELP`."""
    from msgbus.cli import bench_service
    from msgbus.cli.own_servers import Plan, temporary_options

    found = configured_url(url, config_files)
    options = temporary_options(found)
    full_url = replace(found, query={**found.query, **options}).unmasked()
    topic = f"msgbus-bench-{uuid.uuid4().hex[:12]}"
    service: Callable[[str], object] = bench_service.Service
    process: type = bench_service.Process
    if server == "asyncio":
        service, process = bench_service.AsyncService, bench_service.AsyncProcess
    # If the user has chosen no level: what the servers would warn of, the error of this command says.
    plan = Plan(full_url, config_files, exchange, topic, level_of(ctx) or "error", service, process)
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load > processors and not as_json:
        click.echo(
            f"msgbus bench: warning: this machine is busy (load {load:.1f}, {processors} processors), so the figures "
            "mean little",
            err=True,
        )
    about = {
        "client": client,
        "server": server,
        "size": size,
        "load": round(load, 2),
        "processors": processors,
        "busy": load > processors,
    }
    _run(plan, options, seconds, about, as_json=as_json)


def _run(plan: Plan, options: dict[str, str], seconds: float, about: dict[str, Any], *, as_json: bool) -> None:
    from msgbus.cli.bench_clients import TIMEOUT, ThreadClient, Threads, task_client
    from msgbus.cli.bench_rows import NAMES, ROWS, Stage, measure
    from msgbus.cli.own_servers import start_here, start_processes, stopping_servers, what_is_left
    from msgbus.client import get_rpc_client
    from msgbus.target import Target

    servers: dict[str, Running] = {}
    with (
        closing(Threads(servers)) as threads,
        open_transport(plan.url, plan.config_files, quiet=True) as transport,
        ExitStack() as more,
        _Results(about, as_json=as_json) as results,
        stopping_servers() as cleanup,
        progress() as waiting,
    ):
        driver = transport.driver
        client = get_rpc_client(transport, Target(exchange=plan.exchange, topic=plan.topic), timeout=TIMEOUT)
        payload = "x" * about["size"]
        callers: BenchClient = ThreadClient(client, threads, payload)
        if about["client"] == "asyncio":
            callers = more.enter_context(task_client(transport, client, plan.url, threads, payload))
        stage = Stage(client, callers, threads, seconds, one_process=driver.one_process)
        with waiting(f"connecting to {transport.url}"):
            stage.connect()
        with waiting("starting the servers"):
            servers.update((start_here if driver.one_process else start_processes)(plan, NAMES, cleanup))
        # Without the details of its connection, which follow a colon.
        where = driver.state.partition(": ")[0]
        results.begin(plan.topic, where, seconds, one_process=driver.one_process)
        with waiting("calling the servers, not measured yet"):
            stage.warm_up()
        for number, row in enumerate(ROWS, 1):
            with waiting(f"measuring {number} of {len(ROWS)}: {row.title}"):
                results.add(row, measure(row, stage))
        if "storage" in driver.capabilities and not driver.one_process:
            results.left = what_is_left(plan.topic, options)


class _Results:
    """Prints what came out: as JSON when a row is done, or for people as a table, also if an error ends it early."""

    def __init__(self, about: dict[str, Any], *, as_json: bool) -> None:
        self.left = ""
        self._about = about
        self._as_json = as_json
        self._one_process = False
        self._rows: list[list[str]] = []

    def __enter__(self) -> _Results:
        return self

    def begin(self, topic: str, where: str, seconds: float, *, one_process: bool) -> None:
        """Say what is measured, on which message system."""
        self._one_process = one_process
        self._about = {"topic": topic, "message_system": where, "one_process": one_process, **self._about}
        if self._as_json:
            return
        who = "A client on asyncio" if self._about["client"] == "asyncio" else "A client"
        who += " and three servers" + (" with async methods" if self._about["server"] == "asyncio" else "")
        who += ", all in this process," if one_process else ""
        size = self._about["size"]
        click.echo(
            f"{who} of the topic {topic}, on {printable(where)}; {size} bytes in a message, {seconds:g} s for each row."
        )

    def add(self, row: Row, figures: Figures) -> None:
        """Take the figures of a row."""
        if self._as_json:
            print_json([{"name": row.name, "unit": row.unit, **figures._asdict(), **self._about}])
        else:
            self._rows.append(_cells(row, figures))

    def __exit__(self, *_exc: object) -> None:
        if self._rows:
            own = ("CPU", "", "memory", "") if self._one_process else HEADINGS
            names = ("", "rate", "p50", "p95", "p99", *own)
            kept = [at for at, name in enumerate(names) if name or not at]
            print_table([names[at] for at in kept], [[row[at] for at in kept] for row in self._rows])
        if self.left and not self._as_json:
            click.echo(self.left)


def _cells(row: Row, figures: Figures) -> list[str]:
    return [
        row.title,
        f"{figures.per_second:,.0f} {row.unit}/s",
        _milliseconds(figures.p50),
        _milliseconds(figures.p95),
        _milliseconds(figures.p99),
        _milliseconds(figures.client_cpu),
        _milliseconds(figures.servers_cpu),
        _megabytes(figures.client_memory),
        _megabytes(figures.server_memory),
    ]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.3f} ms"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.0f} MB"
