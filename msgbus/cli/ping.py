"""``msgbus ping``."""

from __future__ import annotations

from typing import Any

import click

from msgbus.cli.options import Seconds, bus_options, example, json_option, open_transport
from msgbus.cli.progress import progress
from msgbus.cli.tables import print_json, print_table


@click.command(epilog=example("msgbus ping hello"))
@click.argument("topic")
@click.option("--server", metavar="NAME", help="That server of the topic only.")
@click.option(
    "--timeout",
    type=Seconds(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to gather answers.",
)
@json_option("One line of JSON for each server.", quiet=True)
@bus_options
def ping(
    topic: str,
    server: str | None,
    timeout: float,
    as_json: bool,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
) -> None:
    """List the servers of TOPIC that answer, and how fast. That none does is an error (3)."""
    from msgbus.client import get_rpc_client
    from msgbus.exceptions import MessageUndeliverable
    from msgbus.target import Target

    target = Target(exchange=exchange, topic=topic, server=server)
    with open_transport(url, config_files, quiet=True) as transport:
        client = get_rpc_client(transport, target)
        with progress() as waiting, waiting("gathering answers"):
            found = client.ping(timeout)
        if not found:
            who = f"server {server}" if server else "no server"
            negation = " did not answer" if server else " answered"
            raise MessageUndeliverable(
                f"{who} of topic {topic}{negation} within {timeout:g} s over {transport.driver.state}: "
                "it is not there, or all its threads are busy (then a longer --timeout helps)"
            )
    found.sort(key=lambda answer: str(answer.get("server")))
    if as_json:
        print_json(found)
    else:
        print_table(("server", "host", "pid", "msgbus", "answered after"), [_row(answer) for answer in found])


def _row(answer: dict[str, Any]) -> list[str]:
    names = ("server", "host", "pid", "version")
    return [*(str(answer.get(name, "")) for name in names), f"{answer['seconds'] * 1000:.1f} ms"]
