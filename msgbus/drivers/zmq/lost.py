"""Connections that broke, and what the nodes at their other ends had taken over them.

Such a node may live on: it is asked which of that no subscriber of its had, and others get those as they were sent.
What it had begun, or does not tell of in time, they get as redelivered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msgbus.drivers.zmq import frames
from msgbus.drivers.zmq.link import Link
from msgbus.drivers.zmq.links import Links
from msgbus.drivers.zmq.matchmakers.base import Directory
from msgbus.drivers.zmq.queue import Copy

ASK_TIMEOUT = 2.0
"""Seconds that a node whose connection broke has to say what of it no subscriber had."""


class _Lost:
    """What was taken by a node that lives, over a connection that broke."""

    __slots__ = ("copies", "gives_up", "node")

    def __init__(self, node: str, copies: dict[int, Copy]) -> None:
        self.node = node
        self.copies = copies
        self.gives_up = time.monotonic() + ASK_TIMEOUT


class LostLinks:
    """See the module's text. Everything here belongs to the loop's thread."""

    def __init__(
        self,
        links: Links,
        directory: Directory,
        is_alive: Callable[[str], bool | None],
        give_back: Callable[[Copy], None],
    ) -> None:
        """`give_back` takes what another is to have; `is_alive` says whether a node's process lives, None: unknown."""
        self._links = links
        self._directory = directory
        self._is_alive = is_alive
        self._give_back = give_back
        self._lost: dict[int, _Lost] = {}  # by session, the number that both ends know a connection by

    def __bool__(self) -> bool:
        return bool(self._lost)

    def count(self) -> int:
        """How many messages are in question."""
        return sum(len(lost.copies) for lost in self._lost.values())

    def add(self, link: Link, copies: dict[int, Copy], *, may_tell: bool) -> None:
        """A connection broke; `copies` were taken over it, by their numbers on it."""
        self._lost[link.session] = _Lost(link.node, copies)
        if may_tell:
            self.ask()
        else:
            self._give_to_others(link.session, [])

    def ask(self) -> None:
        """Connect with those who are to tell, and wait no more for those who cannot."""
        now = time.monotonic()
        for session, lost in list(self._lost.items()):
            entry = self._directory.entries.get(lost.node)
            link = self._links.link(lost.node)
            is_gone = entry is None and link is None  # and cannot be asked
            if is_gone or lost.gives_up <= now or self._is_alive(lost.node) is False:
                self._give_to_others(session, [])
            elif entry is not None and link is None:
                self._links.dial(lost.node, entry.endpoints, entry.key)

    def on_link_up(self, link: Link) -> None:
        """There is a connection over which its node can be asked."""
        for session, lost in self._lost.items():
            if lost.node == link.node:
                self._links.send(link, frames.numbers(frames.LOST, [session]))

    def on_unbegun(self, link: Link, session: int, unbegun: Sequence[int]) -> None:
        """It has told."""
        lost = self._lost.get(session)
        if lost is not None and lost.node == link.node:
            self._give_to_others(session, unbegun)

    def _give_to_others(self, session: int, unbegun: Sequence[int]) -> None:
        """What no subscriber had is as it was sent; the rest may have been begun."""
        copies, known = self._lost.pop(session).copies, set(unbegun)
        for seq, copy in copies.items():
            copy.redelivered = copy.redelivered or seq not in known
            self._give_back(copy)
