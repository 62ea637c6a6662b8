"""Three services that call each other. `msgbus serve` serves one class each."""

import os
import threading
from typing import Any

from oslo_config import cfg

import msgbus

Context = dict[str, Any]


class OutOfStock(Exception):
    """Less is there than was ordered."""


class Stock:
    """Keeps its figures in memory, to be short: so one server has to do, and it begins anew with each start."""

    def __init__(self) -> None:
        self._left = {"tea": 10}
        self._lock = threading.Lock()  # Methods run on threads, several at a time.

    @msgbus.expected_exceptions(OutOfStock)
    def take(self, ctxt: Context, item: str, count: int) -> int:
        """Take some out. Returns how many are left."""
        with self._lock:
            left = self._left.get(item, 0)
            if left < count:
                raise OutOfStock(f"{left} of {item} left, not {count}")
            self._left[item] = left - count
            return left - count


class Mail:
    def send(self, ctxt: Context, to: str, text: str) -> None:
        print(f"to {to}: {text}", flush=True)


class Orders:
    """Asks the stock, and has a mail sent. Any number of servers may run."""

    def __init__(self) -> None:
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[])
        # The class of this module is raised as it is; those of others become a RemoteError.
        transport = msgbus.get_rpc_transport(conf, os.environ.get("MSGBUS_URL"), allowed_remote_exmods=[__name__])
        self._stock = msgbus.get_rpc_client(transport, msgbus.Target(topic="stock"))
        # Rather two mails than none, if it is not known whether one was sent.
        self._mail = msgbus.get_rpc_client(transport, msgbus.Target(topic="mail"), delivery="at_least_once")

    @msgbus.expected_exceptions(OutOfStock)
    def place(self, ctxt: Context, item: str, count: int, to: str) -> str:
        left = self._stock.call(ctxt, "take", item=item, count=count)
        self._mail.cast(ctxt, "send", to=to, text=f"You have ordered {count} of {item}.")
        return f"ordered; {left} left"
