"""Who may connect to a node of the zmq driver: CURVE keys, and the directory of trusted ones.

* The Unix socket in the run directory needs no CURVE: only its owner has access to it.
* With `key_file`, everything else uses CURVE, on the loopback too. So a wrong entry of a matchmaker cannot make a node
  connect without it. Nodes with a key in `keys_dir`, or with this node's own, are accepted and dialled.
* Without `key_file` only TCP on the loopback is used, unless `insecure_let_anybody_send_and_read` says otherwise.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.auth import load_certificate

from msgbus.exceptions import ConfigurationError
from msgbus.foreign import get_logger

LOG = get_logger(__name__)

INSECURE = "insecure_let_anybody_send_and_read"
ZAP_DOMAIN = b"msgbus"
KEY_SIZE = 40
"""Characters of a key."""

_MAKE = "make one with: msgbus zmq-keys DIR"


@dataclass(frozen=True)
class KeyPair:
    """Keys in the form in which ZeroMQ writes them (Z85, 40 characters)."""

    public: bytes
    secret: bytes = field(repr=False)


def read_key_file(path: str) -> KeyPair:
    """Read a file that ``msgbus zmq-keys`` has made, and check that nobody else can.

    Raises:
        ConfigurationError: it cannot be read, others can read it, or it is invalid. The keys are not in the text.
    """
    try:
        found = os.stat(path)
        public, secret = load_certificate(path)
    except OSError as exc:
        raise _wrong("key_file", path, f"it cannot be read: {exc.strerror}; {_MAKE}") from exc
    except (ValueError, IndexError):
        raise _wrong("key_file", path, f"it is not a key file; {_MAKE}") from None
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise _wrong("key_file", path, f"others may read or write it (mode {mode:o}); make it private: chmod 600")
    if found.st_uid not in (0, os.geteuid()):
        raise _wrong(
            "key_file", path, f"it belongs to user {found.st_uid}, but this process runs as user {os.geteuid()}"
        )
    if not secret:
        raise _wrong("key_file", path, "it has no secret key; the file that has one ends in .key_secret")
    if _public_of(secret) != public:
        raise _wrong("key_file", path, f"its keys do not belong together; {_MAKE}")
    return KeyPair(public, secret)


def _public_of(secret: bytes) -> bytes | None:
    try:
        return zmq.curve_public(secret)
    except (zmq.ZMQError, ValueError):
        return None


def _wrong(option: str, path: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{option} of [msgbus_zmq], {path}, cannot be used: {why}")


class KeyRing:
    """The public keys in a directory (``NAME.key``), which is read again whenever something in it has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._state: Any = None
        self._names: dict[str, str] = {}
        self._complaint = ""

    def check(self) -> None:
        """Read the directory.

        Raises:
            ConfigurationError: it cannot be read, or others could put keys into it.
        """
        try:
            state = self._look()
            if state != self._state:
                self._names = self._read(state)
                self._state = state
        except OSError as exc:
            why = f"it cannot be read: {exc.strerror}; it has to have the public keys (NAME.key) of all other hosts"
            raise _wrong("keys_dir", self._path, why) from exc

    def names(self) -> Mapping[str, str]:
        """The name of each key. While the directory cannot be used it is empty, and the log says so."""
        try:
            self.check()
            self._complaint = ""
        except ConfigurationError as exc:
            self._names, self._state = {}, None
            if self._complaint != str(exc):
                self._complaint = str(exc)
                LOG.error("%s; until then no connection is accepted", exc)
        return self._names

    def _look(self) -> list[tuple[Any, ...]]:
        """Something that differs after a file has changed. It is cheaper than reading the files."""
        found = os.stat(self._path)
        if not _is_ours_alone(found):
            mode = stat.S_IMODE(found.st_mode)
            why = f"others may put keys into it (user {found.st_uid}, mode {mode:o}); make it yours: chmod 700"
            raise _wrong("keys_dir", self._path, why)
        with os.scandir(self._path) as files:
            return sorted(self._state_of(file) for file in files if file.name.endswith(".key"))

    @staticmethod
    def _state_of(file: os.DirEntry[str]) -> tuple[Any, ...]:
        try:
            found = file.stat()
        except OSError:  # A broken link, or it has just been removed.
            return (file.name, 0, 0, 0, False)
        return (file.name, found.st_ino, found.st_ctime_ns, found.st_size, _is_ours_alone(found))

    def _read(self, state: list[tuple[Any, ...]]) -> dict[str, str]:
        names = {}
        for name, *_, trusted in state:
            try:
                if not trusted:
                    raise ValueError("others may change it, or it is a broken link")
                key = load_certificate(os.path.join(self._path, name))[0].decode("ascii")
                if len(key) != KEY_SIZE:
                    raise ValueError(f"a key has {KEY_SIZE} characters")
                names[key] = name.removesuffix(".key")
            except (OSError, ValueError, IndexError) as exc:
                # Not the text of the last two: somebody may have put a secret key here.
                why = exc.strerror if isinstance(exc, OSError) else "it is not a public key, or others may change it"
                LOG.warning("%s is ignored, and a node with that key is not accepted: %s", name, why)
        return names


