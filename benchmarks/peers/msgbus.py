"""msgbus itself, with the driver of the URL and the defaults of all options."""

import os
import threading
from collections.abc import Callable
from typing import Any

from oslo_config import cfg

from benchmarks import base
from benchmarks.base import Handler, Payload, Peer
from msgbus import Target, Transport, get_rpc_client, get_rpc_server, get_rpc_transport

_SHORT_LIVED = {
    "rabbit": "queue_expires=60&server_expires=60",
    "qpid": "keep_server_queues=false",  # the others go with their server by themselves
}
"""Options with which the queues of a run do not outlive it for long, by driver."""


def _transport(url: str) -> Transport:
    conf = cfg.ConfigOpts()
    conf([], project="msgbus-benchmarks", default_config_files=[], default_config_dirs=[])
    return get_rpc_transport(conf, f"{url}{'&' if '?' in url else '?'}{_SHORT_LIVED.get(url.partition(':')[0], '')}")


class _Endpoint:
    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def echo(self, _ctxt: dict[str, Any], payload: Payload) -> Payload:
        return self._handler(payload)


class _Server(base.Server):
    def serve(self, handler: Handler, ready: Callable[[], None]) -> None:
        target = Target(topic=self.topic, server=f"server-{os.getpid()}")
        server = get_rpc_server(_transport(self.url), target, [_Endpoint(handler)])
        server.start(base.TIMEOUT)
        ready()
        threading.Event().wait()


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._client = get_rpc_client(_transport(url), Target(topic=topic), timeout=base.TIMEOUT)

    def call(self, payload: Payload) -> Payload:
        answer: Payload = self._client.call({}, "echo", payload=payload)
        return answer

    def cast(self, payload: Payload) -> None:
        self._client.cast({}, "echo", payload=payload)

    def fanout(self, payload: Payload) -> None:
        self._client.fanout_cast({}, "echo", payload=payload)


PEER = Peer(_Server, _Client)
