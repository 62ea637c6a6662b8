"""Typed values and plain data: what the values of a type are sent as, and what is made of what arrives.

msgspec does both, by type: Structs, dataclasses, attrs classes, enums, dates, UUIDs, unions and so on. Models of
pydantic are asked themselves; pydantic is never imported here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from msgbus.exceptions import SerializationError
from msgbus.mismatch import MISFITS, Mismatch, ModelError, explain
from msgbus.signatures import WHERE

MAX_ERRORS = 100
"""Of a model with more errors the first one is not looked for: pydantic has only all of them, and each takes memory."""
_BINARY = (bytes, bytearray, memoryview)


class Fields:
    """Converts values that have names, each to its type. What msgspec needs to know of the types is prepared once."""

    def __init__(self, types: Mapping[str, Any], *, has_serializer: bool) -> None:
        """Prepare a conversion.

        Args:
            types: the type of each value.
            has_serializer: values may be of any class, since a serializer makes them.

        Raises:
            TypeError: no values of a type can be made, such as of a union of two classes; the text names its value.
        """
        self._leaves_defaults = False
        for name, kind in types.items():
            try:
                _struct_of({name: kind})
                contents = Contents(kind)
                _refuse_unusable(contents, has_serializer)
            except Exception as exc:  # Annotations of classes are evaluated here.
                raise TypeError(f"{name}: {_why(exc)}") from None
            self._leaves_defaults |= contents.leaves_defaults
        self._names = frozenset(types)
        self._struct = _struct_of(types)

    def convert(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values in their types; those of other names as they are.

        Raises:
            Mismatch: a value does not fit its type.
        """
        try:
            made = self._convert(values)
        except MISFITS as exc:
            raise Mismatch(explain(exc, values, self._convert)) from None
        if self._leaves_defaults:
            _set_defaults(made)
        names = self._names
        return {name: getattr(made, name) if name in names else value for name, value in values.items()}

    def _convert(self, values: Any) -> Any:
        return msgspec.convert(values, self._struct, str_keys=True, dec_hook=_make_model)


def _struct_of(types: Mapping[str, Any]) -> Any:
    struct = msgspec.defstruct("Values", [(name, kind, msgspec.UNSET) for name, kind in types.items()], kw_only=True)
    msgspec.convert({}, struct)  # Now, since msgspec looks at the types when they are first used.
    return struct


def _set_defaults(made: Any) -> None:
    """Give the dataclasses in what msgspec has made the defaults of what was not sent.

    msgspec leaves these to the class, where the method finds them. But it does not send what only the class has: in an
    answer, or in a call to another service, such a field would be missing.
    """
    rest, seen = [made], set()
    while rest:
        value = rest.pop()
        if isinstance(value, _SCALARS) or id(value) in seen:  # A method of the class may have made a cycle.
            continue
        seen.add(id(value))
        if isinstance(value, list | tuple | set | frozenset):
            rest.extend(value)
        elif isinstance(value, dict):
            rest.extend(value.values())
        else:
            own = getattr(value, "__dict__", {})
            for name in _missing_defaults(type(value)):
                own.setdefault(name, getattr(value, name))
            rest.extend(getattr(value, name) for name in _names_of_fields(type(value)) if hasattr(value, name))


_SCALARS = (type(None), bool, int, float, str, bytes)


