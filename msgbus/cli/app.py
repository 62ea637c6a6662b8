"""The group of all commands: imports the command that is asked for, and reports errors with an exit code."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from msgbus.cli.context import note_json
from msgbus.cli.errors import EXIT_CODES, Code, code_of, is_end_of_output
from msgbus.cli.options import log_options
from msgbus.cli.reporting import print_error, report
from msgbus.cli.streams import discard_unwritten

COMMANDS = {
    "serve": ("msgbus.cli.serve", "Run a server: the methods of a class, for a topic."),
    "call": ("msgbus.cli.verbs", "Call a method on one server, and print what it returns."),
    "cast": ("msgbus.cli.verbs", "Have a method run on one server, and do not wait for it."),
    "fanout-cast": ("msgbus.cli.verbs", "Have a method run on every server of a topic."),
    "multicall": ("msgbus.cli.verbs", "Call a generator method, and print each item as it arrives."),
    "gather": ("msgbus.cli.verbs", "Call a method on every server of a topic, and print each answer."),
    "notify": ("msgbus.cli.notifications", "Send a notification: something has happened."),
    "listen": ("msgbus.cli.notifications", "Print notifications as they come."),
    "ping": ("msgbus.cli.ping", "List the servers of a topic that answer."),
    "describe": ("msgbus.cli.describe", "Show the methods of a topic's servers, with arguments and results."),
    "stub": ("msgbus.cli.stub", "Write a Python module for typed clients of a topic."),
    "top": ("msgbus.cli.top", "Show what servers do, refreshed: rates, running requests, queues."),
    "stuck": ("msgbus.cli.stuck", "Say which servers, requests and queues are stuck, and what to look at next."),
    "dead": ("msgbus.cli.dead", "List casts that have failed for good, send them again, or remove them."),
    "demo": ("msgbus.cli.demo", "Show what msgbus does: servers and a client at work."),
    "bench": ("msgbus.cli.bench", "Measure how fast your message system is, from this machine."),
    "zmq-keys": ("msgbus.cli.zmq_keys", "Make keys to use ZeroMQ between hosts."),
    "new-driver": ("msgbus.cli.new_driver", "Write the first files of a driver for another message system."),
    "drivers": ("msgbus.cli.drivers", "List the drivers, and the message systems that can be used."),
    "conformance": ("msgbus.cli.conformance", "Check a driver on its message system."),
    "config": ("msgbus.cli.config", "Print a sample of the configuration file."),
    "completion": ("msgbus.cli.completion", "Print a script that makes a shell complete commands and options."),
}
"""Command -> the module in which it is a function (its name with underscores), and one line of help."""

HELP = f"""Call services by name over a message system, and run their servers.

\b
Example:
  export MSGBUS_URL=rabbit://guest:guest@localhost:5672/
  msgbus call hello greet name=Ada

\b
Exit codes:
{EXIT_CODES}
"""


@contextmanager
def _ending_with_output() -> Iterator[None]:
    """End the command if the reader of its output has closed it.

    Raises:
        click.exceptions.Exit: it has. Click itself would end with 1.
    """
    try:
        yield
    except OSError as exc:
        if not is_end_of_output(exc):
            raise
        discard_unwritten()
        raise click.exceptions.Exit(128 + 13) from None


class App(click.Group):
    """The commands of `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[name][0]), name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest the one that is probably meant."""
        name = args[0]
        if not ctx.resilient_parsing and name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            ctx.fail(f"there is no command {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Complete a command's name without importing the commands, or an option."""
        found = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        note_json(ctx, args)
        with _ending_with_output():
            return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run, and exit. Replaces click's own, which prints three lines for a usage error."""
        kwargs.setdefault("prog_name", "msgbus")
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.ClickException as exc:
            code = _refuse(exc)
        except click.Abort:
            code = 128 + 2
        discard_unwritten()  # Also what was logged. Otherwise Python would change the exit code to 120.
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and handle its errors: click would mistake a server's EOFError for the end of the input."""
        with _ending_with_output():
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except Exception as exc:
                if not is_end_of_output(exc):
                    report(exc)
                    ctx.exit(code_of(exc))
                raise


def _refuse(exc: click.ClickException) -> int:
    """Report wrong usage, and return the exit code."""
    ctx = getattr(exc, "ctx", None) or click.Context(cli, info_name="msgbus")
    details = {"error": type(exc).__name__, "message": exc.format_message(), "exit_code": Code.USAGE.value}
    try:
        with _ending_with_output():
            print_error(ctx, ctx.command_path, details, exc.__cause__, f" (see: {ctx.command_path} --help)")
    except click.exceptions.Exit as end:
        return end.exit_code
    return Code.USAGE


@click.group(
    "msgbus", cls=App, help=HELP, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(version("msgbus"), message="msgbus %(version)s")
@log_options
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Show the help if no command is given."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(Code.USAGE)
