"""msgbus.drivers.zmq.matchmakers.local: how processes of a host find each other, and which directories are refused."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from msgbus.drivers.base import Address
from msgbus.drivers.zmq.matchmakers.base import Directory, Entry, Service
from msgbus.drivers.zmq.matchmakers.local import LocalMatchmaker, check_length, default_run_dir, prepare
from msgbus.exceptions import ConfigurationError, TransportUnavailable

TOPIC = Address("topic", "msgbus", "foo")


@pytest.fixture
def made() -> Iterator[list[LocalMatchmaker]]:
    """Those that are closed at the end."""
    found: list[LocalMatchmaker] = []
    yield found
    for matchmaker in found:
        matchmaker.close()


@pytest.fixture
def run_dir(tmp_path: pathlib.Path) -> str:
    """One that does not exist yet."""
    return str(tmp_path / "run")


def join(run_dir: str, made: list[LocalMatchmaker], *addresses: Address) -> LocalMatchmaker:
    """A node that serves these addresses."""
    matchmaker = LocalMatchmaker(run_dir)
    made.append(matchmaker)
    matchmaker.open()
    register(matchmaker, *addresses)
    return matchmaker


def register(matchmaker: LocalMatchmaker, *addresses: Address) -> None:
    """Have it serve these addresses from now on."""
    services = [Service((*address,), 1, 10) for address in addresses]
    matchmaker.register(Entry(matchmaker.node, os.getpid(), "here", [f"ipc://{matchmaker.node}"], services))


def die(run_dir: str) -> str:
    """Have a process join and be killed; returns its node's id."""
    code = (
        "import os, sys; from msgbus.drivers.zmq.matchmakers.local import LocalMatchmaker as L\n"
        "from msgbus.drivers.zmq.matchmakers.base import Entry\n"
        "m = L(sys.argv[1]); m.open(); m.register(Entry(m.node, 1, 'x', [], []))\n"
        "open(os.path.join(sys.argv[1], m.node + '.sock'), 'w').close()\n"
        "print(m.node, flush=True); os._exit(9)"
    )
    run = subprocess.run([sys.executable, "-c", code, run_dir], capture_output=True, text=True, check=False)
    return run.stdout.strip()


