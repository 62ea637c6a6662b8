"""The command line: usage, help, and what errors become. tests/functional/test_cli.py has it with a message system."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from oslo_config import cfg

import msgbus
from msgbus import options
from msgbus.cli.app import COMMANDS, cli
from msgbus.cli.errors import Code, code_of, details_of, json_line, line_of
from msgbus.cli.tables import print_json, print_value
from msgbus.drivers.fake import FakeDriver
from msgbus.failures import rebuild_failure, serialize_failure
from tests.support import new_conf
from tests.terminal import Terminal

FAKE = "fake://test-cli"
MSGBUS = str(pathlib.Path(sys.executable).parent / "msgbus")


@pytest.fixture(autouse=True)
def _no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSGBUS_URL", raising=False)


@pytest.fixture(autouse=True)
def _path() -> Iterator[None]:
    """`msgbus serve` puts the current directory on the search path."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Commands set the level of the root logger."""
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


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
    for code in (0, 1, 2, 3, 4, 5, 6, 130, 141):
        assert f"\n    {code}  " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_an_example(name: str) -> None:
    """Each command's help shows how it is used, and takes --log-level."""
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    msgbus {name}" in result.stdout
    assert "--log-level" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_mentions_json(name: str) -> None:
    """Each command can talk to programs; a shell's script is for none."""
    assert ("--json" in run(name, "--help").stdout) == (name != "completion")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("args", [("--log-level", "info"), ("--log-level", "INFO")])
def test_log_level_is_taken_before_and_after_the_command(name: str, args: tuple[str, ...]) -> None:
    """Every command takes it in both places, and what stands last counts."""
    # Most commands end then, as something is missing: the level is set before that.
    root = logging.getLogger()
    for words in ([*args, name], [name, *args], ["--debug", name, *args]):
        root.setLevel(logging.NOTSET)
        run(*words, *(["--url", "nonsense"] if name in ("demo", "bench", "top", "stuck") else []))
        assert root.level == logging.INFO, words


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


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_quick(name: str) -> None:
    """As that of all."""
    assert not {"kombu", "amqp", "zmq", "rich", "stevedore", "oslo_config.generator"} & imported(name, "--help")


# Usage


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["nonsense"], "nonsense"),
        (["call"], "TOPIC"),
        (["call", "topic"], "METHOD"),
        (["call", "topic", "method", "word"], "KEY=VALUE"),
        (["call", "topic", "method", "=word"], "KEY=VALUE"),
        (["call", "topic", "method", "a=1", "a=2"], "a is given twice"),
        (["call", "topic", "method", "--timeout", "0"], "--timeout"),
        (["call", "topic", "method", "--timeout", "soon"], "'soon' is not a valid number of seconds"),
        (["multicall", "topic", "method", "--deadline", "soon"], "'soon' is not a valid number of seconds"),
        (["ping", "topic", "--timeout", "soon"], "'soon' is not a valid number of seconds"),
        (["serve", "hello:Hello", "--topic", "topic", "--drain", "soon"], "'soon' is not a valid number of seconds"),
        (["call", "topic", "method", "--delivery", "maybe"], "at_most_once"),
        (["call", "topic", "method", "--version", "one"], "'one' is not a version like 1.2"),
        (["call", "topic", "method", "--config-file", "no-such-file"], "no-such-file"),
        (["call", "topic", "method", "--log-level", "loud"], "loud"),
        (["call", "", "method", "--url", FAKE], "topic"),
        (["call", "t" * 81, "method", "--url", FAKE], "topic"),
        (["fanout-cast", "topic", "method", "--server", "one"], "--server"),
        (["ping", "topic", "--timeout", "-1"], "--timeout"),
        (["ping", "topic", "--timeout", "inf"], "'inf' is not a valid number of seconds"),
        (["top", "topic", "--interval", "1e10", "--url", FAKE], "'1e10' is not a valid number of seconds"),
        (["serve", "hello:Hello", "--topic", "topic", "--drain", "inf"], "'inf' is not a valid number of seconds"),
        (["call", "topic", "method", f"a={'[' * 120_000}"], "the argument a is nested too deep"),
        (["notify", "topic", "event", "[" * 120_000], "it is nested too deep"),
        (["serve", "hello:Hello"], "--topic"),
        (["serve", "hello:Hello", "--topic", "topic", "--server", ""], "'--server': it is empty"),
        (["call", "topic", "method", "--url", ""], "it is empty"),
        (["notify", "topic", "event", "1", "--url", ""], "it is empty"),
        (["conformance", "--url", "", "--harness", "tests:Harness"], "it is empty"),
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
        ("rabbit://guest:secret@host:port/", "'host:port' is not a host name"),
        ("rabit://localhost", "did you mean 'rabbit'?"),
        ("qpidd://localhost", "did you mean 'qpid'?"),
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
    assert "nobody listens at topic 'topic' (exchange 'msgbus'): over ZeroMQ none of the known processes" in line
    assert (tmp_path / "msgbus" / "changes").exists()


