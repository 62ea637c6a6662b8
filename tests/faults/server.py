"""``python -m tests.faults.server SPEC PARENT``: a server that notes all that it runs in the journal."""

from __future__ import annotations

import os
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from msgbus import NoOpSerializer, Target, Transport, get_rpc_server
from tests.faults.child import AskedToEnd, run
from tests.faults.journal import Event, Writer
from tests.faults.workload import Spec

DRAIN = 60.0
"""Seconds that a server which ends in good order gives to what it still runs."""


class Service:
    """The methods that clients call."""

    def __init__(self, journal: Writer, folder: str) -> None:
        self._journal = journal
        self._folder = pathlib.Path(folder)

    def work(self, _ctxt: Any, id: str, seconds: float) -> str:
        """Take so long, and return the id."""
        self._journal.add(Event("begun", id=id))
        time.sleep(seconds)
        self._journal.add(Event("finished", id=id))
        return id

    def items(self, _ctxt: Any, id: str, seconds: float, n: int) -> Iterator[str]:
        """Yield n items, so long after each other."""
        self._journal.add(Event("begun", id=id))
        for number in range(n):
            yield f"{id}/{number}"
            time.sleep(seconds)
        self._journal.add(Event("finished", id=id))

    def die_once(self, ctxt: Any, id: str, seconds: float) -> str:
        """Take so long, and end the process without a word, if no other has done so for this id."""
        self._journal.add(Event("begun", id=id))
        time.sleep(seconds)
        if self._is_first(id):
            os._exit(1)
        self._journal.add(Event("finished", id=id))
        return id

    def die_around(self, ctxt: Any, id: str, seconds: float) -> str:
        """As `work`, but if no other has done so for this id, the process ends 0 to 5 ms later, depending on the id."""
        self.work(ctxt, id, seconds)
        if self._is_first(id):
            delay = int(id.rpartition("/")[2]) % 6 / 1000
            threading.Timer(delay, os._exit, (1,)).start()
        return id

    def _is_first(self, id: str) -> bool:
        try:
            (self._folder / f"first-{id.replace('/', '-')}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class NotingSerializer(NoOpSerializer):
    """Notes which answers are about to be sent."""

    def __init__(self, journal: Writer) -> None:
        self._journal = journal

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """Return `entity`, which is an id."""
        self._journal.add(Event("answered", id=str(entity)))
        return entity


def serve(spec: Spec, journal: Writer, transport: Transport, asked_to_end: AskedToEnd) -> None:
    """Serve until asked to end."""
    target = Target(topic=spec.topic, server=spec.name)
    server = get_rpc_server(transport, target, [Service(journal, spec.folder)], serializer=NotingSerializer(journal))
    try:
        server.start(DRAIN)
        journal.add(Event("ready"))
        while not asked_to_end(1.0):
            pass
        server.stop()
        server.wait(DRAIN)
        journal.add(Event("stopped"))
    finally:
        transport.cleanup()


if __name__ == "__main__":
    run(serve)
