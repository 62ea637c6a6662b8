"""Messages without a known server, kept until it is certain that there is none."""

from __future__ import annotations

from msgbus.drivers.toolkit.futures import fail
from msgbus.drivers.zmq.matchmakers.base import Matchmaker
from msgbus.drivers.zmq.queue import Parcel
from msgbus.exceptions import TransportUnavailable


class Unrouted:
    """See the module's text. Everything here belongs to the loop's thread.

    Attributes:
        parcels: the messages, in the order of sending.
    """

    def __init__(self, matchmaker: Matchmaker) -> None:
        self.parcels: list[Parcel] = []
        self._matchmaker = matchmaker

    def may_be_served(self, parcel: Parcel) -> bool:
        """Whether there may be a server that is not known yet. Asks the matchmaker to check, once for each message."""
        matchmaker = self._matchmaker
        if parcel.address.kind != "inbox" and matchmaker.why_incomplete():
            return True
        if parcel.recheck < 0:
            parcel.recheck = matchmaker.recheck()
        return parcel.recheck > matchmaker.rechecked

    def take_all(self) -> list[Parcel]:
        """Remove and return all, to send them again: more may be known now."""
        parcels, self.parcels = self.parcels, []
        return parcels

    def fail_expired(self, now: float) -> None:
        """Fail the messages that have waited for too long."""
        kept = []
        for parcel in self.parcels:
            if parcel.send_until > now:
                kept.append(parcel)
                continue
            why = self._matchmaker.why_incomplete() or "the known nodes are being read"
            seconds = parcel.message.publish_within or 0
            text = f"gave up after {seconds:.3g} s: no server is known for {parcel.address}: {why}"
            fail(parcel.sent, TransportUnavailable(text))
        self.parcels = kept
