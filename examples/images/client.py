"""Has a picture drawn into a file, and shows how far it is: ``python client.py FILE``."""

import argparse
import base64
import os
import pathlib
import time

from oslo_config import cfg

import msgbus


def draw(client: msgbus.RPCClient, file: pathlib.Path, width: int, height: int, cancel_at: int) -> bool:
    """Returns whether it was drawn to its end. Leaving the `with`, by Ctrl-C too, ends it on the server."""
    shown = 0
    with client.multicall({}, "draw", width=width, height=height) as rows, file.open("wb") as picture:
        picture.write(f"P5 {width} {height} 255\n".encode())  # PGM, which most image viewers open
        for number, row in enumerate(rows, 1):
            picture.write(base64.b64decode(row))
            if number == cancel_at:
                return False
            percent = 100 * number // height
            if percent >= shown + 25:
                print(f"{percent} %", flush=True)
                shown = percent
    return True


def until_nobody_draws(client: msgbus.RPCClient) -> None:
    """Return when no server draws. They are told to stop; this client does not wait for that when it cancels."""
    end = time.monotonic() + 10
    while any(answer.result() for answer in client.gather({}, "drawing")):
        if time.monotonic() > end:
            raise SystemExit("a server still draws")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--width", type=int, default=300)
    parser.add_argument("--height", type=int, default=200)
    parser.add_argument("--cancel-at", type=int, default=0, metavar="ROW")
    arguments = parser.parse_args()
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[])
    transport = msgbus.get_rpc_transport(conf, os.environ.get("MSGBUS_URL"))
    client = msgbus.get_rpc_client(transport, msgbus.Target(topic="images"), timeout=10)
    try:
        if draw(client, arguments.file, arguments.width, arguments.height, arguments.cancel_at):
            print(arguments.file, "is drawn")
        else:
            arguments.file.unlink()
            until_nobody_draws(client)
            print("cancelled: no server draws any more")
    finally:
        transport.cleanup()


if __name__ == "__main__":
    main()
