"""``msgbus conformance``: what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from msgbus.cli.app import cli
from msgbus.cli.errors import Code
from msgbus.conformance.bus import Bus
from msgbus.conformance.census import Census
from msgbus.conformance.fake import FakeHarness

HARNESS = ("--harness", "msgbus.conformance.fake:FakeHarness")


class Fails(FakeHarness):
    """One that says it takes larger messages than it does."""

    largest = FakeHarness.largest * 2


class CannotBeMade(FakeHarness):
    """One that says why."""

    def __init__(self) -> None:
        raise RuntimeError("no such broker")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSGBUS_URL", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))


def run(*args: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, ["conformance", *args])


@pytest.mark.parametrize("servers", ["threading", "asyncio"])
@pytest.mark.parametrize("clients", ["threading", "asyncio"])
def test_clients_and_servers_are_chosen(clients: str, servers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks make the clients and the servers that were asked for, and pass with each."""
    made: list[tuple[str, str]] = []
    serve = Bus.serve

    def note(bus: Bus, *names: str, **more: Any) -> list[Any]:
        started = serve(bus, *names, **more)
        made.append((type(bus.client()).__name__, type(started[0]._server).__name__))
        return started

    monkeypatch.setattr(Bus, "serve", note)
    result = run(*HARNESS, "--client", clients, "--server", servers, "-k", "test_contexts_travel", "--json")
    assert [line["outcome"] for line in map(json.loads, result.stdout.splitlines())] == ["passed"], result.output
    wanted = {"threading": ("RPCClient", "RPCServer"), "asyncio": ("BlockingClient", "BlockingServer")}
    assert set(made) == {(wanted[clients][0], wanted[servers][1])}


def test_table_has_guarantee_result_and_time() -> None:
    """Each check has a line; the last lines count them, and the reasons of those that were skipped."""
    result = run(*HARNESS, "--level", "driver", "-k", "inspect or only_a_pool")
    assert result.exit_code == Code.OK, result.output
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["check", "result", "time", "level", "guarantee"]
    (line,) = [line for line in lines if line.startswith("test_a_topic_with_only_a_pool_takes_messages ")]
    assert line.split()[1:5:3] == ["passed", "driver"]
    assert line.endswith("A topic whose only subscribers are pools takes mandatory messages.")
    assert any("skipped: the driver declares inspect" in line for line in lines)
    assert " passed, 0 failed, 1 skipped in " in result.stdout
    assert "  skipped 1: the driver declares inspect" in lines


def test_json_has_a_line_for_each_check() -> None:
    """For programs, all that is known of it."""
    result = run(*HARNESS, "--json", "-k", "test_reached_counts_the_listeners")
    assert result.exit_code == Code.OK
    (found,) = map(json.loads, result.stdout.splitlines())
    assert found.pop("seconds") > 0
    assert found == {
        "check": "test_reached_counts_the_listeners",
        "level": "driver",
        "since": "0.1",
        "guarantee": "If the driver sets `Sent.reached` for a fanout, it is the number of listeners.",
        "outcome": "passed",
        "reason": "",
        "details": "",
    }


def test_level_selects_its_checks() -> None:
    """The checks of the other level are not run."""
    for level in ("driver", "bus"):
        result = run(*HARNESS, "--json", "--level", level, "-k", "topic_goes_to_exactly_one or contexts_travel")
        (found,) = map(json.loads, result.stdout.splitlines())
        assert found["level"] == level


def test_failure_is_shown_and_ends_with_1(tmp_path: pathlib.Path) -> None:
    """The table says failed, the details follow, and the report for others has it too."""
    report = tmp_path / "report.xml"
    harness = ("--harness", "tests.cli.test_conformance:Fails")
    result = run(*harness, "--level", "driver", "-k", "the_largest or only_a_pool", "--junit", str(report))
    assert result.exit_code == Code.UNEXPECTED
    assert "1 passed, 1 failed, 0 skipped" in result.stdout
    assert "test_the_largest_message_arrives (since 0.1) failed: " in result.stdout
    assert "MessageTooLarge" in result.stdout
    (suite,) = ElementTree.parse(report).getroot()  # noqa: S314  # it is ours
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")


