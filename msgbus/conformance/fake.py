"""The harness of the driver `fake`. Also an example of one."""

from __future__ import annotations

from msgbus.conformance.harness import Harness
from msgbus.drivers.fake import get_bus


class FakeHarness(Harness):
    """The message system in memory."""

    url = "fake://conformance/"
    processes = False

    def __init__(self) -> None:
        self._bus = get_bus(self.url)
        self._bus.join(self)  # Otherwise the bus, with any leftovers, would end with a check's last driver.
        self._bus._loop.call_later(0, lambda: None)  # The bus's thread lives as long as this harness.

    def stop(self) -> None:
        """Be unreachable."""
        self._bus.stop()

    def start(self) -> None:
        """Be reachable again."""
        self._bus.start()

    def cut(self) -> None:
        """Break all connections."""
        self._bus.cut()

    def pause(self) -> None:
        """Hang."""
        self._bus.pause()

    def resume(self) -> None:
        """Go on."""
        self._bus.resume()

    def leftovers(self) -> set[str]:
        """Inboxes and queues of fanouts."""
        return {str(address) for address in self._bus._queues if address.kind in ("fanout", "inbox")}
