"""``msgbus demo``."""

from __future__ import annotations

import shutil
import textwrap
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from msgbus.cli.connecting import configured_url, open_transport
from msgbus.cli.context import level_of
from msgbus.cli.errors import Code, details_of, line_of
from msgbus.cli.options import bus_options, example, json_option
from msgbus.cli.progress import Waiting, progress
from msgbus.cli.tables import print_json, print_rich
from msgbus.foreign import printable

if TYPE_CHECKING:
    from msgbus.cli.demo_steps import Outcome, Stage, Step
    from msgbus.cli.own_servers import Running

TIMEOUT = 10.0
"""Seconds for each call."""
CODE = "cyan"
"""The style of code."""


@click.command(epilog=example("msgbus demo", "msgbus demo --url rabbit://guest:guest@localhost:5672/"))
@json_option("One line of JSON for each step.", quiet=True)
@bus_options
@click.pass_context
def demo(
    ctx: click.Context, as_json: bool, url: str | None, config_files: tuple[str, ...], exchange: str | None
) -> None:
    """Show what msgbus does: several servers and a client, step by step, each with its result and the reason.

    The servers are separate processes, on their own topic. They use the configured message system, by default ZeroMQ,
    which needs no broker. With --url fake:// everything happens in memory, in this process.

    Ends with 1 if a step has an unexpected result.
    """
    from msgbus.cli.demo_service import Process, Service
    from msgbus.cli.demo_steps import NAMES, STEPS, Stage
    from msgbus.cli.own_servers import (
        Plan,
        start_here,
        start_processes,
        stopping_servers,
        temporary_options,
        what_is_left,
    )
    from msgbus.client import get_rpc_client
    from msgbus.target import Target

    found = configured_url(url, config_files)
    options = temporary_options(found)
    full_url = replace(found, query={**found.query, **options}).unmasked()
    topic = f"msgbus-demo-{uuid.uuid4().hex[:12]}"
    plan = Plan(full_url, config_files, exchange, topic, level_of(ctx), Service, Process)
    servers: dict[str, Running] = {}
    failed = []
    with (
        open_transport(full_url, config_files, quiet=True) as transport,
        stopping_servers() as cleanup,
        progress() as waiting,
    ):
        in_this_process = transport.driver.one_process
        start = start_here if in_this_process else start_processes
        if not as_json:
            _print_beginning(topic, transport.driver.state, in_this_process=in_this_process)
        client = get_rpc_client(transport, Target(exchange=exchange, topic=topic), timeout=TIMEOUT)
        stage = Stage(topic, client, lambda: servers.update(start(plan, NAMES, cleanup)), servers)
        for number, step in enumerate(STEPS, 1):
            if not _run(number, step, stage, waiting, as_json=as_json):
                failed.append(step.name)
        stores = "storage" in transport.driver.capabilities and not in_this_process
    if not as_json:
        _print_end(len(STEPS), failed, what_is_left(topic, options) if stores else "")
    if failed:
        ctx.exit(Code.UNEXPECTED)


def _run(number: int, step: Step, stage: Stage, waiting: Waiting, *, as_json: bool) -> bool:
    """Run a step and print it. Returns whether its result is the expected one."""
    from msgbus.cli.demo_steps import Outcome

    began = time.monotonic()
    error: Exception | None = None
    try:
        with waiting(step.title):
            outcome = step.run(stage)
    except Exception as exc:
        error, outcome = exc, Outcome(False, details_of(exc), line_of(exc))
    seconds = time.monotonic() - began
    if as_json:
        about = {"name": step.name, "title": step.title, "code": step.code, "why": step.why, "topic": stage.topic}
        result = {"ok": outcome.ok, "outcome": outcome.data, "text": outcome.text, "seconds": round(seconds, 6)}
        print_json([{"step": number, **about, **result}])
    else:
        _print_step(number, step, outcome, seconds)
    if error is not None:
        raise error
    return outcome.ok


def _print_beginning(topic: str, where: str, *, in_this_process: bool) -> None:
    text = f"A client and several servers of the topic {topic}, on {printable(where)}. "
    if in_this_process:
        text += "All of it happens in this process."
    else:
        text += "The servers are processes: msgbus serve."
    _print((text, "", 0))


def _print_step(number: int, step: Step, outcome: Outcome, seconds: float) -> None:
    took = f"{seconds * 1000:.1f}\u00a0ms" if seconds < 1 else f"{seconds:.1f}\u00a0s"  # no line break between
    result = f"{printable(' '.join(outcome.text.split()))} [{took}]"
    if not outcome.ok:
        result = f"UNEXPECTED: {result}"
    _print(
        (f"{number}. {step.title}", "bold", 0),
        (step.code, CODE, 3),
        (result, "green" if outcome.ok else "bold red", 3),
        (step.why if outcome.ok else "", "", 3),
    )


def _print_end(count: int, failed: list[str], left: str) -> None:
    if failed:
        end = (f"{len(failed)} of {count} steps had an unexpected result: {', '.join(failed)}.", "bold red", 0)
    else:
        end = (f"All {count} steps had the expected result.", "bold", 0)
    _print(end, (left, "", 0))


def _print(*paragraphs: tuple[str, str, int]) -> None:
    """Print each text in its style, indented by so many columns, and an empty line.

    No line is broken at a no-break space, which is printed as a plain one; continued lines of code are indented more.
    """
    from rich.text import Text

    columns = shutil.get_terminal_size().columns
    lines = [
        Text(line.replace("\u00a0", " "), style)
        for text, style, indent in paragraphs
        for line in textwrap.wrap(
            text,
            max(columns, 20),
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + (4 if style == CODE else 0)),
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
    print_rich(*lines, "", soft_wrap=True)
