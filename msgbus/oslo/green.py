"""How green threads of eventlet wait for msgbus, whose I/O has native threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventlet import event

from msgbus.drivers.toolkit.loop import Loop
from msgbus.lowlevel import FOREVER, ThreadWaiter, Waiter, now

if TYPE_CHECKING:
    from msgbus_oslo import Hub


def make_waiter(hub: Hub, loop: Loop) -> Waiter:
    """A waiter for the thread that asks: a green one, or a native one that eventlet's `tpool` has."""
    if not hub.is_here:
        return ThreadWaiter(loop)
    hub.start()
    return GreenWaiter(hub)


class GreenWaiter(Waiter):
    """Waits while other green threads run."""

    def __init__(self, hub: Hub) -> None:
        """Of green threads on this hub."""
        self._hub = hub
        self._event = event.Event()

    def wait(self, until: float) -> None:
        """See `Waiter.wait`."""
        self._event.wait(None if until == FOREVER else max(0.0, until - now()))
        if self._event.ready():
            self._event = event.Event()

    def wake(self) -> None:
        """See `Waiter.wake`."""
        self._hub.run(self._wake)

    def _wake(self) -> None:
        if not self._event.ready():
            self._event.send()
