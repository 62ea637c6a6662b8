"""A server of prices that remembers what it has read: ``python server.py NAME``. Run as many as you need."""

import os
import signal
import sqlite3
import sys
import threading
import time
from contextlib import closing
from typing import Any

from oslo_config import cfg

import msgbus

DATABASE = "prices.db"
MAX_AGE = 60.0
"""Seconds after which a price is read again in any case.

A cast to all is not confirmed by each server: one that has lost its connection for long may miss it, and a server that
dies after it has changed the database does not send it.
"""

Context = dict[str, Any]


class Prices:
    def __init__(self, client: msgbus.RPCClient) -> None:
        self._client = client
        self._lock = threading.Lock()  # Methods run on threads, several at a time.
        self._remembered: dict[str, tuple[int, float]] = {}  # each with the time at which it is too old
        self._changes = 0
        self._reads = 0
        with closing(sqlite3.connect(DATABASE)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS prices (item TEXT PRIMARY KEY, price INTEGER NOT NULL)")
            database.execute("INSERT OR IGNORE INTO prices VALUES ('tea', 3)")

    def price(self, ctxt: Context, item: str) -> int:
        with self._lock:
            price, too_old = self._remembered.get(item, (0, 0.0))
            changes = self._changes
        if time.monotonic() < too_old:
            return price
        price = self._read(item)
        with self._lock:
            if changes == self._changes:  # otherwise this one may have been read before the change
                self._remembered[item] = (price, time.monotonic() + MAX_AGE)
        return price

    def set_price(self, ctxt: Context, item: str, price: int) -> None:
        """Change it in the database, then have every server forget it, this one too."""
        with closing(sqlite3.connect(DATABASE)) as database, database:
            database.execute("INSERT OR REPLACE INTO prices VALUES (?, ?)", (item, price))
        self._client.fanout_cast(ctxt, "forget", item=item)

    def forget(self, ctxt: Context, item: str) -> None:
        with self._lock:
            self._changes += 1
            self._remembered.pop(item, None)

    def reads(self, ctxt: Context) -> int:
        """How often this server has read the database."""
        return self._reads

    def _read(self, item: str) -> int:
        with self._lock:
            self._reads += 1
        with closing(sqlite3.connect(DATABASE)) as database:
            row = database.execute("SELECT price FROM prices WHERE item = ?", (item,)).fetchone()
        if row is None:
            raise KeyError(item)
        price: int = row[0]
        return price


def main(name: str) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[])
    transport = msgbus.get_rpc_transport(conf, os.environ.get("MSGBUS_URL"))
    client = msgbus.get_rpc_client(transport, msgbus.Target(topic="prices"), timeout=10)
    server = msgbus.get_rpc_server(transport, msgbus.Target(topic="prices", server=name), [Prices(client)])
    server.start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        print(f"server {name} is ready", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        server.stop()
        server.wait(60)
    transport.cleanup()


if __name__ == "__main__":
    main(sys.argv[1])