def test_wrong_configuration_file_is_wrong_usage(tmp_path: pathlib.Path) -> None:
    """A file that cannot be read as configuration, and one with a wrong value."""
    conf = tmp_path / "x.conf"
    conf.write_text("transport_url = fake://\n")
    assert str(conf) in fails(run("call", "topic", "method", "--config-file", str(conf)), Code.USAGE)
    conf.write_text("[DEFAULT]\ntransport_url = fake://\nrpc_response_timeout = long\n")
    assert "rpc_response_timeout" in fails(run("call", "topic", "method", "--config-file", str(conf)), Code.USAGE)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("[DEFAULT]\nrpc_response_timeout = long\n", ["rpc_response_timeout", "'long' is not a number"]),
        ("[DEFAULT]\nrpc_send_window = 6x\n", ["rpc_send_window", "'6x' is not a whole number"]),
        ("[DEFAULT]\nrpc_codec = xml\n", ["rpc_codec", "json, msgpack", "'xml'"]),
        ("[msgbus_fake]\nmax_message_size = 6x\n", ["max_message_size", "'6x' is not a whole number"]),
    ],
)
def test_wrong_value_in_a_file_is_reported_in_words(lines: str, words: list[str], tmp_path: pathlib.Path) -> None:
    """The file, the option, the value and what is valid; no inner object of oslo.config's."""
    conf = tmp_path / "it's.conf"
    conf.write_text(lines)
    line = fails(run("call", "topic", "m", "--url", FAKE, "--config-file", str(conf)), Code.USAGE)
    for word in (str(conf), *words):
        assert word in line
    assert "LocationInfo" not in line


def misspelt(lines: str, tmp_path: pathlib.Path, *args: str) -> list[str]:
    """What the command logs of a configuration file."""
    conf = tmp_path / "x.conf"
    conf.write_text(lines)
    found = subprocess.run(
        [MSGBUS, "call", "topic", "m", "--url", FAKE, "--config-file", str(conf), *args],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == Code.NO_SERVER
    *logged, _error = found.stderr.splitlines()
    return [line.partition(f"{conf}: ")[2] for line in logged]


def test_misspelt_option_names_are_warned_of(tmp_path: pathlib.Path) -> None:
    """A group, or an option of group DEFAULT, that nobody knows and that looks like one of ours; not with --json."""
    lines = "[DEFAULT]\nrpc_reponse_timeout = 3\n[msgbus_komby]\nheartbeat = 3\n[mgsbus_zmq]\nlisten = x\n"
    assert misspelt(lines, tmp_path) == [
        "there is no group [msgbus_komby]; did you mean [msgbus_kombu]?",
        "there is no group [mgsbus_zmq]; did you mean [msgbus_zmq]?",
        "there is no option rpc_reponse_timeout; did you mean rpc_response_timeout?",
    ]
    assert misspelt(lines, tmp_path, "--json") == []


def test_options_of_others_are_not_warned_of(tmp_path: pathlib.Path) -> None:
    """A file is shared: what belongs to somebody else, or has been ours in older systems, is no mistake."""
    lines = (
        "[DEFAULT]\nrpc_response_timeout = 3\nrpc_thread_pool_size = 3\nrabbit_host = a\nrpc_conn_pool_size = 3\n"
        "rpc_cast_timeout = 3\ntransport_url = fake://\nlog_file = x\nallowed_rpc_exception_modules = a\n"
        "[msgbus_kombu]\nheartbeat = 3\n[oslo_messaging_rabbit]\nx = 1\n[database]\nrpc_reponse_timeout = 3\n"
    )
    assert misspelt(lines, tmp_path) == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"[DEFAULT]\ntransport_url = fake://u:s3cr3t\xff@h\n", "is not UTF-8"),
        (b" fake://u:s3cr3t@h\n", "Unexpected continuation line"),
        (b"[DEFAULT]\ns3cr3t\n", "No ':' or '=' found in assignment"),
        (b"[DEFAULT]\ntransport_url = fake://u:pa$s3cr3t@h\n", "a dollar sign in a value is written twice"),
        (b"[DEFAULT]\ntransport_url = fake://u:s3cr3t@h\nrpc_response_timeout = soon\n", "'soon' is not a number"),
    ],
)
def test_unreadable_configuration_file_is_wrong_usage(content: bytes, text: str, tmp_path: pathlib.Path) -> None:
    """One line names the file and what is wrong with it, without the line in which a password may be."""
    conf = tmp_path / "x.conf"
    conf.write_bytes(content)
    line = fails(run("call", "topic", "method", "--config-file", str(conf)), Code.USAGE)
    assert line.startswith("msgbus call: ConfigurationError: ")
    assert str(conf) in line
    assert text in line
    assert "s3cr3t" not in line


def test_configuration_file_selects_the_message_system(tmp_path: pathlib.Path) -> None:
    """transport_url in a file is used, and --url wins over it."""
    conf = tmp_path / "x.conf"
    conf.write_text("[DEFAULT]\ntransport_url = fake://from-the-file\n")
    fails(run("call", "topic", "method", "--config-file", str(conf)), Code.NO_SERVER)
    line = fails(run("call", "topic", "method", "--config-file", str(conf), "--url", "nonsense"), Code.USAGE)
    assert "nonsense" in line


def test_environment_selects_the_message_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """MSGBUS_URL does what --url does."""
    monkeypatch.setenv("MSGBUS_URL", FAKE)
    fails(run("call", "topic", "method"), Code.NO_SERVER)
    monkeypatch.setenv("MSGBUS_URL", "")  # As if it were not set.
    assert "give --url or --harness" in fails(run("conformance"), Code.USAGE)


# serve, as far as it gets without a message system


