from __future__ import annotations

import json
import os
import pathlib
import sys
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from msgbus import InvalidArguments, MessagingException, NoSuchMethod, RemoteError, exceptions
from msgbus.encoding import decode_inbox_frame, encode_reply
from msgbus.failures import rebuild_failure, serialize_failure
from msgbus.message import JSON, MSGPACK, Reply

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
    """A built-in exception is rebuilt with its arguments, without any permission."""
    rebuilt = there_and_back(error)
    assert type(rebuilt) is type(error)
    assert rebuilt.args == error.args
    assert str(rebuilt) == str(error)


def test_remote_traceback_is_a_note() -> None:
    """A rebuilt exception carries the remote traceback, which a printed traceback shows."""
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
    """An exception of a module that is not on the list is a RemoteError, and the module is not imported."""
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
    """An exception of a listed module is rebuilt; the suffix that older peers add on every hop is left out."""
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
def test_an_exception_that_may_not_be_rebuilt_is_a_remote_error(module: str, name: str) -> None:
    """A constructor that fails, no exception class, one imported from elsewhere, or none at all: a RemoteError."""
    error = rebuild_failure(oslo(**{"class": name, "module": module}), [module])
    assert type(error) is RemoteError
    assert (error.exc_type, error.value) == (name, "x")


def test_a_listed_module_that_cannot_be_imported() -> None:
    """A listed module that is not installed here leaves a RemoteError."""
    assert type(rebuild_failure(oslo(module="no_such_module_here"), ["no_such_module_here"])) is RemoteError


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("x")], ids=repr)
def test_what_ends_a_process_is_never_rebuilt(error: BaseException) -> None:
    """SystemExit and its like on a server do not end the client: they come as a RemoteError."""
    rebuilt = there_and_back(error)
    assert type(rebuilt) is RemoteError
    assert rebuilt.exc_type == type(error).__name__


@pytest.mark.parametrize("error", [StopIteration(5), StopAsyncIteration()], ids=repr)
def test_what_ends_an_iteration_is_never_rebuilt(error: Exception) -> None:
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
    changes = {"class": f"KeyError{suffix}", "module": f"exceptions{suffix}", "message": "'x'"}
    error = rebuild_failure(oslo(**changes), ())
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
    """An exception whose own methods fail reaches the caller all the same."""
    failure = json.loads(serialize_failure(raised(error)))
    assert failure["class"] == type(error).__name__
    assert failure["message"] == message
    assert isinstance(rebuild_failure(json.dumps(failure), ()), Exception)


UNDONE: list[Any] = [
    b"\xff",
    bytearray(b"\0"),
    {1, "a", None},
    frozenset({(1, 2)}),
    datetime(2026, 1, 2, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5, 6),
    datetime(2026, 1, 2, tzinfo=timezone(-timedelta(hours=2))),
    date(2026, 1, 2),
    time(1, 2, 3, 4),
    timedelta(days=-1, microseconds=5),
    Decimal("1.50"),
    uuid.UUID(int=5),
    pathlib.Path("/tmp/x"),
    pathlib.PurePosixPath("x"),
    float("inf"),
    [float("-inf")],
    (1, (2,)),
    {1: "a", (1,): b""},
    {"a": b"", "b": [1, None, True, 2.5, "ä"]},
    "\udcff",
    1j,
    2**70,
    -0.0,
]


@pytest.mark.parametrize("argument", UNDONE, ids=lambda argument: type(argument).__name__)
def test_arguments_that_json_lacks_arrive_as_they_were(argument: Any) -> None:
    """An argument of a usual type that JSON does not have arrives as what it was, also within others."""
    for error in (ValueError(argument, "and"), KeyError(argument), RuntimeError([{"a": argument}])):
        rebuilt = there_and_back(error)
        assert type(rebuilt) is type(error)
        assert repr(rebuilt.args) == repr(error.args) or rebuilt.args == error.args
        assert type(rebuilt.args[0]) is type(error.args[0])


def test_not_a_number_arrives() -> None:
    """NaN in an exception's arguments arrives."""
    assert repr(there_and_back(ValueError(float("nan")))) == "ValueError(nan)"


