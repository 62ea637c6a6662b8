"""A service and its client, for tests of a driver on its message system."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgbus

Connect = Callable[..., msgbus.Transport]
"""What the fixture `connect` gives: called with a URL, and with options of the core by name."""


class Endpoint:
    """Keeps what `echo` was called with."""

    def __init__(self) -> None:
        self.runs: list[Any] = []

    def echo(self, _ctxt: object, value: Any) -> Any:
        self.runs.append(value)
        return value

    def fail(self, _ctxt: object) -> None:
        raise ValueError("never works")


@contextlib.contextmanager
def serving(
    transport: msgbus.Transport, topic: str, endpoint: object | None = None, **options: Any
) -> Iterator[Endpoint]:
    """A server named s1 while the block runs: of the `Endpoint` that this yields, or of `endpoint`."""
    ours = Endpoint()
    target = msgbus.Target(topic=topic, server="s1")
    server = msgbus.get_rpc_server(transport, target, [endpoint or ours], **options)
    server.start(20)
    try:
        yield ours
    finally:
        server.stop()
        assert server.wait(20) == 0


def client_of(transport: msgbus.Transport, topic: str, timeout: float = 20.0) -> msgbus.RPCClient:
    """A client with a short timeout, so that no test lasts long."""
    return msgbus.get_rpc_client(transport, msgbus.Target(topic=topic), timeout=timeout)


def nothing_is_added(state: Callable[[], Counter[str]], before: Counter[str]) -> None:
    """What there is more of than `before` goes within 20 s; what there is less of does not count."""
    end = time.monotonic() + 20
    while (added := state() - before) and time.monotonic() < end:
        time.sleep(0.1)
    assert not added
