"""``msgbus top``."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from msgbus.cli.connecting import open_transport
from msgbus.cli.errors import line_of
from msgbus.cli.looking import Look, Watcher
from msgbus.cli.measuring import SORTED_BY, Row, rows_of, topic_as_dict
from msgbus.cli.options import Seconds, bus_options, example, json_option
from msgbus.cli.progress import progress
from msgbus.cli.tables import make_table, print_json, print_rich
from msgbus.exceptions import CallCancelled, MessageUndeliverable, MessagingException

if TYPE_CHECKING:
    from rich.console import RenderableType

NAMES = ("topic", "server", "state", "rate", "p50", "p99", "running", "waiting", "errors", "oldest")
REQUESTS = ("runs for", "topic", "server", "method", "id")
QUEUES = ("topic", "queue of", "messages", "consumers", "dead letters")

F = TypeVar("F", bound=Callable[..., Any])

Show = Callable[[Look | None, Look | None, str], None]
"""Shows a look, with the one before it, or why there was no look."""


def timeout_option(default: float) -> Callable[[F], F]:
    """Add --timeout."""
    return click.option(
        "--timeout",
        type=Seconds(min=0, min_open=True),
        default=default,
        show_default=True,
        metavar="SECONDS",
        help="How long servers may take to answer.",
    )


@click.command(epilog=example("msgbus top hello", "msgbus top hello --sort oldest", "msgbus top hello --once --json"))
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@click.option("--once", is_flag=True, help="Show it only once, after two looks.")
@click.option(
    "--interval",
    type=Seconds(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="The time between two looks.",
)
@timeout_option(1.0)
@click.option(
    "--sort",
    "sorted_by",
    type=click.Choice(SORTED_BY),
    default="name",
    show_default=True,
    help="The column by which servers are sorted, the highest value first.",
)
@json_option("A line of JSON for each look, with rates since the one before.", quiet=True)
@bus_options
def top(
    topics: tuple[str, ...],
    once: bool,
    interval: float,
    timeout: float,
    sorted_by: str,
    as_json: bool,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
) -> None:
    """Show what the servers of TOPICs do, refreshed until Ctrl-C: rates, durations, running and waiting requests.

    Without TOPIC it shows all topics that have servers, if the message system can list them: zmq can.

    The state "busy" means that all threads (or tasks) of the server are busy; "no answer", that the message system
    knows the server, but it did not answer in time; "no stats", that it answers but sends no figures, since its msgbus
    is older, or its option rpc_built_in_methods has no stats. msgbus stuck says what is wrong.
    """
    with open_transport(url, config_files, quiet=True) as transport:
        watcher = Watcher(transport, topics, exchange=exchange, timeout=timeout)
        if once:
            with progress() as waiting, waiting("looking at the servers"):
                before = watcher.look()
                time.sleep(interval)
                look = watcher.look()
            _show(as_json, sorted_by, before, look)
            _check_found(look, transport.driver.state)
            return
        try:
            _watch(watcher, interval, as_json, sorted_by)
        except KeyboardInterrupt:
            return


def _check_found(look: Look, where: str) -> None:
    """An error if no server is known, as for a ping."""
    if not look.topics or not any(seen.servers or seen.nameless for seen in look.topics.values()):
        names = f" of topic {', '.join(look.topics)}" if look.topics else ""
        raise MessageUndeliverable(f"no server{names} is there over {where}")


def _show(as_json: bool, sorted_by: str, before: Look | None, look: Look) -> None:
    rows = rows_of(look, before, sorted_by)
    if as_json:
        print_json([_as_dict(look, before, rows)])
    else:
        print_rich(*_tables(look, rows), width=None if sys.stdout.isatty() else 1000)


def _as_dict(look: Look, before: Look | None, rows: list[Row]) -> dict[str, Any]:
    return {
        "at": look.at,
        "seconds": None if before is None else round(look.at - before.at, 3),
        "topics": [topic_as_dict(seen, rows) for seen in look.topics.values()],
    }


def _watch(watcher: Watcher, interval: float, as_json: bool, sorted_by: str) -> None:
    """Look again and again. While the message system is away, say so, and go on."""
    before: Look | None = None
    is_live = not as_json and sys.stdout.isatty()
    with _live(sorted_by) if is_live else _lines(as_json, sorted_by) as show:
        while True:
            began = time.monotonic()
            try:
                look, why = watcher.look(), ""
            except CallCancelled:
                raise
            except MessagingException as exc:
                look, why = None, line_of(exc)
            show(look, before, why)
            before = look or before
            time.sleep(max(0.0, interval - (time.monotonic() - began)))


@contextmanager
def _lines(as_json: bool, sorted_by: str) -> Iterator[Show]:
    """Print each look below the one before."""

    def show(look: Look | None, before: Look | None, why: str) -> None:
        if look is not None:
            _show(as_json, sorted_by, before, look)
        elif as_json:
            print_json([{"at": time.time(), "error": why}])
        else:
            click.echo(f"nothing can be seen: {why}")
        sys.stdout.flush()

    yield show


@contextmanager
def _live(sorted_by: str) -> Iterator[Show]:
    """Replace each look on the terminal by the next one."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    class Stdout(Console):
        def show_cursor(self, show: bool = True) -> bool:
            """Do not hide the cursor: a process that is ended by a signal could not show it again."""
            return False

    with Live(console=Stdout(), auto_refresh=False, vertical_overflow="ellipsis") as live:

        def show(look: Look | None, before: Look | None, why: str) -> None:
            now = time.strftime("%H:%M:%S")
            shown = look or before
            first = f"{now}  Ctrl-C ends this" if look is not None else f"{now}  nothing can be seen: {why}"
            tables = [] if shown is None else _tables(shown, rows_of(shown, before, sorted_by))
            live.update(Group(Text(first), "", *tables), refresh=True)

        yield show


def _tables(look: Look, rows: list[Row]) -> list[RenderableType]:
    if not look.topics:
        return ["no server is there"]
    servers = [_cells(row) for row in rows]
    for name, seen in look.topics.items():
        if seen.nameless:
            servers.append([name, f"({seen.nameless} without a name)", "no answer", *[""] * 7])
    tables: list[RenderableType] = [make_table(NAMES, servers), "", make_table(QUEUES, _queues(look))]
    requests = [
        [duration(row.oldest.seconds), row.topic, row.server.name or "?", row.oldest.method, row.oldest.id]
        for row in rows
        if row.oldest is not None
    ]
    return [*tables, "", make_table(REQUESTS, requests)] if requests else tables


def _cells(row: Row) -> list[str]:
    errors = _number(row.errors) + (f" (+{row.new_errors})" if row.new_errors else "")
    return [
        row.topic,
        row.server.name or "?",
        row.state,
        "" if row.rate is None else f"{row.rate:.4g}/s",
        duration(row.p50),
        duration(row.p99),
        _number(row.running),
        _number(row.waiting),
        errors,
        "" if row.oldest is None else duration(row.oldest.seconds),
    ]


def _queues(look: Look) -> Iterator[list[str]]:
    """The topics' queues, and those of single servers in which something waits."""
    for name, seen in look.topics.items():
        queue = seen.queue
        yield [name, "all servers", _number(queue.messages), _number(queue.consumers), _number(seen.dead)]
        for server in seen.servers:
            if server.queue.messages:
                messages, consumers = _number(server.queue.messages), _number(server.queue.consumers)
                yield [name, f"server {server.name}", messages, consumers, ""]


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def duration(seconds: float | None) -> str:
    """A duration, for people."""
    if seconds is None or not math.isfinite(seconds):
        return "" if seconds is None else "?"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"