@pytest.mark.parametrize(
    ("source", "endpoint", "text"),
    [
        ("", "cli_mod", "MODULE:CLASS"),
        ("", ":Hello", "MODULE:CLASS"),
        ("", "cli_other:Hello", "there is no module 'cli_other'"),
        ("", "cli_mod.py:Hello", "did you mean cli_mod:Hello?"),
        ("", "cli_mod:Hello", "has no 'Hello'"),
        ("def Hello(): pass", "cli_mod:Hello", "is not a class"),
        ("import cli_not_there", "cli_mod:Hello", "No module named 'cli_not_there'"),
        ("1 / 0", "cli_mod:Hello", "ZeroDivisionError"),
        ("class", "cli_mod:Hello", "SyntaxError"),
        ("exit(3)", "cli_mod:Hello", "SystemExit"),
        ("class Hello:\n def __init__(self): 1 / 0", "cli_mod:Hello", "cli_mod.py, line 2)"),
        ("class Hello:\n target = 'hello'", "cli_mod:Hello", "cannot be served: "),
    ],
)
def test_error_says_why_a_class_cannot_be_used(
    source: str, endpoint: str, text: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what is wrong with the module or class, and --debug shows the traceback."""
    (tmp_path / "cli_mod.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cli_mod", raising=False)
    assert text in fails(run("serve", endpoint, "--topic", "topic", "--url", FAKE), Code.USAGE)
    if source == "1 / 0":
        assert "Traceback" in run("serve", endpoint, "--topic", "topic", "--url", FAKE, "--debug").stderr


def test_error_says_what_to_do_if_a_class_needs_arguments(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names no file of msgbus's own, where nothing is wrong."""
    (tmp_path / "cli_mod.py").write_text("class Hello:\n def __init__(self, stock): pass")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cli_mod", raising=False)
    line = fails(run("serve", "cli_mod:Hello", "--topic", "topic", "--url", FAKE), Code.USAGE)
    assert "missing 1 required positional argument: 'stock'; give its arguments defaults, or write a program" in line
    assert "get_rpc_server" in line
    assert "serve.py" not in line


# Verbs, with a server in this process


class Endpoint:
    def echo(self, _ctxt: object, **arguments: object) -> object:
        return arguments

    def fail(self, _ctxt: object, kind: str) -> None:
        raise {"eof": EOFError, "timeout": msgbus.MessagingTimeout, "own": Own, "pipe": BrokenPipeError}[kind](
            "first\nlast"
        )

    def upto(self, _ctxt: object, to: int) -> Iterator[int]:
        yield from range(1, to + 1)

    def sleep(self, _ctxt: object) -> None:
        time.sleep(0.5)

    def count(self, _ctxt: object) -> Iterator[int]:
        yield 1
        yield 2
        raise Own("no more")


class Own(Exception):
    pass


@pytest.fixture
def server() -> Iterator[None]:
    """A server of the topic cli on the fake message system."""
    from msgbus.cli.connecting import load_configuration

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
@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["call", "cli-nobody", "echo"], "MessageUndeliverable"),
        (["call", "cli", "nothing"], "NoSuchMethod"),
        (["cast", "cli", "echo", "--url", "nonsense"], "InvalidTransportURL"),
    ],
)
def test_error_begins_with_the_name_of_its_class(args: list[str], name: str) -> None:
    """The tables of errors go by it; an error that the server has answered with has its name there too."""
    result = run(*args, *([] if "--url" in args else ["--url", FAKE]))
    assert result.stderr.startswith(f"msgbus {args[0]}: {name}: ")


def test_values_that_json_lacks_are_printed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """NaN is not printed as null, half a character is no error, and bytes are base64."""
    value = [float("nan"), float("-inf"), "\ud800", b"\xff", {"a": None}]
    expected = '[NaN,-Infinity,"\\ud800","/w==",{"a":null}]\n'
    print_value(value, as_json=True)
    assert capsys.readouterr().out == expected
    print_json([value])
    assert capsys.readouterr().out == expected


@pytest.mark.usefixtures("server")
def test_call_of_a_generator_prints_its_last_item() -> None:
    """As the help says."""
    assert run("call", "cli", "upto", "to=3", "--url", FAKE).stdout == "3\n"
    assert "last item" in run("call", "--help").stdout


