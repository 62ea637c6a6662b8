"""The journal: what happened to each message, written by all processes and read by the one that judges.

Each process appends lines to a file of its own. A line is written by one system call, so that it is kept even if the
process is killed right afterwards. All times are of `time.monotonic`, which is the same for all processes of a machine.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import msgspec

SUFFIX = ".journal"
SYSTEM = "the message system"
"""The subject of a fault that did not hit a process."""


class Event(msgspec.Struct, omit_defaults=True):
    """Something that happened.

    Attributes:
        what: by a client "sent", "returned", "raised", "stalled", "done"; by a server "ready", "begun", "finished",
            "answered"; by both "stopped"; by the one who breaks things "fault", "over", "gone" when a broker that is
            killed has ended, and "wiped" when a message system has lost what it had stored.
        who: the name of the process, and its id `pid`.
        at: when, seconds of `time.monotonic`.
        id: of the message, if it is about one.
        verb, policy, deadline: of a message that is sent; deadline in seconds of `time.monotonic`.
        expected: what a "sent" call is to return.
        errors: the names of the errors by which a "sent" message may end; None means those that its policy allows.
        value: what a verb returned; of a multicall the items that came, also where it raised in the end.
        error: the name of the exception, and `text` what it says. `ours` is whether it belongs to msgbus, and
            `not_delivered` whether it says that no server has got the message.
        seconds: how long a "stalled" process did not get to run.
        text: what a "fault" was; `subject` is the name of the process that it hit, or `SYSTEM`.
    """

    what: str
    who: str = ""
    pid: int = 0
    at: float = 0.0
    id: str = ""
    verb: str = ""
    policy: str = ""
    deadline: float = 0.0
    expected: Any = None
    errors: list[str] | None = None
    value: Any = None
    error: str = ""
    text: str = ""
    subject: str = ""
    ours: bool = True
    not_delivered: bool = False
    seconds: float = 0.0


class Writer:
    """Appends to the journal, from any thread of a process.

    Args:
        folder: of the journal.
        who: the name of this process.
        pid: its id; None means the real one. What runs as a thread has one that is made up.
    """

    def __init__(self, folder: str, who: str, pid: int | None = None) -> None:
        self._who = who
        self._pid = os.getpid() if pid is None else pid
        path = pathlib.Path(folder) / f"{who}-{self._pid}{SUFFIX}"
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, event: Event) -> None:
        """Append an event; who, pid and, unless it is given, the time are filled in."""
        event.who = self._who
        event.pid = self._pid
        event.at = event.at or time.monotonic()
        os.write(self._fd, msgspec.json.encode(event) + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Reader:
    """Reads the journal of all processes while it grows."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._read: dict[pathlib.Path, int] = {}
        self._events: list[Event] = []
        self._decoder = msgspec.json.Decoder(Event)

    def events(self) -> list[Event]:
        """All that has been written so far, in the order of time."""
        found = [event for path in sorted(self._folder.glob(f"*{SUFFIX}")) for event in self._news(path)]
        if found:
            self._events = sorted([*self._events, *found], key=lambda event: event.at)
        return self._events

    def _news(self, path: pathlib.Path) -> Iterator[Event]:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]  # The rest of the last line is still being written.
        self._read[path] = self._read.get(path, 0) + len(whole)
        yield from map(self._decoder.decode, whole.splitlines())
