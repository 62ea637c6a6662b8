"""AsyncNotificationListener: runs endpoints on notifications, on an event loop."""

from __future__ import annotations

from collections.abc import Sequence

from msgbus.aio.interceptors import AsyncInterceptor
from msgbus.aio.server import AsyncListener
from msgbus.aio.transport import AsyncTransport, check_transport
from msgbus.notify.base_listener import BaseNotificationListener, Batches, checked_batches
from msgbus.notify.dispatcher import NotificationDispatcher
from msgbus.serializer import Serializer
from msgbus.target import Target


def get_notification_listener(
    transport: AsyncTransport,
    targets: Sequence[Target],
    endpoints: Sequence[object],
    serializer: Serializer | None = None,
    allow_requeue: bool = False,
    pool: str | None = None,
    interceptors: Sequence[AsyncInterceptor] = (),
) -> AsyncNotificationListener:
    """Make a listener for notifications, for the event loop that runs here. It listens once it is started.

    Arguments and errors are those of `msgbus.get_notification_listener`. Methods may be ``async``; plain ones run on
    threads of a pool. Interceptors are ``async``.
    """
    dispatcher = NotificationDispatcher(endpoints, serializer, asynchronous=True, batches=False)
    return AsyncNotificationListener(
        transport, targets, dispatcher, allow_requeue=allow_requeue, pool=pool, interceptors=interceptors
    )


def get_batch_notification_listener(
    transport: AsyncTransport,
    targets: Sequence[Target],
    endpoints: Sequence[object],
    serializer: Serializer | None = None,
    allow_requeue: bool = False,
    pool: str | None = None,
    batch_size: int | None = None,
    batch_timeout: float | None = None,
) -> AsyncNotificationListener:
    """Make a listener whose endpoints get notifications in batches, for the event loop that runs here.

    Arguments and errors are those of `msgbus.get_batch_notification_listener`. Methods may be ``async``.
    """
    batches = checked_batches(batch_size, batch_timeout)
    dispatcher = NotificationDispatcher(endpoints, serializer, asynchronous=True, batches=True)
    return AsyncNotificationListener(
        transport, targets, dispatcher, allow_requeue=allow_requeue, pool=pool, batches=batches
    )


class AsyncNotificationListener(AsyncListener, BaseNotificationListener):
    """Listens to notifications on the event loop of its transport.

    ::

        async with get_notification_listener(transport, [Target(topic="notifications")], [Endpoint()]):
            await asyncio.Event().wait()

    It is started, stopped and waited for as an `AsyncRPCServer` is.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        targets: Sequence[Target],
        dispatcher: NotificationDispatcher,
        *,
        allow_requeue: bool = False,
        pool: str | None = None,
        batches: Batches | None = None,
        interceptors: Sequence[AsyncInterceptor] = (),
    ) -> None:
        check_transport(transport, "a listener of msgbus.aio")
        super().__init__(
            transport,
            targets,
            dispatcher,
            allow_requeue=allow_requeue,
            pool=pool,
            batches=batches,
            interceptors=interceptors,
        )
