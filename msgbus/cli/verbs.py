"""``msgbus call``, ``cast``, ``fanout-cast``, ``multicall`` and ``gather``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from msgbus.cli.connecting import open_transport
from msgbus.cli.errors import Code, details_of, line_of
from msgbus.cli.instances import check_module, make_serializer
from msgbus.cli.options import Seconds, bus_options, example, json_option, serializer_option
from msgbus.cli.progress import progress
from msgbus.cli.tables import print_json, print_named_value, print_value
from msgbus.exceptions import InvalidArguments
from msgbus.foreign import printable, text_of
from msgbus.message import POLICIES

if TYPE_CHECKING:
    from msgbus.answers import Answer
    from msgbus.client import RPCClient
    from msgbus.gathering import Gathering

F = TypeVar("F", bound=Callable[..., Any])

_END = object()
_NO_JSON = f"{__name__}.no_json"
"""The key of what is known in a `click.Context` of arguments that look like JSON and are not."""


def _parse(ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Read ``KEY=VALUE``; a value that is not valid JSON is a string."""
    arguments: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise click.UsageError(f"an argument has to be KEY=VALUE, and {text!r} is not")
        if key in arguments:
            raise click.UsageError(f"the argument {key} is given twice")
        try:
            arguments[key] = msgspec.json.decode(value)
        except RecursionError:
            raise click.UsageError(f"the argument {key} is nested too deep") from None
        except (msgspec.DecodeError, UnicodeError) as exc:
            arguments[key] = value
            if value.startswith(("{", "[", '"')):
                ctx.meta.setdefault(_NO_JSON, {})[key] = f"{key} was sent as a string, since it is no valid JSON: {exc}"
    return arguments


def _add_hint(exc: BaseException) -> None:
    """Where the server refuses an argument that looks like JSON and is not, say so in the error's text."""
    no_json = click.get_current_context().meta.get(_NO_JSON, {})
    name = re.split(r"[.:\[]", text_of(exc), maxsplit=1)[0]
    if isinstance(exc, InvalidArguments) and name in no_json:
        exc.args = (f"{exc}; {no_json[name]}",)


_delivery = click.option(
    "--delivery",
    type=click.Choice(POLICIES),
    help="What to do if nobody knows whether a request has run.  [default: the option rpc_delivery]",
)


def _verb(func: F) -> F:
    """Add the options and arguments that all verbs have."""
    for add in (
        bus_options,
        serializer_option,
        click.option("--namespace", metavar="NAME", help="The interface that the method belongs to."),
        click.option("--version", metavar="X.Y", help="The lowest version of the interface that the call needs."),
        click.argument("arguments", nargs=-1, callback=_parse, metavar="[KEY=VALUE]..."),
        click.argument("method"),
        click.argument("topic"),
    ):
        func = add(func)
    return func


def _timeout(text: str) -> Callable[[F], F]:
    return click.option(
        "--timeout",
        type=Seconds(min=0, min_open=True),
        metavar="SECONDS",
        help=f"{text}  [default: the option rpc_response_timeout, 60]",
    )


