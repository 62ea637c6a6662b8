"""Dead letters, read, sent again and removed on real message systems: msgbus.dead_letters and the command."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

import msgbus
from msgbus import dead_letters
from msgbus.cli.connecting import load_configuration
from msgbus.drivers.base import Delivery, Message
from msgbus.encoding import encode_dead_letter
from msgbus.message import JSON
from tests.functional.brokers.processes import poll
from tests.functional.test_cli import MSGBUS, SECONDS

SYSTEMS = ["fake", "rabbitmq_310", "rabbitmq_43", "quorum", "qpid", "nats"]
STORING = [system for system in SYSTEMS if system != "fake"]


class Failing:
    """Raises while `failing` is set."""

    def __init__(self) -> None:
        self.failing = True
        self.done: list[str] = []

    def note(self, _ctxt: object, text: str) -> None:
        if self.failing:
            raise OSError(f"no room for {text}")
        self.done.append(text)


class Bench:
    """A topic on a message system, and the servers that a test starts there.

    Attributes:
        url: of the message system.
        target: the topic.
        transport: of the reader.
    """

    def __init__(self, url: str, cleanup: contextlib.ExitStack) -> None:
        self.url = url
        self.target = msgbus.Target(topic=f"dead-{uuid.uuid4().hex[:8]}")
        self._cleanup = cleanup
        self.transport = self.connect()

    def connect(self) -> msgbus.Transport:
        """A transport of its own."""
        conf = load_configuration(())
        transport = msgbus.get_rpc_transport(conf, self.url)
        conf.set_override("rpc_cast_retries", 0)
        self._cleanup.callback(transport.cleanup)
        return transport

    def serve(self, name: str = "one") -> Failing:
        """Start a server, and return its endpoint."""
        endpoint = Failing()
        server = msgbus.get_rpc_server(self.connect(), self.target(server=name), [endpoint])
        server.start()

        def stop() -> None:
            server.stop()
            server.wait(5)

        self._cleanup.callback(stop)
        return endpoint

    def cast(self, *texts: str, **options: bool | str) -> None:
        """Cast so that it becomes a dead letter; one after the other, so that their order is known."""
        client = msgbus.get_rpc_client(self.transport, self.target(**options), delivery="at_least_once")
        for text in texts:
            before = len(self.look())
            client.cast({}, "note", text=text)
            poll(lambda before=before: len(self.look()) > before, SECONDS, "the dead letter")  # type: ignore[misc]

    def look(self) -> dead_letters.Letters:
        """All letters."""
        return dead_letters.look(self.transport, self.target)

    def reasons(self) -> list[str]:
        """Why each was given up."""
        return [stored.letter.reason for stored in self.look() if stored.letter is not None]


Make = Callable[[str], Bench]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes a bench on a message system."""
    with contextlib.ExitStack() as cleanup:

        def make(system: str) -> Bench:
            if system == "fake":
                return Bench(f"fake://{uuid.uuid4().hex}", cleanup)
            if system == "nats":
                pytest.importorskip("msgbus_nats")
            broker = request.getfixturevalue("rabbitmq_43" if system == "quorum" else system)
            options = {"quorum": "?quorum_queues=true", "qpid": "?durable=false"}
            return Bench(broker.url + options.get(system, ""), cleanup)

        yield make


@pytest.mark.parametrize("system", SYSTEMS)
def test_looking_leaves_letters_as_they_were(system: str, make: Make) -> None:
    """All are seen, the oldest first, as often as somebody looks; none is lost, and their order stays."""
    bench = make(system)
    assert bench.look() == []
    bench.serve()
    bench.cast("a", "b", "c")
    expected = [f"OSError: no room for {text}" for text in "abc"]
    for _ in range(25):
        assert bench.reasons() == expected
    found = bench.look()
    assert (len(found), found.expected) == (3, 3)
    letter = found[0].letter
    assert letter is not None
    assert (letter.attempts, letter.server, letter.kind) == (1, "one", "topic")
    assert "raise OSError" in "".join(letter.traceback)


