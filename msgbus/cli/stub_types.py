"""Python types for JSON Schemas, and classes for their definitions.

Schemas come from a server. What cannot be expressed, or makes no sense, is Any; names are only used if they are
identifiers, and values only as literals.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Annotated, Any, NamedTuple

import msgspec

from msgbus.schemas import REF

INDENT = "    "
MAX_DEPTH = 50
"""How deep types may be within others. Python reads no more than some hundred brackets within each other."""
MAX_REFERRED = 1000
"""The most characters of a type that is written where it is referred to: each may refer to another several times."""
MODULES = {
    "AsyncIterator": "collections.abc",
    "Iterator": "collections.abc",
    **dict.fromkeys(("date", "datetime", "time", "timedelta"), "datetime"),
    "Decimal": "decimal",
    **dict.fromkeys(("Annotated", "Any", "ClassVar", "Literal", "Protocol"), "typing"),
    "UUID": "uuid",
    "Target": "msgbus",
    "one_way": "msgbus",
    **dict.fromkeys(("Meta", "Struct", "UNSET", "UnsetType", "field"), "msgspec"),
}
"""Name -> the module that has it. All others are built in."""
_FORMATS = {
    "date-time": "datetime",
    "date": "date",
    "time": "time",
    "duration": "timedelta",
    "uuid": "UUID",
    "decimal": "Decimal",
}
_NUMBERS = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
}
_PYTHON = {"integer": int, "number": float, "string": str, "array": list}
_BOUNDS = {
    "integer": _NUMBERS,
    "number": _NUMBERS,
    "string": {"minLength": "min_length", "maxLength": "max_length"},
    "array": {"minItems": "min_length", "maxItems": "max_length"},
}


class Kind(NamedTuple):
    """A type.

    Attributes:
        text: as it is written.
        parts: what a value of it may be in JSON: a union has room for one type of each. Of a class that is told from
            others by a field: the field, and the type and the value of what is in it.
    """

    text: str
    parts: frozenset[str | tuple[str, type, str | int]]


def is_identifier(text: str) -> bool:
    """Whether Python allows it as a name."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text) and not text.startswith("__")


def shown(text: str) -> str:
    """A text of a server as a comment of one line."""
    return ascii(text[:100])


def literal(value: Any) -> str:
    """A value as it is written in Python."""
    if isinstance(value, str) and '"' not in value and "\\" not in value and value.isprintable():
        return f'"{value}"'
    return repr(value)


def docstring(text: str, indent: str) -> str:
    """A text as a docstring; it is written in the usual form if it is harmless there."""
    text = text.encode(errors="replace").decode()  # No class may have half a character in its docstring.
    lines = text.split("\n")
    if "\\" in text or '"' in text or not text or not all(line.isprintable() for line in lines):
        return f"{indent}{literal(text)}"
    body = "".join(f"\n{indent}{line}".rstrip() for line in lines[1:])
    return f'{indent}"""{lines[0]}{body}' + ('"""' if len(lines) == 1 else f'\n{indent}"""')


