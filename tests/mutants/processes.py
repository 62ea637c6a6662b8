"""Faults that take several processes: of the driver for RabbitMQ, as the fake message system lives in one process.

The processes of the suite are forked from one that has imported this module. They have the fault that `VARIABLE` names.
"""

from __future__ import annotations

import os
from typing import Any

from msgbus.drivers.base import Address
from msgbus.drivers.kombu.topology import NativeTopology
from tests.mutants.tools import Mutants, collector, spoil

PROCESSES: Mutants = {}
caught_by = collector(PROCESSES)
VARIABLE = "MSGBUS_MUTANT"


@caught_by("slow_the_inbox_of_a_killed_process_is_removed")
def keeps_the_inbox_of_a_dead_process() -> None:
    """The queue of an inbox stays for ever when its owner was killed."""

    def queue(old: Any, topology: NativeTopology, address: Address, unique: str) -> Any:
        found = old(topology, address, unique)
        return found._replace(arguments={}) if address.kind == "inbox" else found

    spoil(NativeTopology, "queue", queue)


if VARIABLE in os.environ:
    PROCESSES[os.environ[VARIABLE]].apply()
