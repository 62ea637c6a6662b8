"""msgbus.drivers.qpid.login: the log-in of AMQP 1.0, against a scripted broker."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scramp import ScramMechanism

from msgbus.drivers.qpid.codec import decode_list, encode_binary, encode_list, encode_symbol
from msgbus.drivers.qpid.login import Credentials, LoginRefused, NoMechanism, NotAmqp, Scram, choose, open_socket
from tests.support import EVENT_TIMEOUT

HEADER = b"AMQP\x03\x01\x00\x00"
ALL = ["PLAIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "ANONYMOUS", "EXTERNAL"]


def credentials(
    username: str | None = "guest", password: str = "secret", certificate: bool = False, *mechanisms: str
) -> Credentials:
    """Credentials with a password, by default."""
    return Credentials(username, password, certificate, mechanisms)


# The choice of a mechanism


@pytest.mark.parametrize(
    ("who", "encrypted", "chosen"),
    [
        (credentials(), False, "SCRAM-SHA-256"),
        (credentials(None), False, "ANONYMOUS"),
        (credentials(None, "", True), True, "EXTERNAL"),
        (credentials("guest", "secret", True), True, "EXTERNAL"),
        (credentials("guest", "secret", True), False, "SCRAM-SHA-256"),
        (credentials("guest", "secret", False, "PLAIN"), False, "PLAIN"),
        (credentials("guest", "secret", False, "SCRAM-SHA-512", "SCRAM-SHA-1", "PLAIN"), False, "SCRAM-SHA-1"),
        (credentials("guest", "secret", False, "EXTERNAL"), False, "EXTERNAL"),
    ],
    ids=range(8),
)
def test_the_best_common_mechanism(who: Credentials, encrypted: bool, chosen: str) -> None:
    """Who has a certificate uses it, who has a password does not show it, who has nothing is anonymous."""
    assert choose(ALL, who, encrypted=encrypted) == chosen


@pytest.mark.parametrize(
    ("offered", "who"),
    [
        (["CRAM-MD5"], credentials()),
        (["PLAIN"], credentials(None)),
        ([], credentials()),
        (["ANONYMOUS"], credentials()),
    ],
    ids=range(4),
)
def test_no_mechanism_in_common(offered: list[str], who: Credentials) -> None:
    """The error names what both sides offer; a user with a password is never logged in as anonymous instead."""
    with pytest.raises(NoMechanism, match="this side may use"):
        choose(offered, who, encrypted=False)


# SCRAM


def begin(mechanism: str) -> tuple[Scram, Any, str]:
    """A client that has answered a broker's challenge, the broker's side of it, and the answer."""
    scram = ScramMechanism(mechanism)
    server = scram.make_server(lambda _user: scram.make_auth_info("pencil"))
    client = Scram(mechanism, "user", "pencil")
    server.set_client_first(client.first().decode())
    return client, server, client.step(server.get_server_first().encode()).decode()


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_both_sides_prove_that_they_know_the_password(mechanism: str) -> None:
    """The broker takes the client's answer, and the client the broker's last word."""
    client, server, answer = begin(mechanism)
    server.set_client_final(answer)
    assert client.step(server.get_server_final().encode()) == b""
    client.finish(None)


@pytest.mark.parametrize("last", ["v=AAAA", "e=invalid-proof", "", "v=!"])
def test_a_broker_has_to_know_the_password(last: str) -> None:
    """One that only pretends to is refused."""
    client, _, _ = begin("SCRAM-SHA-256")
    with pytest.raises(LoginRefused):
        client.finish(last.encode())


def test_a_broker_that_proves_nothing_is_refused() -> None:
    """The log-in does not end without its last word."""
    client, _, _ = begin("SCRAM-SHA-1")
    with pytest.raises(LoginRefused, match="prove"):
        client.finish(None)


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"r=other,s=AAAA,i=1",
        b"r=NONCE,s=AAAA,i=1",
        b"r=NONCEx,s=AAAA,i=0",
        b"r=NONCEx,s=AAAA,i=999999999",
        b"\xff",
    ],
    ids=range(6),
)
def test_a_challenge_that_does_not_fit(challenge: bytes) -> None:
    """A nonce that is not ours, or a count that is invalid or would take for ever."""
    client = Scram("SCRAM-SHA-256", "user", "pencil")
    nonce = client.first().decode().partition("r=")[2].encode()
    with pytest.raises(LoginRefused):
        client.step(challenge.replace(b"NONCE", nonce))


def test_names_are_escaped() -> None:
    """A comma or an equals sign in a user's name is no end of it."""
    assert Scram("SCRAM-SHA-1", "a,b=c", "").first().startswith(b"n,,n=a=2Cb=3Dc,r=")


# The whole log-in


class Broker:
    """Speaks the frames that a test has it say, on a port of its own."""

    def __init__(self, script: Callable[[Broker], object]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._script = script
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._sock, _ = self._listener.accept()
        with self._sock, contextlib.suppress(ConnectionError):
            self._sock.settimeout(EVENT_TIMEOUT)
            self._script(self)

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self._sock.recv(size - len(data))):
            data += more
        return data

    def write(self, data: bytes) -> None:
        self._sock.sendall(data)

    def say(self, kind: int, *fields: bytes) -> None:
        body = encode_list(kind, fields)
        self.write(struct.pack(">IBBH", len(body) + 8, 2, 1, 0) + body)

    def hear(self) -> tuple[int, list[Any]]:
        size, *_ = struct.unpack(">IBBH", self.read(8))
        return decode_list(self.read(size - 8))

    def greet(self, *mechanisms: str) -> None:
        """Up to what the broker offers."""
        assert self.read(8) == HEADER
        self.write(HEADER)
        if len(mechanisms) == 1:
            self.say(0x40, encode_symbol(mechanisms[0]))
        else:
            names = b"".join(bytes([len(name)]) + name.encode() for name in mechanisms)
            self.say(0x40, b"\xe0" + bytes([len(names) + 2, len(mechanisms)]) + b"\xa3" + names)

    def close(self) -> None:
        self._thread.join(EVENT_TIMEOUT)
        self._listener.close()