def _check_modules(_ctx: click.Context, _param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        check_module(name)
    return names


_allow_exceptions = click.option(
    "--allow-exceptions",
    "allowed",
    multiple=True,
    metavar="MODULE",
    callback=_check_modules,
    help="Rebuild exceptions of this module with their own class; others are shown as RemoteError. May be given more "
    "than once.",
)
_server = click.option("--server", metavar="NAME", help="Only this server of the topic.")


@contextmanager
def _client(
    topic: str,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
    version: str | None,
    namespace: str | None,
    timeout: float | None,
    serializer: str | None,
    delivery: Any = None,
    server: str | None = None,
    allowed: tuple[str, ...] = (),
) -> Iterator[RPCClient]:
    from msgbus.client import get_rpc_client
    from msgbus.target import Target

    if version is not None:
        _check_version(version)
    target = Target(exchange=exchange, topic=topic, namespace=namespace, version=version, server=server)
    made_serializer = make_serializer(serializer)
    with open_transport(url, config_files, quiet=True, allowed=allowed) as transport:
        try:
            yield get_rpc_client(transport, target, timeout=timeout, delivery=delivery, serializer=made_serializer)
        except InvalidArguments as exc:
            _add_hint(exc)
            raise


def _check_version(version: str) -> None:
    from msgbus.versions import version_is_compatible

    try:
        version_is_compatible(version, version)
    except ValueError:
        raise click.BadParameter(f"{version!r} is not a version like 1.2", param_hint="--version") from None


@click.command(epilog=example("msgbus call hello greet name=Ada --timeout 5"))
@_server
@_timeout("How long to wait for the answer.")
@json_option("A line of JSON, on a terminal too.", quiet=True)
@_allow_exceptions
@_delivery
@_verb
def call(topic: str, method: str, arguments: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Call METHOD on one server of TOPIC, and print its result as JSON, indented if stdout is a terminal.

    A generator returns its last item: see msgbus multicall.

    A VALUE is read as JSON if it is valid JSON, and as a string otherwise: n=1 is a number, n='"1"' and n=one are
    strings.
    """
    with _client(topic, **options) as client:
        try:
            with progress() as waiting, waiting(f"waiting for the answer of {method}"):
                result = client.call({}, method, **arguments)
        except KeyboardInterrupt:
            if not as_json:
                click.echo(f"msgbus call: interrupted; if a server is running {method}, it continues", err=True)
            raise
        print_value(result, as_json=as_json)


@click.command(epilog=example("msgbus cast hello note text='see you' --delivery at_least_once"))
@_server
@_timeout("How long to wait for the message system to take the request.")
@json_option(quiet=True)
@_delivery
@_verb
def cast(topic: str, method: str, arguments: dict[str, Any], **options: Any) -> None:
    """Run METHOD on one server of TOPIC. Ends when the message system has confirmed the request; prints nothing."""
    with (
        _client(topic, **options) as client,
        progress() as waiting,
        waiting("waiting for the message system to take the request"),
    ):
        client.cast({}, method, **arguments)


@click.command("fanout-cast", epilog=example("msgbus fanout-cast hello note text='good morning, all'"))
@_timeout("How long to wait for the message system to take the request.")
@json_option(quiet=True)
@_delivery
@_verb
def fanout_cast(topic: str, method: str, arguments: dict[str, Any], **options: Any) -> None:
    """Run METHOD on every server of TOPIC. Prints nothing; it is not an error if there is no server."""
    with (
        _client(topic, **options) as client,
        progress() as waiting,
        waiting("waiting for the message system to take the request"),
    ):
        client.fanout_cast({}, method, **arguments)


@click.command(epilog=example("msgbus multicall hello count to=3"))
@_server
@_timeout("How long to wait for the next item.")
@click.option(
    "--deadline", type=Seconds(min=0, min_open=True), metavar="SECONDS", help=("How long the whole stream may take.")
)
@json_option("A line of JSON for each item, on a terminal too.", quiet=True)
@_allow_exceptions
@_delivery
@_verb
def multicall(
    topic: str, method: str, arguments: dict[str, Any], deadline: float | None, as_json: bool, **options: Any
) -> None:
    """Call the generator METHOD on one server of TOPIC, and print each item as it arrives, as JSON.

    If this command ends early (Ctrl-C, or its output is closed), the server closes the generator.
    """
    with _client(topic, **options) as client, progress() as waiting:
        with waiting(f"waiting to call {method}"):
            stream = client.prepare(deadline=deadline).multicall({}, method, **arguments)
        with stream:
            while True:
                with waiting(f"waiting for the next item of {method}"):
                    item = next(stream, _END)
                if item is _END:
                    break
                print_value(item, as_json=as_json, one_line=True)


@click.command(epilog=example("msgbus gather hello status", "msgbus gather hello stats --namespace msgbus --strict"))
@_server
@_timeout("How long to gather answers.")
@click.option(
    "--also", "further", multiple=True, metavar="TOPIC", help="Another topic to ask. May be given more than once."
)
@click.option("--strict", is_flag=True, help="End with 3 if any server known to the message system does not answer.")
@json_option("A line of JSON for each answer, and a last one with the numbers.", quiet=True)
@_allow_exceptions
@_verb
def gather(
    topic: str,
    method: str,
    arguments: dict[str, Any],
    further: tuple[str, ...],
    strict: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Call METHOD on every server of TOPIC, and print each answer as it arrives, with the server's name.

    The command ends when all servers known to the message system have answered, or after --timeout. Each server runs
    METHOD at most once. If no server answers, the exit code is 3; if any server answers with an error, it is 1.
    """
    from msgbus.exceptions import MessageUndeliverable

    topics = [topic, *further]
    with _client(topic, **options) as client, progress() as waiting:
        with waiting(f"waiting to ask for {method}"):
            answers = client.prepare(topics=topics).gather({}, method, **arguments)
        failed = _print_answers(answers, method, waiting, names_topics=bool(further), as_json=as_json)
        if answers.answered:
            _print_numbers(answers, as_json=as_json)
        is_missing = answers.expected is None or answers.answered < answers.expected
        if not answers.answered or (strict and is_missing):
            raise MessageUndeliverable(
                f"{_how_many(answers)}, of topic {', '.join(dict.fromkeys(topics))} over "
                f"{client.transport.driver.state}: {_why_missing(answers)}"
            )
    if failed:
        click.get_current_context().exit(Code.REMOTE)


def _print_answers(answers: Gathering, method: str, waiting: Any, *, names_topics: bool, as_json: bool) -> int:
    """Print each answer as it comes; returns how many were errors."""
    failed = 0
    with answers:
        while True:
            with waiting(lambda: f"waiting for answers of {method}: {answers.answered} so far"):
                answer = next(answers, None)
            if answer is None:
                return failed
            if answer.error is not None:
                failed += 1
                _add_hint(answer.error)
            if as_json:
                print_json([_as_json(answer)])
                continue
            name = "a server without a name" if answer.server is None else answer.server
            name = f"{name} of {answer.topic}" if names_topics else name
            if answer.error is None:
                print_named_value(name, answer.value)
            else:
                click.echo(f"{printable(name)}: {printable(line_of(answer.error))}")


def _print_numbers(answers: Gathering, *, as_json: bool) -> None:
    if as_json:
        print_json([{"answered": answers.answered, "expected": answers.expected}])
    else:
        click.echo(_how_many(answers), err=True)


def _how_many(answers: Gathering) -> str:
    expected = "an unknown number" if answers.expected is None else answers.expected
    return f"{answers.answered} of {expected} answered"


def _why_missing(answers: Gathering) -> str:
    if answers.expected == 0:
        return "no server is known there; is it started, over the same message system, and is the topic spelt right?"
    who = "the others are" if answers.answered else "they are"
    return f"{who} not running, frozen, or too busy to answer (then a longer --timeout helps)"


def _as_json(answer: Answer) -> dict[str, Any]:
    shown = {"topic": answer.topic, "server": answer.server, "seconds": round(answer.seconds, 6)}
    if answer.error is None:
        return {**shown, "value": answer.value}
    return {**shown, "error": details_of(answer.error)}