def _is_ours_alone(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022


class Security:
    """See the module's text.

    Attributes:
        public: this node's public key, once it is open; empty if it has none.
    """

    def __init__(self, key_file: str | None, keys_dir: str | None, insecure: bool, listen: str) -> None:
        """Keep the options, which are described in `msgbus.drivers.zmq.driver`. No I/O.

        Raises:
            ConfigurationError: they do not fit together, or would accept connections from anybody.
        """
        if bool(key_file) != bool(keys_dir):
            raise ConfigurationError("key_file and keys_dir of [msgbus_zmq] have to be set together")
        if key_file and insecure:
            raise ConfigurationError(f"{INSECURE} of [msgbus_zmq] cannot be used with key_file: remove one of them")
        if listen and not key_file and not insecure and not is_loopback(listen):
            raise ConfigurationError(
                f"listen of [msgbus_zmq] is {listen}, which can be reached from other hosts, and there are no "
                "keys. Make keys with msgbus zmq-keys DIR and set key_file and keys_dir (see: Use ZeroMQ, in "
                "the documentation); or listen at tcp://127.0.0.1:*"
            )
        self.public = ""
        self._key_file, self._keys_dir, self._insecure, self._listen = key_file, keys_dir, insecure, listen
        self._folder = ""
        self._keys: KeyPair | None = None
        self._ring: KeyRing | None = None

    def open(self, ipc: str) -> None:
        """Read the keys; `ipc` is the node's endpoint in the run directory, or empty.

        Raises:
            ConfigurationError: they cannot be used.
        """
        self._folder = os.path.realpath(os.path.dirname(ipc.removeprefix("ipc://"))) if ipc else ""
        if self._insecure:
            LOG.warning(
                "%s is set: anybody who reaches %s can send and read", INSECURE, self._listen or "its connections"
            )
        if self._key_file and self._keys_dir:
            self._ring = KeyRing(self._keys_dir)
            self._ring.check()
            self._keys = read_key_file(self._key_file)
            self.public = self._keys.public.decode("ascii")

    @property
    def enabled(self) -> bool:
        """Whether there are keys."""
        return self._keys is not None

    def trusts(self, key: str) -> bool:
        """Whether a node with this public key may connect, and may be dialled, by `keys_dir` as it is now."""
        return bool(key) and (key == self.public or (self._ring is not None and key in self._ring.names()))

    def key_named(self, name: str) -> str:
        """The public key in ``NAME.key`` of `keys_dir`. If there is none: a text that is not a key and says so."""
        names = {} if self._ring is None else self._ring.names()
        return next((key for key, known in names.items() if known == name), f"no {name}.key")

    def listen(self, socket: Any, endpoint: str) -> None:
        """Set a socket's options for the endpoint that it binds next."""
        if self._keys is None or self._is_private(endpoint):
            socket.setsockopt(zmq.CURVE_SERVER, 0)
            return
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # Without a gate nobody is accepted.

    def dial(self, socket: Any, endpoint: str, key: str) -> str:
        """Set a socket's options for the endpoint that it dials next.

        Args:
            socket: the one that dials.
            endpoint: of the other node.
            key: its public key, by its entry. It may be empty, or invalid.

        Returns:
            why it must not be dialled; empty if it may be.
        """
        if not self._is_private(endpoint):
            if self._keys is not None:
                return self._dial_with_keys(socket, self._keys, key)
            if not self._insecure and not is_loopback(endpoint):
                return "handshake failed before it began: this node has no key; set key_file and keys_dir"
        socket.setsockopt(zmq.CURVE_SERVER, 0)  # This switches CURVE off.
        return ""

    def _dial_with_keys(self, socket: Any, keys: KeyPair, key: str) -> str:
        if not key:
            return (
                "handshake failed before it began: that node has no key; set key_file and keys_dir there, and name its "
                "key in matchmaker_file, if that is used"
            )
        if not self.trusts(key):
            which = f" ({key})" if key.endswith(".key") else ""
            return f"handshake failed before it began: its public key is not in {self._keys_dir}{which}; copy it there"
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SERVERKEY, key.encode("ascii"))
        return ""

    def _is_private(self, endpoint: str) -> bool:
        """Whether it is a socket in the run directory, by whichever path."""
        path = endpoint.removeprefix("ipc://")
        if not self._folder or path == endpoint or not os.path.isabs(path):
            return False
        return os.path.realpath(os.path.dirname(path)) == self._folder


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint can be reached from this host alone. False if that is not certain, as for ``*``."""
    transport, _, address = endpoint.partition("://")
    host = address.rpartition(":")[0].strip("[]")
    try:
        return transport == "tcp" and (host == "localhost" or ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False
