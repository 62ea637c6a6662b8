"""Census: what a check has left behind: threads, file descriptors, and connections or queues of the message system."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from msgbus.conformance.harness import Harness
from msgbus.conformance.waiting import until

TIMEOUT = 15.0
"""Seconds within which everything that was closed has to disappear."""
SHORT_TIMEOUT = 0.2
"""The same, if it is already known that something stays: one long wait is enough."""


class Census:
    """Taken before a check, and compared after it."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._leftovers = harness.leftovers()
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()

    def compare(self, *, broker: bool, patient: bool) -> list[str]:
        """What exists now and did not before; what is on the message system counts only if `broker`."""
        questions = [self._new_threads, self._new_descriptors]
        if broker:
            questions.append(self._new_leftovers)
        left: list[str] = []
        for question in questions:
            left += _outlasting(question, SHORT_TIMEOUT if left or not patient else TIMEOUT)
        return left

    def _new_threads(self) -> list[str]:
        return [f"thread {thread.name}" for thread in threading.enumerate() if thread not in self._threads]

    def _new_descriptors(self) -> list[str]:
        # The number of a closed descriptor is used again: so their count is compared.
        now = _descriptors()
        more = len(now) - len(self._descriptors)
        before = set(self._descriptors.values())
        new = sorted(_describe(number, what) for number, what in now.items() if what not in before)
        if more <= 0:
            return []
        return [f"{more} more file descriptors than before the check, among them {', '.join(new[:9]) or 'no new one'}"]

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
    """What a descriptor refers to: a connection's other end, a listening socket's address, a pipe, or a file's path."""
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
    """The open file descriptors: number -> what it refers to."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found
