"""Arguments of exceptions as JSON, in a form that can be converted back.

A scalar of JSON stands for itself. Every other value is a list of its kind and its content, such as
``["bytes", "/w=="]`` or ``["tuple", [1, 2]]``. (Of a time zone only the offset is kept.) Only the types in the tables
here are created: a message cannot name other classes.
"""

from __future__ import annotations

import base64
import pathlib
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from types import NoneType
from typing import Any
from uuid import UUID

MAX_DEPTH = 60
"""How deep values, and exceptions within exceptions, may be nested."""
MAX_BITS = 8192
"""The most bits of an int: Python itself refuses to convert much larger ones to text and back."""

WriteException = Callable[[BaseException, int], Any]
ReadException = Callable[[Any, int], Exception]


class UnsupportedValueError(Exception):
    """A value cannot be written in this form."""


_SCALARS = (NoneType, bool, int)
_CONTAINERS: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_WRITE: dict[type, Callable[[Any], Any]] = {
    bytes: lambda value: base64.b64encode(value).decode(),
    bytearray: lambda value: base64.b64encode(value).decode(),
    complex: repr,
    date: date.isoformat,
    datetime: datetime.isoformat,
    time: time.isoformat,
    timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    Decimal: str,
    UUID: str,
    pathlib.PosixPath: str,
    pathlib.PurePosixPath: str,
}
_NAMES = {kind: kind.__name__ for kind in _WRITE} | {pathlib.PosixPath: "Path", pathlib.PurePosixPath: "PurePath"}
_READ: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "bytearray": lambda text: bytearray(base64.b64decode(text, validate=True)),
    "complex": complex,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
    "Decimal": Decimal,
    "UUID": UUID,
    "Path": pathlib.Path,
    "PurePath": pathlib.PurePath,
    "float": float,
    "text": lambda text: base64.b64decode(text, validate=True).decode("utf-8", "surrogatepass"),
}


def write(value: Any, write_exception: WriteException, depth: int = 0) -> Any:
    """Convert a value to its JSON form.

    Raises:
        UnsupportedValueError: it cannot be converted.
    """
    kind = type(value)
    if kind is int and value.bit_length() > MAX_BITS:
        raise UnsupportedValueError("it has too many digits")
    if kind in _SCALARS or (kind is float and isfinite(value)):
        return value
    if depth > MAX_DEPTH:
        raise UnsupportedValueError("it is nested too deep")
    if kind is str:
        try:
            value.encode()
        except UnicodeError:  # a file name that is no UTF-8, for one
            return ["text", base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()]
        return value
    if kind is float:
        return ["float", repr(value)]
    if kind in _CONTAINERS:
        return [_CONTAINERS[kind], [write(item, write_exception, depth + 1) for item in value]]
    if kind is dict:
        pairs = [
            [write(key, write_exception, depth + 1), write(item, write_exception, depth + 1)]
            for key, item in value.items()
        ]
        return ["dict", pairs]
    if kind in _WRITE:
        return [_NAMES[kind], _WRITE[kind](value)]
    if isinstance(value, BaseException):
        return ["exception", write_exception(value, depth + 1)]
    raise UnsupportedValueError(kind.__name__)


def read(form: Any, read_exception: ReadException, depth: int = 0) -> Any:
    """Undo `write`.

    Raises:
        Exception: it is not such a form.
    """
    if not isinstance(form, list):
        if isinstance(form, dict):
            raise ValueError("a dict is not written as one")
        return form
    if depth > MAX_DEPTH + 1:
        raise ValueError("it is nested too deep")
    kind, content = form
    if kind == "dict":
        return {read(key, read_exception, depth + 1): read(item, read_exception, depth + 1) for key, item in content}
    if kind == "exception":
        return read_exception(content, depth + 1)
    for container, name in _CONTAINERS.items():
        if kind == name:
            return container(read(item, read_exception, depth + 1) for item in content)
    return _READ[kind](content)
