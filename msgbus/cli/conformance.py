"""``msgbus conformance``."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from msgbus.cli.connecting import open_transport
from msgbus.cli.errors import Code
from msgbus.cli.instances import make_instance
from msgbus.cli.options import WORLDS, beginnings_of_urls, example, json_option, log_options, refuse_empty
from msgbus.cli.progress import progress
from msgbus.cli.tables import print_json, print_table
from msgbus.foreign import printable, printable_lines

if TYPE_CHECKING:
    from msgbus.conformance.harness import Harness
    from msgbus.conformance.report import Result

NO_ARGUMENTS = "; it is instantiated without arguments"


@click.command(
    epilog=example(
        "msgbus conformance --url nats://127.0.0.1:4222",
        "msgbus conformance --harness tests.test_conformance:MyHarness --level driver -k 'inbox and not slow'",
    )
)
@click.option(
    "--url",
    envvar="MSGBUS_URL",
    show_envvar=True,
    metavar="URL",
    shell_complete=beginnings_of_urls,
    callback=refuse_empty,
    help="The message system. No service may use it: the suite sends arbitrary messages there.",
)
@click.option(
    "--harness",
    "harness_name",
    metavar="MODULE:CLASS",
    help="A subclass of msgbus.conformance.Harness, which can stop, start or cut the message system, so that more "
    "checks can run. It has its own URL, which --url replaces.",
)
@click.option(
    "--level", type=click.Choice(["driver", "bus"]), help="Only the bare driver, or the whole bus.  [default: both]"
)
@click.option(
    "--client",
    "clients",
    type=click.Choice(WORLDS),
    default=WORLDS[0],
    show_default=True,
    help="Which clients are used: those of msgbus, or those of msgbus.aio.",
)
@click.option(
    "--server",
    "servers",
    type=click.Choice(WORLDS),
    default=WORLDS[0],
    show_default=True,
    help="Which servers are used: those of msgbus, or those of msgbus.aio, whose methods are async.",
)
@click.option("-k", "keyword", metavar="EXPRESSION", default="", help="Run the checks that pytest's -k selects.")
@click.option("--largest", type=click.IntRange(min=1024), metavar="BYTES", help="The largest message that is allowed.")
@click.option("--one-process", is_flag=True, help="The message system works only within one process.")
@click.option("--junit", metavar="FILE", type=click.Path(dir_okay=False, writable=True), help="Write a JUnit report.")
@json_option("One line of JSON for each check.")
@log_options
@click.pass_context
def conformance(
    ctx: click.Context,
    url: str | None,
    harness_name: str | None,
    level: Any,
    clients: Any,
    servers: Any,
    keyword: str,
    largest: int | None,
    one_process: bool,
    junit: str | None,
    as_json: bool,
) -> None:
    """Check whether a driver, with its message system, gives the guarantees of msgbus.

    Prints each guarantee, whether it holds, and how long the check took. A check is skipped, with the reason, if the
    driver does not declare the capability, if the harness cannot do what is needed, or if the check builds on another
    one that has failed. Ends with 1 if any check fails. Takes some minutes; without the slow checks, -k "not slow",
    about two.
    """
    for module in ("pytest", "pytest_timeout"):
        if importlib.util.find_spec(module) is None:
            raise click.UsageError(f"the checks need {module}, which is missing: pip install 'msgbus[conformance]'")
    from msgbus.conformance.harness import Worlds
    from msgbus.conformance.report import Recorder
    from msgbus.conformance.run import RunFailed, run

    recorder, worlds = Recorder(), Worlds(clients, servers)
    with progress() as waiting:
        with waiting("preparing the message system"):
            harness = _make_harness(harness_name, url, largest, one_process)
        try:
            with waiting(lambda: f"{recorder.done} of {recorder.total} checks done: {recorder.running}"):
                results = run(harness, recorder, level=level, keyword=keyword, junit=junit, worlds=worlds)
        except RunFailed as exc:
            raise click.UsageError(f"pytest could not run the checks: {exc}") from exc
        finally:
            with waiting("closing the harness"):
                harness.close()
    if not results:
        raise click.UsageError("no check is selected")
    counts: Counter[str] = Counter(result.outcome for result in results)
    if as_json:
        print_json(results)
    else:
        _print_results(results)
        click.echo(f"\n{_summary(counts, results)}")
    ctx.exit(Code.UNEXPECTED if counts["failed"] else Code.OK)


def _make_harness(name: str | None, url: str | None, largest: int | None, one_process: bool) -> Harness:
    from msgbus.conformance.harness import Harness

    if name is None:
        if not url:
            raise click.UsageError("give --url or --harness: where is the message system?")
        harness = Harness()
    else:
        made = make_instance(name, NO_ARGUMENTS)
        if not isinstance(made, Harness):
            raise click.UsageError(f"{name} is not a subclass of msgbus.conformance.Harness")
        harness = made
    if url:
        harness.url = url
    if largest is not None:
        harness.largest = largest
    if one_process:
        harness.processes = False
    # An error in the URL or of the driver is reported here, and not by each check.
    with open_transport(harness.url, (), quiet=True):
        return harness


def _print_results(results: Sequence[Result]) -> None:
    rows = []
    for result in results:
        reason = f": {result.reason}" if result.reason and result.outcome == "skipped" else ""
        row = [result.check, f"{result.outcome}{reason}", f"{result.seconds:.2f} s", result.level, result.guarantee]
        rows.append(row)
    print_table(("check", "result", "time", "level", "guarantee"), rows)
    for result in results:
        if result.outcome == "failed":
            details = printable_lines(result.details.rstrip())
            click.echo(f"\n{result.check} (since {result.since}) failed: {printable(result.reason)}\n{details}")


def _summary(counts: Counter[str], results: Sequence[Result]) -> str:
    """How many passed, failed and were skipped, and a line for each reason."""
    seconds = sum(result.seconds for result in results)
    line = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped in {seconds:.0f} s"
    reasons = Counter(result.reason for result in results if result.outcome == "skipped")
    return "\n".join([line, *(f"  skipped {count}: {printable(reason)}" for reason, count in reasons.most_common())])
