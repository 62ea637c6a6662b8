"""A server of the suite in a process of its own."""

from __future__ import annotations

from multiprocessing.connection import Connection

from msgbus.conformance.endpoint import ServerSpec
from msgbus.conformance.servers import make_server


def serve(spec: ServerSpec, commands: Connection) -> None:
    """Serve until the other end of `commands` is closed.

    A command is a pair: ``("stop", 0.0)`` or ``("wait", seconds)``; each is answered with its result.
    """
    server = make_server(spec)
    try:
        server.start(30)
        commands.send("ready")
        while True:
            try:
                command, seconds = commands.recv()
            except EOFError:
                break
            if command == "stop":
                server.stop()
                commands.send("stopped")
            elif command == "wait":
                commands.send(server.wait(seconds))
        server.wait(5)
    finally:
        server.transport.cleanup()
