"""A client of the suite in a process of its own, made to be killed: it reads three items of a stream, and waits."""

from __future__ import annotations

import sys

import msgspec

from msgbus import Target, get_rpc_client, get_rpc_transport
from msgbus.conformance.endpoint import ServerSpec, make_conf


def main() -> None:
    """Read the target, and the stream's key as its server's name, from the first line of the input."""
    spec = msgspec.json.decode(sys.stdin.readline(), type=ServerSpec)
    transport = get_rpc_transport(make_conf(spec.options), spec.url)
    try:
        stream = get_rpc_client(transport, Target(topic=spec.topic)).multicall({}, "endless", key=spec.server)
        for _ in range(3):
            next(stream)
        sys.stdout.write("reading\n")
        sys.stdout.flush()
        sys.stdin.read()
        stream.close()
    finally:
        transport.cleanup()


if __name__ == "__main__":
    main()
