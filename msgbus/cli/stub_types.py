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
from typing import Any, NamedTuple

REF = "#/$defs/"
INDENT = "    "
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
        parts: what a value of it may be in JSON: a union has room for one type of each.
    """

    text: str
    parts: frozenset[str]


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
        self._classes = {name: self.new_name(name) for name, found in self._definitions.items() if _properties(found)}
        self._aliases = {name: self.new_name(name) for name, found in self._definitions.items() if "enum" in found}
        self._tags: dict[str, str] = {}
        self.note_tags(self._definitions.values())

    def new_name(self, wanted: str) -> str:
        """A name for a class that nothing else has."""
        plain = re.sub(r"[^A-Za-z0-9_]", "_", wanted.rpartition(".")[2])[:60].lstrip("_0123456789") or "Anonymous"
        name, number = plain, 1
        while name in self._names:
            number += 1
            name = f"{plain}{number}"
        self._names.add(name)
        return name

    def note_tags(self, schemas: Iterable[Any]) -> None:
        """Look in further schemas for unions whose members are told apart by a field."""
        for name, field in _tags_in([*schemas]):
            properties = _properties(self._definitions.get(name, {}))
            if _can_be_a_field(field) and _only_value(properties.get(field)) is not None:
                self._tags[name] = field

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
        return self._kind(schema, ()).text

    def _any(self) -> Kind:
        return Kind(self.use("Any"), frozenset(("null", "boolean", "int", "float", "string", "array", "object")))

    def _kind(self, schema: Any, inside: tuple[str, ...]) -> Kind:
        if not isinstance(schema, dict):
            return self._any()
        reference = schema.get("$ref")
        if isinstance(reference, str):
            return self._referred(reference.removeprefix(REF), inside)
        for word in ("anyOf", "oneOf", "allOf"):
            members = schema.get(word)
            if isinstance(members, list) and members:
                return self._union([self._kind(member, inside) for member in members])
        if isinstance(schema.get("enum"), list):
            return self._literal(schema["enum"])
        if "const" in schema:
            return self._literal([schema["const"]])
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._union([self._kind({**schema, "type": one}, inside) for one in kind])
        return self._plain(schema, kind, inside)

    def _referred(self, name: str, inside: tuple[str, ...]) -> Kind:
        if name in self._classes:
            return Kind(self._classes[name], frozenset((f"object {name}" if name in self._tags else "object",)))
        if name in inside or name not in self._definitions:
            return self._any()
        kind = self._kind(self._definitions[name], (*inside, name))
        return kind._replace(text=self._aliases[name]) if name in self._aliases else kind

    def _union(self, members: list[Kind]) -> Kind:
        members = list({member.text: member for member in members}.values())
        parts = [part for member in members for part in member.parts]
        if len(parts) != len(set(parts)) or ("object" in parts and any(part.startswith("object ") for part in parts)):
            return members[0] if len(members) == 1 else self._any()
        return Kind(" | ".join(member.text for member in members), frozenset(parts))

    def _literal(self, values: list[Any]) -> Kind:
        names: dict[type, str] = {str: "string", int: "int", type(None): "null"}
        if not values or any(type(value) not in names for value in values):
            return self._any()
        text = ", ".join(map(literal, values))
        return Kind(f"{self.use('Literal')}[{text}]", frozenset(names[type(value)] for value in values))

    def _plain(self, schema: dict[str, Any], kind: Any, inside: tuple[str, ...]) -> Kind:
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
            return self._array(schema, inside)
        if kind == "object":
            values = self._kind(schema.get("additionalProperties"), inside).text
            return Kind(f"{self.use('dict')}[{self.use('str')}, {values}]", frozenset(("object",)))
        return self._any()

    def _array(self, schema: dict[str, Any], inside: tuple[str, ...]) -> Kind:
        first = schema.get("prefixItems")
        parts = frozenset(("array",))
        if isinstance(first, list):
            if schema.get("minItems", len(first)) != len(first):  # Some may be missing.
                return Kind(f"{self.use('list')}[{self.use('Any')}]", parts)
            items = ", ".join(self._kind(item, inside).text for item in first) or "()"
            return Kind(f"{self.use('tuple')}[{items}]", parts)
        items = self._kind(schema.get("items"), inside).text
        return self._bounded(Kind(f"{self.use('list')}[{items}]", parts), schema)

    def _bounded(self, kind: Kind, schema: dict[str, Any]) -> Kind:
        """The type with its bounds."""
        found = [
            f"{name}={schema[word]!r}"
            for word, name in _BOUNDS[schema["type"]].items()
            if type(schema.get(word)) in (int, float) and isfinite(schema[word])
        ]
        if schema["type"] == "string" and kind.text.endswith("str") and _is_pattern(schema.get("pattern")):
            found.append(f"pattern={literal(schema['pattern'])}")
        if not found:
            return kind
        return Kind(f"{self.use('Annotated')}[{kind.text}, {self.use('Meta')}({', '.join(found)})]", kind.parts)

    def write_definitions(self) -> Iterator[str]:
        """The lines of all classes, and before them of types that are no classes."""
        if self._aliases:
            yield ""
        for key, name in self._aliases.items():
            yield f"{name} = {self._kind(self._definitions[key], ()).text}"
        for key, name in self._classes.items():
            yield ""
            yield ""
            yield from self._class(key, name, self._definitions[key])

    def _class(self, key: str, name: str, definition: dict[str, Any]) -> Iterator[str]:
        tag = self._tags.get(key)
        properties = _properties(definition)
        options = "kw_only=True"
        if tag is not None:
            options += f", tag_field={literal(tag)}, tag={literal(_only_value(properties.pop(tag)))}"
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
    """The properties of an object's schema; empty if it is none."""
    found = definition.get("properties")
    return dict(found) if definition.get("type") == "object" and isinstance(found, dict) else {}


def _tags_in(schemas: Any) -> Iterator[tuple[str, str]]:
    """For each class that a union tells apart by a field: its name, and that field."""
    if isinstance(schemas, dict):
        told = schemas.get("discriminator")
        if isinstance(told, dict) and isinstance(told.get("propertyName"), str):
            mapping = told.get("mapping")
            for reference in mapping.values() if isinstance(mapping, dict) else ():
                if isinstance(reference, str):
                    yield reference.removeprefix(REF), told["propertyName"]
        schemas = [*schemas.values()]
    if isinstance(schemas, list):
        for schema in schemas:
            yield from _tags_in(schema)


def _only_value(schema: Any) -> str | int | None:
    """The only value that a schema allows, if it can tell classes apart."""
    values = schema.get("enum", [schema.get("const")]) if isinstance(schema, dict) else []
    return values[0] if isinstance(values, list) and len(values) == 1 and type(values[0]) in (str, int) else None


def _can_be_a_field(name: str) -> bool:
    """Whether msgspec takes it as the name of a field, at least beside one that Python allows."""
    return bool(name) and name.isprintable() and "\\" not in name and '"' not in name


def _is_pattern(text: Any) -> bool:
    try:
        re.compile(text)
    except (TypeError, re.error, RecursionError, OverflowError):
        return False
    return isinstance(text, str)


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