class Ending(FakeDriver):
    """Says when it is closed."""

    def close(self) -> None:
        click.echo("closed", err=True)
        super().close()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["cli-nobody", "echo"], "MessageUndeliverable"),
        (["cli", "sleep", "--timeout", "0.1"], "MessagingTimeout"),
    ],
)
def test_error_is_reported_before_the_connection_is_closed(
    args: list[str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing may take seconds if the message system is lost. The error is reported once."""
    monkeypatch.setattr("msgbus.base_transport.load_driver_class", lambda _name: Ending)
    told, closed = run("call", *args, "--url", FAKE).stderr.splitlines()
    assert told.startswith(f"msgbus call: {error}: ")
    assert closed == "closed"


@pytest.mark.usefixtures("server")
def test_debug_shows_the_traceback() -> None:
    """The server's too."""
    stderr = run("call", "cli", "fail", "kind=own", "--url", FAKE, "--debug").stderr
    assert "raise {" in stderr
    assert "msgbus call: the server raised Own" in stderr


@pytest.mark.usefixtures("server")
def test_multicall_prints_the_items_before_an_error() -> None:
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


@pytest.mark.usefixtures("server")
def test_ping_of_an_unknown_number_is_not_strictly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the message system cannot count its servers, it says so, and --strict cannot be satisfied."""
    assert run("ping", "cli", "--url", FAKE, "--strict").stderr == "1 of 1 answered\n"
    monkeypatch.setattr(FakeDriver, "capabilities", FakeDriver.capabilities - {"inspect"})
    result = run("ping", "cli", "--url", FAKE, "--timeout", "2")
    assert (result.exit_code, result.stderr) == (0, "1 of an unknown number answered\n")
    result = run("ping", "cli", "--url", FAKE, "--timeout", "2", "--strict")
    assert result.exit_code == Code.NO_SERVER
    assert "MessageUndeliverable: 1 of an unknown number answered" in result.stderr


def test_ping_without_any_server_is_exit_code_3() -> None:
    """As for a call. The line says over which message system it was looked for: another may have been meant."""
    line = fails(run("ping", "cli-nobody", "--timeout", "0.5", "--url", FAKE), Code.NO_SERVER)
    assert "topic cli-nobody" in line
    assert f"over the in-memory message system {FAKE}/: no server is known there" in line


def test_ping_that_a_known_server_does_not_answer_does_not_call_it_missing() -> None:
    """The message system knows it. So it is said to be frozen or the like, and not to be started."""
    transport = msgbus.get_rpc_transport(new_conf(rpc_ping_enabled=False), FAKE)
    server = msgbus.get_rpc_server(transport, msgbus.Target(topic="cli-mute", server="one"), [Endpoint()])
    server.start()
    line = fails(run("ping", "cli-mute", "--timeout", "0.5", "--url", FAKE), Code.NO_SERVER)
    server.stop()
    server.wait(5)
    transport.cleanup()
    assert "(0 of 1 answered)" in line
    assert "it is frozen, has just stopped, or cannot answer: too busy" in line
    assert "configured without rpc_ping_enabled" in line
    assert "running" not in line


def test_ping_of_a_server_that_does_not_answer_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says that one which is busy does not answer either."""
    monkeypatch.setattr(msgbus.RPCClient, "ping", lambda _client, _timeout: msgbus.Answers())
    line = fails(run("ping", "cli", "--server", "two", "--timeout", "0.5", "--url", FAKE), Code.NO_SERVER)
    assert "server two of topic cli did not answer" in line
    assert "it is not running, or too busy to answer" in line


def test_reload_without_watchfiles_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is served."""
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    line = fails(run("serve", "hello:Hello", "--topic", "cli", "--reload", "--url", FAKE), Code.USAGE)
    assert "pip install 'msgbus[reload]'" in line


# Gather


class Asked:
    """What "one" of the topic "cli-gather" serves."""

    def status(self, _ctxt: Any, of: str = "all") -> dict[str, Any]:
        return {"of": of, "text": "\x1b[31mred"}

    def fail(self, _ctxt: Any) -> Any:
        raise KeyError("no \x1b[31msuch")

    @msgbus.validated
    def total(self, _ctxt: Any, sizes: list[int], name: str = "") -> int:
        return sum(sizes)


class AskedToo(Asked):
    """The same of "two", where one method does not raise."""

    def fail(self, _ctxt: Any) -> Any:
        return 1


@pytest.fixture
def asked() -> Iterator[None]:
    """Servers "one" and "two" of the topic "cli-gather", and "three" of another."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[])
    transport = msgbus.get_rpc_transport(conf, FAKE)
    targets = {"one": Asked(), "two": AskedToo(), "three": Asked()}
    servers = []
    for name, endpoint in targets.items():
        topic = "cli-further" if name == "three" else "cli-gather"
        servers.append(msgbus.get_rpc_server(transport, msgbus.Target(topic=topic, server=name), [endpoint]))
        servers[-1].start()
    yield
    for server in servers:
        server.wait(5)
    transport.cleanup()


@pytest.mark.usefixtures("asked")
def test_gather_prints_each_answer_with_its_server() -> None:
    """A line for each, and how many there should be; what would change a terminal is escaped."""
    result = run("gather", "cli-gather", "status", "of=disks", "--url", FAKE, "--strict")
    assert (result.exit_code, result.stderr) == (0, "2 of 2 answered\n")
    lines = [f'{name}: {{"of":"disks","text":"\\u001b[31mred"}}' for name in ("one", "two")]
    assert sorted(result.stdout.splitlines()) == lines


@pytest.mark.usefixtures("asked")
def test_gather_as_json_ends_with_the_numbers() -> None:
    """Each answer has its topic, its server, how long it took, and a value or an error."""
    result = run("gather", "cli-gather", "fail", "--url", FAKE, "--json")
    assert (result.exit_code, result.stderr) == (Code.REMOTE, "")
    *answers, numbers = [json.loads(line) for line in result.stdout.splitlines()]
    assert numbers == {"answered": 2, "expected": 2}
    found = {answer["server"]: answer for answer in answers}
    assert found["two"]["value"] == 1
    assert (found["one"]["error"]["error"], found["one"]["error"]["exit_code"]) == ("KeyError", 1)
    assert all(answer["topic"] == "cli-gather" and answer["seconds"] > 0 for answer in answers)


@pytest.mark.usefixtures("asked")
def test_gather_with_an_error_is_exit_code_1() -> None:
    """The others' answers are printed; the error is a line, too."""
    result = run("gather", "cli-gather", "fail", "--url", FAKE)
    assert (result.exit_code, result.stderr) == (Code.REMOTE, "2 of 2 answered\n")
    found = sorted(result.stdout.splitlines())
    assert found[0].startswith("one: the server raised KeyError: ")
    assert "\x1b" not in found[0]
    assert found[1] == "two: 1"


@pytest.mark.usefixtures("asked")
def test_gather_of_many_topics_names_them() -> None:
    """Servers of two topics may have one name."""
    result = run("gather", "cli-gather", "status", "--also", "cli-further", "--url", FAKE)
    assert (result.exit_code, result.stderr) == (0, "3 of 3 answered\n")
    names = sorted(line.partition(": ")[0] for line in result.stdout.splitlines())
    assert names == ["one of cli-gather", "three of cli-further", "two of cli-gather"]


@pytest.mark.usefixtures("asked")
def test_gather_is_strict_where_it_is_asked_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """If not all have answered, or nobody knows whether they have, it ends with 3 after the answers."""
    monkeypatch.setattr(FakeDriver, "capabilities", FakeDriver.capabilities - {"inspect"})
    words = ["gather", "cli-gather", "status", "--url", FAKE, "--timeout", "2"]
    result = run(*words)
    assert (result.exit_code, result.stderr) == (0, "2 of an unknown number answered\n")
    result = run(*words, "--strict")
    assert result.exit_code == Code.NO_SERVER
    assert "MessageUndeliverable: 2 of an unknown number answered, of topic cli-gather over " in result.stderr
    assert len(result.stdout.splitlines()) == 2


def test_gather_without_any_server_is_exit_code_3() -> None:
    """At once. The line says over which message system they were looked for."""
    line = fails(run("gather", "cli-nobody", "status", "--timeout", "3600", "--url", FAKE), Code.NO_SERVER)
    assert f"0 of 0 answered, of topic cli-nobody over the in-memory message system {FAKE}" in line
    assert "no server is known there; is it started, over the same message system" in line


@pytest.mark.usefixtures("asked")
def test_an_argument_that_looks_like_json_and_is_not_is_named_where_it_is_refused() -> None:
    """It was sent as a string. Where a string is right, and where other things are wrong, nothing is said of it."""
    hint = "sizes: expected array, got str; sizes was sent as a string, since it is no valid JSON: "
    line = fails(run("call", "cli-gather", "total", "sizes=[1, 2", "--url", FAKE), Code.REMOTE)
    assert hint in line
    result = run("gather", "cli-gather", "total", "sizes=[1, 2", "--url", FAKE)
    assert [hint in line for line in result.stdout.splitlines()] == [True, True]
    result = run("call", "cli-gather", "total", "sizes=[1, 2]", "name=[draft", "--url", FAKE)
    assert (result.exit_code, result.stdout) == (0, "3\n")
    line = fails(run("call", "cli-gather", "total", "sizes=many", "name=[draft", "--url", FAKE), Code.REMOTE)
    assert line.endswith("sizes: expected array, got str")


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
        (msgbus.TransportBlocked("x", maybe_delivered=True), 6),
        (msgbus.OutcomeUnknown("x"), 6),
    ],
)
def test_exit_code_of_each_error(error: Exception, code: int) -> None:
    """As the help and the table of errors have it; and 1 for the same error if a server raised it."""
    assert code_of(error) == code
    with pytest.raises(type(error)) as raised:
        raise error
    assert code_of(rebuild_failure(serialize_failure(raised.value), ())) == Code.REMOTE


