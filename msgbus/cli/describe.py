"""``msgbus describe``, and asking servers what they are, for other commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from msgbus.cli.connecting import open_transport
from msgbus.cli.errors import code_of
from msgbus.cli.options import Seconds, bus_options, example, json_option
from msgbus.cli.progress import progress
from msgbus.cli.reporting import report
from msgbus.cli.tables import print_document, print_json, print_table
from msgbus.foreign import printable

if TYPE_CHECKING:
    from msgbus.client import RPCClient
    from msgbus.describing import Description
    from msgbus.exceptions import MessagingException

MAX_SERVERS = 100
"""The most servers that are asked."""

timeout_option = click.option(
    "--timeout",
    type=Seconds(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long each server may take to answer.",
)


@click.command(
    epilog=example(
        "msgbus describe hello", "msgbus describe hello --json", "msgbus describe hello --asyncapi > hello.json"
    )
)
@click.argument("topic")
@click.option("--server", metavar="NAME", help="Only this server of the topic.")
@timeout_option
@click.option(
    "--asyncapi",
    "as_asyncapi",
    is_flag=True,
    help="Print an AsyncAPI 3.0 document of the topic, as JSON; with --json on one line.",
)
@json_option(
    "One line of JSON for each server, with JSON Schemas of the methods' arguments and results, and whole docstrings.",
    quiet=True,
)
@bus_options
def describe(
    topic: str,
    server: str | None,
    timeout: float,
    as_asyncapi: bool,
    as_json: bool,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
) -> None:
    """Show the interfaces of the servers of TOPIC: versions, methods, arguments and results.

    The column since shows which version of the interface added a method. Servers with the same methods are shown
    together. Only methods that may be called are listed. A server with the option rpc_built_in_methods = stats cannot
    be described. If a server cannot be described, the command ends with the exit code of that error.
    """
    from msgbus.client import get_rpc_client
    from msgbus.target import Target

    target = Target(exchange=exchange, topic=topic, server=server)
    with open_transport(url, config_files, quiet=True) as transport:
        client = get_rpc_client(transport, target, timeout=timeout)
        with progress() as waiting, waiting("asking the servers"):
            found, errors = _ask_all(client, timeout)
        descriptions = [description for _, description in found]
        document = _asyncapi(client, descriptions) if as_asyncapi else None
    if as_json:
        print_json([answer for answer, _ in found] if document is None else [document])
    elif document is not None:
        print_document(document)
    else:
        _print_groups(topic, descriptions)
    for exc in errors:
        report(exc)
    if errors:
        click.get_current_context().exit(code_of(errors[0]))


def _ask_all(client: RPCClient, timeout: float) -> tuple[list[tuple[Any, Description]], list[MessagingException]]:
    """What each server says that it is, as it has come and as it is read, and the errors of those that do not.

    Raises:
        MessagingException: none does.
    """
    from msgbus.exceptions import MessagingException

    found, errors = [], []
    for name in _servers_of(client, timeout):
        try:
            found.append(ask(client.prepare(server=name)))
        except MessagingException as exc:
            errors.append(exc)
    if errors and not found:
        raise errors[0]
    return found, errors


def _print_groups(topic: str, found: Sequence[Description]) -> None:
    for servers, description in _grouped(found):
        names = printable(", ".join(servers))
        click.echo(f"topic {printable(topic)}, {'server' if len(servers) == 1 else 'servers'} {names}")
        print_table(("interface", "method", "kind", "since", "what it does"), _rows(description))
        _say_left_out(description)


def _say_left_out(description: Description) -> None:
    if description.left_out:
        left_out = printable(", ".join(description.left_out))
        click.echo(f"too large to be described whole, left out: {left_out}", err=True)


def _servers_of(client: RPCClient, timeout: float) -> Sequence[str | None]:
    """The servers to ask; None for any one, where none answers a ping."""
    if client.target.server:
        return [client.target.server]
    names = sorted({str(answer["server"]) for answer in client.ping(timeout) if answer.get("server")})
    if len(names) > MAX_SERVERS:
        click.echo(f"{len(names)} servers answer, and {MAX_SERVERS} of them are asked", err=True)
    return names[:MAX_SERVERS] or [None]


def ask(client: RPCClient) -> tuple[Any, Description]:
    """What a server, or any one of the topic, says that it is: as it has come, and as it is read.

    Raises:
        RPCDispatcherError: it does not say.
        SerializationError: it says nothing that a server says.
        MessagingException: it could not be asked.
    """
    import msgspec

    from msgbus.describing import Description
    from msgbus.exceptions import RPCDispatcherError, SerializationError

    target = client.target
    who = f"{f'the server {target.server!r}' if target.server else 'a server'} of topic {target.topic!r}"
    try:
        answer = client.prepare(namespace="msgbus", version=None).call({}, "describe")
        return answer, msgspec.convert(answer, Description)
    except RPCDispatcherError as exc:
        raise RPCDispatcherError(
            f"{who} cannot be described: its option rpc_built_in_methods has no describe, or its msgbus is older than "
            "this command"
        ) from exc
    except (msgspec.ValidationError, UnicodeError, RecursionError) as exc:
        raise SerializationError(f"the description of {who} cannot be read: {exc}") from exc


def _asyncapi(client: RPCClient, found: Sequence[Description]) -> dict[str, Any]:
    """An AsyncAPI document of what servers have said.

    Raises:
        click.UsageError: they have not said the same.
    """
    from msgbus.cli.asyncapi import asyncapi_document
    from msgbus.cli.asyncapi_servers import servers_of

    transport, target = client.transport, client.target
    (names, description), *others = _grouped(found)
    if others:
        groups = "; ".join(", ".join(names) for names, _ in [(names, description), *others])
        raise click.UsageError(
            f"the servers of topic {target.topic!r} do not all have the same methods, so there is no common document: "
            f"name one of them with --server ({printable(groups)})"
        )
    _say_left_out(description)
    address = transport.address(target(server=None, fanout=None))
    return asyncapi_document(description, address, servers_of(transport), client.content_type)


def _grouped(found: Sequence[Description]) -> list[tuple[list[str], Description]]:
    """The servers that have the same, and what."""
    groups: list[tuple[list[str], Description]] = []
    for one in found:
        for servers, other in groups:
            if (one.interfaces, one.definitions) == (other.interfaces, other.definitions):
                servers.append(str(one.server))
                break
        else:
            groups.append(([str(one.server)], one))
    return groups


def _rows(description: Description) -> list[list[str]]:
    rows = []
    for interface in description.interfaces:
        name = " ".join(filter(None, [interface.namespace, interface.version]))
        for method in interface.methods:
            does = method.doc.partition("\n")[0]
            rows.append([name, f"{method.name}{method.signature}", method.kind, method.since or "", does])
    return rows
