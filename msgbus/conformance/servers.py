"""Makes the servers of the suite: for threads, or for asyncio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgbus import (
    DeadLetter,
    ExplicitRPCAccessPolicy,
    LegacyRPCAccessPolicy,
    NotificationListener,
    RPCServer,
    SerializationError,
    Target,
    get_batch_notification_listener,
    get_notification_listener,
    get_rpc_server,
    get_rpc_transport,
)
from msgbus.conformance.async_endpoint import AsyncEndpoint
from msgbus.conformance.blocking import (
    BlockingServer,
    BlockingTransport,
    EventLoop,
    blocking_listener,
    blocking_server,
)
from msgbus.conformance.endpoint import Endpoint, Journal, Older, ServerSpec, Versioned, make_conf
from msgbus.conformance.notified import AsyncNotified, BatchNotified, Notified, only
from msgbus.encoding import decode_request

POLICIES = {"": None, "explicit": ExplicitRPCAccessPolicy, "legacy": LegacyRPCAccessPolicy}


def make_server(spec: ServerSpec) -> RPCServer | NotificationListener | BlockingServer:
    """Make the server that a spec describes, with a transport of its own. It is not started."""
    if spec.listener is not None:
        return _make_listener(spec, **spec.listener)
    journal = Journal(spec.folder)
    target = Target(exchange=spec.exchange, topic=spec.topic, server=spec.server)
    versions = [Versioned(spec.server), Older()]  # Their methods are plain ones, in either world.

    def on_dead_letter(letter: DeadLetter) -> None:
        try:
            key = str(decode_request(letter.body, letter.content_type).args.get("key", ""))
        except SerializationError:
            key = ""
        journal.add("dead", key, spec.server)

    more: dict[str, Any] = {"access_policy": POLICIES[spec.access], "on_dead_letter": on_dead_letter}
    if spec.world == "asyncio":
        transport = BlockingTransport(EventLoop(), make_conf(_for_tasks(spec.options)), spec.url, ends=True)
        endpoint = AsyncEndpoint(journal, spec.server, transport.transport)
        return blocking_server(transport, target, [endpoint, *versions], **more)
    plain = get_rpc_transport(make_conf(spec.options), spec.url)
    return get_rpc_server(plain, target, [Endpoint(journal, spec.server, plain), *versions], **more)


def _make_listener(
    spec: ServerSpec, levels: Sequence[str] | None = None, **more: Any
) -> NotificationListener | BlockingServer:
    """Make a listener for notifications."""
    journal, targets = Journal(spec.folder), [Target(exchange=spec.exchange, topic=spec.topic)]
    batches = "batch_size" in more or "batch_timeout" in more
    cls = BatchNotified if batches else AsyncNotified if spec.world == "asyncio" else Notified
    endpoints = [only(cls(journal, spec.server), levels)]
    if spec.world == "asyncio":
        transport = BlockingTransport(EventLoop(), make_conf(_for_tasks(spec.options)), spec.url, ends=True)
        return blocking_listener(transport, targets, endpoints, **more)
    make = get_batch_notification_listener if batches else get_notification_listener
    return make(get_rpc_transport(make_conf(spec.options), spec.url), targets, endpoints, **more)


def _for_tasks(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a server whose methods are tasks: as many of them at once as there would be threads."""
    threads = options.get("executor_thread_pool_size")
    return options if threads is None else {"executor_tasks": threads, **options}