def test_nodes_see_each_other_and_what_each_serves_now(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """Those who are there, and those who come, with what they serve now."""
    first = join(run_dir, made, TOPIC)
    second = join(run_dir, made)
    assert set(first.entries()) == set(second.entries()) == {first.node, second.node}
    assert second.entries()[first.node].services[0].address == TOPIC
    register(first)
    assert second.entries()[first.node].services == []


def test_changed_is_true_only_after_a_change(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """After a change of anybody's, and only then, there is something new to read."""
    first, second = join(run_dir, made), join(run_dir, made)
    second.entries()
    assert not second.changed()
    register(first, TOPIC)
    assert second.changed()
    second.entries()
    assert not second.changed()
    first.close()
    assert second.changed()
    assert set(second.entries()) == {second.node}


def test_unchanged_entry_is_the_same_object(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """So that the directory sees what is new without comparing."""
    first, second = join(run_dir, made), join(run_dir, made)
    known = second.entries()[first.node]
    register(second, TOPIC)
    assert second.entries()[first.node] is known


def test_close_removes_all_files_of_the_node(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """All files of a node go with it; closing again is no error."""
    matchmaker = join(run_dir, made, TOPIC)
    matchmaker.close()
    matchmaker.close()
    assert os.listdir(run_dir) == ["changes"]


def test_matchmaker_that_is_opened_again_has_a_new_id(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """It has a new id, and others see it."""
    first = join(run_dir, made, TOPIC)
    former = first.node
    first.close()
    first.open()
    register(first, TOPIC)
    second = join(run_dir, made)
    assert first.node != former
    assert set(second.entries()) == {first.node, second.node}


def test_files_of_a_dead_process_are_removed(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """Its lock is free, so the next node knows that it is dead, and removes its files."""
    node = die(run_dir)
    assert f"{node}.sock" in os.listdir(run_dir)
    matchmaker = join(run_dir, made)
    assert matchmaker.is_alive(node) is False
    assert set(matchmaker.entries()) == {matchmaker.node}
    assert [name for name in os.listdir(run_dir) if name.startswith(node)] == []


def test_node_that_dies_later_is_removed_by_forget_and_by_maintain(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """By one who learns of it, for all; and by looking after the directory now and then."""
    matchmaker = join(run_dir, made)
    for forget in (matchmaker.forget, lambda _node: matchmaker.maintain()):
        node = die(run_dir)
        other = join(run_dir, made)
        other.entries()
        forget(node)
        assert matchmaker.changed()
        assert node not in matchmaker.entries()
        assert node not in other.entries()


def test_live_node_is_not_forgotten(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """Whatever somebody believes, the lock decides."""
    first, second = join(run_dir, made), join(run_dir, made)
    second.forget(first.node)
    assert second.is_alive(first.node) is True
    assert first.node in second.entries()


@pytest.mark.parametrize("node", ["", "../../etc/passwd", "x" * 16, "0" * 15, "0" * 16 + "\n", "/", "\x00"])
def test_invalid_node_ids_never_become_paths(run_dir: str, made: list[LocalMatchmaker], node: str) -> None:
    """What a peer calls itself never leads out of the directory."""
    matchmaker = join(run_dir, made)
    assert matchmaker.is_alive(node) is False
    matchmaker.forget(node)


def test_foreign_files_are_ignored_and_kept(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """Rubbish in the directory is neither read nor removed; an entry that cannot be read is left out."""
    first = join(run_dir, made)
    for name in ("notes.txt", "0" * 16 + ".txt", ".hidden.node"):
        pathlib.Path(run_dir, name).write_bytes(b"rubbish")
    second = join(run_dir, made)
    for number, rubbish in ((8, b"\xc1 no msgpack"), (9, b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0")):
        pathlib.Path(run_dir, f"{second.node}.{number}.node").write_bytes(rubbish)
        assert set(first.entries()) == {first.node}
    first.maintain()
    assert {"notes.txt", "0" * 16 + ".txt", ".hidden.node"} <= set(os.listdir(run_dir))


def test_an_entry_that_cannot_be_read_is_logged_once(
    run_dir: str, made: list[LocalMatchmaker], caplog: pytest.LogCaptureFixture
) -> None:
    """It may be that of a process with another version of msgbus, and others come and go all the time."""
    first, second = join(run_dir, made), join(run_dir, made)
    pathlib.Path(run_dir, f"{second.node}.9.node").write_bytes(b"\x80")
    for _ in range(3):
        register(join(run_dir, made), TOPIC)
        assert len(first.entries()) > 1
    assert len(caplog.records) == 1
    assert f"{second.node}.9.node cannot be read" in caplog.text
    register(second, TOPIC)
    os.unlink(os.path.join(run_dir, f"{second.node}.9.node"))
    assert first.entries()[second.node].services[0].address == TOPIC


def test_removed_files_are_written_again(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """After /tmp was cleaned up, existing nodes and new ones still find each other."""
    first = join(run_dir, made, TOPIC)
    for name in os.listdir(run_dir):
        os.unlink(os.path.join(run_dir, name))
    first.maintain()
    second = join(run_dir, made)
    assert second.is_alive(first.node) is True
    assert first.node in second.entries()
    assert first.changed()
    assert second.node in first.entries()


def test_an_entry_that_cannot_be_written_again_is_written_later(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """A full disk, from which somebody has removed all files, may have room for empty ones only."""
    first = join(run_dir, made, TOPIC)
    for name in os.listdir(run_dir):
        os.unlink(os.path.join(run_dir, name))
    in_the_way = os.path.join(run_dir, f"{first.node}.2.tmp")
    os.mkdir(in_the_way)
    first.maintain()
    assert first.node not in join(run_dir, made).entries()
    os.rmdir(in_the_way)
    first.maintain()
    assert first.node in join(run_dir, made).entries()


def test_files_that_cannot_be_written_again_cost_no_descriptors(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """It is tried again and again, with as many open files as before, and done as soon as it can be."""
    first = join(run_dir, made, TOPIC)
    for name in os.listdir(run_dir):
        os.unlink(os.path.join(run_dir, name))
    in_the_way = os.path.join(run_dir, f"{first.node}.lock")
    os.mkdir(in_the_way)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        first.maintain()
    assert len(os.listdir("/proc/self/fd")) == before
    os.rmdir(in_the_way)
    first.maintain()
    assert first.node in join(run_dir, made).entries()


def test_run_directory_is_created_for_its_owner_alone(tmp_path: pathlib.Path) -> None:
    """It, and what is missing above it, is made; nobody else may look in."""
    path = tmp_path / "a" / "b"
    prepare(str(path))
    assert path.stat().st_mode & 0o777 == 0o700
    prepare(str(path))


def test_run_directory_that_is_not_private_is_refused(tmp_path: pathlib.Path) -> None:
    """A link, a file, and a directory to which others may write; the text says which, why and what to do."""
    real = tmp_path / "real"
    real.mkdir(0o700)
    link = tmp_path / "link"
    link.symlink_to(real)
    file = tmp_path / "file"
    file.touch()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o770)
    for path, why in (
        (link, "symbolic link"),
        (file, "not a directory"),
        (shared, "mode 770"),
        (file / "x", "be created"),
    ):
        with pytest.raises(TransportUnavailable, match=why) as caught:
            prepare(str(path))
        assert str(path) in str(caught.value)
        assert "run_dir" in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_run_directory_of_another_user_is_refused(tmp_path: pathlib.Path) -> None:
    """Its owner could read all messages."""
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(TransportUnavailable, match="12345"):
        prepare(str(tmp_path))


def test_run_directory_whose_socket_paths_are_too_long_is_refused() -> None:
    """107 bytes, the id and the ending among them."""
    check_length("/" + "x" * 84)
    with pytest.raises(ConfigurationError, match="too long by 1 bytes"):
        check_length("/" + "x" * 85)
    with pytest.raises(ConfigurationError, match="too long by 36 bytes"):
        check_length("/" + "ü" * 60)


def test_default_run_directory_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the runtime directory, or named after the user."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/5")
    assert default_run_dir() == "/run/user/5/msgbus"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_run_dir() == f"/tmp/msgbus-{os.geteuid()}"


def test_directory_finds_nodes_by_address_and_pools_by_topic() -> None:
    """It knows nodes by address and pools by topic, and forgets what goes."""
    directory = Directory()
    pool = Address("pool", "msgbus", "foo", name="p")
    both = Entry("a", 1, "h", [], [Service((*TOPIC,), 2, 20), Service((*pool,), 1, 10)])
    one = Entry("b", 1, "h", [], [Service((*TOPIC,), 1, 10)])
    directory.update({"a": both, "b": one})
    version = directory.version
    assert set(directory.nodes(TOPIC)) == {"a", "b"}
    assert directory.nodes(TOPIC)["a"].consumers == 2
    assert directory.pools("msgbus", "foo") == [pool]
    directory.update({"a": both, "b": one})
    assert directory.version == version
    directory.update({"b": one})
    assert directory.version > version
    assert set(directory.nodes(TOPIC)) == {"b"}
    assert directory.pools("msgbus", "foo") == []
    directory.update({})
    assert directory.nodes(TOPIC) == {}


def test_directory_follows_a_node_that_changes_some_of_its_services() -> None:
    """Services come, go and change at the beginning, in the middle and at the end of an entry: each is found or not."""
    topics = [Address("topic", "msgbus", f"t{number}") for number in range(6)]

    def entry(services: dict[int, int]) -> Entry:
        return Entry("a", 1, "h", [], [Service((*topics[number],), count, 10) for number, count in services.items()])

    directory = Directory()
    directory.update({"b": Entry("b", 1, "h", [], [Service((*topics[0],), 1, 10)])})
    for services in (
        {0: 1, 1: 1, 2: 1},
        {0: 1, 1: 1, 2: 1, 3: 1},
        {1: 1, 2: 1, 3: 1},
        {1: 1, 3: 1},
        {1: 1, 3: 2},
        {4: 1, 1: 1, 3: 2, 5: 1},
        {3: 2, 1: 1},
        {3: 2, 1: 1},
        {},
        {2: 1},
    ):
        directory.update({"b": directory.entries["b"], "a": entry(services)})
        found = {number: directory.nodes(topic).get("a") for number, topic in enumerate(topics)}
        assert {number: service.consumers for number, service in found.items() if service} == services
        assert "b" in directory.nodes(topics[0])


def test_node_knows_its_own_entry_without_reading_it(run_dir: str, made: list[LocalMatchmaker]) -> None:
    """One with thousands of services is not read back each time that a service is added to it."""
    matchmaker = LocalMatchmaker(run_dir)
    made.append(matchmaker)
    matchmaker.open()
    for number in range(3):
        entry = Entry(matchmaker.node, 1, "h", [], [Service((*TOPIC,), 1, number)])
        matchmaker.register(entry)
        assert matchmaker.changed()
        assert matchmaker.entries()[matchmaker.node] is entry
