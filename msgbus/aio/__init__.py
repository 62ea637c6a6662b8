"""msgbus for asyncio: transports, clients and servers on the event loop that runs. No thread, and no hand-off."""

from msgbus.aio.client import AsyncRPCClient, get_rpc_client
from msgbus.aio.server import AsyncRPCServer, get_rpc_server
from msgbus.aio.streams import AsyncStream
from msgbus.aio.transport import AsyncTransport, get_rpc_transport

__all__ = [
    "AsyncRPCClient",
    "AsyncRPCServer",
    "AsyncStream",
    "AsyncTransport",
    "get_rpc_client",
    "get_rpc_server",
    "get_rpc_transport",
]
