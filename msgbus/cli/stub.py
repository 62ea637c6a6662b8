"""``msgbus stub``."""

from __future__ import annotations

import click

from msgbus.cli.connecting import open_transport
from msgbus.cli.describe import ask, timeout_option
from msgbus.cli.options import bus_options, example, json_option
from msgbus.cli.progress import progress


@click.command(epilog=example("msgbus stub hello > hello_api.py"))
@click.argument("topic")
@click.option("--server", metavar="NAME", help="Ask this server of the topic.  [default: any one]")
@click.option("--asyncio", "asynchronous", is_flag=True, help="Write async methods, for clients of msgbus.aio.")
@timeout_option
@json_option(quiet=True)
@bus_options
def stub(
    topic: str,
    server: str | None,
    asynchronous: bool,
    timeout: float,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
) -> None:
    """Write a Python module for typed clients of TOPIC, from the description of a running server.

    It has a class for each interface, for client.proxy(CLASS), and the classes of arguments and results. Types that are
    not annotated on the server become Any. Names that Python does not allow are left out, with a comment.
    """
    from msgbus.cli.stub_writer import write_stub
    from msgbus.client import get_rpc_client
    from msgbus.target import Target

    target = Target(exchange=exchange, topic=topic, server=server)
    with open_transport(url, config_files, quiet=True) as transport:
        client = get_rpc_client(transport, target, timeout=timeout)
        with progress() as waiting, waiting("asking a server"):
            _, description = ask(client)
    click.echo(write_stub(description, topic, asynchronous=asynchronous), nl=False)
