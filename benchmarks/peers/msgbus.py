"""msgbus itself, with the driver of the URL and the defaults of all options."""

import threading
from collections.abc import Callable
from typing import Any

from oslo_config import cfg

from benchmarks import base
from benchmarks.base import Handler, Payload, Peer
from msgbus import Target, Transport, get_rpc_client, get_rpc_server, get_rpc_transport


def _transport(url: str) -> Transport:
    conf = cfg.ConfigOpts()
    conf([], project="msgbus-benchmarks", default_config_files=[], default_config_dirs=[])
    # The queues of a run are of no use after it. Qpid's go with their server by themselves, but for one.
    short_lived = "keep_server_queues=false" if url.startswith("qpid:") else "queue_expires=60&server_expires=60"
    return get_rpc_transport(conf, f"{url}{'&' if '?' in url else '?'}{short_lived}")


class _Endpoint:
    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def echo(self, _ctxt: dict[str, Any], payload: Payload) -> Payload:
        return self._handler(payload)


class _Server(base.Server):
    def serve(self, handler: Handler, ready: Callable[[], None]) -> None:
        target = Target(topic=self.topic, server="server")
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


PEER = Peer(_Server, _Client)
