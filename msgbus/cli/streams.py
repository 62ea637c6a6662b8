"""The standard streams of a command: all three are open, and stdout takes all text."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys

STDOUT, STDERR = 1, 2
_ESCAPE = "msgbus.cli.escape"
"""The name by which `codecs` knows `_escape`."""


def prepare_streams() -> None:
    r"""Make the standard streams fit for what a command does with them.

    A closed one (as after ``>&-`` in a shell) becomes /dev/null: otherwise the first socket would get its number. What
    the encoding of stdout does not have is escaped, in the way that JSON has too: ``\u20ac``.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as the process
    codecs.register_error(_ESCAPE, _escape)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors=_ESCAPE)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def discard_unwritten() -> None:
    """Redirect to /dev/null what nobody reads any more: otherwise Python would try at exit to write the rest to it."""
    for fd, stream in ((STDOUT, sys.stdout), (STDERR, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, fd)
            os.close(nowhere)
