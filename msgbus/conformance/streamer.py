"""A client of the suite in a process of its own, made to be killed."""

from __future__ import annotations

from multiprocessing.connection import Connection

from msgbus import Target, get_rpc_client, get_rpc_transport
from msgbus.conformance.endpoint import ServerSpec, make_conf


def read_stream(spec: ServerSpec, commands: Connection) -> None:
    """Read three items of a stream, whose key is the server's name in the spec, and wait until `commands` is closed."""
    transport = get_rpc_transport(make_conf(spec.options), spec.url)
    try:
        stream = get_rpc_client(transport, Target(topic=spec.topic)).multicall({}, "endless", key=spec.server)
        for _ in range(3):
            next(stream)
        commands.send("reading")
        try:
            commands.recv()
        except EOFError:
            pass
        stream.close()
    finally:
        transport.cleanup()
