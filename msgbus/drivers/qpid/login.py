"""Opens a connection up to and including the log-in: TCP, TLS, and SASL (OASIS AMQP 1.0, part 5). Blocks.

It is done here and not by proton because proton does not check certificates that were issued for an IP address, and
supports SCRAM, EXTERNAL and even TLS only if the libraries were present when it was compiled.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from msgbus.drivers.base import import_library
from msgbus.drivers.qpid.codec import decode_list, encode_binary, encode_list, encode_string, encode_symbol
from msgbus.drivers.toolkit.loop import Loop

_HEADER = b"AMQP\x03\x01\x00\x00"
_MECHANISMS, _INIT, _CHALLENGE, _RESPONSE, _OUTCOME = 0x40, 0x41, 0x42, 0x43, 0x44
_MAX_FRAME = 65536

SECURE = ("EXTERNAL", "SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1")
"""Mechanisms that do not send the password, the best first."""
KNOWN = (*SECURE, "PLAIN", "ANONYMOUS")


class LoginRefused(Exception):
    """The broker rejects this user; the text says why."""


class NoMechanism(Exception):
    """There is no mechanism that both sides support."""


class NotAmqp(Exception):
    """The peer is not an AMQP 1.0 broker."""


class Credentials(NamedTuple):
    """Who logs in, and how.

    Attributes:
        certificate: TLS sends the client's certificate, so that EXTERNAL can be used.
        mechanisms: those that may be used; empty means all that fit.
    """

    username: str | None
    password: str
    certificate: bool
    mechanisms: Sequence[str]


def open_socket(
    host: str, port: int, timeout: float, tls: ssl.SSLContext | None, vhost: str, credentials: Credentials
) -> tuple[socket.socket, str]:
    """Open a socket and log in. Returns the socket, on which AMQP begins, and the mechanism.

    Raises:
        OSError: the broker cannot be reached, or TLS fails.
        LoginRefused, NoMechanism, NotAmqp: see there.
    """
    deadline = Loop.now() + timeout
    sock: socket.socket = socket.create_connection((host, port), timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=host)
        mechanism = _Login(sock, deadline, vhost, credentials).run()
    except BaseException:
        sock.close()
        raise
    return sock, mechanism


class _Login:
    def __init__(self, sock: socket.socket, deadline: float, vhost: str, credentials: Credentials) -> None:
        self._sock = sock
        self._deadline = deadline
        self._vhost = vhost
        self._credentials = credentials

    def run(self) -> str:
        self._sock.sendall(_HEADER)
        answer = self._read(len(_HEADER))
        if answer != _HEADER:
            raise NotAmqp(f"it answers {bytes(answer)!r}, which is not AMQP 1.0 with a log-in")
        offered = self._offered()
        mechanism = choose(offered, self._credentials, encrypted=isinstance(self._sock, ssl.SSLSocket))
        username, password = self._credentials.username or "", self._credentials.password
        scram = Scram(mechanism, username, password) if mechanism.startswith("SCRAM-") else None
        if scram is not None:
            first = scram.first()
        elif mechanism == "PLAIN":
            first = f"\0{username}\0{password}".encode()
        else:
            first = (username if mechanism == "ANONYMOUS" else "").encode()
        self._send(_INIT, encode_symbol(mechanism), encode_binary(first), encode_string(self._vhost))
        while True:
            kind, fields = self._receive()
            if kind == _CHALLENGE and scram is not None:
                self._send(_RESPONSE, encode_binary(scram.step(fields[0])))
            elif kind == _OUTCOME:
                if fields[0] != 0:
                    raise LoginRefused(f"the log-in by {mechanism} was refused")
                if scram is not None:
                    # A broker may send its proof that it knows the password together with the outcome.
                    last = fields[1] if len(fields) > 1 else None
                    scram.finish(last if isinstance(last, bytes) else None)
                return mechanism
            else:
                raise NotAmqp(f"a frame of type {kind:#x} where the log-in should end")

    def _offered(self) -> list[str]:
        kind, fields = self._receive()
        if kind != _MECHANISMS:
            raise NotAmqp("it offers no log-in")
        found = fields[0]
        return found if isinstance(found, list) else [str(found)]

    def _send(self, kind: int, *fields: bytes) -> None:
        body = encode_list(kind, fields)
        self._sock.sendall(struct.pack(">IBBH", len(body) + 8, 2, 1, 0) + body)

    def _receive(self) -> tuple[int, list[Any]]:
        size, offset, layer, _ = struct.unpack(">IBBH", self._read(8))
        if not 8 <= size <= _MAX_FRAME or layer != 1 or not 2 <= offset <= size // 4:
            raise NotAmqp("a malformed frame during the log-in")
        try:
            kind, fields = decode_list(self._read(size - 8)[offset * 4 - 8 :])
        except ValueError:
            raise NotAmqp("a malformed frame during the log-in") from None
        wanted = {_MECHANISMS: (list, str), _CHALLENGE: (bytes,), _OUTCOME: (int,)}.get(kind, ())
        if not fields or not isinstance(fields[0], wanted):
            raise NotAmqp(f"a frame of type {kind:#x} during the log-in that does not belong there")
        return kind, fields

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            left = self._deadline - Loop.now()
            if left <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(left)
            data = self._sock.recv(size - len(parts))
            if not data:
                raise ConnectionResetError("it closed the connection during the log-in")
            parts += data
        return bytes(parts)


def choose(offered: Sequence[str], credentials: Credentials, *, encrypted: bool) -> str:
    """The best mechanism that both sides support and that fits the credentials.

    Raises:
        NoMechanism: there is none.
    """
    fitting = list(credentials.mechanisms)
    if not fitting:
        if credentials.username is None:
            fitting = ["ANONYMOUS"]
        else:
            fitting = [name for name in KNOWN if name not in ("EXTERNAL", "ANONYMOUS")]
        if credentials.certificate and encrypted:
            fitting.insert(0, "EXTERNAL")
    for name in fitting:
        if name in offered:
            return name
    raise NoMechanism(f"it offers {', '.join(offered) or 'nothing'}, and this side may use {', '.join(fitting)}")


class Scram:
    """The client's side of SCRAM, by scramp, one step at a time as AMQP needs it."""

    def __init__(self, mechanism: str, username: str, password: str) -> None:
        """Begin.

        Raises:
            DriverLoadFailure: scramp is missing.
            LoginRefused: the name or password has forbidden characters.
        """
        scramp = import_library("scramp", "qpid")
        self._errors = (scramp.ScramException, ValueError, LookupError)
        self._answered = self._verified = False
        try:
            self._client = scramp.ScramClient([mechanism], username, password)
        except self._errors as exc:
            raise LoginRefused(f"the user or password cannot be used with {mechanism}") from exc

    def first(self) -> bytes:
        """The client's first message."""
        first: str = self._client.get_client_first()
        return first.encode()

    def step(self, challenge: bytes) -> bytes:
        """The answer to a challenge of the server.

        Raises:
            LoginRefused: the server does not prove that it knows the password, or violates the protocol.
        """
        if self._answered:
            self.finish(challenge)
            return b""
        try:
            self._client.set_server_first(challenge.decode("utf-8", "replace"))
            final: str = self._client.get_client_final()
        except self._errors as exc:
            raise LoginRefused("the broker's challenge does not fit") from exc
        self._answered = True
        return final.encode()

    def finish(self, last: bytes | None) -> None:
        """Check the server's final message; None: there is none besides those passed to `step`.

        Raises:
            LoginRefused: see `step`.
        """
        if last is None:
            if not self._verified:
                raise LoginRefused("the broker does not prove that it knows the password")
            return
        try:
            self._client.set_server_final(last.decode("utf-8", "replace"))
        except self._errors as exc:
            raise LoginRefused("the broker does not prove that it knows the password that it asks for") from exc
        self._verified = True