def test_error_is_one_line() -> None:
    """However many lines its text has."""
    assert line_of(RuntimeError("a\n  b\tc")) == "RuntimeError: a b c"
    assert line_of(msgbus.RemoteError("X", "a\nb", ["Traceback\n", "more\n"])) == "the server raised X: a b"


def test_json_error_is_one_line_of_json() -> None:
    """With --json a program can read what is on stderr: the class, the text, the exit code, and what it carries."""
    line = fails(run("call", "cli-nobody", "echo", "--url", FAKE, "--json"), Code.NO_SERVER)
    found = json.loads(line)
    assert "cli-nobody" in found.pop("message")
    assert found == {"error": "MessageUndeliverable", "exit_code": 3, "remote": False}


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("own", {"error": "RemoteError", "exc_type": "Own", "value": "first\nlast"}),
        ("eof", {"error": "EOFError"}),
    ],
)
def test_json_error_of_the_server(kind: str, expected: dict[str, Any]) -> None:
    """It says that the server raised it, and what."""
    found = json.loads(fails(run("call", "cli", "fail", f"kind={kind}", "--url", FAKE, "--json"), Code.REMOTE))
    assert found.pop("message").endswith(": first last")
    assert found == {**expected, "exit_code": 1, "remote": True}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_json_error_of_wrong_usage(name: str) -> None:
    """Also where the command line is so wrong that nothing else of it can be read."""
    found = json.loads(fails(run(name, "--json", "--nonsense"), Code.USAGE))
    assert "--nonsense" in found.pop("message")
    assert found == {"error": "NoSuchOption", "exit_code": 2}


def test_json_error_has_the_traceback_with_debug() -> None:
    """In the same line: nothing but the log is on stderr besides."""
    result = run("call", "cli-nobody", "echo", "--url", FAKE, "--json", "--debug")
    found = json.loads(result.stderr.splitlines()[-1])
    assert found["traceback"].startswith("Traceback")
    assert "Traceback" not in "".join(result.stderr.splitlines()[:-1])


