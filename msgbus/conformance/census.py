"""Census: what a check has left behind: threads, file descriptors, and things on the message system."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from msgbus.conformance.harness import Harness
from msgbus.conformance.waiting import until

PATIENCE = 15.0
"""Seconds in which all that was closed has to be gone."""
IMPATIENCE = 0.2
"""The same, where it is known already that something stays: one such wait is enough."""


class Census:
    """Taken before a check, and compared after it."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._leftovers = harness.leftovers()
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()

    def compare(self, *, broker: bool, patient: bool) -> list[str]:
        """What there is now and was not there before; of the message system only where `broker` says so."""
        questions = [self._new_threads, self._new_descriptors]
        if broker:
            questions.append(self._new_leftovers)
        left: list[str] = []
        for question in questions:
            left += _outlasting(question, IMPATIENCE if left or not patient else PATIENCE)
        return left

    def _new_threads(self) -> list[str]:
        return [f"thread {thread.name}" for thread in threading.enumerate() if thread not in self._threads]

    def _new_descriptors(self) -> list[str]:
        # One that was open before may have been closed, and its number be in use again: so it is the count that tells.
        now = _descriptors()
        more = len(now) - len(self._descriptors)
        before = set(self._descriptors.values())
        new = sorted(_describe(number, what) for number, what in now.items() if what not in before)
        if more <= 0:
            return []
        return [
            f"{more} more file descriptors than before the check, among them {', '.join(new[:9]) or 'none that is new'}"
        ]

    def _new_leftovers(self) -> list[str]:
        return sorted(self._harness.leftovers() - self._leftovers)


def _outlasting(question: Callable[[], list[str]], seconds: float) -> list[str]:
    """What is still there after so many seconds."""
    try:
        until(lambda: not question(), "nothing is left", seconds)
    except AssertionError:
        return question()
    return []


def _describe(number: str, what: str) -> str:
    """What a descriptor is of: a connection's other end, a listening socket's address, a pipe, or a file's path."""
    if not what.startswith("socket:"):
        return what if what.startswith("/") else f"a {what.partition(':')[0]} ({what})"
    try:
        with socket.socket(fileno=os.dup(int(number))) as copy:
            try:
                return f"a connection to {_address(copy.getpeername())} from {_address(copy.getsockname())}"
            except OSError:
                return f"a socket at {_address(copy.getsockname())}, without a connection"
    except OSError:  # It has been closed meanwhile.
        return f"a socket ({what})"


def _address(name: Any) -> str:
    """An address of a socket: host and port, or the path of a Unix socket."""
    if isinstance(name, tuple):
        return f"{name[0]}:{name[1]}"
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return text.replace("\0", "@") or "a socket of this host without a name"


def _descriptors() -> dict[str, str]:
    """The open file descriptors: number -> what it is of."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return found
