"""The endpoints at which a node listens: they are bound, restored when removed, and hidden while descriptors are short.

libzmq ends the process if it has no descriptor for a new connection. So the Unix socket is renamed before that, and new
peers do not find it and try again. Existing connections go on (they would not if the endpoint were unbound).
"""

from __future__ import annotations

import os
import resource
from typing import Any

import zmq

from msgbus.drivers.toolkit import descriptors
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq.security import Security
from msgbus.drivers.zmq.sockets import is_ipv6
from msgbus.exceptions import TransportUnavailable
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

TO_OPEN = 48
"""Descriptors that have to be free for a node to be opened. It takes some twenty; short of them libzmq aborts."""
MARGIN = 8
"""Descriptors that have to be free, besides the reserve, before the Unix socket is shown again."""
SHOW_INTERVAL = 0.5
"""Seconds between two checks whether there are that many."""
HIDDEN = ".hidden"
"""What the path of a hidden Unix socket ends with."""


class Endpoints:
    """See the module's text. Everything here belongs to the loop's thread."""

    def __init__(self, loop: Loop, security: Security, node: str, listener: Any) -> None:
        """Make one that does not listen yet; `listener` is the socket, and `node` the node's id."""
        self._loop = loop
        self._security = security
        self._node = node
        self._listener = listener
        self._paths: list[str] = []  # of Unix sockets
        self._hidden = False
        self._closed = False

    def listen(self, endpoint: str) -> str:
        """Listen at an endpoint. Returns it with the port that it got.

        Raises:
            TransportUnavailable: that is not possible.
        """
        try:
            self._bind(endpoint)
        except zmq.ZMQError as exc:
            raise TransportUnavailable(f"cannot listen at {endpoint}: {exc}; check the option listen") from exc
        bound: str = self._listener.getsockopt_string(zmq.LAST_ENDPOINT)
        if bound.startswith("ipc://"):
            self._paths.append(bound.removeprefix("ipc://"))
        return bound

    def _bind(self, endpoint: str) -> None:
        self._security.listen(self._listener, endpoint)
        self._listener.setsockopt(zmq.IPV6, is_ipv6(endpoint))
        self._listener.bind(endpoint)

    def restore(self) -> None:
        """Create Unix sockets again whose files somebody has removed. Called every now and then.

        Existing connections go on. libzmq keeps the old listener, which nobody can reach.
        """
        for path in self._paths:
            if self._hidden or os.path.lexists(path):
                continue
            try:
                self._bind(f"ipc://{path}")
                LOG.warning("node %s: the socket %s was removed, and has been created again", self._node, path)
            except zmq.ZMQError as exc:
                LOG.error(
                    "node %s: the socket %s was removed, and cannot be created again: %s; nobody new can connect: "
                    "check the run directory, or restart this process",
                    self._node,
                    path,
                    exc,
                )

    def check_descriptors(self) -> None:
        """Hide the Unix socket if descriptors are short. Called after each new connection."""
        shortage = descriptors.shortage(_reserve())
        if not shortage or self._hidden:
            return
        self._hidden = True
        LOG.error("node %s accepts no new connections until descriptors are free: %s", self._node, shortage)
        for path in self._paths:
            _rename(path, path + HIDDEN)
        self._loop.call_later(SHOW_INTERVAL, self._show)

    def _show(self) -> None:
        if self._closed:
            return
        if descriptors.shortage(_reserve() + MARGIN):
            self._loop.call_later(SHOW_INTERVAL, self._show)
            return
        self._hidden = False
        for path in self._paths:
            _rename(path + HIDDEN, path)
        LOG.warning("node %s accepts new connections again", self._node)

    def close(self) -> None:
        """Do nothing more. The caller closes the socket."""
        self._closed = True


def _reserve() -> int:
    """Descriptors that new connections must leave free: as many as may connect before this node checks again."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return TO_OPEN if limit == resource.RLIM_INFINITY else min(256, max(TO_OPEN, limit // 8))


def _rename(path: str, to: str) -> None:
    try:
        os.rename(path, to)
    except OSError as exc:
        LOG.debug("%s cannot be renamed: %s", path, exc)  # Somebody has removed it; `restore` creates it again.
