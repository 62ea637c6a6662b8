from __future__ import annotations

import json
import pathlib
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from msgbus import InvalidArguments, MessagingException, NoSuchMethod, RemoteError, exceptions
from msgbus.failures import rebuild_failure, serialize_failure
from msgbus.message import JSON, MSGPACK, Reply, decode_inbox_frame, encode_reply

LOOP: list[Any] = []
LOOP.append(LOOP)


def raised(error: BaseException) -> BaseException:
    """The same exception, with a traceback."""
    try:
        raise error
    except BaseException as exc:
        return exc


def there_and_back(error: BaseException, *allowed: str) -> Exception:
    """What a client makes of an exception that a server raised."""
    return rebuild_failure(serialize_failure(raised(error)), allowed)


def oslo(**changes: Any) -> str:
    """A failure as a stock oslo.messaging writes it."""
    failure = {"class": "ValueError", "module": "builtins", "message": "x", "tb": ["a\n"], "args": ["x"], "kwargs": {}}
    return json.dumps({**failure, **changes})


@pytest.fixture
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that has exceptions of its own and was never imported."""
    name = f"remote_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(
        "class Base(Exception): pass\n"
        "class Sub(Base): pass\n"
        "class Picky(Exception):\n"
        "    def __init__(self, a, b): super().__init__(f'{a} and {b}')\n"
        "class Keyed(Exception):\n"
        "    def __init__(self, message=None, **kwargs): super().__init__(message); self.kwargs = kwargs\n"
        "class Exit(SystemExit): pass\n"
        "class Bad(Exception):\n"
        "    def __init__(self, *args): raise RuntimeError('cannot be made')\n"
        "from json import JSONDecodeError\n"
        "import os\n"
        "def function(*args): raise AssertionError('called')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyError("key", 5),
        OSError(2, "No such file", "/tmp/x"),
        ZeroDivisionError(),
        RuntimeError({"a": [1, None, True, 2.5]}),
        TimeoutError("late"),
        ValueError(2**70),
    ],
    ids=repr,
)
def test_built_in_exceptions_come_back_as_themselves(error: Exception) -> None:
    """A built-in exception is made again with its arguments, without any permission."""
    rebuilt = there_and_back(error)
    assert type(rebuilt) is type(error)
    assert rebuilt.args == error.args
    assert str(rebuilt) == str(error)


def test_remote_traceback_is_a_note() -> None:
    """An exception that is made again carries the remote traceback, which a printed traceback shows."""
    notes = there_and_back(ValueError("x")).__notes__
    assert len(notes) == 1
    assert notes[0].startswith("Remote traceback:\nTraceback")
    assert notes[0].endswith("ValueError: x")
    assert not hasattr(rebuild_failure(oslo(tb=[]), ()), "__notes__")


@pytest.mark.parametrize(
    "error",
    [
        MessagingException("text"),
        exceptions.TransportUnavailable("text"),
        exceptions.ServerLost("text"),
        NoSuchMethod("method"),
        exceptions.UnsupportedVersion("1.5", "method"),
        exceptions.RPCVersionCapError("1.5", "1.4"),
        exceptions.InvalidTransportURL("x://", "bad"),
        InvalidArguments("text"),
        RemoteError("Class", "value", ["line 1\n", "line 2\n"]),
        RemoteError("Class", "value", None),
        exceptions.DriverLoadFailure("x", "why"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_our_own_errors_come_back_as_themselves(error: Exception) -> None:
    """An error of msgbus, raised in an endpoint, is the same error with the same text for the caller."""
    rebuilt = there_and_back(error)
    assert type(rebuilt) is type(error)
    assert str(rebuilt) == str(error)


def test_a_module_that_is_not_listed_is_never_imported(module: str) -> None:
    """What comes from a module that is not on the list is a RemoteError, and the module stays unimported."""
    error = rebuild_failure(oslo(**{"class": "Base", "module": module}), ["other"])
    assert type(error) is RemoteError
    assert (error.exc_type, error.value, error.traceback) == ("Base", "x", ["a\n"])
    assert module not in sys.modules


@pytest.mark.parametrize("allowed", ["", "{}x", "x{}", "{}.sub"])
def test_only_the_exact_name_is_a_permission(module: str, allowed: str) -> None:
    """A name on the list allows that module, not those with a longer or shorter name."""
    error = rebuild_failure(oslo(**{"class": "Base", "module": module}), [allowed.format(module)])
    assert type(error) is RemoteError
    assert module not in sys.modules


@pytest.mark.parametrize("suffixes", [("", ""), ("_Remote", "_Remote"), ("_Remote", "")])
@pytest.mark.parametrize("name", ["Base", "Sub"])
def test_a_listed_module_is_imported(module: str, name: str, suffixes: tuple[str, str]) -> None:
    """An exception of a listed module is made again; the suffix that older peers add on every hop is left out."""
    text = oslo(**{"class": name + suffixes[0], "module": module + suffixes[1]})
    error = rebuild_failure(text, [module])
    assert type(error) is getattr(sys.modules[module], name)
    assert error.args == ("x",)


def test_keyword_arguments_survive(module: str) -> None:
    """What an exception keeps in `kwargs` is given to the constructor again."""
    error = rebuild_failure(oslo(**{"class": "Keyed", "module": module, "kwargs": {"code": 5}}), [module])
    assert vars(error)["kwargs"] == {"code": 5}
    again = there_and_back(error, module)
    assert (type(again), vars(again)["kwargs"]) == (type(error), {"code": 5})


@pytest.mark.parametrize(
    "name", ["Picky", "Bad", "Exit", "function", "os", "JSONDecodeError", "Missing", "", "Base.__init__"]
)
def test_what_cannot_or_may_not_be_made_is_a_remote_error(module: str, name: str) -> None:
    """A constructor that fails, no exception class, one imported from elsewhere, or none at all: a RemoteError."""
    error = rebuild_failure(oslo(**{"class": name, "module": module}), [module])
    assert type(error) is RemoteError
    assert (error.exc_type, error.value) == (name, "x")


def test_a_listed_module_that_cannot_be_imported() -> None:
    """A listed module that is not installed here leaves a RemoteError."""
    assert type(rebuild_failure(oslo(module="no_such_module_here"), ["no_such_module_here"])) is RemoteError


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("x")], ids=repr)
def test_what_ends_a_process_is_never_made_again(error: BaseException) -> None:
    """SystemExit and its like on a server do not end the client: they come as a RemoteError."""
    rebuilt = there_and_back(error)
    assert type(rebuilt) is RemoteError
    assert rebuilt.exc_type == type(error).__name__


@pytest.mark.parametrize("error", [StopIteration(5), StopAsyncIteration()], ids=repr)
def test_what_ends_an_iteration_is_never_made_again(error: Exception) -> None:
    """StopIteration on a server does not look like the end of a stream on the client."""
    rebuilt = there_and_back(error)
    assert type(rebuilt) is RemoteError
    assert rebuilt.exc_type == type(error).__name__


@pytest.mark.parametrize("name", ["eval", "print", "int", "__import__", "True", "Warning()"])
def test_no_other_name_of_builtins_is_used(name: str) -> None:
    """What is in builtins and is no exception is not touched."""
    assert type(rebuild_failure(oslo(**{"class": name, "args": ["1 + 1"]}), ())) is RemoteError


@pytest.mark.parametrize("suffix", ["", "_Remote"])
def test_python_2_module_name(suffix: str) -> None:
    """The module `exceptions` of older peers means builtins."""
    error = rebuild_failure(oslo(**{"class": f"KeyError{suffix}", "module": f"exceptions{suffix}"}), ())
    assert type(error) is KeyError


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class BadAttributes(Exception):
    @property
    def kwargs(self) -> Any:
        raise RuntimeError("none")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Unprintable("x"), "<unprintable Unprintable: RuntimeError>"),
        (BadAttributes("x"), "x"),
        (ValueError(Unprintable()), "<unprintable ValueError: RuntimeError>"),
    ],
    ids=["str", "kwargs", "argument"],
)
def test_unprintable_exceptions(error: Exception, message: str) -> None:
    """An exception whose own methods fail is told of all the same."""
    failure = json.loads(serialize_failure(raised(error)))
    assert failure["class"] == type(error).__name__
    assert failure["message"] == message
    assert isinstance(rebuild_failure(json.dumps(failure), ()), Exception)


@pytest.mark.parametrize(
    ("argument", "arrives"),
    [
        (b"\xff", "b'\\xff'"),
        ({1, 2}, "{1, 2}"),
        (datetime(2026, 1, 2, tzinfo=UTC), repr(datetime(2026, 1, 2, tzinfo=UTC))),
        (float("nan"), "nan"),
        ([float("inf")], "[inf]"),
        ((1, (2,)), [1, [2]]),
        ({1: "a"}, {"1": "a"}),
        (LOOP, "[[...]]"),
        (10**5000, "<unprintable int>"),
        ("\udcff", "?"),
        ({"a": b""}, "{'a': b''}"),
        (Unprintable(), "<unprintable Unprintable>"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_arguments_that_json_lacks(argument: Any, arrives: Any) -> None:
    """An argument that JSON has not travels as its repr, and never keeps the caller from being told."""
    rebuilt = there_and_back(ValueError(argument, "and"))
    assert type(rebuilt) is ValueError
    assert rebuilt.args == (arrives, "and")


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
def test_undecodable_file_name(content_type: str) -> None:
    """An error about a file whose name is no UTF-8 goes through the wire."""
    failure = serialize_failure(raised(FileNotFoundError(2, "No such file", "/tmp/\udcff")))
    body = encode_reply(Reply("c", failure=failure, ending=True), content_type)
    reply = decode_inbox_frame(body, content_type)
    assert isinstance(reply, Reply)
    assert reply.failure is not None
    rebuilt = rebuild_failure(reply.failure, ())
    assert type(rebuilt) is FileNotFoundError
    assert rebuilt.filename == "/tmp/?"


def test_failure_has_oslo_messagings_keys() -> None:
    """The JSON text has the six keys of a stock oslo.messaging, the traceback as a list of texts."""
    failure = json.loads(serialize_failure(raised(ValueError("x"))))
    lines = failure.pop("tb")
    assert all(isinstance(line, str) for line in lines)
    assert failure == {"class": "ValueError", "module": "builtins", "message": "x", "args": ["x"], "kwargs": {}}


def test_an_exception_of_more_than_one_hop_loses_the_suffix() -> None:
    """An exception that an older peer's code made again is sent on under its first name."""
    cls = type("Thing_Remote", (Exception,), {"__module__": "service.errors_Remote"})
    failure = json.loads(serialize_failure(cls("x")))
    assert (failure["class"], failure["module"]) == ("Thing", "service.errors")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"class": 5}', '{"tb": "text"}', '{"args": {}}', "\0"])
def test_a_failure_that_cannot_be_read(text: str) -> None:
    """A failure that is none still ends the call, as a RemoteError."""
    error = rebuild_failure(text, ())
    assert type(error) is RemoteError
    assert error.exc_type == "unreadable failure"


def test_a_failure_without_anything() -> None:
    """Keys that a peer leaves out are as good as empty."""
    assert type(rebuild_failure("{}", ())) is RemoteError