def test_url_and_largest_win_over_the_harness() -> None:
    """What the command line says replaces what the harness says."""
    url = "fake://elsewhere/?max_message_size=4096"
    result = run(*HARNESS, "--url", url, "--largest", "4096", "--json", "-k", "test_the_largest_message_arrives")
    assert json.loads(result.stdout)["outcome"] == "passed"


def test_a_message_system_in_one_process_needs_no_harness() -> None:
    """A URL alone will do; what the harness could have done is skipped, and says so."""
    result = run("--url", "fake://alone/", "--one-process", "--json", "-k", "contexts_travel or idle_bus")
    found = {line["check"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert found["test_contexts_travel"]["outcome"] == "passed"
    assert found["test_an_idle_bus_comes_back"]["reason"] == "the harness cannot stop, start"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((), "give --url or --harness: where is the message system?"),
        (("--url", "nonsense://x"), "nonsense"),
        (("--url", "fake://x/?max_message_sizes=1"), "max_message_size"),
        (("--harness", "msgbus"), "MODULE:CLASS"),
        (("--harness", "msgbus.target:Target"), "is not a subclass of msgbus.conformance.Harness"),
        (("--harness", "tests.cli.test_conformance:CannotBeMade"), "no such broker"),
        ((*HARNESS, "-k", "no_such_check"), "no check is selected"),
        ((*HARNESS, "-k", "a and"), "pytest could not run the checks"),
    ],
)
def test_wrong_usage_is_exit_code_2(args: tuple[str, ...], text: str) -> None:
    """Wrong options are reported in a line before any check runs."""
    result = run(*args)
    assert result.exit_code == Code.USAGE
    assert text in result.stderr
    assert result.stdout == ""


def test_missing_pytest_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pytest it says how to get it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run(*HARNESS)
    assert result.exit_code == Code.USAGE
    assert "pip install 'msgbus[conformance]'" in result.stderr


BROKEN = """
import msgspec
from msgbus.conformance.fake import FakeHarness
from msgbus.conformance.suite import Conformance  # as a file of tests does
from msgbus.drivers.fake import FakeDriver

send = FakeDriver.send

def shorten(self, address, message, *, mandatory):
    return send(self, address, msgspec.structs.replace(message, ttl=7.0), mandatory=mandatory)

FakeDriver.send = shorten

class Broken(FakeHarness):
    pass
"""


def test_failing_check_shows_its_values(tmp_path: pathlib.Path) -> None:
    """As pytest does, in the command too, and where the harness lies in a file of tests; and what is wrong."""
    command = [
        str(pathlib.Path(sys.executable).parent / "msgbus"),
        "conformance",
        "--harness",
        "broken:Broken",
        "--json",
    ]
    (tmp_path / "broken.py").write_text(BROKEN)
    found = subprocess.run(
        [*command, "-k", "ttl"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    failed = [line for line in map(json.loads, found.stdout.splitlines()) if line["outcome"] == "failed"]
    assert failed, found
    for line in failed:
        assert line["reason"] not in ("", "AssertionError")
    (line,) = [line for line in failed if "without a ttl has one" in line["reason"]]
    assert "assert 6.9" in line["details"] or "assert 7.0" in line["details"]


def test_census_names_what_was_left_open(tmp_path: pathlib.Path) -> None:
    """The other end of a connection, where a socket listens, the path of a file; and that they are more than before."""
    before = Census(FakeHarness())
    with contextlib.ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = server.getsockname()[1]
        opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        path = tmp_path / "left-open"
        opened.enter_context(path.open("w"))
        (left,) = before.compare(broker=False, patient=False)
    assert left.startswith("3 more file descriptors than before the check, among them ")
    assert f"a connection to 127.0.0.1:{port} from 127.0.0.1:" in left
    assert f"a socket at 127.0.0.1:{port}, without a connection" in left
    assert str(path) in left
