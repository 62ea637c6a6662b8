"""What a service does whose server a command has started, as a process of its own: see `msgbus.cli.own_servers`."""

from __future__ import annotations

import os
import signal
import sys
import threading

SERVER_NAME = "MSGBUS_SERVER_NAME"
"""The environment variable that holds the name of the server."""


def end_with_command() -> None:
    """Have this process end when the command ends, even if that is killed."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()


def _end_with_stdin() -> None:
    os.read(sys.stdin.fileno(), 1)  # The command holds the other end, and never writes to it.
    os.kill(os.getpid(), signal.SIGTERM)
