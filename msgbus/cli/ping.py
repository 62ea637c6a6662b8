"""``msgbus ping``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from msgbus.cli.connecting import open_transport
from msgbus.cli.options import Seconds, bus_options, example, json_option
from msgbus.cli.progress import progress
from msgbus.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from msgbus.answers import Answers


@click.command(epilog=example("msgbus ping hello", "msgbus ping hello --strict"))
@click.argument("topic")
@click.option("--server", metavar="NAME", help="Only this server of the topic.")
@click.option(
    "--timeout",
    type=Seconds(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for answers.",
)
@click.option("--strict", is_flag=True, help="End with 3 if any server known to the message system does not answer.")
@json_option(
    "One line of JSON for each server, with the numbers of those that answered and that are known.", quiet=True
)
@bus_options
def ping(
    topic: str,
    server: str | None,
    timeout: float,
    strict: bool,
    as_json: bool,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
) -> None:
    """List the servers of TOPIC that answer, how fast each answers, and how many there are.

    A server does not answer if it is frozen or too busy: all its threads or tasks are busy, or an async method blocks
    its event loop. If none answers, the exit code is 3.
    """
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
            known = f" ({_how_many(found)})" if found.expected else ""
            raise MessageUndeliverable(
                f"{who} of topic {topic}{negation} within {timeout:g} s{known} over {transport.driver.state}: "
                f"{_why_none(found.expected)}"
            )
        found.sort(key=lambda answer: str(answer.get("server")))
        if as_json:
            print_json({**answer, "answered": len(found), "expected": found.expected} for answer in found)
        else:
            print_table(("server", "host", "pid", "msgbus", "answered after"), [_row(answer) for answer in found])
            click.echo(_how_many(found), err=True)
        if strict and (found.expected is None or len(found) < found.expected):
            raise MessageUndeliverable(
                f"{_how_many(found)} within {timeout:g} s over {transport.driver.state}: the others are frozen, have "
                "just stopped, or are too busy to answer (then a longer --timeout helps)"
            )


def _why_none(expected: int | None) -> str:
    """Why nobody may have answered, by how many servers the message system knows."""
    if expected:
        which = "it is frozen, has" if expected == 1 else "they are frozen, have"
        return (
            f"{which} just stopped, or cannot answer: too busy (then a longer --timeout helps), or configured without "
            "rpc_ping_enabled"
        )
    if expected == 0:
        return "no server is known there; is it started, over the same message system, and is the topic spelt right?"
    return "it is not running, or too busy to answer (then a longer --timeout helps)"


def _how_many(found: Answers) -> str:
    expected = "an unknown number" if found.expected is None else found.expected
    return f"{len(found)} of {expected} answered"


def _row(answer: dict[str, Any]) -> list[str]:
    names = ("server", "host", "pid", "version")
    return [*(str(answer.get(name, "")) for name in names), f"{answer['seconds'] * 1000:.1f} ms"]
