"""Interpreters whose threads or sockets were replaced by those of gevent or eventlet."""

from __future__ import annotations

import sys
import threading

from msgbus.exceptions import ConfigurationError

_LIBRARIES = {"gevent": "gevent.monkey", "eventlet": "eventlet.patcher"}
"""Library -> its module that patches. It is not imported here: whatever has patched has imported it."""
_NEEDED = ("_thread", "thread", "threading", "select", "socket", "ssl")
"""The modules that I/O threads, and threads that wait for them, need unpatched."""


def check_unpatched() -> None:
    """Check that threads and sockets are Python's own.

    An I/O thread has to be a real one. A greenlet that waited for it would stop all others; and `select` has no epoll
    any more. If whoever imported msgbus has given it Python's own modules, while the rest of the program has the
    replaced ones, there is nothing to check: then it waits in ways of its own, too (see `msgbus.lowlevel.Waiter`).

    Raises:
        ConfigurationError: gevent or eventlet has replaced them.
    """
    if threading is not sys.modules.get("threading"):
        return
    for library, module in _LIBRARIES.items():
        if module in sys.modules and (found := _patched_by(library)):
            raise ConfigurationError(
                f"{library} has replaced {', '.join(found)} in this process, and msgbus needs Python's own: its I/O "
                "runs on a thread, for which a greenlet cannot wait. Use threads instead of greenlets, or use msgbus "
                f"in a separate process in which {library} does not patch anything (newly started, not forked)"
            )


def _patched_by(library: str) -> list[str]:
    patcher = sys.modules[_LIBRARIES[library]]
    if library == "gevent":
        return [name for name in _NEEDED if patcher.is_module_patched(name)]
    return [name for name in _NEEDED if patcher.is_monkey_patched(name)]
