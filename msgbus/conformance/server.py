"""A server of the suite in a process of its own: ``python -m msgbus.conformance.server``.

The first line of its input is a `ServerSpec` as JSON; then come commands, one on each line: ``stop``, ``wait SECONDS``.
Each is answered by one line. The process ends, in good order, with its input.
"""

from __future__ import annotations

import sys

import msgspec

from msgbus.conformance.endpoint import ServerSpec, make_server


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until the input ends."""
    server = make_server(msgspec.json.decode(sys.stdin.readline(), type=ServerSpec))
    try:
        server.start(30)
        _say("ready")
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            if command == "stop":
                server.stop()
                _say("stopped")
            elif command == "wait":
                _say(str(server.wait(float(argument))))
        server.wait(5)
    finally:
        server.transport.cleanup()


if __name__ == "__main__":
    main()
