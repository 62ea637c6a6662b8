"""The command line: usage, help, and what errors become. tests/functional/test_cli.py has it with a message system."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

import msgbus
from msgbus.cli.app import COMMANDS, cli
from msgbus.cli.errors import Code, code_of, line_of
from msgbus.failures import rebuild_failure, serialize_failure

FAKE = "fake://test-cli"


@pytest.fixture(autouse=True)
def _no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSGBUS_URL", raising=False)


@pytest.fixture(autouse=True)
def _path() -> Iterator[None]:
    """`msgbus serve` puts the current directory on the search path."""
    before = list(sys.path)
    yield
    sys.path[:] = before


def run(*args: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, args)


def fails(result: Result, code: Code) -> str:
    """Check that it failed as it should: one line on stderr, nothing on stdout. Return that line."""
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


# Help


def test_help_lists_commands_and_exit_codes() -> None:
    """What there is to run, and what its end means, stands in the help."""
    result = run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"  {name} " in result.stdout
    for code in (0, 1, 2, 3, 4, 5, 6):
        assert f"\n    {code}  " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_an_example(name: str) -> None:
    """Each command's help shows how it is used, and takes --log-level."""
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    msgbus {name}" in result.stdout
    assert "--log-level" in result.stdout


def test_command_without_arguments_shows_the_help_and_fails() -> None:
    """That a script lost its arguments is not taken for success."""
    result = run()
    assert result.exit_code == Code.USAGE
    assert result.stderr.startswith("Usage: msgbus")


def test_version_is_shown() -> None:
    """The version of msgbus."""
    assert run("--version").stdout.startswith("msgbus 0.")


def imported(*args: str) -> set[str]:
    """The modules that the command imports."""
    code = "import sys\nfrom msgbus.cli import main\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return set(found.stdout.splitlines()[-1].split())


def test_help_is_quick() -> None:
    """Neither a message system's library nor the one that prints tables is imported for it."""
    assert not {"kombu", "amqp", "zmq", "rich", "stevedore"} & imported("--help")


# Usage


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["nonsense"], "nonsense"),
        (["call"], "TOPIC"),
        (["call", "topic"], "METHOD"),
        (["call", "topic", "method", "word"], "key=value"),
        (["call", "topic", "method", "=word"], "key=value"),
        (["call", "topic", "method", "a=1", "a=2"], "a is given twice"),
        (["call", "topic", "method", "--timeout", "0"], "--timeout"),
        (["call", "topic", "method", "--timeout", "soon"], "soon"),
        (["call", "topic", "method", "--delivery", "maybe"], "at_most_once"),
        (["call", "topic", "method", "--version", "one"], "'one' is not a version like 1.2"),
        (["call", "topic", "method", "--config-file", "no-such-file"], "no-such-file"),
        (["call", "topic", "method", "--log-level", "loud"], "loud"),
        (["call", "", "method", "--url", FAKE], "topic"),
        (["call", "t" * 81, "method", "--url", FAKE], "topic"),
        (["fanout-cast", "topic", "method", "--server", "one"], "--server"),
        (["ping", "topic", "--timeout", "-1"], "--timeout"),
        (["serve", "hello:Hello"], "--topic"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(args: list[str], text: str) -> None:
    """The line names what is wrong."""
    line = fails(run(*args), Code.USAGE)
    assert line.startswith("msgbus")
    assert text in line


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("localhost", "begins with DRIVER://"),
        ("rabbit://guest:secret@host:port/", "'host:port' is no host name"),
        ("rabit://localhost", "did you mean 'rabbit'?"),
        ("qpid://localhost", "this release does not have it yet"),
        ("rabbit://localhost/?heart_beat=1", "did you mean heartbeat?"),
        ("rabbit://localhost/?heartbeat=often", "heartbeat"),
    ],
)
def test_wrong_url_is_wrong_usage(url: str, text: str) -> None:
    """The line says what is wrong with the URL, without its password."""
    line = fails(run("call", "topic", "method", "--url", url), Code.USAGE)
    assert text in line
    assert "secret" not in line