def test_json_error_can_carry_anything() -> None:
    """Text that is no UTF-8, values that JSON does not have, and dicts whose keys are no strings."""
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    for value in ([b"\xff", "\udcff"], [float("nan")], {b"key": 1}, cyclic):
        line = json_line(details_of(msgbus.RemoteError("X", value)))
        found = json.loads(line, parse_constant=lambda name: pytest.fail(f"JSON has no {name}"))
        assert (found["exc_type"], found["exit_code"], found["remote"]) == ("X", 1, True)


# Terminals


@pytest.fixture
def own_process(tmp_path: pathlib.Path) -> list[str]:
    """The command in a process of its own that has a server on the fake message system."""
    (tmp_path / "with_server.py").write_text(
        "import sys, time\n"
        "import msgbus\n"
        "from msgbus.cli import main\n"
        "from msgbus.cli.connecting import load_configuration\n"
        "class Endpoint:\n"
        "    def echo(self, _ctxt, **arguments):\n"
        "        return arguments\n"
        "    def count(self, _ctxt):\n"
        "        yield {'n': 1}\n"
        "        yield 2\n"
        "    def wide(self, _ctxt):\n"
        "        yield {'x': 300 * 'x'}\n"
        "    def sleep(self, _ctxt):\n"
        "        if '--json' in sys.argv:\n"
        "            print('sleeping', flush=True)\n"
        "        time.sleep(60)\n"
        f"transport = msgbus.get_rpc_transport(load_configuration(()), {FAKE!r})\n"
        "target = msgbus.Target(topic='cli', server='one')\n"
        "server = msgbus.get_rpc_server(transport, target, [Endpoint()])\n"
        "server.start()\n"
        "main()\n"
    )
    return [sys.executable, str(tmp_path / "with_server.py")]


def test_result_is_laid_out_on_a_terminal(own_process: list[str]) -> None:
    """For people: coloured, and on several lines if it is wide. With --json, and into a pipe, one plain line."""
    call = [*own_process, "call", "cli", "echo", 'a=[1, "\\u001b[31mred"]', "--url", FAKE]
    with Terminal(call, os.environ) as terminal:
        assert terminal.finish() == 0
    assert terminal.screen == ['{"a": [1, "\\u001b[31mred"]}']
    assert "\x1b[" in terminal.raw
    assert "\x1b[31m" not in terminal.raw
    line = '{"a":[1,"\\u001b[31mred"]}'
    with Terminal([*call, "--json"], os.environ) as terminal:
        assert terminal.finish() == 0
    assert terminal.raw == f"{line}\r\n"
    found = subprocess.run(call, env={**os.environ, "FORCE_COLOR": "1"}, capture_output=True, text=True, check=True)
    assert found.stdout == f"{line}\n"
    # {"a": "xxx"} has 9 characters besides.
    for count, lines in ((191, 1), (192, 3)):
        with Terminal([*own_process, "call", "cli", "echo", f"a={count * 'x'}", "--url", FAKE], os.environ) as terminal:
            assert terminal.finish() == 0
        assert len(terminal.screen) == lines


def test_items_are_laid_out_on_a_terminal(own_process: list[str]) -> None:
    """Coloured, and each on one line, however wide."""
    wide = [*own_process, "multicall", "cli", "wide", "--url", FAKE]
    with Terminal(wide, os.environ) as terminal:
        assert terminal.finish() == 0
    assert terminal.screen == ['{"x": "' + 300 * "x" + '"}']
    multicall = [*own_process, "multicall", "cli", "count", "--url", FAKE]
    with Terminal(multicall, os.environ) as terminal:
        assert terminal.finish() == 0
    assert terminal.screen == ['{"n": 1}', "2"]
    with Terminal([*multicall, "--json"], os.environ) as terminal:
        assert terminal.finish() == 0
    assert terminal.raw == '{"n":1}\r\n2\r\n'


def test_progress_is_shown_after_two_seconds_and_vanishes() -> None:
    """On stderr, a terminal. It leaves nothing but the error, and the log lines that came meanwhile."""
    ping = [MSGBUS, "ping", "cli-nobody", "--url", FAKE, "--timeout", "4"]
    with Terminal(ping, os.environ, subprocess.PIPE) as terminal:
        terminal.wait_for("gathering answers (")
        terminal.wait_for(" s)")
        assert re.findall(r"gathering answers \((\d+) s\)", terminal.raw)[0] in ("2", "3")
        assert terminal.finish() == Code.NO_SERVER
        assert terminal.process.stdout is not None
        assert terminal.process.stdout.read() == b""
        terminal.process.stdout.close()
    said = "msgbus ping: MessageUndeliverable: no server of topic cli-nobody answered within 4 s over "
    assert " ".join(" ".join(terminal.screen).split()).startswith(said)
    assert "\x1b[?25l" not in terminal.raw, "a process that is killed would leave the cursor hidden"


def test_no_progress_if_it_is_quick_or_with_json_or_without_a_terminal() -> None:
    """Less than two seconds are nothing to talk about, and programs want none of it."""
    ping = [MSGBUS, "ping", "cli-nobody", "--url", FAKE, "--timeout"]
    for words in ([*ping, "1"], [*ping, "2.8", "--json"]):
        with Terminal(words, os.environ) as terminal:
            terminal.finish()
        assert "gathering" not in terminal.raw
        assert len(terminal.raw.splitlines()) <= 3, "the error alone"
    env = {**os.environ, "FORCE_COLOR": "1"}
    found = subprocess.run([*ping, "2.8"], env=env, capture_output=True, text=True, check=False)
    assert found.stderr.count("\n") == 1
    assert "no server of topic cli-nobody answered within 2.8 s" in found.stderr


