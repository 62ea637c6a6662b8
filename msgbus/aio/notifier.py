"""AsyncNotifier: says what has happened, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgbus.aio.interceptors import AsyncInterceptor, async_chain
from msgbus.aio.transport import AsyncTransport, check_transport, get_rpc_transport
from msgbus.drivers.base import Address
from msgbus.interceptors import InterceptedRequest
from msgbus.notify.base_notifier import BaseNotifier
from msgbus.notify.driver import NotificationDriver, notification_driver_names
from msgbus.notify.messaging import MessagingDriver, raise_all
from msgbus.notify.options import make_notification_transport
from msgbus.notify.sending import MAY_PASS, WHAT, NotificationMessage
from msgbus.serializer import Serializer

if TYPE_CHECKING:
    from oslo_config import cfg

    from msgbus.url import TransportURL

notification_driver_names()  # The first call reads files, which must not happen on an event loop.


def get_notification_transport(
    conf: cfg.ConfigOpts, url: str | TransportURL | None = None, allowed_remote_exmods: Sequence[str] | None = None
) -> AsyncTransport:
    """Make a transport for notifications, for the event loop that runs here; see `msgbus.get_notification_transport`.

    Raises:
        RuntimeError: no event loop runs here.
    """
    return make_notification_transport(get_rpc_transport, conf, url, allowed_remote_exmods)


class AsyncNotifier(BaseNotifier):
    """Says what has happened, as `msgbus.Notifier` does, with the same arguments, for tasks.

    ::

        notifier = AsyncNotifier(transport, publisher_id="orders.host1", driver="messagingv2")
        await notifier.info({}, "order.created", {"id": 7})

    Its interceptors are ``async``. Plug-ins that may block run on a thread. Only tasks of its transport's event loop
    may use it. A notification whose task is cancelled may or may not have been sent.
    """

    transport: AsyncTransport
    asynchronous = True

    def __init__(
        self,
        transport: AsyncTransport,
        publisher_id: str | None = None,
        driver: str | Sequence[str] | None = None,
        serializer: Serializer | None = None,
        retry: int | None = None,
        topics: Sequence[str] | None = None,
        interceptors: Sequence[AsyncInterceptor] = (),
    ) -> None:
        check_transport(transport, "a notifier of msgbus.aio")
        super().__init__(transport, publisher_id, driver, serializer, retry, topics, interceptors)

    async def audit(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level audit; see `msgbus.Notifier.info`."""
        await self._notify(ctxt, event_type, payload, "audit")

    async def debug(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level debug; see `msgbus.Notifier.info`."""
        await self._notify(ctxt, event_type, payload, "debug")

    async def info(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level info; see `msgbus.Notifier.info`."""
        await self._notify(ctxt, event_type, payload, "info")

    async def warn(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level warn; see `msgbus.Notifier.info`."""
        await self._notify(ctxt, event_type, payload, "warn")

    warning = warn

    async def error(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level error; see `msgbus.Notifier.info`."""
        await self._notify(ctxt, event_type, payload, "error")

    async def critical(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level critical; see `msgbus.Notifier.info`."""
        await self._notify(ctxt, event_type, payload, "critical")

    async def sample(self, ctxt: Any, event_type: str, payload: Any) -> None:
        """Send a notification of the level sample; see `msgbus.Notifier.info`."""
        await self._notify(ctxt, event_type, payload, "sample")

    async def _notify(self, ctxt: Any, event_type: str, payload: Any, priority: str) -> None:
        self.transport.check_loop()
        context, message, drivers = self._prepared(ctxt, event_type, payload, priority)
        fault: Exception | None = None
        for driver in drivers:
            try:
                await self._notify_by(driver, context, message, priority)
            except Exception as exc:  # The other drivers have to send it all the same.
                fault = self._fault_of(message, exc, fault)
        if fault is not None:
            raise fault

    async def _notify_by(
        self, driver: NotificationDriver, context: dict[str, Any], message: dict[str, Any], priority: str
    ) -> None:
        if isinstance(driver, MessagingDriver):
            errors: list[Exception] = []
            for address in driver.addresses(priority):
                try:
                    await self._send(driver, address, context, message)
                except Exception as exc:  # The other topics have to get it all the same.
                    errors.append(exc)
            raise_all(errors)
        elif driver.may_block:
            await asyncio.to_thread(driver.notify, context, message, priority, self.retry)
        else:
            driver.notify(context, message, priority, self.retry)

    async def _send(
        self, driver: MessagingDriver, address: Address, context: dict[str, Any], message: dict[str, Any]
    ) -> None:
        """As `msgbus.notify.sending.send_notification`."""
        transport = self.transport
        outgoing = NotificationMessage(transport, address, context, message, self.retry)

        async def send(request: InterceptedRequest) -> None:
            encoded = outgoing.encode(request, enveloped=driver.enveloped)
            pauses = outgoing.pauses()
            with await transport.slot(outgoing.deadline, outgoing.event, address):
                while True:
                    try:
                        await transport.send_and_wait(
                            address,
                            encoded,
                            outgoing.deadline,
                            what=WHAT,
                            mandatory=True,
                            repeat=outgoing.repeats,
                            fallback=outgoing.fallback,
                        )
                        return
                    except MAY_PASS:
                        if (pause := next(pauses, None)) is None:
                            raise
                    await asyncio.sleep(pause)

        await async_chain(driver.interceptors, send)(outgoing.request)
