"""The gate of a node of the zmq driver: answers libzmq's question whom to let in, and logs who was not.

The protocol of that question (ZAP) is pyzmq's. It is answered on the node's own I/O thread.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import zmq
from zmq.auth import Authenticator

from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq.security import ZAP_DOMAIN, Security
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

AGAIN = 60.0
"""Seconds between two log lines about one address."""
ADDRESSES = 1000
"""How many addresses are remembered for that; of further ones nothing is logged."""

_MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
_CRYPTOGRAPHIC = int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
)


class Gate:
    """See the module's text. Everything belongs to the loop's thread."""

    def __init__(self, loop: Loop, context: Any, security: Security, node: str) -> None:
        """Begin to answer, where there are keys."""
        self._loop = loop
        self._security = security
        self._node = node
        self._address = ""  # whom the question is about
        self._addresses: dict[int, str] = {}  # by descriptor
        self._failure = ""
        self._quiet: dict[str, float] = {}  # by address, until when
        self._zap: Authenticator | None = None
        self._socket: Any = None
        if security.enabled:
            self._zap = zap = Authenticator(context, log=LOG)
            zap.configure_curve_callback(ZAP_DOMAIN.decode(), self)
            zap.start()
            self._socket = zap.zap_socket
            loop.watch(self._socket.getsockopt(zmq.FD), self._answer)

    def close(self) -> None:
        """End, before the context does."""
        if self._zap is not None:
            self._loop.unwatch(self._socket.getsockopt(zmq.FD))
            self._zap.stop()
            self._zap = None

    def _answer(self) -> None:
        assert self._zap is not None
        while self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            question = self._socket.recv_multipart(zmq.NOBLOCK)
            self._address = question[3].decode(errors="replace") if len(question) > 3 else ""
            try:
                self._zap.handle_zap_message(question).send(None)  # It waits for nothing, as `callback` does not.
            except StopIteration:
                pass

    def callback(self, _domain: str, key: bytes) -> bool:
        """Say whether who has this public key is let in. pyzmq wants that name."""
        trusted = self._security.trusts(key.decode("ascii"))
        if not trusted:
            self._refused(
                self._address, "its key is not in keys_dir; if it should be let in, copy its public key there"
            )
        return trusted

    def on_event(self, event: Any) -> None:
        """Take in what the listening socket's monitor says.

        Of the peer it tells the descriptor alone, and one that has no key is hung up on so soon that its address may
        not be learnt. It tries again, and then it mostly is.
        """
        kind, value = event["event"], event["value"]
        if kind == zmq.EVENT_ACCEPTED:
            tcp = event["endpoint"].startswith(b"tcp:")
            self._addresses[value] = _peer_of(value) if tcp else "the Unix socket"
        elif kind in _FAILED:
            self._failure = why(event)
        elif kind == zmq.EVENT_DISCONNECTED:  # It comes right after why.
            address = self._addresses.pop(value, "somewhere")
            failure, self._failure = self._failure, ""
            if failure:
                self._refused(address, failure)

    def _refused(self, address: str, reason: str) -> None:
        now = time.monotonic()
        if now < self._quiet.get(address, 0.0):
            return
        if len(self._quiet) >= ADDRESSES:
            self._quiet = {known: until for known, until in self._quiet.items() if now < until}
        if len(self._quiet) < ADDRESSES:
            self._quiet[address] = now + AGAIN
            LOG.warning("node %s has not let in somebody from %s: %s", self._node, address, reason)

    def inherited(self) -> list[Any]:
        """What a forked child has to leave alone."""
        return [] if self._zap is None else [self._zap, self._socket]


def why(event: Any) -> str:
    """What an event of a monitor says about a handshake, in words for either side; and what to check."""
    kind, value = event["event"], event["value"]
    if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "handshake failed: the one that dials is not let in; check that keys_dir of the other has its public key"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MISMATCH:
        return "handshake failed: one side has keys and the other has not; check key_file on both"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _CRYPTOGRAPHIC:
        return "handshake failed: the one that dials takes this one for another; check its public key in keys_dir there"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return "handshake failed: the other side does not speak ZMTP as we do"
    if event["endpoint"].startswith(b"tcp:"):
        return "handshake failed: no answer, or the other side hung up; check keys_dir and key_file on both"
    return "handshake failed: no answer, or the other side hung up"


def _peer_of(fd: int) -> str:
    """The address at the other end, unless that has been closed meanwhile."""
    try:
        copy = os.dup(fd)
    except OSError:
        return "somewhere"
    try:
        connection = socket.socket(fileno=copy)
    except OSError:  # Its number is that of something else by now, such as a directory that is being read.
        os.close(copy)
        return "somewhere"
    with connection:
        try:
            return str(connection.getpeername()[0])
        except (OSError, IndexError):
            return "somewhere"