def test_log_lines_stay_above_the_progress() -> None:
    """What is logged while progress is shown is whole, on lines of its own."""
    code = (
        "import logging, threading\n"
        "from msgbus.cli import main\n"
        "threading.Timer(2.7, lambda: logging.warning('in between')).start()\n"
        "main()"
    )
    ping = [sys.executable, "-c", code, "ping", "cli-nobody", "--url", FAKE, "--timeout", "3.2"]
    with Terminal(ping, os.environ) as terminal:
        terminal.wait_for("gathering")
        assert terminal.finish() == Code.NO_SERVER
    logged, *error = terminal.screen
    assert logged.endswith(" WARNING root: in between")
    assert logged[:2] == "20"
    assert error[0].startswith("msgbus ping: ")


def test_ctrl_c_removes_the_progress() -> None:
    """The line is empty, for the shell's prompt."""
    with Terminal([MSGBUS, "ping", "cli-nobody", "--url", FAKE, "--timeout", "30"], os.environ) as terminal:
        terminal.wait_for("gathering")
        assert terminal.finish(signal.SIGINT) == 128 + signal.SIGINT
    assert terminal.screen == []


def test_ctrl_c_in_a_call_says_that_the_server_continues(own_process: list[str]) -> None:
    """The server finishes the method. With --json there is only the exit code."""
    call = [*own_process, "call", "cli", "sleep", "--url", FAKE]
    with Terminal(call, os.environ) as terminal:
        terminal.wait_for("waiting for the answer of sleep")
        assert terminal.finish(signal.SIGINT) == 128 + signal.SIGINT
    assert terminal.screen == ["msgbus call: interrupted; if a server is running sleep, it continues"]
    with Terminal([*call, "--json"], os.environ) as terminal:
        terminal.wait_for("sleeping")
        assert terminal.finish(signal.SIGINT) == 128 + signal.SIGINT
    assert terminal.screen == ["sleeping"]


def test_long_error_is_wrapped_on_a_terminal_only() -> None:
    """Between words, and what follows the first line is indented; into a pipe it is one line."""
    code = "import os\nos.environ['COLUMNS'] = '60'\nfrom msgbus.cli import main\nmain()"
    command = [sys.executable, "-c", code, "cast", "cli-nobody-at-all", "a-method", "--url", FAKE]
    with Terminal(command, os.environ) as terminal:
        assert terminal.finish() == Code.NO_SERVER
    first, *others = terminal.screen
    assert first.startswith("msgbus cast: MessageUndeliverable: ")
    assert others
    assert all(line.startswith("  ") for line in others)
    assert max(map(len, terminal.screen)) <= 60
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stderr.count("\n") == 1
    assert found.stderr.split() == " ".join(terminal.screen).split()


def test_closed_output_ends_every_command_that_prints() -> None:
    """As with JSON output: with the exit code of SIGPIPE, and nothing on stderr."""
    for name in ("drivers", "demo", "config"):
        read, write = os.pipe()
        os.close(read)
        process = subprocess.run([MSGBUS, name], stdout=write, stderr=subprocess.PIPE, check=False)
        os.close(write)
        assert (process.returncode, process.stderr) == (128 + signal.SIGPIPE, b""), name


# config


def loaded(path: pathlib.Path) -> cfg.ConfigOpts:
    """A configuration of that file, with all options."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(path)], default_config_dirs=[])
    for group, opts in options.list_opts():
        conf.register_opts(opts, group=group)
    return conf


def test_config_prints_every_option_as_a_comment() -> None:
    """Of the core and of each driver, with its help; lines are no longer than people read."""
    sample = run("config").stdout
    for group, opts in options.list_opts():
        section = sample.partition(f"[{group or 'DEFAULT'}]\n")[2].partition("\n[")[0]
        for opt in opts:
            assert f"\n#{opt.dest} =" in section
            assert f"\n# {(opt.help or '?').split()[0]} " in section
    assert max(map(len, sample.splitlines())) <= 120
    assert not [line for line in sample.splitlines() if line and line[0] not in "#["]


def test_config_can_be_loaded_as_it_is_and_uncommented(tmp_path: pathlib.Path) -> None:
    """The file is accepted by oslo.config and by the command; what it names is the default, or a sample of a value."""
    path = tmp_path / "msgbus.conf"
    assert run("config", "--output-file", str(path)).output == ""
    assert "nobody" in fails(run("call", "t", "m", "--config-file", str(path), "--url", FAKE), Code.NO_SERVER)
    as_it_is = loaded(path)
    # <None> stands for an option that has no default.
    lines = path.read_text().splitlines()
    active = [line[1:] if " = " in line and line[1:2].isalpha() and "<None>" not in line else line for line in lines]
    path.write_text("\n".join(active))
    uncommented = loaded(path)
    assert sum(line[:1].isalpha() for line in active) > 20
    for group, opts in options.list_opts():
        for opt in opts:
            values = [(conf[group] if group else conf)[opt.dest] for conf in (as_it_is, uncommented)]
            assert values[1] == (values[0] if opt.sample_default is None else opt.sample_default), opt.dest


def test_config_overwrites_only_with_force(tmp_path: pathlib.Path) -> None:
    """An operator's file is not lost to a slip."""
    path = tmp_path / "msgbus.conf"
    path.write_text("mine")
    assert "--force" in fails(run("config", "--output-file", str(path)), Code.USAGE)
    assert path.read_text() == "mine"
    assert run("config", "--output-file", str(path), "--force").exit_code == 0
    assert path.read_text() == run("config").stdout
    line = fails(run("config", "--output-file", str(tmp_path / "no" / "file")), Code.USAGE)
    assert "No such file or directory" in line


