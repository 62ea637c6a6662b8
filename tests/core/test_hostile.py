"""Endpoints, hooks and peers that do the worst: a server goes on, and its log stays its own."""

from __future__ import annotations

import json
import logging
import pathlib
import queue
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

import msgbus.server
from msgbus import (
    DeadLetter,
    InvalidTarget,
    NoSuchMethod,
    RPCServer,
    SerializationError,
    Target,
    UnsupportedVersion,
    get_rpc_client,
    get_rpc_server,
)
from msgbus.cli.app import cli
from msgbus.cli.tables import print_table, print_value
from msgbus.drivers.base import Address, Message, QueueInfo
from msgbus.foreign import printable
from msgbus.message import JSON, MSGPACK, Reply
from msgbus.payload import encode
from msgbus.transport import Transport
from tests.support import EVENT_TIMEOUT, new_transport

TOPIC = Address("topic", "msgbus", "foo")
PREFETCH = 3
ESCAPES = "\x1b[31mred\nFORGED line\r\x07\x9b2J\x7f\u202egnp\u2028x\ud800"
"""What no log and no terminal may get as it is."""


def hostile(**attributes: Any) -> BaseException:
    """An exception some of whose methods or properties are given."""
    return type("Hostile", (Exception,), attributes)("text")  # type: ignore[no-any-return]


def raising(exc: BaseException) -> Any:
    """A method that raises."""

    def method(*_args: object) -> Any:
        raise exc

    return method


class Loud:
    """Has a repr that ends the process."""

    __repr__ = __str__ = raising(SystemExit("repr"))


def chained(cause: BaseException) -> BaseException:
    """An exception with a cause."""
    exc = ValueError("outer")
    exc.__cause__ = cause
    return exc


class Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise SystemExit("name")


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "str raises": lambda: hostile(__str__=raising(ValueError("str"))),
    "str raises SystemExit": lambda: hostile(__str__=raising(SystemExit("str"))),
    "str raises KeyboardInterrupt": lambda: hostile(__str__=raising(KeyboardInterrupt())),
    "str is no str": lambda: hostile(__str__=lambda _self: 5),
    "repr raises SystemExit": lambda: hostile(__repr__=raising(SystemExit("repr"))),
    "args raise": lambda: hostile(args=property(raising(SystemExit("args")))),
    "argument has no repr": lambda: ValueError(Loud()),
    "kwargs raise": lambda: hostile(kwargs=property(raising(SystemExit("kwargs")))),
    "cause raises": lambda: hostile(__cause__=property(raising(SystemExit("cause")))),
    "traceback raises": lambda: hostile(__traceback__=property(raising(SystemExit("traceback")))),
    "notes raise": lambda: hostile(__notes__=property(raising(SystemExit("notes")))),
    "cause cannot be written": lambda: chained(hostile(__str__=raising(SystemExit("str")))),
    "class has no name": lambda: Meta("Nameless", (Exception,), {})("text"),
    "module is a number": lambda: hostile(__module__=5),
    "lone surrogate": lambda: ValueError("\ud800"),
    "escapes": lambda: ValueError(ESCAPES),
    "group": lambda: BaseExceptionGroup("many", [SystemExit(), hostile(__str__=raising(SystemExit("str")))]),
    "GeneratorExit": GeneratorExit,
    "SystemExit": lambda: SystemExit(3),
    "StopIteration": lambda: StopIteration("x"),
    "very long": lambda: ValueError("x" * 10**6),
}


class Endpoint:
    def __init__(self) -> None:
        self.ran: list[str] = []

    def fail(self, _ctxt: object, how: str) -> None:
        self.ran.append(how)
        raise EXCEPTIONS[how]()

    def fail_at_close(self, _ctxt: object, how: str) -> Iterator[int]:
        self.ran.append(how)
        try:
            yield 1
        finally:
            raise EXCEPTIONS[how]()

    def divide(self, _ctxt: object) -> float:
        return 1 / 0

    def fine(self, _ctxt: object) -> str:
        return "fine"


