"""JSON Schemas of types, by msgspec, and for its models by pydantic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from msgbus.conversion import Contents, is_anything, is_model
from msgbus.signatures import EMPTY
from msgbus.values import JSON_VALUES, is_plain

REF = "#/$defs/"
"""Before the name of a definition, where a schema refers to it."""
_ITEMS = (inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType)


class Schemas:
    """Makes JSON Schemas of types.

    Attributes:
        definitions: those of classes, by name, which others refer to.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of a type; empty if nothing is known of it."""
        if kind is EMPTY or is_anything(kind):
            return {}
        try:
            if Contents(kind).foreign:
                return {}
            (found,), classes = msgspec.json.schema_components(
                [kind], schema_hook=_schema_of_model, ref_template=f"{REF}{{name}}"
            )
            info = inspect.type_info(kind)
        except Exception:  # Classes have code of their own, and pydantic errors of its own.
            return {}
        schema: dict[str, Any] = _without_odd_values(found)
        definitions: dict[str, Any] = _without_odd_values(classes)
        _mark_times(info, schema, definitions, set())
        for inner in (schema, *definitions.values()):
            definitions.update(_taken_out(inner))
        known = self.definitions
        if any(known.get(name, definition) != definition for name, definition in definitions.items()):
            return {}  # Another class has the same name.
        known.update(definitions)
        return schema


def _without_odd_values(schema: Any) -> Any:
    """A schema without defaults and bounds that JSON does not have, such as infinity."""
    if isinstance(schema, list | tuple):
        return [_without_odd_values(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _without_odd_values(part)
        for name, part in schema.items()
        if not (name == "default" or isinstance(part, float)) or is_plain((part,), JSON_VALUES)
    }


def _schema_of_model(kind: Any) -> dict[str, Any]:
    """The schema of a model of pydantic: a reference to its definition, with that and others, until `_taken_out`."""
    if not is_model(kind):
        return {}
    schema: dict[str, Any] = kind.model_json_schema(ref_template=f"{REF}{{model}}")
    if "$ref" in schema:
        return schema
    definitions = schema.pop("$defs", {})
    return {"$ref": f"{REF}{kind.__name__}", "$defs": {kind.__name__: schema, **definitions}}


def _taken_out(schema: Any) -> dict[str, Any]:
    """Remove the definitions from within a schema, where pydantic writes them, and return them."""
    taken: dict[str, Any] = {}
    if isinstance(schema, dict):
        inside = schema.get("$defs")
        if isinstance(inside, dict) and "$ref" in schema:
            del schema["$defs"]
            taken.update(inside)
        parts: Any = (*schema.values(), *taken.values())
    else:
        parts = schema if isinstance(schema, list) else ()
    for part in parts:
        taken |= _taken_out(part)
    return taken


def _mark_times(info: Any, schema: Any, definitions: dict[str, Any], seen: set[str]) -> None:
    """Add the format to dates with times: msgspec leaves it out unless there has to be a time zone."""
    reference = schema.get("$ref", "").removeprefix(REF)
    if reference:
        if reference in seen:
            return
        seen.add(reference)
        schema = definitions.get(reference, {})
    if isinstance(info, inspect.DateTimeType | inspect.TimeType):
        schema["format"] = "date-time" if isinstance(info, inspect.DateTimeType) else "time"
        return
    for part, place in _parts(info, schema):
        if isinstance(place, dict):
            _mark_times(part, place, definitions, seen)


def _parts(info: Any, schema: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """What a type holds, each with its place in the type's schema."""
    if isinstance(info, inspect.Metadata):
        yield info.type, schema
    elif isinstance(info, _ITEMS):
        yield info.item_type, schema.get("items")
    elif isinstance(info, inspect.TupleType):
        yield from zip(info.item_types, schema.get("prefixItems", ()), strict=False)
    elif isinstance(info, inspect.NamedTupleType):
        yield from zip((field.type for field in info.fields), schema.get("prefixItems", ()), strict=False)
    elif isinstance(info, inspect.DictType):
        yield info.value_type, schema.get("additionalProperties")
    elif isinstance(info, inspect.UnionType):
        for part in info.types:
            for place in schema.get("anyOf", ()):
                if _fits(part, place):
                    yield part, place
    else:
        properties = schema.get("properties", {})
        for field in getattr(info, "fields", ()):
            yield field.type, properties.get(field.encode_name)


def _fits(part: Any, place: Any) -> bool:
    """Whether a schema in a union is that of a type in it: msgspec allows one text, list and so on in each."""
    if isinstance(part, inspect.DateTimeType | inspect.TimeType):
        return bool(place.get("type") == "string")
    if hasattr(part, "cls"):
        return bool(place.get("$ref", "").removeprefix(REF).rpartition(".")[2] == part.cls.__name__)
    if isinstance(part, inspect.DictType):
        return bool(place.get("type") == "object")
    return bool(place.get("type") == "array") and isinstance(part, (*_ITEMS, inspect.TupleType))
