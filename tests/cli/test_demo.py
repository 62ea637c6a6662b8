"""`msgbus demo` in one process. tests/functional/test_cli.py has it with processes and a message system."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from click.testing import CliRunner

from msgbus.cli import demo_service, demo_steps
from msgbus.cli.app import cli
from msgbus.cli.demo_service import Process, Service
from msgbus.cli.demo_steps import STEPS
from msgbus.cli.errors import Code
from msgbus.cli.own_servers import Plan, start_processes
from msgbus.drivers.fake import get_bus
from msgbus.exceptions import TransportBlocked
from tests.cli.test_cli import run

FAKE = "fake://msgbus-demo/"
"""In memory: the tests break what the servers run, which they could not in other processes."""


@pytest.fixture(autouse=True)
def _no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSGBUS_URL", raising=False)


def steps_of(stdout: str) -> dict[str, dict[str, Any]]:
    """The steps that --json prints, by name."""
    return {step["name"]: step for step in map(json.loads, stdout.splitlines())}


def test_demo_needs_no_message_system_and_prints_each_step_as_json() -> None:
    """Without anything configured all steps go as they should; each is a line of JSON with what really came."""
    result = run("demo", "--json", "--url", FAKE)
    assert (result.exit_code, result.stderr) == (0, "")
    steps = steps_of(result.stdout)
    assert list(steps) == [step.name for step in STEPS]
    assert [step["step"] for step in steps.values()] == list(range(1, len(STEPS) + 1))
    assert all(step["ok"] for step in steps.values())
    assert steps["nobody"]["outcome"]["error"] == "MessageUndeliverable"
    assert set(steps["start"]["outcome"]["servers"]) == {"one", "two", "three"}
    assert steps["call_that_one"]["outcome"] == {"text": "Hello, Ada", "server": "two"}
    assert len(steps["cast"]["outcome"]["noted_by"]) == 1
    assert steps["fanout_cast"]["outcome"]["noted_by"] == ["one", "two", "three"]
    assert steps["multicall"]["outcome"]["items"] == [1, 2, 3, 4, 5]
    assert steps["close_early"]["outcome"]["generator"]["got_to"] < 1000
    assert sum(steps["share"]["outcome"]["calls"].values()) == 30
    assert steps["error"]["outcome"] == {"error": "ZeroDivisionError", "message": "division by zero"}
    assert steps["stop"]["outcome"] == {"items": [1, 2, 3, 4, 5], "ended_in_order": True}
    assert set(steps["go_on"]["outcome"]["calls"]) == {"one", "two"}
    assert steps["gone"]["outcome"]["error"] == "MessagingTimeout"


def test_demo_explains_each_step() -> None:
    """Each step has a title, code, its result, and a reason; the end says that all results were expected."""
    result = run("demo", "--url", "fake://test-demo-people/")
    assert (result.exit_code, result.stderr) == (0, "")
    words = " ".join(result.stdout.split())
    for step in STEPS:
        for text in (step.title, step.code, step.why):
            assert " ".join(text.split()) in words
    assert f"All {len(STEPS)} steps had the expected result." in words
    assert "UNEXPECTED" not in words


def test_demo_never_uses_a_topic_twice() -> None:
    """Nor one that a service could have: two runs at the same time do not meet."""
    url = "fake://test-demo-topics/"
    get_bus(url).fail_next(TransportBlocked("full"), 2)
    topics = {steps_of(run("demo", "--json", "--url", url).stdout)["nobody"]["topic"] for _ in range(2)}
    assert len(topics) == 2
    assert all(topic.startswith("msgbus-demo-") for topic in topics)


class Rogue(Service):
    """A service that does everything wrong."""

    def greet(self, _ctxt: object, name: str) -> dict[str, str]:
        return {"text": f"Go away, {name}", "server": "four"}

    def note(self, _ctxt: object, text: str) -> None:
        pass

    def count(self, _ctxt: object, to: int) -> Iterator[int]:
        yield from range(to, 0, -1)

    def divide(self, _ctxt: object, a: float, b: float) -> float:
        return a

    def work(self, _ctxt: object, parts: int) -> Iterator[int]:
        yield parts


def test_demo_marks_unexpected_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step with a wrong result is marked, with that result; the command ends with 1."""
    monkeypatch.setattr(demo_service, "Service", Rogue)
    monkeypatch.setattr(demo_steps, "SOON", 0.1)
    result = run("demo", "--json", "--url", FAKE)
    wrong = [name for name, step in steps_of(result.stdout).items() if not step["ok"]]
    assert wrong == [step.name for step in STEPS if step.name not in ("nobody", "start", "gone")]
    assert result.exit_code == Code.UNEXPECTED
    words = " ".join(run("demo", "--url", FAKE).stdout.split())
    assert "UNEXPECTED: 'Go away, Ada' from server four" in words
    assert f"{len(wrong)} of {len(STEPS)} steps had an unexpected result: call, call_that_one, " in words