OK, REFUSED = b"\x50\x00", b"\x50\x01"


@contextlib.contextmanager
def broker(script: Callable[[Broker], object]) -> Iterator[Broker]:
    """A scripted broker while the block runs."""
    made = Broker(script)
    try:
        yield made
    finally:
        made.close()


def log_in(port: int, who: Credentials | None = None, timeout: float = EVENT_TIMEOUT) -> str:
    """Log in, and return by which mechanism."""
    sock, mechanism = open_socket("127.0.0.1", port, timeout, None, "vhost", who or credentials())
    sock.close()
    return mechanism


@pytest.mark.parametrize(
    ("mechanism", "who", "said"),
    [
        ("PLAIN", credentials("us:er", "pass wörd"), "\0us:er\0pass wörd".encode()),
        ("ANONYMOUS", credentials(None), b""),
        ("EXTERNAL", credentials(None, "", False, "EXTERNAL"), b""),
    ],
)
def test_what_is_said(mechanism: str, who: Credentials, said: bytes) -> None:
    """The mechanism, its first answer, and the virtual host."""
    heard = []

    def script(side: Broker) -> None:
        side.greet(mechanism)
        heard.append(side.hear())
        side.say(0x44, OK)

    with broker(script) as at:
        assert log_in(at.port, who) == mechanism
    assert heard == [(0x41, [mechanism, said, "vhost"])]


@pytest.mark.parametrize("together", [False, True], ids=["in a challenge", "with the outcome"])
def test_scram_over_the_wire(together: bool) -> None:
    """A broker may prove itself before the outcome, or in it."""

    def script(side: Broker) -> None:
        side.greet("PLAIN", "SCRAM-SHA-256")
        _, (name, first, _) = side.hear()
        assert name == "SCRAM-SHA-256"
        bare = first.decode().removeprefix("n,,")
        nonce = bare.partition("r=")[2] + "server"
        challenge = f"r={nonce},s={base64.b64encode(b'some long salt').decode()},i=4096"
        side.say(0x42, encode_binary(challenge.encode()))
        _, (answer,) = side.hear()
        final, _, proof = answer.decode().partition(",p=")
        salted = hashlib.pbkdf2_hmac("sha256", b"secret", b"some long salt", 4096)
        signed = f"{bare},{challenge},{final}".encode()
        key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
        assert base64.b64decode(proof) == bytes(a ^ b for a, b in zip(key, signature, strict=True))
        last = b"v=" + base64.b64encode(hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256"))
        if not together:
            side.say(0x42, encode_binary(last))
            assert side.hear() == (0x43, [b""])
        side.say(0x44, OK, encode_binary(last) if together else b"\x40")

    with broker(script) as at:
        assert log_in(at.port) == "SCRAM-SHA-256"


def test_a_refusal() -> None:
    """The text says so, and holds no password."""

    def script(side: Broker) -> None:
        side.greet("PLAIN")
        side.hear()
        side.say(0x44, REFUSED)

    with broker(script) as at, pytest.raises(LoginRefused, match="PLAIN was refused") as caught:
        log_in(at.port)
    assert "secret" not in str(caught.value)


def _speaks_http(side: Broker) -> None:
    side.read(8)
    side.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def _speaks_without_login(side: Broker) -> None:
    side.read(8)
    side.write(b"AMQP\x00\x01\x00\x00")


def _sends_a_huge_frame(side: Broker) -> None:
    side.read(8)
    side.write(HEADER + b"\xff\xff\xff\xff\x02\x01\x00\x00")


def _sends_garbage(side: Broker) -> None:
    side.read(8)
    side.write(HEADER + b"\x00\x00\x00\x0c\x02\x01\x00\x00\xff\xff\xff\xff")


def _offers_numbers(side: Broker) -> None:
    side.read(8)
    side.write(HEADER)
    side.say(0x40, OK)


def _offers_nothing(side: Broker) -> None:
    side.read(8)
    side.write(HEADER)
    side.say(0x40)


def _begins_with_the_end(side: Broker) -> None:
    side.read(8)
    side.write(HEADER)
    side.say(0x44, OK)


def _challenges_plain(side: Broker) -> None:
    side.greet("PLAIN")
    side.hear()
    side.say(0x42, encode_binary(b"what?"))


@pytest.mark.parametrize(
    "script",
    [
        _speaks_http,
        _speaks_without_login,
        _sends_a_huge_frame,
        _sends_garbage,
        _offers_numbers,
        _offers_nothing,
        _begins_with_the_end,
        _challenges_plain,
    ],
)
def test_a_peer_that_is_not_a_broker(script: Callable[[Broker], object]) -> None:
    """Whatever answers there, the error says that it is no AMQP."""
    with broker(script) as at, pytest.raises(NotAmqp):
        log_in(at.port)


def test_a_broker_that_hangs_up() -> None:
    """It is an error of the connection."""
    with broker(lambda side: side.read(8)) as at, pytest.raises(ConnectionError, match="during the log-in"):
        log_in(at.port)


def test_a_broker_that_says_nothing() -> None:
    """The time is bounded as a whole."""
    done = threading.Event()
    with broker(lambda _: done.wait(EVENT_TIMEOUT)) as at:
        with pytest.raises(TimeoutError):
            log_in(at.port, timeout=0.2)
        done.set()
