"""``msgbus serve``."""

from __future__ import annotations

import inspect
import os
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from msgbus.cli.connecting import open_transport
from msgbus.cli.health import health_endpoint
from msgbus.cli.instances import make_instance, make_serializer
from msgbus.cli.metrics import metrics_at
from msgbus.cli.options import Seconds, bus_options, example, json_option, refuse_empty, serializer_option
from msgbus.cli.progress import progress
from msgbus.cli.reload import end_with_watcher, serve_and_reload
from msgbus.cli.signals import stopped_by_signal
from msgbus.cli.streams import discard_unwritten
from msgbus.cli.tables import print_json
from msgbus.foreign import get_logger, printable

if TYPE_CHECKING:
    from msgbus.server import RPCServer
    from msgbus.transport import Transport

LOG = get_logger(__name__)

NO_ARGUMENTS = "; give its arguments defaults, or write a program with get_rpc_server"
"""Ends the error about a class that cannot be made without arguments."""


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
@click.argument("endpoints", metavar="MODULE:CLASS...", nargs=-1, required=True)
@click.option("--topic", required=True, metavar="NAME", help="The name of the service.")
@click.option(
    "--server", metavar="NAME", callback=refuse_empty, help="The name of this server.  [default: host name and pid]"
)
@click.option(
    "--drain",
    type=Seconds(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for running methods when the server is stopped. After that, async methods are cancelled, "
    "and plain methods abandoned.",
)
@click.option(
    "--metrics",
    "metrics_address",
    metavar="[HOST:]PORT",
    help="Serve metrics for Prometheus at /metrics on this port, on all addresses if no host is given. Needs pip "
    "install 'msgbus[prometheus]'. 0 takes a free port.",
)
@click.option(
    "--health",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Answer HTTP requests on this port: /ready with 200 if the server takes requests, /live with 200 if it works "
    "at all; otherwise with 503 and the reasons. 0 takes a free port.",
)
@click.option(
    "--health-address",
    default="0.0.0.0",  # noqa: S104  # probes of Kubernetes come from outside of the container
    show_default=True,
    metavar="ADDRESS",
    help="The address on which --health listens.",
)
@click.option(
    "--reload",
    "reloads",
    is_flag=True,
    help="For development: restart the server when a .py file in or below the current directory changes. Running "
    "methods have --drain to finish. Needs pip install 'msgbus[reload]'.",
)
@json_option("A line of JSON when the server is ready.")
@serializer_option
@bus_options
def serve(
    endpoints: tuple[str, ...],
    topic: str,
    server: str | None,
    drain: float,
    metrics_address: str | None,
    health: int | None,
    health_address: str,
    reloads: bool,
    as_json: bool,
    url: str | None,
    config_files: tuple[str, ...],
    exchange: str | None,
    serializer: str | None,
) -> None:
    """Serve the methods of a class. Its module is searched for in the current directory first.

    A method gets the caller's context first, then its arguments by name. The class is instantiated without arguments.
    Methods may be async: these run on one event loop, and plain ones on threads.

    Several classes become endpoints of the same server. With an attribute "target", each can have its own namespace and
    version. If two classes have a method of the same name, the one of the first class is called.

    It says when the server is ready, and how to call it. Ctrl-C, SIGTERM or SIGHUP (a closed terminal) stops it: the
    server takes no new requests, finishes and answers the running ones, and ends with 0. A second signal ends it at
    once.
    """
    from msgbus.server import get_rpc_server
    from msgbus.target import Target

    if reloads:
        click.get_current_context().exit(serve_and_reload(drain))
    end_with_watcher()
    target = Target(exchange=exchange, topic=topic, server=server or f"{socket.gethostname()}-{os.getpid()}")
    instances = [make_instance(endpoint, NO_ARGUMENTS) for endpoint in endpoints]
    made_serializer = make_serializer(serializer)
    with open_transport(url, config_files) as transport, metrics_at(metrics_address, topic) as metrics:
        try:
            options = {} if metrics is None else metrics.options_for(transport, instances)
            running = get_rpc_server(transport, target, instances, serializer=made_serializer, **options)
        except TypeError as exc:  # a wrong attribute "target"
            raise click.UsageError(f"{', '.join(endpoints)} cannot be served: {exc}") from exc
        metrics_url = None if metrics is None else metrics.url
        with health_endpoint(running, health_address, health) as health_url:
            if as_json:
                _serve(running, drain, lambda: _print_ready(running, health_url, metrics_url))
            else:
                named = dict(zip(endpoints, instances, strict=True))
                _serve(running, drain, lambda: _say_ready(running, named, health_url, metrics_url), says_end=True)


def _serve(server: RPCServer, drain: float, say_ready: Callable[[], None], *, says_end: bool = False) -> None:
    """Start a server, serve until a signal comes, and stop it."""
    ready = False
    stopping = f"stopping: running methods have {drain:g} s to finish"
    with stopped_by_signal():
        try:
            with progress() as waiting, waiting(f"connecting to {server.transport.url}"):
                server.start()
            ready = True
            say_ready()
            while True:
                # Not signal.pause(): a signal right before it would be handled only when pause returns.
                time.sleep(0.5)
        finally:
            LOG.info("%s", stopping)
            if ready and says_end:
                _say_end(f"{stopping}; a second signal ends it at once")
            with progress() as waiting, waiting(stopping):
                server.stop()
                server.wait(drain)


def _say_end(text: str) -> None:
    """Say that the server stops, if somebody can read it: Ctrl-C also ends the tee behind ``2>&1 | tee``."""
    try:
        click.echo(text, err=True)
    except OSError:  # The running methods have to finish all the same.
        discard_unwritten()


def _print_ready(server: RPCServer, health: str | None, metrics: str | None) -> None:
    """Print as JSON that the server is ready."""
    target, where = server.target, server.transport.driver.state
    ready: dict[str, Any] = {"state": "ready", "server": target.server, "topic": target.topic}
    ready.update(host=socket.gethostname(), pid=os.getpid(), message_system=where)
    if health is not None:
        ready["health"] = health
    if metrics is not None:
        ready["metrics"] = metrics
    print_json([ready])


def _say_ready(server: RPCServer, endpoints: dict[str, object], health: str | None, metrics: str | None) -> None:
    """Print what is served, where, and what to type to call it."""
    target = server.target
    # Without the details of its connection, which follow a colon.
    where = server.transport.driver.state.partition(": ")[0]
    lines = [f"server {target.server} of topic {target.topic} is ready on {printable(where)}"]
    lines += [f"  it serves {name}: {_describe(endpoint)}" for name, endpoint in endpoints.items()]
    command = _command_to_call(server.transport, target.topic or "", list(endpoints.values()))
    if command is not None:
        lines.append(f"  to call it, type in another terminal: {command}")
    if health is not None:
        lines.append(f"  its health: {health}/ready and {health}/live")
    if metrics is not None:
        lines.append(f"  its metrics: {metrics}")
    lines.append("  to stop it: Ctrl-C here, or SIGTERM")
    click.echo("\n".join(lines))


def _describe(endpoint: object) -> str:
    """The methods of an endpoint, and its interface."""
    target = getattr(endpoint, "target", None)
    words = [", ".join(_methods(endpoint)) or "no method that may be called from outside"]
    if target is not None and target.namespace:
        words.append(f"namespace {target.namespace}")
    if target is not None and target.version:
        words.append(f"version {target.version}")
    return "; ".join(words)


def _methods(endpoint: object) -> list[str]:
    """The names of what may be called from outside, in the order in which they are defined."""
    names = dict.fromkeys(name for cls in type(endpoint).__mro__ for name in vars(cls) if not name.startswith("_"))
    return [name for name in names if inspect.isroutine(inspect.getattr_static(endpoint, name))]


def _command_to_call(transport: Transport, topic: str, endpoints: Sequence[object]) -> str | None:
    """What to type to call the first method; None if there is no method."""
    endpoint, name = next(((endpoint, name) for endpoint in endpoints for name in _methods(endpoint)), (None, ""))
    if not name:
        return None
    method: Any = getattr(endpoint, name)
    function = inspect.unwrap(method)
    yields = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    verb = "multicall" if yields else "call"
    words = ["msgbus", verb, topic, name, *(f"{argument}=..." for argument in _arguments_of(method))]
    target = getattr(endpoint, "target", None)
    if target is not None and target.namespace:
        words += ["--namespace", target.namespace]
    if target is not None and target.version:
        words += ["--version", target.version]
    return " ".join([*map(shlex.quote, words), *_options_of_this_command(transport)])


def _arguments_of(method: Any) -> list[str]:
    """The names of the required arguments."""
    try:
        given = list(inspect.signature(method).parameters.values())[1:]  # The first one is the context.
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [argument.name for argument in given if argument.kind in named and argument.default is argument.empty]


def _options_of_this_command(transport: Transport) -> list[str]:
    """The options of this command that the one in the other terminal needs too. A password in a URL is not shown."""
    ctx = click.get_current_context()
    words = []
    for name in ("config_files", "exchange", "serializer"):
        given = ctx.params.get(name)
        option = {"config_files": "--config-file"}.get(name, f"--{name}")
        for value in given if isinstance(given, tuple) else [given] if given else []:
            words.append(f"{option} {shlex.quote(value)}")
    source = ctx.get_parameter_source("url")
    if source is ParameterSource.COMMANDLINE:
        words.append(f"--url {shlex.quote(str(transport.url))}")
    elif source is ParameterSource.ENVIRONMENT:
        words.append("(with MSGBUS_URL set as here)")
    return words
