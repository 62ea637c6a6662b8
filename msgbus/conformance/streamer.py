"""A client of the suite in a process of its own, made to be killed."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

from msgbus import Target, Transport, get_rpc_client, get_rpc_transport
from msgbus.conformance.blocking import BlockingTransport, EventLoop, blocking_client
from msgbus.conformance.endpoint import ServerSpec, make_conf


def read_stream(spec: ServerSpec, commands: Connection) -> None:
    """Read three items of a stream, whose key is the server's name in the spec, and wait until `commands` is closed."""
    conf, target = make_conf(spec.options), Target(topic=spec.topic)
    transport: Transport | BlockingTransport
    if spec.world == "asyncio":
        transport = on_loop = BlockingTransport(EventLoop(), conf, spec.url, ends=True)
        client: Any = blocking_client(on_loop, target)
    else:
        transport = on_threads = get_rpc_transport(conf, spec.url)
        client = get_rpc_client(on_threads, target)
    try:
        stream = client.multicall({}, "endless", key=spec.server)
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
