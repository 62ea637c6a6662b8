"""Says what is wrong with a value that does not fit its type, and where in it: from what msgspec and pydantic say."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from msgbus.foreign import printable

MISFITS = (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError)
"""What a conversion raises for values that do not fit: msgspec its own error, and Python others, for example for what
has no hash and is to be in a set."""
MAX_TEXT = 500
"""Characters of a text: parts of it may come from the value."""
MAX_KEYS = 100
"""How many values of dicts are tried in all, to find the one that is wrong."""
MAX_BYTES = 100_000
"""Larger values are not tried: somebody may send many of them on purpose."""
_AT = re.compile(r"(?P<what>.*) - at (?P<key>`key` in )?`\$(?P<path>.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_FIELD = re.compile(r"Object (?:contains )?(?P<what>missing|unknown)(?: required)? field `(?P<name>.*)`", re.DOTALL)

Path = list[Any]
"""Steps into a value: names of fields, positions in lists, and `...` for a value of a dict that is not known."""


class Mismatch(ValueError):
    """A value does not fit its type. The text begins with where: ``image.width: expected int >= 1, got -3``."""


class ModelError(ValueError):
    """A model of pydantic refuses a value.

    Attributes:
        path: where in the value.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(what)
        self.path = path


class Key(str):
    """A step that is a key of a dict, and not the name of a field."""

    __slots__ = ()


def explain(exc: Exception, values: dict[str, Any], convert: Callable[[Any], Any]) -> str:
    """What is wrong, after the place.

    Args:
        exc: what `convert` has raised.
        values: what it was called with.
        convert: the conversion. It is tried with parts of `values`.
    """
    what, path = _what_and_where(exc)
    if path:
        found = _with_keys(path, what, values, convert) if ... in path and _is_small(values) else path
    else:
        found = _first_wrong(values, convert)
    if what.startswith("expected ") and "got" not in what:
        what += _shown(_value_at(values, found), what)
    text = f"{_text_of(found)}: {what}" if found else what
    return printable(text, MAX_TEXT)


def _what_and_where(exc: Exception) -> tuple[str, Path]:
    if isinstance(exc, UnicodeError):
        return "it contains half a character, which is not text", []
    if isinstance(exc, RecursionError):
        return "it is nested too deep", []
    found = _AT.fullmatch(str(exc))
    what, text = (found["what"], found["path"]) if found else (str(exc), "")
    path: Path = []
    for name, position in _STEP.findall(text):
        path.append(name or (... if position == "..." else int(position)))
    cause = exc.__cause__
    if isinstance(cause, ModelError):
        path, what = path + cause.path, str(cause)
    elif field := _FIELD.fullmatch(what):
        path.append(field["name"])
        what = "it is missing" if field["what"] == "missing" else "there is no such field"
    what = f"{what[:1].lower()}{what[1:]}".replace("`", "")
    return f"a key of it: {what}" if found and found["key"] else what, path


def _with_keys(path: Path, what: str, values: Any, convert: Callable[[Any], Any]) -> Path:
    """The path with the keys of dicts, which msgspec does not say: the values of these are tried one by one."""
    path = list(path)
    tries = MAX_KEYS
    for at, step in enumerate(path):
        if step is not ...:
            continue
        inside = _value_at(values, path[:at])
        for key in islice(inside, tries) if isinstance(inside, dict) else ():
            tries -= 1
            only = _replaced(values, path[:at], {key: inside[key]})
            if _fails_alike(only, what, path, convert):
                path[at], values = Key(key), only
                break
        else:
            break
    return path


def _first_wrong(values: dict[str, Any], convert: Callable[[Any], Any]) -> Path:
    """Which of the values cannot be converted, of an error that does not say it: the values are tried one by one."""
    for name, value in values.items():
        try:
            convert({name: value})
        except MISFITS:
            return [name]
    return []


def _is_small(values: Any) -> bool:
    try:
        return len(msgspec.json.encode(values)) <= MAX_BYTES
    except (TypeError, ValueError, OverflowError, RecursionError):  # A serializer may have made anything.
        return False


def _fails_alike(values: Any, what: str, path: Path, convert: Callable[[Any], Any]) -> bool:
    try:
        convert(values)
    except MISFITS as exc:
        found, where = _what_and_where(exc)
        return found == what and len(where) == len(path)
    return False


def _value_at(values: Any, path: Path) -> Any:
    """The value at a path, or `...` if it cannot be found."""
    for step in path:
        if not isinstance(values, list | tuple if isinstance(step, int) else dict):
            return ...
        try:
            values = values[step]
        except LookupError:
            return ...
    return values


def _replaced(values: Any, path: Path, new: Any) -> Any:
    """A copy of a value, with another one at a path that exists."""
    if not path:
        return new
    first, *rest = path
    copy: Any = dict(values) if isinstance(values, dict) else list(values)
    copy[first] = _replaced(values[first], rest, new)
    return copy


def _text_of(path: Path) -> str:
    text = ""
    for step in path:
        if isinstance(step, Key):
            shown = repr(str(step))
            text += f"[{shown if len(shown) <= 50 else f'{shown[:50]}...'}]"
        else:
            text += f".{step}" if isinstance(step, str) else f"[{'...' if step is ... else step}]"
    return text.removeprefix(".")


def _shown(value: Any, what: str) -> str:
    """The end of a text, with the value if it is a number, or its length. Other values may be long, or secret."""
    if "length" in what and isinstance(value, str | bytes | list | tuple | dict):
        is_encoded = isinstance(value, str) and "bytes" in what  # It is longer than what it stands for.
        return "" if is_encoded else f", got {len(value)}"
    if isinstance(value, float) or (isinstance(value, int) and -(1 << 64) < value < 1 << 64):
        return f", got {value!r}"
    return ""
