"""Values that travel: which arguments, results and items a codec writes, and in what form the others arrive.

What a receiver gets does not depend on the codec. A kind of value that a codec does not have is an error; it never
becomes another value. The table of all kinds is in ``docs/reference/values.md``, and is tested cell by cell.

`is_plain` walks through each message: if it holds only types that the codec can write, it is written as it is.
Otherwise `simplified` makes a copy in plain data, or says where in the value the problem is.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from types import NoneType
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from msgbus.exceptions import SerializationError

BIG_INT = 1
"""The code of the msgpack extension type that holds the decimal digits of an int of more than 64 bits."""

_BINARY = frozenset((bytes, bytearray, memoryview))
_ALWAYS = frozenset((NoneType, bool, int, str, date, timedelta, Decimal, UUID))
_LISTS = frozenset((list, tuple, set, frozenset))
_DICTS = frozenset((dict, OrderedDict, defaultdict, Counter))


class Codec(NamedTuple):
    """What a codec writes.

    Attributes:
        name: its content type.
        as_it_is: the types that are written without a further check. (Some, such as `date`, the library writes as
            text.)
        keys: the types that the keys of a dict may have.
        big_ints: whether it has integers of more than 64 bits.
    """

    name: str
    as_it_is: frozenset[type]
    keys: frozenset[type] = frozenset((str,))
    big_ints: bool = True


JSON_VALUES = Codec("application/json", _ALWAYS)
LOSSY_JSON_VALUES = Codec("application/json", _ALWAYS | _BINARY | {float}, frozenset((str, int, float)))
MSGPACK_VALUES = Codec("application/msgpack", _ALWAYS | _BINARY | {float}, big_ints=False)


class _CannotTravelError(Exception):
    """A value cannot be written.

    Attributes:
        path: where in the argument it is, innermost first.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.path: list[str] = []


def is_plain(values: Iterable[Any], codec: Codec) -> bool:
    """Whether `codec` can write `values`, and all that is in them, as they are. The size of integers is not checked."""
    as_it_is = codec.as_it_is
    for value in values:
        kind = type(value)
        if kind in as_it_is:
            continue
        if kind is dict:
            for key in value:
                if type(key) is not str:
                    return False
            if value and not is_plain(value.values(), codec):
                return False
        elif kind is list or kind is tuple:
            if value and not is_plain(value, codec):
                return False
        elif kind is not float or not isfinite(value):
            return False
    return True


def simplified(value: Any, codec: Codec) -> Any:
    """Return `value` in the form in which it arrives.

    Raises:
        SerializationError: something in it cannot travel; the text says what, where, and what to do.
    """
    try:
        return _simplified(value, codec)
    except _CannotTravelError as exc:
        where = "".join(reversed(exc.path))
        raise SerializationError(
            f"cannot be written as {codec.name}: {f'at {where}: ' if where else ''}{exc}"
        ) from None


def _simplified(value: Any, codec: Codec) -> Any:
    kind = type(value)
    if kind is int and not codec.big_ints and not -(1 << 63) <= value < 1 << 64:
        return msgspec.msgpack.Ext(BIG_INT, str(value).encode())
    if kind in codec.as_it_is:
        return value
    if kind in _DICTS:
        return {_key(key, codec): _inside(item, codec, f"[{_shown(key)}]") for key, item in value.items()}
    if kind in _LISTS:
        return [_inside(item, codec, f"[{at}]") for at, item in enumerate(value)]
    if kind is datetime or kind is time:
        text: str = value.isoformat()
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text
    if kind is float and isfinite(value):
        return value
    if isinstance(value, enum.Enum):
        # Such a member is equal to the string or number that arrives.
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return _simplified(int.__int__(value), codec)
    raise _CannotTravelError(_why(value, codec))


def _inside(value: Any, codec: Codec, where: str) -> Any:
    try:
        return _simplified(value, codec)
    except _CannotTravelError as exc:
        exc.path.append(where)
        raise


def _key(key: Any, codec: Codec) -> Any:
    if type(key) in codec.keys:
        return key
    if isinstance(key, enum.Enum) and isinstance(key, str):
        return str.__str__(key)
    raise _CannotTravelError(f"the keys of a dict are strings, and {_shown(key)} is of type {_type_name(key)}")


def _shown(key: Any) -> str:
    """A dict's key, for the text of an error. Of a user's class only the name, since its `repr` may do anything."""
    if type(key) not in (str, int, float, bool, NoneType, bytes):
        return _type_name(key)
    text = repr(key)
    return text if len(text) <= 50 else f"{text[:50]}..."


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _why(value: Any, codec: Codec) -> str:
    """Why a value cannot travel, and what to do about it."""
    kind = type(value)
    if kind is float:
        return f"JSON has no number {value!r} (send None, or set the option rpc_codec to msgpack)"
    if kind in _BINARY:
        hint = "send base64 text, or set the option rpc_codec to msgpack"
        return f"JSON has no binary data, such as {kind.__name__} ({hint})"
    what = f"{_type_name(value)} is not plain data"
    if hasattr(kind, "tolist"):  # numpy and the like: arrays, and numbers that are subclasses of float
        return f"{what} (its tolist() is)"
    if isinstance(value, enum.Enum):
        return f"{what} (send its value)"
    for base, way in ((dict, "dict"), (list, "list"), (str, "str"), (int, "int"), (float, "float"), (bytes, "bytes")):
        if issubclass(kind, base):
            return f"{what}: a subclass may hold more than a {way} (send {way}(value), or give a serializer)"
    if issubclass(kind, tuple):
        return f"{what}: its names would be lost (send value._asdict() or tuple(value), or give a serializer)"
    return (
        f"{what}, that is dict, list, str, number, bool, None (give a serializer: msgbus.JsonPayloadSerializer makes "
        "it of dataclasses and the like)"
    )


def read_extension(code: int, data: memoryview) -> int:
    """Read what msgpack itself does not have.

    Raises:
        ValueError: msgbus does not write that type.
    """
    if code != BIG_INT:
        raise ValueError(f"unknown extension type {code}")
    return int(bytes(data))
