"""msgbus for asyncio: transports, clients, servers, notifiers and listeners on the event loop that runs.

A call takes no thread and no hand-off between threads. Threads are used for plain methods of servers, and to connect
and close. All else (`msgbus.Target`, the errors, `msgbus.current_request`, serializers, access policies) is that of
`msgbus`.
"""

from msgbus.aio.client import AsyncRPCClient, get_rpc_client
from msgbus.aio.gathering import AsyncGathering
from msgbus.aio.interceptors import AsyncInterceptor, AsyncProceed
from msgbus.aio.notification_listener import (
    AsyncNotificationListener,
    get_batch_notification_listener,
    get_notification_listener,
)
from msgbus.aio.notifier import AsyncNotifier, get_notification_transport
from msgbus.aio.server import AsyncRPCServer, get_rpc_server
from msgbus.aio.streams import AsyncStream
from msgbus.aio.transport import AsyncTransport, get_rpc_transport

__all__ = [
    "AsyncGathering",
    "AsyncInterceptor",
    "AsyncNotificationListener",
    "AsyncNotifier",
    "AsyncProceed",
    "AsyncRPCClient",
    "AsyncRPCServer",
    "AsyncStream",
    "AsyncTransport",
    "get_batch_notification_listener",
    "get_notification_listener",
    "get_notification_transport",
    "get_rpc_client",
    "get_rpc_server",
    "get_rpc_transport",
]