class Impostor(Service):
    """A service whose servers all say that they are server one."""

    def greet(self, _ctxt: object, name: str) -> dict[str, str]:
        return {"text": f"Hello, {name}", "server": "one"}


class Rude(Service):
    """A service that greets in a wrong way."""

    def greet(self, _ctxt: object, name: str) -> dict[str, str]:
        return {"text": f"Go away, {name}", "server": self._server}


@pytest.mark.parametrize(
    ("service", "expected"),
    [(Impostor, ["call_that_one", "share", "go_on"]), (Rude, ["call", "call_that_one"])],
)
def test_demo_checks_each_result(service: type[Service], expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One fault is shown at each step that it affects, and at no other."""
    monkeypatch.setattr(demo_service, "Service", service)
    result = run("demo", "--json", "--url", FAKE)
    assert [name for name, step in steps_of(result.stdout).items() if not step["ok"]] == expected


def test_demo_stops_at_an_error() -> None:
    """What the message system refuses is shown at its step, and then is this command's error."""
    url = "fake://test-demo-error/"
    bus = get_bus(url)
    bus.fail_next(TransportBlocked("it is full"))
    result = run("demo", "--json", "--url", url)
    assert result.exit_code == json.loads(result.stderr)["exit_code"] == Code.AWAY
    (step,) = steps_of(result.stdout).values()
    assert (step["ok"], step["outcome"]["error"]) == (False, "TransportBlocked")
    assert step["text"].startswith("'greet' on topic ")
    assert step["text"].endswith(f" over {url}: it is full")
    bus.fail_next(TransportBlocked("it is full"))
    result = run("demo", "--url", url)
    assert "UNEXPECTED: 'greet' on topic " in result.stdout
    assert f" over {url}: it is full [" in " ".join(result.stdout.split())
    assert result.stderr.startswith("msgbus demo: TransportBlocked: 'greet' on topic ")
    assert result.stderr.endswith(f" over {url}: it is full\n")
    assert STEPS[0].title in result.stdout
    assert STEPS[0].why not in " ".join(result.stdout.split()), "it is not what has been shown"


def test_demo_on_a_narrow_terminal_is_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number stays with its unit, and what goes on with code is indented more than the code."""
    for columns in range(40, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        stdout = CliRunner().invoke(cli, ["demo", "--url", f"fake://test-demo-narrow-{columns}/"]).stdout
        lines = stdout.splitlines()
        assert not [line for line in lines if line.strip() in ("ms]", "s]")]
        assert "\u00a0" not in stdout
        at = next(number for number, line in enumerate(lines) if line.startswith("   msgbus.get_rpc_server("))
        assert lines[at + 1].startswith(" " * 7)
        assert max(map(len, lines)) <= max(columns, 60)
        if columns >= 44:
            break


def _children() -> set[str]:
    """The processes that this one has started, and has not waited for."""
    found: set[str] = set()
    for thread in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # The thread has ended.
            found.update((thread / "children").read_text().split())
    return found


def test_demo_server_that_cannot_start_is_an_error(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The server itself has said why, and none is left."""
    conf = tmp_path / "away.conf"
    conf.write_text("[DEFAULT]\nrpc_response_timeout = 3\n")
    # The port of the discard service: nobody listens there, and no process gets it by chance.
    before = _children()
    plan = Plan("rabbit://guest:guest@127.0.0.1:9/", (str(conf),), None, "msgbus-demo-away", "error", Service, Process)
    with ExitStack() as cleanup, pytest.raises(RuntimeError, match=r"server one did not start.* exit code 5"):
        start_processes(plan, ("one",), cleanup)
    assert "Connection refused" in capfd.readouterr().err
    assert _children() <= before


def test_demo_uses_the_configured_message_system(tmp_path: pathlib.Path) -> None:
    """Only where nothing is, it takes a message system of its own: a configuration that is wrong is an error."""
    conf = tmp_path / "x.conf"
    conf.write_text("[DEFAULT]\ntransport_url = rabit://somewhere/\n")
    assert "'rabbit'" in run("demo", "--config-file", str(conf)).stderr
    assert run("demo", "--url", "nonsense").exit_code == Code.USAGE
    get_bus_url = f"{FAKE}?max_message_size=1"
    conf.write_text(f"[DEFAULT]\ntransport_url = {get_bus_url}\n")
    result = run("demo", "--json", "--config-file", str(conf))
    assert json.loads(result.stderr)["error"] == "MessageTooLarge"
