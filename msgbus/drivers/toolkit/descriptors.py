"""File descriptors: how many this process may still open, and error texts for when they are used up."""

from __future__ import annotations

import errno
import os
import resource

HINT = "raise the limit (ulimit -n, or LimitNOFILE of its systemd unit), or open less"


def count() -> tuple[int, int] | None:
    """How many descriptors are open and how many may be; None if that is unknown, or there is no limit.

    It lists a directory, so call it when something is opened, and not for each message.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        return len(os.listdir("/proc/self/fd")) - 1, limit  # Listing them opens one more.
    except OSError as exc:
        return (limit, limit) if exc.errno == errno.EMFILE else None


def shortage(reserve: int) -> str:
    """Why no more should be opened, if fewer than `reserve` descriptors are left; empty if there are enough."""
    found = count()
    if found is None or found[0] + reserve <= found[1]:
        return ""
    return f"this process has {found[0]} of {found[1]} file descriptors open: {HINT}"


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that there are no descriptors left."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False


def not_started(thread: str, error: BaseException) -> str:
    """The text of an error: an I/O thread cannot be started."""
    why = HINT if is_shortage(error) else "the interpreter may be ending, or there are too many threads"
    return f"the I/O thread {thread} cannot be started: {error}; {why}"


def descriptors_closed(thread: str, error: BaseException) -> str:
    """The text of an error: an I/O thread's own descriptors were closed by other code."""
    return (
        f"the I/O thread {thread} has lost its descriptors: {error}; other code in this process has closed them, as "
        "libraries that make daemons do: make the transport after that"
    )