class Bench:
    """A server that takes few messages at a time, and its client."""

    def __init__(self, hook: Callable[[DeadLetter], None] | None = None) -> None:
        self.transport: Transport = new_transport(rpc_prefetch=PREFETCH, rpc_cast_retries=0)
        self.letters: list[DeadLetter] = []
        self.hook = hook
        self.endpoint = Endpoint()
        target = Target(topic="foo", server="h1")
        self.server: RPCServer = get_rpc_server(
            self.transport, target, [self.endpoint], on_dead_letter=self._on_dead_letter
        )
        self.server.start()
        self.client = get_rpc_client(self.transport, Target(topic="foo"), timeout=EVENT_TIMEOUT)
        self.given_up = threading.Semaphore(0)

    def _on_dead_letter(self, letter: DeadLetter) -> None:
        self.letters.append(letter)
        self.given_up.release()
        if self.hook is not None:
            self.hook(letter)

    def check(self) -> None:
        """The server still serves, and has nothing left."""
        assert self.client.call({}, "fine") == "fine"
        self.server.stop()
        assert self.server.wait(EVENT_TIMEOUT) == 0


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A server and its client, on a bus of their own."""
    bench = Bench()
    yield bench
    bench.transport.cleanup()


@pytest.mark.parametrize("how", EXCEPTIONS)
@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
def test_a_call_is_answered_whatever_its_exception_does(bench: Bench, how: str, delivery: Any) -> None:
    """A call gets an error, and the server its slot back, whatever the methods of the exception raise."""
    client = bench.client.prepare(delivery=delivery)
    for _ in range(PREFETCH + 1):
        with pytest.raises(Exception) as raised:  # noqa: PT011 - which one differs
            client.call({}, "fail", how=how)
        assert not isinstance(raised.value, TimeoutError)
    bench.check()


@pytest.mark.parametrize("how", EXCEPTIONS)
def test_a_generator_may_raise_anything_at_its_end(bench: Bench, how: str) -> None:
    """A stream, and a call on a generator, end with an error whatever the generator raises when it ends."""
    for _ in range(PREFETCH + 1):
        with pytest.raises(Exception) as raised:  # noqa: PT011 - which one differs
            bench.client.call({}, "fail_at_close", how=how)
        assert not isinstance(raised.value, TimeoutError)
        with pytest.raises(Exception) as raised:  # noqa: PT011 - which one differs
            list(bench.client.multicall({}, "fail_at_close", how=how))
        assert not isinstance(raised.value, TimeoutError)
    bench.check()


@pytest.mark.parametrize("how", EXCEPTIONS)
def test_a_cast_is_given_up_whatever_its_exception_does(bench: Bench, how: str) -> None:
    """A cast under at_least_once that goes on raising becomes a dead letter, and its delivery is settled."""
    client = bench.client.prepare(delivery="at_least_once")
    for _ in range(PREFETCH + 1):
        client.cast({}, "fail", how=how)
    for _ in range(PREFETCH + 1):
        assert bench.given_up.acquire(timeout=EVENT_TIMEOUT)
    bench.check()
    for letter in bench.letters:
        assert letter.reason.isprintable()
        assert len(letter.reason) <= 1000
    assert bench.transport.inspect(Address("dead", "msgbus", "foo"), EVENT_TIMEOUT) == QueueInfo(0, PREFETCH + 1)


@pytest.mark.parametrize("error", [ValueError("hook"), SystemExit("hook"), KeyboardInterrupt(), GeneratorExit()])
def test_the_hook_for_dead_letters_may_raise_anything(bench: Bench, error: BaseException) -> None:
    """What the hook raises is logged, the dead letter is stored, and the delivery is settled."""
    bench.hook = raising(error)
    client = bench.client.prepare(delivery="at_least_once")
    for _ in range(PREFETCH + 1):
        client.cast({}, "fail", how="SystemExit")
    for _ in range(PREFETCH + 1):
        assert bench.given_up.acquire(timeout=EVENT_TIMEOUT)
    bench.check()
    assert bench.transport.inspect(Address("dead", "msgbus", "foo"), EVENT_TIMEOUT) == QueueInfo(0, PREFETCH + 1)


@pytest.mark.parametrize("error", [ValueError("handler"), SystemExit("handler")])
def test_a_log_handler_may_raise_anything(bench: Bench, error: BaseException, capfd: Any) -> None:
    """A handler of the log that raises costs its line, and no delivery; stderr says so."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.threadName != threading.main_thread().name:
                raise error

    handler = Broken()
    logger = logging.getLogger("msgbus")
    logger.addHandler(handler)
    try:
        client = bench.client.prepare(delivery="at_least_once")
        for _ in range(PREFETCH + 1):
            client.cast({}, "fail", how="SystemExit")
        for _ in range(PREFETCH + 1):
            assert bench.given_up.acquire(timeout=EVENT_TIMEOUT)
        bench.check()
    finally:
        logger.removeHandler(handler)
    assert "a line of the logger msgbus.processing was lost" in capfd.readouterr().err