class Types:
    """The types of one module.

    Attributes:
        members: names of methods and fields. Within a class they would hide a type of the same name, which is imported
            under another one then.
    """

    def __init__(self, definitions: Mapping[str, Any], methods: Iterable[str]) -> None:
        self._definitions = {name: found for name, found in definitions.items() if isinstance(found, dict)}
        self.members = {*methods, *(name for found in self._definitions.values() for name in _properties(found))}
        self._imports: set[str] = set()
        self._names: set[str] = {*MODULES, *vars(builtins), *keyword.kwlist, *self.members}
        self._numbers: dict[str, int] = {}
        self._classes = {name: self.new_name(name) for name, found in self._definitions.items() if _properties(found)}
        self._aliases = {
            name: self.new_name(name)
            for name, found in self._definitions.items()
            if isinstance(found.get("enum"), list) and name not in self._classes
        }
        self._tags: dict[str, tuple[str, type, str | int]] = {}
        self._referred_to: dict[str, Kind] = {}
        self._depth = 0
        self.note_tags(self._definitions.values())

    def new_name(self, wanted: str) -> str:
        """A name for a class that nothing else has."""
        plain = re.sub(r"[^A-Za-z0-9_]", "_", wanted.rpartition(".")[2])[:60].lstrip("_0123456789") or "Anonymous"
        name, number = plain, self._numbers.get(plain, 1)
        while name in self._names:
            number += 1
            name = f"{plain}{number}"
        self._numbers[plain] = number
        self._names.add(name)
        return name

    def note_tags(self, schemas: Iterable[Any]) -> None:
        """Look in further schemas for unions whose members are told apart by a field."""
        for name, field in _tags_in([*schemas]):
            value = _only_value(_properties(self._definitions.get(name, {})).get(field))
            if _can_be_a_field(field) and value is not None:
                self._tags[name] = (field, type(value), value)

    def use(self, name: str) -> str:
        """How a type is written that is imported or built in."""
        hidden = name in self.members
        if hidden or name in MODULES:
            self._imports.add(name)
        return f"_{name}" if hidden else name

    def imports(self) -> list[str]:
        """The lines that import what is used."""
        by_module: dict[str, list[str]] = {}
        for name in sorted(self._imports, key=lambda name: (name.lower(), name)):
            by_module.setdefault(MODULES.get(name, "builtins"), []).append(
                f"{name} as _{name}" if name in self.members else name
            )
        lines = {module: f"from {module} import {', '.join(names)}" for module, names in sorted(by_module.items())}
        ours = [lines.pop(module) for module in ("msgbus", "msgspec") if module in lines]
        return [*lines.values(), "", *ours]

    def of(self, schema: Any) -> str:
        """The type of a schema's values."""
        return self._kind(schema).text

    def _any(self) -> Kind:
        return Kind(self.use("Any"), frozenset(("null", "boolean", "int", "float", "string", "array", "object")))

    def _kind(self, schema: Any) -> Kind:
        if not isinstance(schema, dict) or self._depth == MAX_DEPTH:
            return self._any()
        self._depth += 1
        try:
            return self._kind_of(schema)
        finally:
            self._depth -= 1

    def _kind_of(self, schema: dict[str, Any]) -> Kind:
        reference = schema.get("$ref")
        if isinstance(reference, str):
            return self._referred(reference.removeprefix(REF))
        for word in ("anyOf", "oneOf", "allOf"):
            members = schema.get(word)
            if isinstance(members, list) and members:
                return self._union([self._kind(member) for member in members])
        if isinstance(schema.get("enum"), list):
            return self._literal(schema["enum"])
        if "const" in schema:
            return self._literal([schema["const"]])
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._union([self._kind({**schema, "type": one}) for one in kind])
        return self._plain(schema, kind)

    def _referred(self, name: str) -> Kind:
        if name in self._classes:
            return Kind(self._classes[name], frozenset((self._tags.get(name, "object"),)))
        if name in self._aliases:
            return self._literal(self._definitions[name]["enum"])._replace(text=self._aliases[name])
        if name not in self._definitions:
            return self._any()
        if name not in self._referred_to:
            self._referred_to[name] = self._any()  # While it is looked at, since it may hold itself.
            kind = self._kind(self._definitions[name])
            self._referred_to[name] = kind if len(kind.text) <= MAX_REFERRED else self._any()
        return self._referred_to[name]

    def _union(self, members: list[Kind]) -> Kind:
        members = list({member.text: member for member in members}.values())
        if len(members) < 2:
            return members[0] if members else self._any()
        parts = [part for member in members for part in member.parts]
        tags = {part[:2] for part in parts if isinstance(part, tuple)}
        if len(parts) != len(set(parts)) or len(tags) > 1 or (tags and "object" in parts):
            return self._any()
        return Kind(" | ".join(member.text for member in members), frozenset(parts))

    def _literal(self, values: list[Any]) -> Kind:
        names: dict[type, str] = {str: "string", int: "int", type(None): "null"}
        if not values or not all(type(value) in names and _is_literal(value) for value in values):
            return self._any()
        text = ", ".join(map(literal, values))
        return Kind(f"{self.use('Literal')}[{text}]", frozenset(names[type(value)] for value in values))

    def _plain(self, schema: dict[str, Any], kind: Any) -> Kind:
        if kind == "null":
            return Kind("None", frozenset(("null",)))
        if kind == "boolean":
            return Kind(self.use("bool"), frozenset(("boolean",)))
        if kind in ("integer", "number"):
            name = "int" if kind == "integer" else "float"
            return self._bounded(Kind(self.use(name), frozenset((name,))), schema)
        if kind == "string":
            name = _FORMATS.get(str(schema.get("format")), "str")
            if "contentEncoding" in schema:
                name = "bytes"
            text = Kind(self.use(name), frozenset(("string",)))
            return self._bounded(text, schema) if name in ("str", "bytes") else text
        if kind == "array":
            return self._array(schema)
        if kind == "object":
            values = self._kind(schema.get("additionalProperties")).text
            return Kind(f"{self.use('dict')}[{self.use('str')}, {values}]", frozenset(("object",)))
        return self._any()

    def _array(self, schema: dict[str, Any]) -> Kind:
        first = schema.get("prefixItems")
        parts = frozenset(("array",))
        if isinstance(first, list):
            if schema.get("minItems", len(first)) != len(first):  # Some may be missing.
                return Kind(f"{self.use('list')}[{self.use('Any')}]", parts)
            items = ", ".join(self._kind(item).text for item in first) or "()"
            return Kind(f"{self.use('tuple')}[{items}]", parts)
        items = self._kind(schema.get("items")).text
        return self._bounded(Kind(f"{self.use('list')}[{items}]", parts), schema)

    def _bounded(self, kind: Kind, schema: dict[str, Any]) -> Kind:
        """The type with its bounds, if these are bounds that msgspec takes.

        Patterns are not among them: a server must not choose what this side searches for in its results.
        """
        found = {
            name: schema[word]
            for word, name in _BOUNDS[schema["type"]].items()
            if type(schema.get(word)) is int or (type(schema.get(word)) is float and isfinite(schema[word]))
        }
        try:
            msgspec.json.Decoder(Annotated[_PYTHON[schema["type"]], msgspec.Meta(**found)])
        except Exception:  # It has many errors for bounds that make no sense.
            return kind
        if not found:
            return kind
        shown = ", ".join(f"{name}={value!r}" for name, value in found.items())
        return Kind(f"{self.use('Annotated')}[{kind.text}, {self.use('Meta')}({shown})]", kind.parts)

    def write_definitions(self) -> Iterator[str]:
        """The lines of all classes, and before them of types that are no classes."""
        if self._aliases:
            yield ""
        for key, name in self._aliases.items():
            yield f"{name} = {self._literal(self._definitions[key]['enum']).text}"
        for key, name in self._classes.items():
            yield ""
            yield ""
            yield from self._class(key, name, self._definitions[key])

    def _class(self, key: str, name: str, definition: dict[str, Any]) -> Iterator[str]:
        tag = self._tags.get(key)
        properties = _properties(definition)
        options = "kw_only=True"
        if tag is not None:
            field, _, value = tag
            del properties[field]
            options += f", tag_field={literal(field)}, tag={literal(value)}"
        yield f"class {name}({self.use('Struct')}, {options}):"
        text = definition.get("description")
        if isinstance(text, str) and text:
            yield docstring(text, INDENT)
            yield ""
        required = definition.get("required")
        needed = required if isinstance(required, list) else ()
        fields = [self._field(field, schema, field in needed) for field, schema in properties.items()]
        for line in fields:
            yield f"{INDENT}{line}"
        if all(line.startswith("#") for line in fields):
            yield f"{INDENT}pass"

    def _field(self, name: str, schema: Any, required: bool) -> str:
        kind = self.of(schema)
        default = "" if required else _default(schema, kind)
        if default is None:
            kind, default = f"{kind} | {self.use('UnsetType')}", self.use("UNSET")
        if not _can_be_a_field(name):
            return f"# a field is left out, since no field has that name: {shown(name)}"
        if is_identifier(name) and not name.startswith("_"):
            return f"{name}: {kind} = {default}" if default else f"{name}: {kind}"
        python = self.new_name(f"field_{name}")
        options = f"name={literal(name)}" + (f", default={default}" if default else "")
        return f"{python}: {kind} = {self.use('field')}({options})"


