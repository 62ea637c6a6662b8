"""Exceptions that cross the wire: how one is written, and which may be rebuilt on the other side.

A failure is oslo.messaging's: JSON with class, module, message, traceback and arguments. What these keys cannot hold is
in the key ``_msgbus``, which a stock peer ignores:

============ ==========================================================================================
args         the arguments, as `msgbus.failure_values` writes them; only if JSON cannot hold them
kwargs       likewise, the arguments by name
attributes   what else the exception holds, as `msgbus.failure_values` writes it
notes        those of `BaseException.add_note`
============ ==========================================================================================

An exception within another's arguments, such as a member of a group, is a failure of its own, and obeys the same rules.
"""

from __future__ import annotations

import builtins
import importlib
import json
import sys
from collections.abc import Collection
from math import isfinite
from typing import Any

import msgspec

from msgbus import failure_values
from msgbus.exceptions import RemoteError
from msgbus.foreign import get_logger, name_of, text_of, traceback_of

LOG = get_logger(__name__)

_OURS = "msgbus.exceptions"
# Raised in an iteration or an await, they would mean its end and not an error.
_NEVER = (StopIteration, StopAsyncIteration)
# What the constructors of built-in exceptions take by name only. (The object that an AttributeError holds is not sent.)
_SLOTS: dict[type[BaseException], tuple[str, ...]] = {
    ImportError: ("name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
}
_SUFFIX = "_Remote"  # How older peers mark an exception that came over more than one hop.
_NOTE = "Remote traceback:\n"


class _Extension(msgspec.Struct, omit_defaults=True):
    """See the module's text."""

    args: list[Any] | None = None
    kwargs: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    notes: list[str] = []


class _Failure(msgspec.Struct):
    """The keys that oslo.messaging gives a failure, and ours."""

    class_: str = msgspec.field(default="", name="class")
    module: str = ""
    message: str = ""
    tb: list[str] = []
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    extension: _Extension | None = msgspec.field(default=None, name="_msgbus")


def serialize_failure(exc: BaseException) -> str:
    """Write an exception as the JSON text that travels in a reply's ``failure``.

    For a stock peer, arguments that JSON does not have are sent as their `repr`. The caller gets a failure whatever the
    exception holds, and whatever its own methods raise.
    """
    # A file name that is no UTF-8, for one, holds code points that cannot be written: they become question marks here.
    return _clean(json.dumps(_failure(exc), ensure_ascii=False))


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _failure(exc: BaseException, depth: int = 0) -> dict[str, Any]:
    args, kwargs = _arguments(exc)
    is_group = issubclass(type(exc), BaseExceptionGroup)
    failure: dict[str, Any] = {
        "class": name_of(type(exc)).removesuffix(_SUFFIX),
        "module": _module_of(type(exc)).removesuffix(_SUFFIX),
        "message": text_of(exc),
        # What a group holds is in the traceback of the whole.
        "tb": [] if depth and is_group else traceback_of(exc),
        # A stock peer crashes if it makes a group of strings. If an argument is missing, it notices that it cannot.
        "args": [_plain(arg) for arg in (args[:1] if is_group else args)],
        "kwargs": {key: _plain(value) for key, value in kwargs.items() if isinstance(key, str)},
    }
    extension = _extension(exc, args, kwargs, depth)
    if extension:
        failure["_msgbus"] = extension
    return failure


def _arguments(exc: BaseException) -> tuple[tuple[Any, ...], dict[Any, Any]]:
    """The arguments for the exception's constructor, to rebuild it."""
    try:
        kwargs = getattr(exc, "kwargs", None)
        return tuple(_reduced(exc)), dict(kwargs) if isinstance(kwargs, dict) else {}
    except BaseException:  # a property of somebody else's may raise anything
        return (), {}


def _reduced(exc: BaseException) -> Any:
    """The arguments that the class itself names for a copy: `copy` and `pickle` ask for them too."""
    if isinstance(exc, OSError):  # It keeps its file names out of `args`.
        return OSError.__reduce__(exc)[1]
    if _sends_attributes(exc) and type(exc).__reduce__ is not BaseException.__reduce__:
        reduced = exc.__reduce__()
        if isinstance(reduced, tuple) and reduced[0] is type(exc):
            return reduced[1]
    return exc.args


def _module_of(cls: type) -> str:
    try:
        return str.__str__(cls.__module__)
    except BaseException:  # likewise
        return ""


def _sends_attributes(exc: BaseException) -> bool:
    """Whether an exception's attributes are sent, besides its arguments.

    Those of the standard library's exceptions are not: they may hold, for example, the whole text that could not be
    parsed, which is not the caller's business.
    """
    module = _module_of(type(exc))
    return module == builtins.__name__ or module.partition(".")[0] not in sys.stdlib_module_names


def _extension(exc: BaseException, args: tuple[Any, ...], kwargs: dict[Any, Any], depth: int) -> dict[str, Any]:
    """The parts of an exception that oslo.messaging's keys cannot hold; empty if there are none."""
    found: dict[str, Any] = {}
    try:
        if not all(map(_is_scalar, args)) and (written := _written({"args": list(args)}, depth)):
            found["args"] = written["args"][1]
        kwargs = {key: value for key, value in kwargs.items() if isinstance(key, str) and not _is_scalar(value)}
        if kwargs and (written := _written(kwargs, depth)):
            found["kwargs"] = written
        if attributes := _written(_attributes(exc, args), depth):
            found["attributes"] = attributes
        if notes := _notes(exc):
            found["notes"] = notes
    except BaseException as error:  # likewise
        LOG.debug("the attributes of an exception are not sent: %s", name_of(type(error)))
    return found


def _written(values: dict[str, Any], depth: int) -> dict[str, Any]:
    """Those of `values` that can be written, each in its JSON form."""
    forms = {}
    for name, value in values.items():
        try:
            forms[name] = failure_values.write(value, _failure, depth)
        except BaseException as error:  # It cannot be written; or it is of a foreign class, and may raise anything.
            LOG.debug("%s of an exception is not sent: %s", name, name_of(type(error)))
    return forms


def _is_scalar(value: Any) -> bool:
    """Whether JSON has it, and it is not a list or dict, whose contents would have to be checked too."""
    if isinstance(value, str):
        return type(value) is str and _clean(value) == value
    return type(value) in (int, bool, type(None)) or (type(value) is float and isfinite(value))


def _attributes(exc: BaseException, args: tuple[Any, ...]) -> dict[str, Any]:
    """The attributes of an exception, besides its arguments."""
    if not _sends_attributes(exc):
        return {}
    held: dict[Any, Any] = dict(vars(exc))
    for cls, names in _SLOTS.items():
        if isinstance(exc, cls):
            held |= {name: value for name in names if (value := getattr(exc, name)) is not None}
    held.pop("kwargs", None)
    if _module_of(type(exc)) == _OURS:  # Ours are rebuilt from their arguments alone.
        held = {name: value for name, value in held.items() if not any(value is arg for arg in args)}
    return {name: value for name, value in held.items() if isinstance(name, str) and not name.startswith("__")}


def _notes(exc: BaseException) -> list[str]:
    """Its notes. The note with a remote traceback is left out: this side's traceback includes it."""
    notes = getattr(exc, "__notes__", None)
    if not isinstance(notes, list):
        return []
    return [_clean(note) for note in notes if isinstance(note, str) and not note.startswith(_NOTE)]


def _plain(value: object) -> object:
    try:
        json.dumps(value, allow_nan=False)
    except BaseException:  # likewise
        try:
            return repr(value)
        except BaseException:  # likewise
            return f"<unprintable {name_of(type(value))}>"
    return value


def rebuild_failure(text: str, allowed_modules: Collection[str]) -> Exception:
    """Make the exception that a reply's ``failure`` describes.

    Built-in exceptions, those of msgbus, and those of `allowed_modules` are rebuilt as themselves, with the remote
    traceback as a note; a module is imported only if it is listed. All others become a `RemoteError`; so do those that
    cannot be made from their arguments, or whose text would differ from the original.
    """
    try:
        try:
            failure = msgspec.json.decode(text, type=_Failure)
        except msgspec.MsgspecError:  # Stock peers write NaN, infinity and lone surrogates.
            failure = msgspec.convert(json.loads(text), _Failure)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        return RemoteError("unreadable failure", str(exc))
    return _rebuild(failure, allowed_modules, 0)


def _rebuild(failure: _Failure, allowed_modules: Collection[str], depth: int) -> Exception:
    name = failure.class_.removesuffix(_SUFFIX)
    module = failure.module.removesuffix(_SUFFIX)
    if module == "exceptions":  # Python 2's name for builtins
        module = builtins.__name__
    cls = _allowed_class(module, name, allowed_modules)
    if cls is not None:
        try:
            return _with_notes(_make(cls, failure, allowed_modules, depth), failure)
        except BaseException as exc:  # A constructor may raise anything; the caller still gets an error.
            LOG.debug("%s.%s cannot be rebuilt: %s", module, name, name_of(type(exc)))
    return _with_notes(RemoteError(name, failure.message, failure.tb), failure)


def _allowed_class(module: str, name: str, allowed_modules: Collection[str]) -> type[BaseException] | None:
    """The class of an exception that may be rebuilt, or None."""
    if module not in (builtins.__name__, _OURS) and module not in allowed_modules:
        return None
    try:
        cls = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as exc:  # What is imported may raise anything.
        LOG.debug("%s.%s cannot be found: %r", module, name, exc)
        return None
    if not isinstance(cls, type) or cls.__module__ != module or issubclass(cls, _NEVER):
        return None
    # In a group, exceptions that may not be rebuilt become RemoteErrors: then it is an ExceptionGroup.
    return cls if issubclass(cls, Exception) or cls is BaseExceptionGroup else None


def _make(cls: type[BaseException], failure: _Failure, allowed_modules: Collection[str], depth: int) -> Exception:
    """Rebuild an exception.

    Raises:
        BaseException: what its constructor raises; ValueError if its text would differ.
    """

    def member(form: Any, depth: int) -> Exception:
        return _rebuild(msgspec.convert(form, _Failure), allowed_modules, depth)

    extension = failure.extension or _Extension()
    args = failure.args
    if extension.args is not None:
        args = [failure_values.read(arg, member, depth) for arg in extension.args]
    kwargs = {name: failure_values.read(form, member, depth) for name, form in extension.kwargs.items()}
    exc = cls(*args, **{**failure.kwargs, **kwargs})
    if not isinstance(exc, Exception) or not isinstance(exc, cls):
        raise TypeError(f"{cls.__name__} makes {type(exc).__name__}")
    for name, form in extension.attributes.items():
        if not name.startswith("__") and not callable(getattr(cls, name, None)):
            setattr(exc, name, failure_values.read(form, member, depth))
    text, message = _clean(str(exc)), _clean(failure.message)  # A stock peer writes lone surrogates as they are.
    # A set in the text has another order in each process, but the same characters.
    if text != message and (extension.args is None or sorted(text) != sorted(message)):
        raise ValueError("its text would differ")
    return exc


def _with_notes(exc: Exception, failure: _Failure) -> Exception:
    notes = [] if failure.extension is None else list(failure.extension.notes)
    if failure.tb:
        notes.append(_NOTE + "".join(failure.tb).rstrip())
    for note in notes:
        BaseException.add_note(exc, note)
    return exc
