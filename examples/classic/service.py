"""A service written like the early nova: a manager, one connection, three consumers.

    python service.py --config-file service.conf --host host1

The configuration file alone chooses the message system.
"""

import signal
import sys
from collections.abc import Iterator
from typing import Any

from oslo_config import cfg

from msgbus import rpc
from msgbus.rpc import dispatcher as rpc_dispatcher

CONF = cfg.CONF
CONF.register_cli_opts([cfg.StrOpt("host", default="localhost"), cfg.StrOpt("topic", default="thing")])


class ThingManager:
    RPC_API_VERSION = "1.1"

    def __init__(self, host: str) -> None:
        self.host = host

    def create_rpc_dispatcher(self) -> rpc_dispatcher.RpcDispatcher:
        return rpc_dispatcher.RpcDispatcher([self])

    def where(self, context: rpc.RpcContext) -> str:
        return self.host

    def whoami(self, context: rpc.RpcContext) -> Any:
        return context.user

    def note(self, context: rpc.RpcContext, path: str, text: str) -> None:
        with open(path, "a") as notes:
            notes.write(f"{self.host} {text}\n")

    def count(self, context: rpc.RpcContext, to: int) -> Iterator[int]:
        yield from range(1, to + 1)

    def ask(self, context: rpc.RpcContext, topic: str) -> Any:
        return rpc.call(context, topic, {"method": "where"})


def start(host: str, topic: str) -> rpc.Connection:
    manager = ThingManager(host)
    conn = rpc.create_connection(new=True)
    proxy = manager.create_rpc_dispatcher()
    conn.create_consumer(topic, proxy, fanout=False)
    conn.create_consumer(f"{topic}.{host}", proxy, fanout=False)
    conn.create_consumer(topic, proxy, fanout=True)
    conn.consume_in_thread()
    return conn


def main() -> None:
    CONF(sys.argv[1:], project="thing", default_config_files=[])
    conn = start(CONF.host, CONF.topic)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # a closed terminal, unless nohup was used
            signal.signal(signal.SIGHUP, signal.default_int_handler)
        print(f"{CONF.topic}.{CONF.host} is ready", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        conn.close()
    rpc.cleanup()


if __name__ == "__main__":
    main()
