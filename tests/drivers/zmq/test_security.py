"""msgbus.drivers.zmq.security: which keys are accepted, and where CURVE is on."""

from __future__ import annotations

import os
import pathlib
import traceback
from typing import Any

import pytest
import zmq

from msgbus import ConfigurationError
from msgbus.cli.zmq_keys import make_keys
from msgbus.drivers.zmq.security import KeyRing, Security, is_loopback, read_key_file
from msgbus.transport import get_rpc_transport
from tests.support import new_conf


class Options:
    """A socket that keeps what is set."""

    def __init__(self) -> None:
        self.set: dict[int, Any] = {}

    def setsockopt(self, option: int, value: Any) -> None:
        self.set[option] = value


@pytest.fixture
def keys(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with the keys of `one`, and the public ones of `two`."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    make_keys(str(folder), "one", force=False)
    make_keys(str(folder), "two", force=False)
    (folder / "two.key_secret").unlink()
    return folder


def opened(keys: pathlib.Path, listen: str = "") -> Security:
    """A node's security with the keys of `one`, and its run directory in /run/x."""
    found = Security(str(keys / "one.key_secret"), str(keys), False, listen)
    found.open("ipc:///run/x/node.sock")
    return found


def public(keys: pathlib.Path, name: str) -> str:
    """A public key, as its file has it."""
    return (keys / f"{name}.key").read_text().rpartition('public-key = "')[2].partition('"')[0]


# What is refused before anything is done


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://127.0.0.1:*", True),
        ("tcp://127.0.0.9:5555", True),
        ("tcp://[::1]:5555", True),
        ("tcp://localhost:5555", True),
        ("tcp://*:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://[::]:5555", False),
        ("tcp://10.0.0.5:*", False),
        ("tcp://eth0:*", False),
        ("tcp://127.0.0.1;10.0.0.5:1", False),
        ("tcp://127.0.0.1.example.org:1", False),
        ("udp://127.0.0.1:1", False),
        ("ipc:///tmp/x", False),
        ("ipc://@x", False),
        ("nonsense", False),
    ],
)
def test_only_plain_loopback_addresses_are_loopback(endpoint: str, expected: bool) -> None:
    """Only what is plainly so: a wildcard, a name and an interface are not."""
    assert is_loopback(endpoint) is expected


@pytest.mark.parametrize("listen", ["tcp://*:*", "tcp://10.0.0.5:9501", "ipc:///tmp/x", "tcp://eth0:1"])
def test_listening_to_other_hosts_without_keys_is_refused(listen: str) -> None:
    """It is refused when the transport is made, and the text says what to do."""
    with pytest.raises(ConfigurationError, match="msgbus zmq-keys DIR and set key_file and keys_dir"):
        get_rpc_transport(new_conf(), f"zmq:///run/x?listen={listen}")


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("key_file=/a", "have to be set together"),
        ("keys_dir=/a", "have to be set together"),
        ("key_file=/a&keys_dir=/b&insecure_let_anybody_send_and_read=true", "cannot be used with key_file"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(query: str, text: str) -> None:
    """Half of them, or keys that would not be used."""
    with pytest.raises(ConfigurationError, match=text):
        get_rpc_transport(new_conf(), f"zmq:///run/x?{query}")


# Key files


def test_key_file_is_read_and_its_secret_is_not_shown(keys: pathlib.Path) -> None:
    """Its keys are read, and the secret one is in no text."""
    pair = read_key_file(str(keys / "one.key_secret"))
    assert pair.public.decode() == public(keys, "one")
    assert pair.secret.decode() not in f"{pair!r} {pair}"


def test_key_file_may_be_a_link(keys: pathlib.Path) -> None:
    """As the secrets of containers are; what counts are the rights of the file itself."""
    (keys / "link").symlink_to(keys / "one.key_secret")
    assert read_key_file(str(keys / "link")).public.decode() == public(keys, "one")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o601])
