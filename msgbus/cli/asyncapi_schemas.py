"""JSON Schemas in the dialect of AsyncAPI, which is draft 07; servers describe themselves in that of 2020-12.

What comes from a server is foreign: it may make no sense. Where a schema is missing, all is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isfinite
from typing import Any

REF = "#/$defs/"
MAX_DEPTH = 100
"""How deep schemas within a schema are read. What is deeper may be anything."""
_ONE = ("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
"""Keywords whose value is a schema."""
_MANY = ("allOf", "anyOf", "oneOf")
"""Those whose value is a list of schemas."""
_BY_NAME = ("patternProperties", "properties")
"""Those whose value has schemas by name."""
_LEFT_OUT = ("$defs", "$id", "$schema", "definitions", "discriminator", "prefixItems")
"""Those that are left out: in AsyncAPI they mean something else, or there is another place for them."""


class Names:
    """Gives out names that AsyncAPI allows, each once.

    Args:
        taken: names that are not given out.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._numbers: dict[str, int] = {}  # by name without its number: the last one

    def new(self, wanted: str) -> str:
        """A name that is like `wanted`."""
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", wanted)[:100] or "unnamed"
        name, number = plain, self._numbers.get(plain, 1)
        while name in self._taken:
            number += 1
            name = f"{plain}-{number}"
        self._numbers[plain] = number
        self._taken.add(name)
        return name


class Converter:
    """Converts schemas that refer to the definitions of one server."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        names = Names()
        self._definitions = definitions
        self._names = {name: names.new(name) for name in definitions}

    def converted(self) -> dict[str, Any]:
        """The definitions, by the names that they have in the document."""
        return {self._names[name]: self.of(schema) for name, schema in self._definitions.items()}

    def of(self, schema: Any, depth: int = 0) -> Any:
        """A schema in AsyncAPI's dialect. True and False are schemas, too."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict) or depth == MAX_DEPTH:
            return {}
        found = {
            word: self._value(word, value, depth + 1)
            for word, value in schema.items()
            if word not in _LEFT_OUT and not (isinstance(value, float) and not isfinite(value))
        }
        self._convert_tuple(schema, found, depth + 1)
        return _with_reference(found)

    def _value(self, word: str, value: Any, depth: int) -> Any:
        """The value of a keyword."""
        if word == "$ref":
            name = self._names.get(value.removeprefix(REF)) if isinstance(value, str) else None
            return None if name is None else f"#/components/schemas/{name}"
        if word in _ONE:
            return self.of(value, depth)
        if word in _MANY:
            members = value if isinstance(value, list) and value else [{}]
            return [self.of(member, depth) for member in members]
        if word in _BY_NAME:
            named = value if isinstance(value, dict) else {}
            return {name: self.of(member, depth) for name, member in named.items()}
        return value

    def _convert_tuple(self, schema: dict[str, Any], found: dict[str, Any], depth: int) -> None:
        """Write the types of a tuple's items, which had another keyword in draft 07."""
        items = schema.get("prefixItems")
        if isinstance(items, list) and items:
            if "items" in found:
                found["additionalItems"] = found["items"]
            found["items"] = [self.of(item, depth) for item in items]


def _with_reference(found: dict[str, Any]) -> dict[str, Any]:
    """A schema whose reference, if there is one, stands alone: what is beside one is not read."""
    if "$ref" not in found:
        return found
    reference = found.pop("$ref")
    if reference is None:  # There is no such definition.
        return found
    if not found:
        return {"$ref": reference}
    return {**found, "allOf": [{"$ref": reference}, *found.get("allOf", [])]}