def _properties(definition: dict[str, Any]) -> dict[str, Any]:
    """The properties of an object's schema; empty if the schema has none, or is no object."""
    return properties_of(definition) if definition.get("type") == "object" else {}


def properties_of(schema: dict[str, Any]) -> dict[str, Any]:
    """What a schema has as properties. Those whose names are no texts, which only msgpack has, are left out."""
    found = schema.get("properties")
    return {name: part for name, part in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}


def _tags_in(schemas: list[Any]) -> Iterator[tuple[str, str]]:
    """For each class that a union tells apart by a field: its name, and that field."""
    while schemas:
        schema = schemas.pop()
        if isinstance(schema, list):
            schemas += schema
        if not isinstance(schema, dict):
            continue
        schemas += schema.values()
        told = schema.get("discriminator")
        if isinstance(told, dict) and isinstance(told.get("propertyName"), str):
            mapping = told.get("mapping")
            for reference in mapping.values() if isinstance(mapping, dict) else ():
                if isinstance(reference, str):
                    yield reference.removeprefix(REF), told["propertyName"]


def _only_value(schema: Any) -> str | int | None:
    """The only value that a schema allows, if it can tell classes apart."""
    values = schema.get("enum", [schema.get("const")]) if isinstance(schema, dict) else []
    if not isinstance(values, list) or len(values) != 1 or type(values[0]) not in (str, int):
        return None
    return values[0] if _is_literal(values[0]) else None


def _is_literal(value: str | int | None) -> bool:
    """Whether msgspec takes it as one of the values of a `Literal`, or as a tag."""
    if isinstance(value, str):
        return not any("\ud800" <= char <= "\udfff" for char in value)
    return value is None or -(1 << 63) <= value < 1 << 63


def _can_be_a_field(name: str) -> bool:
    """Whether msgspec takes it as the name of a field, at least beside one that Python allows."""
    return bool(name) and name.isprintable() and "\\" not in name and '"' not in name


def _default(schema: Any, kind: str) -> str | None:
    """A default as a literal; None if the schema does not say, or it is more than a plain value."""
    if not isinstance(schema, dict) or "default" not in schema:
        return None
    value = schema["default"]
    if value is None:
        return "None" if kind == "None" or kind.endswith("| None") or kind.endswith("Any") else None
    if value in ([], {}) and kind.startswith("list" if value == [] else "dict"):
        return literal(value)
    if type(value) is int and re.match(r"(Annotated\[)?float\b", kind):
        return literal(value)
    wanted = {bool: "bool", int: "int", float: "float", str: "str"}.get(type(value))
    if wanted is not None and re.match(rf"(Annotated\[)?{wanted}\b", kind) and (wanted != "float" or isfinite(value)):
        return literal(value)
    return literal(value) if type(value) is str and kind.startswith("Literal[") else None
