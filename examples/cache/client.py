"""Asks all servers for a price, changes it, and waits until none has the old one."""

import os
import time
from typing import Any

from oslo_config import cfg

import msgbus


def ask_all(client: msgbus.RPCClient, method: str, **arguments: Any) -> dict[str | None, Any]:
    """The result of each server, by its name."""
    answers = sorted(client.gather({}, method, **arguments), key=lambda answer: answer.server or "")
    return {answer.server: answer.result() for answer in answers}


def main() -> None:
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[])
    transport = msgbus.get_rpc_transport(conf, os.environ.get("MSGBUS_URL"))
    client = msgbus.get_rpc_client(transport, msgbus.Target(topic="prices"), timeout=10)

    print("prices:", ask_all(client, "price", item="tea"))
    for _ in range(10):
        ask_all(client, "price", item="tea")
    print("asked 11 times, read:", ask_all(client, "reads"))

    client.call({}, "set_price", item="tea", price=4)
    # One server has changed it. The others forget the old price when the cast reaches them: soon, but not at once.
    end = time.monotonic() + 10
    while set(ask_all(client, "price", item="tea").values()) != {4}:
        if time.monotonic() > end:
            raise SystemExit("a server still has the old price")
        time.sleep(0.05)
    print("changed:", ask_all(client, "price", item="tea"))
    transport.cleanup()


if __name__ == "__main__":
    main()
