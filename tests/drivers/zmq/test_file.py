"""msgbus.drivers.zmq.matchmakers.file: which files are valid, and how changes of the file are handled."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from msgbus.drivers.base import Address
from msgbus.drivers.toolkit.loop import Loop
from msgbus.drivers.zmq.matchmakers import file
from msgbus.drivers.zmq.matchmakers.base import Directory, Entry, Service
from msgbus.drivers.zmq.matchmakers.file import FileMatchmaker, Place, node_at, read_topics
from msgbus.exceptions import ConfigurationError

ONE, TWO = "10.0.0.5:9501", "[fd00::6]:9501"
TOPIC = Address("topic", "msgbus", "foo")


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Callable[[Any], str]:
    """Writes the file, and returns its path."""

    def do(content: Any) -> str:
        path = tmp_path / "servers.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return do


@pytest.fixture
def loop() -> Iterator[Loop]:
    """One that does not run."""
    made = Loop("test")
    yield made
    made.close()


def open_at(loop: Loop, path: str, own: str = "") -> FileMatchmaker:
    """A matchmaker that is open."""
    made = FileMatchmaker(loop, path, own, "msgbus", lambda name: f"key of {name}")
    made.open()
    return made


def known(matchmaker: FileMatchmaker) -> dict[str, set[str]]:
    """By endpoint, what it serves."""
    return {
        entry.endpoints[0]: {"{0} {2} {3}".format(*service.address).strip() for service in entry.services}
        for entry in matchmaker.entries().values()
    }


def test_entries_are_made_from_the_file(loop: Loop, write: Callable[[Any], str]) -> None:
    """Of each address what is there: any server of the topic, that one, and all of them; and its key."""
    path = write({"foo": {"s1": ONE, "s2": {"address": TWO, "key": "host-b"}}, "bar": {"s1": ONE}})
    matchmaker = open_at(loop, path)
    assert known(matchmaker) == {
        f"tcp://{ONE}": {"topic foo", "server foo s1", "fanout foo", "topic bar", "server bar s1", "fanout bar"},
        f"tcp://{TWO}": {"topic foo", "server foo s2", "fanout foo"},
    }
    assert {entry.node: entry.key for entry in matchmaker.entries().values()} == {
        node_at(ONE): "",
        node_at(TWO): "key of host-b",
    }
    assert matchmaker.is_alive(node_at(ONE)) is None
    directory = Directory()
    directory.update(matchmaker.entries())
    assert set(directory.nodes(TOPIC)) == {node_at(ONE), node_at(TWO)}


def test_file_without_servers_is_valid(write: Callable[[Any], str]) -> None:
    """There may be no servers yet."""
    assert read_topics(write({})) == {}
    assert read_topics(write({"foo": {}, "bar": {"s1": ONE}})) == {"foo": {}, "bar": {"s1": Place(ONE)}}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "line 1 column"),
        ("[]", "Expected `object`"),
        ("[" * 100_000, "it is nested too deep"),
        ({"foo": [ONE]}, "Expected `object`, got `array`"),
        ({"foo": {"s1": 5}}, "Expected `str | object`, got `int`"),
        ({"foo": {"s1": {"adress": ONE}}}, "adress"),  # codespell:ignore adress
        ({"foo": {"s1": "10.0.0.5"}}, "'10.0.0.5' is not HOST:PORT"),
        ({"foo": {"s1": "tcp://10.0.0.5:9501"}}, "is not HOST:PORT"),
        ({"foo": {"s1": "10.0.0.5:0"}}, "is not HOST:PORT"),
        ({"foo": {"s1": "10.0.0.5:65536"}}, "is not HOST:PORT"),
        ({"foo": {"s1": "ipc://../x:1"}}, "is not HOST:PORT"),
        ({"foo": {"s1": "\ud800:9501"}}, "is not HOST:PORT"),
        ({"": {"s1": ONE}}, "must not be empty"),
        ({"foo": {"x" * 76: ONE}}, "longer than 75 bytes"),
        ('{"foo": {"s1": "a:1", "s1": "b:2"}}', "'s1' occurs twice"),
        ('{"foo": {}, "foo": {}}', "'foo' occurs twice"),
        ({"foo": {"s1": ONE}, "bar": {"s1": {"address": ONE, "key": "k"}}}, "has two keys"),
    ],
)
def test_invalid_file_is_refused_with_the_reason(
    loop: Loop, write: Callable[[Any], str], content: Any, why: str
) -> None:
    """The text names the file, and says what is wrong."""
    path = write(content)
    with pytest.raises(ConfigurationError) as caught:
        open_at(loop, path)
    assert f"matchmaker_file of [msgbus_zmq], {path}, cannot be used: " in str(caught.value)
    assert why in str(caught.value)


def test_missing_file_is_refused(loop: Loop, tmp_path: pathlib.Path) -> None:
    """Likewise."""
    with pytest.raises(ConfigurationError, match="cannot be used: No such file"):
        open_at(loop, str(tmp_path / "none"))


def test_change_is_seen_at_once_and_an_invalid_one_is_ignored(
    loop: Loop, write: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next check finds a change; an invalid or removed file changes nothing, and the log says so once."""
    monkeypatch.setattr(file, "RETRY_AFTER", 3600.0)
    path = write({"foo": {"s1": ONE}})
    matchmaker = open_at(loop, path)
    assert set(known(matchmaker)) == {f"tcp://{ONE}"}
    assert not matchmaker.changed()
    write({"foo": {"s1": ONE, "s2": TWO}})
    assert matchmaker.changed()
    assert set(known(matchmaker)) == {f"tcp://{ONE}", f"tcp://{TWO}"}
    assert not matchmaker.changed()
    write({"foo": {"s2": TWO}})
    assert set(known(matchmaker)) == {f"tcp://{TWO}"}
    with caplog.at_level(logging.ERROR):
        write("{broken")
        assert set(known(matchmaker)) == {f"tcp://{TWO}"}
        pathlib.Path(path).unlink()
        assert set(known(matchmaker)) == {f"tcp://{TWO}"}
        assert not matchmaker.changed()
    assert len(caplog.records) == 2
    assert "its former content stays in use" in caplog.text
    write({"foo": {"s1": ONE}})
    assert set(known(matchmaker)) == {f"tcp://{ONE}"}


