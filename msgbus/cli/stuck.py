"""``msgbus stuck``."""

from __future__ import annotations

import textwrap
import time
from typing import Any

import click

from msgbus.cli.connecting import open_transport
from msgbus.cli.errors import Code
from msgbus.cli.findings import Finding, counted, find
from msgbus.cli.looking import Look, Watcher
from msgbus.cli.measuring import rows_of, topic_as_dict
from msgbus.cli.options import Seconds, bus_options, example, json_option
from msgbus.cli.progress import progress
from msgbus.cli.tables import print_json
from msgbus.cli.top import timeout_option
from msgbus.exceptions import MessageUndeliverable
from msgbus.foreign import printable

WIDTH = 100
"""Columns of the text that says what to look at next."""


@click.command(epilog=example("msgbus stuck hello", "msgbus stuck hello --server one --server two --longer-than 10"))
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="NAME",
    help="A server that should run. May be given more than once; only with one TOPIC.",
)
@click.option(
    "--interval",
    type=Seconds(min=0.1),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="The time between the two looks.",
)
@timeout_option(2.0)
@click.option(
    "--longer-than",
    type=Seconds(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="A request that has run for longer counts as stuck.",
)
@json_option("One document: what is stuck, notes, and what was seen.", quiet=True)
@bus_options
def stuck(
    topics: tuple[str, ...],
    servers: tuple[str, ...],
    interval: float,
    timeout: float,
    longer_than: float,
    as_json: bool,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
) -> None:
    """Say what is stuck in TOPICs, and what to look at next.

    It looks twice, and finds: servers that do not run, do not answer, or have no free thread and make no progress;
    requests that run long; queues that grow, and queues without consumers. Without TOPIC it looks at all topics that
    have servers, if the message system can list them: zmq can.

    It ends with 0 if nothing is stuck, and with 3 if anything is. Notes do not count.
    """
    if servers and len(topics) != 1:
        raise click.UsageError("--server names servers of one topic: give that one TOPIC")
    with open_transport(url, config_files, quiet=True) as transport:
        watcher = Watcher(transport, topics, exchange=exchange, timeout=timeout, servers=servers)
        with progress() as waiting:
            with waiting("looking at the servers"):
                first = watcher.look()
            with waiting("waiting to look a second time"):
                time.sleep(interval)
            with waiting("looking at the servers a second time"):
                second = watcher.look()
        if not first.topics and not second.topics:
            raise MessageUndeliverable(f"no server is there over {transport.driver.state}")
    found = find(first, second, longer_than)
    is_stuck = any(finding.is_stuck for finding in found)
    if as_json:
        print_json([_as_dict(first, second, found)])
    else:
        _print(second, found, is_stuck)
    click.get_current_context().exit(Code.NO_SERVER if is_stuck else Code.OK)


def _as_dict(first: Look, second: Look, found: list[Finding]) -> dict[str, Any]:
    rows = rows_of(second, first)
    return {
        "at": second.at,
        "seconds": round(second.at - first.at, 3),
        "stuck": [finding.as_dict() for finding in found if finding.is_stuck],
        "notes": [finding.as_dict() for finding in found if not finding.is_stuck],
        "topics": [topic_as_dict(seen, rows) for seen in second.topics.values()],
    }


def _print(look: Look, found: list[Finding], is_stuck: bool) -> None:
    for finding in found:
        whose = f"topic {finding.topic}" if finding.server is None else f"server {finding.server} of {finding.topic}"
        note = "" if finding.is_stuck else "note: "
        click.echo(printable(f"{note}{whose}: {finding.kind.replace('_', ' ')}: {finding.text}", 2000))
        for line in textwrap.wrap(f"next: {finding.next}", WIDTH, break_long_words=False, break_on_hyphens=False):
            click.echo(f"  {line}")
    if not is_stuck:
        answered = sum(seen.answered for seen in look.topics.values())
        names = ", ".join(look.topics)
        click.echo(printable(f"nothing is stuck: {counted(answered, 'server')} of {names} answered", 2000))