def test_nothing_configured_means_the_processes_of_this_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """The driver zmq needs no message system, so that a beginner needs no configuration."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    line = fails(run("call", "topic", "method"), Code.NO_SERVER)
    assert "nobody listens at topic 'topic'" in line
    assert (tmp_path / "msgbus" / "changes").exists()


def test_wrong_configuration_file_is_wrong_usage(tmp_path: pathlib.Path) -> None:
    """A file that cannot be read as configuration, and one with a wrong value."""
    conf = tmp_path / "x.conf"
    conf.write_text("transport_url = fake://\n")
    assert str(conf) in fails(run("call", "topic", "method", "--config-file", str(conf)), Code.USAGE)
    conf.write_text("[DEFAULT]\ntransport_url = fake://\nrpc_response_timeout = long\n")
    assert "rpc_response_timeout" in fails(run("call", "topic", "method", "--config-file", str(conf)), Code.USAGE)


def test_configuration_file_names_the_message_system(tmp_path: pathlib.Path) -> None:
    """transport_url in a file is used, and --url wins over it."""
    conf = tmp_path / "x.conf"
    conf.write_text("[DEFAULT]\ntransport_url = fake://from-the-file\n")
    fails(run("call", "topic", "method", "--config-file", str(conf)), Code.NO_SERVER)
    line = fails(run("call", "topic", "method", "--config-file", str(conf), "--url", "nonsense"), Code.USAGE)
    assert "nonsense" in line


def test_environment_names_the_message_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """MSGBUS_URL does what --url does."""
    monkeypatch.setenv("MSGBUS_URL", FAKE)
    fails(run("call", "topic", "method"), Code.NO_SERVER)


# serve, as far as it gets without a message system


@pytest.mark.parametrize(
    ("source", "endpoint", "text"),
    [
        ("", "cli_mod", "MODULE:CLASS"),
        ("", ":Hello", "MODULE:CLASS"),
        ("", "cli_other:Hello", "there is no module 'cli_other'"),
        ("", "cli_mod.py:Hello", "did you mean cli_mod:Hello?"),
        ("", "cli_mod:Hello", "has no 'Hello'"),
        ("def Hello(): pass", "cli_mod:Hello", "is no class"),
        ("import cli_not_there", "cli_mod:Hello", "No module named 'cli_not_there'"),
        ("1 / 0", "cli_mod:Hello", "ZeroDivisionError"),
        ("class", "cli_mod:Hello", "SyntaxError"),
        ("exit(3)", "cli_mod:Hello", "SystemExit"),
        ("class Hello:\n def __init__(self, x): pass", "cli_mod:Hello", "making a Hello"),
    ],
)
def test_class_that_cannot_be_had_is_said_clearly(
    source: str, endpoint: str, text: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what is wrong with the module or class, and --debug shows the traceback."""
    (tmp_path / "cli_mod.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cli_mod", raising=False)
    assert text in fails(run("serve", endpoint, "--topic", "topic", "--url", FAKE), Code.USAGE)
    if source == "1 / 0":
        assert "Traceback" in run("serve", endpoint, "--topic", "topic", "--url", FAKE, "--debug").stderr


# Verbs, with a server in this process


class Endpoint:
    def echo(self, _ctxt: object, **arguments: object) -> object:
        return arguments

    def fail(self, _ctxt: object, kind: str) -> None:
        raise {"eof": EOFError, "timeout": msgbus.MessagingTimeout, "own": Own, "pipe": BrokenPipeError}[kind](
            "first\nlast"
        )

    def count(self, _ctxt: object) -> Iterator[int]:
        yield 1
        yield 2
        raise Own("no more")


class Own(Exception):
    pass


@pytest.fixture
def server() -> Iterator[None]:
    """A server of the topic cli on the fake message system."""
    from msgbus.cli.options import load_configuration

    transport = msgbus.get_rpc_transport(load_configuration(()), FAKE)
    server = msgbus.get_rpc_server(transport, msgbus.Target(topic="cli", server="one"), [Endpoint()])
    server.start()
    yield
    server.stop()
    server.wait(5)
    transport.cleanup()


@pytest.mark.usefixtures("server")
def test_values_are_json_where_they_parse_else_strings() -> None:
    """Numbers, lists and so on are themselves; what only looks like JSON to some is text."""
    words = ["n=1", "f=1.5", "t=true", "z=null", 'l=[1, "x"]', "w=one", "e=", "q=a=b", 's="1"', "nan=NaN", "o=é"]
    result = run("call", "cli", "echo", *words, "--url", FAKE)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "n": 1,
        "f": 1.5,
        "t": True,
        "z": None,
        "l": [1, "x"],
        "w": "one",
        "e": "",
        "q": "a=b",
        "s": "1",
        "nan": "NaN",
        "o": "é",
    }


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("kind", ["eof", "timeout", "own", "pipe"])
def test_what_the_server_raises_is_exit_code_1(kind: str) -> None:
    """Whatever it is: also what would mean something else if it had been raised here."""
    line = fails(run("call", "cli", "fail", f"kind={kind}", "--url", FAKE), Code.REMOTE)
    assert line.startswith("msgbus call: the server raised ")
    assert line.endswith(": first last")


@pytest.mark.usefixtures("server")
def test_debug_shows_the_traceback() -> None:
    """The server's too."""
    stderr = run("call", "cli", "fail", "kind=own", "--url", FAKE, "--debug").stderr
    assert "raise {" in stderr
    assert "msgbus call: the server raised Own" in stderr


