"""oslo.messaging over RabbitMQ, with the defaults of its options: each cast waits for its confirmation."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import oslo_messaging
from oslo_config import cfg

from benchmarks import base
from benchmarks.base import Peer, Service
from benchmarks.payloads import Payload
from benchmarks.workloads import TIMEOUT


def _transport(url: str) -> Any:
    cfg.CONF([], project="benchmarks", default_config_files=[], default_config_dirs=[])  # its tracing needs this one
    return oslo_messaging.get_rpc_transport(cfg.CONF, url)


class _Endpoint:
    def __init__(self, service: Service) -> None:
        self._service = service

    def echo(self, _ctxt: dict[str, Any], payload: Payload) -> Payload:
        return self._service.echo(payload)


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        target = oslo_messaging.Target(topic=self.topic, server=f"server-{os.getpid()}")
        policy = oslo_messaging.DefaultRPCAccessPolicy
        server = oslo_messaging.get_rpc_server(
            _transport(self.url), target, [_Endpoint(service)], executor="threading", access_policy=policy
        )
        server.start()
        ready()
        threading.Event().wait()


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        target = oslo_messaging.Target(topic=topic)
        self._client: Any = oslo_messaging.get_rpc_client(_transport(url), target, timeout=TIMEOUT)
        self._all: Any = self._client.prepare(fanout=True)

    def call_once(self, payload: Payload) -> Payload:
        answer: Payload = self._client.call({}, "echo", payload=payload)
        return answer

    def cast_once(self, payload: Payload) -> None:
        self._client.cast({}, "echo", payload=payload)

    def fanout_once(self, payload: Payload) -> None:
        self._all.cast({}, "echo", payload=payload)


PEER = Peer(_Server, _Client)