@pytest.mark.parametrize(
    "argument",
    [LOOP, 10**5000, [10**5000], Unprintable(), object(), range(3), int],
    ids=lambda value: type(value).__name__,
)
def test_arguments_that_cannot_travel(argument: Any) -> None:
    """Where an argument is of a type that does not travel, the caller gets a RemoteError with the text of it."""
    failure = serialize_failure(raised(ValueError(argument, "and")))
    rebuilt = rebuild_failure(failure, ())
    assert type(rebuilt) is RemoteError
    assert rebuilt.exc_type == "ValueError"
    assert rebuilt.value == json.loads(failure)["message"]


def test_an_argument_whose_text_is_all_there_is() -> None:
    """An exception that has one argument of some other type keeps its class if the argument's text is its repr."""
    assert str(there_and_back(ValueError(int))) == "<class 'int'>"


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
    assert rebuilt.filename == "/tmp/\udcff"


def test_failure_has_oslo_messagings_keys() -> None:
    """The JSON text has the six keys of a stock oslo.messaging, the traceback as a list of texts."""
    failure = json.loads(serialize_failure(raised(ValueError("x"))))
    lines = failure.pop("tb")
    assert all(isinstance(line, str) for line in lines)
    assert failure == {"class": "ValueError", "module": "builtins", "message": "x", "args": ["x"], "kwargs": {}}


def test_an_exception_of_more_than_one_hop_loses_the_suffix() -> None:
    """An exception that an older peer has rebuilt is sent on under its original name."""
    cls = type("Thing_Remote", (Exception,), {"__module__": "service.errors_Remote"})
    failure = json.loads(serialize_failure(cls("x")))
    assert (failure["class"], failure["module"]) == ("Thing", "service.errors")


