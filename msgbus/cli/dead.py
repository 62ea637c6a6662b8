"""``msgbus dead``: list, show, requeue, purge."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from msgbus.cli.connecting import open_transport
from msgbus.cli.context import wants_json
from msgbus.cli.errors import code_of, line_of
from msgbus.cli.options import Seconds, bus_options, example, json_option, log_options
from msgbus.cli.progress import progress
from msgbus.cli.tables import json_text, print_json, print_table
from msgbus.foreign import printable, printable_lines

if TYPE_CHECKING:
    from msgbus.dead_letters import Letters, Stored
    from msgbus.transport import Transport

F = TypeVar("F", bound=Callable[..., Any])

READING = "reading the dead letters"
HELP = """List the dead letters of a topic, send them again, or remove them.

A dead letter is a cast that a server has given up: it raised too often, there is no such method, or it may have run
before. Message systems with the capability storage keep them (see msgbus drivers).

\b
Exit codes, besides those of msgbus:
  2  no letter has that ID; the message system stores nothing
  3  a letter was not sent again, because no server listens there
"""
_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@click.group(
    help=HELP,
    epilog=example(
        "msgbus dead list hello",
        "msgbus dead show hello 5b1d...",
        "msgbus dead requeue hello 5b1d...",
        "msgbus dead purge hello",
    ),
)
@json_option()
@log_options
def dead() -> None:
    """The group of these commands. Its help is `HELP`."""


def _dead_options(func: F) -> F:
    """Add the options that all of these commands have."""
    timeout = click.option(
        "--timeout",
        type=Seconds(min=0, min_open=True),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the message system.",
    )
    return click.argument("topic")(timeout(bus_options(func)))


@contextlib.contextmanager
def _opened(
    topic: str, url: str | None, config_files: tuple[str, ...], exchange: str | None
) -> Iterator[tuple[Transport, Any]]:
    from msgbus.target import Target

    with open_transport(url, config_files, quiet=True) as transport:
        yield transport, Target(exchange=exchange, topic=topic)


@dead.command("list", epilog=example("msgbus dead list hello"))
@_dead_options
@json_option("One line of JSON for each letter, with its traceback.", quiet=True)
def list_(topic: str, timeout: float, as_json: bool, **where: Any) -> None:
    """List the dead letters of TOPIC, the oldest first, without removing them."""
    from msgbus import dead_letters

    with _opened(topic, **where) as (transport, target), progress() as waiting, waiting(READING):
        found = dead_letters.look(transport, target, timeout)
    if as_json:
        print_json(_as_dict(stored) for stored in found)
    elif found:
        print_table(("id", "age", "attempts", "server", "method", "reason"), [_row(stored) for stored in found])
    else:
        click.echo(f"topic {topic} has no dead letters")
    _say_what_is_missing(found, topic)


@dead.command(epilog=example("msgbus dead show hello 5b1d..."))
@_dead_options
@click.argument("letter_ids", metavar="[ID]...", nargs=-1)
@json_option("A line of JSON.", quiet=True)
def show(topic: str, letter_ids: tuple[str, ...], timeout: float, as_json: bool, **where: Any) -> None:
    """Show dead letters of TOPIC in full: the request, why it was given up, and the traceback.

    Without IDs, show all letters.
    """
    from msgbus import dead_letters

    with _opened(topic, **where) as (transport, target), progress() as waiting, waiting(READING):
        found = dead_letters.look(transport, target, timeout)
    chosen = [stored for stored in found if not letter_ids or stored.id in letter_ids]
    _check_ids(letter_ids, chosen, topic)
    if as_json:
        print_json(_as_dict(stored) for stored in chosen)
    else:
        click.echo("\n\n".join(map(_story, chosen)) or f"topic {topic} has no dead letters")
    if not letter_ids:
        _say_what_is_missing(found, topic)


@dead.command(epilog=example("msgbus dead requeue hello 5b1d...", "msgbus dead requeue hello"))
@_dead_options
@click.argument("letter_ids", metavar="[ID]...", nargs=-1)
@json_option("A line of JSON for each letter.", quiet=True)
def requeue(
    topic: str,
    letter_ids: tuple[str, ...],
    timeout: float,
    as_json: bool,
    **where: Any,
) -> None:
    """Send the requests of dead letters of TOPIC again: those with these IDs, or all.

    A letter is removed when the message system has confirmed its request. A request is sent to its old address; that of
    a fanout only to the server that gave it up. It no longer has a deadline. If a letter says that its request may have
    run before, it may now run a second time.
    """
    from msgbus import dead_letters

    ctx = click.get_current_context()
    with (
        _opened(topic, **where) as (transport, target),
        progress() as waiting,
        waiting("sending the requests again"),
    ):
        done = dead_letters.requeue(transport, target, letter_ids or None, timeout)
    failed = [stored for stored in done if stored.error is not None]
    if as_json:
        print_json({**_as_dict(stored), "requeued": stored.error is None} for stored in done)
    elif done or not letter_ids:
        click.echo(f"{len(done) - len(failed)} of {len(done)} dead letters of topic {topic} were sent again")
    for stored in failed:
        if stored.error is not None and not as_json:
            why = printable(line_of(stored.error))
            click.echo(f"msgbus dead: {printable(stored.id)} stays a dead letter: {why}", err=True)
    _check_ids(letter_ids, done, topic)  # Not before: what was done has to be said.
    if not letter_ids:
        _say_what_is_missing(done, topic)
    if failed and failed[0].error is not None:
        ctx.exit(code_of(failed[0].error))


@dead.command(epilog=example("msgbus dead purge hello 5b1d...", "msgbus dead purge hello --yes"))
@_dead_options
@click.argument("letter_ids", metavar="[ID]...", nargs=-1)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option("A line of JSON for each letter that was removed; --yes is needed.", quiet=True)
def purge(
    topic: str,
    letter_ids: tuple[str, ...],
    yes: bool,
    timeout: float,
    as_json: bool,
    **where: Any,
) -> None:
    """Remove dead letters of TOPIC for good: those with these IDs, or all. Asks first."""
    from msgbus import dead_letters

    if as_json and not yes:
        raise click.UsageError("with --json no confirmation is asked: add --yes")
    with _opened(topic, **where) as (transport, target), progress() as waiting:
        wanted: Collection[str] | None = letter_ids or None
        if not yes:
            with waiting(READING):
                found = dead_letters.look(transport, target, timeout)
            chosen = [stored for stored in found if not letter_ids or stored.id in letter_ids]
            _check_ids(letter_ids, chosen, topic)
            wanted = {stored.id for stored in chosen}  # Not those that arrive while the user thinks.
            if chosen and not _is_sure(f"Remove {len(chosen)} dead letters of topic {topic} for good?"):
                click.echo("nothing was removed")
                return
        with waiting("removing dead letters"):
            removed = dead_letters.purge(transport, target, wanted, timeout) if wanted != set() else []
    if as_json:
        print_json(_as_dict(stored) for stored in removed)
    elif removed or not letter_ids:
        click.echo(f"{len(removed)} dead letters of topic {topic} were removed")
    if yes:
        _check_ids(letter_ids, removed, topic)  # Not before: what was done has to be said.


def _is_sure(question: str) -> bool:
    try:
        return click.confirm(question)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.UsageError(
            "there is no terminal to ask for confirmation, so nothing was removed: add --yes"
        ) from None


def _check_ids(wanted: Collection[str], found: Collection[Stored], topic: str) -> None:
    missing = [name for name in wanted if name not in {stored.id for stored in found}]
    if missing:
        names = ", ".join(map(printable, missing))
        raise click.UsageError(f"topic {topic} has no dead letter {names}; msgbus dead list {topic} shows those it has")


def _say_what_is_missing(found: Letters, topic: str) -> None:
    """Say that there are more letters than were read."""
    if wants_json(click.get_current_context()):
        return
    expected = found.expected
    if expected is not None and len(found) < expected:
        click.echo(
            f"msgbus dead: {len(found)} of {expected} dead letters of topic {topic} were read; run this again for "
            "more. Another reader may have some",
            err=True,
        )


def _as_dict(stored: Stored) -> dict[str, Any]:
    """A letter as plain data."""
    found: dict[str, Any] = {"id": stored.id}
    if stored.error is not None:
        found["error"] = line_of(stored.error)
    letter = stored.letter
    if letter is None:
        return found
    method, arguments = _request_of(letter)
    return {
        **found,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "at": letter.at,
        "age": round(max(0.0, time.time() - letter.at), 3),
        "server": letter.server,
        "address": letter.address,
        "method": method,
        "arguments": arguments,
        "traceback": letter.traceback,
    }


def _request_of(letter: Any) -> tuple[str | None, dict[str, Any] | None]:
    """The method and arguments of a letter's request; None if they cannot be read."""
    from msgbus.encoding import decode_request
    from msgbus.exceptions import SerializationError

    try:
        request = decode_request(letter.body, letter.content_type)
    except SerializationError:
        return None, None
    return request.method, request.args