def test_config_as_json_has_what_a_program_needs() -> None:
    """One line for each option: group, name, type, default, choices, limits, help, old names."""
    found = {
        (option["group"], option["name"]): option
        for option in map(json.loads, run("config", "--json").stdout.splitlines())
    }
    assert len(found) == sum(len(opts) for _, opts in options.list_opts())
    timeout = found["DEFAULT", "rpc_response_timeout"]
    assert (timeout["default"], timeout["min"], timeout["secret"]) == (60.0, 0.001, False)
    assert timeout["type"] == "floating point value"
    assert found["DEFAULT", "transport_url"]["secret"]
    assert found["DEFAULT", "rpc_codec"]["choices"] == ["json", "msgpack"]
    assert found["DEFAULT", "executor_thread_pool_size"]["old_names"] == [
        {"group": "DEFAULT", "name": "rpc_thread_pool_size"}
    ]


# completion


def completing(words: Sequence[str]) -> dict[str, str]:
    """The environment in which bash calls the command when Tab is pressed after these words."""
    return {
        **os.environ,
        "_MSGBUS_COMPLETE": "bash_complete",
        "COMP_WORDS": "\n".join(["msgbus", *words]),
        "COMP_CWORD": str(len(words)),
    }


def complete(*words: str) -> list[str]:
    """What it answers."""
    found = subprocess.run([MSGBUS], env=completing(words), capture_output=True, text=True, check=True)
    assert found.stderr == ""
    return [line.partition(",")[2] for line in found.stdout.split()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], list(COMMANDS)),
        (["ca"], ["call", "cast"]),
        (["--log-level", "info", "pi"], ["ping"]),
        (["--log-l"], ["--log-level"]),
        (["call", "topic", "method", "a=1", "--time"], ["--timeout"]),
        (["cast", "topic", "method", "--delivery", ""], ["at_most_once", "at_least_once"]),
        (["ping", "--log-level", "d"], ["debug"]),
        (["call", "--url", "rab"], ["rabbit://"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["call", ""], []),
        (["nonsense", ""], list(COMMANDS)),
    ],
)
def test_completion_offers_commands_options_and_schemes(words: list[str], expected: list[str]) -> None:
    """Commands, options, log levels, policies and the schemes of URLs; nothing for free text."""
    assert complete(*words) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_works_in_bash() -> None:
    """The script that is printed makes a real bash complete by running the command."""
    script = (
        'eval "$(msgbus completion bash)"\n'
        "COMP_WORDS=(msgbus fan) COMP_CWORD=1\n"
        '"$(complete -p msgbus | grep -o "_msgbus[a-z_]*")" msgbus\n'
        'echo "${COMPREPLY[@]}"'
    )
    env = {**os.environ, "PATH": f"{pathlib.Path(MSGBUS).parent}:{os.environ['PATH']}"}
    found = subprocess.run(["bash", "-ec", script], env=env, capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("fanout-cast\n", "")


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o"), ("zsh", "#compdef msgbus"), ("fish", "complete --")]
)
def test_completion_prints_a_script_for_each_shell(shell: str, word: str) -> None:
    """The help says where to put it."""
    assert word in run("completion", shell).stdout
    assert f"  {shell}  " in run("completion", "--help").stdout


@pytest.mark.parametrize("words", [["ca"], ["call", "--time"], ["call", "--url", "r"]])
def test_completion_is_quick(words: list[str]) -> None:
    """Nothing is imported that is slow, not even the other commands."""
    code = (
        "import atexit, sys\nfrom msgbus.cli import main\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\nmain()"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=completing(words), capture_output=True, text=True, check=True
    )
    modules = set(found.stderr.split())
    assert not {"kombu", "zmq", "rich", "stevedore", "oslo_config.generator", "msgbus.cli.serve"} & modules
    assert "msgbus.cli.verbs" not in modules or words[0] == "call"


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


def test_drivers_are_paragraphs_on_a_narrow_terminal() -> None:
    """If the table does not fit, each driver has lines of its own, no word is broken, and no line ends in blanks."""
    code = "import os\nos.environ['COLUMNS'] = '60'\nfrom msgbus.cli import main\nmain()"
    with Terminal([sys.executable, "-c", code, "drivers"], os.environ) as terminal:
        assert terminal.finish() == 0
    lines = terminal.screen
    at = lines.index("kombu (amqp, rabbit)")
    assert lines[at + 1] == "  state: ready"
    assert lines[at + 2].startswith("  capabilities: ")
    assert lines[at + 3].startswith("    ")
    assert max(map(len, lines)) <= 60
    for name in ("drivers", "config"):
        assert not [line for line in run(name).stdout.splitlines() if line != line.rstrip()]


def test_drivers_imports_no_library_of_a_driver() -> None:
    """To look whether a library is there, nobody has to run it."""
    assert not {"kombu", "amqp", "zmq", "proton"} & imported("drivers")


def test_drivers_lists_missing_libraries_and_plug_ins(tmp_path: pathlib.Path) -> None:
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
