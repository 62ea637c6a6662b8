"""Clock: how long JetStream has kept a message, although its clock and ours differ."""

from __future__ import annotations

from datetime import datetime

from msgbus.drivers.toolkit.loop import Loop


def seconds_of(written: str) -> float:
    """A time as JetStream writes it (RFC 3339, in UTC, with up to nine decimals), in seconds since 1970."""
    return datetime.fromisoformat(written[:19] + "+00:00").timestamp() + float(f"0{written[19:-1]}")


class Clock:
    """Learns how far the server's clock is from ours, of times that the server has just written.

    What came latest after its time says nothing, what came soonest says most: the difference is never taken for less
    than it is. So a message is never taken for older than it is either.
    """

    def __init__(self) -> None:
        self._ahead: float | None = None

    def see(self, written: str | float) -> None:
        """The server wrote this time not long ago: seconds since 1970, or RFC 3339."""
        ahead = Loop.now() - (seconds_of(written) if isinstance(written, str) else written)
        if self._ahead is None or ahead < self._ahead:
            self._ahead = ahead

    def age(self, written: float) -> float:
        """Seconds since the server wrote this time, or a little less."""
        self.see(written)
        assert self._ahead is not None
        return Loop.now() - written - self._ahead
