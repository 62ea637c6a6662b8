"""What the servers of ``msgbus bench`` serve."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypedDict

from msgbus.cli.own_process import end_with_command


class Usage(TypedDict):
    """What a process has used, and what was sent to it.

    Attributes:
        cpu: seconds of all its threads since it began.
        memory: bytes that it has in memory now.
        noted: how many casts its server has run.
    """

    cpu: float
    memory: int
    noted: int


def usage_of_this_process(noted: int = 0) -> Usage:
    """What this process has used."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    return {"cpu": time.process_time(), "memory": pages * os.sysconf("SC_PAGE_SIZE"), "noted": noted}


class Service:
    """Methods that do next to nothing, so that what msgbus and the message system cost is measured."""

    def __init__(self, _server: str) -> None:
        self._lock = threading.Lock()
        self._noted = 0

    def echo(self, _ctxt: object, payload: str) -> str:
        """Answer with what came."""
        return payload

    def note(self, _ctxt: object, payload: str) -> None:
        """Count it. The caller does not wait."""
        with self._lock:
            self._noted += 1

    def items(self, _ctxt: object, payload: str) -> Iterator[str]:
        """Yield the same, until the caller has enough."""
        while True:
            yield payload

    def usage(self, _ctxt: object) -> Usage:
        """What this server has used and run."""
        return usage_of_this_process(self._noted)


class Process(Service):
    """The same for a server in a process of its own, which ends when the command ends, even if that is killed."""

    def __init__(self) -> None:
        super().__init__("")
        end_with_command()


class AsyncService:
    """The same with ``async`` methods, which run on an event loop."""

    def __init__(self, _server: str) -> None:
        self._noted = 0

    async def echo(self, _ctxt: object, payload: str) -> str:
        """See `Service`."""
        return payload

    async def note(self, _ctxt: object, payload: str) -> None:
        """See `Service`."""
        self._noted += 1

    async def items(self, _ctxt: object, payload: str) -> AsyncIterator[str]:
        """See `Service`."""
        while True:
            yield payload

    async def usage(self, _ctxt: object) -> Usage:
        """See `Service`."""
        return usage_of_this_process(self._noted)


class AsyncProcess(AsyncService):
    """The same for a server in a process of its own, as `Process`."""

    def __init__(self) -> None:
        super().__init__("")
        end_with_command()