def _row(stored: Stored) -> list[str]:
    letter = stored.letter
    if letter is None:
        return [printable(stored.id), "?", "?", "?", "?", _one_line(f"{stored.error}")]
    method, _ = _request_of(letter)
    words = [stored.id, _age(letter.at), str(letter.attempts), letter.server, method or "?", letter.reason]
    return [_one_line(word) for word in words]


def _story(stored: Stored) -> str:
    """A letter in full, as text."""
    letter = stored.letter
    if letter is None:
        return f"id: {printable(stored.id)}\n{_one_line(f'{stored.error}')}"
    method, arguments = _request_of(letter)
    lines = [
        f"id: {stored.id}",
        f"reason: {letter.reason}",
        f"attempts: {letter.attempts}, the last by server {letter.server}, {_age(letter.at)} ago",
        f"sent to: {letter.address}",
        f"method: {method or '?'}",
    ]
    shown = "?" if arguments is None else json_text(arguments)  # Whole, however long.
    traceback = printable_lines("".join(letter.traceback))
    return "\n".join([*map(_one_line, lines), f"arguments: {shown}", traceback]).rstrip()


def _age(at: float) -> str:
    seconds = max(0.0, time.time() - at)
    size, unit = next(((size, unit) for size, unit in _AGES if seconds >= size), (1, "s"))
    return f"{int(seconds / size)} {unit}"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