@pytest.mark.parametrize("system", SYSTEMS)
def test_requeued_letter_is_run_by_the_server_that_gave_it_up(system: str, make: Make) -> None:
    """That server drops ids it has seen, so the request gets a new one. Its letter is removed, the others stay."""
    bench = make(system)
    endpoint = bench.serve()
    bench.cast("a", "b", "c")
    endpoint.failing = False
    chosen = bench.look()[1].id
    assert [(stored.id, stored.error) for stored in dead_letters.requeue(bench.transport, bench.target, [chosen])] == [
        (chosen, None)
    ]
    poll(lambda: endpoint.done == ["b"], SECONDS, "the request is run")
    assert bench.reasons() == ["OSError: no room for a", "OSError: no room for c"]
    assert len(dead_letters.requeue(bench.transport, bench.target)) == 2
    poll(lambda: sorted(endpoint.done) == ["a", "b", "c"], SECONDS, "all are run")
    assert bench.look() == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_requeued_letter_that_fails_again_is_a_letter_again(system: str, make: Make) -> None:
    """With the newer time."""
    bench = make(system)
    bench.serve()
    bench.cast("a")
    before = bench.look()[0]
    dead_letters.requeue(bench.transport, bench.target)
    poll(lambda: [stored.id for stored in bench.look()] not in ([], [before.id]), SECONDS, "the second letter")
    assert bench.reasons() == ["OSError: no room for a"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_purge_removes_one_or_all(system: str, make: Make) -> None:
    """Those that are named, else all; what cannot be read too."""
    bench = make(system)
    bench.serve()
    bench.cast("a", "b")
    address = bench.transport.address(bench.target)._replace(kind="dead")
    bench.transport.send(address, Message(b"{garbage", JSON, "garbage"), mandatory=False).result(SECONDS)
    poll(lambda: len(bench.look()) == 3, SECONDS, "the garbage")
    garbage = bench.look()[2]
    assert (garbage.letter, garbage.id) == (None, "garbage")
    assert isinstance(garbage.error, msgbus.SerializationError)
    assert [type(stored.error) for stored in dead_letters.requeue(bench.transport, bench.target, ["garbage"])] == [
        msgbus.SerializationError
    ]
    first = bench.look()[0].id
    assert [stored.id for stored in dead_letters.purge(bench.transport, bench.target, [first])] == [first]
    assert bench.reasons() == ["OSError: no room for b"]
    assert len(dead_letters.purge(bench.transport, bench.target)) == 2
    assert bench.look() == []


@pytest.mark.parametrize("system", ["fake", "rabbitmq_43", "qpid"])
def test_letters_of_one_server_go_back_to_that_server(system: str, make: Make) -> None:
    """A fanout goes to no server that has done it; if the server that gave it up has ended, its letter stays."""
    bench = make(system)
    one, two = bench.serve("one"), bench.serve("two")
    two.failing = False
    bench.cast("all", fanout=True)
    assert two.done == ["all"]
    bench.cast("named", server="one")
    assert [stored.letter.kind for stored in bench.look() if stored.letter] == ["fanout", "server"]
    one.failing = False
    assert [stored.error for stored in dead_letters.requeue(bench.transport, bench.target)] == [None, None]
    poll(lambda: sorted(one.done) == ["all", "named"], SECONDS, "server one runs both")
    assert two.done == ["all"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_letter_without_a_server_stays(system: str, make: Make) -> None:
    """The error says why, and the letter is not lost."""
    bench = make(system)
    letter = msgbus.DeadLetter(
        "why", "?", "nobody", 1, time.time(), [], JSON, b'{"method": "note", "args": {}}', "server"
    )
    address = bench.transport.address(bench.target)._replace(kind="dead")

    message = Message(encode_dead_letter(letter), JSON, "an-id", None, True)
    bench.transport.send(address, message, mandatory=False).result(SECONDS)
    poll(lambda: len(bench.look()) == 1, SECONDS, "the letter")
    [stored] = dead_letters.requeue(bench.transport, bench.target)
    assert isinstance(stored.error, msgbus.MessageUndeliverable)
    assert bench.reasons() == ["why"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_letters_that_another_reader_has_are_not_touched(system: str, make: Make) -> None:
    """The listing ends without them, and they are there when that reader has given them back."""
    bench = make(system)
    bench.serve()
    bench.cast("a", "b", "c")
    taken: list[Delivery] = []
    address = bench.transport.address(bench.target)._replace(kind="dead")
    other = bench.connect().driver.subscribe([address], taken.append, prefetch=1)
    poll(lambda: taken, SECONDS, "the other reader has one")
    there = {f"OSError: no room for {text}" for text in "abc"}
    has = msgbus.decode_dead_letter(taken[0].message.body).reason
    assert sorted(bench.reasons()) == sorted(there - {has})
    other.close().result(SECONDS)
    assert sorted(bench.reasons()) == sorted(there)


def run(url: str, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [MSGBUS, "dead", *words, "--url", url]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, input=stdin or "")


@pytest.mark.parametrize("system", STORING)
def test_command_lists_shows_requeues_and_purges(system: str, make: Make) -> None:
    """For people, and as JSON for programs."""
    bench = make(system)
    topic = bench.target.topic or ""
    result = run(bench.url, "list", topic)
    assert (result.stdout, result.stderr, result.returncode) == (f"topic {topic} has no dead letters\n", "", 0)
    endpoint = bench.serve()
    bench.cast("a", "b", "c\x1b[31m")
    result = run(bench.url, "list", topic)
    names, *rows = result.stdout.splitlines()
    assert names.split() == ["id", "age", "attempts", "server", "method", "reason"]
    assert [row.rpartition("  ")[2] for row in rows] == [
        "OSError: no room for a",
        "OSError: no room for b",
        "OSError: no room for c\\x1b[31m",
    ]
    found = [json.loads(line) for line in run(bench.url, "list", topic, "--json").stdout.splitlines()]
    assert [(letter["method"], letter["arguments"]["text"][0]) for letter in found] == [
        ("note", text) for text in "abc"
    ]
    assert all(letter["age"] >= 0 and letter["attempts"] == 1 and letter["traceback"] for letter in found)
    ids = [letter["id"] for letter in found]
    shown = run(bench.url, "show", topic, ids[0]).stdout
    for text in (f"id: {ids[0]}\n", "reason: OSError: no room for a\n", 'arguments: {"text":"a"}\n', "raise OSError("):
        assert text in shown
    endpoint.failing = False
    result = run(bench.url, "requeue", topic, ids[0])
    assert (result.stdout, result.returncode) == (f"1 of 1 dead letters of topic {topic} were sent again\n", 0)
    poll(lambda: endpoint.done == ["a"], SECONDS, "it is run")
    result = run(bench.url, "requeue", topic, ids[0])
    assert (result.stdout, result.returncode) == ("", 2)
    assert f"has no dead letter {ids[0]}" in result.stderr
    result = run(bench.url, "purge", topic)
    assert (result.returncode, result.stderr.count("add --yes")) == (2, 1)
    assert run(bench.url, "purge", topic, stdin="n\n").stdout.endswith("nothing was removed\n")
    assert len(bench.look()) == 2
    assert run(bench.url, "purge", topic, ids[1], stdin="y\n").stdout.endswith(
        f"1 dead letters of topic {topic} were removed\n"
    )
    [line] = run(bench.url, "purge", topic, "--yes", "--json").stdout.splitlines()
    assert json.loads(line)["id"] == ids[2]
    assert bench.look() == []


def test_message_system_that_stores_nothing_says_so(tmp_path: pathlib.Path) -> None:
    """Over ZeroMQ there are no dead letters: the line says where they are instead."""
    del tmp_path
    for words in (["list", "t"], ["show", "t"], ["requeue", "t"], ["purge", "t", "--yes"]):
        result = run("zmq://", *words)
        assert (result.returncode, result.stdout) == (2, "")
        assert "msgbus dead: CapabilityMissing: this message system (ZmqDriver) does not store" in result.stderr
        assert "on_dead_letter" in result.stderr


def test_message_system_that_is_away_is_exit_code_5() -> None:
    """Within the timeout."""
    result = run("rabbit://guest:guest@127.0.0.1:9/", "list", "t", "--timeout", "1")
    assert (result.returncode, result.stdout) == (5, "")
    assert "TransportUnavailable" in result.stderr
