"""``msgbus call``, ``cast``, ``fanout-cast`` and ``multicall``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from msgbus.cli.options import bus_options, example, open_transport

if TYPE_CHECKING:
    from msgbus.client import RPCClient

F = TypeVar("F", bound=Callable[..., Any])


def _parse(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Read ``key=value``, where the value is JSON if it can be read as that, else a string."""
    arguments: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise click.UsageError(f"an argument is key=value, and {text!r} is not")
        if key in arguments:
            raise click.UsageError(f"the argument {key} is given twice")
        try:
            arguments[key] = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError):
            arguments[key] = value
    return arguments


def _verb(func: F) -> F:
    """Add what all four verbs have."""
    for add in (
        bus_options,
        click.option(
            "--delivery",
            type=click.Choice(["at_most_once", "at_least_once"]),
            help="What happens when it is unknown whether a request has run.  [default: the option rpc_delivery]",
        ),
        click.option("--namespace", metavar="NAME", help="The interface that the method belongs to."),
        click.option("--version", metavar="X.Y", help="The version of the interface that is needed at least."),
        click.argument("arguments", nargs=-1, callback=_parse, metavar="[KEY=VALUE]..."),
        click.argument("method"),
        click.argument("topic"),
    ):
        func = add(func)
    return func


def _timeout(text: str) -> Callable[[F], F]:
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help=f"{text}  [default: the option rpc_response_timeout, 60]",
    )


_server = click.option("--server", metavar="NAME", help="That server of the topic only.")


@contextmanager
def _client(
    topic: str,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
    version: str | None,
    namespace: str | None,
    timeout: float | None,
    delivery: Any,
    server: str | None = None,
) -> Iterator[RPCClient]:
    from msgbus.client import get_rpc_client
    from msgbus.target import Target

    if version is not None:
        _check_version(version)
    target = Target(exchange=exchange, topic=topic, namespace=namespace, version=version, server=server)
    with open_transport(url, config_files, quiet=True) as transport:
        yield get_rpc_client(transport, target, timeout=timeout, delivery=delivery)


def _check_version(version: str) -> None:
    from msgbus.dispatcher import version_is_compatible

    try:
        version_is_compatible(version, version)
    except ValueError:
        raise click.BadParameter(f"{version!r} is not a version like 1.2", param_hint="--version") from None


def _print(value: Any) -> None:
    """Write one value as a line of JSON, at once."""
    click.echo(msgspec.json.encode(value))


@click.command(epilog=example("msgbus call hello greet name=Ada --timeout 5"))
@_server
@_timeout("How long to wait for the answer.")
@_verb
def call(topic: str, method: str, arguments: dict[str, Any], **options: Any) -> None:
    """Call METHOD on one server of TOPIC, and print what it returns as a line of JSON.

    A value is JSON where it can be read as that, else a string: n=1 is a number, n='"1"' and n=one are strings.
    """
    with _client(topic, **options) as client:
        _print(client.call({}, method, **arguments))


@click.command(epilog=example("msgbus cast hello note text='see you' --delivery at_least_once"))
@_server
@_timeout("How long to wait for the message system to take the request.")
@_verb
def cast(topic: str, method: str, arguments: dict[str, Any], **options: Any) -> None:
    """Have METHOD run on one server of TOPIC. Ends when the message system has taken the request; prints nothing."""
    with _client(topic, **options) as client:
        client.cast({}, method, **arguments)


@click.command("fanout-cast", epilog=example("msgbus fanout-cast hello note text='good morning, all'"))
@_timeout("How long to wait for the message system to take the request.")
@_verb
def fanout_cast(topic: str, method: str, arguments: dict[str, Any], **options: Any) -> None:
    """Have METHOD run on every server of TOPIC. Prints nothing; that there is no server is no error."""
    with _client(topic, **options) as client:
        client.fanout_cast({}, method, **arguments)


@click.command(epilog=example("msgbus multicall hello count to=3"))
@_server
@_timeout("How long to wait for the next item.")
@_verb
@click.option(
    "--deadline", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="How long the whole may take."
)
def multicall(topic: str, method: str, arguments: dict[str, Any], deadline: float | None, **options: Any) -> None:
    """Call the generator METHOD on one server of TOPIC, and print each item as it arrives, as a line of JSON.

    When this command ends early (Ctrl-C, or nobody reads its output), the generator is closed on the server.
    """
    with (
        _client(topic, **options) as client,
        client.prepare(deadline=deadline).multicall({}, method, **arguments) as stream,
    ):
        for item in stream:
            _print(item)
