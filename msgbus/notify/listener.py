"""NotificationListener: runs endpoints on notifications, for threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgbus.forking import call_in_child
from msgbus.notify.base_listener import BaseNotificationListener, Batches, checked_batches
from msgbus.notify.dispatcher import NotificationDispatcher
from msgbus.serializer import Serializer
from msgbus.server import Listener
from msgbus.target import Target
from msgbus.transport import Transport, check_transport

_EXECUTORS = {None: None, "threading": False, "asyncio": True}


def get_notification_listener(
    transport: Transport,
    targets: Sequence[Target],
    endpoints: Sequence[object],
    executor: str | None = None,
    serializer: Serializer | None = None,
    allow_requeue: bool = False,
    pool: str | None = None,
    interceptors: Sequence[Any] = (),
) -> NotificationListener:
    """Make a listener for notifications. It listens once it is started.

    ::

        class Endpoint:
            def info(self, ctxt, publisher_id, event_type, payload, metadata):
                print(event_type, payload)

        listener = get_notification_listener(transport, [Target(topic="notifications")], [Endpoint()])
        listener.start()

    Of several listeners to one topic, each notification goes to one. Listeners with the same `pool` share a copy of
    their own. A notification is accepted when its endpoints have returned: if the process ends before, another listener
    gets it. So it may be handled twice.

    Args:
        transport: where it listens.
        targets: their topics and exchanges. For each level that an endpoint has a method for, ``TOPIC.LEVEL`` is
            listened to.
        endpoints: objects with methods ``audit``, ``debug``, ``info``, ``warn``, ``error``, ``critical`` or ``sample``,
            called as ``(ctxt, publisher_id, event_type, payload, metadata)``; the last is a dict with ``message_id``
            and ``timestamp``. The attribute ``filter_rule``, a `NotificationFilter`, says which notifications an
            endpoint gets. A method returns a `NotificationResult` or None.
        executor: as for `get_rpc_server`.
        serializer: undoes what the notifier's serializer did to context and payload.
        allow_requeue: a notification for which a method returns `NotificationResult.REQUEUE`, or raises, comes again:
            after 1, 2, 4, and then always 8 seconds, to this or another listener, until it is handled. Else that is
            logged, the other endpoints still get it, and it counts as handled.
        pool: the name of a group of listeners, which gets each notification too that is sent from now on.
        interceptors: functions ``(request, proceed)`` around the endpoints of each notification, of the kind that
            `get_rpc_server` takes.

    Raises:
        CapabilityMissing: `allow_requeue`, and the driver cannot give a message back.
        InvalidTarget: a target has no topic, or one that is too long.
        TypeError: `targets` or `endpoints` is no list of such, an endpoint has a method for no level, or one that
            cannot be called as above; or something is ``async`` where that is not awaited.
        ValueError: an executor that does not exist.
    """
    dispatcher = _dispatcher(endpoints, executor, serializer, batches=False)
    return NotificationListener(
        transport, targets, dispatcher, allow_requeue=allow_requeue, pool=pool, interceptors=interceptors
    )


def get_batch_notification_listener(
    transport: Transport,
    targets: Sequence[Target],
    endpoints: Sequence[object],
    executor: str | None = None,
    serializer: Serializer | None = None,
    allow_requeue: bool = False,
    pool: str | None = None,
    batch_size: int | None = None,
    batch_timeout: float | None = None,
) -> NotificationListener:
    """Make a listener whose endpoints get notifications in batches. It listens once it is started.

    A method is called with one list: for each notification a dict with ``ctxt``, ``publisher_id``, ``event_type``,
    ``payload`` and ``metadata``. Those of one level come together, in the order in which they came. If the method
    returns `NotificationResult.REQUEUE`, or raises, that means all of the list. When the listener is stopped, what it
    has gathered until then is a batch.

    Args:
        transport: as for `get_notification_listener`.
        targets: likewise.
        endpoints: likewise, with methods that take a list.
        executor: as for `get_notification_listener`.
        serializer: likewise.
        allow_requeue: likewise.
        pool: likewise.
        batch_size: a batch is complete with so many notifications, of all levels together: at most 10,000. None means
            half of the option ``rpc_prefetch``: what is gathered counts as held.
        batch_timeout: it is complete so many seconds after its first notification has come.

    Raises:
        ValueError: there is neither a size nor a time, so that no batch would ever be complete.
        CapabilityMissing, InvalidTarget, TypeError: as for `get_notification_listener`.
    """
    batches = checked_batches(batch_size, batch_timeout)
    dispatcher = _dispatcher(endpoints, executor, serializer, batches=True)
    return NotificationListener(transport, targets, dispatcher, allow_requeue=allow_requeue, pool=pool, batches=batches)


def _dispatcher(
    endpoints: Sequence[object], executor: str | None, serializer: Serializer | None, *, batches: bool
) -> NotificationDispatcher:
    if executor not in _EXECUTORS:
        raise ValueError(f"there is no executor {executor!r}; there are 'threading' and 'asyncio'")
    return NotificationDispatcher(endpoints, serializer, asynchronous=_EXECUTORS[executor], batches=batches)


class NotificationListener(Listener, BaseNotificationListener):
    """Listens to notifications; `get_notification_listener` and `get_batch_notification_listener` make it.

    It is started, stopped and waited for as an `RPCServer` is, from any thread. In a forked child that inherits it, it
    is one that was not started.
    """

    def __init__(
        self,
        transport: Transport,
        targets: Sequence[Target],
        dispatcher: NotificationDispatcher,
        *,
        allow_requeue: bool = False,
        pool: str | None = None,
        batches: Batches | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        check_transport(transport, "listener")
        super().__init__(
            transport,
            targets,
            dispatcher,
            allow_requeue=allow_requeue,
            pool=pool,
            batches=batches,
            interceptors=interceptors,
        )
        call_in_child(self._start_clean)
