"""Messages that were taken over connections that broke later.

The node that took them may live. Then it is asked which of them had not reached a subscriber; those are sent to others
as they were. The others may have been run: they are sent to others as redelivered. Without an answer all of them are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.link import PeerLink
from msgbus.drivers.zmq.matchmakers.base import Matchmaker
from msgbus.drivers.zmq.queue import Parcel
from msgbus.drivers.zmq.routing import Router

ANSWER_TIMEOUT = 2.0
"""Seconds for which an answer is waited for."""


@dataclass
class _Lost:
    """What a node took over a connection that broke, and until when its answer is waited for."""

    node: str
    parcels: dict[int, Parcel]
    deadline: float


class LostLinks:
    """See the module's text. Everything here belongs to the loop's thread."""

    def __init__(self, router: Router, matchmaker: Matchmaker, give_back: Callable[[Parcel], None]) -> None:
        """`give_back` is called with each message that another node is to get."""
        self._router = router
        self._matchmaker = matchmaker
        self._give_back = give_back
        self._lost: dict[int, _Lost] = {}  # by session, the number by which both ends know a connection
        router.links.on_record[frames.UNBEGUN] = self._on_unbegun

    def count(self) -> int:
        """How many messages are affected."""
        return sum(len(lost.parcels) for lost in self._lost.values())

    def clear(self) -> None:
        """Forget them: this node has closed."""
        self._lost.clear()

    def add(self, link: PeerLink, parcels: dict[int, Parcel], *, may_answer: bool) -> None:
        """A connection broke; `parcels` were taken over it, by their numbers on it."""
        self._lost[link.session] = _Lost(link.node, parcels, Loop.now() + ANSWER_TIMEOUT)
        if may_answer:
            self.reconnect()
        else:
            self._send_to_others(link.session, [])

    def reconnect(self) -> None:
        """Connect with the nodes that are to answer, and wait no more for those that cannot, or are late."""
        now = Loop.now()
        for session, lost in list(self._lost.items()):
            may_answer = self._router.is_known(lost.node) and self._matchmaker.is_alive(lost.node) is not False
            if not may_answer or lost.deadline <= now:
                self._send_to_others(session, [])
            else:
                self._router.reach(lost.node)

    def on_link_up(self, link: PeerLink) -> None:
        """Ask the node over its new connection."""
        for session, lost in self._lost.items():
            if lost.node == link.node:
                self._router.links.send(link, frames.numbers(frames.LOST, [session]))

    def _on_unbegun(self, link: PeerLink, frame: bytes, at: int, end: int) -> None:
        """The node has answered: these had not reached a subscriber."""
        session, *unbegun = frames.read_numbers(frame, at, end) or (0,)
        lost = self._lost.get(session)
        if lost is not None and lost.node == link.node:
            self._send_to_others(session, unbegun)

    def _send_to_others(self, session: int, unbegun: Sequence[int]) -> None:
        parcels, known = self._lost.pop(session).parcels, set(unbegun)
        for seq, parcel in parcels.items():
            parcel.redelivered = parcel.redelivered or seq not in known
            self._give_back(parcel)