def test_forgotten_node_is_back_after_a_moment(
    loop: Loop, write: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at whose address nobody listens is left out for a moment; then all are new, and may be tried again."""
    monkeypatch.setattr(file, "RETRY_AFTER", 3600.0)
    matchmaker = open_at(loop, write({"foo": {"s1": ONE, "s2": TWO}}))
    before = matchmaker.entries()
    matchmaker.forget(node_at(ONE))
    matchmaker.forget("0" * 16)
    assert matchmaker.changed()
    assert set(known(matchmaker)) == {f"tcp://{TWO}"}
    assert not matchmaker.changed()
    monkeypatch.setattr(file, "RETRY_AFTER", 0.0)
    matchmaker.forget(node_at(TWO))
    after = matchmaker.entries()
    assert set(after) == {node_at(ONE), node_at(TWO)}
    assert all(after[node] is not before[node] for node in after)


def test_node_id_is_made_from_the_address(loop: Loop, write: Callable[[Any], str]) -> None:
    """So that others know it; one that listens nowhere has an id of its own."""
    path = write({"foo": {"s1": ONE}})
    assert open_at(loop, path, own=ONE).node == node_at(ONE)
    assert open_at(loop, path).node != open_at(loop, path).node


def test_registering_something_else_than_the_file_says_is_logged(
    loop: Loop, write: Callable[[Any], str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is known to itself alone; where the file says something else, the log does so, once."""
    matchmaker = open_at(loop, write({"foo": {"s1": ONE, "s2": TWO}}), own=ONE)
    assert set(known(matchmaker)) == {f"tcp://{TWO}"}
    services = [Service((*TOPIC,), 1, 10), Service(("server", "msgbus", "foo", "s1", ""), 1, 10)]
    matchmaker.register(Entry(matchmaker.node, 1, "here", [f"tcp://{ONE}"], services))
    assert known(matchmaker)[f"tcp://{ONE}"] == {"topic foo", "server foo s1"}
    assert matchmaker.is_alive(matchmaker.node) is True
    assert caplog.text == ""
    services.append(Service(("server", "msgbus", "foo", "s2", ""), 1, 10))
    services.append(Service(("server", "other", "foo", "s1", ""), 1, 10))
    for _ in range(2):
        matchmaker.register(Entry(matchmaker.node, 1, "here", [f"tcp://{ONE}"], services))
    assert "does not say that server 's2' of topic 'foo' is at" in caplog.text
    assert "does not say that server 's1' of topic 'foo' is at" in caplog.text
    assert len(caplog.records) == 2
    pool = Service(("pool", "msgbus", "foo", "", "audit"), 1, 10)
    with pytest.raises(ConfigurationError, match="pool 'audit' of topic 'foo'"):
        matchmaker.register(Entry(matchmaker.node, 1, "here", [f"tcp://{ONE}"], [pool]))


def test_server_that_does_not_listen_is_logged(
    loop: Loop, write: Callable[[Any], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can find it, and the log says why."""
    matchmaker = open_at(loop, write({"foo": {"s1": ONE}}))
    services = [Service(("server", "msgbus", "foo", "s1", ""), 1, 10)]
    published: list[bool] = []
    matchmaker.register(Entry(matchmaker.node, 1, "here", [], services), lambda: published.append(True))
    assert "the option listen is not set" in caplog.text
    assert published == [True]