class Formats(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(f"no {name} here")
        self.name = name


class Reduces(Exception):
    def __init__(self, a: Any, b: Any) -> None:
        super().__init__(f"{a} and {b}")
        self.both = (a, b)

    def __reduce__(self) -> Any:
        return type(self), self.both


class Optional(Exception):
    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class Raises(Exception):
    made = 0

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        type(self).made += 1
        if type(self).made > 1:
            raise {"exit": SystemExit, "interrupt": KeyboardInterrupt, "base": BaseException, "any": Exception}[kind]


class Changes(Exception):
    def __new__(cls, *args: Any) -> Any:
        return super().__new__(cls, *args) if len(args) == 1 else "no exception at all"


class Stops(StopIteration):
    pass


HERE = __name__


def test_a_constructor_that_formats_its_text() -> None:
    """An exception whose constructor makes a text of its arguments does not get it made twice: it is a RemoteError."""
    rebuilt = there_and_back(Formats("bob"), HERE)
    assert type(rebuilt) is RemoteError
    assert (rebuilt.exc_type, rebuilt.value) == ("Formats", "no bob here")


def test_an_exception_that_says_how_to_make_it_again() -> None:
    """Where a class has a __reduce__, as for pickle, the arguments that it names are what the constructor gets."""
    rebuilt = there_and_back(Reduces(1, b"\xff"), HERE)
    assert type(rebuilt) is Reduces
    assert (str(rebuilt), rebuilt.both) == ("1 and b'\\xff'", (1, b"\xff"))


def test_attributes_arrive() -> None:
    """What an exception holds besides its arguments arrives too, where it is of a usual type."""
    error: Any = Optional("x", 5)
    error.add = {"when": date(2026, 1, 2)}
    error.lock = object()
    rebuilt: Any = there_and_back(error, HERE)
    assert type(rebuilt) is Optional
    assert vars(rebuilt)["add"] == {"when": date(2026, 1, 2)}
    assert rebuilt.code == 5
    assert not hasattr(rebuilt, "lock")
    assert there_and_back(exceptions.TransportUnavailable("x", maybe_delivered=True)).maybe_delivered is True  # type: ignore[attr-defined]


def test_an_attribute_that_would_hide_a_method() -> None:
    """What a peer calls an attribute takes the place of no method, and of nothing that Python itself uses."""
    extension = {"attributes": {"add_note": 5, "__traceback__": 5, "__class__": "x", "with_traceback": 1, "fine": 1}}
    rebuilt: Any = rebuild_failure(oslo(_msgbus=extension), ())
    assert type(rebuilt) is ValueError
    assert vars(rebuilt) == {"fine": 1, "__notes__": rebuilt.__notes__}


@pytest.mark.parametrize("error", [KeywordOnly(code=5), Changes("a"), Stops(5)], ids=repr)
def test_an_exception_that_cannot_be_rebuilt_from_its_arguments(error: Exception) -> None:
    """Arguments by name only and what ends an iteration: the caller gets a RemoteError with the text."""
    if type(error) is Changes:
        error.args = ("a", "b")
    rebuilt = there_and_back(error, HERE)
    assert type(rebuilt) is RemoteError
    assert rebuilt.value == str(error)


@pytest.mark.parametrize("kind", ["exit", "interrupt", "base", "any"])
def test_whatever_a_constructor_raises(kind: str) -> None:
    """A constructor may raise even SystemExit: the caller gets a RemoteError."""
    Raises.made = 0
    rebuilt = there_and_back(Raises(kind), HERE)
    assert Raises.made == 2
    assert type(rebuilt) is RemoteError


def _of_import() -> ImportError:
    try:
        import no_such_module_at_all  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as exc:
        return exc
    raise AssertionError


def test_built_in_exceptions_with_attributes_of_their_own() -> None:
    """Names, paths, positions and objects that built-in exceptions keep beside their text arrive with them."""
    with pytest.raises(UnicodeDecodeError) as decode:
        b"\xff".decode()
    with pytest.raises(UnicodeEncodeError) as encode:
        "\ud800".encode()
    with pytest.raises(SyntaxError) as syntax:
        compile("a b", "file.py", "exec")
    with pytest.raises(FileNotFoundError) as file:
        os.rename("/no/such", "/no/other")
    for error in (decode.value, encode.value, syntax.value, file.value):
        rebuilt = there_and_back(error)
        assert type(rebuilt) is type(error)
        assert (str(rebuilt), rebuilt.args) == (str(error), error.args)
    assert there_and_back(decode.value).object == b"\xff"  # type: ignore[attr-defined]
    assert there_and_back(syntax.value).lineno == 1  # type: ignore[attr-defined]
    assert there_and_back(file.value).filename2 == "/no/other"  # type: ignore[attr-defined]
    missing = there_and_back(_of_import())
    assert type(missing) is ModuleNotFoundError
    assert (missing.name, missing.path) == ("no_such_module_at_all", None)
    with pytest.raises(AttributeError) as attribute:
        raised.no_such_attribute  # type: ignore[attr-defined]  # noqa: B018
    assert there_and_back(attribute.value).name == "no_such_attribute"  # type: ignore[attr-defined]


def test_groups_arrive_as_groups() -> None:
    """A group arrives with its members, nested ones too; a member that may not be rebuilt is a RemoteError in it."""
    inner: Any = BaseExceptionGroup("inner", [KeyError("k"), Optional("x", 5), SystemExit(3)])
    group = BaseExceptionGroup("outer", [raised(ValueError(b"\xff")), inner])
    allowed: Any = there_and_back(group, HERE)
    assert type(allowed) is ExceptionGroup
    assert str(allowed) == str(group)
    assert allowed.exceptions[0].args == (b"\xff",)
    assert "Remote traceback" in allowed.exceptions[0].__notes__[0]
    members: Any = allowed.exceptions[1].exceptions
    assert [type(member) for member in members] == [KeyError, Optional, RemoteError]
    assert members[1].code == 5
    denied: Any = there_and_back(group)
    assert [type(member) for member in denied.exceptions[1].exceptions] == [KeyError, RemoteError, RemoteError]
    assert denied.exceptions[1].exceptions[1].exc_type == "Optional"


def test_a_group_of_what_ends_a_process() -> None:
    """A group with a KeyboardInterrupt in it arrives as a group of exceptions that end nothing."""
    group: Any = there_and_back(BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError("x")]))
    assert type(group) is ExceptionGroup
    assert [type(member) for member in group.exceptions] == [RemoteError, ValueError]


def test_groups_that_are_nested_very_deep() -> None:
    """A group that is nested too deep reaches the caller all the same."""
    group: Any = ValueError("x")
    for _ in range(100):
        group = ExceptionGroup("g", [group])
    failure = serialize_failure(group)
    assert failure.count('"class"') < 50
    rebuilt: Any = rebuild_failure(failure, ())
    levels = 0
    while type(rebuilt) is ExceptionGroup:
        assert str(rebuilt) == "g (1 sub-exception)"
        (rebuilt,) = rebuilt.exceptions
        levels += 1
    assert 10 <= levels < 50
    assert type(rebuilt) is RemoteError
    assert (rebuilt.exc_type, rebuilt.value) == ("ExceptionGroup", "g (1 sub-exception)")


