"""``msgbus serve``."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from msgbus.cli.instances import make_instance
from msgbus.cli.options import Seconds, bus_options, example, json_option, open_transport
from msgbus.cli.progress import progress
from msgbus.cli.tables import print_json
from msgbus.foreign import get_logger, printable

if TYPE_CHECKING:
    from msgbus.server import RPCServer

LOG = get_logger(__name__)

NO_ARGUMENTS = "; give its arguments defaults, or write a program with get_rpc_server"
"""What to do about a class that cannot be made without arguments."""


@click.command(
    epilog=example(
        "msgbus serve hello:Hello --topic hello",
        "",
        "where hello.py holds",
        "",
        "  class Hello:",
        "      def greet(self, ctxt, name):",
        '          return f"Hello, {name}"',
    )
)
@click.argument("endpoint", metavar="MODULE:CLASS")
@click.option("--topic", required=True, metavar="NAME", help="The name of the service.")
@click.option("--server", metavar="NAME", help="The name of this server.  [default: host name and pid]")
@click.option(
    "--drain",
    type=Seconds(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait, when told to stop, for what is running.",
)
@json_option("A line of JSON when the server is ready.")
@bus_options
def serve(
    endpoint: str,
    topic: str,
    server: str | None,
    drain: float,
    as_json: bool,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
) -> None:
    """Serve the methods of a class, which is imported with the current directory in front of the search path.

    A method gets the caller's context first, then its arguments by name. The class is made without arguments.

    Prints one line when it is ready. SIGTERM or Ctrl-C stops it: it takes no new requests, lets those that run finish
    and answer, and ends with 0. A second signal ends it at once.
    """
    from msgbus.server import get_rpc_server
    from msgbus.target import Target

    target = Target(exchange=exchange, topic=topic, server=server or f"{socket.gethostname()}-{os.getpid()}")
    instance = make_instance(endpoint, NO_ARGUMENTS)
    with open_transport(url, config_files) as transport:
        try:
            running = get_rpc_server(transport, target, [instance])
        except TypeError as exc:  # an async method, or a wrong attribute "target"
            raise click.UsageError(f"{endpoint} cannot be served: {exc}") from exc
        ready = False
        with _stopped_by_signal():
            try:
                with progress() as waiting, waiting(f"connecting to {transport.url}"):
                    running.start()
                ready = True
                _say_ready(running, as_json=as_json)
                while True:
                    # Not signal.pause(): one that comes right before it would be handled only when it returns.
                    time.sleep(0.5)
            finally:
                LOG.info("stopping: what runs has %g s to finish", drain)
                if ready and not as_json:
                    click.echo(
                        f"stopping: what runs has {drain:g} s to finish; a second signal ends it at once", err=True
                    )
                with progress() as waiting, waiting(f"stopping: what runs has {drain:g} s to finish"):
                    running.stop()
                    running.wait(drain)


def _say_ready(server: RPCServer, *, as_json: bool) -> None:
    target, where = server.target, server.transport.driver.state
    if as_json:
        ready = {"state": "ready", "server": target.server, "topic": target.topic}
        print_json([{**ready, "host": socket.gethostname(), "pid": os.getpid(), "message_system": where}])
    else:
        click.echo(
            f"server {target.server} of topic {target.topic} is ready on {printable(where)}; SIGTERM or Ctrl-C stops it"
        )


class _Stop(BaseException):
    """A signal said to stop. Raised wherever the main thread is: that may be in the start, which may take long."""


@contextlib.contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """End the block at the first SIGTERM or SIGINT, and the process at the second."""
    came = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if came:
            os._exit(128 + number)
        came = True
        raise _Stop

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, handle)
        yield
    except _Stop:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