REQUESTS: dict[str, dict[str, Any]] = {
    "method": {"method": ESCAPES},
    "call id": {"method": "fail", "args": {"how": "escapes"}, "_msg_id": ESCAPES, "_reply_q": ESCAPES},
    "unique id": {"method": "fail", "args": {"how": "escapes"}, "_unique_id": ESCAPES},
    "namespace": {"method": "fine", "namespace": ESCAPES},
    "version": {"method": "fine", "version": ESCAPES},
    "argument": {"method": "fine", "args": {ESCAPES: 1}},
    "policy": {"method": "fail", "args": {"how": "escapes"}, "_msgbus": {"policy": ESCAPES}},
    "no request": {ESCAPES: ESCAPES},
}


@pytest.mark.parametrize("field", [*REQUESTS, "content type", "message id"])
@pytest.mark.parametrize("policy", ["at_most_once", "at_least_once"])
def test_no_request_forges_a_line_of_the_log(
    bench: Bench, field: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a request holds, the log's lines hold no control characters and none begins as the request likes."""
    caplog.set_level(logging.DEBUG, "msgbus")
    payload = {"_msgbus": {"policy": policy}, **REQUESTS.get(field, {"method": ESCAPES})}
    text = {key.encode("utf-8", "replace").decode(): value for key, value in payload.items()}
    body = encode(replace_surrogates(text), JSON)
    content_type = ESCAPES if field == "content type" else JSON
    message = Message(body, content_type, ESCAPES if field == "message id" else "id", None)
    bench.transport.driver.send(TOPIC, message, mandatory=True).result(EVENT_TIMEOUT)
    bench.check()
    assert_clean(caplog)
    assert "FORGED" in caplog.text or field in ("policy", "argument", "no request")


def test_no_reply_forges_a_line_of_the_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a reply or a control frame holds, the log's lines hold no control characters."""
    caplog.set_level(logging.DEBUG, "msgbus")
    inbox = Address("inbox", name=bench.transport.inbox(0.0))
    text = replace_surrogates(ESCAPES)
    for payload in (
        {"_msg_id": text, "result": 1, "_msgbus": {"kind": "started", "server": text, "inbox": text}},
        {"_msg_id": text, "failure": text, "ending": True, "_msgbus": {"server": text, "confirm": text}},
        {"_msg_id": text, "_msgbus": {"kind": "cancel"}},
        {"_msg_id": text, "_msgbus": {"kind": text}},
    ):
        message = Message(encode(payload, JSON), JSON, text, None)
        bench.transport.driver.send(inbox, message, mandatory=True).result(EVENT_TIMEOUT)
    bench.check()
    assert "FORGED" in caplog.text
    assert_clean(caplog)


def assert_clean(caplog: pytest.LogCaptureFixture) -> None:
    """Each record, as a formatter writes it, is printable; a traceback's lines are indented."""
    formatter = logging.Formatter("%(levelname)s %(message)s")
    for record in caplog.records:
        if record.name.startswith("msgbus"):
            first, *more = formatter.format(record).split("\n")
            assert first.isprintable()
            assert all(line.isprintable() and line.startswith("    ") for line in more)


def replace_surrogates(value: Any) -> Any:
    """What JSON can hold of it."""
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(each) for key, each in value.items()}
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢 😀", "plain é 漢 😀"),
        ("a\nb\r\t\0", r"a\nb\r\t\x00"),
        ("\x1b[0m\x7f\x9b\u202e\u2066\u2028", r"\x1b[0m\x7f\x9b\u202e\u2066\u2028"),
        ("\ud800", r"\ud800"),
        ("x" * 1001, "x" * 999 + "…"),
        ("x" * 1000, "x" * 1000),
        ("\n" * 1000, r"\n" * 499 + "\\…"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    """What cannot be shown is escaped, and what is long is cut."""
    assert printable(text) == shown


LONG = {
    "method": {"method": "x" * 2**20},
    "method just too long": {"method": "x" * 256},
    "unique id": {"method": "fine", "_unique_id": "x" * 2**20},
    "namespace": {"method": "fine", "namespace": "x" * 2**20},
    "version": {"method": "fine", "version": "1." + "0" * 2**20},
    "version just too long": {"method": "fine", "version": "1." + "0" * 63},
}
UNANSWERABLE = {
    "call id": {"method": "fine", "_msg_id": "x" * 2**20, "_reply_q": "inbox"},
    "inbox": {"method": "fine", "_msg_id": "id", "_reply_q": "x" * 2**20},
}


@pytest.mark.parametrize("name", [*LONG, *UNANSWERABLE])
@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
def test_a_request_with_a_long_name_is_refused(
    bench: Bench, name: str, content_type: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is kept, one short line of the log says what is too long, and its caller gets it if possible."""
    router, inbox = bench.transport.router, bench.transport.inbox(0.0)
    got: queue.SimpleQueue[Reply] = queue.SimpleQueue()
    monkeypatch.setattr(router, "route", lambda reply, _now: got.put(reply))
    payload = {"_msg_id": "id", "_reply_q": inbox, **(LONG.get(name) or UNANSWERABLE[name])}
    for _ in range(PREFETCH + 1):
        message = Message(encode(payload, content_type), content_type, "id", None)
        bench.transport.driver.send(TOPIC, message, mandatory=True).result(EVENT_TIMEOUT)
        if name in LONG:
            reply = got.get(timeout=EVENT_TIMEOUT)
            assert reply.ending
            assert "may have" in str(reply.failure)
            assert len(str(reply.failure)) < 10_000
    monkeypatch.undo()
    bench.check()
    lines = [record.getMessage() for record in caplog.records if "was refused" in record.getMessage()]
    assert len(lines) == PREFETCH + 1
    assert all("characters, and may have" in line and len(line) < 300 for line in lines)
    assert not bench.endpoint.ran
    assert all(len(known) <= 255 for known in bench.server._processor.calls.done)


@pytest.mark.parametrize("name", ["_msg_id", "inbox", "server", "confirm"])
def test_a_reply_with_a_long_name_is_dropped(bench: Bench, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of it is kept, and one short line of the log says what is too long."""
    extension = {"kind": "started", **({} if name == "_msg_id" else {name: "x" * 2**20})}
    payload = {"_msg_id": "x" * 2**20 if name == "_msg_id" else "id", "result": 1, "_msgbus": extension}
    inbox = Address("inbox", name=bench.transport.inbox(0.0))
    message = Message(encode(payload, JSON), JSON, "id", None)
    bench.transport.driver.send(inbox, message, mandatory=True).result(EVENT_TIMEOUT)
    bench.check()
    (line,) = [
        record.getMessage() for record in caplog.records if "unreadable message to the inbox" in record.getMessage()
    ]
    assert "characters, and may have 255" in line
    assert len(line) < 300


@pytest.mark.parametrize("length", [255, 256])
def test_a_client_sends_no_long_name(bench: Bench, length: int) -> None:
    """A method's name and a namespace may have 255 characters, a version 64; what is longer is an error at once."""
    if length == 255:
        with pytest.raises(NoSuchMethod):
            bench.client.call({}, "x" * length)
        with pytest.raises(UnsupportedVersion):
            bench.client.prepare(namespace="x" * length, version="9." + "0" * 62).call({}, "fine")
    else:
        with pytest.raises(SerializationError, match="256 characters, and may have 255"):
            bench.client.call({}, "x" * length)
        with pytest.raises(SerializationError, match="256 characters, and may have 255"):
            bench.client.cast({}, "x" * length)
        with pytest.raises(InvalidTarget, match="longer than 255"):
            Target(topic="foo", namespace="x" * length)
        with pytest.raises(InvalidTarget, match="longer than 64"):
            Target(topic="foo", version="9." + "0" * 63)


TERMINAL = "\x1b]0;title\x07\x1b[31m[red]FORGED[/red] [link=http://x]x[/link]\n\r\x9b2J\x7f\u202e\u2028"
"""What a terminal may not get from a server."""


class Speaker:
    """Answers what no terminal may get, under what name and error one likes."""

    def value(self, _ctxt: object) -> dict[str, str]:
        return {TERMINAL: TERMINAL, "red": "[red]"}

    def items(self, _ctxt: object) -> Iterator[str]:
        yield TERMINAL

    def fail(self, _ctxt: object, kind: str = "mine") -> None:
        if kind == "builtin":
            raise ValueError(TERMINAL)
        raise type(f"Kind{TERMINAL}", (Exception,), {"__module__": TERMINAL})(TERMINAL)


@pytest.fixture
def log_level() -> Iterator[None]:
    """The command sets the level of the root logger, which is put back."""
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bus with a server that says what no terminal may get."""
    transport = new_transport()
    monkeypatch.setattr(
        msgbus.base_server.Ping,
        "ping",
        lambda _self, _ctxt: dict.fromkeys(("server", "host", "pid", "version"), TERMINAL),
    )
    server = get_rpc_server(transport, Target(topic="foo", server="h1"), [Speaker()])
    server.start()
    yield str(transport.url)
    server.stop()
    server.wait(EVENT_TIMEOUT)
    transport.cleanup()


@pytest.mark.usefixtures("log_level")
@pytest.mark.parametrize("json_wanted", [False, True])
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "args",
    [
        ["call", "foo", "value"],
        ["call", "foo", "fail"],
        ["call", "foo", "fail", "kind=builtin"],
        ["call", "foo", TERMINAL],
        ["call", "foo", "value", "--namespace", TERMINAL],
        ["call", "foo", "value", f"{TERMINAL}=1"],
        ["call", "foo", "value", TERMINAL],
        ["call", TERMINAL, "value"],
        ["multicall", "foo", "items"],
        ["multicall", "foo", "fail"],
        ["ping", "foo", "--timeout", "0.3"],
        [TERMINAL],
        ["call", f"--{TERMINAL}"],
    ],
    ids=lambda args: " ".join(args)[:30].encode("unicode_escape").decode(),
)
def test_the_command_prints_nothing_that_steers_a_terminal(
    speaker: str, args: list[str], debug: bool, json_wanted: bool
) -> None:
    """What servers, and the caller, give is printed without control characters; JSON says what it said."""
    options = ["--log-level", "debug"] if debug else []
    rest = ["--url", speaker] if args[0] != TERMINAL else []
    result = CliRunner().invoke(cli, [*options, *args, *rest, *(["--json"] if json_wanted and rest else [])])
    for line in (result.stdout + result.stderr).split("\n"):
        assert line.isprintable(), repr(line)
    if json_wanted and not result.exit_code:
        for line in result.stdout.splitlines():
            assert "FORGED" in str(json.loads(line))
        assert result.stdout


@pytest.mark.parametrize(
    "value", [TERMINAL, "[red]x[/red]", "[link=http://x]y[/link]", {TERMINAL: [TERMINAL, 1]}, "é 漢 😀"]
)
@pytest.mark.parametrize("columns", [10, 1000])
def test_values_on_a_terminal_are_json_without_control_characters(
    value: Any, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is laid out for a terminal says what the value says, and only colours are added; brackets are no markup."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    print_value(value, as_json=False)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert json.loads(printed) == value
    assert all(line.isprintable() for line in printed.split("\n"))


@pytest.mark.parametrize("columns", [10, 1000])
def test_tables_hold_no_control_characters(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What others say in a table is one printable line, with brackets as they are."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(("one", "two"), [(TERMINAL, TERMINAL)])
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(line.isprintable() for line in printed.split("\n"))
    assert "[red]FORGED[/red]" in printed


def test_every_module_logs_through_the_safe_logger() -> None:
    """No module takes a logger of its own: what is written there would not be escaped."""
    root = pathlib.Path(msgbus.server.__file__).parent
    own = [path for path in root.rglob("*.py") if "logging.getLogger(__name__)" in path.read_text()]
    assert own == []


def test_a_line_names_where_it_was_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A record has the file and function of who logs, and the arguments, as any other."""
    with pytest.raises(ZeroDivisionError):
        bench.client.call({}, "divide")
    (record,) = [record for record in caplog.records if "raised" in record.getMessage()]
    assert (record.filename, record.name, record.msg) == ("processing.py", "msgbus.processing", "%r (call %s) raised")
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
