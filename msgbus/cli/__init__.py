"""The command `msgbus`. What a command needs is imported when that command runs, so that ``--help`` is quick."""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process, and end the process with its exit code."""
    from msgbus.cli.app import cli
    from msgbus.cli.streams import prepare_streams

    prepare_streams()
    cli()
