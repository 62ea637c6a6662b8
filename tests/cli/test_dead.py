"""``msgbus dead``, in memory. tests/functional/test_dead_letters.py has it on message systems that store messages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

import msgbus
from msgbus.cli.app import cli
from msgbus.cli.errors import Code
from msgbus.drivers.base import Message
from msgbus.encoding import encode_dead_letter
from msgbus.message import JSON
from tests.support import EVENT_TIMEOUT, new_transport, new_url

TARGET = msgbus.Target(topic="dead")


class Notes:
    def note(self, _ctxt: object, **arguments: object) -> None: ...


class Bench:
    """A bus in memory with a server, and dead letters of its topic."""

    def __init__(self) -> None:
        self.url = new_url()
        self.transport = new_transport(self.url)
        self.server = msgbus.get_rpc_server(self.transport, TARGET(server="one"), [Notes()])
        self.server.start(EVENT_TIMEOUT)

    def put(self, name: str, arguments: dict[str, Any], address: str = "?", kind: str = "topic") -> None:
        """Add a letter with that ID."""
        body = json.dumps({"method": "note", "args": arguments}).encode()
        letter = msgbus.DeadLetter("why", address, "one", 1, time.time(), [], JSON, body, kind)
        message = Message(encode_dead_letter(letter), JSON, name, None, True)
        dead = self.transport.address(TARGET)._replace(kind="dead")
        self.transport.send(dead, message, mandatory=False).result(EVENT_TIMEOUT)

    def run(self, command: str, *args: str) -> Result:
        """Run ``msgbus dead``."""
        return CliRunner().invoke(cli, ["dead", command, "dead", *args, "--url", self.url])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bus, which ends with the test."""
    monkeypatch.delenv("MSGBUS_URL", raising=False)
    made = Bench()
    yield made
    made.server.stop()
    made.server.wait(EVENT_TIMEOUT)
    made.transport.cleanup()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["requeue"], "1 of 1 dead letters of topic dead were sent again\n"),
        (["purge", "--yes"], "1 dead letters of topic dead were removed\n"),
    ],
)
def test_an_unknown_id_does_not_hide_what_was_done_for_the_others(command: list[str], said: str, bench: Bench) -> None:
    """What was sent again, or removed for good, is printed before the error."""
    for name in ("one", "two"):
        bench.put(name, {})
    result = bench.run(*command, "one", "no-such")
    assert (result.exit_code, result.stdout) == (Code.USAGE, said)
    assert "topic dead has no dead letter no-such" in result.stderr
    result = bench.run(*command, "two", "no-such", "--json")
    assert (result.exit_code, json.loads(result.stdout)["id"]) == (Code.USAGE, "two")
    assert "topic dead has no dead letter no-such" in json.loads(result.stderr)["message"]
    result = bench.run(*command, "one", "two")
    assert (result.exit_code, result.stdout) == (Code.USAGE, "")


def test_arguments_are_shown_whole(bench: Bench) -> None:
    """However long they are, and also those that JSON has no form for, which only stock peers send."""
    bench.put("one", {"half": "\ud800", "number": float("nan"), "long": "x" * 3000})
    result = bench.run("show")
    assert result.exit_code == Code.OK, result.output
    assert f'arguments: {{"half":"\\ud800","number":NaN,"long":"{"x" * 3000}"}}\n' in result.stdout


def test_text_of_a_letter_does_not_steer_the_terminal(bench: Bench) -> None:
    """Also where it is a part of the error why the letter was not sent again."""
    bench.put("one", {}, address="\x1b[31mred", kind="pool")
    result = bench.run("requeue")
    assert result.exit_code == Code.USAGE
    assert "one stays a dead letter: it came through \\x1b[31mred" in result.stderr
    assert "\x1b" not in result.output