def test_notes_arrive() -> None:
    """The notes of an exception are notes at the caller, before the one with the remote traceback."""
    for error in (ValueError("x"), Optional("x")):
        error.add_note("a note\udcff")
        error.add_note("another")
        notes = there_and_back(error).__notes__
        assert notes[:2] == ["a note?", "another"]
        assert len(notes) == 3
    again = there_and_back(there_and_back(error))
    assert len(again.__notes__) == 3
    assert "a note" in again.__notes__[2]


def test_the_cause_is_in_the_traceback() -> None:
    """What an exception was raised from is in the remote traceback."""
    try:
        try:
            raise KeyError("first")
        except KeyError as exc:
            raise ValueError("second") from exc
    except ValueError as exc:
        note = there_and_back(exc).__notes__[0]
    assert "KeyError: 'first'" in note
    assert "ValueError: second" in note


def test_what_a_stock_peer_reads_stays_as_it_was() -> None:
    """What oslo.messaging does not know is in one key that it ignores; its own keys have what they always had."""
    error = raised(ValueError(b"\xff", (1,)))
    error.add_note("a note")
    failure = json.loads(serialize_failure(error))
    assert set(failure) == {"class", "module", "message", "tb", "args", "kwargs", "_msgbus"}
    assert failure["args"] == ["b'\\xff'", [1]]
    assert set(json.loads(serialize_failure(ValueError("x")))) == {"class", "module", "message", "tb", "args", "kwargs"}


def test_a_failure_with_what_only_the_standard_library_reads() -> None:
    """A stock peer's failure with NaN or a lone surrogate in it is read."""
    rebuilt = rebuild_failure(oslo(args=["x", float("nan")], message="('x', nan)"), ())
    assert type(rebuilt) is ValueError
    assert repr(rebuilt.args) == "('x', nan)"
    assert (
        type(rebuild_failure('{"class": "ValueError", "args": ["\\ud800"], "message": "\\ud800"}', ())) is RemoteError
    )


@pytest.mark.parametrize(
    "form",
    [
        ["bytes", "?"],
        ["bytes", 5],
        ["no such kind", 1],
        ["exception", 5],
        ["exception", {"class": 5}],
        ["tuple", 5],
        ["dict", [1]],
        ["dict", [[["list", []], 1]]],
        ["UUID", "x"],
        ["Decimal", "x"],
        ["eval", "1"],
        [],
        ["tuple"],
        {"a": 1},
    ],
    ids=repr,
)
def test_arguments_that_cannot_be_read(form: Any) -> None:
    """Where a peer writes an argument that nobody can read, the caller gets a RemoteError."""
    assert type(rebuild_failure(oslo(_msgbus={"args": [form]}), ())) is RemoteError


@pytest.mark.parametrize(("levels", "cls"), [(50, ValueError), (100, RemoteError), (5000, RemoteError)])
def test_an_argument_that_is_nested_too_deep_to_be_read(levels: int, cls: type[Exception]) -> None:
    """A peer cannot make the reading go deeper than it may."""
    text = oslo(_msgbus={"args": ["?"]}, message="[" * levels + "]" * levels)
    text = text.replace('"?"', '["list", [' * levels + "]]" * levels)
    assert type(rebuild_failure(text, ())) is cls


@pytest.mark.parametrize("text", ["{'a', 'b'}", "{'b', 'a'}"])
def test_a_set_whose_text_has_another_order_here(text: str) -> None:
    """The text of an exception with a set in it differs from process to process, which does not count."""
    failure = json.loads(serialize_failure(ValueError({"a", "b"})))
    rebuilt = rebuild_failure(json.dumps({**failure, "message": text}), ())
    assert type(rebuilt) is ValueError
    assert rebuilt.args == ({"a", "b"},)


def test_attributes_of_standard_exceptions_are_not_sent() -> None:
    """The document that could not be parsed is in the exception, and is not sent to the caller."""
    document = "[" + "secret" * 2
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(document)
    assert document not in serialize_failure(caught.value)
    rebuilt = there_and_back(caught.value)
    assert type(rebuilt) is RemoteError
    assert rebuilt.value == str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"class": 5}', '{"tb": "text"}', '{"args": {}}', "\0"])
def test_a_failure_that_cannot_be_read(text: str) -> None:
    """A malformed failure still ends the call, as a RemoteError."""
    error = rebuild_failure(text, ())
    assert type(error) is RemoteError
    assert error.exc_type == "unreadable failure"


def test_a_failure_without_anything() -> None:
    """Keys that a peer leaves out are as good as empty."""
    assert type(rebuild_failure("{}", ())) is RemoteError