@pytest.mark.usefixtures("server")
def test_multicall_prints_what_came_before_an_error() -> None:
    """The items are there, and the error after them."""
    result = run("multicall", "cli", "count", "--url", FAKE)
    assert result.stdout == "1\n2\n"
    assert result.exit_code == Code.REMOTE


@pytest.mark.usefixtures("server")
def test_casts_print_nothing() -> None:
    """One line in a script, and silence if it went well."""
    for verb in ("cast", "fanout-cast"):
        result = run(verb, "cli", "echo", "a=1", "--url", FAKE)
        assert (result.exit_code, result.output) == (0, "")


@pytest.mark.usefixtures("server")
def test_ping_prints_a_table_or_json() -> None:
    """A table for people, lines of JSON for programs."""
    result = run("ping", "cli", "--url", FAKE)
    assert result.stdout.split()[:2] == ["server", "host"]
    assert result.stdout.splitlines()[1].startswith("one ")
    found = [json.loads(line) for line in run("ping", "cli", "--url", FAKE, "--json").stdout.splitlines()]
    assert [answer["server"] for answer in found] == ["one"]


def test_ping_of_nobody_is_exit_code_3() -> None:
    """As for a call."""
    assert "topic cli-nobody" in fails(run("ping", "cli-nobody", "--timeout", "0.1", "--url", FAKE), Code.NO_SERVER)


# Exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (msgbus.RemoteError("X", "y"), 1),
        (msgbus.NoSuchMethod("x"), 1),
        (msgbus.AccessDenied("x"), 1),
        (RuntimeError("x"), 1),
        (msgbus.InvalidTarget("x", "y"), 2),
        (msgbus.ConfigurationError("x"), 2),
        (msgbus.SerializationError("x"), 2),
        (msgbus.MessageTooLarge("x"), 2),
        (msgbus.MessageUndeliverable("x"), 3),
        (msgbus.MessagingTimeout("x"), 4),
        (msgbus.ServerLost("x"), 4),
        (msgbus.TransportUnavailable("x"), 5),
        (msgbus.TransportBlocked("x"), 5),
        (msgbus.TransportUnavailable("x", maybe_delivered=True), 6),
        (msgbus.OutcomeUnknown("x"), 6),
    ],
)
def test_exit_code_of_each_error(error: Exception, code: int) -> None:
    """As the help and the README have it; and 1 for the same error if a server raised it."""
    assert code_of(error) == code
    with pytest.raises(type(error)) as raised:
        raise error
    assert code_of(rebuild_failure(serialize_failure(raised.value), ())) == Code.REMOTE


def test_error_is_one_line() -> None:
    """However many lines its text has."""
    assert line_of(RuntimeError("a\n  b\tc")) == "RuntimeError: a b c"
    assert line_of(msgbus.RemoteError("X", "a\nb", ["Traceback\n", "more\n"])) == "the server raised X: a b"


# drivers


def test_drivers_lists_ours_with_their_state() -> None:
    """Those that are there, and those that are to come."""
    found = {driver["name"]: driver for driver in map(json.loads, run("drivers", "--json").stdout.splitlines())}
    assert {"kombu", "qpid", "zmq", "fake"} <= set(found)
    assert found["kombu"]["state"] == found["fake"]["state"] == "ready"
    assert "rabbit" in found["kombu"]["aliases"]
    assert "durable" in found["kombu"]["capabilities"]
    table = run("drivers").stdout
    assert table.splitlines()[0].split() == ["driver", "state", "capabilities"]
    assert "kombu (amqp, rabbit)" in table


def test_drivers_imports_no_library_of_a_driver() -> None:
    """To look whether a library is there, nobody has to run it."""
    assert not {"kombu", "amqp", "zmq", "proton"} & imported("drivers")


def test_drivers_tells_of_a_missing_library_and_of_plug_ins(tmp_path: pathlib.Path) -> None:
    """A missing library comes with the command that installs it; a plug-in is listed, and so is a broken one."""
    info = tmp_path / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[msgbus.drivers]\nplug = plug:Plug\nbroken = plug:Broken\n")
    (tmp_path / "plug.py").write_text("from msgbus.drivers.fake import FakeDriver\nclass Plug(FakeDriver): pass\n")
    code = (
        "import sys\nfrom importlib import util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'kombu' else find(name, *more)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\nfrom msgbus.cli import main\nmain()"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, "drivers", "--json"], capture_output=True, text=True, check=True
    )
    state = {driver["name"]: driver["state"] for driver in map(json.loads, found.stdout.splitlines())}
    assert state["kombu"] == "library missing: pip install kombu"
    assert state["plug"] == "ready"
    assert state["broken"].startswith("cannot be loaded: ")
    assert "Traceback" not in found.stderr
