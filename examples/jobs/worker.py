"""Takes jobs out of a queue, and writes an invoice for each: ``python worker.py NAME``. Run as many as you need."""

import os
import pathlib
import signal
import sys
import uuid
from typing import Any

from oslo_config import cfg

import msgbus

INVOICES = pathlib.Path("invoices")
DEAD = pathlib.Path("dead.txt")


class Invoices:
    def write(self, ctxt: dict[str, Any], number: int, amount: int) -> None:
        """Write one. A job may be run again: writing the same invoice a second time does no harm."""
        if amount < 0:
            raise ValueError(f"invoice {number} has a negative amount")
        written = INVOICES / f".{uuid.uuid4().hex}"
        written.write_text(f"Invoice {number}: {amount} EUR\n")
        written.replace(INVOICES / f"{number}.txt")  # nobody sees half of it


def note_dead(letter: msgbus.DeadLetter) -> None:
    """A job that was tried as often as `jobs.conf` says, and raised each time."""
    with DEAD.open("a") as file:
        file.write(f"given up after {letter.attempts} attempts: {letter.reason}\n")


def main(name: str) -> None:
    """Work until Ctrl-C or SIGTERM. Jobs that run are finished then; others stay in the queue."""
    INVOICES.mkdir(exist_ok=True)
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(pathlib.Path(__file__).with_name("jobs.conf"))])
    transport = msgbus.get_rpc_transport(conf, os.environ.get("MSGBUS_URL"))
    target = msgbus.Target(topic="invoices", server=name)
    server = msgbus.get_rpc_server(transport, target, [Invoices()], on_dead_letter=note_dead)
    server.start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        print(f"worker {name} is ready", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        server.stop()
        server.wait(60)
    transport.cleanup()


if __name__ == "__main__":
    main(sys.argv[1])