def _missing_defaults(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass that msgspec leaves to the class if they are not sent."""
    if not dataclasses.is_dataclass(kind) or "__slots__" in vars(kind):
        return ()
    return tuple(
        field.name for field in dataclasses.fields(kind) if field.init and field.default is not dataclasses.MISSING
    )


def _names_of_fields(kind: type) -> tuple[str, ...]:
    """Those of a dataclass, Struct, or attrs class."""
    if hasattr(kind, "__struct_fields__"):
        return tuple(kind.__struct_fields__)
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return tuple(field.name for field in getattr(kind, "__attrs_attrs__", ()))


def _refuse_unusable(contents: Contents, has_serializer: bool) -> None:
    """Refuse a type of which no values can be made, or only without the checks that belong to it.

    Raises:
        TypeError, NameError: no values can be made of what is in it.
    """
    for model in contents.models:
        if not model.__pydantic_complete__:  # It names what may be defined by now.
            model.model_rebuild()
    if contents.unchecked:
        raise TypeError(
            f"{contents.unchecked[0].__qualname__} is a dataclass of pydantic, whose checks would not run: make it a "
            "pydantic.BaseModel, or a plain dataclass"
        )
    refuse_mixed_keys(contents)
    if contents.foreign and not has_serializer:
        raise TypeError(
            f"no {contents.foreign[0].__qualname__} can be made of the plain data that arrives: annotate it with a "
            "dataclass or the like, or with Any, or use a serializer that makes it"
        )


def refuse_mixed_keys(contents: Contents) -> None:
    """Refuse a type with dicts whose keys would not arrive as they are.

    Raises:
        TypeError: there are such.
    """
    if contents.mixes_keys:
        raise TypeError(
            "the keys of a dict have to be either strings or numbers, since all of them are sent as strings"
        )


def _why(exc: Exception) -> str:
    text = str(exc).partition("\n")[0]
    return f"{text}; {WHERE}" if isinstance(exc, NameError) else text


def is_model(kind: Any) -> bool:
    """Whether it is a model of pydantic (2)."""
    return isinstance(kind, type) and hasattr(kind, "model_validate_json") and hasattr(kind, "model_dump")


def _make_model(kind: Any, value: Any) -> Any:
    """Make what msgspec does not know itself: a model of pydantic. msgspec refuses what is of another type."""
    if not is_model(kind) or isinstance(value, kind):
        return value
    try:
        return _validated_model(kind, value)
    except ValueError as exc:
        errors: Any = getattr(exc, "errors", None)
        if errors is None:
            raise
        count = exc.error_count()  # type: ignore[attr-defined]  # it is pydantic's own error
        if count > MAX_ERRORS:
            raise ModelError([], f"{count} values in it do not fit") from None
        first = errors(include_url=False, include_input=False, include_context=False)[0]
        raise ModelError(list(first["loc"]), first["msg"]) from None


def _validated_model(kind: Any, value: Any) -> Any:
    """Make a model from JSON, since it may be strict: then it takes text for a date from JSON only.

    JSON has no binary data. What holds some is given to the model as it is.
    """
    try:
        text = json.dumps(value, default=_in_json)  # With NaN, of which msgspec would make null.
    except _BinaryError:
        return kind.model_validate(value)
    return kind.model_validate_json(text)


class _BinaryError(Exception):
    """There is binary data in a value."""


def _in_json(value: Any) -> Any:
    if isinstance(value, _BINARY):
        raise _BinaryError
    return msgspec.to_builtins(value, str_keys=True)


def to_plain(value: Any, *, binary: bool) -> Any:
    """Return a value in plain data. Binary data becomes base64 text, unless it is to be kept as it is (`binary`).

    Raises:
        SerializationError: there is something in it that cannot be turned into plain data.
    """
    try:
        return msgspec.to_builtins(
            value, str_keys=True, builtin_types=_BINARY if binary else None, enc_hook=_model_to_plain
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise SerializationError(f"cannot be turned into plain data: {exc}") from None


def _model_to_plain(value: Any) -> Any:
    if is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is not plain data")


def is_anything(kind: Any) -> bool:
    """Whether it says nothing of a value."""
    return kind is Any or kind is object


def is_record(kind: Any) -> bool:
    """Whether it is a class of named fields: a Struct, dataclass, attrs class, TypedDict, or model of pydantic."""
    if not isinstance(kind, type):
        return False
    names = ("__struct_fields__", "__dataclass_fields__", "__attrs_attrs__", "__total__")
    return is_model(kind) or any(hasattr(kind, name) for name in names)


class Contents:
    """What is in the values of a type.

    Attributes:
        is_plain: only what msgbus sends as it is; bytes are not among it, since JSON has none.
        models: those of pydantic.
        foreign: classes that neither msgspec nor pydantic can make of plain data.
        unchecked: dataclasses of pydantic, whose own checks would not run.
        leaves_defaults: there are dataclasses whose defaults msgspec leaves to the class.
        mixes_keys: the keys of a dict may be texts and numbers, and all travel as texts: 1 and "1" would be the same.
    """

    def __init__(self, kind: Any) -> None:
        """Look into a type.

        Raises:
            TypeError: msgspec cannot read it.
        """
        plain = (
            *(inspect.AnyType, inspect.NoneType, inspect.BoolType, inspect.IntType, inspect.FloatType),
            *(inspect.StrType, inspect.DateTimeType, inspect.DateType, inspect.TimeType, inspect.TimeDeltaType),
            *(inspect.UUIDType, inspect.DecimalType, inspect.LiteralType, inspect.UnionType, inspect.Metadata),
            *(inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.TupleType, inspect.VarTupleType),
        )
        self.is_plain = True
        self.models: list[Any] = []
        self.foreign: list[Any] = []
        self.unchecked: list[Any] = []
        self.leaves_defaults = self.mixes_keys = False
        try:
            info = inspect.type_info(kind)
        except Exception as exc:  # Annotations of classes are evaluated here.
            raise TypeError(_why(exc)) from None
        for part in _parts(info, set()):
            if isinstance(part, inspect.CustomType):
                if part.cls is object:
                    continue
                (self.models if is_model(part.cls) else self.foreign).append(part.cls)
            elif isinstance(part, inspect.DataclassType):
                self.leaves_defaults |= bool(_missing_defaults(part.cls))
                if hasattr(part.cls, "__pydantic_validator__"):
                    self.unchecked.append(part.cls)
            elif isinstance(part, inspect.DictType):
                self.mixes_keys = self.mixes_keys or _mixes_texts_and_numbers(part.key_type)
                if isinstance(part.key_type, inspect.StrType | inspect.AnyType):
                    continue
            elif isinstance(part, plain):
                continue
            self.is_plain = False


def _mixes_texts_and_numbers(key: Any) -> bool:
    key = _without_metadata(key)
    kinds = [_without_metadata(kind) for kind in key.types] if isinstance(key, inspect.UnionType) else ()
    return any(isinstance(kind, inspect.StrType) for kind in kinds) and any(
        isinstance(kind, inspect.IntType | inspect.FloatType) for kind in kinds
    )


def _without_metadata(info: Any) -> Any:
    """A description of a type, without what an `Annotated` says of it besides bounds."""
    return info.type if isinstance(info, inspect.Metadata) else info


def _parts(info: Any, seen: set[int]) -> Iterator[Any]:
    """A description of a type by msgspec, and those of all that it holds, each once: a type may hold itself."""
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, inspect.Type):
        yield info
    for name in getattr(info, "__struct_fields__", ()):
        value = getattr(info, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, inspect.Type | inspect.Field):
                yield from _parts(part, seen)