def test_key_file_that_others_can_access_is_refused(keys: pathlib.Path, mode: int) -> None:
    """Whatever right it is."""
    (keys / "one.key_secret").chmod(mode)
    with pytest.raises(ConfigurationError, match=f"mode {mode:o}.*chmod 600"):
        read_key_file(str(keys / "one.key_secret"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_key_file_of_another_user_is_refused(keys: pathlib.Path) -> None:
    """Its owner knows the secret."""
    os.chown(keys / "one.key_secret", 12345, 0)
    with pytest.raises(ConfigurationError, match="belongs to user 12345"):
        read_key_file(str(keys / "one.key_secret"))


def test_invalid_key_file_is_refused_with_the_reason(keys: pathlib.Path) -> None:
    """Missing, a directory, something else, the public half, halves of two: each has words of its own."""
    secret = (keys / "one.key_secret").read_text()
    texts = {
        "missing": "cannot be read: No such file",
        "folder": "cannot be read: Is a directory",
        "empty": "is not a key file",
        "broken": "is not a key file",
        "public": "has no secret key",
        "mixed": "do not belong together",
        "cut": "do not belong together",
    }
    (keys / "folder").mkdir(mode=0o700)
    for name, text in {
        "empty": "",
        "broken": "public-key",
        "public": (keys / "one.key").read_text(),
        "mixed": secret.replace(public(keys, "one"), public(keys, "two")),
        "cut": secret[:-10],
    }.items():
        (keys / name).write_text(text)
        (keys / name).chmod(0o600)
    for name, text in texts.items():
        with pytest.raises(ConfigurationError, match=text) as caught:
            read_key_file(str(keys / name))
        shown = "".join(traceback.format_exception(caught.value))
        assert secret.rpartition('secret-key = "')[2][:20] not in shown
        assert name in str(caught.value)


# The directory of those that are trusted


def test_key_is_trusted_as_long_as_its_file_is_there(keys: pathlib.Path) -> None:
    """The directory is checked each time: a key is trusted as long as its file exists, with its present content."""
    ring = KeyRing(str(keys))
    key = public(keys, "two")
    assert ring.names() == {public(keys, "one"): "one", key: "two"}
    (keys / "two.key").rename(keys / "two.off")
    assert key not in ring.names()
    (keys / "two.off").rename(keys / "two.key")
    assert ring.names()[key] == "two"
    make_keys(str(keys), "two", force=True)
    assert key not in ring.names()
    assert ring.names()[public(keys, "two")] == "two"


def test_invalid_public_keys_are_ignored_and_logged_once(keys: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is no key, or what others can change, is named in the log once, and the rest counts."""
    (keys / "empty.key").write_text("")
    (keys / "short.key").write_text('public-key = "abc"')
    (keys / "away.key").symlink_to("/nowhere")
    (keys / "two.key").chmod(0o666)
    ring = KeyRing(str(keys))
    for _ in range(3):
        assert list(ring.names().values()) == ["one"]
    assert sorted(record.getMessage().split()[0] for record in caplog.records) == [
        "away.key",
        "empty.key",
        "short.key",
        "two.key",
    ]


def test_nobody_is_accepted_while_the_keys_directory_cannot_be_used(
    keys: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start that is an error; later all keys are rejected, also known ones, and the log says so once."""
    ring = KeyRing(str(keys))
    assert len(ring.names()) == 2
    keys.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"others may put keys into it .*mode 777.*chmod 700"):
        ring.check()
    for _ in range(3):
        assert ring.names() == {}
    assert len(caplog.records) == 1
    keys.chmod(0o700)
    assert len(ring.names()) == 2
    with pytest.raises(ConfigurationError, match="No such file"):
        KeyRing(str(keys / "missing")).check()


# Sockets


def test_curve_is_off_only_for_sockets_in_the_run_directory(keys: pathlib.Path) -> None:
    """By whichever path it is named; other Unix sockets and TCP do."""
    security = opened(keys)
    for endpoint in ("ipc:///run/x/node.sock", "ipc:///run/../run/x/a.sock"):
        socket = Options()
        assert security.dial(socket, endpoint, "") == ""
        assert socket.set == {zmq.CURVE_SERVER: 0}
    for endpoint in ("ipc:///run/x/../y.sock", "ipc:///tmp/a", "ipc://@a", "ipc://a", "tcp://127.0.0.1:1"):
        assert "that node has no key" in security.dial(Options(), endpoint, "")


def test_only_trusted_nodes_are_dialled(keys: pathlib.Path) -> None:
    """With keys, only whom this node trusts, itself among them; without, only on the loopback."""
    security, socket = opened(keys), Options()
    assert security.dial(socket, "tcp://10.0.0.5:1", public(keys, "two")) == ""
    assert socket.set[zmq.CURVE_SERVERKEY].decode() == public(keys, "two")
    (keys / "one.key").unlink()
    assert security.dial(Options(), "tcp://10.0.0.5:1", security.public) == ""
    assert "is not in" in security.dial(Options(), "tcp://10.0.0.5:1", "x" * 40)
    assert "is not in" in security.dial(Options(), "tcp://10.0.0.5:1", "\u00e4")
    without = Security(None, None, False, "")
    without.open("")
    assert "this node has no key" in without.dial(Options(), "tcp://10.0.0.5:1", public(keys, "two"))
    assert without.dial(Options(), "tcp://127.0.0.1:1", "") == ""
    assert not without.enabled
    assert not without.trusts("")


def test_listening_socket_accepts_nobody_by_default(keys: pathlib.Path) -> None:
    """Without a gate libzmq would otherwise accept every peer that has some key."""
    socket = Options()
    opened(keys).listen(socket, "tcp://127.0.0.1:*")
    assert socket.set[zmq.CURVE_SERVER] == 1
    assert socket.set[zmq.ZAP_ENFORCE_DOMAIN] == 1
