"""Decides for libzmq which connections are accepted, and logs those that are not.

libzmq asks by the protocol ZAP, which pyzmq speaks. The answers are given on the loop's thread.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

import zmq
from zmq.auth import Authenticator

from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq.security import ZAP_DOMAIN, Security
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

LOG_INTERVAL = 60.0
"""Seconds between two log lines about one address."""
ADDRESSES_MAX = 1000
"""How many addresses are remembered for that. Nothing is logged about further ones."""

UNKNOWN_ADDRESS = "an unknown address"
HUNG_UP = "handshake failed: no answer, or the other side hung up"
"""Over a Unix socket; over TCP it may be a matter of keys."""

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
        """Begin to answer, if there are keys."""
        self._loop = loop
        self._security = security
        self._node = node
        self._address = ""  # of the peer that libzmq asks about
        self._addresses: dict[int, str] = {}  # by descriptor
        self._failure = ""
        self._quiet: dict[str, float] = {}  # by address, until when nothing is logged about it
        self._zap: Authenticator | None = None
        self._socket: Any = None
        if security.enabled:
            self._zap = zap = Authenticator(context, log=LOG)
            zap.configure_curve_callback(ZAP_DOMAIN.decode(), self)
            zap.start()
            self._socket = zap.zap_socket
            loop.watch(self._socket.getsockopt(zmq.FD), self._answer)

    def close(self) -> None:
        """Stop answering, before the context is closed."""
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
        """Whether a peer with this public key is accepted. pyzmq prescribes the method's name."""
        trusted = self._security.trusts(key.decode("ascii"))
        if not trusted:
            self._log_rejected(
                self._address, "its key is not in keys_dir; if it should be accepted, copy its public key there"
            )
        return trusted

    def on_event(self, event: Any) -> None:
        """Note what the listening socket's monitor says.

        It names a peer by its descriptor only, and libzmq closes the connection of one without a key so soon that its
        address may be unknown. The peer tries again, and then the address is usually found.
        """
        kind, value = event["event"], event["value"]
        if kind == zmq.EVENT_ACCEPTED:
            tcp = event["endpoint"].startswith(b"tcp:")
            self._addresses[value] = _address_of(value) if tcp else "the Unix socket"
        elif kind in _FAILED:
            self._failure = explain_handshake(event)
        elif kind == zmq.EVENT_DISCONNECTED:  # It comes right after the reason.
            address = self._addresses.pop(value, UNKNOWN_ADDRESS)
            failure, self._failure = self._failure, ""
            if failure:
                # Another program of this user has ended, or is very busy and tries again: nobody has to do anything.
                self._log_rejected(address, failure, logging.INFO if failure == HUNG_UP else logging.WARNING)

    def _log_rejected(self, address: str, reason: str, level: int = logging.WARNING) -> None:
        now = Loop.now()
        if now < self._quiet.get(address, 0.0):
            return
        if len(self._quiet) >= ADDRESSES_MAX:
            self._quiet = {known: until for known, until in self._quiet.items() if now < until}
        if len(self._quiet) < ADDRESSES_MAX:
            self._quiet[address] = now + LOG_INTERVAL
            LOG.log(level, "node %s rejected a connection from %s: %s", self._node, address, reason)


def explain_handshake(event: Any) -> str:
    """Why a handshake failed, by a monitor's event, in words that are right on either side; and what to check."""
    kind, value = event["event"], event["value"]
    if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return (
            "handshake failed: the side that dials is not trusted; check that keys_dir of the other has its public key"
        )
    if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MISMATCH:
        return "handshake failed: one side has keys and the other has not; check key_file on both"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _CRYPTOGRAPHIC:
        return "handshake failed: the dialled side has another key than expected; check keys_dir of the side that dials"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return "handshake failed: the other side does not speak ZMTP as we do"
    if event["endpoint"].startswith(b"tcp:"):
        return "handshake failed: no answer, or the other side hung up; check keys_dir and key_file on both"
    return HUNG_UP


def _address_of(fd: int) -> str:
    """The address at the other end, unless the connection has been closed meanwhile."""
    try:
        copy = os.dup(fd)
    except OSError:
        return UNKNOWN_ADDRESS
    try:
        connection = socket.socket(fileno=copy)
    except OSError:  # The descriptor is used for something else by now, such as a directory that is being read.
        os.close(copy)
        return UNKNOWN_ADDRESS
    with connection:
        try:
            return str(connection.getpeername()[0])
        except (OSError, IndexError):
            return UNKNOWN_ADDRESS
