"""A process of the suite that has an inbox, made to be killed."""

from __future__ import annotations

from multiprocessing.connection import Connection

from msgbus import get_rpc_transport
from msgbus.conformance.endpoint import ServerSpec, make_conf
from msgbus.drivers.base import Delivery


def hold_an_inbox(spec: ServerSpec, commands: Connection) -> None:
    """Open an inbox, send its name, and wait until `commands` is closed."""
    transport = get_rpc_transport(make_conf(spec.options), spec.url)
    try:
        inbox = transport.driver.open_inbox(_take)
        inbox.ready.result(30)
        commands.send(inbox.address.name)
        try:
            commands.recv()
        except EOFError:
            pass
    finally:
        transport.cleanup()


def _take(delivery: Delivery) -> None:
    delivery.accept()
