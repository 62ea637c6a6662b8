"""msgbus itself, with the driver of the URL and the defaults of all options."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from oslo_config import cfg

from benchmarks import base
from benchmarks.base import Peer, Service, Work
from benchmarks.payloads import Payload
from benchmarks.workloads import TIMEOUT
from msgbus import Target, Transport, get_rpc_client, get_rpc_server, get_rpc_transport

_SHORT_LIVED = {
    "rabbit": "queue_expires=60&server_expires=60",
    "qpid": "keep_server_queues=false",  # the others go with their server by themselves
}
"""Options with which the queues of a run do not outlive it for long, by driver."""
_numbers = itertools.count()


def configure(url: str, **options: Any) -> tuple[cfg.ConfigOpts, str]:
    """A configuration, with `options` of the core, and the URL of queues that do not outlive the run for long."""
    conf = cfg.ConfigOpts()
    conf([], project="msgbus-benchmarks", default_config_files=[], default_config_dirs=[])
    short_lived = _SHORT_LIVED.get(url.partition(":")[0], "")
    if options:
        from msgbus import configuration

        configuration.register(conf)
        for name, value in options.items():
            conf.set_override(name, value)
    return conf, f"{url}{'&' if '?' in url else '?'}{short_lived}"


def transport(url: str, **options: Any) -> Transport:
    """A transport with a configuration of its own, and `options` of the core."""
    return get_rpc_transport(*configure(url, **options))


class Endpoint:
    """What clients call."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def echo(self, _ctxt: dict[str, Any], payload: Payload) -> Payload:
        """Give back what came."""
        return self._service.echo(payload)

    def items(self, _ctxt: dict[str, Any], count: int, size: int) -> Iterator[Payload]:
        """Stream so many items."""
        yield from self._service.items(count, size)


class Record(msgspec.Struct, omit_defaults=True):
    """A payload, as a typed server has it."""

    number: int
    name: str
    state: str
    host: str
    tags: list[str]
    text: str = ""


class TypedEndpoint:
    """What clients call whose arguments are checked: it costs what becomes a `Record`, and plain data again."""

    def echo(self, _ctxt: dict[str, Any], payload: Record) -> Record:
        """Give back what came."""
        return payload


def server_target(topic: str) -> Target:
    """That of a new server."""
    return Target(topic=topic, server=f"server-{os.getpid()}-{next(_numbers)}")


class _Server(base.Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        self._serve([Endpoint(service)], ready)

    def _serve(self, endpoints: Sequence[object], ready: Callable[[], None], *, validate: bool = False) -> None:
        target = server_target(self.topic)
        server = get_rpc_server(transport(self.url), target, endpoints, validate=validate)
        server.start(TIMEOUT)
        ready()
        threading.Event().wait()


class _TypedServer(_Server):
    def serve(self, service: Service, ready: Callable[[], None]) -> None:
        self._serve([TypedEndpoint()], ready, validate=True)


class _Client(base.Client):
    def __init__(self, url: str, topic: str) -> None:
        super().__init__(url, topic)
        self._client = get_rpc_client(transport(url), Target(topic=topic), timeout=TIMEOUT)

    def call_once(self, payload: Payload) -> Payload:
        answer: Payload = self._client.call({}, "echo", payload=payload)
        return answer

    def cast_once(self, payload: Payload) -> None:
        self._client.cast({}, "echo", payload=payload)

    def cast_many(self, work: Work) -> int:
        """By the verb that sends many: they are confirmed together."""
        return self._client.cast_many({}, (("echo", {"payload": payload}) for payload in work.payloads()))

    def fanout_once(self, payload: Payload) -> None:
        self._client.fanout_cast({}, "echo", payload=payload)

    def stream(self, count: int, size: int) -> Iterable[Payload]:
        return self._client.multicall({}, "items", count=count, size=size)


PEER = Peer(_Server, _Client)
TYPED = Peer(_TypedServer, _Client)
TOGETHER = Peer(_Server, _Client, together=True)
